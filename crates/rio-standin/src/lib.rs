//! Registered I/O of Windows without Windows: its rules, and functions that stand in for it.
//!
//! No system that the tests run on has Registered I/O (Wine has none). So the tests of the engine bring their own, and it
//! is stricter than the real one: what Microsoft's documentation forbids, or leaves open, ends the test with a message
//! that begins with [`BREACH`].
//!
//! - [`rules`] is a model in memory without any system call. It runs everywhere, also under Miri and in property tests.
//! - `functions` are the thirteen functions of the extension table over overlapped sockets. Every call passes through the
//!   rules first.
//! - [`install`] has every rio engine of the process work over these functions.
//!
//! The rules are those of the pages on Registered I/O at
//! <https://learn.microsoft.com/windows/win32/api/mswsock/ns-mswsock-rio_extension_function_table> and the pages of the
//! functions that it lists. This crate is a development dependency, or stands behind a feature for tests, and is
//! never part of a program that is shipped.

#[cfg(windows)]
mod functions;
pub mod rules;
#[cfg(windows)]
mod sockets;

#[cfg(windows)]
pub use functions::{Calls, calls, closing, created, functions};

/// Has every rio engine that this process opens from now on work over the stand-in. With `RINGPORT_REAL_RIO` in the
/// environment it does nothing, so that the same tests run over the system's own functions. Where there is no Windows there
/// is no such engine, and nothing to do.
pub fn install() {
    #[cfg(windows)]
    functions::install();
}

/// How the message of a broken rule begins.
pub const BREACH: &str = "Registered I/O, broken rule";
