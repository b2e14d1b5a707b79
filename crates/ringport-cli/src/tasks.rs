//! The services of `ringport serve --api async`: the same as the handlers of `services.rs`, as a task for each connection.

use std::io;

use ringport::Stream;

use crate::services::{Generate, PIECE};

/// Sends back what it receives. A send that does not fit waits, and reading waits with it.
pub(crate) async fn echo(mut stream: Stream) -> io::Result<()> {
    while let Some(data) = stream.recv().await? {
        stream.send(data).await?;
    }
    Ok(())
}

/// Drops what it receives.
pub(crate) async fn discard(mut stream: Stream) -> io::Result<()> {
    while stream.recv().await?.is_some() {}
    Ok(())
}

/// Sends as `like` does, to peers that only read, too.
pub(crate) async fn generate(stream: Stream, like: &Generate) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    // What arrives is discarded from now on.
    drop(reader);
    loop {
        writer.send(&PIECE[..like.piece_bytes]).await?;
    }
}
