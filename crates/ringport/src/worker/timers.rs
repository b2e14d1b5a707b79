//! Timers of a worker: those of the sessions, those of the user, and the worker's own.

use std::collections::VecDeque;
use std::hint::cold_path;
use std::time::{Duration, Instant};

use ringport_engine::{ConnId, UdpId};

use super::LISTED_AT_FIRST;
use super::wheel::{TimerKey, Wheel};
use crate::aio::SleepTimer;

/// Handle of a timer. A stale one does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TimerId {
    index: u32,
    serial: u32,
}

/// What a timer in the wheel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// A deadline of a session may be over.
    Deadline(ConnId),
    /// A graceful close waited long enough.
    Linger(ConnId),
    /// A session may receive again.
    Rate(ConnId),
    /// The next address of a race is due.
    Race(u32),
    /// A timer of the user.
    User(TimerId),
    /// A sleep of a task may be over.
    Sleep(SleepTimer),
    /// The handlers' background tick.
    Tick,
    /// Look which peers of a datagram socket are silent.
    Sweep(UdpId),
    /// Look whether there is memory again.
    Memory,
    /// Look which connections are quiet enough to be closed.
    Drain,
}

/// What a user's timer does when it is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Due {
    pub(crate) conn: ConnId,
    pub(crate) token: u64,
    pub(crate) period: Option<Duration>,
}

struct UserTimer {
    serial: u32,
    state: Option<(TimerKey, Instant, Due)>,
}

/// The wheel, and the users' timers by number. In this order what each turn needs lies together.
#[repr(C)]
pub(super) struct Timers {
    expired: VecDeque<Timer>,
    wheel: Wheel<Timer>,
    user: Vec<UserTimer>,
    free: Vec<u32>,
    fresh: Vec<Timer>,
}

impl Timers {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            wheel: Wheel::new(now),
            user: Vec::new(),
            free: Vec::new(),
            fresh: Vec::with_capacity(LISTED_AT_FIRST),
            expired: VecDeque::with_capacity(LISTED_AT_FIRST),
        }
    }

    pub(super) fn insert(&mut self, at: Instant, timer: Timer) -> TimerKey {
        self.wheel.insert(at, timer)
    }

    pub(super) fn cancel(&mut self, key: TimerKey) {
        self.wheel.cancel(key);
    }

    /// Whether the user's timer is still set.
    pub(super) fn is_set(&self, id: TimerId) -> bool {
        self.user.get(id.index as usize).is_some_and(|entry| entry.serial == id.serial && entry.state.is_some())
    }

    pub(super) fn insert_user(&mut self, at: Instant, due: Due) -> TimerId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.user.push(UserTimer { serial: 0, state: None });
            self.user.len() as u32 - 1
        });
        let id = TimerId { index, serial: self.user[index as usize].serial };
        let key = self.wheel.insert(at, Timer::User(id));
        self.user[index as usize].state = Some((key, at, due));
        id
    }

    pub(super) fn cancel_user(&mut self, id: TimerId) -> bool {
        let Some((key, ..)) = self.release(id) else { return false };
        self.wheel.cancel(key);
        true
    }

    /// What the user's timer `id` is for, now that it is due at `now`. A periodic one is set again, by its plan and not
    /// by when it ran; periods that were missed are skipped.
    pub(super) fn due(&mut self, id: TimerId, now: Instant) -> Option<Due> {
        let entry = self.user.get_mut(id.index as usize).filter(|entry| entry.serial == id.serial)?;
        let (_, planned, due) = entry.state?;
        match due.period {
            None => {
                self.release(id);
            }
            Some(period) => {
                let period = period.max(Duration::from_millis(1));
                let missed = now.saturating_duration_since(planned).as_nanos() / period.as_nanos();
                let next = planned + period * (u32::try_from(missed).unwrap_or(u32::MAX - 1) + 1);
                entry.state = Some((self.wheel.insert(next, Timer::User(id)), next, due));
            }
        }
        Some(due)
    }

    fn release(&mut self, id: TimerId) -> Option<(TimerKey, Instant, Due)> {
        let entry = self.user.get_mut(id.index as usize).filter(|entry| entry.serial == id.serial)?;
        let state = entry.state.take()?;
        entry.serial = entry.serial.wrapping_add(1);
        self.free.push(id.index);
        Some(state)
    }

    #[inline]
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.wheel.next_deadline()
    }

    /// Collects the timers due at `now`; [`Timers::next_expired`] hands them out. Returns the whole milliseconds since these
    /// timers began.
    #[inline]
    pub(super) fn expire(&mut self, now: Instant) -> u64 {
        if self.wheel.is_due(now) {
            cold_path();
            self.collect_due(now);
        }
        self.wheel.clock()
    }

    #[inline(never)]
    fn collect_due(&mut self, now: Instant) {
        self.wheel.expire(now, &mut self.fresh);
        self.expired.extend(self.fresh.drain(..));
    }

    /// The next timer that is due, in order. One at a time, so that a callback that panics costs no other timer.
    #[inline]
    pub(super) fn next_expired(&mut self) -> Option<Timer> {
        self.expired.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use ringport_engine::engine::sim::SimEngine;
    use ringport_engine::{Engine, EngineConfig, Pool, PoolConfig, SocketOptions, socket};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn conn() -> ConnId {
        let mut engine = SimEngine::open(&EngineConfig::default(), Pool::new(PoolConfig::default())).expect("it opens");
        engine.connect(&socket::ip(([127, 0, 0, 1], 1).into()), &SocketOptions::default()).expect("it connects")
    }

    /// When the user's timers fire, if the worker looks every `step`.
    fn fired(timers: &mut Timers, from: Instant, until: Instant, step: Duration) -> Vec<(u64, Instant)> {
        let (mut now, mut fired) = (from, Vec::new());
        while now <= until {
            timers.expire(now);
            while let Some(timer) = timers.next_expired() {
                let Timer::User(id) = timer else { panic!("{timer:?} was never set") };
                fired.extend(timers.due(id, now).map(|due| (due.token, now)));
            }
            now += step;
        }
        fired
    }

    #[test]
    fn a_periodic_timer_does_not_drift() {
        let (start, conn) = (Instant::now(), conn());
        let mut timers = Timers::new(start);
        let period = Some(10 * MS);
        timers.insert_user(start + 10 * MS, Due { conn, token: 7, period });
        // The worker looks every 7 ms, so that each time is late by up to that, but none by more.
        let fired = fired(&mut timers, start, start + 10_006 * MS, 7 * MS);
        assert_eq!(fired.len(), 1000);
        for (number, (_, at)) in fired.iter().enumerate() {
            let late = *at - (start + 10 * MS * (number as u32 + 1));
            assert!(late < 7 * MS, "time {number} is late by {late:?}");
        }
    }

    #[test]
    fn periods_that_were_missed_are_skipped() {
        let (start, conn) = (Instant::now(), conn());
        let mut timers = Timers::new(start);
        timers.insert_user(start + 10 * MS, Due { conn, token: 7, period: Some(10 * MS) });
        assert_eq!(fired(&mut timers, start + 95 * MS, start + 99 * MS, MS).len(), 1);
        assert_eq!(fired(&mut timers, start + 100 * MS, start + 109 * MS, MS).len(), 1);
    }
}
