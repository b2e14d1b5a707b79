//! Polling for a while before a wait parks the thread.
//!
//! Parking and being woken costs more than anything else of a short exchange. By itself an engine polls only where that takes
//! less processor time ([`Thrift`]). Who wants the latency whatever it costs asks for a window: then it polls as long as the
//! wait before ended within that window, polled or parked. One wait that took longer stops the polling until a parked wait is
//! short again. An idle server therefore polls at most once after its last event, and a server whose events are further apart
//! than the window never polls.
//!
//! This file is pure: times in, a decision out.

use std::time::Duration;

use super::contract::{EngineStats, SPIN_MAX};
use super::thrift::{Sums, Thrift};

/// Whether the next wait polls.
#[derive(Debug)]
pub(crate) enum Spin {
    Never,
    /// As long as waits are this short. `eager` says whether the last was.
    Asked {
        window: Duration,
        eager: bool,
    },
    Thrifty(Thrift),
}

impl Spin {
    /// Polls for at most `window`, which is bounded by [`SPIN_MAX`]; never, if there is none.
    pub(crate) fn asked(window: Option<Duration>) -> Self {
        match window {
            None | Some(Duration::ZERO) => Self::Never,
            Some(window) => Self::Asked { window: window.min(SPIN_MAX), eager: true },
        }
    }

    /// The same, but where nothing is said it polls if that saves processor time.
    pub(crate) fn thrifty(window: Option<Duration>) -> Self {
        window.map_or_else(|| Self::Thrifty(Thrift::new()), |window| Self::asked(Some(window)))
    }

    /// Counts a wait that would park. Says whether it does just that. If not, it takes the way of a wait that polls.
    #[inline]
    pub(crate) fn parks(&mut self) -> bool {
        match self {
            Self::Never => true,
            Self::Asked { .. } => false,
            Self::Thrifty(thrift) => thrift.parks(),
        }
    }

    /// Notes what there was so far, if that is due.
    pub(crate) fn sample(&mut self, spent: impl FnOnce() -> Duration, stats: &EngineStats) {
        if let Self::Thrifty(thrift) = self
            && thrift.is_due()
        {
            thrift.sample(Sums { spent: spent(), bytes: stats.received_bytes, events: stats.events });
        }
    }

    /// How long this wait may poll before it parks.
    pub(crate) fn budget(&mut self) -> Option<Duration> {
        match self {
            Self::Never => None,
            Self::Asked { window, eager } => eager.then_some(*window),
            Self::Thrifty(thrift) => thrift.budget(),
        }
    }

    /// Notes how long a wait took that had nothing left over to do, whether it polled, and whether it brought something. One that
    /// was short because a deadline was near, its own or one that was asked for before, says nothing of how far apart events are.
    pub(crate) fn waited(&mut self, time: Duration, polled: bool, brought: bool) {
        match self {
            Self::Asked { window, eager } if time > *window || brought => *eager = time <= *window,
            Self::Thrifty(thrift) if polled => thrift.polled(time, brought),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(50);

    #[test]
    fn polling_goes_on_only_while_it_pays() {
        let mut spin = Spin::asked(Some(WINDOW));
        for _ in 0..10 {
            assert_eq!(spin.budget(), Some(WINDOW));
            spin.waited(WINDOW / 2, true, true);
        }
        spin.waited(WINDOW * 2, true, true);
        for _ in 0..10 {
            assert_eq!(spin.budget(), None);
            spin.waited(Duration::from_secs(1), false, true);
        }
        spin.waited(WINDOW / 5, false, true);
        assert_eq!(spin.budget(), Some(WINDOW), "a short wait is worth another try");
    }

    #[test]
    fn a_near_deadline_changes_nothing() {
        let mut spin = Spin::asked(Some(WINDOW));
        spin.waited(WINDOW / 2, true, false);
        assert_eq!(spin.budget(), Some(WINDOW));
        spin.waited(WINDOW * 2, true, false);
        assert_eq!(spin.budget(), None);
        spin.waited(WINDOW / 2, false, false);
        assert_eq!(spin.budget(), None, "nothing came in that time");
    }

    #[test]
    fn who_asks_gets_what_he_asked_for() {
        assert!(matches!(Spin::asked(None), Spin::Never));
        assert!(matches!(Spin::thrifty(Some(Duration::ZERO)), Spin::Never));
        assert_eq!(Spin::thrifty(Some(Duration::MAX)).budget(), Some(SPIN_MAX));
        assert!(Spin::asked(None).parks() && Spin::asked(None).budget().is_none());
        assert!(!Spin::asked(Some(WINDOW)).parks());
        assert!(Spin::thrifty(None).parks(), "nothing is known yet");
    }
}
