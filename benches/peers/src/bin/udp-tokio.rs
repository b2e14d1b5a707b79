//! Echoes datagrams one at a time with tokio's `UdpSocket`, on one thread.
#![forbid(unsafe_code)]

use tokio::net::UdpSocket;

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let socket = UdpSocket::bind(address).await?;
        println!("listening udp {}", socket.local_addr()?);
        let mut data = vec![0; 65_536];
        loop {
            let (length, from) = socket.recv_from(&mut data).await?;
            socket.send_to(&data[..length], from).await?;
        }
    })
}
