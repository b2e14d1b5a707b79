//! Partial frames: what a handler keeps comes back in front of the next bytes.

use ringport_engine::{Buf, Pool};

use super::{CloseReason, ConnectionOptions, Ending, OverLimit, Session};
use crate::worker::Account;

impl Session {
    /// Keeps `rest` for the next bytes, in place of what was kept before.
    pub(crate) fn keep(&mut self, rest: Buf, options: &ConnectionOptions, account: &mut Account) {
        self.take_kept(account);
        if rest.len() > options.frame_limit {
            self.end(Ending::Graceful, CloseReason::FrameLimit);
            return;
        }
        if !account.charge(rest.len() as u64) {
            if options.over_limit == OverLimit::Disconnect {
                return self.end(Ending::Abort, CloseReason::Backpressure);
            }
            // Its bytes are here: what helps is to receive no more.
            account.charge_anyway(rest.len() as u64);
        }
        if !rest.is_empty() {
            self.keeps = true;
            self.rare().kept = Some(rest);
        }
    }

    fn take_kept(&mut self, account: &mut Account) -> Option<Buf> {
        self.keeps = false;
        let kept = self.rare.as_mut()?.kept.take()?;
        account.release(kept.len() as u64);
        Some(kept)
    }

    /// Bytes kept.
    pub(crate) fn kept(&self) -> usize {
        self.rare.as_ref().and_then(|rare| rare.kept.as_ref()).map_or(0, |kept| kept.len())
    }

    /// What is kept with `more` behind it, in one buffer. The kept part is copied only when its buffer is too small, and
    /// then into one of twice the size: bytes that come one by one cost a constant each.
    #[cold]
    pub(crate) fn join(&mut self, more: Buf, pool: &Pool, account: &mut Account) -> Buf {
        let Some(mut kept) = self.take_kept(account) else { return more };
        if kept.spare() >= more.len() {
            kept.append(&more);
            return kept;
        }
        let bytes = kept.len() + more.len();
        let mut joined = pool.writable(bytes).unwrap_or_else(|| Buf::with_capacity(bytes.next_power_of_two()));
        joined.append(&kept);
        joined.append(&more);
        joined
    }
}

#[cfg(test)]
mod tests {
    use ringport_engine::PoolConfig;

    use super::super::tests::{account, session};
    use super::*;

    #[test]
    fn what_is_kept_comes_back_whole_however_it_came() {
        let pool = Pool::new(PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(64, 256));
        let options = ConnectionOptions::default().frame_limit(5000);
        let (mut session, mut account) = (session(), account());
        for step in [1, 3, 50, 64, 400] {
            let (mut whole, mut moved) = (Vec::new(), 0);
            while whole.len() < 4000 {
                let more: Vec<u8> = (0..step).map(|at| (whole.len() + at) as u8).collect();
                whole.extend_from_slice(&more);
                let joined = session.join(Buf::copied(&more), &pool, &mut account);
                assert_eq!(&joined[..], whole);
                moved += usize::from(joined.spare() == 0);
                session.keep(joined, &options, &mut account);
                assert_eq!((session.kept(), account.used()), (whole.len(), whole.len() as u64));
            }
            assert!(moved < 15, "the kept bytes were moved {moved} times");
            session.keep(Buf::copied(&[]), &options, &mut account);
            assert_eq!((session.kept(), session.keeps, account.used()), (0, false, 0));
        }
    }

    #[test]
    fn a_frame_that_is_too_long_ends_its_connection() {
        let options = ConnectionOptions::default().frame_limit(100);
        let (mut session, mut account) = (session(), account());
        session.keep(Buf::copied(&[0; 100]), &options, &mut account);
        assert_eq!((session.kept(), session.ending), (100, None));
        session.keep(Buf::copied(&[0; 101]), &options, &mut account);
        assert_eq!((session.kept(), session.ending), (0, Some(Ending::Graceful)));
        assert_eq!(session.reason, Some(CloseReason::FrameLimit));
    }
}
