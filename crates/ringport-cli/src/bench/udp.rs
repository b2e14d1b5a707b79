//! `ringport bench --udp`: a closed loop of datagrams over an echo server, with every datagram accounted for.
//!
//! Each connection is a socket of its own, and so a peer of its own for the server. It keeps a window of datagrams under
//! way. A datagram carries its connection and number, and bytes that follow from them. It ends as exactly one of:
//! *returned*, as it was sent and in time, or *lost*. A lost one that comes back after all is counted as *late* besides;
//! *corrupted* are those that come back otherwise than they were sent, *duplicated* those that come back again.

use std::collections::VecDeque;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringport::{
    Address, Datagram, DatagramHandler, DatagramOptions, Datagrams, EngineConfig, EngineKind, Selection, Server,
    UdpOptions,
};
use serde::Serialize;

use super::OWN_ADDRESS;
use super::report::process_cpu;
use crate::args::{Api, Bench, EnginesToMeasure};
use crate::services::EchoDatagrams;
use crate::{Failure, tasks};

/// Bytes in front of each datagram: connection and number.
const HEADER_BYTES: usize = 16;
/// What IPv4 can carry, see udp(7).
const SIZE_MAX: usize = 65_507;
/// Longest time until a datagram counts as lost: a window must not wait for the timeout of streams.
const LOST_AFTER_MAX: Duration = Duration::from_secs(1);
/// How often the handlers look for what is lost.
const TICK: Duration = Duration::from_millis(10);
/// Places at which the bytes of a datagram may begin in the pattern.
const OFFSETS: u64 = 4096;
/// Lost datagrams of one connection that are remembered, to tell when they are late.
const LOST_MAX: usize = 65_536;
/// Bytes of the kernel's buffers, so that windows fit. The system caps it (`net.core.rmem_max`, see socket(7)).
const KERNEL_BUFFER: u32 = 4 << 20;

/// What came out, for one engine.
#[derive(Serialize)]
struct Figures {
    engine: &'static str,
    connections: usize,
    window: usize,
    seconds: f64,
    sent: u64,
    returned: u64,
    lost: u64,
    late: u64,
    corrupted: u64,
    duplicated: u64,
    unreachable: u64,
    returned_per_second: f64,
    megabytes_per_second: f64,
    latency_p50_microseconds: f64,
    latency_p99_microseconds: f64,
    latency_max_microseconds: f64,
    cpu_seconds: Option<f64>,
}

impl Figures {
    fn is_clean(&self) -> bool {
        self.returned > 0 && self.returned == self.sent && self.corrupted + self.duplicated + self.unreachable == 0
    }
}

#[derive(Serialize)]
struct Report<'a> {
    protocol: &'static str,
    address: Option<String>,
    /// How the own server is written; `null` where another was measured.
    api: Option<Api>,
    size_min: usize,
    size_max: usize,
    results: &'a [Figures],
}

/// Measures one or all engines and prints what came out.
pub(super) fn run(options: &Bench) -> Result<ExitCode, Failure> {
    let (low, high) = (*options.size.0.start(), *options.size.0.end());
    if low < HEADER_BYTES || high > SIZE_MAX {
        return Err(Failure(format!("--udp needs sizes of {HEADER_BYTES} to {SIZE_MAX} bytes")));
    }
    let kinds = match options.engine {
        EnginesToMeasure::Auto => vec![None],
        EnginesToMeasure::One(kind) => vec![Some(kind)],
        EnginesToMeasure::All => {
            let working = Selection::probe(&EngineConfig::default()).into_iter();
            working.filter(|candidate| candidate.verdict.is_ok()).map(|candidate| Some(candidate.kind)).collect()
        }
    };
    let results = kinds.into_iter().map(|kind| measure(options, kind)).collect::<Result<Vec<_>, _>>()?;
    let address = options.address.as_ref().map(ToString::to_string);
    let api = options.own_api();
    write(&Report { protocol: "udp", address, api, size_min: low, size_max: high, results: &results }, options)?;
    Ok(if results.iter().all(Figures::is_clean) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One engine: its own server if none was named, and the load.
fn measure(options: &Bench, kind: Option<EngineKind>) -> Result<Figures, Failure> {
    match &options.address {
        Some(Address::Ip(address)) => load(options, kind, *address),
        Some(Address::Unix(_)) => Err(Failure("datagrams need an IP address".to_owned())),
        None => {
            let server = Server::new().engine(kind).workers(options.workers);
            let server = match options.api {
                Api::Handler => {
                    let buffers = DatagramOptions::default().kernel_buffers(Some(KERNEL_BUFFER), None);
                    server.udp_with(OWN_ADDRESS, buffers, || EchoDatagrams)
                }
                Api::Async => {
                    let mut socket = UdpOptions::default();
                    socket.receive_buffer = Some(KERNEL_BUFFER);
                    server.udp_async_with(OWN_ADDRESS, socket, tasks::echo_datagrams)
                }
            };
            let server = server.start()?;
            let address = server.udp_addresses().first().copied();
            let address = address.ok_or_else(|| Failure("the own server has no address".into()))?;
            let figures = load(options, kind, address);
            server.handle().shutdown(Duration::ZERO);
            server.join()?;
            figures
        }
    }
}

/// What all connections share.
struct Plan {
    to: SocketAddr,
    size_min: u64,
    size_max: u64,
    window: usize,
    connections: u64,
    iterations: Option<u64>,
    lost_after: Duration,
    pattern: Vec<u8>,
    over: AtomicBool,
    done: AtomicUsize,
    lanes: AtomicU64,
}

fn load(options: &Bench, kind: Option<EngineKind>, to: SocketAddr) -> Result<Figures, Failure> {
    let (size_min, size_max) = (*options.size.0.start() as u64, *options.size.0.end() as u64);
    let plan = Arc::new(Plan {
        to,
        size_min,
        size_max,
        window: options.pipeline,
        connections: options.connections as u64,
        iterations: options.iterations,
        lost_after: options.timeout.min(LOST_AFTER_MAX),
        pattern: (0..(size_max + OFFSETS).div_ceil(8)).flat_map(|at| super::load::mix(at).to_le_bytes()).collect(),
        over: AtomicBool::new(false),
        done: AtomicUsize::new(0),
        lanes: AtomicU64::new(0),
    });
    let (tell, tallies) = mpsc::channel();
    let own = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let lane =
        DatagramOptions::default().kernel_buffers(Some(KERNEL_BUFFER), None).queue_max(options.pipeline.max(1024));
    let client = (0..options.connections).fold(Server::new().engine(kind).tick(TICK), |client, _| {
        let (plan, tell) = (Arc::clone(&plan), tell.clone());
        client.udp_with(own, lane.clone(), move || Lane::new(Arc::clone(&plan), tell.clone()))
    });
    let (began, cpu) = (Instant::now(), process_cpu());
    let client = client.start()?;
    drop(tell);
    let is_done = || plan.done.load(Ordering::Acquire) >= options.connections;
    while !is_done() && (options.iterations.is_some() || began.elapsed() < options.duration) {
        thread::sleep(Duration::from_millis(5));
    }
    plan.over.store(true, Ordering::Release);
    let end = Instant::now() + 3 * plan.lost_after;
    while !is_done() && Instant::now() < end {
        thread::sleep(Duration::from_millis(5));
    }
    let cpu = process_cpu().zip(cpu).map(|(after, before)| after.saturating_sub(before).as_secs_f64());
    let engine = client.engine().name();
    client.handle().shutdown(Duration::ZERO);
    client.join()?;
    let mut sum = Tally::default();
    while let Ok(part) = tallies.try_recv() {
        sum.add(&part);
    }
    Ok(sum.figures(engine, options, began, cpu))
}

/// What a connection counted.
struct Tally {
    latencies: Histogram<u64>,
    sent: u64,
    returned: u64,
    bytes: u64,
    lost: u64,
    late: u64,
    corrupted: u64,
    duplicated: u64,
    unreachable: u64,
    last: Option<Instant>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies =
            Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("the bounds are constants that make sense");
        let (sent, returned, bytes, lost, late, corrupted, duplicated, unreachable) = (0, 0, 0, 0, 0, 0, 0, 0);
        Self { latencies, sent, returned, bytes, lost, late, corrupted, duplicated, unreachable, last: None }
    }
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.sent += other.sent;
        self.returned += other.returned;
        self.bytes += other.bytes;
        self.lost += other.lost;
        self.late += other.late;
        self.corrupted += other.corrupted;
        self.duplicated += other.duplicated;
        self.unreachable += other.unreachable;
        self.last = self.last.max(other.last);
    }

    fn figures(&self, engine: &'static str, options: &Bench, began: Instant, cpu: Option<f64>) -> Figures {
        let seconds = self.last.map_or(0.0, |last| last.saturating_duration_since(began).as_secs_f64());
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let quantile = |q| self.latencies.value_at_quantile(q) as f64 / 1e3;
        Figures {
            engine,
            connections: options.connections,
            window: options.pipeline,
            seconds,
            sent: self.sent,
            returned: self.returned,
            lost: self.lost,
            late: self.late,
            corrupted: self.corrupted,
            duplicated: self.duplicated,
            unreachable: self.unreachable,
            returned_per_second: rate(self.returned as f64),
            megabytes_per_second: rate(self.bytes as f64 / 1e6),
            latency_p50_microseconds: quantile(0.5),
            latency_p99_microseconds: quantile(0.99),
            latency_max_microseconds: self.latencies.max() as f64 / 1e3,
            cpu_seconds: cpu,
        }
    }
}

/// A datagram that was sent.
#[derive(Clone, Copy)]
enum Fate {
    UnderWay(Instant),
    Returned,
    Lost,
}

/// One connection's loop.
struct Lane {
    plan: Arc<Plan>,
    out: mpsc::Sender<Tally>,
    number: u64,
    quota: Option<u64>,
    /// Number of the first of `fates`.
    first: u64,
    fates: VecDeque<Fate>,
    under_way: usize,
    done: bool,
    tally: Tally,
}

impl Lane {
    fn new(plan: Arc<Plan>, out: mpsc::Sender<Tally>) -> Self {
        let number = plan.lanes.fetch_add(1, Ordering::Relaxed);
        let share = |all: u64| all / plan.connections + u64::from(number < all % plan.connections);
        let quota = plan.iterations.map(share);
        let (fates, tally) = (VecDeque::new(), Tally::default());
        Self { plan, out, number, quota, first: 0, fates, under_way: 0, done: false, tally }
    }

    /// The bytes behind the header of a datagram.
    fn body(&self, number: u64) -> &[u8] {
        let random = super::load::mix(super::load::mix(self.number) ^ number);
        let length = self.plan.size_min + (random >> 32) % (self.plan.size_max - self.plan.size_min + 1);
        &self.plan.pattern[(random % OFFSETS) as usize..][..length as usize - HEADER_BYTES]
    }

    fn fill(&mut self, socket: &mut Datagrams<'_>) {
        let now = Instant::now();
        while self.under_way < self.plan.window && self.quota != Some(0) && !self.plan.over.load(Ordering::Acquire) {
            let number = self.first + self.fates.len() as u64;
            let data = [&self.number.to_le_bytes()[..], &number.to_le_bytes(), self.body(number)].concat();
            if !socket.send_to(self.plan.to, data).is_queued() {
                return; // `writable` goes on.
            }
            self.fates.push_back(Fate::UnderWay(now));
            self.under_way += 1;
            self.tally.sent += 1;
            self.quota = self.quota.map(|left| left - 1);
        }
        if self.under_way == 0 && !std::mem::replace(&mut self.done, true) {
            self.plan.done.fetch_add(1, Ordering::Release);
        }
    }

    fn judge(&mut self, data: &[u8]) {
        let (Some(lane), Some(number)) = (word(data, 0), word(data, 8)) else {
            self.tally.corrupted += 1;
            return;
        };
        let known = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if lane != self.number
            || number >= self.first + self.fates.len() as u64
            || self.body(number) != &data[HEADER_BYTES..]
        {
            self.tally.corrupted += 1;
            return;
        }
        let Some(fate) = known.and_then(|at| self.fates.get_mut(at)) else {
            self.tally.duplicated += 1;
            return;
        };
        match std::mem::replace(fate, Fate::Returned) {
            Fate::UnderWay(sent) => {
                let now = Instant::now();
                let latency = now.saturating_duration_since(sent).as_nanos();
                self.tally.latencies.saturating_record(u64::try_from(latency).unwrap_or(u64::MAX).max(1));
                self.tally.returned += 1;
                self.tally.bytes += data.len() as u64;
                self.tally.last = Some(now);
                self.under_way -= 1;
            }
            Fate::Lost => self.tally.late += 1,
            Fate::Returned => self.tally.duplicated += 1,
        }
        self.forget();
    }

    /// Forgets what has ended, from the front; and lost ones only when there are too many.
    fn forget(&mut self) {
        while let Some(fate) = self.fates.front() {
            match fate {
                Fate::Returned => {}
                Fate::Lost if self.fates.len() > LOST_MAX => {}
                _ => return,
            }
            self.fates.pop_front();
            self.first += 1;
        }
    }

    fn give_up_lost(&mut self, all: bool) {
        let now = Instant::now();
        for fate in &mut self.fates {
            if let Fate::UnderWay(sent) = fate
                && (all || now.saturating_duration_since(*sent) > self.plan.lost_after)
            {
                *fate = Fate::Lost;
                self.tally.lost += 1;
                self.under_way -= 1;
            }
        }
        self.forget();
    }
}

fn word(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(data.get(at..at + 8)?.try_into().ok()?))
}

impl DatagramHandler for Lane {
    type Peer = ();

    fn open(&mut self, socket: &mut Datagrams<'_>) {
        self.fill(socket);
    }

    fn datagram(&mut self, socket: &mut Datagrams<'_>, (): &mut (), datagram: Datagram) {
        if datagram.from == self.plan.to {
            self.judge(&datagram.data);
            self.fill(socket);
        }
    }

    fn failed(&mut self, _: &mut Datagrams<'_>, _: Option<SocketAddr>, _: &std::io::Error) {
        self.tally.unreachable += 1;
    }

    fn writable(&mut self, socket: &mut Datagrams<'_>) {
        self.fill(socket);
    }

    fn tick(&mut self, socket: &mut Datagrams<'_>) {
        self.give_up_lost(false);
        self.fill(socket);
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.give_up_lost(true);
        // The driver reads it after the worker has ended.
        let _ = self.out.send(std::mem::take(&mut self.tally));
    }
}

fn write(report: &Report<'_>, options: &Bench) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let json = options.json.as_deref();
    if json == Some(Path::new("-")) {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
        return Ok(());
    }
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_string_pretty(report)? + "\n")
            .map_err(|error| Failure(format!("cannot write {}: {error}", path.display())))?;
    }
    let to = options.target();
    let (connections, window) = (options.connections, options.pipeline);
    writeln!(out, "datagrams of {} bytes, {connections} sockets, {window} under way on each, to {to}", options.size)?;
    for f in report.results {
        writeln!(
            out,
            "{:<9} {:.0} a second, {:.1} MB/s, p50 {:.1} us, p99 {:.1} us; sent {}, returned {}, lost {}, late {}, corrupted {}, duplicated {}, unreachable {}",
            f.engine,
            f.returned_per_second,
            f.megabytes_per_second,
            f.latency_p50_microseconds,
            f.latency_p99_microseconds,
            f.sent,
            f.returned,
            f.lost,
            f.late,
            f.corrupted,
            f.duplicated,
            f.unreachable
        )?;
    }
    for f in report.results.iter().filter(|f| !f.is_clean()) {
        eprintln!("ringport: {}: {} of {} datagrams came back as they were sent", f.engine, f.returned, f.sent);
    }
    Ok(())
}
