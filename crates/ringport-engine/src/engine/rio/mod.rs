//! The engine on Registered I/O.
//!
//! # How a byte travels
//!
//! ```text
//!  receive:   RIOReceive into a slot or a slice ──► completion ──► event ──► (handler) ──► the next RIOReceive
//!  send:      RIOSend from the slot, or from a copy ──► completion ──► Sent, and the next RIOSend
//! ```
//!
//! Everything is posted at the beginning of `wait`: what the callbacks of a turn asked for leaves together, each request
//! queue with one request that is not deferred. An echo costs two posts and its share of a `RIODequeueCompletion`, which is
//! no system call.
//!
//! Registered I/O wants memory for every receive before the bytes come (the exception in law 7). The pool's region is
//! registered once. Up to half of its slots lie under receives; what arrives there is delivered without a copy. All other
//! connections wait with a small slice of an area of their own (`landing.rs`), and what they get is copied. Bytes to
//! send that lie in a slot are sent from there; all others are copied into a slot or a slice first, a few at a time.
//!
//! Datagrams are much the same, with addresses beside them (`datagram.rs`, `datagram_memory.rs`).
//!
//! # What keeps it correct
//!
//! - The completion queue is as large as all request queues together (`books/budget.rs`): it is resized before a connection
//!   is taken in, and shrinks when most have gone. A connection counts until its last completion was dequeued.
//! - A slice belongs to one request from the post to the dequeue of its completion. Neither its memory nor the
//!   registration of it ends before (`books/flight.rs`, `books/slices.rs`).
//! - A request cannot be cancelled. A connection is closed by closing its socket; then its requests end, their slices
//!   go back, and only then comes its last event.
//! - One notice is asked for at a time, and only when it was seen that the queue is empty (`wait.rs`).
//! - All calls on a request queue come from the thread of its worker.
//! - What Microsoft's pages say nothing of is assumed in neither way: completions of one connection may come in another
//!   order than its requests, and a send may be taken in part.
//!
//! It was written to Microsoft's documentation and is tested against functions that stand in for the system's
//! (`crates/rio-standin`). It has never run on a real system with Registered I/O.

pub(crate) mod books;

mod accept;
mod close;
mod connect;
mod datagram;
mod datagram_memory;
mod landing;
mod probe;
mod queues;
mod receive;
mod send;
mod table;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::time::Instant;

use windows_sys::Win32::Networking::WinSock::RIORESULT;

use self::books::{Budget, Flight, SENDS};
use self::datagram::Datagrams;
use self::landing::Landing;
pub(crate) use self::probe::probe;
use self::queues::{Completions, DEPTH, Notice, RECEIVES, Registered, Requests};
use self::receive::Place;
use self::send::Stage;
use self::table::Functions;
pub(in crate::engine) use self::table::note_created;
pub use self::table::{Provider, RIO_EXTENSION_FUNCTION_TABLE, use_provider};
use super::LISTED_AT_FIRST;
use super::acceptor::Listeners;
use super::contract::{
    Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, RioCompletions, SendProgress, SendTo, Waker, Want,
};
use super::port::Port;
use super::spin::Spin;
use super::winsock::{self, Extensions};
use crate::buffer::{Chunk, Pool, SendQueue};
use crate::id::{ConnId, ListenerId, Table, UdpId};
use crate::options::SocketRef;
use crate::socket::{SockAddr, Socket, SocketOptions};

/// Connections that the completion queue has room for at first.
const FIRST_CONNECTIONS: u32 = 64;
/// Completions that one call takes at most; more wait for the next call.
const RESULTS_PER_CALL: usize = 512;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// Failed: what has arrived is delivered, then it closes.
    Failing,
    /// The socket is closed; its requests end.
    Closing,
    /// Nothing is under way any more, the last event waits to be taken.
    Closed,
}

/// A connection.
struct Conn {
    socket: Option<socket2::Socket>,
    requests: Option<Requests>,
    /// What was taken to be sent.
    flight: Option<Box<Flight<Stage>>>,
    /// Where the receive under way writes, or what was received lies.
    place: Option<Place>,
    /// Bytes that the receive under way may write.
    room: u32,
    /// Bytes that were received and not delivered; 0 is the end of the stream.
    landed: Option<u32>,
    /// What ended it, as an error number, or 0.
    error: i32,
    state: State,
    /// A receive is under way.
    receiving: bool,
    /// A connect is under way.
    connecting: bool,
    /// Receiving is wanted.
    wanted: bool,
    /// The last receive filled its memory.
    full: bool,
    /// Nothing more will be received.
    eof: bool,
    /// In the list of those with something to post.
    dirty: bool,
    /// In the list of those with something to deliver.
    queued: bool,
    /// Nothing more will be sent: after the flight comes a FIN.
    finishing: bool,
    /// Its owner gave it up.
    given_up: bool,
}

impl Conn {
    fn new(socket: socket2::Socket, state: State) -> Self {
        Self {
            socket: Some(socket),
            requests: None,
            flight: None,
            place: None,
            room: 0,
            landed: None,
            error: 0,
            state,
            receiving: false,
            connecting: false,
            wanted: false,
            full: false,
            eof: false,
            dirty: false,
            queued: false,
            finishing: false,
            given_up: false,
        }
    }

    /// Whether something is under way that has not come back.
    fn is_busy(&self) -> bool {
        self.receiving || self.connecting || self.flight.as_ref().is_some_and(|flight| flight.in_flight() > 0)
    }
}

/// The engine on Registered I/O. See the [module](self).
pub struct RioEngine {
    functions: Functions,
    extensions: Extensions,
    // What the system may write to is dropped by hand, or leaked if the system does not let go of it in time. Of these
    // the completion queue goes first and the pool last.
    conns: ManuallyDrop<Table<Conn>>,
    udp: ManuallyDrop<Datagrams>,
    completions: ManuallyDrop<Completions>,
    landing: ManuallyDrop<Landing>,
    region: ManuallyDrop<Registered>,
    pool: ManuallyDrop<Pool>,
    port: Port,
    budget: Budget,
    listeners: Listeners,
    config: EngineConfig,
    /// Completions that were dequeued; those from `next_result` to `results_end` have not been looked at.
    results: Box<[RIORESULT]>,
    next_result: usize,
    results_end: usize,
    /// A notice was asked for and has not come.
    noticing: bool,
    /// Completions came in this turn.
    busy: bool,
    spin: Spin,
    /// What made the engine unusable, found out between two waits.
    failure: Option<io::Error>,
    /// Turns since the port was looked at.
    blind_turns: u32,
    /// Connections that have ended, which no completion says.
    farewells: VecDeque<ConnId>,
    /// Connections with something to post.
    dirty: Vec<ConnId>,
    /// Connections with something to deliver, and how many of them are left to serve in this turn.
    ready: VecDeque<ConnId>,
    ready_this_turn: usize,
    /// Connections for which the system had no memory.
    starved: Vec<ConnId>,
    events_left: usize,
    now: Instant,
    /// Those of the dequeues that were no system call: looks at the completion queue.
    looks: u64,
    stats: EngineStats,
}

// The budget of an idle connection, which in addition holds a slice or a slot.
const _: () = assert!(size_of::<Conn>() <= 80);

impl RioEngine {
    /// Takes a connected or bound socket in: gives it a request queue.
    fn equip(&mut self, socket: &socket2::Socket, receives: u32, sends: u32) -> io::Result<Requests> {
        let depth = receives + sends;
        let Some(capacity) = self.budget.needed(depth) else { return Err(io::ErrorKind::OutOfMemory.into()) };
        if capacity != self.budget.capacity() {
            self.completions.resize(capacity)?;
            self.budget.resized(capacity);
        }
        let requests = Requests::open(&self.functions, socket, &self.completions, receives, sends)?;
        self.budget.charge(depth);
        Ok(requests)
    }

    /// Has the connection looked at when everything is posted.
    #[inline]
    fn soil(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Has the connection deliver what it received.
    fn enqueue(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.queued, true)
        {
            self.ready.push_back(id);
        }
    }
}

impl Engine for RioEngine {
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self> {
        let functions = Functions::load()?;
        let port = Port::open()?;
        let budget = Budget::new(FIRST_CONNECTIONS * DEPTH);
        let notice = match config.rio_completions {
            RioCompletions::Polled => Notice::None,
            RioCompletions::Event => Notice::Event,
            RioCompletions::Port | RioCompletions::Hybrid => Notice::Packet,
        };
        let completions = Completions::open(&functions, budget.capacity(), &notice, &port)?;
        let (base, bytes) = pool.memory();
        // SAFETY: the engine drops the pool after the registration, or neither; the slots' leases say who may touch what.
        let region = unsafe { Registered::new(&functions, base, bytes)? };
        Ok(Self {
            functions,
            extensions: Extensions::load()?,
            conns: ManuallyDrop::new(Table::new()),
            udp: ManuallyDrop::new(Datagrams::new()),
            completions: ManuallyDrop::new(completions),
            landing: ManuallyDrop::new(Landing::new(&functions)),
            region: ManuallyDrop::new(region),
            pool: ManuallyDrop::new(pool),
            port,
            budget,
            listeners: Listeners::new(true),
            spin: Spin::asked(config.spin),
            config: config.clone(),
            results: vec![RIORESULT::default(); RESULTS_PER_CALL].into_boxed_slice(),
            next_result: 0,
            results_end: 0,
            noticing: false,
            busy: false,
            failure: None,
            blind_turns: 0,
            farewells: VecDeque::new(),
            dirty: Vec::with_capacity(LISTED_AT_FIRST),
            ready: VecDeque::with_capacity(LISTED_AT_FIRST),
            ready_this_turn: 0,
            starved: Vec::with_capacity(LISTED_AT_FIRST),
            events_left: config.events_per_turn.max(1),
            now: Instant::now(),
            looks: 0,
            stats: EngineStats::default(),
        })
    }

    fn listen(&mut self, socket: Socket) -> io::Result<ListenerId> {
        self.start_listening(socket)
    }

    fn accept(&mut self, listener: ListenerId, want: Want) {
        self.want_accepts(listener, want);
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.stop_listening(listener);
    }

    fn adopt(&mut self, socket: Socket) -> io::Result<ConnId> {
        let socket = socket.into_system()?;
        let requests = self.equip(&socket, RECEIVES, SENDS)?;
        let mut conn = Conn::new(socket, State::Open);
        conn.requests = Some(requests);
        Ok(self.conns.insert(conn))
    }

    fn connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        self.start_connect(to, options)
    }

    fn receive(&mut self, conn: ConnId, want: Want) {
        self.want_bytes(conn, want == Want::On);
    }

    #[inline]
    fn send(&mut self, conn: ConnId, queue: &mut SendQueue) -> SendProgress {
        self.start_send(conn, queue)
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        self.finish_sending(conn);
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        self.start_close(conn, how);
    }

    fn info(&self, conn: ConnId) -> io::Result<ConnInfo> {
        let socket = self.conns.get(conn).and_then(|conn| conn.socket.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        Ok(ConnInfo { local: socket.local_addr()?, peer: socket.peer_addr()?, unacked: None })
    }

    fn socket(&self, conn: ConnId) -> io::Result<SocketRef<'_>> {
        let socket = self.conns.get(conn).and_then(|conn| conn.socket.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketRef(socket.into()))
    }

    /// Cannot be offered, see [`winsock::no_mark`].
    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()> {
        self.socket(conn)?;
        Err(winsock::no_mark())
    }

    fn at_mark(&self, conn: ConnId) -> io::Result<bool> {
        self.socket(conn)?;
        Err(winsock::no_mark())
    }

    /// The socket goes over to one that is made for Registered I/O, with its address and options.
    fn bind_udp(&mut self, socket: Socket) -> io::Result<UdpId> {
        self.take_outlet(socket)
    }

    fn receive_datagrams(&mut self, udp: UdpId, want: Want) {
        self.want_datagrams(udp, want);
    }

    #[inline]
    fn send_to(&mut self, udp: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        self.queue_datagram(udp, to, data)
    }

    fn close_udp(&mut self, udp: UdpId) {
        self.close_outlet(udp);
    }

    fn udp_socket(&self, udp: UdpId) -> io::Result<SocketRef<'_>> {
        self.udp.outlets.socket(udp)
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.turn(deadline)
    }

    #[inline]
    fn next(&mut self) -> Option<Event> {
        if self.events_left == 0 {
            return None;
        }
        let event = self.next_event()?;
        self.events_left -= 1;
        self.stats.events += 1;
        self.stats.received_bytes += Event::bytes(Some(&event));
        Some(event)
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn waker(&self) -> Waker {
        Waker(self.port.bell())
    }

    fn stats(&self) -> EngineStats {
        let EngineStats { dequeues, posts, sends, notifies, .. } = self.stats;
        let accepts_failed = self.listeners.failed();
        EngineStats { calls: dequeues - self.looks + posts + sends + notifies, accepts_failed, ..self.stats }
    }
}
