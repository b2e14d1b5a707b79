//! Is io_uring usable here? Found out by using it: an engine is opened as a worker would, and a byte received.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::UringEngine;
use crate::buffer::{Pool, PoolConfig};
use crate::engine::contract::{Engine, EngineConfig, Event, Want};
use crate::socket::Socket;

/// A loaded machine may take its time, but not this much.
const PATIENCE: Duration = Duration::from_secs(2);

/// What works here, or why nothing does and what to do about it.
pub(crate) fn probe(config: &EngineConfig) -> Result<String, String> {
    let setup = receive_a_byte(config).map_err(|error| explain(&error))?;
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let receive = match (config.features.multishot_receive, config.features.direct_receive) {
        (true, true) => "multishot and direct receive",
        (true, false) => "multishot receive",
        (false, _) => "polled receive",
    };
    Ok(format!("Linux {}, {setup}, {receive}", kernel.trim()))
}

fn receive_a_byte(config: &EngineConfig) -> io::Result<&'static str> {
    let pool = Pool::new(PoolConfig::default().small_slots(8).large_slots(2).slot_bytes(4096, 4096));
    let mut engine = UringEngine::open(config, pool)?;
    let (mut peer, ours) = UnixStream::pair()?;
    let conn = engine.adopt(Socket::from(socket2::Socket::from(ours)))?;
    engine.receive(conn, Want::On);
    peer.write_all(b"?")?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        engine.wait(Some(deadline))?;
        while let Some(event) = engine.next() {
            match event {
                Event::Received { buf, .. } if *buf == *b"?" => return Ok(engine.ring.setup),
                Event::Closed { why: Some(error), .. } => return Err(error),
                _ => {}
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn explain(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            let disabled = disabled.as_deref().map_or("absent", str::trim);
            format!(
                "denied by seccomp or by the system (kernel.io_uring_disabled is {disabled}): \
                 ask for io_uring_setup, io_uring_enter and io_uring_register to be allowed, or use epoll"
            )
        }
        Some(libc::ENOSYS) => {
            "the kernel is too old, was built without io_uring or hides it (ENOSYS): Linux 6.0 or later is needed, \
             or use epoll"
                .to_owned()
        }
        Some(libc::ENOMEM) => {
            "not enough memory, most likely the limit on locked memory (`ulimit -l`): raise it to 8 MiB, or use epoll"
                .to_owned()
        }
        Some(libc::EINVAL) => "the kernel is older than Linux 6.0 (EINVAL): use epoll".to_owned(),
        _ => format!("{error}: use epoll"),
    }
}
