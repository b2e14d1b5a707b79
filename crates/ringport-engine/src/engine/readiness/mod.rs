//! epoll and kqueue, both through `mio::Poll`: the kernel says what is ready, plain calls do the work.
//!
//! ```text
//! wait:  Poll ─► edges
//! next:  ready list, then edges ─► flags of the connection ─► send what is in flight ─► receive once ─► one event
//! ```
//!
//! **Edges are remembered, not acted upon.** [`wait`](Engine::wait) only notes what the kernel reports. In
//! [`next`](Engine::next) an edge becomes flags of its connection, which goes on at once if it can. Whoever has more to do
//! than its share of a turn, or is asked for something outside its own event, goes to the end of the ready list. What is
//! there when a turn begins, and edges that the last turn did not come to, come before what is new; an entry or an edge
//! whose connection is gone is recognised by its generation. As flags can only be too optimistic, a spurious event costs
//! one call and nothing else.
//!
//! **One case has a way of its own:** bytes on a connection that does nothing but receive (`receive_fresh`). It is nearly
//! every event of a busy server, and takes one lookup where the general way takes several.
//!
//! **A call is made when its event is asked for.** [`next`](Engine::next) receives once and returns the bytes, so that
//! the caller answers from a slot that is still in the processor's cache before anything else is read. Translating
//! all events of a turn first was measured to be slower: the first bytes are cold by the time they are sent.
//!
//! **No call is made to learn that nothing is left.** A receive that did not fill its slot has drained the socket, and
//! the next byte makes a new edge. There are two exceptions, in which the event says so itself: bytes before a FIN or a
//! failure, which make no further edge, and urgent data, at which a receive stops.
//!
//! A connection asks for writability when a send finds no room for the first time, and never takes that back: one more call
//! for those that send more than fits, and none for the others. An edge whose bytes were received before it was looked at, as
//! every second one of a stream, is reported only if there is room and that was asked for; so it costs the others nothing.

mod accept;
mod close;
mod connect;
mod datagram;
mod probe;
mod receive;
mod send;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::time::Instant;

use mio::unix::SourceFd;

use self::accept::Listener;
use self::datagram::Datagrams;
pub(crate) use self::probe::probe;
use self::wait::{Ready, Target, Turn};
use super::contract::{
    Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, SendProgress, SendTo, Upcoming, Usual, Wake, Waker, Want,
};
use super::direct::Sender;
use super::spin::Spin;
use super::{LISTED_AT_FIRST, platform};
use crate::buffer::{Chunk, Pool, SendQueue};
use crate::id::{ConnId, ListenerId, Table, UdpId};
use crate::options::SocketRef;
use crate::socket::{SockAddr, Socket, SocketOptions};

/// Events that one call of the kernel reports at most; more wait there for the next call.
const EVENTS_PER_CALL: usize = 1024;

/// The engine over epoll (Linux) or kqueue (macOS, BSD).
pub struct ReadinessEngine {
    /// Ends a wait at a deadline that is far away, and when it will.
    alarm: Option<platform::Alarm>,
    alarm_at: Option<Instant>,
    poll: mio::Poll,
    events: mio::Events,
    pool: Pool,
    conns: Table<Conn>,
    listeners: Table<Listener>,
    udp: Datagrams,
    turn: Turn,
    /// Listeners whose accept failed and that wait for the end of their pause.
    resting: Vec<ListenerId>,
    /// Whether this engine closed a descriptor while a listener rested.
    descriptor_freed: bool,
    /// Connections that found no buffer, longest waiting first.
    starved: VecDeque<ConnId>,
    waker: Waker,
    spin: Spin,
    sender: Sender,
    events_per_turn: usize,
    bytes_per_turn: usize,
    now: Instant,
    stats: EngineStats,
}

/// A connection. Small, since most of them are idle: what is in flight lies elsewhere.
struct Conn {
    /// `None` once closed, until [`Event::Closed`] is delivered.
    socket: Option<socket2::Socket>,
    /// What `send` took and the kernel did not yet.
    record: Option<Box<SendQueue>>,
    /// Why the connection is about to be closed.
    failure: Option<io::Error>,
    /// The connect has not been answered.
    connecting: bool,
    /// The connect waits for the first data, which goes with the SYN.
    deferred: bool,
    /// Received bytes are wanted.
    receiving: bool,
    /// There may be something to receive.
    readable: bool,
    /// A receive that does not fill its buffer does not mean that nothing is left.
    to_end: bool,
    /// There may be room to send, or the connect is answered. Kept only while that is of interest.
    writable: bool,
    /// The kernel reports when there is room.
    asks_for_room: bool,
    /// The kernel reported an error.
    broken: bool,
    /// The peer's FIN was received.
    peer_closed: bool,
    /// A FIN was asked for, and is sent when nothing is in flight any more.
    finishing: bool,
    /// Its urgent data is watched, so that a receive ends where the kernel ends it.
    urgent: bool,
    /// In the ready list.
    queued: bool,
    /// In the list of the starved.
    starved: bool,
}

// The budget for an idle connection is 400 bytes with the session on top.
const _: () = assert!(size_of::<Conn>() <= 40);

impl Conn {
    fn new(socket: socket2::Socket) -> Self {
        Self {
            socket: Some(socket),
            record: None,
            failure: None,
            connecting: false,
            deferred: false,
            receiving: false,
            readable: false,
            to_end: false,
            writable: false,
            asks_for_room: false,
            broken: false,
            peer_closed: false,
            finishing: false,
            urgent: false,
            queued: false,
            starved: false,
        }
    }

    /// Whether a receive call is due.
    #[inline]
    fn may_receive(&self) -> bool {
        self.receiving && self.readable && !self.peer_closed
    }

    /// Ends the connection once everything that arrived before has been received. The first reason counts.
    fn fail(&mut self, error: io::Error) {
        self.failure.get_or_insert(error);
        self.readable = true;
        self.to_end = true;
    }
}

impl Engine for ReadinessEngine {
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), wait::WAKER)?;
        let alarm = platform::Alarm::new(poll.registry(), wait::ALARM).ok();
        Ok(Self {
            alarm,
            alarm_at: None,
            poll,
            events: mio::Events::with_capacity(EVENTS_PER_CALL),
            pool,
            conns: Table::new(),
            listeners: Table::new(),
            udp: Datagrams::new(config),
            turn: Turn::new(),
            resting: Vec::new(),
            descriptor_freed: false,
            starved: VecDeque::with_capacity(LISTED_AT_FIRST),
            waker: Waker(Arc::new(waker)),
            spin: Spin::thrifty(config.spin),
            sender: Sender { blocking: false, sendfile: config.features.sendfile },
            events_per_turn: config.events_per_turn.max(1),
            bytes_per_turn: config.bytes_per_turn.max(1),
            now: Instant::now(),
            stats: EngineStats::default(),
        })
    }

    fn listen(&mut self, socket: Socket) -> io::Result<ListenerId> {
        self.take_listener(socket.into_system()?)
    }

    fn accept(&mut self, listener: ListenerId, want: Want) {
        self.set_accepting(listener, want);
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.close_listener(listener);
    }

    fn adopt(&mut self, socket: Socket) -> io::Result<ConnId> {
        let socket = socket.into_system()?;
        socket.set_nonblocking(true)?;
        platform::no_sigpipe(&socket)?;
        self.register(Conn::new(socket))
    }

    fn connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        self.begin_connect(to, options)
    }

    fn receive(&mut self, conn: ConnId, want: Want) {
        self.set_receiving(conn, want);
    }

    #[inline]
    fn send(&mut self, conn: ConnId, queue: &mut SendQueue) -> SendProgress {
        self.begin_send(conn, queue)
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        self.finish_sending(conn);
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        self.close_conn(conn, how);
    }

    fn info(&self, conn: ConnId) -> io::Result<ConnInfo> {
        let conn = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let socket = conn.socket.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(ConnInfo { local: socket.local_addr()?, peer: socket.peer_addr()?, unacked: conn.unacked() })
    }

    fn bind_udp(&mut self, socket: Socket) -> io::Result<UdpId> {
        self.take_port(socket)
    }

    fn receive_datagrams(&mut self, udp: UdpId, want: Want) {
        self.want_datagrams(udp, want);
    }

    #[inline]
    fn send_to(&mut self, udp: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        self.queue_datagram(udp, to, data)
    }

    fn close_udp(&mut self, udp: UdpId) {
        self.close_port(udp);
    }

    fn udp_socket(&self, udp: UdpId) -> io::Result<SocketRef<'_>> {
        self.udp.socket(udp)
    }

    fn socket(&self, conn: ConnId) -> io::Result<SocketRef<'_>> {
        let conn = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketRef(conn.socket.as_ref().ok_or(io::ErrorKind::NotFound)?.into()))
    }

    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()> {
        self.socket(conn)?.0.set_out_of_band_inline(true)?;
        if let Some(conn) = self.conns.get_mut(conn) {
            conn.urgent = true;
        }
        Ok(())
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.begin_turn(deadline)
    }

    #[inline]
    fn next(&mut self) -> Option<Event> {
        self.any_next()
    }

    #[inline]
    fn next_usual(&mut self) -> Usual {
        self.usual_next()
    }

    #[inline]
    fn upcoming(&self, ahead: usize) -> Option<Upcoming> {
        let upcoming = self.turn.upcoming(ahead)?;
        self.conns.prefetch(upcoming.slot);
        Some(upcoming)
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn stats(&self) -> EngineStats {
        EngineStats { datagram_bytes_copied: self.udp.copied_bytes(), ..self.stats }
    }
}

impl ReadinessEngine {
    /// Gives a connection its id and registers it.
    fn register(&mut self, conn: Conn) -> io::Result<ConnId> {
        let interest = conn.interest();
        let id: ConnId = self.conns.insert(conn);
        let socket = self.conns.get(id).and_then(|conn| conn.socket.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        let token = Target::Conn.token(id);
        let registered = self.poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), token, interest);
        if let Err(error) = registered {
            self.conns.remove(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Puts a connection into the ready list, unless it is there or is being served just now.
    fn queue(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && self.turn.current != Some(Ready::Conn(id))
        {
            self.turn.queue(id, conn);
        }
    }
}

impl Conn {
    fn interest(&self) -> mio::Interest {
        if self.asks_for_room { platform::INTEREST.add(mio::Interest::WRITABLE) } else { platform::INTEREST }
    }

    /// Has the kernel report when there is room to send. Is there some already, then it reports that at once, see
    /// epoll_ctl(2) and kqueue(2).
    #[cold]
    fn ask_for_room(&mut self, id: ConnId, registry: &mio::Registry) {
        if std::mem::replace(&mut self.asks_for_room, true) {
            return;
        }
        let Some(fd) = self.socket.as_ref().map(AsRawFd::as_raw_fd) else { return };
        if let Err(error) = registry.reregister(&mut SourceFd(&fd), Target::Conn.token(id), self.interest()) {
            self.fail(error);
        }
    }

    /// Bytes that the kernel took and the peer has not acknowledged. The kernel counts an unacknowledged SYN or FIN as
    /// one byte; as the FIN is the last in the sequence, it is among whatever is left.
    fn unacked(&self) -> Option<u64> {
        if self.connecting {
            return Some(0);
        }
        let unacked = platform::unacked(self.socket.as_ref()?.as_fd())?;
        let fin = self.finishing && self.record.is_none();
        Some(unacked.saturating_sub(u64::from(fin)))
    }
}

impl Wake for mio::Waker {
    fn wake(&self) {
        // This fails only when the counter of the eventfd is full, and then the engine is awake anyway.
        let _ = mio::Waker::wake(self);
    }
}
