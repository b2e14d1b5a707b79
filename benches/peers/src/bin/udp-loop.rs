//! Echoes datagrams one at a time with the standard library: the plainest server there is.
#![forbid(unsafe_code)]

use std::net::UdpSocket;

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let socket = UdpSocket::bind(address)?;
    println!("listening udp {}", socket.local_addr()?);
    let mut data = vec![0; 65_536];
    loop {
        let (length, from) = socket.recv_from(&mut data)?;
        socket.send_to(&data[..length], from)?;
    }
}
