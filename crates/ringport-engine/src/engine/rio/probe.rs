//! Is Registered I/O usable here? Found out by using it: an engine connects to itself and receives a byte.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock::{WSAEINVAL, WSAENOBUFS, WSAEOPNOTSUPP};

use super::RioEngine;
use crate::buffer::{Chunk, Pool, PoolConfig, SendQueue};
use crate::engine::contract::{Engine, EngineConfig, Event, Want};
use crate::socket::{ListenOptions, SockAddr, Socket, SocketOptions};

/// A loaded machine may take its time, but not this much.
const PATIENCE: Duration = Duration::from_secs(5);

/// What works here, or why nothing does and what to do about it.
pub(crate) fn probe(config: &EngineConfig) -> Result<String, String> {
    match receive_a_byte(config) {
        Ok(()) => Ok("registered buffers, receives posted ahead".to_owned()),
        Err(error) => Err(explain(&error)),
    }
}

/// Why it does not work, and what to do.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        // What Windows 7 and Wine answer to the question for the functions.
        Some(code @ (WSAEOPNOTSUPP | WSAEINVAL)) => format!(
            "this system has no Registered I/O (error {code}): it begins with Windows 8 and Windows Server 2012, and Wine has none; use --engine iocp or auto"
        ),
        Some(code @ WSAENOBUFS) => {
            format!("the system has no memory to lock (error {code}): make the pool smaller, or use --engine iocp")
        }
        _ => format!(
            "{error}; use --engine iocp or auto, and look for a filter driver or a layered service provider (netsh winsock)"
        ),
    }
}

fn receive_a_byte(config: &EngineConfig) -> io::Result<()> {
    let pool = Pool::new(PoolConfig::default().small_slots(8).large_slots(2).slot_bytes(4096, 4096));
    let config = EngineConfig { network: None, ..config.clone() };
    let mut engine = RioEngine::open(&config, pool)?;
    let any = SockAddr::from(std::net::SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let socket = Socket::listen(&any, &ListenOptions::default(), None)?;
    let address = socket.local_addr()?;
    let listener = engine.listen(socket)?;
    engine.accept(listener, Want::On);
    engine.connect(&address, &SocketOptions::default())?;
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
                Event::Received { buf, .. } if *buf == *b"?" => return Ok(()),
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
    fn a_refusal_says_why_and_what_to_do() {
        for (code, words) in [
            (WSAEOPNOTSUPP, ["10045", "Windows 8", "--engine iocp"]),
            (WSAEINVAL, ["10022", "Windows Server 2012", "--engine iocp"]),
            (WSAENOBUFS, ["10055", "pool smaller", "--engine iocp"]),
            (10013, ["10013", "netsh", "--engine iocp"]),
        ] {
            let reason = explain(&io::Error::from_raw_os_error(code));
            assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
        }
    }
}
