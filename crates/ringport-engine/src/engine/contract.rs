//! What every engine supplies, and the laws it obeys.
//!
//! An engine is an iterator of events. A turn of a worker is: [`Engine::wait`], then [`Engine::next`] until it returns
//! `None`, calling the other methods in between as it likes. No method blocks but `wait`.
//!
//! The conformance suite (`tests/conformance/`) has at least one test for each law and runs on every engine of
//! the machine, the simulator included.
//!
//! 1. **The engine owns what the kernel can see.** [`Engine::send`] moves pieces out of the caller's queue into a
//!    record of the engine's, where their addresses are stable. Nothing the caller does afterwards can free them.
//! 2. **The region outlives everybody.** Engine, [`Pool`] and every [`Buf`] share ownership of the memory. Dropping an
//!    engine aborts what is in flight and waits at most [`DROP_WAIT`] for the terminal completions; what has not come
//!    back then is leaked, never freed. A forgotten engine, a pool dropped first, a `Buf` or a [`Waker`] kept
//!    after the engine are harmless.
//! 3. **`Closed` is the last event of a connection, exactly once.** Only then is its slot reused, under a new
//!    generation. Calls with a stale id do nothing (or return `NotFound` where they return something).
//!    A connection that fails closes itself: bytes that arrived before the failure are delivered first if receiving is
//!    `On`, then comes `Closed` with the error. The caller need not (but may) call `close`.
//!    While receiving is `Paused`, an engine may notice a failure at once, and bytes that nobody received are lost then.
//!    At the latest it notices when receiving goes on (those bytes come first) or when something is sent.
//! 4. **One receive armed and one send in flight** per connection. A send may be vectored. While one is in
//!    flight, `send` takes nothing; the caller calls it again after [`Event::Sent`]. Before [`Event::Connected`] it takes
//!    nothing either, and says so by no bytes and not `idle`; the caller calls it again after that event.
//! 5. **`Sent` reports what the kernel took,** no more. A short send continues from its record. What never left comes
//!    back with `Closed`.
//! 6. **`Paused` is a wish:** what was already received still arrives, and nothing is dropped. `PeerClosed` comes after
//!    all bytes before it, so that a paused connection may learn of it only when it goes on.
//! 7. **No buffer for an idle connection,** except on Registered I/O, which must be given memory before the bytes come;
//!    there they hold half of the pool's slots at most. Running out of buffers is transient: receiving goes on when one
//!    comes back, on whatever thread that is, and is never reported as an end of stream. No timer looks for one.
//! 8. **A failed accept never stops accepting.** Out of descriptors or memory, the engine backs off from
//!    [`ACCEPT_BACKOFF_MIN`] to [`ACCEPT_BACKOFF_MAX`] and reports [`Event::AcceptFailed`]; a connection reset before
//!    it was accepted is skipped and counted. Other sockets go on.
//! 9. **Nothing that was sent is destroyed by closing in order.** [`Engine::shutdown_write`] takes effect after the
//!    record in flight; a caller that then discards what it receives until [`Event::PeerClosed`] and closes loses
//!    nothing. (The session's graceful close does that.) [`Engine::close`] by itself does not wait for anything.
//! 10. **A turn is bounded:** at most [`EngineConfig::events_per_turn`] events, and
//!     [`EngineConfig::bytes_per_turn`] of one connection before the others. Whatever is left keeps `wait` from
//!     blocking and is delivered in order.
//! 11. **Nothing panics** on what the network or the kernel returns.
//! 12. **Every kernel feature can be masked** by [`Features`], and the suite runs each fallback.
//!
//! Datagrams (UDP) have laws of their own. An engine without them answers [`Engine::bind_udp`] with `Unsupported`.
//!
//! 13. **Whole datagrams only,** each at most once, the empty one included. One that is larger than
//!     [`EngineConfig::datagram_bytes`] arrives cut to that size and says so. Order is not promised.
//! 14. **Drops are counted** where the system tells of them ([`EngineStats::datagrams_dropped`]): UDP loses what nobody
//!     reads in time, and a pool without a free slot is a reason to read later, never an error.
//! 15. **The send queue is bounded** by [`DATAGRAMS_QUEUED_MAX`] for each socket. A full one hands the data back, and
//!     [`Event::DatagramsWritable`] says when there is room. What was taken leaves in [`Engine::wait`] at the latest, many
//!     datagrams at a time.
//! 16. **A failed datagram does not end its socket.** An unreachable peer (ICMP), a datagram that is too large or a
//!     route that is missing is [`Event::DatagramFailed`], and counted.
//! 17. **`UdpClosed` is the last event of a socket, exactly once,** with the number of datagrams that were taken and
//!     never left. Laws 2, 3 (stale ids), 6 and 10 hold for datagrams as they do for connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{platform, system_options};
use crate::buffer::{Buf, Chunk, Pool, SendQueue};
use crate::id::{ConnId, ListenerId, UdpId};
use crate::options::{OptionName, SocketOption, SocketRef, TcpInfo};
use crate::socket::{SockAddr, Socket, SocketOptions};

/// Longest time that dropping an engine waits for the kernel.
pub const DROP_WAIT: Duration = Duration::from_secs(2);
/// First pause after an accept failed for want of descriptors or memory.
pub const ACCEPT_BACKOFF_MIN: Duration = Duration::from_millis(10);
/// Longest pause between two such accepts.
pub const ACCEPT_BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Datagrams that wait to be sent on one socket at most. At 64 bytes that is what four calls of the kernel take, and with
/// the largest datagrams 64 MiB.
pub const DATAGRAMS_QUEUED_MAX: usize = 1024;
/// Longest time that a wait may poll before it parks, whatever [`EngineConfig::spin`] asks for.
pub const SPIN_MAX: Duration = Duration::from_millis(10);

/// A kernel interface, opened, used and dropped on one thread.
pub trait Engine: Sized {
    /// Opens the interface. Received bytes lie in slots of `pool`.
    ///
    /// # Errors
    ///
    /// What the system answered: `PermissionDenied` when a policy forbids the interface, `Unsupported` when the kernel
    /// has no such thing, `OutOfMemory` when a limit on locked memory is too low.
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self>;

    /// Takes a listening socket. It accepts nothing before [`Engine::accept`] says so.
    ///
    /// # Errors
    ///
    /// If the socket cannot be registered. The socket is closed then.
    fn listen(&mut self, socket: Socket) -> io::Result<ListenerId>;

    /// Starts or pauses accepting. What the kernel accepted before the pause still arrives.
    fn accept(&mut self, listener: ListenerId, want: Want);

    /// Stops listening for good and closes the socket. [`Event::ListenerClosed`] is its last event.
    fn unlisten(&mut self, listener: ListenerId);

    /// Binds a connected socket to this engine, for life. Receiving starts with [`Engine::receive`].
    ///
    /// # Errors
    ///
    /// If the socket cannot be registered. The socket is closed then.
    fn adopt(&mut self, socket: Socket) -> io::Result<ConnId>;

    /// Begins to connect. [`Event::Connected`] or [`Event::Closed`] follows.
    ///
    /// # Errors
    ///
    /// If no socket could be made, or an option was refused.
    fn connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId>;

    /// Says whether received bytes are wanted.
    fn receive(&mut self, conn: ConnId, want: Want);

    /// Hands the front of `queue` to the kernel, unless a send is in flight already, the connection is closing or its
    /// [`Event::Connected`] has not come yet.
    ///
    /// Says what the kernel took before this call returned. Unless that was everything the engine took out of the
    /// queue, the send is in flight and [`Event::Sent`] reports the rest, in one or more parts, the last with
    /// `idle`. An error of the connection is reported by [`Event::Closed`], later.
    fn send(&mut self, conn: ConnId, queue: &mut SendQueue) -> SendProgress;

    /// Sends a FIN after the record in flight. Nothing may be sent on the connection afterwards.
    fn shutdown_write(&mut self, conn: ConnId);

    /// Gives the connection up: no event of it follows but [`Event::Closed`]. Cancels a connect.
    fn close(&mut self, conn: ConnId, how: Close);

    /// Addresses and the state of the kernel's send queue.
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id.
    fn info(&self, conn: ConnId) -> io::Result<ConnInfo>;

    /// Binds a datagram socket (see [`Socket::bind_udp`]) to this engine, for life. It receives nothing before
    /// [`Engine::receive_datagrams`] says so.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the engine has no datagrams; otherwise if the socket cannot be registered. It is closed then.
    fn bind_udp(&mut self, socket: Socket) -> io::Result<UdpId> {
        drop(socket);
        Err(io::Error::new(io::ErrorKind::Unsupported, "this engine has no datagrams"))
    }

    /// Says whether datagrams are wanted. While they are not, the kernel keeps what fits its buffer and drops the rest.
    fn receive_datagrams(&mut self, udp: UdpId, want: Want) {
        let _ = (udp, want);
    }

    /// Queues one datagram. It leaves in the next [`Engine::wait`] at the latest; datagrams of the same size to the same
    /// peer in a row may leave as one segmented send. What is no bytes in memory (a range of a file, urgent data) fails.
    fn send_to(&mut self, udp: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        let _ = (udp, to);
        SendTo::Closed(data)
    }

    /// Sends what the kernel takes at once and gives the socket up: no event of it follows but [`Event::UdpClosed`].
    fn close_udp(&mut self, udp: UdpId) {
        let _ = udp;
    }

    /// The system's socket of a datagram socket, as [`Engine::socket`] is that of a connection.
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id, `Unsupported` where there is no such socket.
    fn udp_socket(&self, udp: UdpId) -> io::Result<SocketRef<'_>> {
        let _ = udp;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An option of a datagram socket.
    ///
    /// # Errors
    ///
    /// As [`Engine::option`], and `Unsupported` for what only connections have.
    fn udp_option(&self, udp: UdpId, name: OptionName) -> io::Result<SocketOption> {
        name.check_datagrams()?;
        SocketOption::read(&self.udp_socket(udp)?.0, name)
    }

    /// Sets an option of a datagram socket.
    ///
    /// # Errors
    ///
    /// As [`Engine::set_option`], and `Unsupported` for what only connections have.
    fn set_udp_option(&mut self, udp: UdpId, option: &SocketOption) -> io::Result<()> {
        option.name().check_datagrams()?;
        option.set(&self.udp_socket(udp)?.0)
    }

    /// The system's socket of a connection, for the methods below. An engine whose connections are sockets of the system
    /// supplies this one and inherits the others.
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id, `Unsupported` where there is no such socket.
    fn socket(&self, conn: ConnId) -> io::Result<SocketRef<'_>> {
        let _ = conn;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// An option of a connection.
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id, `Unsupported` where the system has no such option, and what getsockopt(2) answers.
    fn option(&self, conn: ConnId, name: OptionName) -> io::Result<SocketOption> {
        SocketOption::read(&self.socket(conn)?.0, name)
    }

    /// Sets an option of a connection.
    ///
    /// # Errors
    ///
    /// As [`Engine::option`], `InvalidInput` for what would block the worker, and what setsockopt(2) answers.
    fn set_option(&mut self, conn: ConnId, option: &SocketOption) -> io::Result<()> {
        option.set(&self.socket(conn)?.0)
    }

    /// What TCP knows of a connection.
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id, `Unsupported` but on Linux.
    fn tcp_info(&self, conn: ConnId) -> io::Result<TcpInfo> {
        system_options::tcp_info(&self.socket(conn)?.0)
    }

    /// Keeps urgent data of a connection in the stream (`SO_OOBINLINE`), lets received buffers end before it, and
    /// [`Engine::at_mark`] tell where that is. Costs more for each receive, so that it has to be asked for.
    ///
    /// # Errors
    ///
    /// As [`Engine::set_option`].
    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()>;

    /// Whether the next byte to be received is the last that was sent as urgent (`SIOCATMARK`, see tcp(7)). Exact between
    /// an [`Event::Received`] and the next event, after [`Engine::watch_urgent`].
    ///
    /// # Errors
    ///
    /// `NotFound` for a stale id, `Unsupported` where nothing is urgent: for Unix sockets, and with the engines of Windows.
    fn at_mark(&self, conn: ConnId) -> io::Result<bool> {
        platform::at_mark(&self.socket(conn)?.0)
    }

    /// Submits what was asked for, and waits for events until `deadline` (`None`: without end). Returns at once while
    /// events are left over from an earlier turn. Spurious returns are allowed.
    ///
    /// # Errors
    ///
    /// Only what no retry can mend: the engine is unusable then.
    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()>;

    /// The next event of this turn, or `None` at its end.
    fn next(&mut self) -> Option<Event>;

    /// The next event, if it is of one of the two kinds that nearly all are of and the engine can tell at once. If it finds
    /// none, [`Engine::next`] tells what comes, and whether the turn is over. An event that may be of any kind is moved in memory
    /// several times until it is known of which it is, and each such move stalls the processor.
    #[inline]
    fn next_usual(&mut self) -> Usual {
        Usual::default()
    }

    /// Whose event may come next, or `ahead` events after that: only a hint, to have the processor fetch what it will need
    /// (see [`prefetch`](crate::prefetch)). The engine has its own record of the connection fetched. One that would have to
    /// look for the answer gives none.
    #[inline]
    fn upcoming(&self, _ahead: usize) -> Option<Upcoming> {
        None
    }

    /// The time by which the engine lives: that of the last `wait`. Virtual in the simulator.
    fn now(&self) -> Instant;

    /// Something that ends a `wait` from any thread.
    fn waker(&self) -> Waker;

    /// Counters of this engine.
    fn stats(&self) -> EngineStats;
}

/// Whether something is wanted now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Go on.
    On,
    /// Stop for now.
    Paused,
}

/// What a call of [`Engine::send`] achieved at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct SendProgress {
    /// Bytes that the kernel took.
    pub bytes: usize,
    /// Whether nothing is in flight, so that `send` takes more. False also when nothing can be sent any more.
    pub idle: bool,
}

/// What became of a datagram that was to be sent.
#[derive(Debug)]
#[must_use]
pub enum SendTo {
    /// The engine has it.
    Taken,
    /// [`DATAGRAMS_QUEUED_MAX`] datagrams are waiting; here it is back. [`Event::DatagramsWritable`] follows.
    Full(Chunk),
    /// There is no such socket (any more); here it is back.
    Closed(Chunk),
}

/// How a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// As `close(2)` does: a FIN if everything received was read, else a reset.
    Plain,
    /// With a reset (RST), discarding what the kernel still holds (`SO_LINGER` with zero, see socket(7)).
    Abort,
}

/// A connection that something has happened to, see [`Engine::upcoming`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Upcoming {
    /// The slot of its id.
    pub slot: usize,
    /// Whether it seems to have received something.
    pub received: bool,
}

/// What [`Engine::next_usual`] found: one of both, or none. Not an enum, whose kinds would share their memory, for then it would
/// be moved there.
#[derive(Debug, Default)]
pub struct Usual {
    /// As [`Event::Received`].
    pub received: Option<(ConnId, Buf)>,
    /// As [`Event::Sent`]: the connection, how many bytes the kernel took, and whether nothing is in flight any more.
    pub sent: Option<(ConnId, usize, bool)>,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A connection was accepted. It belongs to no worker until one adopts it.
    Accepted {
        /// Where it was accepted.
        listener: ListenerId,
        /// The new connection.
        socket: Socket,
    },
    /// Accepting failed and goes on after a pause (law 8).
    AcceptFailed {
        /// Where.
        listener: ListenerId,
        /// Why.
        error: io::Error,
    },
    /// The listening socket is closed.
    ListenerClosed {
        /// Which.
        listener: ListenerId,
    },
    /// A connect succeeded.
    Connected {
        /// Which.
        conn: ConnId,
    },
    /// Bytes arrived. Never empty.
    Received {
        /// Where.
        conn: ConnId,
        /// The bytes.
        buf: Buf,
    },
    /// The kernel took bytes of the send in flight.
    Sent {
        /// Where.
        conn: ConnId,
        /// How many.
        bytes: usize,
        /// Whether the record is empty now, so that `send` takes more.
        idle: bool,
    },
    /// The peer sent a FIN. Sending is still possible.
    PeerClosed {
        /// Which.
        conn: ConnId,
    },
    /// The connection is gone: closed as asked, failed, or never connected.
    Closed {
        /// Which. Stale from now on.
        conn: ConnId,
        /// The error that ended it; `None` after [`Engine::close`].
        why: Option<io::Error>,
        /// What `send` took and the kernel did not.
        unsent: Vec<Chunk>,
        /// Bytes that the kernel took and the peer had not acknowledged at the end (`SIOCOUTQ`, see tcp(7)). `None`
        /// where the system cannot say.
        unacked: Option<u64>,
    },
    /// A datagram arrived.
    Datagram {
        /// Where.
        udp: UdpId,
        /// Who sent it.
        from: SocketAddr,
        /// Its bytes; there may be none.
        buf: Buf,
        /// Whether it was larger than [`EngineConfig::datagram_bytes`], so that its end is missing.
        truncated: bool,
    },
    /// After [`SendTo::Full`]: half of the queue is free again.
    DatagramsWritable {
        /// Which socket.
        udp: UdpId,
    },
    /// A datagram was not sent, or its peer cannot be reached. The socket goes on.
    DatagramFailed {
        /// Which socket.
        udp: UdpId,
        /// To whom it was, where the system says so.
        to: Option<SocketAddr>,
        /// Why. `ConnectionRefused`: nobody has the port (ICMP port unreachable).
        error: io::Error,
    },
    /// The datagram socket is closed.
    UdpClosed {
        /// Which. Stale from now on.
        udp: UdpId,
        /// Datagrams that `send_to` took and the kernel did not.
        unsent: usize,
    },
    /// A [`Waker`] rang, or another thread gave back a buffer that a connection waited for.
    Woken,
}

impl Event {
    /// Bytes that it delivers.
    #[inline]
    pub(crate) fn bytes(event: Option<&Self>) -> u64 {
        match event {
            Some(Self::Received { buf, .. } | Self::Datagram { buf, .. }) => buf.len() as u64,
            _ => 0,
        }
    }
}

/// Facts about a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnInfo {
    /// This side's address.
    pub local: SockAddr,
    /// The peer's address.
    pub peer: SockAddr,
    /// Bytes in the kernel's send queue that the peer has not acknowledged. `None` where the system cannot say.
    pub unacked: Option<u64>,
}

/// Counters of an engine since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EngineStats {
    /// Calls of `wait`.
    pub waits: u64,
    /// Events delivered.
    pub events: u64,
    /// Bytes of streams and datagrams delivered.
    pub received_bytes: u64,
    /// System calls for data (`io_uring_enter`, `epoll_wait`, `recv`, `send` …), without those that open and close.
    pub calls: u64,
    /// Times that a receive found no buffer. On io_uring also because many connections had large messages at once, and others
    /// their share of the buffers.
    pub starved: u64,
    /// Accepts that failed, resets before accept included.
    pub accepts_failed: u64,
    /// Connections that changed their way of receiving (io_uring only).
    pub mode_changes: u64,
    /// Datagrams received.
    pub datagrams_received: u64,
    /// Datagrams that the kernel took.
    pub datagrams_sent: u64,
    /// Their bytes.
    pub datagram_bytes_sent: u64,
    /// Bytes of datagrams that wait to be sent, now.
    pub datagram_bytes_queued: u64,
    /// Bytes of received datagrams that somebody holds outside of the buffers for them, now.
    pub datagram_bytes_copied: u64,
    /// Datagrams that the kernel dropped because its buffer was full (`SO_RXQ_OVFL`, see socket(7)). 0 where the system
    /// does not say. The kernel tells with the next datagram that arrives, and counts segments that it has put together as
    /// one.
    pub datagrams_dropped: u64,
    /// Datagrams received without their end.
    pub datagrams_truncated: u64,
    /// Datagrams not sent, and peers reported unreachable.
    pub datagrams_failed: u64,
    /// Among `calls`, those that take completions out of a port (Windows only, as the following ones). For rio also the
    /// looks at its completion queue, which are no system calls and not among `calls`.
    pub dequeues: u64,
    /// Among `calls`, those that start to wait for bytes of one connection.
    pub posts: u64,
    /// Among `calls`, those that receive.
    pub receives: u64,
    /// Among `calls`, those that send.
    pub sends: u64,
    /// rio: among `posts` and `sends`, those that were not deferred, and with them all that were deferred before.
    pub commits: u64,
    /// rio: among `calls`, those that ask to be told when there are completions.
    pub notifies: u64,
    /// Waits that polled before they would have parked ([`EngineConfig::spin`]).
    pub spins: u64,
    /// iocp: among `sends`, those that the system made from a file itself (TransmitFile).
    pub transmits: u64,
    /// Sends that the kernel made without a copy, or at least from the memory itself (io_uring only).
    pub zero_copies: u64,
}

/// How an engine is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineConfig {
    /// Most events of one turn.
    pub events_per_turn: usize,
    /// Most bytes received from one connection before the others have their turn.
    pub bytes_per_turn: usize,
    /// What of the kernel may be used.
    pub features: Features,
    /// How rio learns of completions; other engines ignore it.
    pub rio_completions: RioCompletions,
    /// Whether a wait polls before it parks the thread, which spares a wake-up.
    ///
    /// - `None`: io_uring, epoll and kqueue poll where that takes less processor time than parking, as the thread's own clock
    ///   shows, for at most 150 µs and hardly ever in vain: mostly with few connections whose peers answer at once. The other
    ///   engines never do.
    /// - A time: at most so long, and no longer than [`SPIN_MAX`], as long as recent waits were that short. It is for latency, and
    ///   may cost a whole core.
    /// - Zero: never.
    ///
    /// The simulator ignores it, and so does rio where [`EngineConfig::rio_completions`] says another way than the hybrid one.
    pub spin: Option<Duration>,
    /// io_uring sends pieces of at least this many bytes without copying them into the kernel. Their memory is in use, and
    /// counts as queued, until the peer has acknowledged them. Off if `None`: on loopback it was never cheaper, and on a
    /// real device it has to be measured. Other engines ignore it.
    pub zero_copy_above: Option<usize>,
    /// io_uring, while more than 256 connections have messages of 8 KiB or more and the worker cannot keep up: bytes that are
    /// received before one more connection has its turn, so that each is served a share of this size in a row. The larger it
    /// is, the less does a message cost and the longer do those wait whose turn it is not; [`Self::SHARE_BYTES`] if nobody says
    /// otherwise. `None` or 0: message by message, which costs most and keeps nobody waiting for longer than others. Other
    /// engines ignore it.
    pub share_bytes: Option<u64>,
    /// The network of the simulator; other engines ignore it.
    pub network: Option<crate::engine::sim::Network>,
    /// Buffers for received datagrams. They are reserved when the first datagram socket is bound, and touched as they are
    /// used. On rio each socket has some of its own, about a MiB, and fewer where there are many sockets or this says so.
    pub datagram_slots: u32,
    /// Bytes of the largest datagram that is received whole. 65,535 holds every datagram (see udp(7)) and segments that the
    /// kernel has put together (`UDP_GRO`); with less, these are not asked for.
    pub datagram_bytes: u32,
}

impl EngineConfig {
    /// The default of [`Self::share_bytes`]. With 1,000 connections and 16 KiB a share of 64, 96 and 128 KiB costs 1.07, 1.05 and
    /// 1.03 times what a server with an incremental ring does, and none 1.3 times.
    pub const SHARE_BYTES: u64 = 128 << 10;
}

impl Default for EngineConfig {
    /// 4,096 events and 256 KiB a turn, every feature allowed.
    fn default() -> Self {
        Self {
            events_per_turn: 4096,
            bytes_per_turn: 256 * 1024,
            features: Features::default(),
            rio_completions: RioCompletions::default(),
            spin: None,
            zero_copy_above: None,
            share_bytes: Some(Self::SHARE_BYTES),
            network: None,
            datagram_slots: 256,
            datagram_bytes: 65_535,
        }
    }
}

/// How the engine on Registered I/O learns that requests have completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RioCompletions {
    /// It looks, again and again, and never sleeps: lowest latency, and a whole core.
    Polled,
    /// It sleeps until an event is set.
    Event,
    /// It sleeps until a completion port has a packet, and asks for one before each wait.
    Port,
    /// It looks while there is work, and asks for a packet of the port only when there is none.
    #[default]
    Hybrid,
}

/// Kernel features that an engine may use where it finds them. All on by default; each can be masked, to test the
/// fallback or to work around a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// io_uring: multishot accept (Linux 5.19).
    pub multishot_accept: bool,
    /// io_uring: multishot receive into a provided buffer ring (Linux 6.0).
    pub multishot_receive: bool,
    /// io_uring: plain calls into one hot buffer for connections with large messages.
    pub direct_receive: bool,
    /// io_uring: use them only if measuring shows that they are cheaper on this machine.
    pub measured_receive: bool,
    /// io_uring: `SINGLE_ISSUER` and `DEFER_TASKRUN` (Linux 6.1).
    pub defer_taskrun: bool,
    /// io_uring: no iowait accounting while idle (Linux 6.15).
    pub no_iowait: bool,
    /// iocp: no packet for an operation that succeeds at once (where the provider of the socket allows it).
    pub skip_on_success: bool,
    /// Linux, macOS, FreeBSD: sendfile(2) for ranges of files; iocp: TransmitFile. Otherwise they are read into slots.
    pub sendfile: bool,
    /// io_uring: sends without a copy (Linux 6.0), where [`EngineConfig::zero_copy_above`] asks for them.
    pub zero_copy: bool,
    /// io_uring: multishot receive of datagrams into provided buffers (Linux 6.0); otherwise plain calls after a poll.
    pub multishot_recvmsg: bool,
    /// Many datagrams in one call: recvmmsg(2), sendmmsg(2) (Linux).
    pub mmsg: bool,
    /// Datagrams of one size to one peer in one send (`UDP_SEGMENT`, Linux 4.18; see udp(7)).
    pub gso: bool,
    /// Datagrams of one size from one peer in one receive (`UDP_GRO`, Linux 5.0; see udp(7)).
    pub gro: bool,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            multishot_accept: true,
            multishot_receive: true,
            direct_receive: true,
            measured_receive: true,
            defer_taskrun: true,
            no_iowait: true,
            skip_on_success: true,
            sendfile: true,
            zero_copy: true,
            multishot_recvmsg: true,
            mmsg: true,
            gso: true,
            gro: true,
        }
    }
}

/// Ends the wait of one engine, from any thread. Keeps what it needs alive; harmless after the engine is gone.
#[derive(Clone)]
pub struct Waker(pub(crate) Arc<dyn Wake>);

/// What a waker does; one implementation for each engine.
pub(crate) trait Wake: Send + Sync {
    fn wake(&self);
}

impl Waker {
    /// Makes the engine's current or next `wait` return, with [`Event::Woken`]. Several calls may be reported as one.
    pub fn wake(&self) {
        self.0.wake();
    }
}

impl std::fmt::Debug for Waker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waker")
    }
}
