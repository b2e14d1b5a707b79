//! The rules, as a model: handles, queues, quotas and slices, without sockets and without memory.
//!
//! Each method is one function of Registered I/O. It answers what the function would, or [`No::Breach`] where a program
//! may not go: a breach is a mistake of the caller even if the real system would let it pass.

use std::collections::{BTreeMap, VecDeque};

/// `RIO_MSG_DONT_NOTIFY`: the completion does not count for a notification.
pub const DONT_NOTIFY: u32 = 1;
/// `RIO_MSG_DEFER`: the request waits for one without this flag.
pub const DEFER: u32 = 2;
/// `RIO_MSG_WAITALL`: a receive completes when its buffer is full.
pub const WAITALL: u32 = 4;
/// `RIO_MSG_COMMIT_ONLY`: not a request, but the start of those deferred.
pub const COMMIT_ONLY: u32 = 8;
/// Bytes of a `SOCKADDR_INET`.
pub const ADDRESS_BYTES: u32 = 28;
/// `RIO_MAX_CQ_SIZE`.
pub const COMPLETIONS_MAX: u32 = 0x0800_0000;

/// `WSAEINVAL`.
pub const INVALID: i32 = 10022;
/// `WSAEALREADY`.
pub const ALREADY: i32 = 10037;

/// Why a call does not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum No {
    /// The function fails with this Winsock error.
    Error(i32),
    /// The caller broke a rule.
    Breach(String),
}

/// What a call answers.
pub type Answer<T> = Result<T, No>;

fn breach<T>(message: impl Into<String>) -> Answer<T> {
    Err(No::Breach(message.into()))
}

/// The two directions of a request queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// `RIOReceive`.
    Receive,
    /// `RIOSend`.
    Send,
}

/// A part of a registered buffer: `RIO_BUF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The registered buffer.
    pub buffer: isize,
    /// First byte.
    pub offset: u32,
    /// Number of bytes.
    pub length: u32,
}

impl Slice {
    fn end(self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }

    fn key(self) -> (isize, u32) {
        (self.buffer, self.offset)
    }
}

/// What a caller passes to `RIOReceive` or `RIOSend`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Post<'a> {
    /// The data, if a pointer was passed.
    pub data: Option<Slice>,
    /// `DataBufferCount`.
    pub count: u32,
    /// Addresses of the extended functions.
    pub addresses: &'a [Slice],
    /// Flags.
    pub flags: u32,
    /// `RequestContext`.
    pub context: u64,
}

/// A request that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Started {
    /// Its number.
    pub request: u64,
    /// Its data; `None` for a datagram without any.
    pub data: Option<Slice>,
    /// Its remote address, if it is extended.
    pub address: Option<Slice>,
    /// Whether it completes only when the buffer is full.
    pub wait_all: bool,
}

/// A completion: `RIORESULT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// 0 or a Winsock error.
    pub status: i32,
    /// Bytes moved.
    pub bytes: u32,
    /// Of the request queue.
    pub socket_context: u64,
    /// Of the request.
    pub request_context: u64,
}

/// How a completion queue calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notification {
    /// By an event.
    Event,
    /// By a completion port, with an OVERLAPPED at this address.
    Port {
        /// Address of the OVERLAPPED.
        overlapped: usize,
    },
}

#[derive(Debug)]
struct CompletionQueue {
    size: u32,
    /// The sum of the depths of its request queues.
    charged: u32,
    notification: Option<Notification>,
    armed: bool,
    entries: VecDeque<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    completion: Completion,
    queue: isize,
    request: u64,
    silent: bool,
}

#[derive(Debug)]
struct Side {
    depth: u32,
    completions: isize,
    /// Everything posted whose completion was not dequeued: these use the quota.
    used: u32,
    /// Requests that wait for a commit.
    deferred: Vec<u64>,
}

#[derive(Debug)]
struct RequestQueue {
    socket: usize,
    context: u64,
    receive: Side,
    send: Side,
    /// The socket is one for datagrams.
    datagrams: bool,
    closed: bool,
}

impl RequestQueue {
    fn side(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }
}

#[derive(Clone, Debug)]
struct Request {
    queue: isize,
    direction: Direction,
    data: Option<Slice>,
    addresses: Vec<Slice>,
    flags: u32,
    context: u64,
    completed: bool,
}

/// All of Registered I/O in one process.
#[derive(Debug, Default)]
pub struct Rules {
    last_handle: isize,
    last_request: u64,
    buffers: BTreeMap<isize, u32>,
    completion_queues: BTreeMap<isize, CompletionQueue>,
    request_queues: BTreeMap<isize, RequestQueue>,
    requests: BTreeMap<u64, Request>,
    /// The slices of all requests, by where they begin.
    slices: BTreeMap<(isize, u32), Slice>,
}

/// Memory and handles in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Registered buffers.
    pub buffers: usize,
    /// Completion queues.
    pub completion_queues: usize,
    /// Request queues, those of closed sockets included until their last completion was dequeued.
    pub request_queues: usize,
    /// Requests whose completion was not dequeued.
    pub requests: usize,
}

impl Rules {
    /// Nothing registered, no queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn handle(&mut self) -> isize {
        self.last_handle += 8;
        self.last_handle
    }

    /// What is in use now.
    #[must_use]
    pub fn in_use(&self) -> InUse {
        InUse {
            buffers: self.buffers.len(),
            completion_queues: self.completion_queues.len(),
            request_queues: self.request_queues.len(),
            requests: self.requests.len(),
        }
    }

    /// `RIORegisterBuffer`.
    ///
    /// # Errors
    ///
    /// An empty buffer is refused.
    pub fn register(&mut self, length: u32) -> Answer<isize> {
        if length == 0 {
            return Err(No::Error(INVALID));
        }
        let handle = self.handle();
        self.buffers.insert(handle, length);
        Ok(handle)
    }

    /// `RIODeregisterBuffer`.
    ///
    /// # Errors
    ///
    /// A breach for a buffer that is unknown or still used by a request that was not dequeued.
    pub fn deregister(&mut self, buffer: isize) -> Answer<()> {
        if self.slices.range((buffer, 0)..=(buffer, u32::MAX)).next().is_some() {
            return breach("a buffer is deregistered while a request uses it");
        }
        match self.buffers.remove(&buffer) {
            Some(_) => Ok(()),
            None => breach("an unknown buffer is deregistered"),
        }
    }

    /// `RIOCreateCompletionQueue`.
    ///
    /// # Errors
    ///
    /// A size out of range is refused. A breach is an OVERLAPPED that is missing or belongs to another queue.
    pub fn create_completion_queue(&mut self, size: u32, notification: Option<Notification>) -> Answer<isize> {
        if size == 0 || size > COMPLETIONS_MAX {
            return Err(No::Error(INVALID));
        }
        if let Some(Notification::Port { overlapped }) = notification {
            if overlapped == 0 {
                return breach("a completion queue has no OVERLAPPED for its port");
            }
            if self.completion_queues.values().any(|queue| queue.notification == notification) {
                return breach("two completion queues share one OVERLAPPED");
            }
        }
        let queue = CompletionQueue { size, charged: 0, notification, armed: false, entries: VecDeque::new() };
        let handle = self.handle();
        self.completion_queues.insert(handle, queue);
        Ok(handle)
    }

    /// `RIOCloseCompletionQueue`. What completes later for this queue is dropped.
    ///
    /// # Errors
    ///
    /// A breach for an unknown queue.
    pub fn close_completion_queue(&mut self, queue: isize) -> Answer<()> {
        let Some(queue) = self.completion_queues.remove(&queue) else {
            return breach("an unknown completion queue is closed");
        };
        for entry in queue.entries {
            self.release(entry.queue, entry.request);
        }
        Ok(())
    }

    /// `RIOResizeCompletionQueue`.
    ///
    /// # Errors
    ///
    /// A size out of range, or below what is charged, is refused.
    pub fn resize_completion_queue(&mut self, queue: isize, size: u32) -> Answer<()> {
        let Some(queue) = self.completion_queues.get_mut(&queue) else {
            return breach("an unknown completion queue is resized");
        };
        if size == 0 || size > COMPLETIONS_MAX || size < queue.charged || (size as usize) < queue.entries.len() {
            return Err(No::Error(INVALID));
        }
        queue.size = size;
        Ok(())
    }

    /// `RIOCreateRequestQueue` for a socket, `registered` if it was created with `WSA_FLAG_REGISTERED_IO`. The numbers of
    /// data buffers are those of receives and of sends.
    ///
    /// # Errors
    ///
    /// A breach for a wrong socket, more than one data buffer, an unknown completion queue, or one without room.
    #[expect(clippy::too_many_arguments, reason = "those of the function")]
    pub fn create_request_queue(
        &mut self,
        socket: usize,
        registered: bool,
        receives: u32,
        sends: u32,
        data_buffers: (u32, u32),
        receive_completions: isize,
        send_completions: isize,
        context: u64,
    ) -> Answer<isize> {
        if !registered {
            return breach("the socket was not created for Registered I/O");
        }
        if self.request_queues.values().any(|queue| queue.socket == socket && !queue.closed) {
            return breach("the socket has a request queue already");
        }
        if data_buffers != (1, 1) {
            return breach("the number of data buffers of a request is not 1");
        }
        if receives == 0 && sends == 0 {
            return Err(No::Error(INVALID));
        }
        self.check_room(&[(receive_completions, receives), (send_completions, sends)])?;
        let side = |depth, completions| Side { depth, completions, used: 0, deferred: Vec::new() };
        let (receive, send) = (side(receives, receive_completions), side(sends, send_completions));
        let handle = self.handle();
        let queue = RequestQueue { socket, context, receive, send, datagrams: false, closed: false };
        self.request_queues.insert(handle, queue);
        self.charge(receive_completions, i64::from(receives));
        self.charge(send_completions, i64::from(sends));
        Ok(handle)
    }

    /// Says that the socket of a new request queue is a bound one for datagrams, so that other rules hold for its requests.
    pub fn is_for_datagrams(&mut self, queue: isize) {
        if let Some(queue) = self.request_queues.get_mut(&queue) {
            queue.datagrams = true;
        }
    }

    /// Whether the completion queues have room for so many more requests each.
    fn check_room(&self, more: &[(isize, u32)]) -> Answer<()> {
        let mut sums = BTreeMap::new();
        for (queue, depth) in more {
            *sums.entry(*queue).or_insert(0_u64) += u64::from(*depth);
        }
        for (handle, depth) in sums {
            let Some(queue) = self.completion_queues.get(&handle) else {
                return breach("a request queue names an unknown completion queue");
            };
            if u64::from(queue.charged) + depth > u64::from(queue.size) {
                return breach(format!(
                    "request queues of {} requests in all do not fit a completion queue of {}: resize it first",
                    u64::from(queue.charged) + depth,
                    queue.size
                ));
            }
        }
        Ok(())
    }

    fn charge(&mut self, queue: isize, change: i64) {
        if let Some(queue) = self.completion_queues.get_mut(&queue) {
            queue.charged = u32::try_from(i64::from(queue.charged) + change).expect("charges add up");
        }
    }

    /// `RIOResizeRequestQueue`.
    ///
    /// # Errors
    ///
    /// Depths below what is in use are refused. A breach if the completion queues have no room.
    pub fn resize_request_queue(&mut self, handle: isize, receives: u32, sends: u32) -> Answer<()> {
        let queue = self.open_queue(handle, "resized")?;
        let (old_receives, old_sends) = (queue.receive.depth, queue.send.depth);
        if receives < queue.receive.used || sends < queue.send.used || (receives == 0 && sends == 0) {
            return Err(No::Error(INVALID));
        }
        let (receive, send) = (queue.receive.completions, queue.send.completions);
        let more = [(receive, receives.saturating_sub(old_receives)), (send, sends.saturating_sub(old_sends))];
        self.check_room(&more)?;
        let queue = self.open_queue(handle, "resized")?;
        (queue.receive.depth, queue.send.depth) = (receives, sends);
        self.charge(receive, i64::from(receives) - i64::from(old_receives));
        self.charge(send, i64::from(sends) - i64::from(old_sends));
        Ok(())
    }

    fn open_queue(&mut self, queue: isize, what: &str) -> Answer<&mut RequestQueue> {
        match self.request_queues.get_mut(&queue).filter(|queue| !queue.closed) {
            Some(queue) => Ok(queue),
            None => breach(format!("a request queue is {what} that is unknown or whose socket is closed")),
        }
    }

    /// `RIOReceive` and `RIOSend`, with or without "Ex". Returns the requests that start now, in order.
    ///
    /// # Errors
    ///
    /// A breach for anything that the rules forbid.
    pub fn post(&mut self, queue: isize, direction: Direction, post: Post<'_>) -> Answer<Vec<Started>> {
        if post.flags & COMMIT_ONLY != 0 {
            return self.commit(queue, direction, post);
        }
        let known = DONT_NOTIFY | DEFER | if direction == Direction::Receive { WAITALL } else { 0 };
        if post.flags & !known != 0 {
            return breach(format!("flags {:#x} do not exist for this request", post.flags));
        }
        let owner = self.open_queue(queue, "used")?;
        if owner.datagrams {
            check_datagram(direction, post)?;
        } else if post.data.is_none() || post.count != 1 {
            return breach(format!("a request has {} data buffers and not exactly 1", post.count));
        }
        let side = owner.side(direction);
        if side.used >= side.depth {
            return breach(format!("a request queue of {} requests of this kind overflows", side.depth));
        }
        for slice in post.addresses.iter().chain(&post.data) {
            self.check_slice(*slice)?;
            self.slices.insert(slice.key(), *slice);
        }
        self.last_request += 1;
        let number = self.last_request;
        let addresses = post.addresses.to_vec();
        let Post { data, flags, context, .. } = post;
        let request = Request { queue, direction, data, addresses, flags, context, completed: false };
        self.requests.insert(number, request);
        let side = self.open_queue(queue, "used")?.side(direction);
        side.used += 1;
        side.deferred.push(number);
        if flags & DEFER != 0 { Ok(Vec::new()) } else { Ok(self.start_deferred(queue, direction)) }
    }

    fn commit(&mut self, queue: isize, direction: Direction, post: Post<'_>) -> Answer<Vec<Started>> {
        let alone = post.flags == COMMIT_ONLY && post.data.is_none() && post.count == 0 && post.context == 0;
        if !alone || !post.addresses.is_empty() {
            return breach("a commit has other arguments");
        }
        self.open_queue(queue, "used")?;
        Ok(self.start_deferred(queue, direction))
    }

    fn start_deferred(&mut self, queue: isize, direction: Direction) -> Vec<Started> {
        let Some(queue) = self.request_queues.get_mut(&queue) else { return Vec::new() };
        let numbers = std::mem::take(&mut queue.side(direction).deferred);
        let started = numbers.into_iter().filter_map(|number| {
            let request = self.requests.get(&number)?;
            let address = request.addresses.first().copied();
            Some(Started { request: number, data: request.data, address, wait_all: request.flags & WAITALL != 0 })
        });
        started.collect()
    }

    fn check_slice(&self, slice: Slice) -> Answer<()> {
        let Some(length) = self.buffers.get(&slice.buffer) else {
            return breach("a slice lies in an unknown buffer");
        };
        if slice.length == 0 || slice.end() > u64::from(*length) {
            return breach(format!(
                "a slice of {} bytes at {} does not lie inside its buffer of {length}",
                slice.length, slice.offset
            ));
        }
        let before = self.slices.range(..=slice.key()).next_back().map(|(_, other)| *other);
        let after = self.slices.range(slice.key()..).next().map(|(_, other)| *other);
        let before = before.filter(|other| other.buffer == slice.buffer && other.end() > u64::from(slice.offset));
        let after = after.filter(|other| other.buffer == slice.buffer && u64::from(other.offset) < slice.end());
        match before.or(after) {
            Some(other) => breach(format!("slices in flight overlap: {slice:?} and {other:?}")),
            None => Ok(()),
        }
    }

    /// A started request has ended. Returns whether its completion queue calls now.
    ///
    /// # Errors
    ///
    /// A breach if the completion queue overflows: it is corrupt then.
    pub fn complete(&mut self, request: u64, status: i32, bytes: u32) -> Answer<Option<isize>> {
        let Some(ended) = self.requests.get_mut(&request) else { return Ok(None) };
        assert!(!std::mem::replace(&mut ended.completed, true), "a request completes once");
        let Request { queue, direction, flags, context, .. } = *ended;
        let Some(owner) = self.request_queues.get_mut(&queue) else { return Ok(None) };
        let socket_context = owner.context;
        let handle = owner.side(direction).completions;
        let completion = Completion { status, bytes, socket_context, request_context: context };
        let Some(completions) = self.completion_queues.get_mut(&handle) else {
            // The queue is closed: what comes later is dropped.
            self.release(queue, request);
            return Ok(None);
        };
        if completions.entries.len() >= completions.size as usize {
            return breach("a completion queue overflows");
        }
        let silent = flags & DONT_NOTIFY != 0;
        completions.entries.push_back(Entry { completion, queue, request, silent });
        if completions.armed && !silent {
            completions.armed = false;
            return Ok(Some(handle));
        }
        Ok(None)
    }

    /// `RIODequeueCompletion`: only this gives quota and slices back.
    ///
    /// # Errors
    ///
    /// A breach for an unknown queue or an array without room.
    pub fn dequeue(&mut self, queue: isize, room: usize) -> Answer<Vec<Completion>> {
        let Some(completions) = self.completion_queues.get_mut(&queue) else {
            return breach("an unknown completion queue is read");
        };
        if room == 0 {
            return breach("completions are asked for without room for any");
        }
        let count = room.min(completions.entries.len());
        let taken: Vec<Entry> = completions.entries.drain(..count).collect();
        for entry in &taken {
            self.release(entry.queue, entry.request);
        }
        Ok(taken.into_iter().map(|entry| entry.completion).collect())
    }

    /// `RIONotify`. Says whether the queue calls at once.
    ///
    /// # Errors
    ///
    /// [`ALREADY`] if it was asked for and has not come, [`INVALID`] if the queue was created without a notification.
    pub fn notify(&mut self, queue: isize) -> Answer<bool> {
        let Some(queue) = self.completion_queues.get_mut(&queue) else {
            return breach("an unknown completion queue is to notify");
        };
        if queue.notification.is_none() {
            return Err(No::Error(INVALID));
        }
        if queue.armed {
            return Err(No::Error(ALREADY));
        }
        queue.armed = !queue.entries.iter().any(|entry| !entry.silent);
        Ok(!queue.armed)
    }

    /// The socket was closed. Returns its requests that had not been started: they end without having run.
    ///
    /// Its depths are charged until its last completion has been dequeued.
    pub fn socket_closed(&mut self, queue: isize) -> Vec<u64> {
        let Some(closed) = self.request_queues.get_mut(&queue) else { return Vec::new() };
        closed.closed = true;
        let mut waiting = std::mem::take(&mut closed.receive.deferred);
        waiting.append(&mut closed.send.deferred);
        self.retire(queue);
        waiting
    }

    /// The open request queues with their sockets.
    pub fn sockets(&self) -> impl Iterator<Item = (isize, usize)> {
        self.request_queues.iter().filter(|(_, queue)| !queue.closed).map(|(handle, queue)| (*handle, queue.socket))
    }

    /// Gives back what a request used.
    fn release(&mut self, queue: isize, request: u64) {
        let Some(request) = self.requests.remove(&request) else { return };
        for slice in request.addresses.iter().chain(&request.data) {
            self.slices.remove(&slice.key());
        }
        if let Some(owner) = self.request_queues.get_mut(&queue) {
            owner.side(request.direction).used -= 1;
        }
        self.retire(queue);
    }

    /// Removes the request queue of a closed socket after its last completion.
    fn retire(&mut self, handle: isize) {
        let Some(queue) = self.request_queues.get(&handle) else { return };
        if queue.closed && queue.receive.used == 0 && queue.send.used == 0 {
            let (receive, send) = (&queue.receive, &queue.send);
            let charges = [(receive.completions, receive.depth), (send.completions, send.depth)];
            self.request_queues.remove(&handle);
            for (completions, depth) in charges {
                self.charge(completions, -i64::from(depth));
            }
        }
    }
}

/// What holds for the requests of a socket for datagrams alone.
fn check_datagram(direction: Direction, post: Post<'_>) -> Answer<()> {
    if post.data.is_some() != (post.count == 1) || post.count > 1 {
        return breach(format!("a datagram has {} data buffers, which are not those that are passed", post.count));
    }
    if post.flags & WAITALL != 0 {
        return breach("a datagram cannot be waited for until its buffer is full");
    }
    if direction == Direction::Send && post.addresses.is_empty() {
        return breach("a datagram is sent to nobody on a socket that is not connected");
    }
    if let Some(address) = post.addresses.iter().find(|address| address.length < ADDRESS_BYTES) {
        return breach(format!("an address has {} bytes and not those of a SOCKADDR_INET", address.length));
    }
    Ok(())
}
