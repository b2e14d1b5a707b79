//! A TCP proxy: `cargo run --release --example proxy -- 127.0.0.1:6630 127.0.0.1:6628`.
//!
//! Each direction ends by itself: a FIN is passed on, and the other direction goes on until its own. Nothing is copied,
//! and a side that does not read makes the other side wait.

use std::io;

use ringport::aio::{self, OwnedReader, OwnedWriter};
use ringport::{Address, Server, Stream};

/// Passes on what arrives, and then the FIN. `send` waits while the destination is slow; meanwhile the inbox of the source
/// fills up, reading pauses, and the sender has to wait.
async fn copy(mut from: OwnedReader, mut to: OwnedWriter) -> io::Result<()> {
    while let Some(data) = from.recv().await? {
        to.send(data).await?;
    }
    to.shutdown().await
}

async fn proxy(client: Stream, to: Address) -> io::Result<()> {
    let server = aio::connect(to).await?;
    let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
    let back = aio::spawn(copy(from_server, to_client));
    let there = copy(from_client, to_server).await;
    if there.is_err() {
        // The pair is broken: what is left of the other direction would reach nobody.
        back.abort();
        return there;
    }
    back.await?
}

fn main() -> ringport::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:6630".to_owned());
    let to: Address = arguments.next().as_deref().unwrap_or("127.0.0.1:6628").parse()?;
    let serve = async move |client: Stream| proxy(client, to.clone()).await;
    let server = Server::new().listen_async(&listen, serve).start()?;
    println!("proxy on {} with {}", server.addresses()[0], server.engine());
    server.join()
}
