//! Rates: how much a second, and how much at once.

use std::time::Duration;

/// A rate with a burst: after a rest, `burst` may come at once, and over a long time no more than `per_second`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rate {
    /// Bytes, messages or connections a second.
    pub per_second: u64,
    /// How many of them at once.
    pub burst: u64,
}

impl Rate {
    /// `per_second` on average, `burst` at once. Both are at least 1.
    #[must_use]
    pub fn new(per_second: u64, burst: u64) -> Self {
        Self { per_second: per_second.max(1), burst: burst.max(1) }
    }

    /// How long `amount` takes at this rate.
    fn time(self, amount: u64) -> Duration {
        let nanos = u128::from(amount) * 1_000_000_000 / u128::from(self.per_second.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A token bucket, kept as the one moment at which it will be full again: tokens need no timer to come back.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bucket {
    full_at: Duration,
}

impl Bucket {
    /// Takes `amount` out, more than there is if need be. Says how long it takes until something is in it again, if it is
    /// overdrawn now. `now` counts from any fixed moment.
    pub(crate) fn spend(&mut self, amount: u64, rate: Rate, now: Duration) -> Option<Duration> {
        self.full_at = self.full_at.max(now).saturating_add(rate.time(amount));
        self.full_at.checked_sub(now + rate.time(rate.burst)).filter(|wait| !wait.is_zero())
    }

    /// Takes one out, if there is one.
    pub(crate) fn spend_if_any(&mut self, rate: Rate, now: Duration) -> bool {
        let mut after = *self;
        let fits = after.spend(1, rate, now).is_none();
        if fits {
            *self = after;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_burst_passes_and_then_the_rate_holds() {
        let (mut bucket, rate) = (Bucket::default(), Rate::new(10, 5));
        let passed = |bucket: &mut Bucket, now| (0..100).filter(|_| bucket.spend_if_any(rate, now)).count();
        assert_eq!(passed(&mut bucket, 100 * SECOND), 5);
        assert_eq!(passed(&mut bucket, 100 * SECOND), 0);
        assert_eq!(passed(&mut bucket, 100 * SECOND + SECOND / 10), 1);
        assert_eq!(passed(&mut bucket, 200 * SECOND), 5, "no more than a burst after a rest");
    }

    #[test]
    fn overdrawing_is_paid_back() {
        let (mut bucket, rate) = (Bucket::default(), Rate::new(1000, 100));
        assert_eq!(bucket.spend(100, rate, SECOND), None);
        assert_eq!(bucket.spend(500, rate, SECOND), Some(SECOND / 2));
        assert_eq!(bucket.spend(1, rate, 2 * SECOND), None);
        assert_eq!(bucket.spend(u64::MAX, rate, 2 * SECOND).map(|wait| wait > 1000 * SECOND), Some(true));
    }
}
