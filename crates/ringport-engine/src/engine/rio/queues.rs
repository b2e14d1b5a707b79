//! The three kinds of handle of Registered I/O: registered memory, the completion queue, and request queues.

use std::io;
use std::os::windows::io::{AsRawHandle, AsRawSocket, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::Arc;

use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE};
use windows_sys::Win32::Networking::WinSock::{
    RIO_BUF, RIO_BUFFERID, RIO_CORRUPT_CQ, RIO_CQ, RIO_EVENT_COMPLETION, RIO_IOCP_COMPLETION, RIO_MSG_COMMIT_ONLY,
    RIO_NOTIFICATION_COMPLETION, RIO_RQ, RIORESULT, SOCKET, WSAEALREADY, WSAGetLastError,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::Threading::{
    CreateEventW, INFINITE, RegisterWaitForSingleObject, UnregisterWaitEx, WT_EXECUTEDEFAULT,
};

use super::books::SENDS;
use super::table::Functions;
use crate::engine::port::{Bell, KEY_FREE, Port};
use crate::engine::winsock::Started;

/// Receives of one connection that are posted at a time.
pub(super) const RECEIVES: u32 = 1;
/// What a connection is charged for in the completion queue.
pub(super) const DEPTH: u32 = RECEIVES + SENDS;

/// The key of the packet that says that the completion queue is not empty.
pub(super) const KEY_COMPLETIONS: usize = KEY_FREE;

/// Registered memory. It stays registered until this is dropped.
pub(super) struct Registered {
    functions: Functions,
    buffer: RIO_BUFFERID,
    base: *const u8,
    bytes: u32,
}

impl Registered {
    /// Registers memory, which locks its pages.
    ///
    /// # Errors
    ///
    /// What the system answers: `WSAENOBUFS` when it has no memory to lock. `InvalidInput` for more than 4 GiB.
    ///
    /// # Safety
    ///
    /// The memory stays valid until the value is dropped, and is touched only as requests on its parts allow.
    pub(super) unsafe fn new(functions: &Functions, base: *const u8, bytes: usize) -> io::Result<Self> {
        let Ok(bytes) = u32::try_from(bytes) else {
            let message = "registered memory is at most 4 GiB: make the pool smaller";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        };
        // SAFETY: the memory is that long; the caller vouches for how long it lives.
        let buffer = unsafe { (functions.register_buffer)(base, bytes) };
        // RIO_INVALID_BUFFERID is all ones.
        if buffer == -1 { Err(last_error()) } else { Ok(Self { functions: *functions, buffer, base, bytes }) }
    }

    /// Whether this address lies in the memory.
    #[inline]
    pub(super) fn contains(&self, address: *const u8) -> bool {
        address.addr().wrapping_sub(self.base.addr()) < self.bytes as usize
    }

    /// A part of the memory.
    #[inline]
    pub(super) fn slice(&self, address: *const u8, bytes: u32) -> RIO_BUF {
        let offset = address.addr() - self.base.addr();
        debug_assert!(offset + bytes as usize <= self.bytes as usize);
        RIO_BUF { BufferId: self.buffer, Offset: offset as u32, Length: bytes }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered in `new`, once. Who drops this has dequeued every completion of its parts.
        unsafe { (self.functions.deregister_buffer)(self.buffer) };
    }
}

/// How a completion queue says that it is not empty.
pub(super) enum Notice {
    /// Not at all.
    None,
    /// With a packet of the port.
    Packet,
    /// With an event.
    Event,
}

/// The completion queue.
pub(super) struct Completions {
    functions: Functions,
    queue: RIO_CQ,
    /// The one of this queue. The system only passes it through.
    _overlapped: Option<Box<OVERLAPPED>>,
    _event: Option<EventToPort>,
}

impl Completions {
    /// Makes a queue with room for `capacity` entries.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub(super) fn open(functions: &Functions, capacity: u32, notice: &Notice, port: &Port) -> io::Result<Self> {
        let mut overlapped = Box::new(OVERLAPPED::default());
        let mut how = RIO_NOTIFICATION_COMPLETION::default();
        let mut event = None;
        let how = match notice {
            Notice::None => ptr::null(),
            Notice::Packet => {
                how.Type = RIO_IOCP_COMPLETION;
                how.Anonymous.Iocp.IocpHandle = port.handle();
                how.Anonymous.Iocp.CompletionKey = ptr::without_provenance_mut(KEY_COMPLETIONS);
                how.Anonymous.Iocp.Overlapped = (&raw mut *overlapped).cast();
                &raw const how
            }
            Notice::Event => {
                let to_port = EventToPort::new(port)?;
                how.Type = RIO_EVENT_COMPLETION;
                how.Anonymous.Event.EventHandle = to_port.event.as_raw_handle();
                event = Some(to_port);
                &raw const how
            }
        };
        // SAFETY: the structure is valid, and read before the call returns. What it names lives as long as the queue.
        let queue = unsafe { (functions.create_completion_queue)(capacity, how) };
        if queue == 0 {
            return Err(last_error());
        }
        let overlapped = matches!(notice, Notice::Packet).then_some(overlapped);
        Ok(Self { functions: *functions, queue, _overlapped: overlapped, _event: event })
    }

    /// Changes the room.
    ///
    /// # Errors
    ///
    /// What the system answers; the room is what it was then.
    pub(super) fn resize(&self, capacity: u32) -> io::Result<()> {
        // SAFETY: the queue is live, and only this thread uses it.
        let done = unsafe { (self.functions.resize_completion_queue)(self.queue, capacity) };
        if done == 0 { Err(last_error()) } else { Ok(()) }
    }

    /// Takes completions and says how many. They carry back their quota and their slices.
    ///
    /// # Errors
    ///
    /// If the queue is corrupt.
    #[inline]
    pub(super) fn dequeue(&self, results: &mut [RIORESULT]) -> io::Result<usize> {
        // SAFETY: there is room for as many results, and only this thread uses the queue.
        let count =
            unsafe { (self.functions.dequeue_completion)(self.queue, results.as_mut_ptr(), results.len() as u32) };
        if count == RIO_CORRUPT_CQ {
            return Err(io::Error::other("the completion queue of Registered I/O is corrupt"));
        }
        Ok(count as usize)
    }

    /// Lets tests see what other answers do.
    #[cfg(test)]
    pub(super) fn set_dequeue(&mut self, dequeue: unsafe extern "system" fn(RIO_CQ, *mut RIORESULT, u32) -> u32) {
        self.functions.dequeue_completion = dequeue;
    }

    /// Asks for one notice, as soon as the queue is not empty. None may be under way.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub(super) fn notify(&self) -> io::Result<()> {
        // SAFETY: the queue is live, and only this thread uses it.
        match unsafe { (self.functions.notify)(self.queue) } {
            // "Already" comes to the same: a notice is under way.
            0 | WSAEALREADY => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        // SAFETY: made in `open`, closed once. What completes later is dropped by the system.
        unsafe { (self.functions.close_completion_queue)(self.queue) };
    }
}

/// The request queue of one connection. It ends with its socket.
#[derive(Clone, Copy)]
pub(super) struct Requests(RIO_RQ);

/// Which of the two directions.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Receive,
    Send,
}

impl Requests {
    /// Makes the request queue of a socket, which was created for Registered I/O, with room for so many requests.
    ///
    /// # Errors
    ///
    /// What the system answers.
    pub(super) fn open(
        functions: &Functions,
        socket: &socket2::Socket,
        completions: &Completions,
        receives: u32,
        sends: u32,
    ) -> io::Result<Self> {
        let (socket, queue) = (socket.as_raw_socket() as SOCKET, completions.queue);
        // SAFETY: the socket and the completion queue are live. A request has exactly one buffer.
        let requests =
            unsafe { (functions.create_request_queue)(socket, receives, 1, sends, 1, queue, queue, ptr::null()) };
        if requests == 0 { Err(last_error()) } else { Ok(Self(requests)) }
    }

    /// Posts one request.
    ///
    /// # Safety
    ///
    /// The slice lies in registered memory, overlaps no other in flight, and is not touched before its completion was
    /// dequeued (that of a send may be read). The socket is open, and this is its worker.
    #[inline]
    pub(super) unsafe fn post(
        self,
        functions: &Functions,
        direction: Direction,
        slice: &RIO_BUF,
        flags: u32,
        tag: usize,
    ) -> Started {
        let tag = ptr::without_provenance(tag);
        // SAFETY: the description is read before the call returns; the caller vouches for the rest.
        let done = unsafe {
            match direction {
                Direction::Receive => (functions.receive)(self.0, slice, 1, flags, tag),
                Direction::Send => (functions.send)(self.0, slice, 1, flags, tag),
            }
        };
        if done == 0 { Started::Refused(last_error().raw_os_error().unwrap_or_default()) } else { Started::Pending }
    }

    /// Posts one request of a datagram: its bytes, if there are any, and the peer's address.
    ///
    /// # Safety
    ///
    /// As for [`Requests::post`], for both parts.
    #[inline]
    pub(super) unsafe fn post_to(
        self,
        functions: &Functions,
        direction: Direction,
        data: Option<&RIO_BUF>,
        address: &RIO_BUF,
        flags: u32,
        tag: usize,
    ) -> Started {
        let (tag, none) = (ptr::without_provenance(tag), ptr::null());
        // Without bytes there is no buffer either (see RIOSendEx).
        let (data, count) = data.map_or((none, 0), |data| (ptr::from_ref(data), 1));
        let call = match direction {
            Direction::Receive => functions.receive_from,
            Direction::Send => functions.send_to,
        };
        // SAFETY: the descriptions are read before the call returns; the caller vouches for the rest.
        let done = unsafe { call(self.0, data, count, none, address, none, none, flags, tag) };
        if done == 0 { Started::Refused(last_error().raw_os_error().unwrap_or_default()) } else { Started::Pending }
    }

    /// Starts the requests that were deferred.
    pub(super) fn commit(self, functions: &Functions, direction: Direction) {
        let call = match direction {
            Direction::Receive => functions.receive,
            Direction::Send => functions.send,
        };
        // SAFETY: a commit refers to no memory. That it fails, the completions of what was deferred say.
        unsafe { call(self.0, ptr::null(), 0, RIO_MSG_COMMIT_ONLY, ptr::null()) };
    }
}

/// An event, of which each signal becomes a packet of a port: a thread can wait for a port or for events, and accepts, connects
/// and wakers come by the port.
struct EventToPort {
    event: OwnedHandle,
    wait: HANDLE,
    /// What the callback is given.
    _target: Arc<Bell>,
}

impl EventToPort {
    fn new(port: &Port) -> io::Result<Self> {
        // SAFETY: no memory is passed. The event resets itself.
        let event = unsafe { CreateEventW(ptr::null(), 0, 0, ptr::null()) };
        if event.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle has just been made and belongs to nobody else.
        let event = unsafe { OwnedHandle::from_raw_handle(event) };
        let target = port.bell();
        let mut wait = ptr::null_mut();
        let context = Arc::as_ptr(&target);
        // SAFETY: the event and the context live until the wait is unregistered, in `drop`.
        let done = unsafe {
            RegisterWaitForSingleObject(
                &raw mut wait,
                event.as_raw_handle(),
                Some(post_packet),
                context.cast(),
                INFINITE,
                WT_EXECUTEDEFAULT,
            )
        };
        if done == 0 { Err(io::Error::last_os_error()) } else { Ok(Self { event, wait, _target: target }) }
    }
}

/// Called by a thread of the system when the event was set.
unsafe extern "system" fn post_packet(context: *mut core::ffi::c_void, _: bool) {
    // SAFETY: the context is the bell that `EventToPort` keeps until no call is under way any more.
    let bell = unsafe { &*context.cast::<Bell>() };
    bell.signal(KEY_COMPLETIONS);
}

impl Drop for EventToPort {
    fn drop(&mut self) {
        // SAFETY: registered in `new`, once. The call returns after the last callback.
        unsafe { UnregisterWaitEx(self.wait, INVALID_HANDLE_VALUE) };
    }
}

fn last_error() -> io::Error {
    // SAFETY: no memory is passed.
    io::Error::from_raw_os_error(unsafe { WSAGetLastError() })
}
