//! Time for tasks: sleeping, timeouts and intervals, on the worker's wheel. In a simulation the time is virtual.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::runtime::{Interest, Runtime};
use crate::worker::TimerKey;

/// A sleep that somebody waits for: a slot with a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SleepId {
    slot: u32,
    generation: u32,
}

/// The timer of a slot, and how many it had before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SleepTimer {
    slot: u32,
    serial: u32,
}

/// What the worker is to do with the wheel.
pub(crate) struct TimerChange {
    pub(crate) cancel: Option<TimerKey>,
    pub(crate) set: Option<(SleepTimer, Instant)>,
}

#[derive(Default)]
struct Entry {
    generation: u32,
    sleeper: Option<Sleeper>,
    /// The slot's timer in the wheel and when that is due: no later than the sleeper wants.
    timer: Option<(TimerKey, Instant)>,
    serial: u32,
    /// The slot is in the list of those that the worker looks at.
    changed: bool,
}

struct Sleeper {
    until: Instant,
    who: Interest,
}

/// All sleeps of a worker.
///
/// A timer belongs to a slot and not to its sleep. Deadlines are mostly given up and begun anew within one poll (each
/// message has one, or each request), the new one gets the slot of the old one, and as long as it is not earlier the timer
/// stays as it is: it is set again when it is due. So the wheel is touched once in a while, and not twice a message.
#[derive(Default)]
pub(super) struct Sleeps {
    entries: Vec<Entry>,
    /// The one given up last is used first.
    free: Vec<u32>,
    /// Slots whose timer may have to be set or cancelled.
    changed: Vec<u32>,
}

impl Sleeps {
    fn insert(&mut self, until: Instant, who: Interest) -> SleepId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[slot as usize];
        entry.sleeper = Some(Sleeper { until, who });
        let id = SleepId { slot, generation: entry.generation };
        self.mark(slot);
        id
    }

    fn get(&mut self, id: SleepId) -> Option<&mut Sleeper> {
        self.entries.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?.sleeper.as_mut()
    }

    fn remove(&mut self, id: SleepId) -> Option<Sleeper> {
        self.get(id)?;
        let entry = &mut self.entries[id.slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        let sleeper = entry.sleeper.take();
        self.free.push(id.slot);
        self.mark(id.slot);
        sleeper
    }

    /// Has the worker look whether the timer of a slot is right.
    fn mark(&mut self, slot: u32) {
        let entry = &mut self.entries[slot as usize];
        let right = match (&entry.sleeper, &entry.timer) {
            (Some(sleeper), Some((_, at))) => *at <= sleeper.until,
            (None, None) => true,
            _ => false,
        };
        if !right && !std::mem::replace(&mut entry.changed, true) {
            self.changed.push(slot);
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.changed.is_empty()
    }

    /// What is to be done for the slot that was marked last.
    fn next_change(&mut self) -> Option<TimerChange> {
        let slot = self.changed.pop()?;
        let entry = &mut self.entries[slot as usize];
        entry.changed = false;
        let wanted = entry.sleeper.as_ref().map(|sleeper| sleeper.until);
        if let (Some(until), Some((_, at))) = (wanted, &entry.timer)
            && *at <= until
        {
            return Some(TimerChange { cancel: None, set: None });
        }
        let cancel = entry.timer.take().map(|(key, _)| key);
        entry.serial = entry.serial.wrapping_add(1);
        let timer = SleepTimer { slot, serial: entry.serial };
        Some(TimerChange { cancel, set: wanted.map(|until| (timer, until)) })
    }

    /// A timer is due. Returns who waits for it, if the sleep is over.
    fn due(&mut self, timer: SleepTimer, now: Instant) -> Interest {
        let Some(entry) = self.entries.get_mut(timer.slot as usize).filter(|entry| entry.serial == timer.serial) else {
            return Interest::None;
        };
        entry.timer = None;
        let id = SleepId { slot: timer.slot, generation: entry.generation };
        if entry.sleeper.as_ref().is_some_and(|sleeper| sleeper.until <= now) {
            return self.remove(id).map_or(Interest::None, |sleeper| sleeper.who);
        }
        self.mark(timer.slot);
        Interest::None
    }
}

impl Runtime {
    /// What the worker is to do with its wheel next.
    pub(crate) fn next_timer_change(&self) -> Option<TimerChange> {
        self.sleeps.borrow_mut().next_change()
    }

    /// The timer that was asked for is set.
    pub(crate) fn timer_set(&self, timer: SleepTimer, at: Instant, key: TimerKey) {
        let mut sleeps = self.sleeps.borrow_mut();
        if let Some(entry) = sleeps.entries.get_mut(timer.slot as usize) {
            entry.timer = Some((key, at));
        }
    }

    /// A timer is due. Returns who waits for it, if the sleep is over.
    pub(crate) fn slept(&self, timer: SleepTimer) -> Interest {
        let waiting = self.sleeps.borrow_mut().due(timer, self.now());
        self.stir();
        waiting
    }

    /// Sleeps until `until`; `id` is where this sleep is kept between the polls.
    pub(super) fn poll_sleep(&self, id: &mut Option<SleepId>, until: Instant, cx: &Context<'_>) -> Poll<()> {
        if self.now() >= until {
            self.end_sleep(id);
            return Poll::Ready(());
        }
        let mut sleeps = self.sleeps.borrow_mut();
        if let Some(sleeper) = id.and_then(|id| sleeps.get(id)) {
            self.register(&mut sleeper.who, cx);
        } else {
            let mut who = Interest::None;
            self.register(&mut who, cx);
            *id = Some(sleeps.insert(until, who));
            self.stir();
        }
        Poll::Pending
    }

    /// Gives a sleep up.
    pub(super) fn end_sleep(&self, id: &mut Option<SleepId>) {
        if let Some(id) = id.take() {
            // Whoever waited is dropped when the list is free again: that may end another sleep.
            let sleeper = self.sleeps.borrow_mut().remove(id);
            self.stir();
            drop(sleeper);
        }
    }
}

/// Waits until a moment. Made by [`sleep`] and [`sleep_until`].
///
/// # Cancel safety
///
/// Dropping it cancels the timer.
#[must_use = "a future does nothing unless it is awaited"]
pub struct Sleep {
    runtime: Rc<Runtime>,
    until: Instant,
    id: Option<SleepId>,
}

impl Sleep {
    /// The moment.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        self.until
    }

    /// Waits until another moment instead.
    pub fn reset(&mut self, until: Instant) {
        self.cancel();
        self.until = until;
    }

    fn cancel(&mut self) {
        self.runtime.end_sleep(&mut self.id);
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.runtime.poll_sleep(&mut this.id, this.until, cx)
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl fmt::Debug for Sleep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleep").field("until", &self.until).finish()
    }
}

/// The time of this turn of the worker. Virtual in a simulation.
///
/// # Panics
///
/// Outside of a worker's thread.
#[must_use]
pub fn now() -> Instant {
    Runtime::with("now", |runtime| runtime.now())
}

/// Waits for `delay`, to the millisecond.
///
/// # Panics
///
/// Outside of a worker's thread.
pub fn sleep(delay: Duration) -> Sleep {
    let runtime = Runtime::current("sleep");
    let until = runtime.now() + delay;
    Sleep { runtime, until, id: None }
}

/// Waits until `until`.
///
/// # Panics
///
/// Outside of a worker's thread.
pub fn sleep_until(until: Instant) -> Sleep {
    Sleep { runtime: Runtime::current("sleep_until"), until, id: None }
}

/// The time of a [`timeout`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elapsed;

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time for it is over")
    }
}

impl std::error::Error for Elapsed {}

impl From<Elapsed> for io::Error {
    fn from(elapsed: Elapsed) -> Self {
        Self::new(io::ErrorKind::TimedOut, elapsed)
    }
}

/// Gives `future` at most `limit`.
///
/// # Errors
///
/// [`Elapsed`] when the time is over; the future is dropped then. For a method of a stream that loses nothing.
///
/// # Cancel safety
///
/// That of `future`.
///
/// # Panics
///
/// Outside of a worker's thread.
pub async fn timeout<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let mut over = sleep(limit);
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        Pin::new(&mut over).poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Ticks at regular moments, without drift. Made by [`interval`].
#[derive(Debug)]
pub struct Interval {
    sleep: Sleep,
    period: Duration,
}

impl Interval {
    /// Waits for the next tick. Ticks that were missed are skipped.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped the tick that it waited for is still to come.
    pub async fn tick(&mut self) {
        (&mut self.sleep).await;
        let now = self.sleep.runtime.now();
        let late = now.saturating_duration_since(self.sleep.until).as_nanos() / self.period.as_nanos();
        let periods = u32::try_from(late).unwrap_or(u32::MAX - 1) + 1;
        self.sleep.reset(self.sleep.until + self.period * periods);
    }
}

/// Ticks every `period` (at least a millisecond), for the first time after one.
///
/// # Panics
///
/// Outside of a worker's thread.
#[must_use]
pub fn interval(period: Duration) -> Interval {
    let period = period.max(Duration::from_millis(1));
    Interval { sleep: sleep(period), period }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Wheel;

    struct Wheels {
        sleeps: Sleeps,
        wheel: Wheel<SleepTimer>,
        begin: Instant,
    }

    impl Wheels {
        fn new() -> Self {
            let begin = Instant::now();
            Self { sleeps: Sleeps::default(), wheel: Wheel::new(begin), begin }
        }

        fn at(&self, milliseconds: u64) -> Instant {
            self.begin + Duration::from_millis(milliseconds)
        }

        fn begin(&mut self, milliseconds: u64) -> SleepId {
            self.sleeps.insert(self.at(milliseconds), Interest::None)
        }

        /// What the worker does after a poll. Returns how many timers were set and cancelled.
        fn settle(&mut self) -> (u32, u32) {
            let (mut set, mut cancelled) = (0, 0);
            while let Some(change) = self.sleeps.next_change() {
                if let Some(key) = change.cancel {
                    cancelled += 1;
                    self.wheel.cancel(key);
                }
                if let Some((timer, at)) = change.set {
                    set += 1;
                    let key = self.wheel.insert(at, timer);
                    self.sleeps.entries[timer.slot as usize].timer = Some((key, at));
                }
            }
            (set, cancelled)
        }

        /// Lets the time come, and what is due then.
        fn pass(&mut self, milliseconds: u64) {
            let now = self.at(milliseconds);
            let mut due = Vec::new();
            self.wheel.expire(now, &mut due);
            for timer in due {
                self.sleeps.due(timer, now);
            }
        }

        fn is_over(&mut self, id: SleepId) -> bool {
            self.sleeps.get(id).is_none()
        }
    }

    #[test]
    fn deadlines_that_follow_each_other_share_a_timer() {
        let mut all = Wheels::new();
        let mut deadline = all.begin(100);
        assert_eq!(all.settle(), (1, 0));
        for milliseconds in 101..110 {
            all.sleeps.remove(deadline);
            deadline = all.begin(milliseconds);
            assert_eq!(all.settle(), (0, 0), "the timer stays as it is");
        }
        all.pass(105);
        assert_eq!((all.is_over(deadline), all.settle()), (false, (1, 0)), "it was the timer of an earlier one");
        all.pass(109);
        assert_eq!((all.is_over(deadline), all.settle()), (true, (0, 0)));
    }

    #[test]
    fn an_earlier_deadline_has_a_timer_of_its_own() {
        let mut all = Wheels::new();
        let long = all.begin(1_000);
        all.settle();
        all.sleeps.remove(long);
        let short = all.begin(10);
        assert_eq!(all.settle(), (1, 1));
        all.pass(10);
        assert!(all.is_over(short));
    }

    #[test]
    fn a_sleep_that_is_given_up_leaves_no_timer() {
        let mut all = Wheels::new();
        let (first, second) = (all.begin(10), all.begin(20));
        assert_eq!(all.settle(), (2, 0));
        all.sleeps.remove(first);
        all.sleeps.remove(first);
        assert_eq!(all.settle(), (0, 1));
        let fresh = all.begin(5);
        all.sleeps.remove(fresh);
        assert_eq!(all.settle(), (0, 0), "it was never seen by the wheel");
        all.pass(20);
        assert!(all.is_over(second));
    }
}
