//! The engines, and the only place that chooses between platforms.
//!
//! | engine | platform | folder |
//! |---|---|---|
//! | `io_uring` | Linux 6.0 and later | [`uring`] |
//! | `epoll`, `kqueue` | Linux, Android; macOS, BSD | [`readiness`] |
//! | `sim` | everywhere | [`sim`] |
//!
//! Every folder has the same files: `mod.rs` (the engine and its state), `accept.rs`, `connect.rs`, `receive.rs`,
//! `send.rs`, `close.rs`, `wait.rs` (a turn) and `probe.rs` (is it available here?).

//!
//! `cfg` on the operating system stands here, in `platform.rs` and in Cargo.toml, and nowhere else.

mod backoff;
pub mod contract;
#[cfg(unix)]
mod direct;
pub(crate) mod platform;
#[cfg(unix)]
pub mod readiness;
mod select;
pub mod sim;
#[cfg(unix)]
mod spin;
#[cfg_attr(target_os = "linux", path = "options_linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "options_other.rs")]
pub(crate) mod system_options;
#[cfg(target_os = "linux")]
pub mod uring;

pub use platform::{UseEngine, pin_to_core, with_engine};
pub use select::{Candidate, EngineKind, Selection, SelectionError};
