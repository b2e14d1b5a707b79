//! Polling for a while before a wait parks the thread: off by default.
//!
//! Parking and being woken costs more than anything else of a short exchange, and polling instead burns a core. So it is
//! done only while it pays: the wait before ended within the window, polled or parked. One wait that took longer stops
//! the polling until a parked wait is short again. An idle server therefore polls at most once after its last event, and a
//! server whose events are further apart than the window never polls.
//!
//! This file is pure: times in, a decision out.

use std::time::Duration;

use super::contract::SPIN_MAX;

/// Whether the next wait polls.
#[derive(Debug)]
pub(crate) struct Spin {
    window: Duration,
    eager: bool,
}

impl Spin {
    /// Polls for at most `window`, which is bounded by [`SPIN_MAX`]; never, if there is none.
    pub(crate) fn new(window: Option<Duration>) -> Self {
        Self { window: window.unwrap_or_default().min(SPIN_MAX), eager: true }
    }

    /// Whether waits are to be timed at all.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        !self.window.is_zero()
    }

    /// How long the next wait may poll before it parks.
    pub(crate) fn budget(&self) -> Option<Duration> {
        (self.is_on() && self.eager).then_some(self.window)
    }

    /// Notes how long a wait took that had nothing left over to do, and whether it brought something. One that was short
    /// because a deadline was near, its own or one that was asked for before, says nothing of how far apart events are.
    pub(crate) fn waited(&mut self, time: Duration, brought: bool) {
        if time > self.window {
            self.eager = false;
        } else if brought {
            self.eager = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    #[test]
    fn polling_goes_on_only_while_it_pays() {
        let mut spin = Spin::new(Some(WINDOW));
        for _ in 0..10 {
            assert_eq!(spin.budget(), Some(WINDOW));
            spin.waited(WINDOW / 2, true);
        }
        spin.waited(WINDOW * 2, true);
        for _ in 0..10 {
            assert_eq!(spin.budget(), None);
            spin.waited(Duration::from_secs(1), true);
        }
        spin.waited(WINDOW / 5, true);
        assert_eq!(spin.budget(), Some(WINDOW), "a short wait is worth another try");
    }

    #[test]
    fn a_near_deadline_changes_nothing() {
        let mut spin = Spin::new(Some(WINDOW));
        spin.waited(WINDOW / 2, false);
        assert_eq!(spin.budget(), Some(WINDOW));
        spin.waited(WINDOW * 2, false);
        assert_eq!(spin.budget(), None);
        spin.waited(WINDOW / 2, false);
        assert_eq!(spin.budget(), None, "nothing came in that time");
    }

    #[test]
    fn it_is_off_unless_asked_for_and_bounded() {
        assert!(!Spin::new(None).is_on() && Spin::new(None).budget().is_none());
        assert!(!Spin::new(Some(Duration::ZERO)).is_on());
        assert_eq!(Spin::new(Some(Duration::MAX)).budget(), Some(SPIN_MAX));
    }
}
