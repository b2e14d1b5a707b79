//! The engine on I/O completion ports.
//!
//! # How a byte travels
//!
//! ```text
//!  receive:   WSARecv of nothing ──packet──► recv into a leased slot ──► event ──► (handler) ──► WSARecv of nothing
//!  send:      WSASend of the pieces ──► done at once, or ──packet──► the rest, or Sent
//! ```
//!
//! A receive operation would need a buffer for as long as its connection is silent. One of zero bytes needs none, and ends
//! when there is something to receive; then plain calls fetch it into slots that are in the processor's cache. That costs
//! a call a message more than a receive with memory, and saves a slot for each idle connection.
//!
//! A call that fetches less than its slot holds has fetched everything. So the next thing to do is to wait again, and not
//! to learn from one more call that nothing is there; and it is done after the handler had its say: three calls and a
//! share of one `GetQueuedCompletionStatusEx` make an echo.
//!
//! # What keeps it correct
//!
//! - An operation owns what the kernel sees in a record of its own (`engine/port.rs`), which comes back with the packet
//!   and with nothing else. A socket is closed, and a slot reused, only when no operation is under way: not even then
//!   when there was nothing to cancel, since its packet may be queued already.
//! - Where the provider allows it, an operation that succeeds at once queues no packet (`skip_on_success`). Its outcome is
//!   used where it was started, or waits in the ready list; nothing is called back, so that nothing can recurse, however
//!   many operations succeed at once. Where that is masked or refused, a success at once is treated as one that is
//!   pending: its packet comes.
//! - `IocpEngine::settle` is the only place that brings what is under way in line with what is wanted.
//! - Sockets do not block, for the plain receives. Operations wait all the same.
//! - Accepted sockets are bound to no port before somebody adopts them: a socket belongs to its port for life.
//!
//! What Windows does not say: how much of a cancelled send had left. What the packet reports is taken off; the rest comes
//! back with `Closed`, though some of it may have arrived. It is at most one send of 256 KiB.
//!
//! Rejected: a receive with memory as long as a connection is busy (one call less a message; it would have to be cancelled
//! for an idle pool), `DisconnectEx` with reuse of sockets (saves little since sockets became cheap, and brings back the
//! old options), `SO_SNDBUF` of zero (every send would wait for an acknowledgement).

mod accept;
mod close;
mod connect;
mod datagram;
mod probe;
mod receive;
mod send;
#[cfg(test)]
mod tests;
mod transmit;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use self::datagram::Datagrams;
pub(crate) use self::probe::probe;
use self::transmit::{Permit, Transmitter};
use super::LISTED_AT_FIRST;
use super::acceptor::Listeners;
use super::contract::{Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, SendProgress, SendTo, Waker, Want};
use super::port::{Port, Record};
use super::spin::Spin;
use super::winsock::{self, Extensions};
use crate::buffer::{Chunk, Pool, SendQueue};
use crate::id::{ConnId, ListenerId, Table, UdpId};
use crate::options::SocketRef;
use crate::socket::{SockAddr, Socket, SocketOptions};

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// Failed: what has arrived is delivered, then it closes.
    Failing,
    /// Given up by its owner.
    Closing,
    /// The socket is closed, the last event waits to be taken.
    Closed,
}

/// A connection. An idle one costs this and the record of one receive.
struct Conn {
    socket: Option<socket2::Socket>,
    /// What `send` took and will not be sent any more.
    unsent: Option<Box<SendQueue>>,
    /// What ended it, as an error number, or 0.
    error: i32,
    state: State,
    /// Operations that have not come back.
    receiving: bool,
    sending: bool,
    connecting: bool,
    /// What is sent comes from a file, which the system reads itself.
    transmit: Option<Permit>,
    /// They were asked to end.
    cancelled: bool,
    /// An operation that succeeds at once queues no packet.
    skip: bool,
    /// Receiving is wanted.
    wanted: bool,
    /// Nothing more will be received.
    eof: bool,
    /// A plain receive may find something.
    readable: bool,
    /// In the list of those that go on next turn.
    queued: bool,
    /// In the list of those that found no slot.
    starved: bool,
    /// Nothing more will be sent: after the operation under way comes a FIN.
    finishing: bool,
    abort: bool,
}

// The budget for an idle connection is 400 bytes with the session on top.
const _: () = assert!(size_of::<Conn>() <= 40);
const _: () = assert!(size_of::<Record>() <= 64);

impl Conn {
    fn new(socket: socket2::Socket, state: State, skip: bool) -> Self {
        Self {
            socket: Some(socket),
            unsent: None,
            error: 0,
            state,
            receiving: false,
            sending: false,
            connecting: false,
            transmit: None,
            cancelled: false,
            skip,
            wanted: false,
            eof: false,
            readable: false,
            queued: false,
            starved: false,
            finishing: false,
            abort: false,
        }
    }

    /// Whether an operation has not come back.
    fn is_busy(&self) -> bool {
        self.receiving || self.sending || self.connecting
    }
}

/// Events that no packet carries.
enum Notice {
    Connected(ConnId),
    Closed(ConnId),
    UdpClosed(UdpId),
}

/// The engine on I/O completion ports. See the [module](self).
pub struct IocpEngine {
    port: Port,
    extensions: Extensions,
    /// Absent where it is masked, or the system has none.
    transmitter: Option<Transmitter>,
    pool: Pool,
    conns: Table<Conn>,
    listeners: Listeners,
    udp: Datagrams,
    config: EngineConfig,
    spin: Spin,
    /// Records for reuse: of receives, and of sends with an empty queue.
    #[expect(clippy::vec_box, reason = "the kernel knows a record by its address")]
    spare_receives: Vec<Box<Record>>,
    #[expect(clippy::vec_box, reason = "as above")]
    spare_sends: Vec<Box<Record>>,
    notices: VecDeque<Notice>,
    cancelled: close::Cancelled,
    /// The connection that is being received from, and what it got in this go.
    current: Option<ConnId>,
    current_bytes: usize,
    /// Those that have something to receive, and how many of them are left to serve in this turn.
    ready: VecDeque<ConnId>,
    ready_this_turn: usize,
    /// They come before the packets in every second turn, so that neither can keep the other from its share.
    ready_first: bool,
    /// Those that found no slot, longest waiting first.
    starved: VecDeque<ConnId>,
    events_left: usize,
    now: Instant,
    stats: EngineStats,
}

impl IocpEngine {
    /// Takes a socket in: binds it to the port, and prepares it for plain calls.
    fn insert(&mut self, socket: socket2::Socket, state: State) -> io::Result<ConnId> {
        socket.set_nonblocking(true)?;
        self.port.attach(&socket)?;
        let skip = self.config.features.skip_on_success && winsock::skip_on_success(&socket);
        Ok(self.conns.insert(Conn::new(socket, state, skip)))
    }

    /// Brings what is under way in line with what is wanted. Does nothing if it is already.
    fn settle(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        match conn.state {
            State::Connecting | State::Closed => {}
            State::Open => self.settle_receive(id),
            State::Failing | State::Closing => self.wind_down(id),
        }
    }
}

impl Engine for IocpEngine {
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self> {
        Ok(Self {
            extensions: Extensions::load()?,
            transmitter: config.features.sendfile.then(Transmitter::load).and_then(Result::ok),
            port: Port::open()?,
            pool,
            conns: Table::new(),
            listeners: Listeners::new(false),
            udp: Datagrams::new(),
            spin: Spin::asked(config.spin),
            config: config.clone(),
            spare_receives: Vec::with_capacity(receive::SPARE_RECEIVES),
            spare_sends: send::first_records(),
            notices: VecDeque::with_capacity(LISTED_AT_FIRST),
            cancelled: close::Cancelled::default(),
            current: None,
            current_bytes: 0,
            ready: VecDeque::with_capacity(LISTED_AT_FIRST),
            ready_this_turn: 0,
            ready_first: false,
            starved: VecDeque::with_capacity(LISTED_AT_FIRST),
            events_left: config.events_per_turn.max(1),
            now: Instant::now(),
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
        self.insert(socket.into_system()?, State::Open)
    }

    fn connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        self.start_connect(to, options)
    }

    fn receive(&mut self, conn: ConnId, want: Want) {
        let wanted = want == Want::On;
        if let Some(record) = self.conns.get_mut(conn)
            && record.wanted != wanted
        {
            record.wanted = wanted;
            self.settle(conn);
        }
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
        let EngineStats { dequeues, posts, receives, sends, .. } = self.stats;
        let accepts_failed = self.listeners.failed();
        let datagram_bytes_copied = self.udp.copied_bytes();
        EngineStats { calls: dequeues + posts + receives + sends, accepts_failed, datagram_bytes_copied, ..self.stats }
    }
}
