//! A completion port, shared by the engines of Windows.
//!
//! ```text
//! Port::submit ─► Record (boxed) ─► the kernel ─► packet ─► Port::pop ─► Record (boxed)
//! ```
//!
//! A [`Record`] owns everything that an operation lets the kernel see. While the operation is under way nobody has the
//! box: it comes back with the packet, and with nothing else. So no order of closing and dropping frees memory that the
//! kernel works on; a record whose packet never comes is leaked.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use windows_sys::Win32::Foundation::{INVALID_HANDLE_VALUE, WAIT_TIMEOUT};
use windows_sys::Win32::System::IO::{
    CreateIoCompletionPort, GetQueuedCompletionStatusEx, OVERLAPPED, OVERLAPPED_ENTRY, PostQueuedCompletionStatus,
};
use windows_sys::Win32::System::Threading::INFINITE;

use super::contract::Wake;
use super::datagram_windows::{Landing, Parcel};
use super::winsock::{self, AcceptBuffer, Started};
use crate::buffer::SendQueue;
use crate::id::Id;

/// Packets that one call takes at most; more wait there for the next call.
pub(crate) const PACKETS_PER_CALL: usize = 512;

/// Key of packets that carry a record.
const KEY_RECORD: usize = 0;
/// Key of the doorbell's packets.
const KEY_BELL: usize = 1;
/// First key for other purposes.
pub(crate) const KEY_FREE: usize = 2;

/// An operation, from its start to its packet.
#[repr(C)]
pub(crate) struct Record {
    /// First, so that the kernel's pointer is the record's.
    overlapped: OVERLAPPED,
    /// Whose operation it is. The generation is that of the moment when it was started.
    pub(crate) id: Id,
    /// What it is, and the memory that the kernel sees.
    pub(crate) load: Load,
}

/// What an operation owns.
pub(crate) enum Load {
    /// A receive without memory.
    Receive,
    /// A send: its pieces.
    Send(Box<SendQueue>),
    /// An accept: the socket that is to become the connection, and room for the addresses.
    Accept(Box<(socket2::Socket, AcceptBuffer)>),
    /// A connect: where to.
    Connect(Box<socket2::SockAddr>),
    /// The receive of a datagram: its memory.
    Datagram(Box<Landing>),
    /// A datagram that is being sent.
    Parcel(Box<Parcel>),
}

impl Record {
    pub(crate) fn new(id: impl Into<Id>, load: Load) -> Box<Self> {
        Box::new(Self { overlapped: OVERLAPPED::default(), id: id.into(), load })
    }

    /// The error of the operation, which has ended without success on `socket`.
    pub(crate) fn failure(&self, socket: &socket2::Socket) -> i32 {
        // SAFETY: whoever has the box of a record has it because its operation has ended, or was never started; then the
        // call finds zeros and reports no error.
        unsafe { winsock::failure_of(socket, &raw const self.overlapped) }
    }
}

/// What came of a call that starts an operation.
pub(crate) enum Submitted {
    /// The packet will bring the record back.
    Pending,
    /// It succeeded at once, and there is no packet.
    Done(Box<Record>),
    /// It was refused with this error, and there is no packet.
    Refused(Box<Record>, i32),
}

/// One entry of the port.
pub(crate) enum Packet {
    /// An operation has ended.
    Ended {
        /// Its record.
        record: Box<Record>,
        /// Bytes that it moved.
        bytes: u32,
        /// Whether it succeeded; if not, [`Record::failure`] says why.
        success: bool,
    },
    /// The doorbell rang.
    Rung,
    /// A packet with a key from [`KEY_FREE`] on.
    Signal(usize),
}

/// The port of one worker.
pub(crate) struct Port {
    bell: Arc<Bell>,
    entries: Box<[OVERLAPPED_ENTRY]>,
    /// Entries `next..filled` have not been taken yet.
    next: usize,
    filled: usize,
    /// Operations whose packet has not been taken.
    in_flight: usize,
}

impl Port {
    pub(crate) fn open() -> io::Result<Self> {
        // SAFETY: no handle is passed; a new port is asked for, on which one thread works at a time.
        let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 1) };
        if port.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the handle has just been made and belongs to nobody else.
        let port = unsafe { OwnedHandle::from_raw_handle(port) };
        let bell = Arc::new(Bell { port, rung: AtomicBool::new(false) });
        let entries = vec![OVERLAPPED_ENTRY::default(); PACKETS_PER_CALL].into_boxed_slice();
        Ok(Self { bell, entries, next: 0, filled: 0, in_flight: 0 })
    }

    /// Binds a socket to this port, for life.
    ///
    /// # Errors
    ///
    /// If it is bound to a port already, or is no socket of the system's own.
    pub(crate) fn attach(&self, socket: &socket2::Socket) -> io::Result<()> {
        // SAFETY: both handles are live.
        let port = unsafe { CreateIoCompletionPort(winsock::handle(socket), self.handle(), KEY_RECORD, 0) };
        if port.is_null() { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Starts an operation: `call` gets its OVERLAPPED and its load. `skip` says that a success at once queues no packet.
    ///
    /// # Safety
    ///
    /// `call` starts at most one operation with the OVERLAPPED, on a socket that is attached to this port, and says what
    /// became of it. The kernel is shown no other memory than what the load owns at a stable address. `skip` is true
    /// only if [`winsock::skip_on_success`] said so of the socket.
    pub(crate) unsafe fn submit(
        &mut self,
        mut record: Box<Record>,
        skip: bool,
        call: impl FnOnce(*mut OVERLAPPED, &mut Load) -> Started,
    ) -> Submitted {
        record.overlapped = OVERLAPPED::default();
        let record = Box::into_raw(record);
        // SAFETY: the box was just taken apart. The two parts do not overlap, and the kernel uses only the first.
        let (overlapped, load) = unsafe { (&raw mut (*record).overlapped, &mut (*record).load) };
        match call(overlapped, load) {
            Started::Done if skip => {
                // SAFETY: the operation is over, and no packet will name the record: the caller vouches for `skip`.
                Submitted::Done(unsafe { Box::from_raw(record) })
            }
            Started::Done | Started::Pending => {
                self.in_flight += 1;
                Submitted::Pending
            }
            // SAFETY: nothing was started, so that nobody else knows of the record.
            Started::Refused(error) => Submitted::Refused(unsafe { Box::from_raw(record) }, error),
        }
    }

    /// Takes packets out of the kernel, and waits for one if there is none: at most `timeout`, or without end. Does
    /// nothing while some of the last time are left.
    ///
    /// # Errors
    ///
    /// Only what no retry can mend.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if self.has_leftovers() {
            return Ok(());
        }
        (self.next, self.filled) = (0, 0);
        let (mut count, room) = (0, self.entries.len() as u32);
        // SAFETY: there is room for as many entries, and `count` is written.
        let done = unsafe {
            GetQueuedCompletionStatusEx(
                self.handle(),
                self.entries.as_mut_ptr(),
                room,
                &raw mut count,
                timeout.map_or(INFINITE, milliseconds),
                0,
            )
        };
        if done != 0 {
            self.filled = count as usize;
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(WAIT_TIMEOUT as i32) { Ok(()) } else { Err(error) }
    }

    /// The next packet that [`Port::wait`] took.
    #[inline]
    pub(crate) fn pop(&mut self) -> Option<Packet> {
        if !self.has_leftovers() {
            return None;
        }
        let entry = self.entries[self.next];
        self.next += 1;
        match entry.lpCompletionKey {
            KEY_RECORD if !entry.lpOverlapped.is_null() => {
                self.in_flight -= 1;
                // SAFETY: with this key only operations that `submit` started come, each once; the OVERLAPPED is the
                // first field of a record whose box was taken apart there.
                let record = unsafe { Box::from_raw(entry.lpOverlapped.cast::<Record>()) };
                // The status of the operation, negative when it failed (see OVERLAPPED and NTSTATUS).
                let success = record.overlapped.Internal as i32 >= 0;
                Some(Packet::Ended { record, bytes: entry.dwNumberOfBytesTransferred, success })
            }
            KEY_BELL => {
                self.bell.rung.store(false, Ordering::Release);
                Some(Packet::Rung)
            }
            key => Some(Packet::Signal(key)),
        }
    }

    /// Whether packets are left that were taken out of the kernel already.
    #[inline]
    pub(crate) fn has_leftovers(&self) -> bool {
        self.next < self.filled
    }

    /// Operations that have not ended, or whose packet has not been taken.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// What ends a wait from any thread.
    pub(crate) fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// The handle, for what is bound to the port in other ways.
    pub(crate) fn handle(&self) -> windows_sys::Win32::Foundation::HANDLE {
        self.bell.port.as_raw_handle()
    }
}

/// The doorbell: a packet without an operation. It owns the port, so that a late ring finds one.
pub(crate) struct Bell {
    port: OwnedHandle,
    /// A packet is under way, and one is enough.
    rung: AtomicBool,
}

impl Bell {
    /// Sends the port a packet with a key from [`KEY_FREE`] on.
    pub(crate) fn signal(&self, key: usize) {
        debug_assert!(key >= KEY_FREE);
        // SAFETY: the port is live, and the packet refers to no memory.
        unsafe { PostQueuedCompletionStatus(self.port.as_raw_handle(), 0, key, ptr::null()) };
    }
}

impl Wake for Bell {
    fn wake(&self) {
        if self.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        // SAFETY: the port is live, and the packet refers to no memory.
        if unsafe { PostQueuedCompletionStatus(self.port.as_raw_handle(), 0, KEY_BELL, ptr::null()) } == 0 {
            // The system has no memory for it: the next ring tries again.
            self.rung.store(false, Ordering::Release);
        }
    }
}

/// Rounded up, so that the last fraction before a deadline is slept and not spun.
fn milliseconds(time: Duration) -> u32 {
    let rounded = time.as_nanos().div_ceil(1_000_000);
    u32::try_from(rounded).unwrap_or(INFINITE).min(INFINITE - 1)
}
