//! The engine on io_uring.
//!
//! # How a byte travels
//!
//! ```text
//!              ┌────────── multishot ───────────┐      ┌────────────── direct ──────────────┐
//!  receive:    │ one armed receive; the kernel  │      │ one armed poll; recv(2) into the   │
//!              │ picks small slots as bytes come│      │ large slot that was used last      │
//!  send:       │ entry for the next enter       │      │ send(2) at once, an entry only for │
//!              │                                │      │ what the kernel did not take       │
//!              └────────────────────────────────┘      └────────────────────────────────────┘
//!                         two receives that fill their slot ──►
//!                         ◄── 64 receives that would fit a quarter of a small slot
//! ```
//!
//! Many connections with small messages want the first way: one system call serves hundreds of them. Large messages
//! want the second: receiving a batch of them first and sending it afterwards pushes the data out of the processor's
//! cache. Which one is right is not known before a connection shows it, so each connection changes by itself
//! (`receive.rs`). The way back is slow on purpose: a change costs a cancellation and a turn.
//!
//! # What keeps it correct
//!
//! - Every operation armed for a connection is a bit in `Conn::armed` until its *terminal* completion (the one without
//!   the "more" flag) was taken. A descriptor is closed, memory freed and a slot reused only when no bit is left:
//!   closing a descriptor does not end the operations on it, they would go on and take the bytes of whoever gets the
//!   number next.
//! - A tag (`user_data`) carries the kind of operation, the slot and the slot's generation, so that finding the
//!   connection is an index and a comparison. Operations are cancelled by their tag. The submission queue is in order,
//!   so that a cancellation never hits a later operation with the same tag.
//! - `UringEngine::settle` is the only place that arms and cancels. It compares what is armed with what is wanted, and
//!   is called whenever either changed.
//! - Sockets are blocking: on a non-blocking one an operation would answer `EAGAIN` instead of waiting. Plain calls say
//!   `MSG_DONTWAIT` each time.
//!
//! Rejected after measuring: direct descriptors, sends without a completion on success and a polling kernel thread (no gain
//! or a loss on this path; zero-copy sends lose, too, on loopback, and are off unless asked for), `close` as an operation (a connection that closes has nothing else
//! to batch with).

mod accept;
mod adapt;
mod close;
mod connect;
mod datagram;
mod depth;
mod probe;
mod receive;
mod ring;
mod send;
mod starved;
#[cfg(test)]
mod tests;
mod wait;
mod zero;

use std::collections::VecDeque;
use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use io_uring::types::{Fd, Timespec};

use self::accept::Listener;
use self::adapt::Chooser;
use self::datagram::Datagrams;
use self::ring::{BUFFER_GROUP, BufferRing, Ring};
use self::send::{Batch, Flight};
use self::starved::Starved;
use self::wait::Bell;
use self::zero::Loan;
use super::contract::{
    Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, SendProgress, SendTo, Upcoming, Usual, Waker, Want,
};
use super::direct::Sender;
use super::spin::Spin;
use super::{LISTED_AT_FIRST, platform};
use crate::buffer::{Chunk, Pool, SendQueue};
use crate::id::{ConnId, Id, ListenerId, Table, UdpId};
use crate::options::SocketRef;
use crate::socket::{SockAddr, Socket, SocketOptions};

pub(crate) use self::probe::probe;

/// Kinds of operation, as the top four bits of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Op {
    Cancel = 0,
    Accept = 1,
    Receive = 2,
    Poll = 3,
    Send = 4,
    Connect = 5,
    Ring = 6,
    Alarm = 7,
    SendZc = 8,
    Datagram = 9,
    DatagramIn = 10,
    DatagramOut = 11,
}

impl Op {
    /// Those that a connection can have armed.
    const OF_CONN: [Self; 4] = [Self::Receive, Self::Poll, Self::Send, Self::Connect];

    /// Its bit in [`Conn::armed`].
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    fn tag(self, id: impl Into<Id>) -> u64 {
        let id = id.into();
        (self as u64) << 60 | u64::from(id.generation & GENERATION_MASK) << 32 | u64::from(id.slot)
    }
}

/// The part of a generation that fits a tag. A stale completion would have to outlive 2²⁸ connections of its slot.
const GENERATION_MASK: u32 = 0x0fff_ffff;

/// How a connection receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A multishot receive into small slots.
    Multishot,
    /// A multishot, edge-triggered poll and plain calls into a large slot.
    Direct,
    /// The same with a poll for each time: what is left when every feature is masked.
    OneShot,
}

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// Failed: what has arrived is delivered, then it closes.
    Failing,
    /// Given up by its owner.
    Closing,
    /// The descriptor is closed, the last event waits to be taken.
    Closed,
}

/// A connection. Idle ones cost this and nothing else.
struct Conn {
    fd: Option<OwnedFd>,
    /// What the kernel reads from: the send in flight, or the address of a connect.
    flight: Flight,
    /// Operations whose terminal completion has not come.
    armed: u8,
    /// Those among them that were asked to end.
    cancelled: u8,
    state: State,
    mode: Mode,
    /// Receives in a row that speak for the other mode.
    streak: u8,
    /// Its messages are large.
    large: bool,
    /// Receiving is wanted.
    wanted: bool,
    /// Nothing more will be received.
    eof: bool,
    /// A plain receive may find something.
    readable: bool,
    /// The poll saw the end coming, so that a short receive is not the last one.
    hangup: bool,
    /// In the list of those that go on next turn.
    queued: bool,
    /// In a list of those that found no slot.
    starved: bool,
    /// Nothing more will be sent: after the flight comes a FIN.
    finishing: bool,
    /// Its urgent data is watched, which fixes the mode.
    urgent: bool,
    abort: bool,
    /// What ended it, as an `errno`, or 0.
    error: i32,
    unacked: Option<u32>,
}

impl Conn {
    fn new(fd: OwnedFd, state: State, mode: Mode) -> Self {
        Self {
            fd: Some(fd),
            flight: Flight::None,
            armed: 0,
            cancelled: 0,
            state,
            mode,
            streak: 0,
            large: false,
            wanted: false,
            eof: false,
            readable: false,
            hangup: false,
            queued: false,
            starved: false,
            finishing: false,
            urgent: false,
            abort: false,
            error: 0,
            unacked: None,
        }
    }

    #[inline]
    fn is_armed(&self, op: Op) -> bool {
        self.armed & op.bit() != 0
    }

    /// The descriptor for an operation. Operations are started only while there is one; -1 would be refused.
    #[inline]
    fn target(&self) -> Fd {
        Fd(self.fd.as_ref().map_or(-1, AsRawFd::as_raw_fd))
    }

    /// Notes the start of an operation.
    #[inline]
    fn arm(&mut self, op: Op) {
        debug_assert!(!self.is_armed(op), "{op:?} is armed already");
        self.armed |= op.bit();
    }

    /// Notes the terminal completion of an operation.
    #[inline]
    fn disarm(&mut self, op: Op) {
        debug_assert!(self.is_armed(op), "{op:?} was not armed");
        self.armed &= !op.bit();
        self.cancelled &= !op.bit();
    }
}

/// Last events that no completion carries.
enum Farewell {
    Conn(ConnId),
    Listener(ListenerId),
    Udp(UdpId),
}

/// The engine on io_uring. See the [module](self).
///
/// What each turn and each message need comes first, in one place: after the kernel's part of a lonely message nothing of it is
/// left in the near caches, and each further line is fetched anew.
#[repr(C)]
pub struct UringEngine {
    now: Instant,
    /// When the earliest alarm ends the wait, its number, and how many are under way.
    alarm_at: Option<Instant>,
    alarm_serial: u32,
    alarms: u32,
    /// Most events of a turn, and most bytes of one connection; how many events are left.
    events_per_turn: usize,
    bytes_per_turn: usize,
    events_left: usize,
    /// The connection that plain calls are draining, and what it got in this go.
    current: Option<ConnId>,
    /// The connection that the last multishot receive was for, and what it got in a row in this turn.
    run: Option<ConnId>,
    current_bytes: usize,
    run_bytes: usize,
    /// Of those that used up their bytes, how many are left to serve in this turn.
    ready_this_turn: usize,
    /// They come before the completions in every second turn, so that neither can keep the other from its share.
    ready_first: bool,
    /// Mode of new connections, and whether it may change.
    first_mode: Mode,
    adaptive: bool,
    /// Whether a connection in multishot mode sends by a plain call as well.
    send_at_once: bool,
    /// A listener waits for descriptors or memory; one connection has given its own back since.
    backed_off: bool,
    descriptor_freed: bool,
    bell_armed: bool,
    sender: Sender,
    /// A receive of this many bytes is large; one of fewer than `small_bytes` is small.
    large_bytes: u32,
    small_bytes: u32,
    /// A piece of this many bytes is sent without a copy.
    zero_copy_above: Option<usize>,
    // What the kernel may see is dropped by hand, or leaked if the kernel does not let go of it in time.
    conns: ManuallyDrop<Table<Conn>>,
    pool: ManuallyDrop<Pool>,
    buffers: ManuallyDrop<Option<BufferRing>>,
    stats: EngineStats,
    spin: Spin,
    farewells: VecDeque<Farewell>,
    /// Those that used up their bytes.
    ready: VecDeque<ConnId>,
    /// Those that found no small, and no large, slot.
    starved: Starved,
    starved_direct: VecDeque<ConnId>,
    /// How large messages are received, if that is found out by measuring; otherwise directly.
    chooser: Option<Chooser>,
    udp: ManuallyDrop<Datagrams>,
    ring: Ring,
    /// What the kernel reads of an alarm.
    alarm_time: Box<Timespec>,
    /// Pieces that the kernel reads from until it notifies.
    loans: ManuallyDrop<Table<Loan>>,
    listeners: Table<Listener>,
    bell: Arc<Bell>,
    #[expect(clippy::vec_box, reason = "a batch moves between here and a connection, its kilobyte does not")]
    spare_batches: Vec<Box<Batch>>,
    config: EngineConfig,
}

impl UringEngine {
    /// Takes a connected socket in.
    fn insert(&mut self, socket: socket2::Socket, state: State) -> ConnId {
        self.conns.insert(Conn::new(socket.into(), state, self.first_mode))
    }

    /// Asks the kernel to end operations of a connection, those of them that are armed.
    fn cancel(&mut self, id: ConnId, ops: u8) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let ending = conn.armed & ops & !conn.cancelled;
        conn.cancelled |= ending;
        for op in Op::OF_CONN {
            if ending & op.bit() != 0 {
                let conn = self.conns.get(id);
                match conn.map(|conn| &conn.flight) {
                    Some(Flight::ZeroCopy(loan)) if op == Op::Send => self.cancel_tag(Op::SendZc.tag(*loan)),
                    _ => self.cancel_tag(op.tag(id)),
                }
            }
        }
    }

    fn cancel_tag(&mut self, tag: u64) {
        let entry =
            io_uring::opcode::AsyncCancel::new(tag).build().user_data(Op::Cancel.tag(Id { slot: 0, generation: 0 }));
        // SAFETY: a cancellation refers to no memory.
        unsafe { self.ring.push(&entry) };
    }

    /// Brings what is armed in line with what is wanted. Does nothing if it is already.
    fn settle(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.state {
            State::Connecting | State::Closed => {}
            State::Open => self.settle_receive(id),
            State::Failing | State::Closing => self.wind_down(id),
        }
    }
}

impl Engine for UringEngine {
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self> {
        let features = config.features;
        let mut ring = Ring::open(&features)?;
        let buffers =
            if features.multishot_receive { Some(BufferRing::register(&ring, &pool, BUFFER_GROUP)?) } else { None };
        let first_mode = match (features.multishot_receive, features.direct_receive) {
            (true, _) => Mode::Multishot,
            (false, true) => Mode::Direct,
            (false, false) => Mode::OneShot,
        };
        let bell = Arc::new(Bell::new()?);
        bell.arm(&mut ring);
        let slot_bytes = pool.config().small_slot_bytes;
        Ok(Self {
            ring,
            conns: ManuallyDrop::new(Table::new()),
            buffers: ManuallyDrop::new(buffers),
            pool: ManuallyDrop::new(pool),
            loans: ManuallyDrop::new(Table::new()),
            zero_copy_above: config.zero_copy_above.filter(|_| features.zero_copy),
            udp: ManuallyDrop::new(Datagrams::new()),
            listeners: Table::new(),
            bell,
            bell_armed: true,
            config: config.clone(),
            first_mode,
            adaptive: features.multishot_receive && features.direct_receive,
            chooser: features.measured_receive.then(Chooser::new),
            send_at_once: send::SEND_AT_ONCE,
            large_bytes: receive::LARGE_BYTES.min(slot_bytes / 4 * 3),
            small_bytes: receive::SMALL_BYTES.min(slot_bytes / 4),
            spare_batches: Vec::with_capacity(send::SPARE_BATCHES),
            farewells: VecDeque::new(),
            current: None,
            current_bytes: 0,
            run: None,
            run_bytes: 0,
            ready: VecDeque::with_capacity(LISTED_AT_FIRST),
            ready_this_turn: 0,
            ready_first: false,
            starved: Starved::new(config.share_bytes),
            starved_direct: VecDeque::with_capacity(LISTED_AT_FIRST),
            backed_off: false,
            descriptor_freed: false,
            events_per_turn: config.events_per_turn.max(1),
            bytes_per_turn: config.bytes_per_turn.max(1),
            events_left: config.events_per_turn.max(1),
            alarm_at: None,
            alarm_serial: 0,
            alarms: 0,
            alarm_time: Box::default(),
            spin: Spin::thrifty(config.spin),
            sender: Sender { blocking: true, sendfile: features.sendfile },
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
        let socket = socket.into_system()?;
        socket.set_nonblocking(false)?;
        Ok(self.insert(socket, State::Open))
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
        let fd = self.conns.get(conn).and_then(|conn| conn.fd.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        let socket = socket2::SockRef::from(fd);
        Ok(ConnInfo { local: socket.local_addr()?, peer: socket.peer_addr()?, unacked: platform::unacked(fd.as_fd()) })
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
        let fd = self.conns.get(conn).and_then(|conn| conn.fd.as_ref()).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketRef(fd.into()))
    }

    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()> {
        self.socket(conn)?.0.set_out_of_band_inline(true)?;
        self.watch_mark(conn);
        Ok(())
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.turn(deadline)
    }

    fn next(&mut self) -> Option<Event> {
        self.any_next()
    }

    #[inline]
    fn next_usual(&mut self) -> Usual {
        self.usual_next()
    }

    #[inline]
    fn upcoming(&self, ahead: usize) -> Option<Upcoming> {
        let tag = self.ring.upcoming(ahead)?;
        let (slot, op) = (tag as u32 as usize, tag >> 60);
        let received = op == Op::Receive as u64 || op == Op::Poll as u64;
        if !received && op != Op::Send as u64 {
            return None;
        }
        self.conns.prefetch(slot);
        Some(Upcoming { slot, received })
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn waker(&self) -> Waker {
        Waker(self.bell.clone())
    }

    fn stats(&self) -> EngineStats {
        let datagram_bytes_copied = self.udp.copied_bytes();
        EngineStats { calls: self.stats.calls + self.ring.enters, datagram_bytes_copied, ..self.stats }
    }
}
