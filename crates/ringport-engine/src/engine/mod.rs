//! The engines, and the only place that chooses between platforms.
//!
//! | engine | platform | folder |
//! |---|---|---|
//! | `io_uring` | Linux 6.0 and later | [`uring`] |
//! | `epoll`, `kqueue` | Linux, Android; macOS, BSD | [`readiness`] |
//! | `iocp` | Windows | `iocp/`, with `acceptor.rs`, `port.rs` and `winsock.rs` |
//! | `rio` | Windows 8, Windows Server 2012 and later | `rio/`, with the same |
//! | `sim` | everywhere | [`sim`] |
//!
//! Every folder has the same files: `mod.rs` (the engine and its state), `accept.rs`, `connect.rs`, `receive.rs`,
//! `send.rs`, `close.rs`, `wait.rs` (a turn) and `probe.rs` (is it available here?).

//!
//! `cfg` on the operating system stands here, in `platform.rs` and in Cargo.toml, and nowhere else.

#[cfg(windows)]
mod acceptor;
mod backoff;
pub mod contract;
#[cfg(unix)]
mod datagram;
#[cfg(target_os = "linux")]
#[path = "datagram_linux.rs"]
mod datagram_calls;
#[cfg(all(unix, not(target_os = "linux")))]
#[path = "datagram_portable.rs"]
mod datagram_calls;
#[cfg(windows)]
mod datagram_windows;
#[cfg(unix)]
mod direct;
#[cfg(windows)]
pub mod iocp;
pub(crate) mod platform;
#[cfg(windows)]
mod port;
#[cfg(unix)]
pub mod readiness;
#[cfg(windows)]
pub mod rio;
/// The part of `rio` that needs no Windows, for its tests.
#[cfg(all(test, not(windows)))]
#[path = "rio/books/mod.rs"]
mod rio_books;
mod select;
pub mod sim;
#[cfg_attr(windows, allow(dead_code, reason = "its engines never poll by themselves"))]
mod spin;
#[cfg_attr(target_os = "linux", path = "options_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "options_other.rs")]
pub(crate) mod system_options;
#[cfg_attr(unix, path = "termination_unix.rs")]
#[cfg_attr(windows, path = "termination_windows.rs")]
mod termination;
#[cfg_attr(windows, allow(dead_code, reason = "its engines never poll by themselves"))]
mod thrift;
#[cfg(target_os = "linux")]
pub mod uring;
#[cfg(windows)]
pub(crate) mod winsock;

pub use platform::{EXHAUSTION_CODES, UseEngine, is_exhaustion, pin_to_core, with_engine};
pub use select::{Candidate, EngineKind, Selection, SelectionError};
pub use termination::{asked_to_end, ring_when_asked_to_end};

/// Entries that each list of connections in an engine has room for from the beginning, so that a burst on a busy machine
/// costs a worker that has been running for long no allocation. 8 bytes each.
pub(crate) const LISTED_AT_FIRST: usize = 256;
