//! What the engine keeps books of, without a system call in it: how much of the completion queue is promised, which
//! slices are whose, and what of a connection's data is under way.
//!
//! Registered I/O forgives nothing: a completion queue that overflows is corrupt, and a slice that is used twice mixes
//! the bytes of two connections. So the books are pure, are compiled on every system for their tests, and are tested
//! against the rules themselves (`crates/rio-standin/src/rules.rs`).

mod budget;
mod flight;
mod slices;
#[cfg(test)]
mod tests;

pub(crate) use budget::Budget;
pub(crate) use flight::{Flight, Next, SENDS};
#[allow(unused_imports, reason = "named by the engine alone, which is compiled on Windows")]
pub(crate) use slices::SliceId;
pub(crate) use slices::Slices;
