//! The connections of the benchmark.
//!
//! Every request is a slice of one shared pattern, sent without a copy. Where it begins and how long it is follows from
//! the connection and the number of the request, so that a swapped, stale or damaged reply differs from what is expected.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringport::{Buf, CloseReport, Connection, ConnectionId, Context, Handler, Message, TimerId};

use crate::args::Bench;

/// How often a worker publishes how far it is.
pub(super) const TICK: Duration = Duration::from_millis(20);
/// Places at which a request may begin in the pattern.
const OFFSETS: u64 = 64 * 1024;
/// Longest latency that is told apart: above, it counts as this much.
const LATENCY_MAX: Duration = Duration::from_secs(600);
/// Failures of which the report gives the words.
const SAMPLES_MAX: usize = 5;

const WARMING: u8 = 0;
const MEASURING: u8 = 1;
const ENDED: u8 = 2;

/// Starts a connection's loop.
pub(super) struct Go;

/// What all connections share.
pub(super) struct Plan {
    pattern: &'static [u8],
    size_min: u64,
    size_max: u64,
    pipeline: usize,
    connections: u64,
    iterations: Option<u64>,
    timeout: Duration,
    started: Instant,
    phase: AtomicU8,
    /// When the end began, in nanoseconds since `started`.
    ended_at: AtomicU64,
    next_lane: AtomicU64,
    pub(super) opened: AtomicUsize,
    pub(super) ended: AtomicUsize,
    pub(super) connects_failed: AtomicUsize,
    pub(super) warm_replies: AtomicU64,
    pub(super) replies: AtomicU64,
}

impl Plan {
    pub(super) fn new(options: &Bench) -> Self {
        let (size_min, size_max) = (*options.size.0.start() as u64, *options.size.0.end() as u64);
        Self {
            // Requests are slices of it, and a program runs few benchmarks, so it may live as long as the program.
            pattern: Box::leak(pattern(size_max + OFFSETS).into_boxed_slice()),
            size_min,
            size_max,
            pipeline: options.pipeline,
            connections: options.connections as u64,
            iterations: options.iterations,
            timeout: options.timeout,
            started: Instant::now(),
            phase: AtomicU8::new(WARMING),
            ended_at: AtomicU64::new(0),
            next_lane: AtomicU64::new(0),
            opened: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            connects_failed: AtomicUsize::new(0),
            warm_replies: AtomicU64::new(0),
            replies: AtomicU64::new(0),
        }
    }

    /// Requests sent from now on are measured.
    pub(super) fn measure(&self) {
        self.phase.store(MEASURING, Ordering::Release);
    }

    /// No new requests from `now` on.
    pub(super) fn end(&self, now: Instant) {
        self.ended_at.store((now - self.started).as_nanos() as u64, Ordering::Relaxed);
        self.phase.store(ENDED, Ordering::Release);
    }

    /// Where request `number` of a lane lies in the pattern: offset and length.
    fn place(&self, lane: u64, number: u64) -> (u32, u32) {
        let random = mix(mix(lane) ^ number);
        let length = self.size_min + (random >> 32) % (self.size_max - self.size_min + 1);
        ((random % OFFSETS) as u32, length as u32)
    }

    /// Requests that a lane is to have answered, if not time decides.
    fn quota(&self, lane: u64) -> Option<u64> {
        let iterations = self.iterations?;
        Some(iterations / self.connections + u64::from(lane < iterations % self.connections))
    }
}

fn pattern(bytes: u64) -> Vec<u8> {
    (0..bytes.div_ceil(8)).flat_map(|at| mix(at).to_le_bytes()).collect()
}

/// A hash of one number (the finalizer of SplitMix64): every bit of the input reaches every bit of the result.
pub(super) fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What a worker counted.
pub(super) struct Tally {
    /// Nanoseconds from sending a request to the last byte of its reply, of measured ones.
    pub(super) latencies: Histogram<u64>,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) last_reply: Option<Instant>,
    /// Replies that differ from their request, and bytes that no request asked for.
    pub(super) wrong: u64,
    /// Requests without a reply.
    pub(super) missing: u64,
    pub(super) late: u64,
    /// Connections that ended before the benchmark did.
    pub(super) broken: u64,
    pub(super) connect_failed: u64,
    /// The first failures in words.
    pub(super) samples: Vec<String>,
}

impl Default for Tally {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LATENCY_MAX.as_nanos() as u64, 3);
        Self {
            latencies: latencies.expect("the bounds are constants that make sense"),
            messages: 0,
            bytes: 0,
            last_reply: None,
            wrong: 0,
            missing: 0,
            late: 0,
            broken: 0,
            connect_failed: 0,
            samples: Vec::new(),
        }
    }
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.latencies.add(&other.latencies).expect("all histograms have the same bounds");
        self.messages += other.messages;
        self.bytes += other.bytes;
        self.last_reply = self.last_reply.max(other.last_reply);
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.late += other.late;
        self.broken += other.broken;
        self.connect_failed += other.connect_failed;
        self.samples.extend(other.samples);
        self.samples.truncate(SAMPLES_MAX);
    }

    fn sample(&mut self, words: impl FnOnce() -> String) {
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(words());
        }
    }
}

/// One connection's loop.
#[derive(Default)]
pub(super) struct Lane {
    number: u64,
    /// Requests sent so far.
    requests: u64,
    /// Measured requests that are still to be sent; without, time decides.
    quota: Option<u64>,
    under_way: VecDeque<Request>,
    /// Bytes of the first reply that have come.
    matched: usize,
    /// One of them was wrong.
    differs: bool,
    /// Nothing more is expected of the connection but its end.
    done: bool,
}

struct Request {
    number: u64,
    offset: u32,
    length: u32,
    measured: bool,
    sent: Instant,
}

/// The handler of one worker's connections.
pub(super) struct Load {
    plan: Arc<Plan>,
    opened: mpsc::Sender<ConnectionId>,
    out: mpsc::Sender<Tally>,
    tally: Tally,
    warm_replies: u64,
    /// What of `warm_replies` and of the tally's messages the plan shows.
    published: (u64, u64),
}

impl Load {
    pub(super) fn new(plan: Arc<Plan>, opened: mpsc::Sender<ConnectionId>, out: mpsc::Sender<Tally>) -> Self {
        Self { plan, opened, out, tally: Tally::default(), warm_replies: 0, published: (0, 0) }
    }

    /// Sends until the pipeline is full, or closes when there is nothing left to do.
    #[inline]
    fn fill(&mut self, conn: &mut Connection<'_, Lane>, now: Instant) {
        let phase = self.plan.phase.load(Ordering::Acquire);
        while conn.state.under_way.len() < self.plan.pipeline && may_send(conn.state, phase) {
            let (number, measured) = (conn.state.requests, phase == MEASURING);
            let (offset, length) = self.plan.place(conn.state.number, number);
            if !conn.send(&self.plan.pattern[offset as usize..][..length as usize]).is_queued() {
                return;
            }
            let lane = &mut *conn.state;
            lane.requests += 1;
            if let (true, Some(quota)) = (measured, &mut lane.quota) {
                *quota -= 1;
            }
            lane.under_way.push_back(Request { number, offset, length, measured, sent: now });
        }
        if conn.state.under_way.is_empty() {
            conn.state.done = true;
            conn.close();
        }
    }

    /// The first request under way has its whole reply.
    #[inline]
    fn complete(&mut self, lane: &mut Lane, now: Instant) {
        let Some(request) = lane.under_way.pop_front() else { return };
        let latency = now.saturating_duration_since(request.sent);
        lane.matched = 0;
        if std::mem::take(&mut lane.differs) {
            self.tally.wrong += 1;
            let (number, lane) = (request.number, lane.number);
            self.tally.sample(|| format!("connection {lane}: the reply to request {number} differs from the request"));
            return;
        }
        if latency > self.plan.timeout {
            self.tally.late += 1;
            let (number, lane) = (request.number, lane.number);
            self.tally.sample(|| format!("connection {lane}: the reply to request {number} came after {latency:?}"));
        }
        if request.measured {
            self.tally.latencies.saturating_record(latency.as_nanos().clamp(1, LATENCY_MAX.as_nanos()) as u64);
            self.tally.messages += 1;
            self.tally.bytes += u64::from(request.length);
            self.tally.last_reply = Some(now);
        } else {
            self.warm_replies += 1;
        }
    }

    /// Whether the first request under way has waited too long for its reply.
    fn is_missing(&self, lane: &Lane) -> bool {
        let Some(request) = lane.under_way.front() else { return false };
        let (now, timeout) = (Instant::now(), self.plan.timeout);
        let waited = now.saturating_duration_since(request.sent);
        if self.plan.phase.load(Ordering::Acquire) == ENDED {
            let ended = self.plan.started + Duration::from_nanos(self.plan.ended_at.load(Ordering::Relaxed));
            return waited > timeout && now.saturating_duration_since(ended) > timeout;
        }
        // While the run goes on a reply may still come, and is then counted as late.
        waited > 2 * timeout
    }
}

fn may_send(lane: &Lane, phase: u8) -> bool {
    match phase {
        WARMING => true,
        MEASURING => lane.quota != Some(0),
        _ => false,
    }
}

impl Handler for Load {
    type State = Lane;

    fn open(&mut self, conn: &mut Connection<'_, Lane>) {
        let number = self.plan.next_lane.fetch_add(1, Ordering::Relaxed);
        conn.state.number = number;
        conn.state.quota = self.plan.quota(number);
        self.plan.opened.fetch_add(1, Ordering::Release);
        // The driver listens for as long as it connects; later ones stay idle until the end.
        let _ = self.opened.send(conn.id());
    }

    fn message(&mut self, conn: &mut Connection<'_, Lane>, message: Message) {
        if message.is::<Go>() {
            conn.set_interval((self.plan.timeout / 4).clamp(Duration::from_millis(10), Duration::from_secs(1)), 0);
            self.fill(conn, Instant::now());
        }
    }

    #[inline]
    fn data(&mut self, conn: &mut Connection<'_, Lane>, data: Buf) {
        let now = Instant::now();
        let mut rest: &[u8] = &data;
        while !rest.is_empty() {
            let lane = &mut *conn.state;
            let Some(request) = lane.under_way.front() else {
                self.tally.wrong += 1;
                let (bytes, lane) = (rest.len(), lane.number);
                self.tally.sample(|| format!("connection {lane}: {bytes} bytes that no request asked for"));
                break;
            };
            let length = request.length as usize;
            let count = rest.len().min(length - lane.matched);
            let expected = &self.plan.pattern[request.offset as usize + lane.matched..][..count];
            lane.differs |= rest[..count] != *expected;
            lane.matched += count;
            rest = &rest[count..];
            if lane.matched == length {
                self.complete(lane, now);
            }
        }
        self.fill(conn, now);
    }

    fn timer(&mut self, conn: &mut Connection<'_, Lane>, _: TimerId, _: u64) {
        if self.is_missing(conn.state) {
            let (lane, timeout) = (conn.state.number, self.plan.timeout);
            self.tally.sample(|| format!("connection {lane}: no reply within {timeout:?}, given up"));
            conn.state.done = true;
            conn.abort();
        }
    }

    fn close(&mut self, conn: &mut Connection<'_, Lane>, report: &CloseReport) {
        let lane = &*conn.state;
        self.tally.missing += lane.under_way.len() as u64;
        if !lane.done {
            self.tally.broken += 1;
            let (lane, left) = (lane.number, lane.under_way.len());
            self.tally.sample(|| match &report.error {
                Some(error) => format!("connection {lane} ended with {left} replies missing: {error}"),
                None => format!("connection {lane} ended with {left} replies missing: {}", report.reason),
            });
        }
        self.plan.ended.fetch_add(1, Ordering::Release);
    }

    fn connect_failed(&mut self, _: &mut Context, error: &std::io::Error) {
        self.tally.connect_failed += 1;
        self.tally.sample(|| format!("a connect failed: {error}"));
        self.plan.connects_failed.fetch_add(1, Ordering::Release);
    }

    fn tick(&mut self, _: &mut Context) {
        let (warm, replies) = (self.warm_replies, self.tally.messages);
        self.plan.warm_replies.fetch_add(warm - self.published.0, Ordering::Relaxed);
        self.plan.replies.fetch_add(replies - self.published.1, Ordering::Relaxed);
        self.published = (warm, replies);
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // The driver reads it after the workers have ended.
        let _ = self.out.send(std::mem::take(&mut self.tally));
    }
}
