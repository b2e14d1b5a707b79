//! Whether polling before parking is cheaper here than parking at once: found out by trying, again and again.
//!
//! To park and be woken costs the processor several times what a small message does, most of all on a virtual machine. Where
//! the next bytes come sooner than that, polling for them is cheaper, and they are served sooner. Where they come later, or
//! would have come together with others, it is dearer. What a wake-up costs here and what comes when nobody can be asked; so
//! the engine compares: processor time of its thread for a received byte.
//!
//! ```text
//!   keep the choice, for a long while ─► look: pairs of windows, one each way ─► the cheaper one ─► keep …
//!   a window: settle, for some waits ─► measure
//! ```
//!
//! The speed of a machine changes by more than what is to be told apart, so that only windows side by side are compared, a
//! millisecond long. A look takes as many pairs as it needs until chance cannot have made their mean: few where polling is much
//! cheaper or dearer, and many where there is hardly a difference.
//!
//! Only waits that would park count, and polling is tried only where such a wait brings one message at a time: a server that is
//! never idle neither polls nor looks, one with many connections at work lets their messages gather, and one to which nothing
//! happens has nothing to be thrifty with. A poll that found nothing lets the following waits park at once: one, then two, then
//! four … until a poll finds something. So even where the choice is to poll, an idle server polls once, and one whose bytes
//! are far apart hardly ever. That policy as a whole is what is compared.
//!
//! Where there is hardly a difference it polls, since that spares time as well.
//!
//! This file is pure: times and bytes in, a decision out.

use std::time::Duration;

/// Longest that a wait polls. Two programs that answer each other and both sleep take 50 to 100 µs for an exchange on the machine
/// that this was measured on, some twice as long, and 10 to 30 once one of them polls.
pub(super) const POLL_MAX: Duration = Duration::from_micros(150);
/// Waits that would park: before the first look, and in a window.
const FIRST: u32 = 128;
const WINDOW: u32 = 32;
/// And before a window, until both programs, and what lets their processors sleep, are used to the other way: to parking, and to
/// polling, which takes longer.
const SETTLE: u32 = 8;
const SETTLE_POLLING: u32 = 96;
/// And between two looks: twice as many after each that confirms the one before. In the long run a look at what is clearly dearer
/// costs about a hundredth of what passes until the next. And never fewer than twice those of the look, which is long where
/// there is hardly a difference.
const KEEP: u32 = 1 << 10;
const KEEP_MAX: u32 = 32 << 10;
const KEEP_LOOKS: u32 = 2;
/// Polling for so long ends a window before its time, and settling, for the same reason.
const POLLED_MAX: Duration = Duration::from_millis(1);
const SETTLED_MAX: Duration = Duration::from_millis(3);
/// Most events for a wait that parks, where polling is tried: those of a message that comes and of its answer that leaves, and some
/// for other things.
const EVENTS_MAX: f64 = 2.5;
/// Most pairs of windows of a look.
const PAIRS_MAX: u32 = 32;
/// How many times its standard error the mean must lie away from the limit to be no chance.
const ERRORS: f64 = 2.5;
/// How far a pair lies from the mean before any was seen: half as much again, or two thirds.
const DEVIATION: f64 = 0.4;
/// What polling may cost, as a part of what parking does, to begin with and to go on. Taking turns flatters parking, whose peers
/// are still awake from the polling: where windows say 0.95 to 1, polling all the time costs 0.85 to 0.9.
const BEGIN_BELOW: f64 = 1.0;
const GO_ON_BELOW: f64 = 1.08;
/// Most waits that park at once after a poll in vain.
const PAUSE_MAX: u32 = 1 << 10;

/// What there was since the engine was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sums {
    /// Processor time of the thread.
    pub(super) spent: Duration,
    /// Received.
    pub(super) bytes: u64,
    pub(super) events: u64,
}

/// What ends when [`Thrift::is_due`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Keep,
    Settle,
    /// A window is open since these.
    Window(Sums),
}

/// The choice, and what it rests on.
#[derive(Debug)]
pub(super) struct Thrift {
    /// Whether waits poll now: the choice, or what a look tries.
    polls: bool,
    choice: bool,
    /// Waits until the phase is over.
    left: u32,
    phase: Phase,
    /// Time polled in this window, or while settling.
    polled: Duration,
    look: Look,
    /// Waits of this look, at most, and from the last one to the next.
    looking: u32,
    kept: u32,
    /// Waits that are to park at once, and how many there will be after the next poll in vain.
    pause: u32,
    next_pause: u32,
}

impl Thrift {
    pub(super) fn new() -> Self {
        Self {
            polls: false,
            choice: true,
            left: FIRST,
            phase: Phase::Keep,
            polled: Duration::ZERO,
            look: Look::default(),
            looking: 0,
            kept: KEEP,
            pause: 0,
            next_pause: 1,
        }
    }

    /// Counts a wait that would park. Says whether it does so and nothing else is to be done.
    #[inline]
    pub(super) fn parks(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left > 0 && !self.polls
    }

    /// Whether [`Thrift::sample`] has something to do.
    pub(super) fn is_due(&self) -> bool {
        self.left == 0
    }

    /// Goes on to the next phase.
    pub(super) fn sample(&mut self, now: Sums) {
        match self.phase {
            Phase::Keep => self.settle(),
            Phase::Settle => {
                self.phase = Phase::Window(now);
                self.polled = Duration::ZERO;
                self.left = WINDOW;
            }
            Phase::Window(begin) => {
                let bytes = now.bytes.saturating_sub(begin.bytes);
                let events = now.events.saturating_sub(begin.events);
                let spent = now.spent.saturating_sub(begin.spent);
                let gathers = !self.polls && events as f64 > EVENTS_MAX * f64::from(WINDOW);
                if gathers || bytes == 0 || spent.is_zero() {
                    self.keep(false);
                    return;
                }
                self.look.add(spent.as_nanos() as f64 / bytes as f64);
                match self.look.verdict(if self.choice { GO_ON_BELOW } else { BEGIN_BELOW }) {
                    Some(polls) => self.keep(polls),
                    None => self.settle(),
                }
            }
        }
    }

    /// Goes over to the way of the next window.
    fn settle(&mut self) {
        let polls = self.look.is_polling_next();
        self.looking += WINDOW;
        self.left = match (self.polls, polls) {
            (true, true) | (false, false) => 1,
            (true, false) => SETTLE,
            (false, true) => SETTLE_POLLING,
        };
        self.looking += self.left;
        self.polls = polls;
        (self.pause, self.next_pause) = (0, 1);
        self.polled = Duration::ZERO;
        self.phase = Phase::Settle;
    }

    fn keep(&mut self, polls: bool) {
        self.look = Look::default();
        self.phase = Phase::Keep;
        self.kept = if polls == self.choice { KEEP_MAX.min(2 * self.kept) } else { KEEP };
        (self.choice, self.polls) = (polls, polls);
        self.left = self.kept.max(KEEP_LOOKS * std::mem::take(&mut self.looking));
    }

    /// How long this wait may poll before it parks.
    pub(super) fn budget(&mut self) -> Option<Duration> {
        if !self.polls {
            return None;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        Some(POLL_MAX)
    }

    /// Notes how a wait that polled went: whether it brought something, and in time.
    pub(super) fn polled(&mut self, time: Duration, brought: bool) {
        self.polled += time.min(POLL_MAX);
        let most = match self.phase {
            Phase::Keep => Duration::MAX,
            Phase::Settle => SETTLED_MAX,
            Phase::Window(_) => POLLED_MAX,
        };
        if self.polled >= most {
            // The next wait ends it.
            self.left = self.left.min(1);
        }
        if time > POLL_MAX && self.phase != Phase::Settle {
            self.pause = self.next_pause;
            self.next_pause = PAUSE_MAX.min(2 * self.next_pause);
        } else if brought {
            self.next_pause = 1;
        }
    }
}

/// The windows of a look so far: of each pair the logarithm of what polling cost as a part of what parking did, as their number,
/// mean, and sum of squared distances from it. The first pair begins with parking and the next with polling, so that each change is
/// made once.
#[derive(Debug, Default)]
struct Look {
    windows: u32,
    first_cost: f64,
    mean: f64,
    squares: f64,
}

impl Look {
    fn is_polling_next(&self) -> bool {
        matches!(self.windows % 4, 1 | 2)
    }

    fn add(&mut self, cost: f64) {
        let polled = self.is_polling_next();
        self.windows += 1;
        if !self.windows.is_multiple_of(2) {
            self.first_cost = cost;
            return;
        }
        let ratio = if polled { cost / self.first_cost } else { self.first_cost / cost };
        let distance = ratio.ln() - self.mean;
        self.mean += distance / f64::from(self.windows / 2);
        self.squares += distance * (ratio.ln() - self.mean);
    }

    /// Whether polling costs less than `limit`, as a part of what parking does; if enough is known.
    fn verdict(&self, limit: f64) -> Option<bool> {
        if self.windows == 0 || !self.windows.is_multiple_of(2) {
            return None;
        }
        let pairs = f64::from(self.windows / 2);
        let distance = self.mean - limit.ln();
        let error = ((self.squares + DEVIATION * DEVIATION) / pairs).sqrt() / pairs.sqrt();
        let known = distance.abs() > ERRORS * error || self.windows >= 2 * PAIRS_MAX;
        known.then_some(distance < 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that receives `bytes` in each wait, `gap` after the last.
    struct Life {
        thrift: Thrift,
        spent: Duration,
        bytes: u64,
        events: u64,
        events_each: u64,
        waits: u64,
        polls: u64,
    }

    /// What a wake-up costs.
    const WAKE: Duration = Duration::from_micros(20);
    const WORK: Duration = Duration::from_micros(10);

    impl Life {
        fn new() -> Self {
            Self {
                thrift: Thrift::new(),
                spent: Duration::ZERO,
                bytes: 0,
                events: 0,
                events_each: 2,
                waits: 0,
                polls: 0,
            }
        }

        /// Passes waits. What came is of `parked` bytes if the thread slept and of `polled` if it did not.
        fn pass(&mut self, waits: u64, gap: Duration, (parked, polled): (u64, u64)) -> &mut Self {
            for _ in 0..waits {
                self.waits += 1;
                let mut in_time = false;
                if !self.thrift.parks() {
                    if self.thrift.is_due() {
                        self.thrift.sample(Sums { spent: self.spent, bytes: self.bytes, events: self.events });
                    }
                    if let Some(budget) = self.thrift.budget() {
                        self.polls += 1;
                        in_time = gap <= budget;
                        self.spent += gap.min(budget);
                        self.thrift.polled(gap, true);
                    }
                }
                self.spent += WORK + if in_time { Duration::ZERO } else { WAKE };
                self.bytes += if in_time { polled } else { parked };
                self.events += self.events_each;
            }
            self
        }

        /// The part of waits that polled since the last call.
        fn share(&mut self) -> f64 {
            let share = self.polls as f64 / self.waits as f64;
            (self.polls, self.waits) = (0, 0);
            share
        }

        /// Processor time that the same would have cost without polling, by what it did cost.
        fn gain(&mut self, waits: u64, gap: Duration, bytes: (u64, u64)) -> f64 {
            let (spent, received) = (self.spent, self.bytes);
            self.pass(waits, gap, bytes);
            let parked = (WORK + WAKE).as_secs_f64() * (self.bytes - received) as f64 / bytes.0 as f64;
            parked / (self.spent - spent).as_secs_f64()
        }
    }

    const SAME: (u64, u64) = (64, 64);

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Part of the waits that a look takes, half of it the other way.
    const LOOKS: f64 = 0.04;

    #[test]
    fn it_polls_where_that_is_cheaper() {
        let mut life = Life::new();
        assert_eq!(life.pass(u64::from(FIRST), micros(5), SAME).share(), 0.0, "nothing is known at first");
        life.pass(1000, micros(5), SAME).share();
        assert!(life.pass(100_000, micros(5), SAME).share() > 1.0 - LOOKS);
        assert!(life.gain(100_000, micros(5), SAME) > 1.95, "10 + 5 µs in place of 10 + 20");
    }

    #[test]
    fn it_parks_where_that_is_cheaper() {
        for gap in [24, 50, 90, 149, 151, 1000, 1_000_000] {
            let mut life = Life::new();
            assert!(life.gain(10_000, micros(gap), SAME) > 0.8, "{gap} µs");
            life.pass(100_000, micros(gap), SAME).share();
            assert!(life.pass(100_000, micros(gap), SAME).share() < LOOKS, "{gap} µs");
            assert!(life.gain(100_000, micros(gap), SAME) > 0.99, "{gap} µs");
        }
    }

    #[test]
    fn where_there_is_hardly_a_difference_it_polls() {
        // 22 and 23 µs of polling in place of 20 of waking: 6.7 and 10 % more.
        for (gap, polls) in [(22, true), (23, false)] {
            assert_eq!(Life::new().pass(100_000, micros(gap), SAME).share() > 0.5, polls, "{gap} µs");
        }
        // Where it parks already there must be something to save.
        let mut life = Life::new();
        life.pass(10_000, micros(60), SAME).share();
        assert!(life.pass(100_000, micros(21), SAME).share() < 0.2);
        assert!(life.pass(100_000, micros(18), SAME).share() > 0.8);
    }

    #[test]
    fn what_would_have_come_together_is_not_polled_for_piece_by_piece() {
        // A stream: who polls gets it in pieces of half the size, each of them sooner.
        assert!(Life::new().pass(100_000, micros(5), (64_000, 24_000)).share() < LOOKS);
        assert!(Life::new().pass(100_000, micros(5), (64_000, 60_000)).share() > 1.0 - LOOKS);
        // Many connections: a wait brings several messages.
        let mut life = Life::new();
        life.events_each = 3;
        assert_eq!(life.pass(100_000, micros(5), SAME).share(), 0.0);
    }

    #[test]
    fn a_change_is_noticed() {
        let mut life = Life::new();
        life.pass(50_000, micros(5), SAME).share();
        life.pass(u64::from(KEEP_MAX), micros(60), SAME).share();
        assert!(life.pass(100_000, micros(60), SAME).share() < LOOKS);
        life.pass(u64::from(KEEP_MAX), micros(5), SAME).share();
        assert!(life.pass(100_000, micros(5), SAME).share() > 1.0 - LOOKS);
    }

    #[test]
    fn who_polls_and_finds_nothing_hardly_polls() {
        let polling = || {
            let mut life = Life::new();
            while !life.thrift.polls || life.thrift.phase != Phase::Keep {
                life.pass(1, micros(5), SAME);
            }
            life.share();
            life
        };
        // The load is gone, and something comes every second.
        assert!(polling().pass(1_000, micros(1_000_000), SAME).share() <= 0.01);
        // One poll in vain in a load that goes on, as when its peer made a pause.
        let mut life = polling();
        for _ in 0..500 {
            life.pass(1, micros(40_000), SAME).pass(100, micros(5), SAME);
        }
        assert!(life.share() > 0.9);
    }

    #[test]
    fn whoever_receives_nothing_never_polls() {
        let mut life = Life::new();
        assert_eq!(life.pass(200_000, micros(5), (0, 0)).share(), 0.0);
    }

    #[test]
    fn a_clock_that_stands_still_changes_nothing() {
        let mut thrift = Thrift::new();
        let mut polls = 0;
        for bytes in 0..100_000 {
            if !thrift.parks() {
                if thrift.is_due() {
                    thrift.sample(Sums { spent: Duration::ZERO, bytes, events: bytes });
                }
                polls += u32::from(thrift.budget().is_some());
            }
        }
        assert_eq!((polls, thrift.choice), (0, false));
    }

    #[test]
    fn a_machine_whose_speed_changes_does_not_deceive() {
        // Twice as slow now and then, at lengths that are no multiple of a window.
        for (gap, polls) in [(30, false), (10, true)] {
            let (mut life, mut turns) = (Life::new(), 0);
            for number in 0..3_000_u64 {
                let before = life.spent;
                life.pass(37, micros(gap), SAME);
                if number % 7 < 3 {
                    life.spent += life.spent - before;
                }
                turns += u32::from(number > 100 && life.thrift.choice != polls);
            }
            assert!(turns < 30, "{gap} µs: wrong in {turns} of 2,900 times");
        }
    }
}
