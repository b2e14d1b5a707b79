//! Which way of receiving large messages is cheaper here: found out by trying, again and again.
//!
//! On one machine plain calls into one hot buffer save a fifth to a third of the time of a 16 KiB echo, on another, with
//! dearer system calls or other caches, they cost as much more. Nothing that can be asked for tells which machine this is, so
//! the engine compares: processor time of its thread for a byte of large messages.
//!
//! ```text
//!   keep the choice, for a long while ─► look: pairs of windows, one each way ─► the cheaper one ─► keep …
//!   a window: settle, until the connections have changed over ─► measure
//! ```
//!
//! The speed of a machine changes by more than what is to be told apart, so that only windows side by side are compared, a few
//! milliseconds long; the median of several pairs decides. A pair begins with one way and the next with the other.
//!
//! A window counts only if nearly all its bytes are of large messages. A look takes 3 % of the bytes, half of them in the
//! dearer way, and so costs well under a hundredth.
//!
//! This file is pure: bytes and times in, a choice out.

use std::time::Duration;

/// Bytes of a window for each connection with large messages, and for few of them: of this the machine's clock tells a cost.
const WINDOW_BYTES: (u64, u64) = (128 << 10, 8 << 20);
/// Bytes that pass before a window begins, in the same way: some messages each, after which all connections have changed over.
const SETTLE_BYTES: (u64, u64) = (64 << 10, 2 << 20);
/// Pairs of windows of a look.
const PAIRS: usize = 6;
/// How many times the bytes of a look pass until the next one; after the first look, when little is known, much fewer.
const KEEP_LOOKS: u64 = 32;
const KEEP_LOOKS_AT_FIRST: u64 = 4;
/// Looks after which the longer time is kept.
const LOOKS_AT_FIRST: u32 = 2;
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

/// What ends when [`Chooser::is_due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Keep,
    Settle,
    /// A window is open since this much processor time.
    Window(Duration),
}

/// The choice, and what it rests on.
#[derive(Debug)]
pub(super) struct Chooser {
    way: Way,
    choice: Way,
    phase: Phase,
    /// Bytes of large messages in this phase, and how many of them end it.
    large_bytes: u64,
    due_bytes: u64,
    small_bytes: u64,
    /// Connections with large messages.
    connections: u64,
    /// Nanoseconds a byte in the windows of this look, the first of each pair at an even place.
    costs: [f64; 2 * PAIRS],
    windows: usize,
    looks: u32,
}

impl Chooser {
    pub(super) fn new() -> Self {
        Self {
            way: Way::Multishot,
            choice: Way::Multishot,
            phase: Phase::Settle,
            large_bytes: 0,
            due_bytes: SETTLE_BYTES.1,
            small_bytes: 0,
            connections: 0,
            costs: [0.0; 2 * PAIRS],
            windows: 0,
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
        self.large_bytes >= self.due_bytes
    }

    /// Goes on to the next phase. `spent` is the processor time of this thread.
    pub(super) fn sample(&mut self, spent: Duration) {
        let (large, small) = (std::mem::take(&mut self.large_bytes), std::mem::take(&mut self.small_bytes));
        match self.phase {
            Phase::Keep => self.settle(),
            Phase::Settle => self.open_window(spent),
            Phase::Window(_) if small * 100 > large * SMALL_PERCENT => self.open_window(spent),
            Phase::Window(begin) => {
                self.costs[self.windows] = spent.saturating_sub(begin).as_nanos() as f64 / large as f64;
                self.windows += 1;
                if self.windows < self.costs.len() { self.settle() } else { self.decide() }
            }
        }
    }

    /// Goes over to the way of the next window: of the first pair the choice and then the other, of the second pair the other
    /// way round, so that each change is made once.
    fn settle(&mut self) {
        let choice_first = (self.windows / 2).is_multiple_of(2);
        self.way = if choice_first == self.windows.is_multiple_of(2) { self.choice } else { self.choice.other() };
        self.phase = Phase::Settle;
        self.due_bytes = self.scaled(SETTLE_BYTES);
    }

    fn open_window(&mut self, spent: Duration) {
        self.phase = Phase::Window(spent);
        self.due_bytes = self.scaled(WINDOW_BYTES);
    }

    fn scaled(&self, (each, few): (u64, u64)) -> u64 {
        few.max(each * self.connections)
    }

    fn decide(&mut self) {
        let mut ratios = [0.0; PAIRS];
        for (number, (ratio, pair)) in ratios.iter_mut().zip(self.costs.chunks_exact(2)).enumerate() {
            let (own, other) = if number.is_multiple_of(2) { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            *ratio = other / own;
        }
        ratios.sort_by(f64::total_cmp);
        let median = f64::midpoint(ratios[(PAIRS - 1) / 2], ratios[PAIRS / 2]);
        if median < 1.0 - MARGIN_PERCENT / 100.0 {
            self.choice = self.choice.other();
        }
        self.looks = self.looks.saturating_add(1);
        self.windows = 0;
        self.way = self.choice;
        self.phase = Phase::Keep;
        let look = self.costs.len() as u64 * (self.scaled(SETTLE_BYTES) + self.scaled(WINDOW_BYTES));
        self.due_bytes = look * if self.looks < LOOKS_AT_FIRST { KEEP_LOOKS_AT_FIRST } else { KEEP_LOOKS };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Passes `total` bytes at the costs of multishot and direct, in nanoseconds for 1,000 bytes, as they are after so many
    /// bytes. Returns the part that went the direct way.
    fn pass(chooser: &mut Chooser, total: u64, spent: &mut Duration, costs: impl Fn(u64) -> (u64, u64)) -> f64 {
        const TURN: u64 = 1 << 20;
        let mut by_direct = 0;
        for turn in 0..total / TURN {
            let (multishot, direct) = costs(turn * TURN);
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
            pass(&mut chooser, 2 << 30, &mut spent, |_| (multishot, direct));
            let share = pass(&mut chooser, 64 << 30, &mut spent, |_| (multishot, direct));
            let dearer = if direct < multishot { 1.0 - share } else { share };
            assert!(dearer < 0.02, "{dearer}");
            assert!(dearer > 0.0, "the other way is looked at again");
        }
    }

    #[test]
    fn a_machine_whose_speed_changes_does_not_deceive() {
        // Twice as slow for some hundred milliseconds now and then, at lengths that are no multiple of a window.
        let speed = |bytes: u64| if (bytes >> 20) % 331 < 127 { 2 } else { 1 };
        for (multishot, direct) in [(500, 450), (450, 500)] {
            let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
            pass(&mut chooser, 2 << 30, &mut spent, |bytes| (multishot * speed(bytes), direct * speed(bytes)));
            let share =
                pass(&mut chooser, 64 << 30, &mut spent, |bytes| (multishot * speed(bytes), direct * speed(bytes)));
            let dearer = if direct < multishot { 1.0 - share } else { share };
            assert!(dearer < 0.02, "{dearer}");
        }
    }

    #[test]
    fn a_tie_changes_nothing() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        let share = pass(&mut chooser, 64 << 30, &mut spent, |_| (400, 396));
        assert!(share < 0.02, "{share}");
        assert_eq!(chooser.choice, Way::Multishot);
    }

    #[test]
    fn a_change_of_the_machine_is_noticed() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        pass(&mut chooser, 8 << 30, &mut spent, |_| (500, 350));
        assert_eq!(chooser.choice, Way::Direct);
        pass(&mut chooser, 64 << 30, &mut spent, |_| (350, 500));
        assert_eq!(chooser.choice, Way::Multishot);
    }

    #[test]
    fn many_connections_have_longer_windows() {
        const MANY: u64 = 1024;
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        (0..MANY).for_each(|_| chooser.count(true));
        pass(&mut chooser, SETTLE_BYTES.1, &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)));
        pass(&mut chooser, WINDOW_BYTES.0 * MANY - (1 << 20), &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)), "one with few connections would have ended");
        pass(&mut chooser, 1 << 20, &mut spent, |_| (1, 1));
        assert_eq!((chooser.phase, chooser.way()), (Phase::Settle, Way::Direct));
        (0..MANY).for_each(|_| chooser.count(false));
        pass(&mut chooser, SETTLE_BYTES.0 * MANY, &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)));
        pass(&mut chooser, WINDOW_BYTES.1, &mut spent, |_| (1, 1));
        assert_eq!(chooser.windows, 2, "a shorter window is enough again");
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
        assert_eq!((chooser.way(), chooser.windows), (Way::Multishot, 0));
    }
}
