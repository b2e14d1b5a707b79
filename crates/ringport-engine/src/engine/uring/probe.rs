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

#[cfg(test)]
mod tests {
    use super::super::tests::all_masks;
    use super::*;

    #[test]
    fn the_probe_passes_with_every_mask() {
        for features in all_masks() {
            let config = EngineConfig { features, ..EngineConfig::default() };
            assert!(probe(&config).unwrap().starts_with("Linux "));
        }
    }

    /// Denies io_uring to the calling thread, as container runtimes do to a process.
    fn deny_io_uring(errno: i32) {
        let load_number = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let is_equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let answer = libc::BPF_RET | libc::BPF_K;
        // SAFETY: these only build values.
        let mut program = unsafe {
            [
                libc::BPF_STMT(load_number as u16, 0),
                libc::BPF_JUMP(is_equal as u16, libc::SYS_io_uring_setup as u32, 0, 1),
                libc::BPF_STMT(answer as u16, libc::SECCOMP_RET_ERRNO | errno as u32),
                libc::BPF_STMT(answer as u16, libc::SECCOMP_RET_ALLOW),
            ]
        };
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the filter lives through the calls, which change this thread alone.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
        }
    }

    #[test]
    fn a_refusal_says_why_and_what_to_do() {
        let expectations = [
            (libc::EPERM, "denied by seccomp"),
            (libc::ENOSYS, "without io_uring"),
            (libc::ENOMEM, "ulimit -l"),
            (libc::EINVAL, "older than Linux 6.0"),
        ];
        for (errno, expected) in expectations {
            let denied = std::thread::spawn(move || {
                deny_io_uring(errno);
                probe(&EngineConfig::default())
            });
            let reason = denied.join().unwrap().unwrap_err();
            assert!(reason.contains(expected) && reason.contains("use epoll"), "{reason}");
        }
    }
}
