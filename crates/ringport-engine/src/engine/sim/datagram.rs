//! Datagrams: sent whole or lost, each under way by itself, so that they overtake each other.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::network::{Action, Endpoint, Held, Network, Note, State};
use super::tcp::FIRST_PORT;
use super::{SimEngine, check_simulated};
use crate::buffer::{Chunk, Pool, PoolConfig, SlotClass};
use crate::engine::contract::{DATAGRAMS_QUEUED_MAX, Event, SendTo, Want};
use crate::id::{Id, Table, UdpId};
use crate::options::{OptionName, SocketOption};
use crate::socket::{SockAddr, Socket, UdpOptions};

/// The most that UDP carries over IPv4, see udp(7).
const PAYLOAD_MAX: usize = 65_507;
/// Datagrams that a simulated kernel keeps for a socket whose owner does not read, at least.
const KEPT_MIN: usize = 16;

/// A datagram socket as its kernel sees it.
pub(super) struct SimUdp {
    local: SocketAddr,
    owner: Option<(usize, UdpId)>,
    incoming: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Most datagrams in `incoming`.
    incoming_max: usize,
    /// Dropped since the owner was last told.
    dropped: u64,
    pub(super) options: Vec<SocketOption>,
    wanted: bool,
    /// A [`Note::Datagram`] is on its way.
    noted: bool,
}

/// A datagram under way.
pub(super) struct Packet {
    from: SocketAddr,
    to: SocketAddr,
    data: Vec<u8>,
}

impl Network {
    /// Binds a datagram socket.
    pub(crate) fn bind_udp(&self, address: SocketAddr, options: &UdpOptions) -> io::Result<Endpoint> {
        let set: Vec<SocketOption> = options.options().collect();
        set.iter().try_for_each(check_simulated)?;
        let mut state = self.lock();
        let mut local = address;
        if local.port() == 0 {
            state.ports = state.ports.checked_add(1).unwrap_or(FIRST_PORT);
            local.set_port(state.ports);
        }
        if state.udp_at(local).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let incoming_max = (state.faults.buffer_max / 256).max(KEPT_MIN);
        let (owner, incoming) = (None, VecDeque::new());
        let socket =
            SimUdp { local, owner, incoming, incoming_max, dropped: 0, options: set, wanted: false, noted: false };
        let id = state.udps.insert(socket);
        Ok(Endpoint::new(self, Held::Udp(id), SockAddr::from(local), None))
    }
}

impl State {
    /// The socket that gets what is sent to `to`: one bound to that address, or to every address with that port.
    fn udp_at(&self, to: SocketAddr) -> Option<Id> {
        let ids: Vec<Id> = self.udps.ids();
        ids.into_iter().find(|id| {
            self.udps.get(*id).is_some_and(|socket| {
                let every = socket.local.ip().is_unspecified() && socket.local.is_ipv4() == to.is_ipv4();
                socket.local.port() == to.port() && (every || socket.local.ip() == to.ip())
            })
        })
    }

    /// Puts a datagram on its way.
    fn send_packet(&mut self, from: Id, to: SocketAddr, data: &[u8]) {
        let Some(socket) = self.udps.get(from) else { return };
        let mut source = socket.local;
        if source.ip().is_unspecified() {
            let loopback: IpAddr = if to.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
            source.set_ip(loopback);
        }
        self.note_down(data.len() as u64);
        if self.rng.chance(self.faults.datagram_loss) {
            return;
        }
        let packet = self.packets.insert(Packet { from: source, to, data: data.to_vec() });
        self.schedule(Action::Packet(packet));
    }

    /// A datagram reaches its socket, or nobody.
    pub(super) fn deliver_packet(&mut self, id: Id) {
        let Some(packet) = self.packets.remove(id) else { return };
        let Some(at) = self.udp_at(packet.to) else {
            // The peer's kernel answers with ICMP "port unreachable".
            if let Some(sender) = self.udp_at(packet.from)
                && let Some((engine, udp)) = self.udps.get(sender).and_then(|socket| socket.owner)
            {
                self.schedule(Action::Tell(engine, Note::Unreachable(udp, packet.to)));
            }
            return;
        };
        let Some(socket) = self.udps.get_mut(at) else { return };
        if socket.incoming.len() >= socket.incoming_max {
            socket.dropped += 1;
            return;
        }
        socket.incoming.push_back((packet.from, packet.data));
        self.note_datagram(at);
    }

    /// Tells the owner that there is a datagram, if it wants to know.
    fn note_datagram(&mut self, id: Id) {
        let Some(socket) = self.udps.get_mut(id) else { return };
        let Some((engine, udp)) = socket.owner else { return };
        if socket.wanted && !socket.noted && !socket.incoming.is_empty() {
            socket.noted = true;
            self.schedule(Action::Tell(engine, Note::Datagram(udp)));
        }
    }

    pub(super) fn release_udp(&mut self, id: Id) {
        self.udps.remove(id);
    }
}

/// A datagram socket of an engine.
pub(super) struct Port {
    pub(super) socket: Id,
    outgoing: VecDeque<(SocketAddr, Chunk)>,
    full: bool,
    closing: bool,
    /// In the list of those that are flushed before the engine waits.
    flushing: bool,
    /// Receiving has failed for want of a buffer, so that the next try is made in earnest.
    starving: bool,
    /// Bytes received in turn `turn`.
    received: usize,
    turn: u64,
}

/// What an engine has for datagrams.
pub(super) struct Datagrams {
    pub(super) ports: Table<Port>,
    pool: Option<Pool>,
    flush: Vec<UdpId>,
    starved: Vec<UdpId>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self { ports: Table::new(), pool: None, flush: Vec::new(), starved: Vec::new() }
    }
}

impl SimEngine {
    pub(super) fn take_port(&mut self, socket: Socket) -> io::Result<UdpId> {
        let Held::Udp(socket) = self.hold(socket)? else { return Err(io::ErrorKind::InvalidInput.into()) };
        let config = PoolConfig::default().small_slots(self.config.datagram_slots).large_slots(2);
        let bytes = self.config.datagram_bytes.clamp(1, 65_535);
        self.udp.pool.get_or_insert_with(|| Pool::new(config.slot_bytes(bytes, 64)));
        let id = self.udp.ports.insert(Port {
            socket,
            outgoing: VecDeque::new(),
            full: false,
            closing: false,
            flushing: false,
            starving: false,
            received: 0,
            turn: 0,
        });
        if let Some(entry) = self.network.lock().udps.get_mut(socket) {
            entry.owner = Some((self.number, id));
        }
        Ok(id)
    }

    pub(super) fn want_datagrams(&mut self, id: UdpId, want: Want) {
        let Some(port) = self.udp.ports.get(id).filter(|port| !port.closing) else { return };
        let mut state = self.network.lock();
        if let Some(socket) = state.udps.get_mut(port.socket) {
            socket.wanted = want == Want::On;
        }
        state.note_datagram(port.socket);
    }

    pub(super) fn queue_datagram(&mut self, id: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        let Some(port) = self.udp.ports.get_mut(id).filter(|port| !port.closing) else { return SendTo::Closed(data) };
        if port.outgoing.len() >= DATAGRAMS_QUEUED_MAX {
            port.full = true;
            return SendTo::Full(data);
        }
        if data.is_alone() {
            self.network.lock().schedule(Action::Tell(self.number, Note::TooLarge(id, to)));
            return SendTo::Taken;
        }
        self.stats.datagram_bytes_queued += data.len() as u64;
        port.outgoing.push_back((to, data));
        if !std::mem::replace(&mut port.flushing, true) {
            self.udp.flush.push(id);
        }
        SendTo::Taken
    }

    pub(super) fn close_port(&mut self, id: UdpId) {
        let Some(port) = self.udp.ports.get_mut(id).filter(|port| !port.closing) else { return };
        port.closing = true;
        let socket = port.socket;
        // What the kernel takes leaves; what it does not is reported.
        self.hand_over_datagrams(id, true);
        let left = self.udp.ports.get(id).into_iter().flat_map(|port| &port.outgoing);
        self.stats.datagram_bytes_queued -= left.map(|(_, data)| data.len() as u64).sum::<u64>();
        let mut state = self.network.lock();
        state.release_udp(socket);
        state.schedule(Action::Tell(self.number, Note::UdpClosed(id)));
    }

    pub(super) fn port_closed(&mut self, id: UdpId) -> Option<Event> {
        let port = self.udp.ports.remove(id)?;
        Some(Event::UdpClosed { udp: id, unsent: port.outgoing.len() })
    }

    pub(super) fn port_option(&self, id: UdpId, name: OptionName) -> io::Result<SocketOption> {
        let port = self.udp.ports.get(id).filter(|port| !port.closing).ok_or(io::ErrorKind::NotFound)?;
        let state = self.network.lock();
        let socket = state.udps.get(port.socket).ok_or(io::ErrorKind::NotFound)?;
        let set = socket.options.iter().rev().find(|option| option.name() == name);
        name.check_datagrams()?;
        set.cloned().or_else(|| name.simulated()).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    pub(super) fn set_port_option(&mut self, id: UdpId, option: &SocketOption) -> io::Result<()> {
        let port = self.udp.ports.get(id).filter(|port| !port.closing).ok_or(io::ErrorKind::NotFound)?;
        option.name().check_datagrams()?;
        check_simulated(option)?;
        let mut state = self.network.lock();
        let socket = state.udps.get_mut(port.socket).ok_or(io::ErrorKind::NotFound)?;
        socket.options.retain(|set| set.name() != option.name());
        socket.options.push(option.clone());
        Ok(())
    }

    /// Sends what waits, before the engine waits.
    pub(super) fn flush_datagrams(&mut self) {
        for id in std::mem::take(&mut self.udp.flush) {
            if let Some(port) = self.udp.ports.get_mut(id) {
                port.flushing = false;
                self.send_datagrams(id, true);
            }
        }
    }

    /// The kernel takes datagrams: all, or some now and the rest when it has room again.
    pub(super) fn send_datagrams(&mut self, id: UdpId, first: bool) -> Option<Event> {
        self.udp.ports.get(id).filter(|port| !port.closing)?;
        self.hand_over_datagrams(id, first);
        let port = self.udp.ports.get_mut(id).filter(|port| !port.closing)?;
        let mut state = self.network.lock();
        if !port.outgoing.is_empty() {
            state.schedule(Action::Tell(self.number, Note::SendDatagrams(id)));
        }
        if port.full && port.outgoing.len() <= DATAGRAMS_QUEUED_MAX / 2 {
            port.full = false;
            state.schedule(Action::Tell(self.number, Note::UdpWritable(id)));
        }
        None
    }

    fn hand_over_datagrams(&mut self, id: UdpId, first: bool) {
        let Some(port) = self.udp.ports.get_mut(id) else { return };
        let mut state = self.network.lock();
        self.stats.calls += 1;
        let count = if first && state.queues_sends() { 0 } else { state.some_of(port.outgoing.len()) };
        for (to, data) in port.outgoing.drain(..count) {
            self.stats.datagram_bytes_queued -= data.len() as u64;
            if data.len() > PAYLOAD_MAX {
                state.schedule(Action::Tell(self.number, Note::TooLarge(id, to)));
                continue;
            }
            self.stats.datagrams_sent += 1;
            self.stats.datagram_bytes_sent += data.len() as u64;
            state.send_packet(port.socket, to, data.as_slice());
        }
    }

    pub(super) fn datagrams_writable(&self, id: UdpId) -> Option<Event> {
        self.udp.ports.get(id).filter(|port| !port.closing)?;
        Some(Event::DatagramsWritable { udp: id })
    }

    pub(super) fn datagram_failed(&mut self, id: UdpId, to: SocketAddr, error: io::ErrorKind) -> Option<Event> {
        self.udp.ports.get(id).filter(|port| !port.closing)?;
        self.stats.datagrams_failed += 1;
        Some(Event::DatagramFailed { udp: id, to: Some(to), error: error.into() })
    }

    /// Starved sockets try again if there is a slot.
    pub(super) fn feed_starved_ports(&mut self) {
        let Some(pool) = self.udp.pool.as_ref().filter(|_| !self.udp.starved.is_empty()) else { return };
        pool.collect();
        if pool.free(SlotClass::Small) > 0 {
            self.ready.extend(self.udp.starved.drain(..).map(Note::Datagram));
        }
    }

    /// A receive completes with a datagram.
    pub(super) fn receive_datagram(&mut self, id: UdpId) -> Option<Event> {
        let port = self.udp.ports.get_mut(id).filter(|port| !port.closing)?;
        let mut state = self.network.lock();
        let socket = state.udps.get_mut(port.socket)?;
        socket.noted = false;
        self.stats.datagrams_dropped += std::mem::take(&mut socket.dropped);
        if socket.incoming.is_empty() || (!socket.wanted && !state.pauses_late()) {
            return None;
        }
        if port.turn != self.turn {
            (port.turn, port.received) = (self.turn, 0);
        }
        if port.received >= self.config.bytes_per_turn.max(1) {
            self.later.push(Note::Datagram(id));
            state.udps.get_mut(port.socket)?.noted = true;
            return None;
        }
        self.stats.calls += 1;
        let pool = self.udp.pool.as_ref()?;
        let none = !port.starving && state.hides_buffers();
        let Some(mut buf) = pool.lease(SlotClass::Small).filter(|_| !none) else {
            port.starving = true;
            self.stats.starved += 1;
            self.udp.starved.push(id);
            state.udps.get_mut(port.socket)?.noted = true;
            return None;
        };
        port.starving = false;
        let cut = state.cuts_datagrams();
        let (from, data) = state.udps.get_mut(port.socket)?.incoming.pop_front()?;
        let mut length = data.len().min(self.config.datagram_bytes as usize);
        if cut && length > 1 {
            length = 1 + state.rng.below(length as u64 - 1) as usize;
        }
        buf.append(&data[..length]);
        port.received += length.max(1);
        state.note_down(length as u64);
        state.note_datagram(port.socket);
        let truncated = length < data.len();
        self.stats.datagrams_received += 1;
        self.stats.datagrams_truncated += u64::from(truncated);
        Some(Event::Datagram { udp: id, from, buf: pool.relieve(buf, SlotClass::Small), truncated })
    }
}
