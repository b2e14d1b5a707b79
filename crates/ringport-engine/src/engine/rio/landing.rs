//! Where connections wait for bytes when the pool has better uses for its slots.
//!
//! Every receive of Registered I/O needs its memory before the bytes come, and most connections are silent most of the
//! time. Half of the pool's slots at most lie under such receives. All other connections wait with a small slice of this
//! area, and what they receive is copied. The area grows with the connections, by chunks that are registered as a whole,
//! and shrinks again; so their number is bounded by memory, and not by the pool.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;

use windows_sys::Win32::Networking::WinSock::RIO_BUF;

use super::books::{SliceId, Slices};
use super::queues::Registered;
use super::table::Functions;

/// Bytes of a slice.
pub(super) const SLICE_BYTES: usize = 1024;
/// Slices of a chunk: one chunk is 1 MiB.
const SLICES_PER_CHUNK: u32 = 1024;
/// Memory of a chunk, which begins with a page as the system locks whole pages.
const CHUNK: Layout = match Layout::from_size_align(SLICE_BYTES * SLICES_PER_CHUNK as usize, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and a power of two"),
};

/// The area.
pub(super) struct Landing {
    functions: Functions,
    slices: Slices,
    chunks: Vec<Option<Chunk>>,
}

struct Chunk {
    /// First, so that it is dropped before the memory.
    registered: Registered,
    memory: Memory,
}

struct Memory(NonNull<u8>);

impl Memory {
    fn new() -> io::Result<Self> {
        // SAFETY: the layout is not empty.
        let memory = unsafe { alloc_zeroed(CHUNK) };
        NonNull::new(memory).map(Self).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and registered no longer.
        unsafe { dealloc(self.0.as_ptr(), CHUNK) }
    }
}

impl Landing {
    /// Empty. Nothing is registered before somebody needs a slice.
    pub(super) fn new(functions: &Functions) -> Self {
        Self { functions: *functions, slices: Slices::new(SLICES_PER_CHUNK), chunks: Vec::new() }
    }

    /// Takes a slice, and registers another chunk if there is none.
    ///
    /// # Errors
    ///
    /// If the system has no memory to lock.
    pub(super) fn take(&mut self) -> io::Result<SliceId> {
        if let Some(slice) = self.slices.take() {
            return Ok(slice);
        }
        let memory = Memory::new()?;
        // SAFETY: the memory is dropped after its registration, and touched only through slices.
        let registered = unsafe { Registered::new(&self.functions, memory.0.as_ptr(), CHUNK.size())? };
        let number = self.slices.add() as usize;
        if number == self.chunks.len() {
            self.chunks.push(None);
        }
        self.chunks[number] = Some(Chunk { registered, memory });
        self.slices.take().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Gives a slice back that no request uses. An empty chunk too many goes with it.
    pub(super) fn give_back(&mut self, slice: SliceId) {
        if let Some(empty) = self.slices.give_back(slice) {
            self.chunks[empty as usize] = None;
        }
    }

    /// The first bytes of a slice, for a request.
    pub(super) fn slice(&self, slice: SliceId, bytes: usize) -> RIO_BUF {
        debug_assert!(bytes <= SLICE_BYTES);
        self.chunk(slice).registered.slice(self.address(slice), bytes as u32)
    }

    /// What was received into a slice.
    ///
    /// # Safety
    ///
    /// No request uses the slice.
    pub(super) unsafe fn bytes(&self, slice: SliceId, bytes: usize) -> &[u8] {
        // SAFETY: the slice lies in its chunk, which the borrow keeps, was zeroed at first, and the system does not write
        // to it, as the caller says.
        unsafe { std::slice::from_raw_parts(self.address(slice), bytes.min(SLICE_BYTES)) }
    }

    /// Writes `data` into a slice behind its first `filled` bytes, as far as it fits. Says how much did.
    ///
    /// # Safety
    ///
    /// No request uses the slice.
    pub(super) unsafe fn fill(&mut self, slice: SliceId, filled: usize, data: &[u8]) -> usize {
        let count = data.len().min(SLICE_BYTES - filled);
        // SAFETY: that much room is in the slice; nobody else uses it, as the caller says.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.address(slice).add(filled), count) };
        count
    }

    fn chunk(&self, slice: SliceId) -> &Chunk {
        self.chunks[slice.chunk as usize].as_ref().expect("a slice in use lies in a chunk")
    }

    fn address(&self, slice: SliceId) -> *mut u8 {
        debug_assert!(slice.index < SLICES_PER_CHUNK);
        // SAFETY: the slice lies inside the chunk.
        unsafe { self.chunk(slice).memory.0.as_ptr().add(slice.index as usize * SLICE_BYTES) }
    }
}
