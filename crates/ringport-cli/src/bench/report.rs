//! What a benchmark found, as a table and as JSON.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::load::Tally;
use crate::Failure;
use crate::args::{Api, Bench, EnginesToMeasure};
use crate::units::Warmup;

/// Everything about one run of the program.
#[derive(Serialize)]
pub(super) struct Report {
    #[serde(skip)]
    target: String,
    parameters: Parameters,
    machine: Machine,
    results: Vec<Row>,
}

/// What was asked for.
#[derive(Serialize)]
struct Parameters {
    version: &'static str,
    /// `null`: an own server on loopback.
    address: Option<String>,
    engine: String,
    /// How the own server is written, and its share; `null` where another was measured.
    api: Option<Api>,
    share_bytes: Option<u64>,
    connections: usize,
    size_min: usize,
    size_max: usize,
    pipeline: usize,
    workers: usize,
    /// `null`: found out by the engine.
    spin_us: Option<u64>,
    duration_seconds: Option<f64>,
    iterations: Option<u64>,
    warmup_seconds: Option<f64>,
    warmup_messages: Option<u64>,
    timeout_seconds: f64,
}

/// Where it ran. `null` where the system does not say.
#[derive(Serialize)]
struct Machine {
    system: &'static str,
    architecture: &'static str,
    kernel: Option<String>,
    cores: Option<usize>,
    congestion_control: Option<String>,
}

/// One engine.
#[derive(Serialize)]
pub(super) struct Row {
    pub(super) engine: &'static str,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

/// What became of it.
#[derive(Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum Outcome {
    Measured(Box<Figures>),
    Unavailable { reason: String },
}

/// What was measured.
#[derive(Serialize)]
pub(super) struct Figures {
    connections: usize,
    messages: u64,
    bytes: u64,
    seconds: f64,
    messages_per_second: f64,
    /// Payload in one direction, in units of 1,000,000 bytes.
    megabytes_per_second: f64,
    latency_microseconds: Latency,
    errors: Errors,
    /// Processor time of this process, own server included. `null` where the system does not say.
    cpu_seconds: Option<f64>,
    cpu_microseconds_per_message: Option<f64>,
}

#[derive(Serialize)]
struct Latency {
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

#[derive(Serialize)]
struct Errors {
    wrong: u64,
    missing: u64,
    late: u64,
    broken_connections: u64,
    failed_connects: u64,
    samples: Vec<String>,
}

impl Errors {
    fn total(&self) -> u64 {
        self.wrong + self.missing + self.late + self.broken_connections + self.failed_connects
    }
}

impl Figures {
    /// The time counts from `began` to the last reply, so that a stall at the end shows.
    pub(super) fn new(tally: &Tally, connections: usize, began: Instant, cpu: Option<Duration>) -> Self {
        let seconds = tally.last_reply.map_or(0.0, |last| last.saturating_duration_since(began).as_secs_f64());
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let microseconds = |nanoseconds: u64| nanoseconds as f64 / 1e3;
        let quantile = |q| microseconds(tally.latencies.value_at_quantile(q));
        let cpu = cpu.map(|cpu| cpu.as_secs_f64());
        Self {
            connections,
            messages: tally.messages,
            bytes: tally.bytes,
            seconds,
            messages_per_second: rate(tally.messages as f64),
            megabytes_per_second: rate(tally.bytes as f64 / 1e6),
            latency_microseconds: Latency {
                mean: tally.latencies.mean() / 1e3,
                p50: quantile(0.5),
                p90: quantile(0.9),
                p99: quantile(0.99),
                p999: quantile(0.999),
                max: microseconds(tally.latencies.max()),
            },
            errors: Errors {
                wrong: tally.wrong,
                missing: tally.missing,
                late: tally.late,
                broken_connections: tally.broken,
                failed_connects: tally.connect_failed,
                samples: tally.samples.clone(),
            },
            cpu_seconds: cpu,
            cpu_microseconds_per_message: cpu
                .filter(|_| tally.messages > 0)
                .map(|cpu| cpu * 1e6 / tally.messages as f64),
        }
    }
}

impl Report {
    pub(super) fn new(options: &Bench, results: Vec<Row>) -> Self {
        let (seconds, messages) = match options.warmup {
            Warmup::Time(time) => (Some(time.as_secs_f64()), None),
            Warmup::Messages(messages) => (None, Some(messages)),
        };
        let parameters = Parameters {
            version: env!("CARGO_PKG_VERSION"),
            address: options.address.as_ref().map(ToString::to_string),
            engine: match options.engine {
                EnginesToMeasure::Auto => "auto".to_owned(),
                EnginesToMeasure::All => "all".to_owned(),
                EnginesToMeasure::One(kind) => kind.name().to_owned(),
            },
            api: options.own_api(),
            share_bytes: options.own_api().map(|_| options.share),
            connections: options.connections,
            size_min: *options.size.0.start(),
            size_max: *options.size.0.end(),
            pipeline: options.pipeline,
            workers: options.workers,
            spin_us: options.spin.0.map(|time| time.as_micros() as u64),
            duration_seconds: options.iterations.is_none().then_some(options.duration.as_secs_f64()),
            iterations: options.iterations,
            warmup_seconds: seconds,
            warmup_messages: messages,
            timeout_seconds: options.timeout.as_secs_f64(),
        };
        let line = |path| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let machine = Machine {
            system: std::env::consts::OS,
            architecture: std::env::consts::ARCH,
            kernel: line("/proc/sys/kernel/osrelease"),
            cores: available_parallelism().ok().map(Into::into),
            congestion_control: line("/proc/sys/net/ipv4/tcp_congestion_control"),
        };
        Self { target: options.target(), parameters, machine, results }
    }

    /// Whether every reply was right and came in time.
    pub(super) fn is_clean(&self) -> bool {
        self.figures().all(|(_, figures)| figures.errors.total() == 0 && figures.messages > 0)
    }

    /// Prints the table, or the JSON in its place, and what went wrong to standard error.
    pub(super) fn write(&self, json: Option<&Path>) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        if json == Some(Path::new("-")) {
            writeln!(out, "{}", serde_json::to_string_pretty(self)?)?;
        } else {
            self.table(&mut out)?;
        }
        out.flush()?;
        if let Some(path) = json.filter(|path| *path != Path::new("-")) {
            fs::write(path, serde_json::to_string_pretty(self)? + "\n")
                .map_err(|error| Failure(format!("cannot write {}: {error}", path.display())))?;
        }
        for (engine, figures) in self.figures() {
            if let Some(words) = complaint(figures) {
                eprintln!("ringport: {engine}: {words}");
            }
        }
        Ok(())
    }

    fn figures(&self) -> impl Iterator<Item = (&'static str, &Figures)> {
        self.results.iter().filter_map(|row| match &row.outcome {
            Outcome::Measured(figures) => Some((row.engine, &**figures)),
            Outcome::Unavailable { .. } => None,
        })
    }

    fn table(&self, out: &mut impl Write) -> io::Result<()> {
        let p = &self.parameters;
        let sizes =
            if p.size_min == p.size_max { p.size_min.to_string() } else { format!("{}..{}", p.size_min, p.size_max) };
        writeln!(
            out,
            "echo of {sizes} bytes, {} connections, {} deep, {} workers, to {}",
            p.connections, p.pipeline, p.workers, self.target
        )?;
        writeln!(
            out,
            "{:<9} {:>6} {:>10} {:>8} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>8} {:>7}",
            "engine",
            "conns",
            "messages",
            "seconds",
            "msg/s",
            "MB/s",
            "p50 us",
            "p90 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "cpu us/m",
            "errors"
        )?;
        for row in &self.results {
            match &row.outcome {
                Outcome::Unavailable { reason } => writeln!(out, "{:<9} unavailable: {reason}", row.engine)?,
                Outcome::Measured(f) => {
                    let l = &f.latency_microseconds;
                    let cpu = f.cpu_microseconds_per_message.map_or("n/a".to_owned(), |cpu| format!("{cpu:.2}"));
                    writeln!(
                        out,
                        "{:<9} {:>6} {:>10} {:>8.2} {:>10.0} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {:>9.1} {cpu:>8} {:>7}",
                        row.engine,
                        f.connections,
                        f.messages,
                        f.seconds,
                        f.messages_per_second,
                        f.megabytes_per_second,
                        l.p50,
                        l.p90,
                        l.p99,
                        l.p999,
                        l.max,
                        f.errors.total()
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// What went wrong, in one line.
fn complaint(figures: &Figures) -> Option<String> {
    let e = &figures.errors;
    if e.total() == 0 {
        return (figures.messages == 0)
            .then(|| "nothing was measured: the time was too short for a single reply".to_owned());
    }
    let counts = [
        (e.wrong, "wrong"),
        (e.missing, "missing"),
        (e.late, "late"),
        (e.broken_connections, "broken connections"),
        (e.failed_connects, "failed connects"),
    ];
    let counts: Vec<String> =
        counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
    let first = e.samples.first().map_or(String::new(), |first| format!("; first: {first}"));
    Some(counts.join(", ") + &first)
}

/// Processor time of this process so far, where the system says: see proc_pid_stat(5). A tick is 10 ms on Linux.
pub(super) fn process_cpu() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program is in parentheses and may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u64 = fields.nth(11)?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}
