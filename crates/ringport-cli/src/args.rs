//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use ringport::{Address, EngineConfig, EngineKind, SPIN_MAX};
use serde::Serialize;
use tracing_subscriber::filter::LevelFilter;

use crate::services::{PIECE_BYTES_MAX, PIECE_BYTES_MIN};
use crate::units::{self, Sizes, Timeout, Warmup};

/// Most workers that the library runs.
const WORKERS_MAX: u64 = 1024;
/// Most connections of one benchmark: more than a machine has ports to one address.
const CONNECTIONS_MAX: u64 = 1_000_000;
/// Smallest send limit. Below, the pieces sent at a time would be mostly overhead.
const SEND_LIMIT_MIN: u64 = 1024;

/// Server, client and benchmark on one completion-based core: io_uring, epoll, kqueue or Windows' completion ports.
#[derive(Debug, Parser)]
#[command(name = "ringport", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ringport serve echo                               echo on 127.0.0.1:6628 with the best engine
  ringport serve echo --listen [::]:7000 --listen unix:/tmp/echo --workers 2
  ringport connect 127.0.0.1:6628 < file > copy     pipe a file through it
  ringport bench --engine all                       compare the engines of this machine
  ringport engines                                  what this machine offers, and why not

Exit codes: 0 success, 1 failure, 2 wrong usage.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve until SIGTERM or Ctrl-C, then drain and exit 0; a second signal exits at once
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(Serve),
    /// Connect standard input and output to a server
    #[command(after_help = CONNECT_EXAMPLES)]
    Connect(Connect),
    /// Measure an echo server in a closed loop and check every reply
    #[command(after_help = BENCH_EXAMPLES)]
    Bench(Bench),
    /// Show which engines work on this machine, and why others do not
    Engines(Engines),
}

const SERVE_EXAMPLES: &str = "\
When it accepts it prints one line for each listener to standard output:
  listening tcp 127.0.0.1:6628 engine=io_uring workers=2

Examples:
  ringport serve echo --workers 2 --pin
  ringport serve generate --listen 127.0.0.1:0 --send-limit 1MiB
  ringport serve files public --listen 0.0.0.0:8080
  ringport serve discard --listen unix:/run/sink --idle-timeout 30s
  ringport serve echo --listen 127.0.0.1:6628 --udp 127.0.0.1:6628

Durations are written 500ms, 30s, 5m (0 is off), sizes 64k, 10MiB.";

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// What to do with a connection
    #[arg(value_enum)]
    pub(crate) service: ServiceName,
    /// The folder to serve (files only)
    #[arg(value_name = "DIR", required_if_eq("service", "files"))]
    pub(crate) folder: Option<PathBuf>,
    /// Where to listen: HOST:PORT, [IPv6]:PORT or unix:PATH; may be given several times, port 0 picks a free one
    /// [default: 127.0.0.1:6628, unless --udp is given]
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<Address>,
    /// Where to serve datagrams: HOST:PORT or [IPv6]:PORT, also on the port of a listener; may be given several times
    #[arg(long, value_name = "ADDR", value_parser = ip_address)]
    pub(crate) udp: Vec<SocketAddr>,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// How it is written: as handlers that are called, or as a task for each connection
    #[arg(long, value_enum, default_value_t = Api::Handler)]
    pub(crate) api: Api,
    /// Threads that serve, each with connections of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=WORKERS_MAX))]
    pub(crate) workers: usize,
    /// Most connections at once; one more is accepted and closed
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_connections: usize,
    /// Most connections at once from one IP address (0 = off)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) max_per_address: usize,
    /// Most new connections a second, and at once (0 = off)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) accept_rate: u64,
    /// Most datagrams a second from one peer, and at once (0 = off)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) udp_rate: u64,
    /// Most bytes received a second on a connection, and at once (0 = off)
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = units::bytes)]
    pub(crate) receive_rate: u64,
    /// Most bytes that may wait to be sent on a connection
    #[arg(long, value_name = "BYTES", default_value = "10MiB", value_parser = send_limit)]
    pub(crate) send_limit: u64,
    /// Bytes of a piece of the stream; what is queued of them leaves at a time (generate only)
    #[arg(long, value_name = "BYTES", default_value = "64k", value_parser = piece)]
    pub(crate) piece: u64,
    /// What happens when more is to be sent
    #[arg(long, value_enum, default_value_t = OverLimitName::Disconnect)]
    pub(crate) over_limit: OverLimitName,
    /// Most bytes that may wait on all connections together
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = units::bytes)]
    pub(crate) memory_limit: u64,
    /// Close connections on which nothing moved for this long (0 = off)
    #[arg(long, value_name = "DUR", default_value = "5m")]
    pub(crate) idle_timeout: Timeout,
    /// Close connections on which nothing was received for this long (0 = off)
    #[arg(long, value_name = "DUR", default_value = "0")]
    pub(crate) read_timeout: Timeout,
    /// Close connections that read nothing of what waits for them for this long (0 = off)
    #[arg(long, value_name = "DUR", default_value = "1m")]
    pub(crate) write_timeout: Timeout,
    /// Close connections that are this old (0 = off)
    #[arg(long, value_name = "DUR", default_value = "0")]
    pub(crate) lifetime: Timeout,
    /// How connections are spread over workers
    #[arg(long, value_enum, default_value_t = SpreadName::ReusePort)]
    pub(crate) spread: SpreadName,
    /// Bind each worker to a core (Linux)
    #[arg(long)]
    pub(crate) pin: bool,
    /// Poll before sleeping: auto = where that takes less processor time than to sleep and be woken (io_uring, epoll, kqueue),
    /// DUR = for at most this long and for the latency's sake (at most 10ms), 0 = never
    #[arg(long, value_name = "auto|DUR", default_value = "auto", value_parser = spin)]
    pub(crate) spin: Spin,
    /// Send pieces of at least so many bytes without copying them into the kernel (io_uring only; 0 = off)
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = units::bytes)]
    pub(crate) zero_copy: u64,
    /// While more than 256 connections with large messages keep a worker busy: serve so many bytes of each in a row. The
    /// smaller a share, the shorter do the others wait, and the more does a message cost (io_uring only; 0 = message by message)
    #[arg(long, value_name = "BYTES", default_value = "128KiB", value_parser = units::bytes)]
    pub(crate) share: u64,
    /// How long connections may finish after the first signal
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = units::duration)]
    pub(crate) drain: Duration,
    /// Log to standard error: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    pub(crate) log: LevelFilter,
}

fn ip_address(text: &str) -> Result<SocketAddr, String> {
    match text.parse() {
        Ok(Address::Ip(address)) => Ok(address),
        Ok(Address::Unix(_)) => Err("datagrams need an IP address".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl Serve {
    /// Why these options make no sense together, if they do not.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match (self.service, self.api) {
            (ServiceName::Files, _) if !self.udp.is_empty() => {
                Some("files are not served as datagrams; leave --udp out")
            }
            (_, Api::Async) if self.udp_rate > 0 => {
                Some("only handlers count datagrams; leave --api or --udp-rate out")
            }
            (ServiceName::Files, Api::Async) => Some("files are served by handlers only; leave --api out"),
            (ServiceName::Files, Api::Handler) => None,
            _ => self.folder.as_ref().map(|_| "only files serves a folder"),
        }
    }
}

fn send_limit(text: &str) -> Result<u64, String> {
    let bytes = units::bytes(text)?;
    if bytes < SEND_LIMIT_MIN { Err("at least 1KiB is needed".to_owned()) } else { Ok(bytes) }
}

fn piece(text: &str) -> Result<u64, String> {
    let bytes = units::bytes(text)?;
    let fits = (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(PIECE_BYTES_MIN);
    if fits { Ok(bytes) } else { Err("a multiple of 256 up to 1MiB is needed".to_owned()) }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ServiceName {
    /// Send back what arrives
    Echo,
    /// Drop what arrives
    Discard,
    /// Send the bytes 0 to 255 over and over
    Generate,
    /// Serve the files of a folder over HTTP/1.1
    Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Api {
    /// Handlers (event-driven)
    Handler,
    /// Tasks (async/await); a send beyond the limit waits
    Async,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OverLimitName {
    /// Close the connection
    Disconnect,
    /// Take what has arrived, and read no more until the peer has read
    Wait,
    /// Refuse it; the echo holds it back, and reads no more until the peer has read
    Refuse,
    /// Drop the oldest messages that have not started
    DropOldest,
    /// Drop the message
    DropNewest,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum SpreadName {
    /// Each worker accepts, the kernel chooses by a hash
    ReusePort,
    /// One worker accepts and hands to the one with the fewest
    LeastLoaded,
}

const CONNECT_EXAMPLES: &str = "\
At the end of input the sending direction is closed; what the peer still sends is written out until it closes too.
The exit code is 0 when the peer closed in order, and 1 when it refused or reset the connection.

Examples:
  ringport connect 127.0.0.1:6628 < file > copy
  echo hello | ringport connect [::1]:6628
  ringport connect unix:/tmp/echo --protocol lines
  echo hello | ringport connect --udp 127.0.0.1:6628   each line is a datagram, each datagram is written out";

#[derive(Debug, Args)]
pub(crate) struct Connect {
    /// Where to: HOST:PORT, [IPv6]:PORT or unix:PATH
    #[arg(value_name = "ADDR")]
    pub(crate) address: Address,
    /// Send each line of the input as a datagram, and write out what comes back until nothing did for a second
    #[arg(long)]
    pub(crate) udp: bool,
    /// raw passes bytes on as they come; lines sends and prints only whole lines (of up to 64 KiB)
    #[arg(long, value_enum, default_value_t = Protocol::Raw)]
    pub(crate) protocol: Protocol,
    #[command(flatten)]
    pub(crate) engine: Engine,
    /// Log to standard error: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = log_level)]
    pub(crate) log: LevelFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Raw,
    Lines,
}

const BENCH_EXAMPLES: &str = "\
Each connection keeps PIPELINE requests under way and sends the next when a reply has come. Every reply is compared with its
request; a wrong, missing or late one makes the exit code 1.

Examples:
  ringport bench                                    own echo server on loopback, 50 connections, 64 bytes, 5 s
  ringport bench --engine all --connections 1000 --size 1k
  ringport bench --engine all --api async           the same, with a task for each connection of the own server
  ringport bench 127.0.0.1:6628 --size 1..16k --pipeline 16 --iterations 1000000 --json result.json
  ringport bench --udp --connections 100 --pipeline 16       100 sockets with 16 datagrams under way on each";

#[derive(Clone, Debug, Args)]
pub(crate) struct Bench {
    /// An echo server; without, one is started here on 127.0.0.1
    #[arg(value_name = "ADDR")]
    pub(crate) address: Option<Address>,
    /// Send datagrams: every one is accounted for as returned or lost, and a loss makes the exit code 1
    #[arg(long)]
    pub(crate) udp: bool,
    /// Engine of the load, and of the own server: auto, all, io_uring, epoll, kqueue, iocp, rio
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = engines_to_measure)]
    pub(crate) engine: EnginesToMeasure,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = RangedU64ValueParser::<usize>::new().range(1..=CONNECTIONS_MAX))]
    pub(crate) connections: usize,
    /// Bytes of a message: a size, or MIN..MAX for random sizes
    #[arg(long, value_name = "BYTES|MIN..MAX", default_value = "64")]
    pub(crate) size: Sizes,
    /// Requests under way on each connection
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=65_536))]
    pub(crate) pipeline: usize,
    /// How long to measure
    #[arg(long, value_name = "DUR", default_value = "5s", value_parser = units::duration)]
    pub(crate) duration: Duration,
    /// Measure this many messages instead of a time
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) iterations: Option<u64>,
    /// Messages, or a time, before measuring begins
    #[arg(long, value_name = "N|DUR", default_value = "1s")]
    pub(crate) warmup: Warmup,
    /// Threads of the load, and of the own server
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=WORKERS_MAX))]
    pub(crate) workers: usize,
    /// How the own server is written: as handlers that are called, or as a task for each connection
    #[arg(long, value_enum, default_value_t = Api::Handler, conflicts_with = "address")]
    pub(crate) api: Api,
    /// Poll before sleeping, in the load and in the own server, see `serve --help`
    #[arg(long, value_name = "auto|DUR", default_value = "auto", value_parser = spin)]
    pub(crate) spin: Spin,
    /// Bytes that the own server serves of each connection in a row, see `serve --help`
    #[arg(long, value_name = "BYTES", default_value = "128KiB", value_parser = units::bytes, conflicts_with = "address")]
    pub(crate) share: u64,
    /// A reply is late after this time, and missing if it has not come this long after the end
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = positive_duration)]
    pub(crate) timeout: Duration,
    /// Write parameters, machine and results as JSON to a file; - is standard output, instead of the table
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Show no progress bar
    #[arg(long)]
    pub(crate) no_progress: bool,
    /// Log to standard error: off, error, warn, info, debug, trace
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = log_level)]
    pub(crate) log: LevelFilter,
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = units::duration(text)?;
    if duration.is_zero() { Err("it must be more than 0".to_owned()) } else { Ok(duration) }
}

impl Bench {
    /// How the engine of the load is opened.
    pub(crate) fn engine_config(&self) -> EngineConfig {
        let mut config = EngineConfig::default();
        config.spin = self.spin.0;
        config
    }

    /// What is measured, for the first line of a table.
    pub(crate) fn target(&self) -> String {
        match (&self.address, self.api) {
            (Some(address), _) => address.to_string(),
            (None, Api::Handler) => "own server".to_owned(),
            (None, Api::Async) => "own server of tasks".to_owned(),
        }
    }

    /// How the own server is written; `None` where another is measured.
    pub(crate) fn own_api(&self) -> Option<Api> {
        self.address.is_none().then_some(self.api)
    }

    /// How that of the own server is opened.
    pub(crate) fn server_config(&self) -> EngineConfig {
        let mut config = self.engine_config();
        config.share_bytes = Some(self.share);
        config
    }
}

/// What `--spin` says. `None`: the engine finds out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spin(pub(crate) Option<Duration>);

fn spin(text: &str) -> Result<Spin, String> {
    if text == "auto" {
        return Ok(Spin(None));
    }
    let duration = units::duration(text).map_err(|error| format!("{error}, or \"auto\""))?;
    if duration > SPIN_MAX { Err(format!("at most {SPIN_MAX:?} are useful")) } else { Ok(Spin(Some(duration))) }
}

/// What `bench --engine` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnginesToMeasure {
    Auto,
    All,
    One(EngineKind),
}

fn engines_to_measure(name: &str) -> Result<EnginesToMeasure, String> {
    match name {
        "auto" => Ok(EnginesToMeasure::Auto),
        "all" => Ok(EnginesToMeasure::All),
        name => engine_kind(name).map(EnginesToMeasure::One),
    }
}

fn engine_kind(name: &str) -> Result<EngineKind, String> {
    name.parse().map_err(|error: ringport::SelectionError| error.to_string())
}

#[derive(Debug, Args)]
pub(crate) struct Engines {
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// The choice of an engine.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Engine {
    /// Engine: auto (the best that works here), io_uring, epoll, kqueue, iocp, rio; see `ringport engines`
    #[arg(long = "engine", value_name = "NAME", default_value = "auto", value_parser = engine_or_auto)]
    choice: EngineChoice,
}

impl Engine {
    /// The engine that was named; `None` for auto.
    pub(crate) fn kind(self) -> Option<EngineKind> {
        self.choice.0
    }
}

#[derive(Clone, Copy, Debug)]
struct EngineChoice(Option<EngineKind>);

fn engine_or_auto(name: &str) -> Result<EngineChoice, String> {
    if name == "auto" { Ok(EngineChoice(None)) } else { engine_kind(name).map(|kind| EngineChoice(Some(kind))) }
}

fn log_level(name: &str) -> Result<LevelFilter, String> {
    name.parse().map_err(|_| "the levels are off, error, warn, info, debug, trace".to_owned())
}
