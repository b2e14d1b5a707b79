//! Answers each datagram with how many came from its peer: `cargo run --release --example udp -- 127.0.0.1:6628`.

use std::net::SocketAddr;
use std::time::Duration;

use ringport::{Datagram, DatagramHandler, DatagramOptions, Datagrams, Rate, Result, Server};

struct Counter;

impl DatagramHandler for Counter {
    /// Kept for each peer, until it has been silent for a minute.
    type Peer = u64;

    fn datagram(&mut self, socket: &mut Datagrams<'_>, count: &mut u64, datagram: Datagram) {
        *count += 1;
        // A refused answer is lost, as one that the network drops.
        let _ = socket.send_to(datagram.from, format!("{count}\n").into_bytes());
    }

    fn expired(&mut self, _: &mut Datagrams<'_>, address: SocketAddr, count: u64) {
        println!("{address} is silent after {count} datagrams");
    }
}

fn main() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6628".to_owned());
    let options =
        DatagramOptions::default().peers(10_000, Some(Duration::from_secs(60))).rate_max(Some(Rate::new(1000, 1000)));
    let server = Server::new().udp_with(&address, options, || Counter).start()?;
    println!("counting on {} with {}", server.udp_addresses()[0], server.engine());
    server.join()
}
