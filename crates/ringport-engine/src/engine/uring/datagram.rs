//! Datagram sockets: a multishot recvmsg into provided buffers, or plain calls after a poll; and plain calls to send
//! (`engine/datagram.rs` says why).
//!
//! ```text
//! Datagram     multishot recvmsg: one completion a datagram, or one for several that the kernel put together
//! DatagramIn   instead of it where many come, or where it is masked: recvmmsg, and a poll once that finds no more
//! DatagramOut  a poll, armed only while the kernel takes no more
//! ```
//!
//! Each socket chooses between the first two by what it does (`depth.rs`). The poll is for one time, so that the socket has
//! no waiter while it is served; it is submitted with the wait and costs no call of its own.
//!
//! A slot that a multishot recvmsg fills holds a header, the address and control data before the payload (see
//! io_uring_prep_recvmsg_multishot(3)), so the slots are larger than the largest datagram by that.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use io_uring::opcode;
use io_uring::types::{Fd, RecvMsgOut};

use super::depth::Depth;
use super::ring::{BufferRing, Completion, DATAGRAM_GROUP};
use super::{Farewell, GENERATION_MASK, Op, UringEngine};
use crate::buffer::{Buf, Chunk, Pool, SlotClass};
use crate::engine::contract::{EngineStats, Event, SendTo, Waker, Want};
use crate::engine::datagram::{self, Batches, CONTROL_BYTES, Control, Found, Port};
use crate::engine::datagram_calls as calls;
use crate::id::{Table, UdpId};
use crate::options::SocketRef;
use crate::socket::Socket;

const RECEIVE: u8 = 1;
const POLL_IN: u8 = 2;
const POLL_OUT: u8 = 4;

/// Bytes of an address in a filled slot: the largest, an IPv6 one, rounded up so that what follows is aligned.
const NAME_BYTES: usize = 32;

/// A socket and what is armed for it.
struct Armed {
    port: Port,
    armed: u8,
    cancelled: u8,
    depth: Depth,
}

/// One entry of the table.
enum Entry {
    /// Boxed, since it is large and the table grows.
    Open(Box<Armed>),
    /// Given up by its owner: nothing is armed for it any more when the descriptor is closed.
    Closing(Box<Armed>),
    /// The last event waits to be taken: datagrams that never left.
    Closed(usize),
}

/// Everything about datagrams. Holds no buffers until the first socket is bound.
pub(super) struct Datagrams {
    entries: Table<Entry>,
    /// `None` as long as no socket was bound, and then there is nothing else here either.
    memory: Option<Memory>,
    /// Ports that have something to say or to receive, and how many of them are left to serve in this turn.
    ready: VecDeque<UdpId>,
    ready_this_turn: usize,
    turn: u32,
    current: Option<UdpId>,
    current_bytes: usize,
    /// Ports with datagrams to send, and those that found no buffer.
    flush: VecDeque<UdpId>,
    starved: Vec<UdpId>,
}

/// What all ports share.
struct Memory {
    pool: Pool,
    /// `None`: no multishot recvmsg here.
    buffers: Option<BufferRing>,
    batches: Box<Batches>,
    /// What the kernel reads of a multishot recvmsg: how much room a slot has for address and control data.
    message: Box<libc::msghdr>,
}

impl Memory {
    fn new(engine: &UringEngine) -> io::Result<Self> {
        let pool = datagram::pool(&engine.config);
        let multishot = engine.config.features.multishot_recvmsg;
        let buffers = if multishot { Some(BufferRing::register(&engine.ring, &pool, DATAGRAM_GROUP)?) } else { None };
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_namelen = NAME_BYTES as _;
        message.msg_controllen = CONTROL_BYTES as _;
        Ok(Self { pool, buffers, batches: Batches::new(), message: Box::new(message) })
    }
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            entries: Table::new(),
            memory: None,
            ready: VecDeque::new(),
            ready_this_turn: 0,
            turn: 0,
            current: None,
            current_bytes: 0,
            flush: VecDeque::new(),
            starved: Vec::new(),
        }
    }

    fn open(&mut self, id: UdpId) -> Option<&mut Armed> {
        match self.entries.get_mut(id)? {
            Entry::Open(armed) => Some(armed),
            _ => None,
        }
    }

    /// The socket that a completion belongs to, open or closing.
    fn armed(&mut self, completion: Completion) -> Option<(UdpId, &mut Armed, bool)> {
        let (id, entry) = self.entries.slot_mut::<UdpId>(completion.tag as u32)?;
        let generation = (completion.tag >> 32) as u32 & GENERATION_MASK;
        if id.generation() & GENERATION_MASK != generation {
            return None;
        }
        match entry {
            Entry::Open(armed) => Some((id, armed, true)),
            Entry::Closing(armed) => Some((id, armed, false)),
            Entry::Closed(_) => None,
        }
    }

    /// Bytes of received datagrams that are held outside of the slots.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.pool.copied_out_bytes())
    }

    pub(super) fn socket(&self, id: UdpId) -> io::Result<SocketRef<'_>> {
        match self.entries.get(id) {
            Some(Entry::Open(armed)) => Ok(SocketRef((&armed.port.socket).into())),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Whether a socket was ever bound. Most engines have none, and then look at nothing else of this.
    #[inline]
    pub(super) fn is_used(&self) -> bool {
        self.memory.is_some()
    }

    #[inline]
    pub(super) fn begin_turn(&mut self) {
        if !self.is_used() {
            return;
        }
        self.ready_this_turn = self.ready.len();
        self.turn = self.turn.wrapping_add(1);
    }

    pub(super) fn has_leftovers(&self) -> bool {
        self.is_used() && (self.current.is_some() || !self.ready.is_empty() || !self.flush.is_empty())
    }

    pub(super) fn is_starved(&self) -> bool {
        self.is_used() && !self.starved.is_empty()
    }

    /// From now on a slot that another thread gives back rings `bell`. `false` if one has come back already.
    pub(super) fn begin_shortage(&self, bell: &Waker) -> bool {
        self.memory.as_ref().is_none_or(|memory| memory.pool.begin_shortage(bell))
    }

    pub(super) fn end_shortage(&self) {
        if let Some(memory) = &self.memory {
            memory.pool.end_shortage();
        }
    }

    pub(super) fn anything_armed(&self) -> bool {
        let ids = self.entries.ids::<UdpId>().into_iter();
        ids.filter_map(|id| self.entries.get(id)).any(|entry| match entry {
            Entry::Open(armed) | Entry::Closing(armed) => armed.armed != 0,
            Entry::Closed(_) => false,
        })
    }

    /// Frees everything. No operation is armed any more.
    pub(super) fn dissolve(mut self) {
        if let Some(memory) = &mut self.memory
            && let Some(buffers) = memory.buffers.take()
        {
            // SAFETY: the caller says that nothing is armed, so that no operation can take a buffer.
            unsafe { buffers.dissolve(&memory.pool) };
        }
    }

    fn enqueue(&mut self, id: UdpId) {
        if let Some(armed) = self.open(id)
            && !std::mem::replace(&mut armed.port.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    fn push(&mut self, id: UdpId, to: SocketAddr, data: Chunk, stats: &mut EngineStats) -> SendTo {
        let Some(Entry::Open(armed)) = self.entries.get_mut(id) else { return SendTo::Closed(data) };
        let port = &mut armed.port;
        let outcome = port.push(to, data, stats);
        if !std::mem::replace(&mut port.flushing, true) {
            self.flush.push_back(id);
        }
        if port.has_batch()
            && let Some(memory) = &mut self.memory
        {
            port.flush(&mut memory.batches, stats);
        }
        outcome
    }
}

impl UringEngine {
    pub(super) fn take_port(&mut self, socket: Socket) -> io::Result<UdpId> {
        let socket = socket.into_system()?;
        // On a non-blocking socket an operation would answer EAGAIN instead of waiting; the plain calls say MSG_DONTWAIT.
        socket.set_nonblocking(false)?;
        if self.udp.memory.is_none() {
            let memory = Memory::new(self)?;
            self.udp.memory = Some(memory);
        }
        let port = Port::new(socket, &self.config)?;
        Ok(self.udp.entries.insert(Entry::Open(Box::new(Armed {
            port,
            armed: 0,
            cancelled: 0,
            depth: Depth::default(),
        }))))
    }

    pub(super) fn want_datagrams(&mut self, id: UdpId, want: Want) {
        if let Some(armed) = self.udp.open(id) {
            armed.port.wanted = want == Want::On;
            self.settle_port(id);
        }
    }

    #[inline]
    pub(super) fn queue_datagram(&mut self, id: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        self.udp.push(id, to, data, &mut self.stats)
    }

    pub(super) fn close_port(&mut self, id: UdpId) {
        let Datagrams { entries, memory, .. } = &mut *self.udp;
        let Some(Entry::Open(armed)) = entries.get_mut(id) else { return };
        if let Some(memory) = memory {
            armed.port.flush(&mut memory.batches, &mut self.stats);
        }
        if let Some(entry) = self.udp.entries.get_mut(id)
            && let Entry::Open(armed) = std::mem::replace(entry, Entry::Closed(0))
        {
            *entry = Entry::Closing(armed);
        }
        self.wind_down_port(id);
    }

    /// Cancels what is armed, or closes the descriptor when nothing is.
    fn wind_down_port(&mut self, id: UdpId) {
        let Some(entry) = self.udp.entries.get_mut(id) else { return };
        let Entry::Closing(armed) = entry else { return };
        if armed.armed != 0 {
            let ending = armed.armed & !armed.cancelled;
            armed.cancelled |= ending;
            return self.cancel_port(id, ending);
        }
        *entry = Entry::Closed(armed.port.give_up(&mut self.stats));
        self.descriptor_freed = true;
        self.farewells.push_back(Farewell::Udp(id));
    }

    fn cancel_port(&mut self, id: UdpId, ops: u8) {
        for (bit, op) in [(RECEIVE, Op::Datagram), (POLL_IN, Op::DatagramIn), (POLL_OUT, Op::DatagramOut)] {
            if ops & bit != 0 {
                self.cancel_tag(op.tag(id));
            }
        }
    }

    pub(super) fn port_closed(&mut self, id: UdpId) -> Option<Event> {
        let Entry::Closed(unsent) = self.udp.entries.remove(id)? else { return None };
        Some(Event::UdpClosed { udp: id, unsent })
    }

    /// Brings what is armed for an open socket in line with what is wanted.
    fn settle_port(&mut self, id: UdpId) {
        let multishot = self.udp.memory.as_ref().is_some_and(|memory| memory.buffers.is_some());
        let Some(armed) = self.udp.open(id) else { return };
        let port = &armed.port;
        if port.blocked && armed.armed & POLL_OUT == 0 {
            armed.armed |= POLL_OUT;
            let entry = opcode::PollAdd::new(Fd(port.socket.as_raw_fd()), libc::POLLOUT as u32).build();
            // SAFETY: a poll refers to no memory.
            unsafe { self.ring.push(&entry.user_data(Op::DatagramOut.tag(id))) };
        }
        let calls = !multishot || armed.depth.prefers_calls();
        if armed.armed & RECEIVE != 0 {
            // Whatever comes next begins with its end.
            if (calls || !armed.port.wanted) && armed.cancelled & RECEIVE == 0 {
                armed.cancelled |= RECEIVE;
                self.cancel_port(id, RECEIVE);
            }
        } else if armed.port.wanted && !armed.port.starved {
            if calls && armed.port.readable {
                if self.udp.current != Some(id) {
                    self.udp.enqueue(id);
                }
            } else if armed.armed & POLL_IN == 0 {
                if calls { self.arm_poll_in(id) } else { self.arm_recvmsg(id) }
            }
        }
    }

    fn arm_recvmsg(&mut self, id: UdpId) {
        let Some(memory) = &self.udp.memory else { return };
        let message: *const libc::msghdr = &raw const *memory.message;
        let Some(armed) = self.udp.open(id) else { return };
        armed.armed |= RECEIVE;
        let fd = Fd(armed.port.socket.as_raw_fd());
        let entry = opcode::RecvMsgMulti::new(fd, message, DATAGRAM_GROUP).build();
        // SAFETY: the header is boxed and, like the lent slots, kept until every receive has ended.
        unsafe { self.ring.push(&entry.user_data(Op::Datagram.tag(id))) };
    }

    fn arm_poll_in(&mut self, id: UdpId) {
        let Some(armed) = self.udp.open(id) else { return };
        armed.armed |= POLL_IN;
        let entry = opcode::PollAdd::new(Fd(armed.port.socket.as_raw_fd()), libc::POLLIN as u32).build();
        // SAFETY: a poll refers to no memory.
        unsafe { self.ring.push(&entry.user_data(Op::DatagramIn.tag(id))) };
    }

    /// Before the engine sleeps: sends what waits, lends the slots that this and others gave back, and feeds the starved.
    #[inline]
    pub(super) fn serve_datagrams(&mut self) {
        if self.udp.is_used() {
            self.serve_ports();
        }
    }

    fn serve_ports(&mut self) {
        if let Some(id) = self.udp.current.take() {
            self.udp.enqueue(id);
        }
        // Those that are put there meanwhile have their turn next time.
        for _ in 0..self.udp.flush.len() {
            let Some(id) = self.udp.flush.pop_front() else { break };
            self.flush_port(id);
        }
        let Datagrams { memory, starved, .. } = &mut *self.udp;
        let Some(memory) = memory else { return };
        memory.pool.collect();
        if let Some(buffers) = &mut memory.buffers {
            buffers.refill(&memory.pool, false);
        }
        let (lent, free) = (memory.buffers.as_ref().map(BufferRing::lent), memory.pool.free(SlotClass::Small));
        if lent.max(Some(free)) > Some(0) && !starved.is_empty() {
            for id in std::mem::take(starved) {
                let Some(armed) = self.udp.open(id) else { continue };
                let slots = match lent {
                    Some(lent) if free == 0 || !armed.depth.prefers_calls() => {
                        // What is left, if anything, lies with the kernel.
                        armed.depth = Depth::default();
                        lent
                    }
                    _ => free,
                };
                armed.port.starved = slots == 0;
                if slots == 0 {
                    self.udp.starved.push(id);
                } else {
                    self.settle_port(id);
                }
            }
        }
    }

    fn flush_port(&mut self, id: UdpId) {
        let Datagrams { entries, memory: Some(memory), .. } = &mut *self.udp else { return };
        let Some(Entry::Open(armed)) = entries.get_mut(id) else { return };
        let port = &mut armed.port;
        port.flushing = false;
        port.flush(&mut memory.batches, &mut self.stats);
        let (news, blocked) = (port.has_news(), port.blocked);
        if port.unsent() > 0 && !blocked {
            port.flushing = true;
            self.udp.flush.push_back(id);
        }
        if news {
            self.udp.enqueue(id);
        }
        if blocked {
            self.settle_port(id);
        }
    }

    /// The next event of a port that was served before, or that waits in the list.
    #[inline]
    pub(super) fn next_datagram(&mut self) -> Option<Event> {
        if self.udp.is_used() { self.next_of_ports() } else { None }
    }

    fn next_of_ports(&mut self) -> Option<Event> {
        loop {
            if let Some(id) = self.udp.current {
                if let Some(event) = self.serve_port(id) {
                    return Some(event);
                }
                self.udp.current = None;
            }
            if self.udp.ready_this_turn == 0 {
                return None;
            }
            self.udp.ready_this_turn -= 1;
            let id = self.udp.ready.pop_front()?;
            if let Some(armed) = self.udp.open(id) {
                armed.port.queued = false;
            }
            self.udp.current = Some(id);
            self.udp.current_bytes = 0;
        }
    }

    /// The next event of a port. One that receives by calls does so as long as its share of the turn lasts.
    fn serve_port(&mut self, id: UdpId) -> Option<Event> {
        loop {
            let Datagrams { entries, memory: Some(memory), current_bytes, turn, starved, .. } = &mut *self.udp else {
                return None;
            };
            let Some(Entry::Open(armed)) = entries.get_mut(id) else { return None };
            let port = &mut armed.port;
            if let Some(event) = port.next_event(id) {
                return Some(event);
            }
            let calls = (memory.buffers.is_none() || armed.depth.prefers_calls()) && armed.armed & RECEIVE == 0;
            if !calls || !port.wanted || !port.readable || port.starved {
                return None;
            }
            if *current_bytes >= self.config.bytes_per_turn.max(1) {
                self.udp.enqueue(id);
                return None;
            }
            let before = self.stats.datagrams_received;
            match port.receive(&memory.pool, &mut memory.batches, &mut self.stats) {
                Found::Some(bytes) => {
                    *current_bytes += bytes;
                    armed.depth.found(*turn, (self.stats.datagrams_received - before) as u32);
                }
                Found::NoBuffer => {
                    port.starved = true;
                    starved.push(id);
                }
                Found::Empty if port.readable && !port.has_news() => {
                    // Only errors came; whatever else is there is looked at in the next turn.
                    self.udp.enqueue(id);
                    return None;
                }
                Found::Empty => {}
            }
            // If nothing is left, something is armed that waits for more.
            self.settle_port(id);
        }
    }

    /// A completion of a multishot recvmsg.
    #[inline]
    pub(super) fn on_datagram(&mut self, completion: Completion) -> Option<Event> {
        let buf = self.udp.filled(completion);
        let (id, armed, open) = self.udp.armed(completion)?;
        if !completion.more() {
            armed.armed &= !RECEIVE;
            armed.cancelled &= !RECEIVE;
        }
        if !open {
            self.wind_down_port(id);
            return None;
        }
        if completion.result < 0 {
            self.recvmsg_ended(id, -completion.result);
        } else if let Some(buf) = buf {
            let before = self.stats.datagrams_received;
            self.split(id, buf);
            self.look_at_depth(id, (self.stats.datagrams_received - before) as u32);
        }
        if !completion.more() {
            self.settle_port(id);
        }
        let port = &mut self.udp.open(id)?.port;
        let event = port.next_event(id);
        if port.has_news() {
            // The rest of what came together follows at once.
            match self.udp.current {
                None => (self.udp.current, self.udp.current_bytes) = (Some(id), 0),
                Some(current) if current == id => {}
                Some(_) => self.udp.enqueue(id),
            }
        }
        event
    }

    /// Has a port receive by calls from now on if so many datagrams speak for that.
    #[inline]
    fn look_at_depth(&mut self, id: UdpId, found: u32) {
        let turn = self.udp.turn;
        if let Some(armed) = self.udp.open(id)
            && armed.depth.found(turn, found)
        {
            armed.port.readable = true;
            self.settle_port(id);
        }
    }

    /// Takes a filled slot apart: address, control data, payload.
    #[inline]
    fn split(&mut self, id: UdpId, mut buf: Buf) {
        let Datagrams { entries, memory: Some(memory), .. } = &mut *self.udp else { return };
        let Some(Entry::Open(armed)) = entries.get_mut(id) else { return };
        let Ok(out) = RecvMsgOut::parse(&buf, &memory.message) else { return };
        // SAFETY: all-zero is an address of no family.
        let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let bytes = out.name_data();
        // SAFETY: the name has at most `NAME_BYTES` bytes, fewer than the storage, and they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut name).cast(), bytes.len().min(NAME_BYTES)) };
        let mut control = Control([0; CONTROL_BYTES]);
        let data = out.control_data();
        control.0[..data.len()].copy_from_slice(data);
        // SAFETY: an all-zero msghdr is valid.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = data.len() as _;
        // SAFETY: the control data is what the kernel wrote, in aligned memory of our own.
        let ancillary = unsafe { calls::read_control(&header) };
        let (truncated, length) = (out.is_payload_truncated(), out.payload_data().len());
        let Some(from) = datagram::address_of(&name) else { return };
        buf.advance(buf.len() - length);
        armed.port.deliver(from, buf, truncated, ancillary, &memory.pool, &mut self.stats);
    }

    /// The receive ended without a datagram.
    #[cold]
    fn recvmsg_ended(&mut self, id: UdpId, error: i32) {
        let Some(armed) = self.udp.open(id) else { return };
        match error {
            libc::ENOBUFS => {
                self.stats.starved += 1;
                if !std::mem::replace(&mut armed.port.starved, true) {
                    self.udp.starved.push(id);
                }
            }
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            error => armed.port.receive_failed(io::Error::from_raw_os_error(error), &mut self.stats),
        }
    }

    pub(super) fn on_port_poll(&mut self, completion: Completion) -> Option<Event> {
        let bit = if completion.tag >> 60 == Op::DatagramOut as u64 { POLL_OUT } else { POLL_IN };
        let (id, armed, open) = self.udp.armed(completion)?;
        if !completion.more() {
            armed.armed &= !bit;
            armed.cancelled &= !bit;
        }
        if !open {
            self.wind_down_port(id);
            return None;
        }
        if bit == POLL_OUT {
            armed.port.blocked = false;
            if !std::mem::replace(&mut armed.port.flushing, true) {
                self.udp.flush.push_back(id);
            }
            return None;
        }
        armed.port.readable = true;
        if self.udp.current.is_some() {
            self.settle_port(id);
            return None;
        }
        (self.udp.current, self.udp.current_bytes) = (Some(id), 0);
        self.settle_port(id);
        self.next_datagram()
    }

    /// Takes a completion for datagrams only to note what has ended. Says whether it was one.
    pub(super) fn drain_datagram(&mut self, completion: Completion) -> bool {
        let bit = match completion.tag >> 60 {
            op if op == Op::Datagram as u64 => RECEIVE,
            op if op == Op::DatagramIn as u64 => POLL_IN,
            op if op == Op::DatagramOut as u64 => POLL_OUT,
            _ => return false,
        };
        drop(self.udp.filled(completion));
        if let Some((_, armed, _)) = self.udp.armed(completion)
            && !completion.more()
        {
            armed.armed &= !bit;
        }
        true
    }
}

impl Datagrams {
    /// Takes the slot that a completion fills back from the kernel.
    #[inline]
    fn filled(&mut self, completion: Completion) -> Option<Buf> {
        let buffer = completion.buffer()?;
        let memory = self.memory.as_mut()?;
        let (buffers, pool) = (memory.buffers.as_mut()?, &memory.pool);
        // SAFETY: the completion was just taken from the ring, and names a buffer of this group.
        Some(unsafe { buffers.take(pool, buffer, completion.result.max(0) as u32) })
    }
}
