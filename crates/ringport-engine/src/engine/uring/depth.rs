//! How many datagrams a turn finds on a socket, and so how that socket should receive.
//!
//! An armed multishot receive stands in the socket's queue of waiters, which the kernel goes through for each datagram that
//! comes and for each that leaves (the room it makes could be waited for). Plain calls leave nothing there while the thread
//! is awake, and one call takes many; but each sleep costs a poll and each turn a call. So a socket with several datagrams a
//! turn is better off with calls, and one of many sockets with a datagram now and then is better off with the receive.
//!
//! This file is pure: turns and datagrams in, a choice out.

/// Turns with datagrams between two choices.
const TURNS: u32 = 32;
/// Datagrams a turn from which calls are the choice, and below which they are not any more.
const CALLS_FROM: u32 = 4;
const CALLS_UNTIL: u32 = 2;

/// What was counted since the last choice.
#[derive(Debug, Default)]
pub(super) struct Depth {
    /// The last turn that found something.
    turn: u32,
    turns: u32,
    datagrams: u32,
    calls: bool,
}

impl Depth {
    /// Whether plain calls are the choice.
    #[inline]
    pub(super) fn prefers_calls(&self) -> bool {
        self.calls
    }

    /// So many datagrams were found in `turn`. Says whether the choice has changed.
    #[inline]
    pub(super) fn found(&mut self, turn: u32, datagrams: u32) -> bool {
        let mut changed = false;
        if std::mem::replace(&mut self.turn, turn) != turn {
            if self.turns == TURNS {
                let least = if self.calls { CALLS_UNTIL } else { CALLS_FROM };
                let calls = self.datagrams >= least * TURNS;
                changed = std::mem::replace(&mut self.calls, calls) != calls;
                (self.turns, self.datagrams) = (0, 0);
            }
            self.turns += 1;
        }
        self.datagrams = self.datagrams.saturating_add(datagrams);
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes turns with so many datagrams each, found one at a time. Returns how often the choice changed.
    fn pass(depth: &mut Depth, first: u32, turns: u32, datagrams: u32) -> usize {
        let each = (first..first + turns).flat_map(|turn| (0..datagrams).map(move |_| turn));
        each.filter(|turn| depth.found(*turn, 1)).count()
    }

    #[test]
    fn deep_sockets_call_and_shallow_ones_do_not() {
        let mut depth = Depth::default();
        assert_eq!(pass(&mut depth, 1, 1000, 3), 0, "three datagrams a turn are no reason to begin");
        assert_eq!(pass(&mut depth, 1001, 1000, 4), 1);
        assert!(depth.prefers_calls());
        assert_eq!(pass(&mut depth, 2001, 1000, 2), 0, "two datagrams a turn are no reason to end");
        assert_eq!(pass(&mut depth, 3001, 1000, 1), 1);
        assert!(!depth.prefers_calls());
    }

    #[test]
    fn what_comes_together_counts_one_by_one() {
        let mut depth = Depth::default();
        assert_eq!((1..=TURNS).filter(|turn| depth.found(*turn, 60)).count(), 0, "not before enough turns");
        assert!(depth.found(TURNS + 1, u32::MAX));
        assert!(!depth.found(TURNS + 1, u32::MAX), "nothing wraps around");
        assert_eq!(pass(&mut depth, TURNS + 2, 10 * TURNS, 1), 1);
    }
}
