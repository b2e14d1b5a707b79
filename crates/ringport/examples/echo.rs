//! An echo server: `cargo run --release --example echo -- 127.0.0.1:6628`.

use ringport::{Buf, Connection, Handler, Result, Server};

struct Echo;

impl Handler for Echo {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        conn.send(data);
    }
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6628".to_owned());
    let server = Server::new().listen(&address, || Echo).start()?;
    println!("echo on {} with {}", server.addresses()[0], server.engine());
    server.join()
}
