//! When a failed accept may be tried again (law 8).

use std::time::{Duration, Instant};

use super::contract::{ACCEPT_BACKOFF_MAX, ACCEPT_BACKOFF_MIN};

/// The pause of one listener: doubled with each failure in a row, forgotten at the first success.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    pause: Duration,
    until: Option<Instant>,
}

impl Backoff {
    /// Counts a failure at `now` and starts the pause.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.pause = (self.pause * 2).clamp(ACCEPT_BACKOFF_MIN, ACCEPT_BACKOFF_MAX);
        self.until = Some(now + self.pause);
    }

    /// Forgets earlier failures.
    pub(crate) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// End of the pause, if there is one.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Ends the pause if its time has come, and says so.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let due = self.until.is_some_and(|until| until <= now);
        if due {
            self.until = None;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_bound_and_are_forgotten() {
        let start = Instant::now();
        let mut backoff = Backoff::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            backoff.fail(start);
            pauses.push(backoff.until().unwrap() - start);
        }
        assert_eq!(pauses[0], ACCEPT_BACKOFF_MIN);
        assert_eq!(pauses[1], 2 * ACCEPT_BACKOFF_MIN);
        assert_eq!(*pauses.last().unwrap(), ACCEPT_BACKOFF_MAX);
        assert!(!backoff.expire(start));
        assert!(backoff.expire(start + ACCEPT_BACKOFF_MAX));
        assert!(!backoff.expire(start + ACCEPT_BACKOFF_MAX));
        backoff.succeed();
        backoff.fail(start);
        assert_eq!(backoff.until().unwrap() - start, ACCEPT_BACKOFF_MIN);
    }
}
