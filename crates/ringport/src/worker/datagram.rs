//! Datagram sockets of a worker, their handlers and their peers.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringport_engine::{Buf, Engine, SendTo, Socket, UdpId, Want};

use super::gate::who;
use super::timers::Timer;
use super::{Context, Worker};
use crate::aio::{DatagramCell, receiving};
use crate::datagram::{Datagram, DatagramHandler, DatagramOptions, Datagrams, Outbox};
use crate::session::{Bucket, Rate};

/// How often peers are looked at, at most and at least.
const SWEEP_MIN: Duration = Duration::from_millis(10);
const SWEEP_MAX: Duration = Duration::from_secs(30);

/// What happened, apart from a datagram.
pub(crate) enum Incident<'a> {
    Open,
    Failed(Option<SocketAddr>, &'a io::Error),
    Writable,
    Tick,
    /// Peers that were silent for this long are forgotten.
    Sweep(Duration),
}

/// A handler with its peers, behind one face.
pub(crate) trait DatagramService {
    /// The engine has the socket.
    fn opened(&mut self, _: &mut Context, _: UdpId, _: SocketAddr) {}
    fn datagram(&mut self, socket: &mut Datagrams<'_>, datagram: Datagram);
    fn on(&mut self, socket: &mut Datagrams<'_>, what: Incident<'_>);
    /// The socket is gone.
    fn closed(&mut self) {}
}

/// Makes the service of one worker.
pub(crate) type DatagramFactory = Arc<dyn Fn(&DatagramOptions) -> Box<dyn DatagramService> + Send + Sync>;

pub(crate) fn datagram_factory<H: DatagramHandler>(make: impl Fn() -> H + Send + Sync + 'static) -> DatagramFactory {
    Arc::new(move |options| Box::new(Typed { handler: make(), peers: Peers::new(options) }))
}

struct Typed<H: DatagramHandler> {
    handler: H,
    peers: Peers<H::Peer>,
}

/// Peers by address. They are gone through in the order of their slots, never in that of the map.
struct Peers<P> {
    index: HashMap<SocketAddr, u32>,
    slots: Vec<Option<Peer<P>>>,
    free: Vec<u32>,
    peers_max: usize,
    /// How many peers each IP address has, if that is limited.
    addresses: BTreeMap<IpAddr, usize>,
    per_address_max: Option<usize>,
    rate: Option<Rate>,
    /// When the first peer came: what rates count from.
    origin: Option<Instant>,
}

struct Peer<P> {
    address: SocketAddr,
    state: P,
    active_at: Instant,
    allowance: Bucket,
}

impl<P: Default> Peers<P> {
    fn new(options: &DatagramOptions) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            peers_max: options.peers_max,
            addresses: BTreeMap::new(),
            per_address_max: options.peers_per_address_max,
            rate: options.rate_max,
            origin: None,
        }
    }

    /// Whether nothing has to be known of any peer.
    #[inline]
    fn are_strangers(&self) -> bool {
        size_of::<P>() == 0 && self.rate.is_none() && self.per_address_max.is_none()
    }

    /// Counts a new peer for its address, if that has not too many.
    fn admit(&mut self, address: SocketAddr) -> bool {
        let Some(max) = self.per_address_max else { return true };
        let count = self.addresses.entry(who(address.ip())).or_default();
        let admitted = *count < max;
        *count += usize::from(admitted);
        if *count == 0 {
            self.addresses.remove(&who(address.ip()));
        }
        admitted
    }

    fn forget(&mut self, address: SocketAddr) {
        self.index.remove(&address);
        if self.per_address_max.is_some()
            && let Some(count) = self.addresses.get_mut(&who(address.ip()))
        {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&who(address.ip()));
            }
        }
    }

    /// The peer of a datagram, a new one if need be. `None`: there are too many, or it sends too many.
    fn find(&mut self, address: SocketAddr, context: &mut Context) -> Option<&mut P> {
        let now = context.now();
        let slot = match self.index.get(&address).copied() {
            Some(slot) => slot,
            None if self.index.len() >= self.peers_max || !self.admit(address) => {
                context.counters.peers_refused.add(1);
                return None;
            }
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(None);
                    self.slots.len() as u32 - 1
                });
                let allowance = Bucket::default();
                self.slots[slot as usize] = Some(Peer { address, state: P::default(), active_at: now, allowance });
                self.index.insert(address, slot);
                context.counters.peers.add(1);
                slot
            }
        };
        let peer = self.slots[slot as usize].as_mut()?;
        peer.active_at = now;
        if let Some(rate) = self.rate {
            let since = now.saturating_duration_since(*self.origin.get_or_insert(now));
            if !peer.allowance.spend_if_any(rate, since) {
                context.counters.datagrams_over_rate.add(1);
                return None;
            }
        }
        Some(&mut peer.state)
    }

    /// Takes the peer in a slot out if it was silent for too long.
    fn expire(&mut self, slot: usize, timeout: Duration, now: Instant) -> Option<Peer<P>> {
        let peer = self.slots.get(slot)?.as_ref()?;
        if now.saturating_duration_since(peer.active_at) < timeout {
            return None;
        }
        let peer = self.slots[slot].take()?;
        self.forget(peer.address);
        self.free.push(slot as u32);
        Some(peer)
    }
}

impl<H: DatagramHandler> DatagramService for Typed<H> {
    #[inline]
    fn datagram(&mut self, socket: &mut Datagrams<'_>, datagram: Datagram) {
        if self.peers.are_strangers() {
            return self.handler.datagram(socket, &mut H::Peer::default(), datagram);
        }
        if let Some(peer) = self.peers.find(datagram.from, socket.context) {
            self.handler.datagram(socket, peer, datagram);
        }
    }

    fn on(&mut self, socket: &mut Datagrams<'_>, what: Incident<'_>) {
        match what {
            Incident::Open => self.handler.open(socket),
            Incident::Failed(to, error) => self.handler.failed(socket, to, error),
            Incident::Writable => self.handler.writable(socket),
            Incident::Tick => self.handler.tick(socket),
            Incident::Sweep(timeout) => {
                for slot in 0..self.peers.slots.len() {
                    let Some(peer) = self.peers.expire(slot, timeout, socket.now()) else { continue };
                    socket.context.counters.peers.subtract(1);
                    socket.context.counters.peers_expired.add(1);
                    self.handler.expired(socket, peer.address, peer.state);
                }
            }
        }
    }
}

/// A datagram socket of a worker.
pub(super) struct UdpSocket {
    id: UdpId,
    service: Box<dyn DatagramService>,
    outbox: Outbox,
    local: SocketAddr,
    idle_timeout: Option<Duration>,
    /// The engine took no more.
    blocked: bool,
    /// Its task wants to receive nothing.
    paused: bool,
    /// Nothing is received for want of memory.
    resting: bool,
}

impl<E: Engine> Worker<E> {
    /// Serves a bound socket from now on.
    pub(crate) fn serve_datagrams(
        &mut self,
        socket: Socket,
        make: &DatagramFactory,
        options: &DatagramOptions,
    ) -> io::Result<()> {
        self.bind_datagrams(socket, make(options), options)
    }

    fn bind_datagrams(
        &mut self,
        socket: Socket,
        mut service: Box<dyn DatagramService>,
        options: &DatagramOptions,
    ) -> io::Result<()> {
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        let id = self.engine.bind_udp(socket)?;
        self.engine.receive_datagrams(id, Want::On);
        service.opened(&mut self.context, id, local);
        let outbox = Outbox { queue_max: options.queue_max.max(1), ..Outbox::default() };
        let idle_timeout = options.idle_timeout;
        let entry =
            UdpSocket { id, service, outbox, local, idle_timeout, blocked: false, paused: false, resting: false };
        if self.udp.len() <= id.slot() {
            self.udp.resize_with(id.slot() + 1, || None);
        }
        self.udp[id.slot()] = Some(entry);
        self.set_sweep(id);
        self.incident(id, Incident::Open);
        Ok(())
    }

    /// Binds the socket of a task.
    pub(super) fn bind_for_task(&mut self, socket: Socket, cell: &Rc<DatagramCell>) {
        if cell.is_abandoned() {
            return;
        }
        // A task keeps what it wants to know of its peers itself.
        let options = DatagramOptions::default().peers(0, None);
        if let Err(error) = self.bind_datagrams(socket, receiving(cell), &options) {
            cell.end(&error);
        }
    }

    /// Carries out what a task has left for its socket.
    pub(super) fn carry_out_datagrams(&mut self, cell: &DatagramCell) {
        let todo = cell.take_todo();
        let Some(id) = cell.id() else { return };
        let Some(socket) = self.udp_socket(id).filter(|socket| !socket.outbox.closing) else { return };
        socket.outbox.queue.extend(todo.outbox);
        self.hand_over_datagrams(id);
        let Some(socket) = self.udp_socket(id) else { return };
        // Then `writable` is called when the engine has taken all.
        socket.outbox.refused = socket.blocked;
        socket.outbox.closing = todo.close;
        let left = socket.outbox.queue.len();
        if todo.close {
            self.engine.close_udp(id);
            return;
        }
        if let Some(want) = todo.want {
            socket.paused = want == Want::Paused;
            let rests = socket.resting;
            self.engine.receive_datagrams(id, if rests { Want::Paused } else { want });
        }
        cell.set_left(left);
    }

    fn udp_socket(&mut self, id: UdpId) -> Option<&mut UdpSocket> {
        self.udp.get_mut(id.slot())?.as_mut().filter(|socket| socket.id == id)
    }

    fn set_sweep(&mut self, id: UdpId) {
        let Some(timeout) = self.udp_socket(id).and_then(|socket| socket.idle_timeout) else { return };
        let at = self.context.now + (timeout / 4).clamp(SWEEP_MIN, SWEEP_MAX);
        self.context.timers.insert(at, Timer::Sweep(id));
    }

    #[inline]
    pub(super) fn datagram(&mut self, id: UdpId, from: SocketAddr, buf: Buf, truncated: bool) {
        let Self { udp, context, engine, .. } = self;
        let Some(socket) = udp.get_mut(id.slot()).and_then(Option::as_mut) else { return };
        context.counters.received_bytes.add(buf.len() as u64);
        if context.account.is_over() && !std::mem::replace(&mut socket.resting, true) {
            engine.receive_datagrams(id, Want::Paused);
            context.rest_datagrams(id);
        }
        let mut face = Datagrams { context, facts: engine, id, outbox: &mut socket.outbox, local: socket.local };
        socket.service.datagram(&mut face, Datagram::new(from, buf, truncated));
        self.hand_over_datagrams(id);
    }

    pub(super) fn incident(&mut self, id: UdpId, what: Incident<'_>) {
        let Self { udp, context, engine, .. } = self;
        let Some(socket) = udp.get_mut(id.slot()).and_then(Option::as_mut).filter(|socket| socket.id == id) else {
            return;
        };
        let mut face = Datagrams { context, facts: engine, id, outbox: &mut socket.outbox, local: socket.local };
        socket.service.on(&mut face, what);
        self.hand_over_datagrams(id);
    }

    /// Gives the engine what the handler sent, as far as it takes it.
    #[inline]
    fn hand_over_datagrams(&mut self, id: UdpId) {
        let Self { udp, engine, context, datagrams_unsent, udp_writable, .. } = self;
        let Some(socket) = udp.get_mut(id.slot()).and_then(Option::as_mut) else { return };
        while !socket.blocked
            && let Some((to, data)) = socket.outbox.queue.pop_front()
        {
            match engine.send_to(id, to, data) {
                SendTo::Taken => {}
                SendTo::Full(data) => {
                    socket.outbox.queue.push_front((to, data));
                    socket.blocked = true;
                }
                SendTo::Closed(_) => *datagrams_unsent += 1,
            }
        }
        if std::mem::take(&mut socket.outbox.no_memory) && !std::mem::replace(&mut socket.outbox.waits_for_memory, true)
        {
            context.rest_datagrams(id);
        }
        if !socket.blocked && std::mem::take(&mut socket.outbox.refused) {
            // At the end of the turn, since the handler may fill the queue at once again.
            udp_writable.push(id);
        }
    }

    pub(super) fn datagrams_writable(&mut self, id: UdpId) {
        let Some(socket) = self.udp_socket(id) else { return };
        socket.blocked = false;
        self.hand_over_datagrams(id);
    }

    /// There is memory again.
    pub(super) fn wake_datagrams(&mut self, id: UdpId) {
        let Some(socket) = self.udp.get_mut(id.slot()).and_then(Option::as_mut).filter(|socket| socket.id == id) else {
            return;
        };
        if std::mem::take(&mut socket.resting) && !socket.paused && !socket.outbox.closing {
            self.engine.receive_datagrams(id, Want::On);
        }
        if std::mem::take(&mut socket.outbox.waits_for_memory) {
            self.udp_writable.push(id);
        }
    }

    /// Bytes that wait for the engine to take them.
    pub(super) fn datagrams_waiting(&self) -> u64 {
        let queued = |socket: &UdpSocket| socket.outbox.queue.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        self.udp.iter().flatten().filter(|socket| socket.blocked).map(queued).sum()
    }

    /// Tells those whose sends were refused and that have room again.
    pub(super) fn tell_writable_datagrams(&mut self) {
        for _ in 0..self.udp_writable.len() {
            let id = self.udp_writable.remove(0);
            self.incident(id, Incident::Writable);
        }
    }

    pub(super) fn sweep(&mut self, id: UdpId) {
        if let Some(timeout) = self.udp_socket(id).and_then(|socket| socket.idle_timeout) {
            self.set_sweep(id);
            self.incident(id, Incident::Sweep(timeout));
        }
    }

    pub(super) fn tick_datagrams(&mut self) {
        let ids: Vec<UdpId> = self.udp.iter().flatten().map(|socket| socket.id).collect();
        for id in ids {
            self.incident(id, Incident::Tick);
        }
    }

    /// Closes every datagram socket, for good.
    pub(super) fn close_datagrams(&mut self) {
        for socket in self.udp.iter_mut().flatten().filter(|socket| !socket.outbox.closing) {
            socket.outbox.closing = true;
            self.engine.close_udp(socket.id);
        }
    }

    pub(super) fn udp_closed(&mut self, id: UdpId, unsent: usize) {
        let Some(entry) = self.udp.get_mut(id.slot()) else { return };
        if let Some(mut socket) = entry.take_if(|socket| socket.id == id) {
            socket.service.closed();
            let lost = unsent + socket.outbox.queue.len();
            self.datagrams_unsent += lost as u64;
            if lost > 0 {
                tracing::warn!(address = %socket.local, lost, "datagrams were not sent before the socket closed");
            }
        }
    }

    /// Whether any datagram socket is open still.
    pub(super) fn has_datagrams(&self) -> bool {
        self.udp.iter().any(Option::is_some)
    }
}
