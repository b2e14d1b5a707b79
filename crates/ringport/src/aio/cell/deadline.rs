//! How long one operation may wait.

use std::time::{Duration, Instant};

/// The longest time that one operation may wait.
#[derive(Default)]
pub(super) struct Deadline {
    pub(super) timeout: Option<Duration>,
    pub(super) since: Option<Instant>,
    /// A timer of the session is set, or will be when the worker looks.
    armed: bool,
    pub(super) to_arm: Option<Duration>,
    pub(super) expired: bool,
}

impl Deadline {
    /// An operation that waits. Returns whether the worker has a timer to set.
    pub(super) fn wait(&mut self, now: Instant) -> bool {
        let Some(timeout) = self.timeout else { return false };
        self.since.get_or_insert(now);
        if !std::mem::replace(&mut self.armed, true) {
            self.to_arm = Some(timeout);
        }
        self.to_arm.is_some()
    }

    /// The timer is due. One operation may have ended and another begun since it was set: then it is set again.
    pub(super) fn due(&mut self, now: Instant) {
        self.armed = false;
        let (Some(timeout), Some(since)) = (self.timeout, self.since) else { return };
        let waited = now.saturating_duration_since(since);
        self.expired = waited >= timeout;
        if !self.expired {
            (self.armed, self.to_arm) = (true, Some(timeout - waited));
        }
    }
}
