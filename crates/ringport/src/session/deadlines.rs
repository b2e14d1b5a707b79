//! When a session has waited long enough: all its deadlines behind one timer.
//!
//! Moving bytes stores a time and sets no timer. The one timer of a session fires when the nearest deadline would be due if
//! nothing moved; then it is seen what has moved, and the timer is set again for what is nearest now. Everything here is
//! pure: stored times in, the verdict and the next look out.

use std::time::Duration;

use super::{CloseReason, ConnectionOptions, Heartbeat, Phase, Session};

/// What the timer of a session found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing is due; look again after this time. `None`: never.
    Wait(Option<Duration>),
    /// The handler is to send a heartbeat; look again after this time.
    Beat(Duration),
    /// It has waited too long.
    Close(CloseReason),
}

/// The nearest of several moments, unless one has passed.
struct Nearest(Verdict);

impl Nearest {
    /// Takes a deadline into account: `limit` after a moment that lies `passed` back.
    fn add(&mut self, limit: Option<Duration>, passed: Duration, reason: CloseReason) {
        let (Some(limit), Verdict::Wait(nearest)) = (limit, self.0) else { return };
        self.0 = match limit.checked_sub(passed).filter(|left| !left.is_zero()) {
            None => Verdict::Close(reason),
            Some(left) => Verdict::Wait(Some(nearest.map_or(left, |nearest| nearest.min(left)))),
        };
    }
}

impl Session {
    /// Judges the deadlines of a session that connects or is open at `clock`, in milliseconds of the worker's clock.
    pub(crate) fn judge(&mut self, options: &ConnectionOptions, clock: u32) -> Verdict {
        let since = |at: u32| Duration::from_millis(clock.wrapping_sub(at).into());
        let (mut nearest, mut beats) = (Nearest(Verdict::Wait(None)), false);
        if self.phase == Phase::Connecting {
            nearest.add(options.connect_timeout, since(self.opened_at), CloseReason::ConnectTimeout);
            return nearest.0;
        }
        nearest.add(options.lifetime, since(self.opened_at), CloseReason::Lifetime);
        if self.queued() > 0 {
            nearest.add(options.write_timeout, since(self.sent_at), CloseReason::WriteStall);
        } else if let Some(timeout) = options.write_timeout {
            // A queue may fill just after this look, and would then be due a whole timeout later.
            nearest.add(Some(timeout), Duration::ZERO, CloseReason::WriteStall);
        }
        if self.receiving && !self.peer_closed {
            nearest.add(options.read_timeout, since(self.received_at), CloseReason::ReadTimeout);
            if let Some(rate) = options.receive_rate_min {
                let slow = self.is_slow(rate, clock);
                let passed = if slow { rate.window } else { since(self.rare().window_at) };
                nearest.add(Some(rate.window), passed, CloseReason::TooSlow);
            }
            if let Some(heartbeat) = options.heartbeat {
                beats = self.judge_heartbeat(heartbeat, clock, &mut nearest);
            }
        } else {
            // Nobody can blame the peer for what is not read. When reading goes on, the time begins anew.
            let interval = options.heartbeat.map(|heartbeat| heartbeat.interval);
            for timeout in [options.read_timeout, options.receive_rate_min.map(|rate| rate.window), interval] {
                nearest.add(timeout, Duration::ZERO, CloseReason::ReadTimeout);
            }
        }
        nearest.add(options.idle_timeout, self.quiet(clock), CloseReason::Idle);
        match (nearest.0, beats) {
            (Verdict::Wait(Some(time)), true) => Verdict::Beat(time),
            (verdict, _) => verdict,
        }
    }

    /// Judges the heartbeats, and says whether one is to be sent now. Each has a whole interval to be answered, also when a
    /// busy worker sent it late.
    fn judge_heartbeat(&mut self, heartbeat: Heartbeat, clock: u32, nearest: &mut Nearest) -> bool {
        let since = |at: u32| clock.wrapping_sub(at);
        let received = since(self.received_at);
        let rare = self.rare();
        if received <= since(rare.beat_at) {
            rare.heartbeats = 0;
        }
        let passed = Duration::from_millis(received.min(since(rare.beat_at)).into());
        let due = passed >= heartbeat.interval;
        if due && rare.heartbeats < heartbeat.misses {
            (rare.heartbeats, rare.beat_at) = (rare.heartbeats + 1, clock);
            nearest.add(Some(heartbeat.interval), Duration::ZERO, CloseReason::Heartbeat);
            return true;
        }
        nearest.add(Some(heartbeat.interval), passed, CloseReason::Heartbeat);
        false
    }

    /// Whether less came in the window that is over than had to. A window that is over begins anew.
    fn is_slow(&mut self, rate: super::MinimumRate, clock: u32) -> bool {
        let received = self.received;
        let rare = self.rare();
        let passed = Duration::from_millis(clock.wrapping_sub(rare.window_at).into());
        if passed < rate.window {
            return false;
        }
        let came = received - rare.window_received;
        (rare.window_at, rare.window_received) = (clock, received);
        u128::from(came) * 1000 < u128::from(rate.bytes_per_second) * passed.as_millis()
    }

    /// Time since a byte moved in either direction.
    pub(crate) fn quiet(&self, clock: u32) -> Duration {
        let quiet = clock.wrapping_sub(self.received_at).min(clock.wrapping_sub(self.sent_at));
        Duration::from_millis(quiet.into())
    }

    /// Begins the times of a connection that is established.
    pub(crate) fn begin(&mut self, options: &ConnectionOptions, clock: u32) {
        (self.opened_at, self.received_at, self.sent_at) = (clock, clock, clock);
        if options.receive_rate_min.is_some() {
            self.rare().window_at = clock;
        }
        if options.heartbeat.is_some() {
            self.rare().beat_at = clock;
        }
        self.metered = options.receive_rate_max.is_some();
    }

    /// Begins anew the times in which something must be received.
    pub(crate) fn begin_reading(&mut self, options: &ConnectionOptions, clock: u32) {
        if options.read_timeout.is_some() || options.heartbeat.is_some() {
            self.received_at = clock;
        }
        if options.receive_rate_min.is_some() {
            let received = self.received;
            let rare = self.rare();
            (rare.window_at, rare.window_received) = (clock, received);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::session;
    use super::super::{MinimumRate, OverLimit};
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn options() -> ConnectionOptions {
        ConnectionOptions::default().idle_timeout(None).write_timeout(None)
    }

    fn open(options: &ConnectionOptions) -> Session {
        let mut session = session();
        session.begin(options, 0);
        session.receiving = true;
        session
    }

    #[test]
    fn each_deadline_is_due_to_the_millisecond() {
        let cases = [
            (options().idle_timeout(Some(50 * MS)), CloseReason::Idle),
            (options().read_timeout(Some(50 * MS)), CloseReason::ReadTimeout),
            (options().lifetime(Some(50 * MS)), CloseReason::Lifetime),
            (options().receive_rate_min(Some(MinimumRate::new(100, 50 * MS))), CloseReason::TooSlow),
        ];
        for (options, reason) in cases {
            let mut session = open(&options);
            assert_eq!(session.judge(&options, 0), Verdict::Wait(Some(50 * MS)), "{reason}");
            assert_eq!(session.judge(&options, 49), Verdict::Wait(Some(MS)), "{reason}");
            assert_eq!(session.judge(&options, 50), Verdict::Close(reason));
        }
        let options = options().connect_timeout(Some(50 * MS));
        let mut session = open(&options);
        session.phase = Phase::Connecting;
        assert_eq!(session.judge(&options, 49), Verdict::Wait(Some(MS)));
        assert_eq!(session.judge(&options, 50), Verdict::Close(CloseReason::ConnectTimeout));
    }

    #[test]
    fn a_full_queue_that_does_not_move_is_a_stall_and_an_empty_one_is_not() {
        let options = options().write_timeout(Some(50 * MS)).send_limit(1000, OverLimit::Refuse);
        let mut session = open(&options);
        assert_eq!(session.judge(&options, 500), Verdict::Wait(Some(50 * MS)));
        (session.accepted, session.handed, session.sent_at) = (100, 50, 480);
        assert_eq!(session.judge(&options, 529), Verdict::Wait(Some(MS)));
        assert_eq!(session.judge(&options, 530), Verdict::Close(CloseReason::WriteStall));
        session.sent_at = 520;
        assert_eq!(session.judge(&options, 530), Verdict::Wait(Some(40 * MS)));
    }

    #[test]
    fn what_is_not_read_is_not_the_fault_of_the_peer() {
        let options = options().read_timeout(Some(50 * MS)).receive_rate_min(Some(MinimumRate::new(1000, 20 * MS)));
        let mut session = open(&options);
        session.receiving = false;
        assert_eq!(session.judge(&options, 500), Verdict::Wait(Some(20 * MS)));
        session.receiving = true;
        session.begin_reading(&options, 600);
        assert_eq!(session.judge(&options, 610), Verdict::Wait(Some(10 * MS)));
    }

    #[test]
    fn a_rate_is_judged_window_by_window() {
        let options = options().receive_rate_min(Some(MinimumRate::new(1000, 100 * MS)));
        let mut session = open(&options);
        for window in 1..5 {
            session.received += 100;
            assert_eq!(session.judge(&options, window * 100), Verdict::Wait(Some(100 * MS)));
        }
        session.received += 99;
        assert_eq!(session.judge(&options, 500), Verdict::Close(CloseReason::TooSlow));
    }

    #[test]
    fn a_peer_that_misses_its_heartbeats_is_given_up() {
        let options = options().heartbeat(Some(Heartbeat::new(50 * MS, 2)));
        let mut session = open(&options);
        assert_eq!(session.judge(&options, 0), Verdict::Wait(Some(50 * MS)));
        assert_eq!(session.judge(&options, 50), Verdict::Beat(50 * MS));
        assert_eq!(session.judge(&options, 60), Verdict::Wait(Some(40 * MS)), "one each interval");
        session.received_at = 70;
        assert_eq!(session.judge(&options, 100), Verdict::Wait(Some(20 * MS)), "any byte is a sign of life");
        assert_eq!(session.judge(&options, 120), Verdict::Beat(50 * MS));
        assert_eq!(
            session.judge(&options, 250),
            Verdict::Beat(50 * MS),
            "late, and with a whole interval all the same"
        );
        assert_eq!(session.judge(&options, 299), Verdict::Wait(Some(MS)));
        assert_eq!(session.judge(&options, 300), Verdict::Close(CloseReason::Heartbeat));
    }

    #[test]
    fn the_clock_may_wrap() {
        let options = options().idle_timeout(Some(50 * MS));
        let mut session = open(&options);
        session.begin(&options, u32::MAX - 10);
        assert_eq!(session.judge(&options, 38), Verdict::Wait(Some(MS)));
        assert_eq!(session.judge(&options, 39), Verdict::Close(CloseReason::Idle));
    }
}
