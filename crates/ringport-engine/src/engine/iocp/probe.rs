//! Are completion ports usable here? Found out by using them: an engine connects to itself and receives a byte.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::IocpEngine;
use crate::buffer::{Chunk, Pool, PoolConfig, SendQueue};
use crate::engine::contract::{Engine, EngineConfig, Event, Want};
use crate::socket::{ListenOptions, SockAddr, Socket, SocketOptions};

/// A loaded machine may take its time, but not this much.
const PATIENCE: Duration = Duration::from_secs(5);

/// What works here, or why nothing does and what to do about it.
pub(crate) fn probe(config: &EngineConfig) -> Result<String, String> {
    match receive_a_byte(config) {
        Ok(true) => Ok("zero-byte receives, packets skipped on success".to_owned()),
        Ok(false) => Ok("zero-byte receives, a packet for every operation".to_owned()),
        Err(error) => Err(format!("{error}: look for a filter driver or a layered service provider (netsh winsock)")),
    }
}

/// Whether packets are skipped.
fn receive_a_byte(config: &EngineConfig) -> io::Result<bool> {
    let pool = Pool::new(PoolConfig::default().small_slots(8).large_slots(2).slot_bytes(4096, 4096));
    let config = EngineConfig { network: None, ..config.clone() };
    let mut engine = IocpEngine::open(&config, pool)?;
    let any = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let socket = Socket::listen(&any, &ListenOptions::default(), None)?;
    let address = socket.local_addr()?;
    let listener = engine.listen(socket)?;
    engine.accept(listener, Want::On);
    let client = engine.connect(&address, &SocketOptions::default())?;
    let skip = engine.conns.get(client).is_some_and(|conn| conn.skip);
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        engine.wait(Some(deadline))?;
        while let Some(event) = engine.next() {
            match event {
                Event::Accepted { socket, .. } => {
                    let conn = engine.adopt(socket)?;
                    engine.receive(conn, Want::On);
                }
                Event::Connected { conn } => {
                    let mut queue = SendQueue::new();
                    queue.push(Chunk::from("?"));
                    let _ = engine.send(conn, &mut queue);
                }
                Event::Received { buf, .. } if *buf == *b"?" => return Ok(skip),
                Event::Closed { why: Some(error), .. } | Event::AcceptFailed { error, .. } => return Err(error),
                _ => {}
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_passes_with_and_without_skipped_packets() {
        let mut config = EngineConfig::default();
        probe(&config).unwrap();
        config.features.skip_on_success = false;
        assert!(probe(&config).unwrap().contains("every operation"));
    }
}
