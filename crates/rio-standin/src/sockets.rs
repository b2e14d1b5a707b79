//! The sockets under the functions.
//!
//! ```text
//!  request ─► line of the queue ─► WSARecv, WSASend, one of each at a time
//!                                          │ one event for all
//!  completion ◄──────── pump thread ◄──────┘
//!                  └─► notification: SetEvent or PostQueuedCompletionStatus
//! ```
//!
//! The event in an OVERLAPPED has its lowest bit set, so that a socket which is also bound to a completion port posts
//! nothing there (see GetQueuedCompletionStatus). Starting an operation resets its event, even if it fails at once, and
//! all share one: so whoever tried to start one sets the event himself, and the pump looks at all of them.
//!
//! An operation is cancelled when the thread that started it ends (see the remark at WSARecv). So the first of a line is
//! started by whoever posts it, who closes the socket before he ends, and all others by the pump: nobody else looks for what
//! has ended, since the next in line may be anybody's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{HANDLE, RtlNtStatusToDosError, STATUS_PENDING};
use windows_sys::Win32::Networking::WinSock::{
    SOCKADDR, SOCKET, SOCKET_ERROR, WSA_IO_PENDING, WSABUF, WSAGetLastError, WSARecv, WSARecvFrom, WSASend, WSASendTo,
};
use windows_sys::Win32::System::IO::{CancelIoEx, OVERLAPPED, PostQueuedCompletionStatus};
use windows_sys::Win32::System::Threading::{INFINITE, SetEvent, WaitForSingleObject};

use crate::functions::{Standin, broken, lock, standin};
use crate::rules::{Direction, No, Rules, Slice, Started};

/// How long the end of what was cancelled is waited for.
const CANCEL_WAIT: Duration = Duration::from_secs(1);
/// After how long it is cancelled once more.
const CANCEL_AGAIN: Duration = Duration::from_millis(1);

/// `WSA_OPERATION_ABORTED`.
pub(crate) const ABORTED: i32 = 995;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) rules: Rules,
    /// Address of each registered buffer.
    pub(crate) buffers: HashMap<isize, usize>,
    pub(crate) notifications: HashMap<isize, Call>,
    /// Sockets that were created for Registered I/O.
    pub(crate) sockets: HashSet<usize>,
    pub(crate) lines: HashMap<isize, Lines>,
    #[expect(clippy::vec_box, reason = "Winsock knows their addresses")]
    pub(crate) operations: Vec<Box<Operation>>,
}

/// How a completion queue calls.
#[derive(Clone, Copy)]
pub(crate) enum Call {
    Event { event: usize, reset: bool },
    Port { port: usize, key: usize, overlapped: usize },
}

/// The requests of a queue that have started. The first of each line is with Winsock.
pub(crate) struct Lines {
    pub(crate) socket: SOCKET,
    pub(crate) receive: VecDeque<Started>,
    pub(crate) send: VecDeque<Started>,
}

/// An operation that Winsock works on. It does not move until it has ended.
pub(crate) struct Operation {
    overlapped: OVERLAPPED,
    buffer: WSABUF,
    flags: u32,
    address_bytes: i32,
    queue: isize,
    direction: Direction,
    request: u64,
    wait_all: bool,
    done: u32,
}

// SAFETY: the pointers in it are to memory that the caller of the functions keeps until the request has ended, as the
// rules demand of him, and are used by Winsock alone.
unsafe impl Send for Operation {}

/// The only one who looks for what Winsock has ended: waits, and looks at every operation.
pub(crate) fn pump() {
    loop {
        let standin = standin();
        // SAFETY: the event lives as long as the process.
        unsafe { WaitForSingleObject(standin.event as HANDLE, INFINITE) };
        lock(&standin.state).sweep();
        standin.swept.notify_all();
    }
}

/// Ends what Winsock works on for a queue whose socket is about to be closed.
///
/// Closing alone would do on Windows. Wine 8 keeps a socket with an operation under way alive, so that an abortive
/// close resets nobody. A cancellation there passes over an operation that was just told to look for data
/// (`cancel_async` in its server/async.c): if it finds none it goes on, and nothing would end it once the socket is
/// closed. So it is cancelled until it has ended.
pub(crate) fn cancel(standin: &Standin, mut state: MutexGuard<'_, State>, socket: SOCKET, queue: isize) {
    let deadline = Instant::now() + CANCEL_WAIT;
    while state.operations.iter().any(|operation| operation.queue == queue) && Instant::now() < deadline {
        // SAFETY: the socket is open. No memory is passed.
        unsafe { CancelIoEx(socket as HANDLE, std::ptr::null()) };
        state = standin.swept.wait_timeout(state, CANCEL_AGAIN).unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl State {
    /// Ends every operation that Winsock has ended.
    fn sweep(&mut self) {
        let mut index = 0;
        while let Some(operation) = self.operations.get(index) {
            // SAFETY: Winsock may write it at the same time; a volatile read of a word sees the old or the new value.
            let status = unsafe { (&raw const operation.overlapped.Internal).read_volatile() } as i32;
            if status == STATUS_PENDING {
                index += 1;
                continue;
            }
            let operation = self.operations.swap_remove(index);
            let bytes = operation.overlapped.InternalHigh as u32;
            self.ended(*operation, winsock_error(status), bytes);
        }
    }

    fn ended(&mut self, operation: Operation, status: i32, bytes: u32) {
        let done = operation.done + bytes;
        if operation.wait_all && status == 0 && bytes > 0 && bytes < operation.buffer.len {
            return self.go_on(operation, bytes);
        }
        self.end(operation.request, status, done);
        let Some(lines) = self.lines.get_mut(&operation.queue) else { return };
        let line = lines.line(operation.direction);
        line.pop_front();
        if status != 0 && operation.direction == Direction::Send && operation.address_bytes == 0 {
            // Nothing can follow in a stream. Wine 8 would now and then leave the next send pending for good.
            for behind in std::mem::take(line) {
                self.end(behind.request, status, 0);
            }
            return;
        }
        self.submit(operation.queue, operation.direction);
    }

    /// Receives the rest of a buffer that is to be filled.
    fn go_on(&mut self, mut operation: Operation, bytes: u32) {
        operation.done += bytes;
        operation.buffer.len -= bytes;
        // SAFETY: fewer bytes were received than the buffer has.
        operation.buffer.buf = unsafe { operation.buffer.buf.add(bytes as usize) };
        let Some(socket) = self.lines.get(&operation.queue).map(|lines| lines.socket) else {
            return self.end(operation.request, ABORTED, operation.done);
        };
        self.hand_over(socket, operation, std::ptr::null_mut());
    }

    /// Notes the end of a request and calls whoever waits for it.
    pub(crate) fn end(&mut self, request: u64, status: i32, bytes: u32) {
        match self.rules.complete(request, status, bytes) {
            Ok(Some(queue)) => self.call(queue),
            Ok(None) => {}
            Err(No::Breach(message)) => broken(&message),
            Err(No::Error(code)) => broken(&format!("a completion failed with {code}")),
        }
    }

    pub(crate) fn call(&self, queue: isize) {
        match self.notifications.get(&queue) {
            // SAFETY: the event and the port belong to the caller of the functions, who keeps them as long as the queue.
            Some(Call::Event { event, .. }) => unsafe {
                SetEvent(*event as HANDLE);
            },
            // SAFETY: see above; the OVERLAPPED is only passed through.
            Some(Call::Port { port, key, overlapped }) => unsafe {
                PostQueuedCompletionStatus(*port as HANDLE, 0, *key, *overlapped as *const OVERLAPPED);
            },
            None => {}
        }
    }

    /// Appends requests to their line, and hands the first to Winsock if that has none.
    pub(crate) fn enqueue(&mut self, queue: isize, direction: Direction, started: Vec<Started>) {
        let Some(lines) = self.lines.get_mut(&queue) else { return };
        let line = lines.line(direction);
        let idle = line.is_empty();
        line.extend(started);
        if idle {
            self.submit(queue, direction);
        }
    }

    /// Hands the first request of a line to Winsock, and the next if that fails at once.
    fn submit(&mut self, queue: isize, direction: Direction) {
        let Some(lines) = self.lines.get_mut(&queue) else { return };
        let socket = lines.socket;
        let Some(&started) = lines.line(direction).front() else { return };
        let address = started.address.map_or(std::ptr::null_mut(), |slice| self.memory(slice));
        let buffer = match started.data {
            Some(data) => WSABUF { len: data.length, buf: self.memory(data) },
            None => WSABUF { len: 0, buf: std::ptr::null_mut() },
        };
        let operation = Operation {
            // SAFETY: an all-zero OVERLAPPED is what an operation begins with.
            overlapped: unsafe { std::mem::zeroed() },
            buffer,
            flags: 0,
            address_bytes: started.address.map_or(0, |slice| slice.length as i32),
            queue,
            direction,
            request: started.request,
            wait_all: started.wait_all,
            done: 0,
        };
        self.hand_over(socket, operation, address);
    }

    /// Starts an operation, or ends it at once with the error.
    fn hand_over(&mut self, socket: SOCKET, operation: Operation, address: *mut u8) {
        let mut operation = Box::new(operation);
        // SAFETY: all-zero is what an operation begins with.
        operation.overlapped = unsafe { std::mem::zeroed() };
        operation.overlapped.hEvent = (standin().event | 1) as HANDLE;
        let (overlapped, buffer) = (&raw mut operation.overlapped, &raw const operation.buffer);
        let (flags, length) = (&raw mut operation.flags, &raw mut operation.address_bytes);
        let (nowhere, address) = (std::ptr::null_mut(), address.cast::<SOCKADDR>());
        // SAFETY: everything pointed to lies in the box, which stays in `operations` until Winsock has ended it, or in
        // registered memory, which the caller of the functions keeps until he has dequeued the completion.
        let answer = unsafe {
            match (operation.direction, address.is_null()) {
                (Direction::Receive, true) => WSARecv(socket, buffer, 1, nowhere, flags, overlapped, None),
                (Direction::Receive, false) => {
                    WSARecvFrom(socket, buffer, 1, nowhere, flags, address, length, overlapped, None)
                }
                (Direction::Send, true) => WSASend(socket, buffer, 1, nowhere, 0, overlapped, None),
                (Direction::Send, false) => {
                    let length = operation.address_bytes;
                    WSASendTo(socket, buffer, 1, nowhere, 0, address, length, overlapped, None)
                }
            }
        };
        // SAFETY: no memory is passed.
        let error = if answer == SOCKET_ERROR { unsafe { WSAGetLastError() } } else { 0 };
        // Also one that fails at once may have reset the event, which may have been set for the end of another.
        // SAFETY: the event lives as long as the process.
        unsafe { SetEvent(standin().event as HANDLE) };
        if error == 0 || error == WSA_IO_PENDING {
            self.operations.push(operation);
        } else {
            self.ended(*operation, error, 0);
        }
    }

    fn memory(&self, slice: Slice) -> *mut u8 {
        let base = self.buffers.get(&slice.buffer).copied().unwrap_or_default();
        (base + slice.offset as usize) as *mut u8
    }
}

impl Lines {
    fn line(&mut self, direction: Direction) -> &mut VecDeque<Started> {
        match direction {
            Direction::Receive => &mut self.receive,
            Direction::Send => &mut self.send,
        }
    }
}

/// The Winsock error of an NTSTATUS. The first line is what closing a socket gives, on Windows and on Wine.
fn winsock_error(status: i32) -> i32 {
    match status as u32 {
        0 => 0,
        0xC000_0120 | 0x8000_000A | 0xC000_013B => ABORTED,
        0xC000_020D | 0xC000_013C => 10054,
        0xC000_0241 | 0xC000_00B0 => 10053,
        0x8000_0005 => 10040,
        // SAFETY: no memory is passed.
        _ => unsafe { RtlNtStatusToDosError(status) as i32 },
    }
}
