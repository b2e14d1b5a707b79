//! The memory of a worker's queues, and what it is allowed of the server's.
//!
//! The limit holds for all workers together, but a counter that all of them write at each message would cost more than the
//! message. So each worker takes its allowance out of the common [`Budget`] in blocks, counts within it by itself, and gives
//! blocks back when it has several too many. What lies in such blocks is counted as used: the limit is kept, and up to a
//! quarter of it may be out of reach.
//!
//! Charged are bytes that wait to be sent, partial frames that are kept, and copies of received bytes that handlers hold.
//! The buffer pools are fixed memory and come on top of the limit. Copies are never in the way of sending: whoever holds them does
//! so until they are sent, and would for ever if they left no memory for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Largest block, in bytes.
const BLOCK_MAX: u64 = 256 << 10;
/// A worker gives blocks back when it has more than so many that it does not use.
const SPARE_BLOCKS: u64 = 2;

/// Received bytes that a worker takes back beyond the limit, and so does a connection beyond its own, where they would be
/// lost otherwise. Reading rests by then, and what may still come is what the kernel had received already, or one receive of
/// each connection: at most the large slots of the default pool, 32 × 256 KiB, or half of that in the small ones. They lie in
/// memory that the pool has anyway.
pub(crate) const RECEIVED_OVERRUN: u64 = 8 << 20;
/// Bytes of any other memory that are taken then, by a connection or by all workers together: what handlers make of what was
/// received already.
pub(crate) const OVERRUN: u64 = 1 << 20;

/// What all workers of a server may use together.
#[derive(Debug)]
pub(crate) struct Budget {
    limit: u64,
    block: u64,
    /// A worker's part of [`OVERRUN`].
    overrun: u64,
    /// What a worker may use apart from copies, however many there are.
    floor: u64,
    granted: AtomicU64,
}

impl Budget {
    /// For `workers` workers with `limit` bytes together.
    pub(crate) fn new(limit: u64, workers: usize) -> Arc<Self> {
        let workers = workers.max(1) as u64;
        let block = (limit / (4 * (SPARE_BLOCKS + 1) * workers)).clamp(1, BLOCK_MAX);
        let (overrun, floor) = (OVERRUN / workers, OVERRUN.min(limit) / workers);
        Arc::new(Self { limit, block, overrun, floor, granted: AtomicU64::new(0) })
    }

    /// Takes `bytes` if that many are left.
    fn take(&self, bytes: u64) -> bool {
        let before = self.granted.fetch_add(bytes, Ordering::Relaxed);
        let granted = before.checked_add(bytes).is_some_and(|sum| sum <= self.limit);
        if !granted {
            self.granted.fetch_sub(bytes, Ordering::Relaxed);
        }
        granted
    }

    fn give_back(&self, bytes: u64) {
        self.granted.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// What one worker uses. Written by its thread alone.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Account {
    /// Bytes in use. More than `granted` only for what could not be refused.
    used: u64,
    /// Bytes taken out of the budget.
    granted: u64,
    /// Below this many bytes in use blocks are given back.
    shrink_below: u64,
    budget: Arc<Budget>,
    /// Part of `used`: copies of received bytes.
    copies: u64,
    /// Part of `used`: datagrams that wait to be sent, and copies of received ones.
    datagrams: u64,
    /// Messages that a policy dropped.
    pub(crate) dropped_messages: u64,
    /// Their bytes.
    pub(crate) dropped_bytes: u64,
}

impl Account {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            used: 0,
            granted: 0,
            shrink_below: 0,
            copies: 0,
            datagrams: 0,
            dropped_messages: 0,
            dropped_bytes: 0,
        }
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Charges `bytes` if the limit allows it, or would without the copies that are held.
    #[inline]
    pub(crate) fn charge(&mut self, bytes: u64) -> bool {
        let used = self.used.saturating_add(bytes);
        let fits = used <= self.granted || self.grow(used) || self.fits_beside_copies(used);
        if fits {
            self.used = used;
        }
        fits
    }

    /// Charges `bytes` that are here already, whatever the limit says.
    pub(crate) fn charge_anyway(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
        if self.used > self.granted {
            self.grow(self.used);
        }
    }

    /// Charges `bytes`, if need be beyond the limit, but not without end.
    pub(crate) fn charge_beyond(&mut self, bytes: u64, received: bool) -> bool {
        if self.charge(bytes) {
            return true;
        }
        if self.is_over() {
            self.grow(self.used);
        }
        let overrun = if received { RECEIVED_OVERRUN } else { self.budget.overrun };
        let within = self.used.saturating_add(bytes) <= self.granted.saturating_add(overrun);
        if within {
            self.charge_anyway(bytes);
        }
        within
    }

    /// Takes `bytes` off again.
    #[inline]
    pub(crate) fn release(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used, "{bytes} of {} bytes", self.used);
        self.used = self.used.saturating_sub(bytes);
        if self.used < self.shrink_below {
            self.shrink();
        }
    }

    /// Charges what there is now of copies of received bytes.
    #[inline]
    pub(crate) fn set_copies(&mut self, bytes: u64) {
        if bytes != self.copies {
            let before = std::mem::replace(&mut self.copies, bytes);
            self.release(before);
            self.charge_anyway(bytes);
        }
    }

    /// Charges a datagram that is to be sent, if the limit allows it, until [`Self::set_datagrams`] says otherwise.
    #[inline]
    pub(crate) fn charge_datagram(&mut self, bytes: u64) -> bool {
        let fits = self.charge(bytes);
        if fits {
            self.datagrams += bytes;
        }
        fits
    }

    /// Charges what there is now of datagrams.
    #[inline]
    pub(crate) fn set_datagrams(&mut self, bytes: u64) {
        if bytes != self.datagrams {
            let before = std::mem::replace(&mut self.datagrams, bytes);
            self.release(before);
            self.charge_anyway(bytes);
        }
    }

    /// Whether more is in use than the limit allows, so that reading should rest.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.used > self.granted
    }

    /// Looks again whether the limit allows what is in use.
    pub(crate) fn is_still_over(&mut self) -> bool {
        self.is_over() && !self.grow(self.used)
    }

    /// Whether something may be charged although the limit is reached, since copies are a part of it.
    pub(crate) fn has_room_beside_copies(&self) -> bool {
        self.fits_beside_copies(self.used.saturating_add(1))
    }

    #[cold]
    fn fits_beside_copies(&self, used: u64) -> bool {
        self.copies > 0 && used - self.copies <= self.budget.floor
    }

    #[cold]
    fn grow(&mut self, used: u64) -> bool {
        let (missing, block) = (used - self.granted, self.budget.block);
        let blocks = missing.div_ceil(block).saturating_mul(block);
        let taken = [blocks, missing].into_iter().find(|bytes| self.budget.take(*bytes));
        self.set_granted(self.granted + taken.unwrap_or(0));
        taken.is_some()
    }

    #[cold]
    fn shrink(&mut self) {
        let spare = self.granted.saturating_sub(self.used + self.budget.block);
        self.budget.give_back(spare);
        self.set_granted(self.granted - spare);
    }

    fn set_granted(&mut self, granted: u64) {
        self.granted = granted;
        self.shrink_below = granted.saturating_sub((SPARE_BLOCKS + 1) * self.budget.block);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.budget.give_back(self.granted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn workers_share_one_limit() {
        let budget = Budget::new(10 * MIB, 2);
        let (mut one, mut two) = (Account::new(Arc::clone(&budget)), Account::new(Arc::clone(&budget)));
        assert!(one.charge(7 * MIB) && two.charge(3 * MIB));
        assert!(!one.charge(1) && !two.charge(1));
        one.release(7 * MIB);
        assert!(two.charge(6 * MIB), "what one gave back the other may use");
        assert!(!one.charge(2 * MIB));
        drop(two);
        assert!(one.charge(10 * MIB));
        drop(one);
        assert_eq!(budget.granted.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn small_messages_rarely_touch_the_budget() {
        let budget = Budget::new(100 * MIB, 4);
        let mut account = Account::new(Arc::clone(&budget));
        let mut changes = 0;
        let mut last = 0;
        for _ in 0..10_000 {
            assert!(account.charge(10_000));
            account.release(10_000);
            let granted = budget.granted.load(Ordering::Relaxed);
            changes += u32::from(std::mem::replace(&mut last, granted) != granted);
        }
        assert_eq!(changes, 1, "the first block is enough");
    }

    #[test]
    fn what_cannot_be_refused_is_charged_and_shows() {
        let budget = Budget::new(MIB, 1);
        let mut account = Account::new(Arc::clone(&budget));
        account.charge_anyway(2 * MIB);
        assert!(account.is_over() && account.is_still_over() && !account.charge(1));
        assert!(!account.charge_beyond(1, false), "more than that is over already");
        assert!(account.charge_beyond(MIB, true));
        assert!(!account.charge_beyond(8 * MIB, true));
        account.release(2 * MIB);
        assert!(account.charge_beyond(MIB / 2, false));
        account.release(MIB);
        assert!(!account.is_still_over());
        account.set_copies(MIB);
        assert!(account.is_over());
        account.set_copies(0);
        assert!(!account.is_still_over() && account.used() == MIB / 2);
        assert!(account.charge_datagram(MIB / 2) && !account.charge_datagram(1));
        account.set_datagrams(MIB);
        assert!(account.is_over() && account.used() == MIB + MIB / 2);
        account.set_datagrams(0);
        assert!(!account.is_still_over() && account.used() == MIB / 2);
    }

    #[test]
    fn what_is_held_can_be_sent() {
        for (limit, workers, floor) in [(4 * MIB, 1, MIB), (4 * MIB, 4, MIB / 4), (MIB / 2, 2, MIB / 4)] {
            let mut account = Account::new(Budget::new(limit, workers));
            account.set_copies(5 * MIB);
            assert!(account.is_over() && account.charge(floor - 1000), "{limit} bytes, {workers} workers");
            assert!(account.has_room_beside_copies() && account.charge(1000));
            assert!(!account.has_room_beside_copies() && !account.charge(1));
            // What is sent makes room, and what is no longer held does not count.
            account.release(1000);
            assert!(account.charge(1000) && !account.charge(1));
            account.set_copies(0);
            assert!(!account.is_still_over() && account.used() == floor);
        }
    }

    #[test]
    fn the_smallest_and_the_largest_limit_work() {
        let mut none = Account::new(Budget::new(0, 1024));
        assert!(!none.charge(1));
        let mut all = Account::new(Budget::new(u64::MAX, 1));
        assert!(all.charge(u64::MAX / 2));
        all.release(u64::MAX / 2);
    }
}
