//! The programs as their users run them: the built binary, its lines, its exit codes, and peers that behave badly.
//!
//! Every wait in these tests has a limit, and every program is ended by its number when its test ends.

mod bench;
mod connect;
#[cfg(unix)]
mod crowd;
mod denied;
mod drain;
#[cfg(unix)]
mod files;
mod hostile;
mod program;
mod serve;
#[cfg(unix)]
mod starved;
#[cfg_attr(unix, path = "system/unix.rs")]
#[cfg_attr(windows, path = "system/windows.rs")]
mod system;
mod udp;
#[cfg(unix)]
mod unix;
mod usage;
