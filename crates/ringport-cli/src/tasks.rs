//! The services of `ringport serve --api async`: the same as the handlers of `services.rs`, as a task for each connection.

use std::io;

use ringport::Stream;
use ringport::aio::DatagramSocket;

use crate::services::{GENERATED, GENERATED_BYTES, Generate, PIECE};

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
        writer.send_all(like.pieces()).await?;
    }
}

/// Sends datagrams back.
pub(crate) async fn echo_datagrams(mut socket: DatagramSocket) -> io::Result<()> {
    loop {
        let datagram = socket.recv_from().await?;
        if !datagram.truncated {
            socket.send_to(datagram.data, datagram.from).await?;
        }
    }
}

/// Drops datagrams.
pub(crate) async fn discard_datagrams(mut socket: DatagramSocket) -> io::Result<()> {
    loop {
        socket.recv_from().await?;
    }
}

/// Answers each datagram with some, as the handler does.
pub(crate) async fn generate_datagrams(mut socket: DatagramSocket) -> io::Result<()> {
    loop {
        let datagram = socket.recv_from().await?;
        for _ in 0..GENERATED {
            socket.send_to(&PIECE[..GENERATED_BYTES], datagram.from).await?;
        }
    }
}
