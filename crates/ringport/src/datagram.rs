//! Datagrams: a [`DatagramHandler`] is called with what arrives on its socket, and keeps a state for each peer.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringport_engine::{Buf, Chunk, OptionName, SocketOption, UdpId, UdpOptions};

use crate::session::{Rate, Refusal, SendOutcome};
use crate::worker::{Context, Facts};

/// One datagram, whole unless it says otherwise.
#[derive(Debug)]
#[non_exhaustive]
pub struct Datagram {
    /// Who sent it. Nobody vouches for that: an address can be forged.
    pub from: SocketAddr,
    /// Its bytes; there may be none.
    pub data: Buf,
    /// Whether its end is missing, because it was larger than
    /// [`EngineConfig::datagram_bytes`](crate::EngineConfig::datagram_bytes).
    pub truncated: bool,
}

impl Datagram {
    pub(crate) fn new(from: SocketAddr, data: Buf, truncated: bool) -> Self {
        Self { from, data, truncated }
    }
}

/// The behaviour of a datagram socket.
///
/// Every worker has a handler and a socket of its own; on Linux the kernel gives each peer to one of them by a hash
/// (`SO_REUSEPORT`, see socket(7)), elsewhere the first worker serves all. No callback may block. What callbacks send
/// is handed to the kernel many datagrams at a time: before more are received, at the end of the turn at the latest.
///
/// A callback that panics loses its datagram; the worker goes on.
#[expect(unused_variables, reason = "the names of the parameters are documentation")]
pub trait DatagramHandler: 'static {
    /// What the handler keeps for each peer. It begins with the peer's first datagram and ends when none came for
    /// [`DatagramOptions::idle_timeout`]. A type without a size, such as `()`, keeps nothing, and no table of peers is
    /// kept then, unless [`DatagramOptions::rate_max`] or [`DatagramOptions::peers_per_address_max`] need one.
    type Peer: Default + 'static;

    /// The socket is bound.
    fn open(&mut self, socket: &mut Datagrams<'_>) {}

    /// A datagram arrived.
    fn datagram(&mut self, socket: &mut Datagrams<'_>, peer: &mut Self::Peer, datagram: Datagram);

    /// Nothing came from a peer for the idle timeout; its state is given up.
    fn expired(&mut self, socket: &mut Datagrams<'_>, address: SocketAddr, peer: Self::Peer) {}

    /// A datagram could not be sent, or its peer cannot be reached (`ConnectionRefused`: nobody has the port).
    fn failed(&mut self, socket: &mut Datagrams<'_>, to: Option<SocketAddr>, error: &io::Error) {}

    /// Sends were refused for want of room, and there is room again.
    fn writable(&mut self, socket: &mut Datagrams<'_>) {}

    /// Called once a tick interval, see [`Server::tick`](crate::Server::tick).
    fn tick(&mut self, socket: &mut Datagrams<'_>) {}
}

/// Options of a datagram socket and its peers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DatagramOptions {
    /// The socket. (`reuse_port` is chosen by the server.)
    pub socket: UdpOptions,
    /// Most peers with a state at once: 65,536 for each worker. A datagram of one more is dropped and counted.
    pub peers_max: usize,
    /// Most peers of one IP address at once, for each worker; a datagram of one more is dropped and counted. Off by default.
    /// IPv6 addresses count by their first 64 bits, of which one site usually has all.
    pub peers_per_address_max: Option<usize>,
    /// How many datagrams a peer may send a second, and at once; more are dropped and counted. Off by default.
    pub rate_max: Option<Rate>,
    /// A peer's state ends when nothing came from it for this long, and up to a quarter more: 5 minutes. `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Datagrams that may wait besides those that the engine has taken
    /// ([`DATAGRAMS_QUEUED_MAX`](ringport_engine::engine::contract::DATAGRAMS_QUEUED_MAX)): 1,024. More are refused.
    pub queue_max: usize,
}

impl Default for DatagramOptions {
    fn default() -> Self {
        Self {
            socket: UdpOptions::default(),
            peers_max: 65_536,
            peers_per_address_max: None,
            rate_max: None,
            idle_timeout: Some(Duration::from_secs(300)),
            queue_max: 1024,
        }
    }
}

impl DatagramOptions {
    /// Sets the most peers, and after which silence a peer is forgotten.
    #[must_use]
    pub fn peers(mut self, peers_max: usize, idle_timeout: Option<Duration>) -> Self {
        self.peers_max = peers_max;
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets the most peers of one IP address.
    #[must_use]
    pub fn peers_per_address_max(mut self, peers: Option<usize>) -> Self {
        self.peers_per_address_max = peers;
        self
    }

    /// Sets how many datagrams a peer may send a second.
    #[must_use]
    pub fn rate_max(mut self, rate: Option<Rate>) -> Self {
        self.rate_max = rate;
        self
    }

    /// Sets a further option of the socket, before it is bound.
    #[must_use]
    pub fn option(mut self, option: SocketOption) -> Self {
        self.socket.more.push(option);
        self
    }

    /// Sets the bytes of the kernel's buffers; `None` leaves the system's default.
    #[must_use]
    pub fn kernel_buffers(mut self, receive: Option<u32>, send: Option<u32>) -> Self {
        self.socket.receive_buffer = receive;
        self.socket.send_buffer = send;
        self
    }

    /// Sets how many datagrams may wait to be sent.
    #[must_use]
    pub fn queue_max(mut self, datagrams: usize) -> Self {
        self.queue_max = datagrams;
        self
    }
}

/// What a callback asked to be sent.
#[derive(Default)]
pub(crate) struct Outbox {
    pub(crate) queue: VecDeque<(SocketAddr, Chunk)>,
    pub(crate) queue_max: usize,
    /// Something was refused; `writable` is called when there is room.
    pub(crate) refused: bool,
    /// Something was refused for want of memory, since the worker last looked.
    pub(crate) no_memory: bool,
    /// `writable` is called when there is memory.
    pub(crate) waits_for_memory: bool,
    pub(crate) closing: bool,
}

/// A datagram socket, for the time of one callback.
pub struct Datagrams<'a> {
    pub(crate) context: &'a mut Context,
    pub(crate) facts: &'a mut dyn Facts,
    pub(crate) id: UdpId,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) local: SocketAddr,
}

impl Datagrams<'_> {
    /// Queues one datagram. Datagrams of one size to one peer in a row may leave as one segmented send.
    ///
    /// With too many waiting, or beyond the memory limit of the server, the data comes back in the outcome, and
    /// [`DatagramHandler::writable`] follows.
    #[inline]
    pub fn send_to(&mut self, to: SocketAddr, data: impl Into<Chunk>) -> SendOutcome {
        let data = data.into();
        if self.outbox.closing {
            return SendOutcome::Refused { data, why: Refusal::Closing };
        }
        if self.outbox.queue.len() >= self.outbox.queue_max {
            self.outbox.refused = true;
            self.context.count_refused_datagram();
            return SendOutcome::Refused { data, why: Refusal::Limit };
        }
        if !self.context.charge_datagram(data.len() as u64) {
            self.outbox.no_memory = true;
            self.context.count_refused_datagram();
            return SendOutcome::Refused { data, why: Refusal::ProcessLimit };
        }
        self.outbox.queue.push_back((to, data));
        SendOutcome::Queued
    }

    /// An option of the socket.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the system has no such option or only connections have it, and what getsockopt(2) answers.
    pub fn option(&self, name: OptionName) -> io::Result<SocketOption> {
        self.facts.udp_option(self.id, name)
    }

    /// Sets an option of the socket.
    ///
    /// # Errors
    ///
    /// As [`Self::option`], and what setsockopt(2) answers.
    pub fn set_option(&mut self, option: &SocketOption) -> io::Result<()> {
        self.facts.set_udp_option(self.id, option)
    }

    /// Where the socket is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Datagrams that wait for the engine to take them.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.outbox.queue.len()
    }

    /// The time of this turn of the worker. Virtual in a simulation.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.context.now()
    }

    /// The worker, to reach its connections.
    pub fn worker(&mut self) -> &mut Context {
        self.context
    }
}
