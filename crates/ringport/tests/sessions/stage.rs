//! The stage: a server and a client with handlers of the test's, on a real engine or in a simulation.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringport::{
    Address, Buf, Client, CloseReason, CloseReport, Connection, EngineConfig, EngineKind, Faults, Handler,
    ListenOptions, Selection, Server, Simulation, SocketOptions,
};
use socket2::SockRef;

/// Real time after which a test has failed.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Where a test plays.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Real(EngineKind),
    Sim { seed: u64, faults: Faults },
}

impl Stage {
    /// The engine, if it works here; otherwise says why the test is skipped. Registered I/O is stood in for.
    pub(crate) fn real(kind: EngineKind) -> Option<Self> {
        rio_standin::install();
        let candidates = Selection::probe(&EngineConfig::default());
        match candidates.into_iter().find(|candidate| candidate.kind == kind) {
            Some(candidate) => match candidate.verdict {
                Ok(_) => Some(Self::Real(kind)),
                Err(reason) => {
                    println!("skipped: {kind}: {reason}");
                    None
                }
            },
            None => {
                println!("skipped: {kind} does not exist on this platform");
                None
            }
        }
    }

    /// Simulations in which nothing is lost, in networks that are fast enough for the tests' deadlines: only pieces,
    /// order and moments are odd. The ledger test has all the rest.
    /// They are the same on every system, so that a few will do where they are slow (Wine).
    pub(crate) fn simulations() -> impl Iterator<Item = Self> {
        (0..if cfg!(windows) { 5 } else { 20 }).map(|seed| {
            let mut faults = Faults::drawn(seed).harmless();
            faults.buffer_max = faults.buffer_max.max(8192);
            faults.delay_max = faults.delay_max.min(Duration::from_micros(50));
            Self::Sim { seed, faults }
        })
    }

    pub(crate) fn is_simulated(&self) -> bool {
        matches!(self, Self::Sim { .. })
    }

    /// Whether the engine is one of Windows.
    pub(crate) fn is_windows(&self) -> bool {
        matches!(self, Self::Real(EngineKind::Iocp | EngineKind::Rio))
    }

    /// Plays until `done`, then stops both sides. Panics when it takes too long.
    pub(crate) fn play(&self, server: Server, client: impl FnOnce(Address) -> Client, done: impl Fn() -> bool) {
        match self {
            Self::Real(kind) => {
                let server = server.engine(Some(*kind)).start().expect("the server starts");
                let client =
                    client(server.addresses()[0].clone()).engine(Some(*kind)).start().expect("the client starts");
                let end = Instant::now() + LIMIT;
                while !done() {
                    assert!(Instant::now() < end, "{kind}: nothing more happens: {:?}", server.handle().stats());
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(client);
                server.handle().shutdown(Duration::ZERO);
                server.join().expect("the server ends in order");
            }
            Self::Sim { seed, faults } => {
                let mut simulation = Simulation::new(*seed, faults.clone());
                simulation.serve(server).expect("the server starts");
                let address = SIMULATED.parse::<Address>().expect("an address");
                simulation.connect(client(address)).expect("the client starts");
                let finished =
                    simulation.run_until(&done).unwrap_or_else(|error| panic!("seed {seed} {faults:?}: {error}"));
                assert!(finished, "seed {seed}: all workers ended before the test was done");
            }
        }
    }
}

/// Where a test's server listens: `play` takes port 0 on real engines and this one in a simulation.
pub(crate) const SIMULATED: &str = "127.0.0.1:1000";

/// The address to listen on.
pub(crate) fn listen_on(stage: &Stage) -> &'static str {
    if stage.is_simulated() { SIMULATED } else { "127.0.0.1:0" }
}

/// Makes a test of `fn name(stage: &Stage)` for each engine and for the simulator.
macro_rules! stages {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            use crate::stage::Stage;
            use ringport::EngineKind;

            #[test]
            fn io_uring() {
                if let Some(stage) = Stage::real(EngineKind::Uring) {
                    super::$name(&stage);
                }
            }

            #[test]
            fn epoll() {
                if let Some(stage) = Stage::real(EngineKind::Epoll) {
                    super::$name(&stage);
                }
            }

            #[test]
            fn kqueue() {
                if let Some(stage) = Stage::real(EngineKind::Kqueue) {
                    super::$name(&stage);
                }
            }

            #[test]
            fn iocp() {
                if let Some(stage) = Stage::real(EngineKind::Iocp) {
                    super::$name(&stage);
                }
            }

            #[test]
            fn rio() {
                if let Some(stage) = Stage::real(EngineKind::Rio) {
                    super::$name(&stage);
                }
            }

            #[test]
            fn sim() {
                for stage in Stage::simulations() {
                    super::$name(&stage);
                }
            }
        })*
    };
}
pub(crate) use stages;

/// What one side saw, for all its connections together.
#[derive(Default, Debug)]
pub(crate) struct Seen {
    pub(crate) opened: usize,
    pub(crate) received: Vec<u8>,
    pub(crate) peer_closed: usize,
    pub(crate) closed: Vec<Closed>,
    /// Breaches of the order of callbacks.
    pub(crate) breaches: Vec<String>,
    pub(crate) connect_failed: usize,
    pub(crate) notes: Vec<String>,
}

/// A close report, kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Closed {
    pub(crate) reason: CloseReason,
    pub(crate) accepted: u64,
    pub(crate) handed: u64,
    pub(crate) unacked: Option<u64>,
    pub(crate) received: u64,
    pub(crate) failed: bool,
    pub(crate) dropped_messages: u64,
    pub(crate) dropped_bytes: u64,
}

/// Shared by the test and its handlers.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Seen>>);

impl Log {
    pub(crate) fn see(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// All connections that were opened are closed, and there were `count`.
    pub(crate) fn all_closed(&self, count: usize) -> bool {
        let seen = self.see();
        seen.closed.len() == count
    }

    pub(crate) fn note_close(&self, report: &CloseReport) {
        self.see().closed.push(Closed {
            reason: report.reason,
            accepted: report.accepted,
            handed: report.handed_to_kernel,
            unacked: report.unacked,
            received: report.received,
            failed: report.error.is_some(),
            dropped_messages: report.dropped_messages,
            dropped_bytes: report.dropped_bytes,
        });
    }

    pub(crate) fn reasons(&self) -> Vec<CloseReason> {
        self.see().closed.iter().map(|closed| closed.reason).collect()
    }

    pub(crate) fn no_breaches(&self) {
        let seen = self.see();
        assert!(seen.breaches.is_empty(), "{:?}", seen.breaches);
        assert_eq!(seen.opened, seen.closed.len(), "every open has one close");
    }
}

/// What a [`Player`] does on its connections.
type Act<S> = Arc<dyn Fn(&mut Connection<'_, S>, What<'_>) + Send + Sync>;

/// A callback with what it brought.
pub(crate) enum What<'a> {
    Open,
    Data(&'a mut Option<Buf>),
    PeerClosed,
    Full,
    Writable,
    Flushed(u64),
    Heartbeat,
    Timer(u64),
    Message(ringport::Message),
    Close,
}

/// A handler that logs everything, checks the order of callbacks, and acts as the test says.
#[derive(Clone)]
pub(crate) struct Player {
    pub(crate) log: Log,
    act: Act<PlayerState>,
}

/// Where a connection of a [`Player`] is.
#[derive(Default)]
pub(crate) struct PlayerState {
    pub(crate) open: bool,
    pub(crate) closed: bool,
    /// Told that it is full, and not yet that it is writable again.
    full: bool,
    /// Bytes received on this connection.
    pub(crate) received: usize,
    /// For the test.
    pub(crate) number: usize,
}

impl Player {
    /// Does nothing but log, and closes when the peer does.
    pub(crate) fn new(log: &Log) -> Self {
        Self::with(log, |conn, what| {
            if let What::PeerClosed = what {
                conn.close();
            }
        })
    }

    /// Acts.
    pub(crate) fn with(
        log: &Log,
        act: impl Fn(&mut Connection<'_, PlayerState>, What<'_>) + Send + Sync + 'static,
    ) -> Self {
        Self { log: log.clone(), act: Arc::new(act) }
    }

    /// Reads, rests for a millisecond after each piece, and closes after the peer.
    pub(crate) fn dozing(log: &Log) -> Self {
        Self::with(log, |conn, what| match what {
            What::Data(_) => {
                conn.pause();
                conn.set_timer(Duration::from_millis(1), 0);
            }
            What::Timer(_) => conn.resume(),
            What::PeerClosed => conn.close(),
            _ => {}
        })
    }

    /// Sends everything back.
    pub(crate) fn echo(log: &Log) -> Self {
        Self::with(log, |conn, what| match what {
            What::Data(data) => {
                conn.send(data.take().expect("there is data"));
            }
            What::PeerClosed => conn.close(),
            _ => {}
        })
    }

    /// A factory for servers and clients.
    pub(crate) fn make(self) -> impl Fn() -> Self + Send + Sync + 'static {
        move || self.clone()
    }

    fn check(&self, ok: bool, what: &str) {
        if !ok {
            self.log.see().breaches.push(what.to_owned());
        }
    }
}

impl Handler for Player {
    type State = PlayerState;

    fn open(&mut self, conn: &mut Connection<'_, PlayerState>) {
        self.check(!conn.state.open && !conn.state.closed, "opened twice");
        conn.state.open = true;
        self.log.see().opened += 1;
        (self.act)(conn, What::Open);
    }

    fn data(&mut self, conn: &mut Connection<'_, PlayerState>, data: Buf) {
        self.check(conn.state.open && !conn.state.closed, "data outside of open and close");
        self.check(!data.is_empty(), "empty data");
        conn.state.received += data.len();
        self.log.see().received.extend_from_slice(&data);
        (self.act)(conn, What::Data(&mut Some(data)));
    }

    fn peer_closed(&mut self, conn: &mut Connection<'_, PlayerState>) {
        self.check(conn.state.open && !conn.state.closed, "peer_closed outside of open and close");
        self.log.see().peer_closed += 1;
        (self.act)(conn, What::PeerClosed);
    }

    fn full(&mut self, conn: &mut Connection<'_, PlayerState>) {
        self.check(conn.state.open && !conn.state.closed, "full outside of open and close");
        self.check(!std::mem::replace(&mut conn.state.full, true), "full twice without writable");
        (self.act)(conn, What::Full);
    }

    fn flushed(&mut self, conn: &mut Connection<'_, PlayerState>, token: u64) {
        self.check(conn.state.open && !conn.state.closed, "flushed outside of open and close");
        (self.act)(conn, What::Flushed(token));
    }

    fn writable(&mut self, conn: &mut Connection<'_, PlayerState>) {
        self.check(conn.state.open && !conn.state.closed, "writable outside of open and close");
        conn.state.full = false;
        (self.act)(conn, What::Writable);
    }

    fn timer(&mut self, conn: &mut Connection<'_, PlayerState>, _: ringport::TimerId, token: u64) {
        self.check(conn.state.open && !conn.state.closed, "timer outside of open and close");
        (self.act)(conn, What::Timer(token));
    }

    fn heartbeat(&mut self, conn: &mut Connection<'_, PlayerState>) {
        self.check(conn.state.open && !conn.state.closed, "heartbeat outside of open and close");
        (self.act)(conn, What::Heartbeat);
    }

    fn message(&mut self, conn: &mut Connection<'_, PlayerState>, message: ringport::Message) {
        self.check(conn.state.open && !conn.state.closed, "message outside of open and close");
        (self.act)(conn, What::Message(message));
    }

    fn close(&mut self, conn: &mut Connection<'_, PlayerState>, report: &CloseReport) {
        self.check(conn.state.open && !conn.state.closed, "closed twice or never opened");
        conn.state.closed = true;
        self.log.note_close(report);
        (self.act)(conn, What::Close);
    }

    fn connect_failed(&mut self, _: &mut ringport::Context, error: &std::io::Error) {
        let mut seen = self.log.see();
        seen.connect_failed += 1;
        seen.notes.push(error.to_string());
    }
}

/// Runs a test on each real engine that works here.
pub(crate) fn each_engine(test: impl Fn(EngineKind)) {
    for kind in EngineKind::ALL {
        if kind != EngineKind::Sim && Stage::real(kind).is_some() {
            test(kind);
        }
    }
}

/// A listener whose queue is full, with what fills it: whoever connects waits in vain.
pub(crate) fn full_backlog() -> (impl Sized, SocketAddr) {
    let mut options = ListenOptions::default();
    options.backlog = 1;
    let any = ringport_engine::socket::ip(SocketAddr::from(([127, 0, 0, 1], 0)));
    let listener = ringport_engine::Socket::listen(&any, &options, None).expect("listens");
    let to = listener.local_addr().expect("is bound").as_socket().expect("an IP address");
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&to, Duration::from_millis(200)) {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue of one is never full");
    }
    ((listener, waiting), to)
}

/// Options of the connections of a listener whose kernel buffers are small, so that a reader that stalls is soon noticed.
pub(crate) fn small_buffers() -> SocketOptions {
    let mut options = SocketOptions::default();
    (options.send_buffer, options.receive_buffer) = (Some(32 << 10), Some(32 << 10));
    options
}

/// The same for a listener.
pub(crate) fn listen_with_small_buffers() -> ListenOptions {
    let mut options = ListenOptions::default();
    options.socket = small_buffers();
    options
}

/// Bytes in which every position can be told from its neighbours.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(7) ^ (at >> 16)) as u8).collect()
}

/// Whether a reset that comes while nobody waits for bytes is found as a FIN afterwards, as under Wine 8. Found out with
/// plain sockets, several times because it depends on the moment.
pub(crate) fn loses_resets() -> bool {
    let lost = |_| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut near = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
        let (far, _) = listener.accept().expect("accepts");
        SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("takes the option");
        drop(far);
        std::thread::sleep(Duration::from_millis(100));
        near.read(&mut [0]).is_ok()
    };
    (0..5).any(lost)
}
