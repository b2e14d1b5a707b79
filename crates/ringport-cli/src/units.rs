//! Durations and sizes as people write them: `500ms`, `30s`, `10MiB`, `64k`.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// A number and the unit behind it.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

/// Parses a duration: a number with `us`, `ms`, `s`, `m` or `h`; without a unit it is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text.trim());
    let number: f64 = number.parse().map_err(|_| "a number is missing; write for example 500ms or 30s".to_owned())?;
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" | "" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{unit:?} is no unit of time; use us, ms, s, m or h, as in 500ms")),
    };
    Duration::try_from_secs_f64(number * seconds)
        .ok()
        .filter(|duration| *duration <= DURATION_MAX)
        .ok_or_else(|| "longer than a year".to_owned())
}

/// Longest duration that is taken. Far beyond any use, and far below where adding it to a time overflows.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A duration that can be switched off: 0 is `None`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeout(pub(crate) Option<Duration>);

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let duration = duration(text)?;
        Ok(Self((!duration.is_zero()).then_some(duration)))
    }
}

/// Parses a number of bytes: `k`, `M`, `G` and `KiB`, `MiB`, `GiB` are powers of 1,024; `kB`, `MB`, `GB` of 1,000.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text.trim());
    let number: u64 = number.parse().map_err(|_| "a whole number is missing; write for example 10MiB".to_owned())?;
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(format!("{unit:?} is no unit of size; use k, M, G, KiB, MiB or GiB, as in 10MiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// Sizes of messages: `64`, or `64..4k` with both ends included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sizes(pub(crate) RangeInclusive<usize>);

/// Largest message of the benchmark, so that its pattern stays a reasonable piece of memory.
pub(crate) const SIZE_MAX: usize = 64 << 20;

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, high) = text.split_once("..").unwrap_or((text, text));
        let limit = |text: &str| match usize::try_from(bytes(text)?) {
            Ok(size) if (1..=SIZE_MAX).contains(&size) => Ok(size),
            _ => Err("a message has at least 1 byte and at most 64 MiB".to_owned()),
        };
        let (low, high) = (limit(low)?, limit(high.trim_start_matches('='))?);
        if low > high { Err(format!("{low} is more than {high}")) } else { Ok(Self(low..=high)) }
    }
}

impl std::fmt::Display for Sizes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (low, high) = (self.0.start(), self.0.end());
        if low == high { write!(f, "{low}") } else { write!(f, "{low}..{high}") }
    }
}

/// How long to warm up: a time, or a number of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Warmup {
    Time(Duration),
    Messages(u64),
}

impl FromStr for Warmup {
    type Err = String;

    /// A number without a unit is messages.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(messages) => Ok(Self::Messages(messages)),
            Err(_) => duration(text).map(Self::Time),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, expected) in
            [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("0", 0), ("1.5s", 1_500), ("2", 2_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "s", "5x", "-1s", "1e9h", "9999999999h", "1.2.3s", "NaN"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert_eq!("0".parse(), Ok(Timeout(None)));
        assert_eq!("0ms".parse(), Ok(Timeout(None)));
    }

    #[test]
    fn sizes() {
        for (text, expected) in [("64", 64), ("64k", 65_536), ("10MiB", 10 << 20), ("1kB", 1_000), ("2G", 2 << 30)] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "k", "1.5k", "-1", "99999999999G", "5q"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert_eq!("64".parse(), Ok(Sizes(64..=64)));
        assert_eq!("1..4k".parse(), Ok(Sizes(1..=4096)));
        for text in ["0", "9..1", "65MiB", "1..", "..5"] {
            assert!(text.parse::<Sizes>().is_err(), "{text}");
        }
    }

    #[test]
    fn warm_up() {
        assert_eq!("100".parse(), Ok(Warmup::Messages(100)));
        assert_eq!("2s".parse(), Ok(Warmup::Time(Duration::from_secs(2))));
        assert!("soon".parse::<Warmup>().is_err());
    }
}
