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
//! A window counts only if nearly all its bytes are of large messages. With many connections a look is dear, since each of them
//! has to change over, and is long, since each should have its part in a window. So settling ends when nearly all have changed
//! over, windows do not grow without end, and a look ends early when all its pairs say clearly the same: after two of them if
//! they confirm the choice, after four if they do not. A look takes at most 3 % of the bytes, half of them in the dearer way,
//! and so costs well under a hundredth. The first one waits until each connection has had many messages.
//!
//! This file is pure: bytes and times in, a choice out.

use std::time::Duration;

/// Bytes of a window for each connection with large messages; for few of them: of this the machine's clock tells a cost; and
/// for very many: they are thousands of messages.
const WINDOW_BYTES: (u64, u64, u64) = (32 << 10, 8 << 20, 64 << 20);
/// Most bytes that pass before a window begins in another way, for each connection: some messages, after which all that are in
/// use have changed over.
const SETTLE_BYTES: u64 = 64 << 10;
/// Fewest bytes that pass before a window begins, and all if nothing changes over.
const SETTLE_BYTES_MIN: u64 = 2 << 20;
/// One in so many connections may be late in changing over.
const LATE_PART: u64 = 16;
/// When all others have changed over, this part of the bytes that it took passes for them, and for the work that a change leaves.
const LATE_BYTES_PART: u64 = 4;
/// Fewest bytes that pass before the first look, for each connection with large messages: about twice as many as a look takes, so
/// that looks are a small part of what happens, and those that do not last are not made to change over.
pub(super) const FIRST_LOOK_BYTES: u64 = 2 << 20;
/// With more connections than these, what their large messages bring does not stay in the near caches, and shares pay that
/// [`super::starved`] gives them: with 16 KiB each they cost 5 % with 100 and 200 connections, and spare 14 % with 400.
const FEW_CONNECTIONS: u64 = 256;
/// Pairs of windows of a look.
const PAIRS: usize = 6;
/// Pairs after which a look ends if all of them confirm the choice, or refute it, by this much in percent.
const PAIRS_TO_CONFIRM: usize = 2;
const PAIRS_TO_REFUTE: usize = 4;
const CLEAR_PERCENT: f64 = 8.0;
/// How many times the bytes of a look pass until the next one. Much fewer when little is known: after a first look that was not
/// clear, and when there are more than twice as many connections as there were at the last.
const KEEP_LOOKS: u64 = 32;
const KEEP_LOOKS_UNSURE: u64 = 4;
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
    /// Connections with large messages, and how many of them changed over since the way did.
    connections: u64,
    changed_over: u64,
    /// Nanoseconds a byte in the windows of this look, the first of each pair at an even place.
    costs: [f64; 2 * PAIRS],
    windows: usize,
    looks: u32,
    /// Connections with large messages at the last look.
    looked_at: u64,
}

impl Chooser {
    pub(super) fn new() -> Self {
        Self {
            way: Way::Multishot,
            choice: Way::Multishot,
            phase: Phase::Settle,
            large_bytes: 0,
            due_bytes: SETTLE_BYTES_MIN,
            small_bytes: 0,
            connections: 0,
            changed_over: 0,
            costs: [0.0; 2 * PAIRS],
            windows: 0,
            looks: 0,
            looked_at: 0,
        }
    }

    /// How large messages are to be received now.
    #[inline]
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// Whether the ring is shared by so many that each should have its share in a row.
    #[inline]
    pub(super) fn shares(&self) -> bool {
        self.way == Way::Multishot && self.connections > FEW_CONNECTIONS
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
        if self.phase == Phase::Keep && self.connections > 2 * self.looked_at {
            self.looked_at = self.connections;
            self.due_bytes = self.due_bytes.min(self.large_bytes + self.look_bytes() * KEEP_LOOKS_UNSURE);
        }
        if self.looks == 0 && self.windows == 0 && self.phase == Phase::Settle {
            self.due_bytes = SETTLE_BYTES_MIN.max(FIRST_LOOK_BYTES * self.connections);
        }
    }

    /// A connection with large messages has changed over to the way of now. When nearly all have, settling ends soon.
    pub(super) fn count_changed_over(&mut self) {
        self.changed_over += 1;
        if self.phase == Phase::Settle && self.changed_over == self.connections - self.connections / LATE_PART {
            let enough = self.large_bytes + self.large_bytes / LATE_BYTES_PART;
            self.due_bytes = self.due_bytes.min(enough.max(SETTLE_BYTES_MIN));
        }
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
                let ends = self.windows == 2 * PAIRS || self.windows.is_multiple_of(2) && self.is_clear();
                if ends { self.decide() } else { self.settle() }
            }
        }
    }

    /// Goes over to the way of the next window: of the first pair the choice and then the other, of the second pair the other
    /// way round, so that each change is made once.
    fn settle(&mut self) {
        let choice_first = (self.windows / 2).is_multiple_of(2);
        let way = if choice_first == self.windows.is_multiple_of(2) { self.choice } else { self.choice.other() };
        self.due_bytes = if way == self.way { SETTLE_BYTES_MIN } else { self.settle_bytes() };
        self.changed_over = 0;
        self.way = way;
        self.phase = Phase::Settle;
    }

    fn open_window(&mut self, spent: Duration) {
        self.phase = Phase::Window(spent);
        self.due_bytes = self.window_bytes();
    }

    fn window_bytes(&self) -> u64 {
        let (each, few, many) = WINDOW_BYTES;
        (each * self.connections).clamp(few, many)
    }

    fn settle_bytes(&self) -> u64 {
        SETTLE_BYTES_MIN.max(SETTLE_BYTES * self.connections)
    }

    /// Most bytes of a look.
    fn look_bytes(&self) -> u64 {
        self.costs.len() as u64 * (self.settle_bytes() + self.window_bytes())
    }

    /// Of each pair of windows so far, in increasing order, what the other way cost as a part of what the choice did; and how
    /// many pairs these are.
    fn ratios(&self) -> ([f64; PAIRS], usize) {
        let (mut ratios, pairs) = ([0.0; PAIRS], self.windows / 2);
        for (number, (ratio, pair)) in ratios[..pairs].iter_mut().zip(self.costs.chunks_exact(2)).enumerate() {
            let (own, other) = if number.is_multiple_of(2) { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            *ratio = other / own;
        }
        ratios[..pairs].sort_by(f64::total_cmp);
        (ratios, pairs)
    }

    /// Whether all pairs so far say clearly the same, and are enough.
    fn is_clear(&self) -> bool {
        let (ratios, pairs) = self.ratios();
        let confirmed = pairs >= PAIRS_TO_CONFIRM && ratios[0] > 1.0 + CLEAR_PERCENT / 100.0;
        let refuted = pairs >= PAIRS_TO_REFUTE && ratios[pairs - 1] < 1.0 - CLEAR_PERCENT / 100.0;
        confirmed || refuted
    }

    fn decide(&mut self) {
        let is_clear = self.is_clear();
        let (ratios, pairs) = self.ratios();
        let median = f64::midpoint(ratios[(pairs - 1) / 2], ratios[pairs / 2]);
        if median < 1.0 - MARGIN_PERCENT / 100.0 {
            self.choice = self.choice.other();
        }
        self.looks = self.looks.saturating_add(1);
        self.windows = 0;
        self.way = self.choice;
        self.phase = Phase::Keep;
        self.looked_at = self.connections;
        let is_sure = is_clear || self.looks >= LOOKS_AT_FIRST;
        self.due_bytes = self.look_bytes() * if is_sure { KEEP_LOOKS } else { KEEP_LOOKS_UNSURE };
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
        pass(&mut chooser, FIRST_LOOK_BYTES * MANY - (1 << 20), &mut spent, |_| (1, 1));
        assert_eq!(chooser.phase, Phase::Settle, "each should have had some messages first");
        pass(&mut chooser, 1 << 20, &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)));
        pass(&mut chooser, WINDOW_BYTES.0 * MANY - (1 << 20), &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)), "one with few connections would have ended");
        pass(&mut chooser, 1 << 20, &mut spent, |_| (1, 1));
        assert_eq!((chooser.phase, chooser.way()), (Phase::Settle, Way::Direct));
        (0..MANY).for_each(|_| chooser.count(false));
        pass(&mut chooser, SETTLE_BYTES * MANY, &mut spent, |_| (1, 1));
        assert!(matches!(chooser.phase, Phase::Window(_)));
        pass(&mut chooser, WINDOW_BYTES.1, &mut spent, |_| (1, 1));
        assert_eq!(chooser.windows, 2, "a shorter window is enough again");
        (0..1 << 20).for_each(|_| chooser.count(true));
        assert_eq!(chooser.window_bytes(), WINDOW_BYTES.2, "no number of connections makes it longer than this");
    }

    #[test]
    fn settling_ends_when_nearly_all_have_changed_over() {
        const MANY: u64 = 1000;
        const MESSAGE: u64 = 16 << 10;
        for late in [0, MANY / LATE_PART, MANY / LATE_PART + 1] {
            let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
            (0..MANY).for_each(|_| chooser.count(true));
            while chooser.way() == Way::Multishot {
                pass(&mut chooser, 1 << 20, &mut spent, |_| (1, 1));
            }
            let mut messages = 0;
            while !chooser.is_due() {
                chooser.received(MESSAGE as usize, true);
                messages += 1;
                if messages <= MANY - late {
                    chooser.count_changed_over();
                }
            }
            let bytes = messages * MESSAGE;
            if late > MANY / LATE_PART {
                assert!(bytes >= SETTLE_BYTES * MANY, "too many still receive in the other way: {bytes}");
            } else {
                assert!(bytes < SETTLE_BYTES * MANY / 3, "{bytes}");
            }
        }
    }

    #[test]
    fn a_look_ends_early_when_all_its_pairs_say_clearly_the_same() {
        for (multishot, direct, windows) in [
            (400, 500, 2 * PAIRS_TO_CONFIRM as u64),
            (500, 400, 2 * PAIRS_TO_REFUTE as u64),
            (400, 408, 2 * PAIRS as u64),
        ] {
            let (mut chooser, mut spent, mut bytes) = (Chooser::new(), Duration::ZERO, 0);
            while chooser.looks == 0 {
                bytes += 1 << 20;
                pass(&mut chooser, 1 << 20, &mut spent, |_| (multishot, direct));
            }
            assert_eq!(bytes, windows * (SETTLE_BYTES_MIN + WINDOW_BYTES.1), "{multishot} and {direct}");
            assert_eq!(chooser.choice, if direct < multishot { Way::Direct } else { Way::Multishot });
        }
    }

    /// Bytes from the end of the first look to the next.
    fn kept(costs: (u64, u64), after_the_look: impl Fn(&mut Chooser)) -> u64 {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        chooser.count(true);
        while chooser.looks == 0 {
            pass(&mut chooser, 1 << 20, &mut spent, |_| costs);
        }
        after_the_look(&mut chooser);
        let mut bytes = 0;
        while chooser.phase == Phase::Keep {
            bytes += 1 << 20;
            pass(&mut chooser, 1 << 20, &mut spent, |_| costs);
        }
        bytes
    }

    #[test]
    fn what_a_clear_look_said_is_kept_for_long() {
        const LOOK: u64 = 2 * PAIRS as u64 * (SETTLE_BYTES_MIN + WINDOW_BYTES.1);
        assert_eq!(kept((500, 400), |_| {}), KEEP_LOOKS * LOOK);
        assert_eq!(kept((400, 500), |_| {}), KEEP_LOOKS * LOOK);
        assert_eq!(kept((400, 408), |_| {}), KEEP_LOOKS_UNSURE * LOOK);
        let more = |number| move |chooser: &mut Chooser| (0..number).for_each(|_| chooser.count(true));
        assert_eq!(kept((500, 400), more(1)), KEEP_LOOKS * LOOK);
        assert_eq!(kept((500, 400), more(2)), KEEP_LOOKS_UNSURE * LOOK, "it spoke for one connection");
    }

    #[test]
    fn one_deceptive_pair_does_not_end_a_look() {
        let (mut chooser, mut spent) = (Chooser::new(), Duration::ZERO);
        // The first window is five times as dear as it should be, as it is when the machine has other work.
        let slow = |bytes: u64| if bytes < SETTLE_BYTES_MIN + WINDOW_BYTES.1 { 5 } else { 1 };
        pass(&mut chooser, 2 << 30, &mut spent, |bytes| (400 * slow(bytes), 500 * slow(bytes)));
        assert_eq!((chooser.looks > 0, chooser.choice), (true, Way::Multishot));
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
