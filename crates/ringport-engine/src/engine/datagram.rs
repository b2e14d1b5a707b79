//! Datagrams by plain calls, shared by the readiness engine and by io_uring.
//!
//! ```text
//! send_to ─► Port::outgoing ── flush: grouped into messages ─► sendmmsg(2), segments as UDP_SEGMENT
//! recvmmsg(2) or a multishot completion ─► split at UDP_GRO's size ─► Port::incoming ─► Event::Datagram
//! ```
//!
//! **Sending is a plain call on io_uring, too.** The kernel takes a datagram at once or not at all, so that an operation of
//! the ring would have nothing to wait for; and one call moves hundreds, where the ring needs an entry, a record and a
//! completion for each. It also means that the kernel never sees memory beyond the call (law 1).
//!
//! **One copy for what the kernel put together, none otherwise.** A datagram that came alone stays in its slot. One that came
//! with others in one receive is copied into a small slot of its own: sharing a slot would let the smallest datagram that
//! is kept hold 64 KiB, and a copy of some hundred bytes costs less than the call that was saved.
//!
//! An error that the system reports for a peer (`IP_RECVERR`, see ip(7)) makes the next call on the socket fail, whatever
//! that was about. So a failure is looked up in the error queue first, and the call made again.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::contract::{DATAGRAMS_QUEUED_MAX, EngineConfig, EngineStats, Event, SendTo};
use super::datagram_calls::{self as calls, Ancillary};
use super::direct;
use crate::buffer::{Buf, Chunk, Pool, PoolConfig, SlotClass};
use crate::id::UdpId;
use crate::socket::SockAddr;

/// Messages of one receive call at most.
const MESSAGES_PER_RECEIVE: usize = 32;
/// Messages of one send call at most, and datagrams in them.
const MESSAGES_PER_SEND: usize = 64;
const DATAGRAMS_PER_SEND: usize = 256;
/// Datagrams of one segmented send (`UDP_MAX_SEGMENTS` is 64 before Linux 6.9), and the largest size that is sent so:
/// a segment must fit the device, and every IPv6 link takes 1,280 bytes (RFC 8200, section 5).
const SEGMENTS_MAX: usize = 64;
const SEGMENT_BYTES_MAX: usize = 1280 - 40 - 8;
/// Bytes of one segmented send: what an IPv4 packet holds (see udp(7)).
const TRAIN_BYTES_MAX: usize = 65_507;
/// Failures of one socket that wait to be reported; more are only counted.
const FAILURES_MAX: usize = 64;
/// Calls in a row that fail for an error that was pending; then the next turn goes on.
const RETRIES_MAX: u32 = 16;
/// What a datagram counts at least in the budget of a turn: a small one has its share of a call, too.
const BYTES_MIN: usize = 256;
/// Bytes for what a multishot receive puts before the payload, rounded up: header, address, control data.
const OVERHEAD_BYTES: u32 = 128;
/// The other class of slots holds segments that came together, as many for each slot of the first class. They are no
/// multiple of a page apart either.
const SEGMENT_SLOTS: u32 = 4;
const SEGMENT_SLOT_BYTES: u32 = 1472 + 64;
/// Room for control data: two integers (`SO_RXQ_OVFL` and `UDP_GRO`).
pub(crate) const CONTROL_BYTES: usize = 64;

/// One entry of recvmmsg(2) and sendmmsg(2); the same as `struct mmsghdr` where that exists.
#[repr(C)]
pub(crate) struct Message {
    pub(crate) header: libc::msghdr,
    pub(crate) length: libc::c_uint,
}

/// Control data, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control(pub(crate) [u8; CONTROL_BYTES]);

/// The buffers for datagrams.
pub(crate) fn pool(config: &EngineConfig) -> Pool {
    let mut bytes = (config.datagram_bytes.clamp(1, 65_535) + OVERHEAD_BYTES).next_multiple_of(64);
    if bytes.is_multiple_of(4096) {
        bytes += 64; // Slots a multiple of a page apart would all share the same few lines of the cache.
    }
    let segments = config.datagram_slots.saturating_mul(SEGMENT_SLOTS);
    Pool::new(
        PoolConfig::default()
            .small_slots(config.datagram_slots)
            .large_slots(segments)
            .slot_bytes(bytes, SEGMENT_SLOT_BYTES),
    )
}

/// A datagram socket: what both engines keep of it.
pub(crate) struct Port {
    pub(crate) socket: socket2::Socket,
    outgoing: VecDeque<(SocketAddr, Chunk)>,
    incoming: VecDeque<(SocketAddr, Buf, bool)>,
    failures: VecDeque<(Option<SocketAddr>, io::Error)>,
    /// Datagrams are wanted.
    pub(crate) wanted: bool,
    /// A receive call may find something.
    pub(crate) readable: bool,
    /// The kernel takes no more for now.
    pub(crate) blocked: bool,
    /// The kernel was asked to tell when it takes more.
    pub(crate) watched: bool,
    /// `send_to` was refused, and its caller waits to be told.
    full: bool,
    writable_due: bool,
    /// In the engine's list of ports that can go on, and of those that are to be flushed.
    pub(crate) queued: bool,
    pub(crate) flushing: bool,
    pub(crate) starved: bool,
    gso: bool,
    many: bool,
    /// Largest datagram that is received whole.
    bytes_max: usize,
    /// Messages for which the next receive call makes room.
    expected: usize,
    /// The kernel's count of drops, when it last told.
    dropped: u32,
}

/// What a receive call found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// This many bytes, in at least one datagram.
    Some(usize),
    Empty,
    NoBuffer,
}

impl Port {
    /// Sets the socket up. The caller decides whether it blocks.
    pub(crate) fn new(socket: socket2::Socket, config: &EngineConfig) -> io::Result<Self> {
        if socket.r#type()? != socket2::Type::DGRAM {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a datagram socket"));
        }
        let bytes_max = config.datagram_bytes.clamp(1, 65_535) as usize;
        calls::report_errors(&socket);
        calls::count_drops(&socket);
        if config.features.gro && bytes_max >= 65_535 {
            calls::join_segments(&socket);
        }
        let gso = config.features.gso && calls::can_segment(&socket);
        Ok(Self {
            socket,
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            failures: VecDeque::new(),
            wanted: false,
            readable: true,
            blocked: false,
            watched: false,
            full: false,
            writable_due: false,
            queued: false,
            flushing: false,
            starved: false,
            gso,
            many: config.features.mmsg,
            bytes_max,
            expected: 1,
            dropped: 0,
        })
    }

    /// Queues a datagram.
    #[inline]
    pub(crate) fn push(&mut self, to: SocketAddr, data: Chunk, stats: &mut EngineStats) -> SendTo {
        if self.outgoing.len() >= DATAGRAMS_QUEUED_MAX {
            self.full = true;
            return SendTo::Full(data);
        }
        if data.is_alone() {
            self.note_failure(Some(to), io::ErrorKind::InvalidInput.into(), stats);
            return SendTo::Taken;
        }
        stats.datagram_bytes_queued += data.len() as u64;
        self.outgoing.push_back((to, data));
        SendTo::Taken
    }

    /// What waits will never be sent. Says how many datagrams that are.
    pub(crate) fn give_up(&mut self, stats: &mut EngineStats) -> usize {
        let unsent = std::mem::take(&mut self.outgoing);
        stats.datagram_bytes_queued -= unsent.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        unsent.len()
    }

    /// Whether so much waits that a call is worth it.
    #[inline]
    pub(crate) fn has_batch(&self) -> bool {
        self.outgoing.len() >= DATAGRAMS_PER_SEND && !self.blocked
    }

    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether there is an event to deliver.
    pub(crate) fn has_news(&self) -> bool {
        !self.incoming.is_empty() || !self.failures.is_empty() || self.writable_due
    }

    /// The next event that is there already.
    #[inline]
    pub(crate) fn next_event(&mut self, udp: UdpId) -> Option<Event> {
        if let Some((from, buf, truncated)) = self.incoming.pop_front() {
            return Some(Event::Datagram { udp, from, buf, truncated });
        }
        if let Some((to, error)) = self.failures.pop_front() {
            return Some(Event::DatagramFailed { udp, to, error });
        }
        std::mem::take(&mut self.writable_due).then_some(Event::DatagramsWritable { udp })
    }

    fn note_failure(&mut self, to: Option<SocketAddr>, error: io::Error, stats: &mut EngineStats) {
        stats.datagrams_failed += 1;
        if self.failures.len() < FAILURES_MAX {
            self.failures.push_back((to, error));
        }
    }

    /// A receive failed: for an error that is in the queue, or for one of its own.
    #[cold]
    pub(crate) fn receive_failed(&mut self, error: io::Error, stats: &mut EngineStats) {
        if !self.collect_errors(stats) {
            self.note_failure(None, error, stats);
        }
    }

    /// Reads the socket's error queue. Says whether there was anything in it.
    pub(crate) fn collect_errors(&mut self, stats: &mut EngineStats) -> bool {
        let mut any = false;
        for _ in 0..FAILURES_MAX {
            let Some((to, error)) = calls::next_error(self.socket.as_fd()) else { break };
            self.note_failure(to, error, stats);
            any = true;
        }
        any
    }

    /// Hands the kernel what it takes. What it does not take waits until the socket is writable.
    pub(crate) fn flush(&mut self, batches: &mut Batches, stats: &mut EngineStats) {
        let mut retries = 0;
        while !self.outgoing.is_empty() && !self.blocked && retries < RETRIES_MAX {
            let messages = batches.send.load(&mut self.outgoing, self.gso, self.many);
            stats.calls += 1;
            match batches.send.call(self.socket.as_fd(), messages, self.many) {
                Ok(sent) => {
                    let datagrams: usize = batches.send.counts[..sent].iter().sum();
                    let bytes: u64 = self.outgoing.drain(..datagrams).map(|(_, data)| data.len() as u64).sum();
                    stats.datagram_bytes_queued -= bytes;
                    stats.datagrams_sent += datagrams as u64;
                    stats.datagram_bytes_sent += bytes;
                    retries = 0;
                    if sent < messages {
                        // What stopped the call is not told again (sendmmsg(2)): a full buffer, or an error of a peer.
                        self.collect_errors(stats);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => retries += 1,
                Err(error) => {
                    retries += 1;
                    self.send_failed(error, batches.send.counts[0], stats);
                }
            }
        }
        if self.full && self.outgoing.len() <= DATAGRAMS_QUEUED_MAX / 2 {
            self.full = false;
            self.writable_due = true;
        }
    }

    /// The first message of a call failed, if it was not an error that had been pending.
    #[cold]
    fn send_failed(&mut self, error: io::Error, datagrams: usize, stats: &mut EngineStats) {
        if self.collect_errors(stats) {
            return;
        }
        if datagrams > 1 {
            // The device or the route cannot segment. One by one they may go.
            self.gso = false;
        } else if let Some((to, data)) = self.outgoing.pop_front() {
            stats.datagram_bytes_queued -= data.len() as u64;
            self.note_failure(Some(to), error, stats);
        }
    }

    /// One receive call into slots of `pool`; what it found is in `incoming`.
    ///
    /// What the call before it has led to is sent first, while the kernel's memory for it is still in the near caches: it is
    /// taken again and again that way.
    pub(crate) fn receive(&mut self, pool: &Pool, batches: &mut Batches, stats: &mut EngineStats) -> Found {
        if !self.outgoing.is_empty() && !self.blocked {
            self.flush(batches, stats);
        }
        for _ in 0..RETRIES_MAX {
            let room = if self.many { self.expected } else { 1 };
            let messages = batches.receive.lease(pool, room, self.bytes_max);
            if messages == 0 {
                stats.starved += 1;
                return Found::NoBuffer;
            }
            stats.calls += 1;
            match batches.receive.call(self.socket.as_fd(), messages, self.many) {
                Ok(received) => {
                    // Twice what came fits the next time, so that few slots are taken for nothing.
                    self.expected = (2 * received).clamp(2, MESSAGES_PER_RECEIVE);
                    let bytes = self.take_received(received, pool, batches, stats);
                    batches.receive.slots.clear();
                    // A call that found less than it had room for has emptied the socket: the next one is a new edge.
                    self.readable = received == messages;
                    return Found::Some(bytes);
                }
                Err(error) => {
                    batches.receive.slots.clear();
                    match error.kind() {
                        io::ErrorKind::WouldBlock => {
                            self.readable = false;
                            return Found::Empty;
                        }
                        io::ErrorKind::Interrupted => {}
                        _ => self.receive_failed(error, stats),
                    }
                }
            }
        }
        Found::Empty
    }

    fn take_received(&mut self, messages: usize, pool: &Pool, batches: &mut Batches, stats: &mut EngineStats) -> usize {
        let ReceiveBatch { slots, parts, messages: received } = &mut batches.receive;
        let mut total = 0;
        for ((mut buf, part), message) in slots.drain(..messages).zip(parts.iter()).zip(received.iter()) {
            let length = message.length.min(u32::try_from(self.bytes_max).unwrap_or(u32::MAX));
            buf.set_filled(length);
            let truncated = message.header.msg_flags & libc::MSG_TRUNC != 0;
            // SAFETY: the kernel has just filled the control data that the header points to.
            let ancillary = unsafe { calls::read_control(&message.header) };
            total += buf.len().max(BYTES_MIN);
            if let Some(from) = address_of(&part.name) {
                self.deliver(from, buf, truncated, ancillary, pool, stats);
            }
        }
        total
    }

    /// Puts what one receive brought into `incoming`: one datagram, or several that the kernel had put together.
    #[inline]
    pub(crate) fn deliver(
        &mut self,
        from: SocketAddr,
        mut buf: Buf,
        truncated: bool,
        ancillary: Ancillary,
        pool: &Pool,
        stats: &mut EngineStats,
    ) {
        if let Some(dropped) = ancillary.dropped {
            stats.datagrams_dropped += u64::from(dropped.wrapping_sub(self.dropped));
            self.dropped = dropped;
        }
        let segment = ancillary.segment.filter(|segment| *segment > 0 && *segment < buf.len());
        if let Some(segment) = segment {
            stats.datagrams_received += buf.len().div_ceil(segment) as u64;
            let copy = |part| (from, pool.copied_into(SlotClass::Large, part), false);
            self.incoming.extend(buf.chunks(segment).map(copy));
            return;
        }
        let truncated = truncated || buf.len() > self.bytes_max;
        buf.truncate(self.bytes_max);
        stats.datagrams_received += 1;
        stats.datagrams_truncated += u64::from(truncated);
        self.incoming.push_back((from, pool.relieve(buf, SlotClass::Small), truncated));
    }
}

/// Memory for the calls of one engine. What the pointers in it point to is set before each call and read by none after.
pub(crate) struct Batches {
    send: SendBatch,
    receive: ReceiveBatch,
}

impl Batches {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { send: SendBatch::new(), receive: ReceiveBatch::new() })
    }
}

struct SendBatch {
    names: Box<[SockAddr]>,
    slices: Box<[libc::iovec]>,
    messages: Box<[Message]>,
    control: Box<[Control]>,
    /// Datagrams in each message.
    counts: Vec<usize>,
}

fn empty_message() -> Message {
    // SAFETY: an all-zero msghdr is valid: no name, no pieces, no control data.
    Message { header: unsafe { std::mem::zeroed() }, length: 0 }
}

impl SendBatch {
    fn new() -> Self {
        Self {
            names: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into(); MESSAGES_PER_SEND].into(),
            slices: vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; DATAGRAMS_PER_SEND].into(),
            messages: (0..MESSAGES_PER_SEND).map(|_| empty_message()).collect(),
            control: vec![Control([0; CONTROL_BYTES]); MESSAGES_PER_SEND].into(),
            counts: Vec::with_capacity(MESSAGES_PER_SEND),
        }
    }

    /// Describes the front of `queue`, and says how many messages that makes.
    fn load(&mut self, queue: &mut VecDeque<(SocketAddr, Chunk)>, gso: bool, many: bool) -> usize {
        let queue = &*queue.make_contiguous();
        let queue = &queue[..queue.len().min(DATAGRAMS_PER_SEND)];
        self.counts.clear();
        let (mut at, most) = (0, if many { MESSAGES_PER_SEND } else { 1 });
        while self.counts.len() < most && at < queue.len() {
            let rest = &queue[at..];
            let (index, count) = (self.counts.len(), if gso { train(rest) } else { 1 });
            self.names[index] = rest[0].0.into();
            direct::fill_slices(rest[..count].iter().map(|(_, data)| data), &mut self.slices[at..at + count]);
            self.counts.push(count);
            at += count;
        }
        // Only now, since the names and slices must not be touched any more.
        let (mut first, slices) = (0, self.slices.as_mut_ptr());
        for (index, (count, message)) in self.counts.iter().zip(&mut self.messages).enumerate() {
            let (name, header) = (&self.names[index], &mut message.header);
            header.msg_name = name.as_ptr().cast_mut().cast();
            header.msg_namelen = name.len();
            header.msg_iov = slices.wrapping_add(first);
            header.msg_iovlen = *count as _;
            header.msg_controllen = 0;
            if *count > 1 {
                calls::write_segment_size(header, &mut self.control[index], queue[first].1.len() as u16);
            }
            first += count;
        }
        self.counts.len()
    }

    fn call(&mut self, fd: BorrowedFd<'_>, messages: usize, many: bool) -> io::Result<usize> {
        // SAFETY: each message points to an address, slices and control data of this batch, which were set for it in `load`;
        // the slices describe datagrams of a queue that the caller does not touch before this returns.
        unsafe { calls::send(fd, &mut self.messages[..messages], many) }
    }
}

/// How many datagrams of `queue` can leave as one segmented send: the same peer, all of one size but for a last shorter one
/// (udp(7), `UDP_SEGMENT`).
#[inline]
fn train(queue: &[(SocketAddr, Chunk)]) -> usize {
    match queue {
        [(to, _), (next, _), ..] if next == to => long_train(queue),
        _ => 1,
    }
}

fn long_train(queue: &[(SocketAddr, Chunk)]) -> usize {
    let (to, size) = (queue[0].0, queue[0].1.len());
    if size == 0 || size > SEGMENT_BYTES_MAX {
        return 1;
    }
    let most = SEGMENTS_MAX.min(TRAIN_BYTES_MAX / size).min(queue.len());
    let mut count = 1;
    while count < most {
        let (peer, data) = &queue[count];
        if *peer != to || data.len() > size || data.is_empty() {
            break;
        }
        count += 1;
        if data.len() < size {
            break;
        }
    }
    count
}

struct ReceiveBatch {
    parts: Box<[ReceivePart]>,
    messages: Box<[Message]>,
    slots: Vec<Buf>,
}

/// What one message of a receive call points to.
struct ReceivePart {
    name: libc::sockaddr_storage,
    control: Control,
    slice: libc::iovec,
}

impl ReceiveBatch {
    fn new() -> Self {
        let part = || ReceivePart {
            // SAFETY: all-zero is an address of no family.
            name: unsafe { std::mem::zeroed() },
            control: Control([0; CONTROL_BYTES]),
            slice: libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 },
        };
        Self {
            parts: (0..MESSAGES_PER_RECEIVE).map(|_| part()).collect(),
            messages: (0..MESSAGES_PER_RECEIVE).map(|_| empty_message()).collect(),
            slots: Vec::with_capacity(MESSAGES_PER_RECEIVE),
        }
    }

    /// Leases up to `room` slots and describes them. Says how many there are.
    fn lease(&mut self, pool: &Pool, room: usize, bytes: usize) -> usize {
        self.slots.clear();
        self.slots.extend(std::iter::from_fn(|| pool.lease(SlotClass::Small)).take(room));
        for ((slot, part), message) in self.slots.iter_mut().zip(&mut self.parts).zip(&mut self.messages) {
            let (address, size) = slot.raw_memory();
            part.slice = libc::iovec { iov_base: address.cast(), iov_len: size.min(bytes) };
            // An address of no family, should the kernel write none.
            part.name.ss_family = 0;
            let header = &mut message.header;
            header.msg_name = (&raw mut part.name).cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
            header.msg_iov = &raw mut part.slice;
            header.msg_iovlen = 1;
            header.msg_control = part.control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES as _;
        }
        self.slots.len()
    }

    fn call(&mut self, fd: BorrowedFd<'_>, messages: usize, many: bool) -> io::Result<usize> {
        // SAFETY: each message points to a leased slot, an address and control data that are its own and live through
        // the call.
        unsafe { calls::receive(fd, &mut self.messages[..messages], many) }
    }
}

/// Receives one message.
///
/// # Safety
///
/// It points to room for an address, data and control data that is writable during the call and shared with nobody.
pub(crate) unsafe fn receive_one(fd: BorrowedFd<'_>, message: &mut Message) -> io::Result<usize> {
    // SAFETY: the caller vouches for what the message points to.
    let bytes = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message.header, libc::MSG_DONTWAIT) };
    message.length = answer(bytes)? as libc::c_uint;
    Ok(1)
}

/// What a call answered, as a number or as the error that it left.
pub(crate) fn answer(answer: isize) -> io::Result<usize> {
    usize::try_from(answer).map_err(|_| io::Error::last_os_error())
}

/// The IP address in `storage`; `None` if the kernel wrote none.
pub(crate) fn address_of(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let memory: *const libc::sockaddr_storage = storage;
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the storage is larger than an IPv4 address and aligned for every kind; its family says that it is one.
            let found = unsafe { &*memory.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(found.sin_addr.s_addr));
            Some(SocketAddr::from((ip, u16::from_be(found.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, with IPv6.
            let found = unsafe { &*memory.cast::<libc::sockaddr_in6>() };
            let (ip, port) = (Ipv6Addr::from(found.sin6_addr.s6_addr), u16::from_be(found.sin6_port));
            Some(SocketAddrV6::new(ip, port, found.sin6_flowinfo, found.sin6_scope_id).into())
        }
        _ => None,
    }
}
