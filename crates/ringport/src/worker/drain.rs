//! Shutting down in order: stop accepting, let what is under way finish, close, and at last cut off.
//!
//! ```text
//! shut_down ──► listeners closed ──► quiet connections close in order ──► deadline: all close in order
//!                                                                           └─► + CUT_OFF: those left are aborted
//! ```

use std::time::{Duration, Instant};

use ringport_engine::Engine;

use super::Worker;
use super::timers::Timer;
use crate::session::{CloseReason, Ending, Phase};

/// A connection on which nothing moved for this long, and that has nothing queued, is done.
const QUIET: Duration = Duration::from_millis(250);
/// How often connections are looked at.
const STEP: Duration = Duration::from_millis(20);
/// Time after the deadline for FINs to be answered.
const CUT_OFF: Duration = Duration::from_secs(1);

/// Time after that for the engine to give up what was aborted. Longer means that it never will; the worker then ends
/// without it, and dropping the engine sees to what is left.
const LAST_CALL: Duration = Duration::from_secs(3);

/// A shutdown under way.
pub(super) struct Drain {
    /// The time that was asked for.
    within: Duration,
    deadline: Instant,
}

impl Drain {
    /// Whether even aborted connections have had their time.
    pub(super) fn is_hopeless(&self, now: Instant) -> bool {
        now >= self.deadline + CUT_OFF + LAST_CALL
    }
}

impl<E: Engine> Worker<E> {
    /// Begins to shut down. A later call with less time shortens what is left.
    pub(super) fn shut_down(&mut self, within: Duration) {
        if let Some(drain) = &mut self.drain {
            if within < drain.within {
                drain.within = within;
                drain.deadline = drain.deadline.min(self.context.now + within);
            }
            return;
        }
        self.context.stopping = true;
        self.context.aio().stop();
        self.drain = Some(Drain { within, deadline: self.context.now + within });
        for listening in &self.listeners {
            self.engine.unlisten(listening.id);
        }
        // Not at once: a turn begins with events that are not handled yet, and after a long turn a connection whose
        // data is among them looks quiet. Timers come after the events.
        self.context.timers.insert(self.context.now, Timer::Drain);
    }

    /// Closes what may be closed by now.
    pub(super) fn drain_step(&mut self) {
        if self.drain.is_some() {
            self.close_datagrams();
        }
        let Some(drain) = &self.drain else { return };
        let (now, clock) = (self.context.now, self.context.clock);
        let (late, over) = (now >= drain.deadline, now >= drain.deadline + CUT_OFF);
        for conn in self.context.ids() {
            let Some(session) = self.context.find(conn) else { continue };
            let quiet = session.quiet(clock) >= QUIET;
            let done = quiet && session.queued() == 0;
            match session.phase {
                Phase::Ended => continue,
                _ if over => session.end(Ending::Abort, CloseReason::Shutdown),
                Phase::Connecting => session.end(Ending::Abort, CloseReason::Shutdown),
                Phase::Open if late || done => session.end(Ending::Graceful, CloseReason::Shutdown),
                _ => continue,
            }
            self.settle(conn);
        }
        if self.context.live > 0 || !self.listeners.is_empty() || self.has_datagrams() {
            self.context.timers.insert(now + STEP, Timer::Drain);
        }
    }
}
