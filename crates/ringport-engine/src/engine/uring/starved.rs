//! Who found no slot in the ring, and when each goes on.
//!
//! One goes on for each slot that is there: letting all of them go on would make each try, and most of them starve again, which
//! with thousands of connections costs several times what the receiving does.
//!
//! While many connections have large messages, one goes on for each share of bytes that was received
//! ([`EngineConfig::share_bytes`](crate::engine::contract::EngineConfig::share_bytes)). So those that are armed
//! have a few messages each, out of caches that know them, before the one that has waited longest has its turn: fair in bytes, a
//! share at a time, and nobody waits for more than a share of each that came before. That matters only where more is there at
//! once than the ring takes, which is when the worker cannot keep up: if a turn uses less than half of it, as many go on as the
//! other half can serve.
//!
//! This file is pure: bytes, slots and names in, who goes on out.

use std::collections::VecDeque;

use crate::engine::LISTED_AT_FIRST;
use crate::id::ConnId;

/// Most bytes that count for those who starve later, or one share.
const CREDIT_MAX: u64 = 1 << 20;

/// Connections that wait for a slot, longest waiting first.
#[derive(Debug)]
pub(super) struct Starved {
    waiting: VecDeque<ConnId>,
    /// Bytes that are received before one more goes on, where messages are large. Not 0.
    share: Option<u64>,
    /// Received bytes for which nobody has gone on.
    credit: u64,
}

/// What the last turn has used of a ring with large messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastTurn {
    pub(super) slots: u32,
    pub(super) bytes: u64,
}

impl Starved {
    pub(super) fn new(share: Option<u64>) -> Self {
        let share = share.filter(|bytes| *bytes > 0);
        Self { waiting: VecDeque::with_capacity(LISTED_AT_FIRST), share, credit: 0 }
    }

    /// Whether there are shares at all.
    #[inline]
    pub(super) fn has_shares(&self) -> bool {
        self.share.is_some()
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, id: ConnId) {
        self.waiting.push_back(id);
    }

    pub(super) fn pop(&mut self) -> Option<ConnId> {
        self.waiting.pop_front()
    }

    /// How many may go on, if there are so many slots: all that these can serve, or by shares, after such a turn.
    pub(super) fn admit(&mut self, slots: u32, shares: Option<LastTurn>) -> u32 {
        let (Some(last), Some(share)) = (shares, self.share) else { return slots };
        self.credit = self.credit.saturating_add(last.bytes).min(CREDIT_MAX.max(share));
        let paid = u32::try_from(self.credit / share).unwrap_or(u32::MAX);
        let room = slots.div_ceil(2).saturating_sub(last.slots);
        let admitted = paid.max(room).min(slots);
        self.credit = self.credit.saturating_sub(u64::from(admitted).saturating_mul(share));
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::contract::EngineConfig;
    use crate::id::Id;

    const MESSAGE: u64 = 16 << 10;
    const SLOTS: u32 = 16;
    const SHARE: u64 = EngineConfig::SHARE_BYTES;

    fn conn(slot: u32) -> ConnId {
        ConnId::from(Id { slot, generation: 0 })
    }

    #[test]
    fn small_messages_take_all_slots() {
        let mut starved = Starved::new(Some(SHARE));
        assert_eq!(starved.admit(SLOTS, None), SLOTS);
    }

    #[test]
    fn shares_of_any_size_admit_somebody() {
        for share in [None, Some(0)] {
            let mut starved = Starved::new(share);
            assert!(!starved.has_shares());
            assert_eq!(starved.admit(SLOTS, turn(SLOTS)), SLOTS, "message by message");
        }
        assert_eq!(Starved::new(Some(1)).admit(SLOTS, turn(SLOTS)), SLOTS, "a share is less than a message");
        let mut starved = Starved::new(Some(4 * CREDIT_MAX));
        let turns = 4 * 4 * CREDIT_MAX / (u64::from(SLOTS) * MESSAGE);
        let admitted: u32 = (0..turns).map(|_| starved.admit(SLOTS, turn(SLOTS))).sum();
        assert_eq!(admitted, 4, "a share may be longer than what counts for later");
        let mut starved = Starved::new(Some(u64::MAX));
        assert_eq!(starved.admit(SLOTS, turn(SLOTS)), 0);
        assert_eq!(
            starved.admit(SLOTS, turn(0)),
            SLOTS / 2,
            "a turn with little lets others go on, whatever a share is"
        );
    }

    /// A turn that has used so many slots for large messages.
    fn turn(slots: u32) -> Option<LastTurn> {
        Some(LastTurn { slots, bytes: u64::from(slots) * MESSAGE })
    }

    #[test]
    fn large_ones_go_on_by_shares() {
        let mut starved = Starved::new(Some(SHARE));
        let admitted: u32 = (0..100).map(|_| starved.admit(SLOTS, turn(SLOTS))).sum();
        assert_eq!(u64::from(admitted), 100 * u64::from(SLOTS) * MESSAGE / SHARE);
        starved.credit = 0;
        let burst = LastTurn { slots: SLOTS, bytes: 1 << 30 };
        assert_eq!(starved.admit(2, Some(burst)), 2, "no more than there are slots");
        let rest = LastTurn { slots: SLOTS, bytes: 0 };
        assert_eq!(
            u64::from(starved.admit(SLOTS, Some(rest))),
            CREDIT_MAX / SHARE - 2,
            "what a burst brought is not kept for long"
        );
        assert_eq!(starved.admit(SLOTS, Some(rest)), 0);
    }

    #[test]
    fn a_turn_with_little_lets_them_go_on() {
        let mut starved = Starved::new(Some(SHARE));
        assert_eq!(starved.admit(SLOTS, turn(0)), SLOTS / 2);
        assert_eq!(starved.admit(SLOTS, turn(1)), SLOTS / 2 - 1);
        let small = LastTurn { slots: 1, bytes: 64 };
        assert_eq!(starved.admit(SLOTS, Some(small)), SLOTS / 2 - 1, "others that send a little keep nobody waiting");
    }

    #[test]
    fn the_last_slots_are_for_somebody() {
        let mut starved = Starved::new(Some(SHARE));
        assert_eq!(starved.admit(1, turn(0)), 1, "otherwise the engine would look for completions for ever");
        assert_eq!(starved.admit(0, turn(0)), 0);
    }

    /// A closed loop: whoever is served is ready again at once, and starves if the ring is used up before its turn comes. Those
    /// that go on have theirs first, since the kernel tries a receive when it is armed.
    #[test]
    fn nobody_waits_for_more_than_a_share_of_each_other() {
        const CONNS: u32 = 1_000;
        let mut starved = Starved::new(Some(SHARE));
        (0..CONNS).for_each(|slot| starved.push(conn(slot)));
        let (mut ready, mut received) = (VecDeque::new(), 0_u64);
        let (mut served_at, mut waited) = (vec![0_u64; CONNS as usize], 0);
        while received < 20_000 * MESSAGE {
            let served: Vec<ConnId> = ready.drain(..ready.len().min(SLOTS as usize)).collect();
            ready.drain(..).for_each(|id| starved.push(id));
            for id in &served {
                received += MESSAGE;
                let last = std::mem::replace(&mut served_at[Id::from(*id).slot as usize], received);
                waited = waited.max(received - last);
            }
            let used = turn(served.len() as u32);
            ready.extend(served);
            for _ in 0..starved.admit(SLOTS, used) {
                starved.pop().into_iter().for_each(|id| ready.push_front(id));
            }
        }
        assert!(served_at.iter().all(|at| *at > 0), "everybody had something");
        let bound = u64::from(CONNS + SLOTS) * SHARE;
        assert!(waited <= bound, "{waited} bytes of others, which is more than {bound}");
    }
}
