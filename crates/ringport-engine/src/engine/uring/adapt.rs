//! Which way of receiving large messages is cheaper here: found out by trying, again and again.
//!
//! On one machine plain calls into one hot buffer save a fifth to a third of the time of a 16 KiB echo, on another, with
//! dearer system calls or other caches, they cost as much more. Nothing that can be asked for tells which machine this is, so
//! the engine compares: processor time of its thread for a byte of large messages, in windows of some ten milliseconds.
//!
//! ```text
//!   settle ─► window: multishot ─► settle ─► window: direct ─► the cheaper one, for a long while ─► settle ─► window: the other …
//! ```
//!
//! A window counts only if nearly all its bytes are of large messages. Costs are averaged over the last windows, since a
//! single one is noisy. The look at the dearer way takes about 2 % of the bytes, and so costs well under a hundredth.
//!
//! This file is pure: bytes and times in, a choice out.

use std::time::Duration;

/// Bytes of large messages that pass before a window begins, so that connections have changed over.
const SETTLE_BYTES: u64 = 48 << 20;
/// Bytes of a window.
const WINDOW_BYTES: u64 = 32 << 20;
/// Bytes until the other way is looked at again; after the first look, when little is known, much sooner.
const KEEP_BYTES: u64 = 4 << 30;
const KEEP_BYTES_AT_FIRST: u64 = 512 << 20;
/// Looks after which the longer time is kept.
const LOOKS_AT_FIRST: u32 = 2;
/// All of these are for up to so many connections with large messages. With more of them it takes longer before all have
/// changed over, and dearer, so that everything takes as many times longer.
const CONNECTIONS: u64 = 256;
/// Part of a window's bytes, in percent, that small messages may have.
const SMALL_PERCENT: u64 = 10;
/// How much cheaper the other way must be to become the choice, in percent: a tie changes nothing.
const MARGIN_PERCENT: f64 = 2.0;

/// How large messages are received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Multishot,
    Direct,
}

impl Way {
    fn other(self) -> Self {
        match self {
            Self::Multishot => Self::Direct,
            Self::Direct => Self::Multishot,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is measured until so many bytes have passed.
    Wait(u64),
    /// A window is open since this much processor time.
    Window(Duration),
}

/// The choice, and what it rests on.
#[derive(Debug)]
pub(super) struct Chooser {
    way: Way,
    choice: Way,
    phase: Phase,
    large_bytes: u64,
    small_bytes: u64,
    /// Connections with large messages.
    connections: u64,
    /// Nanoseconds a byte, for multishot and direct.
    costs: [Option<f64>; 2],
    looks: u32,
}

impl Chooser {
    pub(super) fn new() -> Self {
        Self {
            way: Way::Multishot,
            choice: Way::Multishot,
            phase: Phase::Wait(SETTLE_BYTES),
            large_bytes: 0,
            small_bytes: 0,
            connections: 0,
            costs: [None; 2],
            looks: 0,
        }
    }

    /// How large messages are to be received now.
    #[inline]
    pub(super) fn way(&self) -> Way {
        self.way
    }

    #[inline]
    pub(super) fn received(&mut self, bytes: usize, large: bool) {
        if large {
            self.large_bytes += bytes as u64;
        } else {
            self.small_bytes += bytes as u64;
        }
    }

    /// Counts the connections whose messages are large.
    pub(super) fn count(&mut self, one_more: bool) {
        self.connections = if one_more { self.connections + 1 } else { self.connections.saturating_sub(1) };
    }

    /// Whether [`Chooser::sample`] has something to do. Cheap enough for every turn.
    #[inline]
    pub(super) fn is_due(&self) -> bool {
        let bytes = match self.phase {
            Phase::Wait(bytes) => bytes,
            Phase::Window(_) => WINDOW_BYTES,
        };
        self.large_bytes >= bytes && self.large_bytes >= bytes * (self.connections / CONNECTIONS)
    }

    /// Goes on to the next phase. `spent` is the processor time of this thread.
    pub(super) fn sample(&mut self, spent: Duration) {
        let (large, small) = (std::mem::take(&mut self.large_bytes), std::mem::take(&mut self.small_bytes));
        let Phase::Window(begin) = self.phase else {
            self.phase = Phase::Window(spent);
            return;
        };
        if small * 100 > large * SMALL_PERCENT {
            self.phase = Phase::Window(spent);
            return;
        }
        let cost = spent.saturating_sub(begin).as_nanos() as f64 / large as f64;
        let known = &mut self.costs[self.way as usize];
        *known = Some(known.map_or(cost, |known| (known + cost) / 2.0));
        self.decide();
    }

    fn decide(&mut self) {
        let (own, other) = (self.costs[self.choice as usize], self.costs[self.choice.other() as usize]);
        match (own, other) {
            (Some(own), Some(other)) => {
                let looked = self.way != self.choice;
                if other < own * (1.0 - MARGIN_PERCENT / 100.0) {
                    self.choice = self.choice.other();
                }
                if looked {
                    // Back to the choice, and for a while nothing but that; then its own cost is taken again.
                    self.looks += 1;
                    self.way = self.choice;
                    let keep = if self.looks < LOOKS_AT_FIRST { KEEP_BYTES_AT_FIRST } else { KEEP_BYTES };
                    self.phase = Phase::Wait(keep);
                } else {
                    self.way = self.choice.other();
                    self.phase = Phase::Wait(SETTLE_BYTES);
                }
            }
            _ => {
                self.way = self.way.other();
                self.phase = Phase::Wait(SETTLE_BYTES);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes `total` bytes at these costs in nanoseconds for 1,000 bytes. Returns the part that went the direct way.
    fn pass(chooser: &mut Chooser, total: u64, multishot: u64, direct: u64, spent: &mut Duration) -> f64 {
        const TURN: u64 = 1 << 20;
        let mut by_direct = 0;
        for _ in 0..total / TURN {
            let cost = match chooser.way() {
                Way::Multishot => multishot,
                Way::Direct => direct,
            };
            by_direct += if chooser.way() == Way::Direct { TURN } else { 0 };
            chooser.received(TURN as usize, true);
            *spent += Duration::from_nanos(TURN * cost / 1000);
            if chooser.is_due() {
                chooser.sample(*spent);
            }
        }
        by_direct as f64 / total as f64
    }

    #[test]
    fn the_cheaper_way_gets_nearly_everything() {
        for (multishot, direct) in [(500, 350), (350, 500)] {
            let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
            pass(&mut chooser, 2 << 30, multishot, direct, &mut spent);
            let share = pass(&mut chooser, 64 << 30, multishot, direct, &mut spent);
            let dearer = if direct < multishot { 1.0 - share } else { share };
            assert!(dearer < 0.06, "{dearer}");
            assert!(dearer > 0.0, "the other way is looked at again");
        }
    }

    #[test]
    fn a_change_of_the_machine_is_noticed() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        pass(&mut chooser, 8 << 30, 500, 350, &mut spent);
        assert_eq!(chooser.choice, Way::Direct);
        pass(&mut chooser, 64 << 30, 350, 500, &mut spent);
        assert_eq!(chooser.choice, Way::Multishot);
    }

    #[test]
    fn many_connections_have_longer_windows() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        (0..4 * CONNECTIONS).for_each(|_| chooser.count(true));
        pass(&mut chooser, 4 * SETTLE_BYTES - (1 << 20), 1, 1, &mut spent);
        assert_eq!(chooser.phase, Phase::Wait(SETTLE_BYTES));
        pass(&mut chooser, 1 << 20, 1, 1, &mut spent);
        assert!(matches!(chooser.phase, Phase::Window(_)));
        (0..4 * CONNECTIONS).for_each(|_| chooser.count(false));
        pass(&mut chooser, WINDOW_BYTES, 1, 1, &mut spent);
        assert_eq!(chooser.way(), Way::Direct, "a shorter window is enough again");
    }

    #[test]
    fn windows_with_small_messages_say_nothing() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        for _ in 0..10_000 {
            chooser.received(1 << 20, true);
            chooser.received(1 << 20, false);
            spent += Duration::from_millis(1);
            if chooser.is_due() {
                chooser.sample(spent);
            }
        }
        assert_eq!((chooser.way(), chooser.costs), (Way::Multishot, [None; 2]));
    }
}
