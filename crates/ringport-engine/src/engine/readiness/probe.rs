//! Is this engine available here?

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::engine::contract::EngineConfig;
use crate::engine::platform;

/// How long the event of the probe may take. It is there already when it is asked for.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// Waits for a real event. Says what was found, or why it does not work and what to do.
pub(crate) fn probe(_: &EngineConfig) -> Result<String, String> {
    match try_event() {
        Ok(true) => Ok("edge-triggered, plain calls into one hot buffer".to_owned()),
        Ok(false) => Err("the system reported no event for a socket that has bytes; please report this".to_owned()),
        Err(error) => Err(format!("{error}; {}", advice(&error))),
    }
}

fn try_event() -> io::Result<bool> {
    let mut poll = Poll::new()?;
    let (near, mut far) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
    let interest = Interest::READABLE | Interest::WRITABLE;
    poll.registry().register(&mut SourceFd(&near.as_raw_fd()), Token(0), interest)?;
    far.write_all(b"?")?;
    let mut events = Events::with_capacity(4);
    loop {
        match poll.poll(&mut events, Some(PROBE_WAIT)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(events.iter().any(mio::event::Event::is_readable)),
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    if platform::is_exhaustion(error) {
        "raise the limit on open files (`ulimit -n`) or free memory"
    } else if error.kind() == io::ErrorKind::PermissionDenied {
        "a policy (seccomp or the like) forbids it; allow it or run elsewhere"
    } else {
        "this system cannot run the engine"
    }
}
