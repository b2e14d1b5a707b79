//! The deterministic simulator: an engine without a kernel, whose every delay, short count and failure follows from a
//! seed.
//!
//! It obeys the same contract as the others and runs the same suite. What it adds is repetition: a race that one seed
//! found is found by that seed each time, and [`Network::trace`] shows that two runs were the same. A seed also decides
//! which kernel interface the network behaves like (`personality.rs`), and the memory that its kernel works on is watched
//! (`memory.rs`).
//!
//! Rejected: threads and real time (nothing would repeat), and an engine that only records calls (it could not show
//! what a caller does when a send is short or a pause comes late). The price is that it shows nothing about a real
//! kernel; for that the suite runs on the other engines too.

mod accept;
mod close;
mod connect;
mod datagram;
mod faults;
mod memory;
mod network;
mod personality;
mod receive;
mod send;
mod tcp;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use crate::buffer::{Chunk, Pool, SendQueue};
use crate::engine::backoff::Backoff;
use crate::engine::contract::{
    Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, SendProgress, SendTo, Wake, Waker, Want,
};
use crate::id::{ConnId, Id, ListenerId, Table, UdpId};
use crate::options::{OptionName, SocketOption};
use crate::socket::{SockAddr, Socket, SocketOptions, is_tcp};

use datagram::Datagrams;
pub use faults::Faults;
use memory::{Posted, Reading};
pub(crate) use network::Endpoint;
pub use network::Network;
use network::{Note, State};
pub use personality::{Oddity, Personality};

/// An engine on a simulated [`Network`].
///
/// Opened without [`EngineConfig::network`] it makes a network of its own, from which nothing can be reached but
/// itself.
pub struct SimEngine {
    network: Network,
    /// Its inbox in the network.
    number: usize,
    pool: Pool,
    /// Slots that the kernel may write to.
    posted: Posted,
    config: EngineConfig,
    listeners: Table<Listener>,
    conns: Table<Conn>,
    udp: Datagrams,
    /// What the next turn has to look at, in order.
    ready: VecDeque<Note>,
    /// Connections that used up their bytes of this turn.
    later: Vec<Note>,
    /// Connections that wait for a buffer, the longest first.
    starved: VecDeque<ConnId>,
    turn: u64,
    events_left: usize,
    stats: EngineStats,
}

/// A listening socket and its pause.
#[derive(Debug)]
struct Listener {
    socket: Id,
    backoff: Backoff,
    closing: bool,
}

/// A connection.
#[derive(Debug)]
struct Conn {
    socket: Id,
    state: ConnState,
    /// What `send` took and the kernel did not yet.
    record: SendQueue,
    /// What was to be sent could not be read.
    failed: Option<io::ErrorKind>,
    /// A FIN was asked for.
    finishing: bool,
    /// Bytes that the kernel took and has not reported.
    unreported: usize,
    /// A send is in the request queue, which has room for one.
    send_posted: bool,
    /// Pieces that were sent and that the kernel still reads.
    reading: VecDeque<Reading>,
    /// A readiness edge was told, and not everything was read since.
    readable: bool,
    /// A receive was under way when the connection was closed.
    eats: bool,
    /// The peer's FIN was reported.
    peer_closed: bool,
    /// Receiving has failed for want of a buffer, so that the next try is made in earnest.
    starving: bool,
    /// Bytes received in turn `turn`.
    received: usize,
    turn: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnState {
    Connecting,
    Open,
    Closing,
}

impl Conn {
    fn new(socket: Id, state: ConnState) -> Self {
        let record = SendQueue::new();
        Self {
            socket,
            state,
            record,
            failed: None,
            finishing: false,
            unreported: 0,
            send_posted: false,
            reading: VecDeque::new(),
            readable: false,
            eats: false,
            peer_closed: false,
            starving: false,
            received: 0,
            turn: 0,
        }
    }
}

impl SimEngine {
    /// The network that this engine is on.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The kernel's side of `conn`, with the network locked.
    fn open_conn(&mut self, conn: ConnId) -> Option<(MutexGuard<'_, State>, &mut Conn)> {
        let entry = self.conns.get_mut(conn).filter(|entry| entry.state != ConnState::Closing)?;
        Some((self.network.lock(), entry))
    }
}

impl Engine for SimEngine {
    fn open(config: &EngineConfig, pool: Pool) -> io::Result<Self> {
        let network = config.network.clone().unwrap_or_else(|| Network::new(0));
        let number = network.lock().open_inbox();
        Ok(Self {
            network,
            number,
            posted: Posted::new(pool.clone()),
            pool,
            config: config.clone(),
            listeners: Table::new(),
            conns: Table::new(),
            udp: Datagrams::new(),
            ready: VecDeque::new(),
            later: Vec::new(),
            starved: VecDeque::new(),
            turn: 0,
            events_left: 0,
            stats: EngineStats::default(),
        })
    }

    fn listen(&mut self, socket: Socket) -> io::Result<ListenerId> {
        self.begin_listening(socket)
    }

    fn accept(&mut self, listener: ListenerId, want: Want) {
        self.set_accepting(listener, want);
    }

    fn unlisten(&mut self, listener: ListenerId) {
        self.stop_listening(listener);
    }

    fn adopt(&mut self, socket: Socket) -> io::Result<ConnId> {
        self.take_in(socket)
    }

    fn connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        self.begin_connecting(to, options)
    }

    fn receive(&mut self, conn: ConnId, want: Want) {
        self.set_receiving(conn, want);
    }

    fn send(&mut self, conn: ConnId, queue: &mut SendQueue) -> SendProgress {
        self.begin_sending(conn, queue)
    }

    fn shutdown_write(&mut self, conn: ConnId) {
        self.finish_sending(conn);
    }

    fn close(&mut self, conn: ConnId, how: Close) {
        self.begin_closing(conn, how);
    }

    fn info(&self, conn: ConnId) -> io::Result<ConnInfo> {
        let entry = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let state = self.network.lock();
        let socket = state.sockets.get(entry.socket).ok_or(io::ErrorKind::NotConnected)?;
        let unacked = Some(socket.outgoing.len() as u64);
        Ok(ConnInfo { local: socket.local.clone(), peer: socket.remote.clone(), unacked })
    }

    fn bind_udp(&mut self, socket: Socket) -> io::Result<UdpId> {
        self.take_port(socket)
    }

    fn receive_datagrams(&mut self, udp: UdpId, want: Want) {
        self.want_datagrams(udp, want);
    }

    fn send_to(&mut self, udp: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        self.queue_datagram(udp, to, data)
    }

    fn close_udp(&mut self, udp: UdpId) {
        self.close_port(udp);
    }

    fn udp_option(&self, udp: UdpId, name: OptionName) -> io::Result<SocketOption> {
        self.port_option(udp, name)
    }

    fn set_udp_option(&mut self, udp: UdpId, option: &SocketOption) -> io::Result<()> {
        self.set_port_option(udp, option)
    }

    fn option(&self, conn: ConnId, name: OptionName) -> io::Result<SocketOption> {
        let entry = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let state = self.network.lock();
        let socket = state.sockets.get(entry.socket).ok_or(io::ErrorKind::NotConnected)?;
        let set = socket.options.iter().rev().find(|option| option.name() == name);
        set.cloned().or_else(|| name.simulated()).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    fn set_option(&mut self, conn: ConnId, option: &SocketOption) -> io::Result<()> {
        let entry = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let mut state = self.network.lock();
        let socket = state.sockets.get_mut(entry.socket).ok_or(io::ErrorKind::NotConnected)?;
        check_simulated(option)?;
        socket.options.retain(|set| set.name() != option.name());
        socket.options.push(option.clone());
        Ok(())
    }

    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()> {
        let entry = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let mut state = self.network.lock();
        let socket = state.sockets.get_mut(entry.socket).ok_or(io::ErrorKind::NotConnected)?;
        socket.inline = true;
        Ok(())
    }

    fn at_mark(&self, conn: ConnId) -> io::Result<bool> {
        let entry = self.conns.get(conn).ok_or(io::ErrorKind::NotFound)?;
        let state = self.network.lock();
        let socket = state.sockets.get(entry.socket).ok_or(io::ErrorKind::NotConnected)?;
        if is_tcp(&socket.local) { Ok(socket.is_at_mark()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.begin_turn(deadline);
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        self.next_event()
    }

    fn now(&self) -> Instant {
        let state = self.network.lock();
        state.base + state.now
    }

    fn waker(&self) -> Waker {
        Waker(Arc::new(SimWaker { network: self.network.clone(), number: self.number }))
    }

    fn stats(&self) -> EngineStats {
        self.stats
    }
}

impl Drop for SimEngine {
    /// Closes every socket, as the end of a process does.
    fn drop(&mut self) {
        let mut state = self.network.lock();
        state.close_inbox(self.number);
        for id in self.listeners.ids::<ListenerId>() {
            if let Some(listener) = self.listeners.get(id) {
                state.release_listener(listener.socket);
            }
        }
        for id in self.conns.ids::<ConnId>() {
            if let Some(conn) = self.conns.get(id) {
                state.release(conn.socket, Close::Plain);
            }
        }
        for id in self.udp.ports.ids::<UdpId>() {
            if let Some(port) = self.udp.ports.get(id) {
                state.release_udp(port.socket);
            }
        }
    }
}

impl std::fmt::Debug for SimEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let conns = self.conns.len();
        f.debug_struct("SimEngine").field("number", &self.number).field("conns", &conns).finish_non_exhaustive()
    }
}

/// Whether the simulator can keep an option: any but a raw one, whose meaning it does not know.
pub(crate) fn check_simulated(option: &SocketOption) -> io::Result<()> {
    option.check()?;
    if option.name().simulated().is_some() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

struct SimWaker {
    network: Network,
    number: usize,
}

impl Wake for SimWaker {
    fn wake(&self) {
        self.network.lock().wake(self.number);
    }
}
