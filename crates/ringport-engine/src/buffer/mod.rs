//! Memory that the kernel may see, and what is queued to be sent.
//!
//! ```text
//! Pool ── lease ──► Buf ── push ──► SendQueue ── Engine::send ──► in-flight record ── drop ──► Pool
//!   ▲                │
//!   └──── drop ──────┴── into_bytes ──► bytes::Bytes (any thread) ── drop ──► lock-free list ──► Pool
//! ```
//!
//! One [`Pool`] per worker cuts one page-aligned region into slots of two sizes: *small* slots, which the kernel picks
//! from by itself when many connections have a few bytes each, and *large* slots, which a plain receive call fills.
//! Slots are handed out last-in first-out, so that the ones in use stay in the processor's cache.

mod chunk;
mod file;
mod lease;
mod pool;
mod queue;
mod shortage;
#[cfg(test)]
mod tests;

pub use chunk::Chunk;
pub use file::FileRange;
#[allow(unused_imports, reason = "only engines that send from files need it")]
pub(crate) use file::truncated;
pub use lease::Buf;
pub(crate) use pool::SlotClass;
pub(crate) use pool::SlotId;
pub use pool::{Pool, PoolConfig, PoolStats};
pub use queue::SendQueue;
