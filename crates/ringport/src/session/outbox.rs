//! What waits to be sent, and what happens when that is too much.
//!
//! Under most policies every send goes straight into the outbox, of which the engine takes what it can. The policies that
//! drop need to know what has not started: under them each send is a *message*, which waits in a list of its own until
//! the outbox is empty and the kernel took all that it had.
//!
//! ```text
//! send ─► pending messages ── a few at a time ──► outbox ──► engine      (OverLimit::DropOldest, DropNewest)
//! send ─────────────────────────────────────────► outbox ──► engine      (all others)
//! ```

use ringport_engine::{Chunk, Pool, SendQueue};

use super::{
    CloseReason, ConnectionOptions, Ending, Fin, Flush, OverLimit, Phase, Refusal, SendOutcome, Session, WantsMemory,
};
use crate::worker::{Account, OVERRUN, RECEIVED_OVERRUN};

/// Pending messages that become the engine's at a time. They can no longer be dropped, so that they are few; as many make
/// one vectored send worth its price.
const MESSAGES_AT_A_TIME: usize = 16;

/// Flushes of one connection that may be under way at one time.
const FLUSHES_MAX: usize = 1024;

impl Session {
    /// Whether sends are taken at all.
    #[inline]
    pub(crate) fn is_sendable(&self) -> bool {
        self.phase == Phase::Open && self.ending.is_none() && self.fin == Fin::No
    }

    /// Whether `bytes` more may go straight into the outbox.
    #[inline]
    fn fits(&self, bytes: usize, options: &ConnectionOptions) -> bool {
        self.is_sendable() && self.queued() + bytes as u64 <= options.send_limit && !options.over_limit.drops()
    }

    /// Queues a piece, or does with it what `options` say. Not inlined, since a piece that is handed over by its address is
    /// moved once and not at every step.
    #[inline(never)]
    pub(crate) fn send(&mut self, data: Chunk, options: &ConnectionOptions, account: &mut Account) -> SendOutcome {
        let bytes = data.len();
        if self.fits(bytes, options) && account.charge(bytes as u64) {
            self.queue(data, bytes as u64, options);
            return SendOutcome::Queued;
        }
        self.send_by_policy(data, options, account)
    }

    /// Queues a piece if the limits of the connection and of the process allow it; else hands it back, whatever the policy.
    #[inline]
    pub(crate) fn offer(
        &mut self,
        data: Chunk,
        options: &ConnectionOptions,
        account: &mut Account,
    ) -> Result<(), Chunk> {
        let bytes = data.len();
        if self.fits(bytes, options) && account.charge(bytes as u64) {
            self.queue(data, bytes as u64, options);
            return Ok(());
        }
        Err(data)
    }

    /// Queues a piece whatever the limits say. The caller has asked whether anything can be sent at all.
    pub(crate) fn send_anyway(&mut self, data: Chunk, options: &ConnectionOptions, account: &mut Account) {
        let bytes = data.len() as u64;
        account.charge_anyway(bytes);
        self.queue(data, bytes, options);
    }

    /// Takes a whole queue as it is, if nothing is queued and the limits allow all of it. A queue that changes hands is
    /// cheaper than its pieces one by one.
    #[inline]
    pub(crate) fn take_all(
        &mut self,
        from: &mut SendQueue,
        options: &ConnectionOptions,
        account: &mut Account,
    ) -> bool {
        let bytes = from.bytes();
        let fits = self.outbox.is_empty() && self.fits(bytes as usize, options) && account.charge(bytes);
        if fits {
            std::mem::swap(&mut self.outbox, from);
            self.accepted += bytes;
            self.check_high_mark(options);
        }
        fits
    }

    /// Queues a copy of `data`.
    #[inline]
    pub(crate) fn write(
        &mut self,
        data: &[u8],
        pool: &Pool,
        options: &ConnectionOptions,
        account: &mut Account,
    ) -> SendOutcome {
        if self.fits(data.len(), options) && account.charge(data.len() as u64) {
            self.accepted += data.len() as u64;
            self.outbox.write(data, pool);
            self.check_high_mark(options);
            return SendOutcome::Queued;
        }
        self.send_by_policy(data.to_vec().into(), options, account)
    }

    #[inline]
    fn queue(&mut self, data: Chunk, bytes: u64, options: &ConnectionOptions) {
        self.accepted += bytes;
        self.outbox.push(data);
        self.check_high_mark(options);
    }

    #[inline]
    fn check_high_mark(&mut self, options: &ConnectionOptions) {
        if self.queued() > options.high_mark {
            self.full = true;
        }
    }

    #[cold]
    fn send_by_policy(&mut self, data: Chunk, options: &ConnectionOptions, account: &mut Account) -> SendOutcome {
        if !self.is_sendable() {
            return SendOutcome::Refused { data, why: Refusal::Closing };
        }
        let bytes = data.len() as u64;
        let within = |limit: u64| self.queued() + bytes <= limit;
        let why = if within(options.send_limit) { Refusal::ProcessLimit } else { Refusal::Limit };
        match options.over_limit {
            OverLimit::DropOldest | OverLimit::DropNewest => return self.send_message(data, options, account),
            OverLimit::Wait => {
                let received = matches!(data, Chunk::Buf(_));
                let overrun = if received { RECEIVED_OVERRUN } else { OVERRUN };
                if within(options.send_limit.saturating_add(overrun)) && account.charge_beyond(bytes, received) {
                    (self.full, self.over) = (true, true);
                    self.queue(data, bytes, options);
                    return SendOutcome::Queued;
                }
            }
            OverLimit::Disconnect => {
                self.end(Ending::Abort, CloseReason::Backpressure);
                return SendOutcome::Refused { data, why };
            }
            OverLimit::Refuse => {}
        }
        // Nothing that this connection has queued need be what leaves next, so that nothing else would tell it.
        if why == Refusal::ProcessLimit && self.rare().wants_memory == WantsMemory::No {
            self.rare().wants_memory = WantsMemory::Asked;
        }
        SendOutcome::Refused { data, why }
    }

    /// Under a policy that drops, every send is a message: it leaves whole or not at all.
    fn send_message(&mut self, data: Chunk, options: &ConnectionOptions, account: &mut Account) -> SendOutcome {
        let bytes = data.len() as u64;
        if bytes > options.send_limit {
            return SendOutcome::Refused { data, why: Refusal::Limit };
        }
        if bytes == 0 {
            return SendOutcome::Queued;
        }
        let charge = |session: &Self, account: &mut Account| {
            session.queued() + bytes <= options.send_limit && account.charge(bytes)
        };
        let oldest = options.over_limit == OverLimit::DropOldest;
        let mut charged = charge(self, account);
        while !charged && oldest && self.drop_oldest(account) {
            charged = charge(self, account);
        }
        if !charged {
            self.rare().count_dropped(bytes, account);
            return SendOutcome::Dropped;
        }
        self.accepted += bytes;
        let rare = self.rare();
        rare.pending_bytes += bytes;
        rare.pending.push_back(data);
        self.check_high_mark(options);
        SendOutcome::Queued
    }

    /// Drops the oldest message that has not started; `false` if there is none.
    fn drop_oldest(&mut self, account: &mut Account) -> bool {
        let rare = self.rare();
        let Some(oldest) = rare.pending.pop_front() else { return false };
        let bytes = oldest.len() as u64;
        rare.pending_bytes -= bytes;
        rare.count_dropped(bytes, account);
        account.release(bytes);
        // A flush that was to follow the message waits for so much less. Those before it keep their place.
        let started = self.accepted - bytes - self.rare().pending_bytes;
        for flush in self.rare().flushes.iter_mut().filter(|flush| flush.handed > started) {
            flush.handed -= bytes;
        }
        self.accepted -= bytes;
        true
    }

    /// Remembers to tell when the kernel has taken all that is queued now. `false` if that can never be told, or too many
    /// wait for it already.
    pub(crate) fn flush(&mut self, token: u64) -> bool {
        if self.phase != Phase::Open || self.ending.is_some() {
            return false;
        }
        let handed = self.accepted;
        let flushes = &mut self.rare().flushes;
        let room = flushes.len() < FLUSHES_MAX;
        if room {
            flushes.push_back(Flush { handed, token });
        }
        room
    }

    /// The next flush that is done.
    #[inline]
    pub(crate) fn next_flushed(&mut self) -> Option<u64> {
        let handed = self.handed;
        let flushes = &mut self.rare.as_mut()?.flushes;
        flushes.pop_front_if(|flush| flush.handed <= handed).map(|flush| flush.token)
    }

    /// Fills the empty outbox with pending messages; `false` if there are none.
    #[inline]
    pub(crate) fn refill(&mut self) -> bool {
        self.rare.is_some() && self.refill_from_pending()
    }

    #[inline(never)]
    fn refill_from_pending(&mut self) -> bool {
        let Some(rare) = self.rare.as_mut().filter(|rare| !rare.pending.is_empty()) else { return false };
        for message in rare.pending.drain(..MESSAGES_AT_A_TIME.min(rare.pending.len())) {
            rare.pending_bytes -= message.len() as u64;
            self.outbox.push(message);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use ringport_engine::Buf;

    use super::super::tests::{account, session};
    use super::*;

    fn numbers(session: &mut Session) -> Vec<u8> {
        let mut all = Vec::new();
        while !session.outbox.is_empty() || session.refill() {
            all.extend(session.outbox.pop().map(|piece| piece.as_slice()[0]));
        }
        all
    }

    #[test]
    fn the_oldest_or_the_newest_messages_that_have_not_started_are_dropped() {
        for (policy, left) in [(OverLimit::DropOldest, vec![0, 1, 8, 9]), (OverLimit::DropNewest, vec![0, 1, 2, 3])] {
            let options = ConnectionOptions::default().send_limit(400, policy);
            let (mut session, mut account) = (session(), account());
            for number in 0..2 {
                assert!(session.send(vec![number; 100].into(), &options, &mut account).is_queued());
            }
            assert!(session.refill(), "these two have started");
            for number in 2..10 {
                session.send(vec![number; 100].into(), &options, &mut account);
                assert!(session.queued() <= 400);
            }
            assert_eq!(numbers(&mut session), left, "{policy:?}");
            assert_eq!((account.dropped_messages, account.dropped_bytes), (6, 600));
            assert_eq!(session.accepted, 400, "what was dropped is not in the ledger");
        }
    }

    #[test]
    fn a_flush_waits_for_what_was_queued_before_it_and_not_for_what_was_dropped() {
        let options = ConnectionOptions::default().send_limit(400, OverLimit::DropOldest);
        let (mut session, mut account) = (session(), account());
        let mut send = |session: &mut Session| drop(session.send(vec![1; 100].into(), &options, &mut account));
        assert!(session.flush(0));
        assert_eq!((session.next_flushed(), session.next_flushed()), (Some(0), None));
        send(&mut session);
        session.refill();
        session.flush(1);
        send(&mut session);
        session.flush(2);
        (0..4).for_each(|_| send(&mut session));
        session.flush(3);
        session.handed = 99;
        assert_eq!(session.next_flushed(), None);
        session.handed = 100;
        assert_eq!((session.next_flushed(), session.next_flushed()), (Some(1), Some(2)), "its message was dropped");
        session.handed = 399;
        assert_eq!(session.next_flushed(), None);
        session.handed = 400;
        assert_eq!(session.next_flushed(), Some(3));
    }

    #[test]
    fn a_message_larger_than_the_limit_comes_back() {
        let options = ConnectionOptions::default().send_limit(400, OverLimit::DropOldest);
        let (mut session, mut account) = (session(), account());
        session.send(vec![1; 400].into(), &options, &mut account);
        let outcome = session.send(vec![2; 401].into(), &options, &mut account);
        assert!(matches!(outcome, SendOutcome::Refused { data, why: Refusal::Limit } if data.len() == 401));
        assert_eq!((session.queued(), account.dropped_messages), (400, 0));
    }

    #[test]
    fn waiting_takes_more_up_to_its_bound_and_rests() {
        let options = ConnectionOptions::default().send_limit(1000, OverLimit::Wait);
        let (mut session, mut account) = (session(), account());
        assert!(session.send(vec![1; 1000].into(), &options, &mut account).is_queued());
        assert!(!session.over);
        assert!(session.send(vec![2; 1].into(), &options, &mut account).is_queued());
        assert!(session.over && session.full);
        let rest = vec![3; OVERRUN as usize];
        assert!(!session.send(rest.into(), &options, &mut account).is_queued());
        // What was received may go back: it takes no new memory.
        let received = Buf::copied(&vec![3; OVERRUN as usize]);
        assert!(session.send(received.into(), &options, &mut account).is_queued());
        let too_much = Buf::copied(&vec![3; RECEIVED_OVERRUN as usize]);
        assert!(!session.send(too_much.into(), &options, &mut account).is_queued());
    }
}
