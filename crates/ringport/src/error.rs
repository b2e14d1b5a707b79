//! Errors: what happened, to what, and whether trying again can help.

use std::io;

use ringport_engine::engine::{SelectionError, is_exhaustion};
use thiserror::Error;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server or client could not start or had to stop.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An address that is neither `HOST:PORT` nor `unix:PATH`, or whose host has no address.
    #[error("{text:?} is not an address: {why}; use HOST:PORT, [IPv6]:PORT or unix:PATH")]
    Address {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option with a value that makes no sense.
    #[error("{option} cannot be {value}: {why}")]
    Option {
        /// Which.
        option: &'static str,
        /// The value.
        value: String,
        /// Why not.
        why: &'static str,
    },
    /// No engine can be used, or not the one that was named.
    #[error(transparent)]
    Engine(#[from] SelectionError),
    /// The system refused to listen.
    #[error("cannot listen on {address}: {}", describe(.source))]
    Listen {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused something that the whole server needs.
    #[error("{what}: {}", describe(.source))]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// The system's error number, if the system was asked (see errno(3)).
    #[must_use]
    pub fn os_code(&self) -> Option<i32> {
        match self {
            Self::Listen { source, .. } | Self::System { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether trying again later, with nothing changed, may succeed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Listen { source, .. } | Self::System { source, .. } => is_transient(source),
            _ => false,
        }
    }
}

/// Whether an error of the system may go away by itself: out of descriptors, memory or buffers, interrupted, refused or
/// timed out. Errors such as a reset end their connection for good.
#[must_use]
pub fn is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::Interrupted
            | Kind::WouldBlock
            | Kind::TimedOut
            | Kind::OutOfMemory
            | Kind::AddrInUse
            | Kind::ConnectionRefused
            | Kind::ResourceBusy
            | Kind::NetworkDown
            | Kind::NetworkUnreachable
            | Kind::HostUnreachable
    ) || is_exhaustion(error)
}

/// The system's words, and what to do where that is known.
fn describe(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process uses it; stop that one, or choose another port (0 picks a free one)"
        }
        io::ErrorKind::AddrNotAvailable => "this machine has no such address",
        io::ErrorKind::PermissionDenied => "ports below 1024 and foreign folders need privileges",
        io::ErrorKind::NotFound => "the folder of the socket file does not exist",
        _ => return error.to_string(),
    };
    format!("{error}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transient_and_fatal_errors_are_told_apart() {
        let exhausted = ringport_engine::engine::EXHAUSTION_CODES.map(io::Error::from_raw_os_error);
        let kinds = [
            (io::ErrorKind::Interrupted.into(), true),
            (io::ErrorKind::ConnectionRefused.into(), true),
            (io::ErrorKind::ConnectionReset.into(), false),
            (io::ErrorKind::BrokenPipe.into(), false),
            (io::ErrorKind::PermissionDenied.into(), false),
        ];
        for (error, transient) in kinds.into_iter().chain(exhausted.map(|error| (error, true))) {
            assert_eq!(is_transient(&error), transient, "{error}");
        }
    }

    #[test]
    fn messages_say_what_to_do() {
        let error = Error::Listen { address: "127.0.0.1:1".into(), source: io::ErrorKind::AddrInUse.into() };
        assert!(error.to_string().contains("127.0.0.1:1") && error.to_string().contains("choose another port"));
        assert!(error.is_transient());
    }
}
