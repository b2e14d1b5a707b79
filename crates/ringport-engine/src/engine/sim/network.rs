//! The simulated network: sockets, segments under way, a clock, and the generator that decides what happens next.
//!
//! Everything that takes time is an [`Action`] in one heap, ordered by its time. An engine that waits pops the heap,
//! action by action, until something concerns it; what concerns another engine lies in that one's inbox until its
//! turn. Nothing else moves the clock, so that a run depends on the seed and on the order of calls alone.
//!
//! ```text
//! send ─► outgoing ──Transmit──► incoming of the peer ──Note::Receive──► slot of the pool ─► Event::Received
//!            │ room again                 │ room again
//!            └──────Note::Send            └──────Transmit
//! ```
//!
//! A byte stays in `outgoing` until the peer's kernel has it, so that the length of `outgoing` is what `SIOCOUTQ`
//! would say. One `Transmit` at most is under way for each direction, which keeps bytes and FIN in order.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::check_simulated;
use super::datagram::{Packet, SimUdp};
use super::faults::{Faults, Rng, mix};
use super::personality::{Oddities, Oddity, Personality};
use super::tcp::{FIRST_PORT, SimListener, SimSocket};
use crate::engine::contract::Close;
use crate::id::{ConnId, Id, ListenerId, Table, UdpId};
use crate::socket::{ListenOptions, SockAddr, is_tcp};

/// A simulated network: addresses, connections, a clock and a seed, shared by the engines opened on it.
///
/// Clones are the same network. The engines of one network are driven by one thread, in turn.
#[derive(Clone)]
pub struct Network(Arc<Mutex<State>>);

impl Network {
    /// A network whose faults and delays follow from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_faults(seed, Faults::drawn(seed))
    }

    /// A network with these faults, drawn in an order that follows from `seed`.
    #[must_use]
    pub fn with_faults(seed: u64, faults: Faults) -> Self {
        Self(Arc::new(Mutex::new(State::new(seed, faults))))
    }

    /// A hash over everything that happened so far: equal for two runs of one seed.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.lock().trace
    }

    /// Whether nothing is under way and no engine has anything to do: from here on, nothing happens by itself.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.lock();
        state.heap.is_empty() && state.inboxes.iter().all(|inbox| inbox.notes.is_empty())
    }

    /// Times that an engine waited without end for something that nothing can cause any more.
    #[must_use]
    pub fn hopeless_waits(&self) -> u64 {
        self.lock().hopeless_waits
    }

    /// Replaces the faults from now on, for instance to let a run come to rest. The personality stays.
    pub fn set_faults(&self, faults: Faults) {
        let mut state = self.lock();
        let personality = state.faults.personality;
        state.faults = Faults { personality, ..faults };
    }

    /// How often the kernel behaved in this odd way so far.
    #[must_use]
    pub fn happened(&self, oddity: Oddity) -> u64 {
        self.lock().oddities[oddity as usize]
    }

    /// Largest kernel buffer of one direction of a connection, in bytes.
    #[must_use]
    pub fn buffer_max(&self) -> usize {
        self.lock().faults.buffer_max
    }

    /// Sockets that exist, in whatever state, listening ones included.
    #[must_use]
    pub fn sockets(&self) -> usize {
        let state = self.lock();
        state.sockets.len() + state.listeners.len() + state.udps.len()
    }

    /// Listens.
    pub(crate) fn listen(&self, address: &SockAddr, options: &ListenOptions) -> io::Result<Endpoint> {
        let inherited: Vec<_> = options.socket.options(is_tcp(address)).collect();
        inherited.iter().try_for_each(check_simulated)?;
        let mut state = self.lock();
        let local = state.bind(address)?;
        let backlog_max = options.backlog.max(1) as usize;
        let listener = SimListener {
            local: local.clone(),
            queue: VecDeque::new(),
            backlog_max,
            options: inherited,
            owner: None,
            accepting: false,
            noted: false,
        };
        let id = state.listeners.insert(listener);
        Ok(Endpoint::new(self, Held::Listener(id), local, None))
    }

    /// The state, also after a panic elsewhere: no method leaves it half changed while it runs user code.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// An end of the accepted connection `socket`.
    pub(super) fn endpoint(&self, state: &State, socket: Id) -> Option<Endpoint> {
        let (local, peer) = state.sockets.get(socket).map(|socket| (socket.local.clone(), socket.remote.clone()))?;
        Some(Endpoint::new(self, Held::Stream(socket), local, Some(peer)))
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.lock();
        f.debug_struct("Network")
            .field("now", &state.now)
            .field("sockets", &state.sockets.len())
            .finish_non_exhaustive()
    }
}

/// One end of a simulated socket that belongs to no engine. Closed when dropped.
///
/// Boxed, because the addresses are large and every [`Event`](crate::Event) has room for a socket.
#[derive(Debug)]
pub(crate) struct Endpoint(Box<End>);

#[derive(Debug)]
struct End {
    network: Network,
    held: Option<Held>,
    local: SockAddr,
    peer: Option<SockAddr>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Held {
    Stream(Id),
    Listener(Id),
    Udp(Id),
}

impl Endpoint {
    pub(super) fn new(network: &Network, held: Held, local: SockAddr, peer: Option<SockAddr>) -> Self {
        Self(Box::new(End { network: network.clone(), held: Some(held), local, peer }))
    }

    pub(crate) fn local_addr(&self) -> SockAddr {
        self.0.local.clone()
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SockAddr> {
        self.0.peer.clone().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// What it holds, for an engine of `network`, which closes it from now on.
    pub(super) fn take(mut self, network: &Network) -> io::Result<Held> {
        if !self.0.network.is(network) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket belongs to another simulated network"));
        }
        self.0.held.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        match self.0.held.take() {
            Some(Held::Stream(socket)) => self.0.network.lock().release(socket, Close::Plain),
            Some(Held::Listener(listener)) => self.0.network.lock().release_listener(listener),
            Some(Held::Udp(udp)) => self.0.network.lock().release_udp(udp),
            None => {}
        }
    }
}

/// What an engine learns from the network.
#[derive(Clone, Copy, Debug)]
pub(super) enum Note {
    Accept(ListenerId),
    AcceptAgain(ListenerId),
    ListenerClosed(ListenerId),
    Connected(ConnId),
    Receive(ConnId),
    Send(ConnId),
    Failed(ConnId),
    /// The kernel no longer reads the oldest pieces that it sent.
    Released(ConnId),
    Closed(ConnId, u64),
    Woken,
    Datagram(UdpId),
    SendDatagrams(UdpId),
    UdpWritable(UdpId),
    Unreachable(UdpId, SocketAddr),
    TooLarge(UdpId, SocketAddr),
    UdpClosed(UdpId),
}

impl Note {
    /// Kind and id, for the trace.
    fn words(self) -> (u64, u64) {
        let conn = |id: ConnId| (id.slot() as u64) << 32 | u64::from(id.generation());
        let listener = |id: ListenerId| (id.slot() as u64) << 32 | u64::from(id.generation());
        let udp = |id: UdpId| (id.slot() as u64) << 32 | u64::from(id.generation());
        match self {
            Self::Accept(id) => (1, listener(id)),
            Self::AcceptAgain(id) => (2, listener(id)),
            Self::ListenerClosed(id) => (3, listener(id)),
            Self::Connected(id) => (4, conn(id)),
            Self::Receive(id) => (5, conn(id)),
            Self::Send(id) => (6, conn(id)),
            Self::Failed(id) => (7, conn(id)),
            Self::Closed(id, _) => (8, conn(id)),
            Self::Woken => (9, 0),
            Self::Released(id) => (10, conn(id)),
            Self::Datagram(id) => (11, udp(id)),
            Self::SendDatagrams(id) => (12, udp(id)),
            Self::UdpWritable(id) => (13, udp(id)),
            Self::Unreachable(id, _) => (14, udp(id)),
            Self::TooLarge(id, _) => (15, udp(id)),
            Self::UdpClosed(id) => (16, udp(id)),
        }
    }
}

/// Something that happens at its time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Action {
    /// A client's SYN reaches the listener.
    Syn { client: Id, tries: u32 },
    /// A segment or the FIN of this socket reaches its peer.
    Transmit(Id),
    /// A RST reaches this socket.
    Reset(Id),
    /// The kernel has let go of a socket that its engine closes.
    Close { socket: Id, how: Close, engine: usize, conn: ConnId },
    /// A datagram arrives.
    Packet(Id),
    /// The engine learns something.
    Tell(usize, Note),
}

impl Action {
    fn words(self) -> (u64, u64) {
        let word = |id: Id| u64::from(id.slot) << 32 | u64::from(id.generation);
        match self {
            Self::Syn { client, .. } => (16, word(client)),
            Self::Transmit(id) => (17, word(id)),
            Self::Reset(id) => (18, word(id)),
            Self::Close { socket, .. } => (19, word(socket)),
            Self::Packet(id) => (20, word(id)),
            Self::Tell(engine, note) => {
                let (kind, id) = note.words();
                (kind | (engine as u64) << 8, id)
            }
        }
    }
}

/// An action in the heap. The number decides between equal ties, so that the order is total.
struct Entry {
    key: (Duration, u64, u64),
    action: Action,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

/// What an engine has not looked at yet.
struct Inbox {
    open: bool,
    notes: VecDeque<Note>,
    woken: bool,
}

pub(super) struct State {
    pub(super) base: Instant,
    pub(super) now: Duration,
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) sockets: Table<SimSocket>,
    pub(super) listeners: Table<SimListener>,
    pub(super) udps: Table<SimUdp>,
    pub(super) packets: Table<Packet>,
    heap: BinaryHeap<Reverse<Entry>>,
    inboxes: Vec<Inbox>,
    actions: u64,
    pub(super) ports: u16,
    trace: u64,
    pub(super) oddities: Oddities,
    pub(super) hopeless_waits: u64,
}

impl State {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            base: Instant::now(),
            now: Duration::ZERO,
            rng: Rng::new(mix(seed)),
            faults,
            sockets: Table::new(),
            listeners: Table::new(),
            udps: Table::new(),
            packets: Table::new(),
            heap: BinaryHeap::new(),
            inboxes: Vec::new(),
            actions: 0,
            ports: FIRST_PORT,
            trace: mix(seed),
            oddities: Oddities::default(),
            hopeless_waits: 0,
        }
    }

    /// Adds a word to the trace.
    pub(super) fn note_down(&mut self, word: u64) {
        self.trace = mix(self.trace.rotate_left(5) ^ word);
    }

    // Engines.

    pub(super) fn open_inbox(&mut self) -> usize {
        self.inboxes.push(Inbox { open: true, notes: VecDeque::new(), woken: false });
        self.inboxes.len() - 1
    }

    pub(super) fn close_inbox(&mut self, engine: usize) {
        self.inboxes[engine] = Inbox { open: false, notes: VecDeque::new(), woken: false };
    }

    pub(super) fn wake(&mut self, engine: usize) {
        let inbox = &mut self.inboxes[engine];
        if inbox.open && !inbox.woken {
            inbox.woken = true;
            inbox.notes.push_back(Note::Woken);
        }
    }

    /// Moves what `engine` has to look at to `ready`, up to `most` notes. The others stay for the next turn.
    pub(super) fn empty_inbox(&mut self, engine: usize, ready: &mut VecDeque<Note>, most: usize) {
        let inbox = &mut self.inboxes[engine];
        let count = inbox.notes.len().min(most);
        ready.extend(inbox.notes.drain(..count));
        inbox.woken = inbox.notes.iter().any(|note| matches!(note, Note::Woken));
    }

    pub(super) fn tell(&mut self, engine: usize, note: Note) {
        let inbox = &mut self.inboxes[engine];
        if inbox.open {
            inbox.notes.push_back(note);
        }
    }

    // Time.

    /// The usual time of a segment or a completion, and sometimes much more.
    pub(super) fn delay(&mut self) -> Duration {
        let usual = Duration::from_nanos(1_000 + self.rng.below(20_000));
        let most = self.faults.delay_max.as_nanos() as u64;
        if self.rng.chance(self.faults.delay) { usual + Duration::from_nanos(self.rng.below(most + 1)) } else { usual }
    }

    /// Lets `action` happen some time from now.
    pub(super) fn schedule(&mut self, action: Action) {
        let delay = self.delay();
        self.schedule_after(delay, action);
    }

    pub(super) fn schedule_after(&mut self, delay: Duration, action: Action) {
        let mut at = self.now + delay;
        let mut tie = u64::MAX / 2;
        if self.rng.chance(self.faults.reorder) {
            // Rounding makes many actions equally late, so that the tie decides about their order.
            at = Duration::from_nanos((at.as_nanos() as u64).next_multiple_of(16_384));
            tie = self.rng.next();
        }
        self.actions += 1;
        self.heap.push(Reverse(Entry { key: (at, tie, self.actions), action }));
    }

    /// When the next action happens.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.heap.peek().map(|entry| entry.0.key.0)
    }

    /// Lets the next action happen.
    pub(super) fn step(&mut self) {
        let Some(Reverse(entry)) = self.heap.pop() else { return };
        self.now = self.now.max(entry.key.0);
        let (kind, id) = entry.action.words();
        self.note_down(self.now.as_nanos() as u64);
        self.note_down(kind);
        self.note_down(id);
        match entry.action {
            Action::Syn { client, tries } => self.syn(client, tries),
            Action::Transmit(socket) => self.transmit(socket),
            Action::Reset(socket) => self.fail(socket, io::ErrorKind::ConnectionReset),
            Action::Close { socket, how, engine, conn } => {
                let unacked = self.sockets.get(socket).map_or(0, |socket| socket.outgoing.len() as u64);
                self.release(socket, how);
                if self.is_odd(Oddity::LateCancel) {
                    self.schedule(Action::Tell(engine, Note::Closed(conn, unacked)));
                } else {
                    self.tell(engine, Note::Closed(conn, unacked));
                }
            }
            Action::Packet(id) => self.deliver_packet(id),
            Action::Tell(engine, note) => self.tell(engine, note),
        }
    }

    // Dice.

    /// Some of `0..=most`, all of it unless the fault strikes; at least one if there is any.
    pub(super) fn some_of(&mut self, most: usize) -> usize {
        if most > 1 && self.rng.chance(self.faults.partial) { 1 + self.rng.below(most as u64) as usize } else { most }
    }

    pub(super) fn flips(&mut self) -> bool {
        self.rng.chance(500)
    }

    /// The two values in one order or the other.
    pub(super) fn either<T>(&mut self, one: T, other: T) -> (T, T) {
        if self.flips() { (one, other) } else { (other, one) }
    }

    /// How many pieces one send takes: usually all that it can.
    pub(super) fn pieces_of(&mut self, most: u64) -> u64 {
        if self.rng.chance(self.faults.partial) { 1 + self.rng.below(most) } else { most }
    }

    pub(super) fn queues_sends(&mut self) -> bool {
        self.faults.personality == Personality::Rio || self.rng.chance(self.faults.queued_send)
    }

    pub(super) fn pauses_late(&mut self) -> bool {
        self.rng.chance(self.faults.late_pause)
    }

    pub(super) fn hides_buffers(&mut self) -> bool {
        self.rng.chance(self.faults.nobufs)
    }

    pub(super) fn cuts_datagrams(&mut self) -> bool {
        self.rng.chance(self.faults.datagram_truncation)
    }

    pub(super) fn exhausted(&mut self) -> bool {
        self.rng.chance(self.faults.emfile)
    }

    pub(super) fn resets_before_accept(&mut self) -> bool {
        self.rng.chance(self.faults.accept_reset)
    }
}
