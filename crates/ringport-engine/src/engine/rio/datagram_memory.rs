//! The registered memory of one datagram socket.
//!
//! ```text
//!  [ address | datagram ]   one for each receive
//!  [ address ]              one for each send
//!  [ datagram ]             one, for what is sent and lies nowhere else in registered memory
//! ```
//!
//! A block of its own for each socket: there are few of them, and they live long. What is received is copied out of it, so
//! that a datagram that is kept holds no room of 64 KiB, and what is received next always has memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

use windows_sys::Win32::Networking::WinSock::{RIO_BUF, SOCKADDR_INET, SOCKADDR_STORAGE};

use super::queues::Registered;
use super::table::Functions;

/// Sends of one socket that may be in flight at once.
pub(super) const SENDS: usize = 64;
/// Bytes of an address: a `SOCKADDR_INET`, and the rest of a line of the cache.
const ADDRESS_BYTES: usize = 64;
const _: () = assert!(size_of::<SOCKADDR_INET>() <= ADDRESS_BYTES);
/// Bytes for one datagram to be sent: no IP packet carries a larger one (see RFC 768).
pub(super) const STAGE_BYTES: usize = 65_536;
/// Bytes of the receives of one of few sockets together, about.
const RECEIVE_BYTES: usize = 1 << 20;
/// Receives of one socket, at least and at most.
const RECEIVES_MIN: usize = 2;
const RECEIVES_MAX: usize = 256;
/// Sockets that have the full number of receives; those that come later have fewer.
const FEW_SOCKETS: usize = 8;

/// How many receives the next socket has: the longer the datagrams, and the more the sockets, the fewer.
pub(super) fn receives(sockets: usize, bytes_max: usize, slots: u32) -> usize {
    let full = (RECEIVE_BYTES / slot_bytes(bytes_max)).min(slots as usize);
    (full * FEW_SOCKETS / FEW_SOCKETS.max(sockets)).clamp(RECEIVES_MIN, RECEIVES_MAX)
}

/// One byte more than the largest datagram that is delivered whole, so that a larger one is seen to be larger.
fn room(bytes_max: usize) -> usize {
    (bytes_max + 1).next_multiple_of(64)
}

fn slot_bytes(bytes_max: usize) -> usize {
    ADDRESS_BYTES + room(bytes_max)
}

/// The memory.
pub(super) struct Block {
    /// First, so that it is dropped before the memory.
    registered: Registered,
    memory: Memory,
    receives: usize,
    room: usize,
}

struct Memory(NonNull<u8>, Layout);

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `Block::new` with this layout, and registered no longer.
        unsafe { dealloc(self.0.as_ptr(), self.1) }
    }
}

impl Block {
    /// Memory for so many receives, registered.
    ///
    /// # Errors
    ///
    /// If the system has no memory, or none to lock.
    pub(super) fn new(functions: &Functions, receives: usize, bytes_max: usize) -> io::Result<Self> {
        let bytes = receives * slot_bytes(bytes_max) + SENDS * ADDRESS_BYTES + STAGE_BYTES;
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| io::ErrorKind::OutOfMemory)?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = Memory(memory, layout);
        // SAFETY: the memory is dropped after its registration, and touched only as this module says.
        let registered = unsafe { Registered::new(functions, memory.0.as_ptr(), bytes)? };
        Ok(Self { registered, memory, receives, room: room(bytes_max) })
    }

    /// How many receives there is memory for.
    pub(super) fn receives(&self) -> usize {
        self.receives
    }

    /// Bytes of one receive.
    pub(super) fn room(&self) -> usize {
        self.room
    }

    /// Data and address of a receive, for a request.
    pub(super) fn receive(&self, number: usize) -> (RIO_BUF, RIO_BUF) {
        let address = self.receive_offset(number);
        (self.part(address + ADDRESS_BYTES, self.room), self.part(address, size_of::<SOCKADDR_INET>()))
    }

    /// What a receive brought, and from whom.
    ///
    /// # Safety
    ///
    /// No request uses the memory of this receive.
    pub(super) unsafe fn received(&self, number: usize, bytes: usize) -> (&[u8], SOCKADDR_STORAGE) {
        let offset = self.receive_offset(number);
        let mut from = SOCKADDR_STORAGE::default();
        // SAFETY: both parts lie in the memory, which the borrow keeps, was zeroed at first, and the system does not write
        // to, as the caller says. An address of this kind is shorter than the storage.
        unsafe {
            let address = self.address(offset);
            std::ptr::copy_nonoverlapping(address, (&raw mut from).cast(), size_of::<SOCKADDR_INET>());
            (std::slice::from_raw_parts(address.add(ADDRESS_BYTES), bytes.min(self.room)), from)
        }
    }

    /// Writes the address of a send, and gives it for a request.
    ///
    /// # Safety
    ///
    /// No request uses the address of this send.
    pub(super) unsafe fn write_address(&mut self, number: usize, to: &socket2::SockAddr) -> RIO_BUF {
        debug_assert!(number < SENDS);
        let offset = self.receives * (ADDRESS_BYTES + self.room) + number * ADDRESS_BYTES;
        let bytes = (to.len() as usize).min(size_of::<SOCKADDR_INET>());
        // SAFETY: that many bytes are in the address and fit; nobody else uses them, as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(to.as_ptr().cast(), self.address(offset), bytes) };
        self.part(offset, size_of::<SOCKADDR_INET>())
    }

    /// Copies a datagram to the place for one, and gives it for a request. `None` if it is too long.
    ///
    /// # Safety
    ///
    /// No request uses that place.
    pub(super) unsafe fn write_stage(&mut self, data: &[u8]) -> Option<RIO_BUF> {
        let offset = self.receives * (ADDRESS_BYTES + self.room) + SENDS * ADDRESS_BYTES;
        if data.len() > STAGE_BYTES {
            return None;
        }
        // SAFETY: the place is that long, as was just looked at; nobody else uses it, as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.address(offset), data.len()) };
        Some(self.part(offset, data.len()))
    }

    fn receive_offset(&self, number: usize) -> usize {
        debug_assert!(number < self.receives);
        number * (ADDRESS_BYTES + self.room)
    }

    fn part(&self, offset: usize, bytes: usize) -> RIO_BUF {
        self.registered.slice(self.address(offset), bytes as u32)
    }

    fn address(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset < self.memory.1.size());
        // SAFETY: the offset lies inside the memory: all that are asked for were counted in `new`.
        unsafe { self.memory.0.as_ptr().add(offset) }
    }
}
