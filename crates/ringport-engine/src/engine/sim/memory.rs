//! Memory that the simulated kernel works on.
//!
//! On a real machine nothing shows that a buffer was used while the kernel had it, until bytes are wrong one day. Here
//! the kernel fills the slots that it may write to with poison and finds it intact when it writes, which it does at the
//! moment of completion and never before; what it reads, it reads again when it lets go. Whoever uses either too early
//! is found out in that very run.

use std::collections::VecDeque;

use crate::buffer::{Buf, Chunk, Pool, SlotClass, SlotId};

/// What lies in a slot that the kernel may write to.
const POISON: [u8; 4096] = [0xDB; 4096];
/// Share of the small slots that the kernel has at most.
const POSTED_SHARE: u32 = 4;

/// Slots that were posted for the kernel to write to, the first to be filled in front.
pub(super) struct Posted {
    pool: Pool,
    slots: VecDeque<SlotId>,
}

impl Posted {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, slots: VecDeque::new() }
    }

    pub(super) fn len(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Posts a share of the small slots, as far as they are free.
    pub(super) fn refill(&mut self) {
        let most = (self.pool.config().small_slots / POSTED_SHARE).min(8);
        while self.len() < most {
            let Some(slot) = self.pool.lend(SlotClass::Small) else { return };
            let (address, size) = self.pool.slot_memory(slot);
            // SAFETY: the slot was just lent, so that nobody has a reference into it until `take` reclaims it.
            unsafe { address.write_bytes(POISON[0], size as usize) };
            self.slots.push_back(slot);
        }
    }

    /// Takes the next slot back from the kernel, empty, for the bytes that complete now.
    ///
    /// # Panics
    ///
    /// If somebody wrote into it meanwhile.
    pub(super) fn take(&mut self) -> Option<Buf> {
        let slot = self.slots.pop_front()?;
        let (address, size) = self.pool.slot_memory(slot);
        // SAFETY: the slot is lent, its memory was filled in `refill`, and the slice is gone before it is reclaimed.
        let memory = unsafe { std::slice::from_raw_parts(address, size as usize) };
        let intact = memory.chunks(POISON.len()).all(|part| *part == POISON[..part.len()]);
        assert!(intact, "a slot was written to while the kernel had it");
        // SAFETY: `slot` came from `lend` of this pool, left `slots` just now, and the kernel is this thread.
        Some(unsafe { self.pool.reclaim(slot, 0) })
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        while let Some(slot) = self.slots.pop_front() {
            // SAFETY: as in `take`.
            drop(unsafe { self.pool.reclaim(slot, 0) });
        }
    }
}

/// Pieces of a send that is complete, which the kernel has not let go of.
#[derive(Debug)]
pub(super) struct Reading {
    pieces: Vec<Chunk>,
    /// What they held when they were sent.
    copy: Vec<u8>,
}

impl Reading {
    pub(super) fn new(pieces: Vec<Chunk>) -> Self {
        let copy = pieces.iter().flat_map(|piece| piece.as_slice()).copied().collect();
        Self { pieces, copy }
    }

    /// The kernel lets go.
    ///
    /// # Panics
    ///
    /// If somebody changed the bytes meanwhile.
    pub(super) fn end(self) {
        let mut rest = &self.copy[..];
        for piece in &self.pieces {
            let (begin, after) = rest.split_at(piece.len());
            assert!(piece.as_slice() == begin, "bytes were changed while the kernel sent them");
            rest = after;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::PoolConfig;

    fn pool() -> Pool {
        Pool::new(PoolConfig::default().small_slots(16).large_slots(2).slot_bytes(5000, 8192))
    }

    #[test]
    fn posted_slots_come_back_empty() {
        let pool = pool();
        let mut posted = Posted::new(pool.clone());
        posted.refill();
        assert_eq!((posted.len(), pool.stats().lent), (4, 4));
        assert!(posted.take().is_some_and(|buf| buf.is_empty()));
        drop(posted);
        assert_eq!(pool.stats().free, 18);
    }

    /// The breach that the poison is for: somebody kept the address of a slot that the kernel has again.
    #[test]
    #[should_panic(expected = "written to while the kernel had it")]
    fn a_late_write_is_found() {
        let pool = pool();
        let mut posted = Posted::new(pool.clone());
        posted.refill();
        let (address, size) = pool.slot_memory(posted.slots[0]);
        // SAFETY: the address is inside the slot, and no reference into it exists.
        unsafe { address.add(size as usize - 1).write(0) };
        posted.take();
    }

    /// The breach that the second look is for: a buffer was given back and filled anew before the notification.
    #[test]
    #[should_panic(expected = "changed while the kernel sent them")]
    fn an_early_reuse_is_found() {
        let pool = pool();
        let mut buf = pool.writable(8).expect("a free slot");
        buf.append(b"original");
        let (address, _) = buf.raw_memory();
        let reading = Reading::new(vec![Chunk::from(buf)]);
        // SAFETY: the piece keeps the slot, and no reference into it exists.
        unsafe { address.write(b'X') };
        reading.end();
    }

    #[test]
    fn what_nobody_touched_is_let_go() {
        let pool = pool();
        let mut buf = pool.writable(8).expect("a free slot");
        buf.append(b"original");
        Reading::new(vec![Chunk::from(buf), Chunk::from(vec![1, 2, 3])]).end();
        assert_eq!(pool.stats().leased, 0);
    }
}
