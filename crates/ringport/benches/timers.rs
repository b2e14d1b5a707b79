//! What a million timers cost: nanoseconds for each that is set, set anew, cancelled, and fired.
//!
//! ```text
//! cargo bench -p ringport --bench timers
//! cargo bench -p ringport --bench timers -- 200000    # another number of timers
//! ```
//!
//! It measures the wheel of the workers itself, with values as large as theirs. Deadlines lie within 17 minutes, in an
//! order that has nothing to do with that in which they are set, so that hardly any timer is in a cache when it is touched.
//! Each line is the median of some repetitions and the slowest of them. As a test (`cargo test --benches`) it runs once and
//! small, and shows no more than that all is counted rightly.

#[cfg_attr(test, allow(dead_code, reason = "its own tests come along, and run in the library"))]
#[path = "../src/worker/wheel.rs"]
mod wheel;

use std::hint::black_box;
use std::time::{Duration, Instant};

use wheel::{TimerKey, Wheel};

const TIMERS: u32 = 1_000_000;
const TIMERS_IN_TEST: u32 = 20_000;
const REPETITIONS: usize = 7;
const MS: Duration = Duration::from_millis(1);
/// Deadlines are spread over as many milliseconds.
const SPREAD: u32 = 1_000_000;

/// As large as what the workers keep in a timer.
type Value = (u32, u64);

fn main() {
    // Cargo says `--bench` when it is to be measured.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let asked = std::env::args().filter_map(|argument| argument.parse().ok()).next();
    let count = asked.unwrap_or(if measured { TIMERS } else { TIMERS_IN_TEST }).clamp(4, 100 * TIMERS);
    let repetitions = if measured { REPETITIONS } else { 1 };
    let mut runs: Vec<[f64; 4]> = (0..repetitions).map(|_| run(count)).collect();
    println!("{count} timers, {repetitions} times; nanoseconds each");
    for (column, name) in ["insert", "refresh", "cancel", "expire"].into_iter().enumerate() {
        runs.sort_by(|one, other| one[column].total_cmp(&other[column]));
        let (median, slowest) = (runs[runs.len() / 2][column], runs[runs.len() - 1][column]);
        println!("{name:<8} median {median:6.1}  slowest {slowest:6.1}");
    }
}

/// Sets all timers, sets all anew, cancels a quarter, lets the others fire.
fn run(count: u32) -> [f64; 4] {
    let start = Instant::now();
    let at = |number: u32, round: u32| start + MS * (1 + number.wrapping_mul(2_654_435_761 + 2 * round) % SPREAD);
    let mut wheel: Wheel<Value> = Wheel::new(start);
    let mut keys: Vec<TimerKey> = Vec::with_capacity(count as usize);
    let insert = timed(count, || {
        keys.extend((0..count).map(|number| wheel.insert(at(number, 0), (number, u64::from(number)))));
    });
    let refresh = timed(count, || {
        for number in 0..count {
            let key = &mut keys[number as usize];
            let value = wheel.cancel(*key).expect("it has not fired");
            *key = wheel.insert(at(number, 1), value);
        }
    });
    let cancelled = count / 4;
    let cancel = timed(cancelled, || {
        for number in (0..count).step_by(4).take(cancelled as usize) {
            black_box(wheel.cancel(keys[number as usize]).expect("it has not fired"));
        }
    });
    let mut fired = 0;
    let mut due = Vec::with_capacity(64);
    let expire = timed(count - cancelled, || {
        while let Some(next) = wheel.next_deadline() {
            wheel.expire(next, &mut due);
            fired += due.len();
            black_box(&mut due).clear();
        }
    });
    assert_eq!(fired, (count - cancelled) as usize, "each timer that was not cancelled fires once");
    [insert, refresh, cancel, expire]
}

/// Nanoseconds of this thread for each of `count` steps.
fn timed(count: u32, steps: impl FnOnce()) -> f64 {
    let (used, begin) = (processor_time(), Instant::now());
    steps();
    let spent = match (used, processor_time()) {
        (Some(before), Some(after)) => after - before,
        _ => begin.elapsed(),
    };
    spent.as_nanos() as f64 / f64::from(count)
}

/// Processor time of this thread, so that what else the machine does is not counted. Only Linux tells it in a file (see
/// proc(5)); elsewhere the clock on the wall has to do.
fn processor_time() -> Option<Duration> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}
