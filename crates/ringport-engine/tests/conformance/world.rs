//! Two engines, one of a server and one of a client, driven by one thread in turn.
//!
//! Every event passes through [`Side::apply`], which checks the laws about order on the way: a test that looks at
//! something else still fails when an engine breaks them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use ringport_engine::engine::sim::Network;
use ringport_engine::{
    Buf, Chunk, Close, ConnId, Engine, EngineConfig, Event, ListenOptions, ListenerId, Pool, PoolConfig, SendQueue,
    SockAddr, Socket, SocketOptions, Usual, Want,
};

use crate::subject::Setup;

/// Longest time of one wait for something, in real time.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most steps of one wait for something on the simulator.
const STEPS_MAX: u64 = 400_000;

/// A small generator for the tests' own choices.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    }

    /// A number of `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Bytes that look like no others.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

/// How a connection ended.
#[derive(Debug)]
pub struct End {
    pub why: Option<io::ErrorKind>,
    pub unsent: Vec<u8>,
}

/// What is known about one connection of one side.
#[derive(Debug, Default)]
pub struct Log {
    pub connected: bool,
    pub received: Vec<u8>,
    /// Received buffers, if the test keeps them.
    pub kept: Vec<Buf>,
    pub keep: bool,
    /// Sends back what it receives.
    pub echo: bool,
    /// Where in what it received an urgent byte came, if the test watches for that.
    pub marks: Option<Vec<usize>>,
    pub peer_closed: bool,
    pub ended: Option<End>,
    /// Not taken by the engine yet.
    pub outbox: SendQueue,
    /// Everything the test ever sent here.
    pub wanted: Vec<u8>,
    /// Bytes that the engine took, and those of them that the kernel took.
    pub taken: u64,
    pub sent: u64,
    pub in_flight: u64,
    pub closing: bool,
    /// The client's address, which both ends know.
    pub mark: Option<String>,
}

/// One engine and what it said.
pub struct Side<E> {
    pub engine: E,
    pub pool: Pool,
    pub conns: BTreeMap<ConnId, Log>,
    gone: BTreeSet<ConnId>,
    pub accepted: Vec<Socket>,
    pub accept_failures: u64,
    pub listeners_closed: Vec<ListenerId>,
    pub woken: u64,
    events_per_turn: usize,
    /// Most events of one turn so far.
    pub events_max: usize,
    asks_as_workers_do: bool,
}

impl<E: Engine> Side<E> {
    pub fn open(config: &EngineConfig, pool: Pool) -> Self {
        let engine = E::open(config, pool.clone()).expect("the probe said that it opens");
        Self {
            engine,
            pool,
            conns: BTreeMap::new(),
            gone: BTreeSet::new(),
            accepted: Vec::new(),
            accept_failures: 0,
            listeners_closed: Vec::new(),
            woken: 0,
            events_per_turn: config.events_per_turn,
            events_max: 0,
            asks_as_workers_do: false,
        }
    }

    /// A new connection. Its id was never seen before.
    pub fn register(&mut self, conn: ConnId) -> ConnId {
        assert!(!self.gone.contains(&conn), "{conn} was used before");
        assert!(self.conns.insert(conn, Log::default()).is_none(), "{conn} is in use");
        conn
    }

    pub fn log(&mut self, conn: ConnId) -> &mut Log {
        self.conns.get_mut(&conn).unwrap_or_else(|| panic!("{conn} is unknown"))
    }

    pub fn connect(&mut self, to: &SockAddr) -> ConnId {
        let conn = self.engine.connect(to, &SocketOptions::default()).expect("a socket can be made");
        self.register(conn)
    }

    pub fn adopt(&mut self, socket: Socket) -> ConnId {
        let mark = socket.peer_addr().ok().as_ref().map(mark_of);
        let conn = self.engine.adopt(socket).expect("an accepted socket is adopted");
        self.register(conn);
        self.log(conn).mark = mark;
        conn
    }

    /// Queues `data` behind what is queued.
    pub fn send(&mut self, conn: ConnId, data: impl Into<Chunk>) {
        let data = data.into();
        let log = self.log(conn);
        log.wanted.extend(content(&data));
        log.outbox.push(data);
        self.pump(conn);
    }

    pub fn close(&mut self, conn: ConnId, how: Close) {
        self.log(conn).closing = true;
        self.engine.close(conn, how);
    }

    /// Offers the outbox to the engine.
    pub fn pump(&mut self, conn: ConnId) {
        let Self { engine, conns, .. } = self;
        let Some(log) = conns.get_mut(&conn) else { return };
        if log.closing || log.ended.is_some() {
            return;
        }
        while !log.outbox.is_empty() {
            let before = log.outbox.bytes();
            let progress = engine.send(conn, &mut log.outbox);
            let took = before - log.outbox.bytes();
            if log.in_flight > 0 {
                assert_eq!(took, 0, "{conn}: a second send in flight");
                assert!(!progress.idle && progress.bytes == 0, "{conn}: {progress:?} while a send is in flight");
                return;
            }
            assert!(progress.bytes as u64 <= took, "{conn}: {progress:?} of {took} bytes");
            log.taken += took;
            log.sent += progress.bytes as u64;
            log.in_flight = took - progress.bytes as u64;
            if progress.idle {
                assert_eq!(log.in_flight, 0, "{conn}: idle with bytes in flight");
                assert!(took > 0, "{conn}: idle, yet nothing was taken");
            } else {
                return;
            }
        }
    }

    /// One turn. Says whether anything happened.
    pub fn turn(&mut self, deadline: Option<Instant>) -> bool {
        self.engine.wait(deadline).expect("the engine goes on");
        let mut events = 0;
        // In every second turn in the way in which a worker asks for events.
        self.asks_as_workers_do = !self.asks_as_workers_do;
        while let Some(event) = self.next_event() {
            events += 1;
            self.apply(event);
        }
        assert!(events <= self.events_per_turn, "{events} events in one turn");
        self.events_max = self.events_max.max(events);
        let waiting: Vec<ConnId> =
            self.conns.iter().filter(|(_, log)| !log.outbox.is_empty()).map(|(conn, _)| *conn).collect();
        waiting.into_iter().for_each(|conn| self.pump(conn));
        events > 0
    }

    fn next_event(&mut self) -> Option<Event> {
        let usual = if self.asks_as_workers_do { self.engine.next_usual() } else { Usual::default() };
        match (usual.received, usual.sent) {
            (Some((conn, buf)), None) => Some(Event::Received { conn, buf }),
            (None, Some((conn, bytes, idle))) => Some(Event::Sent { conn, bytes, idle }),
            (None, None) => self.engine.next(),
            both => panic!("two events at once: {both:?}"),
        }
    }

    fn live(&mut self, conn: ConnId, event: &str) -> &mut Log {
        assert!(!self.gone.contains(&conn), "{event} of {conn} after Closed");
        let log = self.log(conn);
        assert!(!log.closing, "{event} of {conn} after close");
        log
    }

    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Accepted { socket, .. } => self.accepted.push(socket),
            Event::AcceptFailed { .. } => self.accept_failures += 1,
            Event::ListenerClosed { listener } => self.listeners_closed.push(listener),
            Event::Connected { conn } => {
                let mark = self.engine.info(conn).ok().map(|info| mark_of(&info.local));
                let log = self.live(conn, "Connected");
                log.mark = mark;
                assert!(!log.connected, "{conn} connected twice");
                log.connected = true;
            }
            Event::Received { conn, buf } => self.received(conn, buf),
            Event::Sent { conn, bytes, idle } => {
                let log = self.live(conn, "Sent");
                assert!(bytes > 0 && bytes as u64 <= log.in_flight, "{conn}: Sent {bytes} of {}", log.in_flight);
                log.sent += bytes as u64;
                log.in_flight -= bytes as u64;
                assert_eq!(idle, log.in_flight == 0, "{conn}: idle of Sent");
                self.pump(conn);
            }
            Event::PeerClosed { conn } => {
                let log = self.live(conn, "PeerClosed");
                assert!(!log.peer_closed, "{conn}: two FINs");
                log.peer_closed = true;
            }
            Event::Closed { conn, why, unsent, unacked } => self.closed(conn, why, &unsent, unacked),
            Event::Woken => self.woken += 1,
            other => panic!("unknown event {other:?}"),
        }
    }

    fn received(&mut self, conn: ConnId, buf: Buf) {
        let watched = self.conns.get(&conn).is_some_and(|log| log.marks.is_some());
        let at_mark = watched && self.engine.at_mark(conn).unwrap_or(false);
        let log = self.live(conn, "Received");
        assert!(!buf.is_empty(), "{conn}: an empty buffer");
        assert!(!log.peer_closed, "{conn}: bytes after the FIN");
        log.received.extend_from_slice(&buf);
        if let Some(marks) = log.marks.as_mut().filter(|_| at_mark) {
            marks.push(log.received.len());
        }
        if log.keep {
            log.kept.push(buf);
        } else if log.echo {
            self.send(conn, buf);
        }
    }

    fn closed(&mut self, conn: ConnId, why: Option<io::Error>, unsent: &[Chunk], unacked: Option<u64>) {
        assert!(self.gone.insert(conn), "{conn} closed twice");
        let log = self.log(conn);
        let unsent: Vec<u8> = unsent.iter().flat_map(content).collect();
        assert!(unsent.len() as u64 <= log.in_flight, "{conn}: {} of {} came back", unsent.len(), log.in_flight);
        // A test that sends large files past the harness keeps its own account.
        let taken = log.wanted.get(..log.taken as usize).unwrap_or_default();
        assert!(unsent.is_empty() || taken.ends_with(&unsent), "{conn}: other bytes came back than were taken");
        // A FIN that is under way counts as a byte, see tcp(7).
        assert!(
            unacked.is_none_or(|unacked| unacked <= log.taken + 1),
            "{conn}: {unacked:?} of {} unacknowledged",
            log.taken
        );
        assert!(why.is_some() || log.closing, "{conn}: closed without a reason");
        log.ended = Some(End { why: why.map(|error| error.kind()), unsent });
    }

    /// Keeps no more record of a connection that is closed. An event of it would still fail the test.
    pub fn forget(&mut self, conn: ConnId) {
        assert!(self.gone.remove(&conn), "{conn} is not closed");
        self.conns.remove(&conn);
    }

    pub fn is_closed(&self, conn: ConnId) -> bool {
        self.gone.contains(&conn)
    }
}

/// Which side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Server,
    Client,
}

/// The two sides and the listener between them.
pub struct World<E> {
    pub server: Side<E>,
    pub client: Side<E>,
    pub listener: ListenerId,
    pub address: SockAddr,
    pub network: Option<Network>,
    pub dice: Dice,
    pub setup: Setup,
    buffer_max: usize,
    still: u32,
}

impl<E: Engine> World<E> {
    pub fn new(setup: &Setup) -> Self {
        Self::with(setup, setup.config(), PoolConfig::default().small_slots(64).large_slots(16))
    }

    pub fn with(setup: &Setup, config: EngineConfig, pool: PoolConfig) -> Self {
        Self::listening(setup, config, pool, &local_address())
    }

    pub fn listening(setup: &Setup, config: EngineConfig, pool: PoolConfig, address: &SockAddr) -> Self {
        let mut server = Side::<E>::open(&config, Pool::new(pool.clone()));
        let client = Side::<E>::open(&config, Pool::new(pool));
        let network = config.network;
        let socket = Socket::listen(address, &ListenOptions::default(), network.as_ref()).expect("the address is free");
        let address = socket.local_addr().expect("a bound socket has an address");
        let listener = server.engine.listen(socket).expect("the engine takes the listener");
        server.engine.accept(listener, Want::On);
        let dice = Dice::new(setup.seed);
        let buffer_max = network.as_ref().map_or(usize::MAX, Network::buffer_max);
        Self { server, client, listener, address, network, dice, setup: setup.clone(), buffer_max, still: 0 }
    }

    pub fn at(&mut self, at: At) -> &mut Side<E> {
        match at {
            At::Server => &mut self.server,
            At::Client => &mut self.client,
        }
    }

    /// `bytes`, or fewer where the simulated kernel's buffers are so small that it would take too many steps.
    pub fn scaled(&self, bytes: usize) -> usize {
        bytes.min(self.buffer_max.saturating_mul(40))
    }

    /// A turn of each side, in random order. Waits a little if there is nothing to do.
    pub fn step(&mut self) {
        let sides = if self.dice.below(2) == 0 { [At::Server, At::Client] } else { [At::Client, At::Server] };
        let mut moved = false;
        for at in sides {
            moved |= self.turn(at, Duration::ZERO);
        }
        if moved {
            self.still = 0;
            return;
        }
        self.still += 1;
        let pause = if self.network.is_some() { 50 << self.still.min(8) } else { 300 };
        self.turn(sides[self.still as usize % 2], Duration::from_micros(pause));
    }

    fn turn(&mut self, at: At, pause: Duration) -> bool {
        let now = if self.network.is_some() { self.at(at).engine.now() } else { Instant::now() };
        self.at(at).turn(Some(now + pause))
    }

    /// Goes on until `done`.
    pub fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        let mut steps = 0;
        while !done(self) {
            self.step();
            steps += 1;
            let over = if self.network.is_some() {
                steps > STEPS_MAX || (self.still > 2_000 && self.network.as_ref().is_some_and(Network::is_idle))
            } else {
                start.elapsed() > PATIENCE
            };
            assert!(
                !over,
                "waited in vain until {what}: server {:#?} client {:#?}",
                self.server.summary(),
                self.client.summary()
            );
        }
    }

    /// Goes on for a while, in which nothing that could happen fails to happen.
    pub fn settle(&mut self) {
        let start = Instant::now();
        let mut steps = 0;
        while if self.network.is_some() {
            self.still < 20 || steps < 50
        } else {
            start.elapsed() < Duration::from_millis(40)
        } {
            self.step();
            steps += 1;
            assert!(steps < STEPS_MAX, "it never settles");
        }
    }

    /// A connection: the server's end and the client's. Both receive.
    pub fn pair(&mut self) -> (ConnId, ConnId) {
        self.pairs(1).remove(0)
    }

    pub fn pairs(&mut self, count: usize) -> Vec<(ConnId, ConnId)> {
        let pairs = self.silent_pairs(count);
        for (server, client) in &pairs {
            self.server.engine.receive(*server, Want::On);
            self.client.engine.receive(*client, Want::On);
        }
        pairs
    }

    /// Connections that do not receive yet.
    pub fn silent_pairs(&mut self, count: usize) -> Vec<(ConnId, ConnId)> {
        let address = self.address.clone();
        let clients: Vec<ConnId> = (0..count).map(|_| self.client.connect(&address)).collect();
        self.until("the connections stand", |world| {
            let connected = clients.iter().all(|conn| world.client.log(*conn).connected);
            connected && world.server.accepted.len() == count
        });
        let mut by_address = BTreeMap::new();
        for socket in std::mem::take(&mut self.server.accepted) {
            let peer = mark_of(&socket.peer_addr().expect("a live peer"));
            by_address.insert(peer, self.server.adopt(socket));
        }
        let pair = |client: ConnId| {
            let local = self.client.engine.info(client).expect("a live connection").local;
            let server = by_address.remove(&mark_of(&local));
            (server.unwrap_or_else(|| panic!("nobody accepted {}", mark_of(&local))), client)
        };
        clients.into_iter().map(pair).collect()
    }

    /// Waits until all of `bytes`, and nothing else, arrived.
    pub fn expect(&mut self, at: At, conn: ConnId, bytes: &[u8]) {
        self.until("the bytes arrive", |world| world.at(at).log(conn).received.len() >= bytes.len());
        check_equal(&self.at(at).log(conn).received, bytes);
    }

    pub fn until_closed(&mut self, at: At, conn: ConnId) -> Option<io::ErrorKind> {
        self.until("the connection is closed", |world| world.at(at).is_closed(conn));
        self.at(at).log(conn).ended.as_ref().expect("it ended").why
    }

    /// Closes everything and checks that everything came back.
    pub fn finish(mut self) {
        for at in [At::Server, At::Client] {
            let side = self.at(at);
            side.accepted.clear();
            let open: Vec<ConnId> = side.conns.keys().filter(|conn| !side.gone.contains(conn)).copied().collect();
            open.into_iter().for_each(|conn| side.close(conn, Close::Abort));
        }
        self.until("everything is closed", |world| {
            let closed = |side: &Side<E>| side.conns.keys().all(|conn| side.gone.contains(conn));
            closed(&world.server) && closed(&world.client)
        });
        let listener = self.listener;
        self.server.engine.unlisten(listener);
        self.until("the listener is closed", |world| world.server.listeners_closed.contains(&listener));
        for side in [&mut self.server, &mut self.client] {
            side.conns.clear();
            let stats = side.pool.stats();
            assert_eq!((stats.leased, stats.free + stats.lent), (0, stats.slots), "slots are missing");
        }
        if let Some(network) = self.network.clone() {
            self.server.accepted.clear();
            self.settle();
            assert_eq!(network.sockets(), 0, "sockets were leaked");
        }
    }
}

impl<E: Engine> Side<E> {
    fn summary(&self) -> Vec<String> {
        let line = |(conn, log): (&ConnId, &Log)| {
            let Log { connected, peer_closed, closing, taken, sent, in_flight, ended, .. } = log;
            let (received, queued) = (log.received.len(), log.outbox.bytes());
            let ended = ended.as_ref().map(|end| (end.why, end.unsent.len()));
            format!(
                "{conn} connected={connected} received={received} fin={peer_closed} queued={queued} taken={taken} sent={sent} in_flight={in_flight} closing={closing} ended={ended:?}"
            )
        };
        let shown = self.conns.iter().take(20).map(line);
        shown
            .chain([format!("{:?} {:?} accepted={}", self.pool.stats(), self.engine.stats(), self.accepted.len())])
            .collect()
    }
}

fn mark_of(address: &SockAddr) -> String {
    format!("{:?}", address.as_socket())
}

/// The bytes of a piece. Where a file is shorter than was promised, there are zeros.
pub fn content(piece: &Chunk) -> Vec<u8> {
    let Chunk::File(range) = piece else { return piece.as_slice().to_vec() };
    let (mut range, mut bytes) = (range.as_ref().clone(), vec![0; range.len()]);
    let mut at = 0;
    while let Ok(count) = range.read(&mut bytes[at..])
        && count > 0
    {
        range.advance(count);
        at += count;
    }
    bytes
}

pub fn local_address() -> SockAddr {
    SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// Compares without printing megabytes.
pub fn check_equal(found: &[u8], wanted: &[u8]) {
    check_prefix(found, wanted);
    assert_eq!(found.len(), wanted.len(), "too few bytes");
}

/// Checks that `found` is how `wanted` begins.
pub fn check_prefix(found: &[u8], wanted: &[u8]) {
    assert!(found.len() <= wanted.len(), "{} bytes where at most {} were sent", found.len(), wanted.len());
    if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
        panic!("byte {at} of {} is wrong", found.len());
    }
}
