//! Lines in front of a line server, over few connections to it: `cargo run --release --example pool -- 127.0.0.1:6630
//! 127.0.0.1:6628`. However many clients there are, at most four connections lead to the server behind, and each carries one
//! question at a time. The line `?` is answered with the pool's counters.

use std::io;

use ringport::aio::{ConnectionPool, ConnectionPoolOptions};
use ringport::{Address, Server, Stream};

/// The next line with its end, or nothing at the end of the stream.
async fn line(stream: &mut Stream, kept: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = kept.iter().position(|byte| *byte == b'\n') {
            return Ok(Some(kept.drain(..=end).collect()));
        }
        match stream.recv().await? {
            Some(data) if kept.len() + data.len() <= 1 << 20 => kept.extend_from_slice(&data),
            Some(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "a line of more than 1 MiB")),
            None => return Ok(None),
        }
    }
}

/// Asks the server behind. If it does not answer with a line the connection is dropped, and so nobody else gets it.
async fn ask(pool: &ConnectionPool, to: &Address, question: Vec<u8>) -> io::Result<Vec<u8>> {
    let mut connection = pool.get(to.clone()).await?;
    connection.send(question).await?;
    let answer = line(&mut connection, &mut Vec::new()).await?;
    connection.complete();
    answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn serve(mut client: Stream, pool: &ConnectionPool, to: &Address) -> io::Result<()> {
    let mut kept = Vec::new();
    while let Some(question) = line(&mut client, &mut kept).await? {
        let answer = match &question[..] {
            b"?\n" => format!("{:?}\n", pool.stats()).into_bytes(),
            _ => ask(pool, to, question).await?,
        };
        client.send(answer).await?;
    }
    Ok(())
}

fn main() -> ringport::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:6630".to_owned());
    let to: Address = arguments.next().as_deref().unwrap_or("127.0.0.1:6628").parse()?;
    let pool = ConnectionPool::new(ConnectionPoolOptions::default().max_connections_per_destination(4));
    let server = Server::new().listen_async(&listen, async move |client| serve(client, &pool, &to).await).start()?;
    println!("pool on {} with {}", server.addresses()[0], server.engine());
    server.join()
}
