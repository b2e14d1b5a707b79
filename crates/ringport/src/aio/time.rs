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
pub(crate) struct SleepId {
    slot: u32,
    generation: u32,
}

struct Entry {
    generation: u32,
    sleeper: Option<Sleeper>,
}

struct Sleeper {
    until: Instant,
    key: Option<TimerKey>,
    who: Interest,
}

/// All sleeps of a worker.
#[derive(Default)]
pub(super) struct Sleeps {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// Those whose timer is to be set.
    fresh: Vec<SleepId>,
    /// Timers nobody waits for any more.
    stale: Vec<TimerKey>,
}

impl Sleeps {
    fn insert(&mut self, until: Instant) -> SleepId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, sleeper: None });
            self.entries.len() as u32 - 1
        });
        let entry = &mut self.entries[slot as usize];
        entry.sleeper = Some(Sleeper { until, key: None, who: Interest::None });
        let id = SleepId { slot, generation: entry.generation };
        self.fresh.push(id);
        id
    }

    fn get(&mut self, id: SleepId) -> Option<&mut Sleeper> {
        self.entries.get_mut(id.slot as usize).filter(|entry| entry.generation == id.generation)?.sleeper.as_mut()
    }

    fn remove(&mut self, id: SleepId) -> Option<Sleeper> {
        self.get(id)?;
        let entry = &mut self.entries[id.slot as usize];
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.slot);
        entry.sleeper.take()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.fresh.is_empty() && self.stale.is_empty()
    }
}

impl Runtime {
    /// The next sleep whose timer is to be set, and for when.
    pub(crate) fn next_sleep(&self) -> Option<(SleepId, Instant)> {
        let mut sleeps = self.sleeps.borrow_mut();
        while let Some(id) = sleeps.fresh.pop() {
            if let Some(sleeper) = sleeps.get(id) {
                return Some((id, sleeper.until));
            }
        }
        None
    }

    /// The timer of a sleep is set.
    pub(crate) fn sleep_set(&self, id: SleepId, key: TimerKey) {
        if let Some(sleeper) = self.sleeps.borrow_mut().get(id) {
            sleeper.key = Some(key);
        }
    }

    /// The next timer that is to be cancelled.
    pub(crate) fn next_stale_timer(&self) -> Option<TimerKey> {
        self.sleeps.borrow_mut().stale.pop()
    }

    /// A sleep is over. Returns who waits for it.
    pub(crate) fn slept(&self, id: SleepId) -> Interest {
        let sleeper = self.sleeps.borrow_mut().remove(id);
        sleeper.map_or(Interest::None, |sleeper| sleeper.who)
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
        if let Some(id) = self.id.take() {
            let mut sleeps = self.runtime.sleeps.borrow_mut();
            let key = sleeps.remove(id).and_then(|sleeper| sleeper.key);
            sleeps.stale.extend(key);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.runtime.now() >= this.until {
            this.cancel();
            return Poll::Ready(());
        }
        let mut sleeps = this.runtime.sleeps.borrow_mut();
        let id = match this.id {
            Some(id) if sleeps.get(id).is_some() => id,
            _ => sleeps.insert(this.until),
        };
        this.id = Some(id);
        if let Some(sleeper) = sleeps.get(id) {
            this.runtime.register(&mut sleeper.who, cx);
        }
        Poll::Pending
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
    Runtime::current("now").now()
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
