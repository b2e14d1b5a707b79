//! `ringport bench`: a closed loop over an echo server, with every reply checked.
//!
//! ```text
//! connect all ─► go ─► warm up ─► measure ─► end: no new requests ─► replies under way ─► close
//! ```
//!
//! This file moves the run from phase to phase; `load.rs` is the handler of the connections and `report.rs` shows what
//! came out.

mod load;
mod report;
mod udp;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use load::{Load, Plan, Tally};
use report::{Figures, Outcome, Report, Row};
use ringport::{
    Address, Client, ConnectionId, ConnectionOptions, EngineConfig, EngineKind, OverLimit, Running, Selection, Server,
    ServerHandle, SocketOptions,
};

use crate::args::{Api, Bench, EnginesToMeasure};
use crate::services::Echo;
use crate::units::Warmup;
use crate::{Failure, tasks};

/// Where the own server listens.
const OWN_ADDRESS: &str = "127.0.0.1:0";
/// How often the run is looked at.
const STEP: Duration = Duration::from_millis(5);
/// Time for connections to end in order once all replies are in.
const CLOSING: Duration = Duration::from_secs(2);

/// Measures one or all engines and prints what came out.
pub(crate) fn run(options: &Bench) -> Result<ExitCode, Failure> {
    if options.udp {
        return udp::run(options);
    }
    let rows = match options.engine {
        EnginesToMeasure::Auto => vec![measure(options, None)?],
        EnginesToMeasure::One(kind) => vec![measure(options, Some(kind))?],
        EnginesToMeasure::All => every_engine(options)?,
    };
    let report = Report::new(options, rows);
    report.write(options.json.as_deref())?;
    Ok(if report.is_clean() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Every engine in turn; those that do not work here as rows that say why.
fn every_engine(options: &Bench) -> Result<Vec<Row>, Failure> {
    let candidates = Selection::probe(&EngineConfig::default());
    let mut rows = Vec::new();
    for kind in EngineKind::ALL.into_iter().filter(|kind| *kind != EngineKind::Sim) {
        let verdict = candidates.iter().find(|candidate| candidate.kind == kind).map(|found| &found.verdict);
        let reason = match verdict {
            Some(Ok(_)) => {
                rows.push(measure(options, Some(kind))?);
                continue;
            }
            Some(Err(reason)) => reason.clone(),
            None => format!("exists only {}", crate::engines::home(kind)),
        };
        rows.push(Row { engine: kind.name(), outcome: Outcome::Unavailable { reason } });
    }
    if rows.iter().all(|row| matches!(row.outcome, Outcome::Unavailable { .. })) {
        return Err(Failure("no engine works on this machine; see `ringport engines`".to_owned()));
    }
    Ok(rows)
}

/// One engine: its own server if none was named, the load, and the end of both.
fn measure(options: &Bench, kind: Option<EngineKind>) -> Result<Row, Failure> {
    let Some(address) = &options.address else {
        let server = Server::new().engine(kind).engine_config(options.server_config()).workers(options.workers);
        let server = match options.api {
            Api::Handler => server.listen(OWN_ADDRESS, || Echo { refused_above: None }),
            Api::Async => server.listen_async(OWN_ADDRESS, tasks::echo),
        };
        let server = server.start()?;
        let address =
            server.addresses().first().cloned().ok_or_else(|| Failure("the own server has no address".into()))?;
        let row = Driver::start(options, kind, address)?.drive();
        server.handle().shutdown(CLOSING);
        server.join()?;
        return row;
    };
    Driver::start(options, kind, address.clone())?.drive()
}

/// The load while it runs.
struct Driver<'a> {
    options: &'a Bench,
    plan: Arc<Plan>,
    client: Running,
    handle: ServerHandle,
    opened: mpsc::Receiver<ConnectionId>,
    tallies: mpsc::Receiver<Tally>,
    bar: ProgressBar,
}

/// When measuring began, and the processor time used before it.
struct Began {
    at: Instant,
    cpu: Option<Duration>,
}

impl<'a> Driver<'a> {
    fn start(options: &'a Bench, kind: Option<EngineKind>, to: Address) -> Result<Self, Failure> {
        let plan = Arc::new(Plan::new(options));
        let (tell_opened, opened) = mpsc::channel();
        let (tell_tally, tallies) = mpsc::channel();
        let shared = Arc::clone(&plan);
        let make = move || Load::new(Arc::clone(&shared), tell_opened.clone(), tell_tally.clone());
        let under_way = (options.pipeline as u64).saturating_mul(*options.size.0.end() as u64);
        let connection = ConnectionOptions::default()
            .send_limit(under_way.saturating_mul(2).max(10 << 20), OverLimit::Disconnect)
            .rest_when_full(false)
            .idle_timeout(None)
            .linger(CLOSING / 2);
        let client = Client::new()
            .engine(kind)
            .engine_config(options.engine_config())
            .workers(options.workers)
            .tick(load::TICK)
            .connect_with(to, options.connections, SocketOptions::default(), connection, make)
            .start()?;
        let bar = progress_bar(options, client.engine());
        Ok(Self { options, plan, handle: client.handle(), client, opened, tallies, bar })
    }

    /// Takes the run through its phases.
    fn drive(self) -> Result<Row, Failure> {
        let connections = self.connect();
        let began = if matches!(self.options.warmup, Warmup::Messages(0) | Warmup::Time(Duration::ZERO)) {
            let began = self.begin();
            self.go(&connections);
            began
        } else {
            self.go(&connections);
            self.warm_up();
            self.begin()
        };
        self.wait_for_end(&began);
        let cpu = report::process_cpu().zip(began.cpu).map(|(after, before)| after.saturating_sub(before));
        self.wait_for_replies();

        let Self { options, client, tallies, bar, handle, .. } = self;
        let engine = client.engine().name();
        handle.shutdown(Duration::ZERO);
        let ended = client.join();
        bar.finish_and_clear();
        ended?;
        let mut tally = Tally::default();
        while let Ok(part) = tallies.try_recv() {
            tally.add(part);
        }
        let unopened = options.connections.saturating_sub(connections.len()) as u64;
        tally.connect_failed = tally.connect_failed.max(unopened);
        let figures = Figures::new(&tally, connections.len(), began.at, cpu);
        Ok(Row { engine, outcome: Outcome::Measured(Box::new(figures)) })
    }

    /// Waits until every connection is open or has failed.
    fn connect(&self) -> Vec<ConnectionId> {
        self.bar.set_message("connecting");
        let deadline = Instant::now() + self.options.timeout.max(Duration::from_secs(1));
        let mut connections = Vec::with_capacity(self.options.connections);
        loop {
            let failed = self.plan.connects_failed.load(Ordering::Acquire);
            connections.extend(self.opened.try_iter());
            if connections.len() + failed >= self.options.connections || Instant::now() >= deadline {
                return connections;
            }
            thread::sleep(STEP);
        }
    }

    /// Requests sent from now on are measured.
    fn begin(&self) -> Began {
        self.bar.set_message("measuring");
        let began = Began { at: Instant::now(), cpu: report::process_cpu() };
        self.plan.measure();
        began
    }

    /// Starts every connection's loop.
    fn go(&self, connections: &[ConnectionId]) {
        let remote = self.handle.remote();
        for id in connections {
            // A mailbox that stays full belongs to a worker that has ended; joining it says why.
            let deadline = Instant::now() + self.options.timeout;
            while remote.message(*id, Box::new(load::Go)).is_err() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn warm_up(&self) {
        self.bar.set_message("warming up");
        let started = Instant::now();
        let enough = || match self.options.warmup {
            Warmup::Time(time) => started.elapsed() >= time,
            Warmup::Messages(messages) => self.plan.warm_replies.load(Ordering::Relaxed) >= messages,
        };
        while !enough() && !self.is_over() {
            thread::sleep(STEP);
        }
    }

    /// Until the time is over or the messages are done. Connections whose replies do not come give up by themselves.
    fn wait_for_end(&self, began: &Began) {
        while !self.is_over() {
            let passed = began.at.elapsed();
            match self.options.iterations {
                Some(_) => self.bar.set_position(self.plan.replies.load(Ordering::Relaxed)),
                None if passed >= self.options.duration => break,
                None => self.bar.set_position(passed.as_millis() as u64),
            }
            thread::sleep(STEP);
        }
        self.plan.end(Instant::now());
    }

    /// Waits for the replies under way.
    fn wait_for_replies(&self) {
        self.bar.set_message("finishing");
        let deadline = Instant::now() + 2 * self.options.timeout + CLOSING;
        while !self.is_over() && Instant::now() < deadline {
            thread::sleep(STEP);
        }
    }

    /// Whether every connection that was opened has ended.
    fn is_over(&self) -> bool {
        self.plan.ended.load(Ordering::Acquire) >= self.plan.opened.load(Ordering::Acquire)
    }
}

/// Indicatif shows it only where standard error is a terminal.
fn progress_bar(options: &Bench, engine: EngineKind) -> ProgressBar {
    let length = options.iterations.unwrap_or(options.duration.as_millis() as u64);
    let target = if options.no_progress { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length), target).with_prefix(engine.name());
    match ProgressStyle::with_template("{prefix:>9} {bar:40} {percent:>3} % {msg}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
