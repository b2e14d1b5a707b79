//! [`Buf`]: a unique lease of one slot.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::pool::{Region, Shared, SlotId};

/// Received bytes, or room for bytes to send. Unique, mutable, and back in its pool when dropped.
///
/// A `Buf` derefs to its bytes. Sending it on needs no copy: see [`SendQueue::push`](super::SendQueue::push). It stays
/// on its thread; [`Buf::into_bytes`] turns it into something that may leave.
pub struct Buf {
    memory: Memory,
    /// The bytes are `start..end` of the memory.
    start: u32,
    end: u32,
}

enum Memory {
    Slot {
        pool: Rc<Shared>,
        slot: SlotId,
    },
    Heap(Box<[u8]>),
    /// Boxed, since it is rare and every buffer has room for the largest of these.
    CopiedOut(Box<CopiedOut>),
}

/// Received bytes that were copied out of a slot because slots ran low. The pool counts how many of them are held.
struct CopiedOut {
    data: Box<[u8]>,
    region: Arc<Region>,
}

impl Drop for CopiedOut {
    fn drop(&mut self) {
        self.region.copied_out_bytes.fetch_sub(self.data.len() as u64, Ordering::Relaxed);
    }
}

impl Buf {
    /// A lease of `slot` without bytes in it. The caller took the slot out of its free list.
    #[inline]
    pub(super) fn leased(pool: Rc<Shared>, slot: SlotId) -> Self {
        Self { memory: Memory::Slot { pool, slot }, start: 0, end: 0 }
    }

    /// A copy of `data` in memory of its own, outside every pool.
    #[must_use]
    pub fn copied(data: &[u8]) -> Self {
        let end = u32::try_from(data.len()).expect("a buffer is smaller than 4 GiB");
        Self { memory: Memory::Heap(data.into()), start: 0, end }
    }

    /// A copy of `data` that `region` counts as long as it is held, on whatever thread.
    pub(super) fn copied_out(region: &Arc<Region>, data: &[u8]) -> Self {
        let end = u32::try_from(data.len()).expect("a buffer is smaller than 4 GiB");
        region.copied_out_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        let copy = CopiedOut { data: data.into(), region: Arc::clone(region) };
        Self { memory: Memory::CopiedOut(Box::new(copy)), start: 0, end }
    }

    /// An empty buffer with room for `bytes`, in memory of its own, outside every pool.
    ///
    /// # Panics
    ///
    /// If `bytes` is 4 GiB or more.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        assert!(u32::try_from(bytes).is_ok(), "a buffer is smaller than 4 GiB");
        Self { memory: Memory::Heap(vec![0; bytes].into()), start: 0, end: 0 }
    }

    /// Bytes that fit behind the filled part.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.capacity() - self.end as usize
    }

    /// Appends as much of `data` as fits and says how much that was.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let count = data.len().min(self.spare());
        let end = self.end as usize;
        self.memory_mut()[end..end + count].copy_from_slice(&data[..count]);
        self.end += count as u32;
        count
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "cannot advance by {count} in a buffer of {} bytes", self.len());
        self.start += count as u32;
    }

    /// Keeps only the first `count` bytes, if there are more.
    pub fn truncate(&mut self, count: usize) {
        if count < self.len() {
            self.end = self.start + count as u32;
        }
    }

    /// The bytes as [`Bytes`], which any thread may hold. No payload is copied; one small allocation is made.
    ///
    /// The slot returns to its pool when the last clone is dropped, on whatever thread that is. If the pool is gone
    /// by then, its memory is freed with the last of them.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        let (start, end) = (self.start as usize, self.end as usize);
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: `this` is never used again, so that the memory has one owner.
        match unsafe { std::ptr::read(&this.memory) } {
            Memory::Slot { pool, slot } => {
                Bytes::from_owner(Remote { region: Arc::clone(&pool.region), slot, start, end })
            }
            Memory::Heap(heap) => Bytes::from(heap).slice(start..end),
            Memory::CopiedOut(copy) => Bytes::from_owner(RemoteCopy { copy, start, end }),
        }
    }

    /// Whether the bytes lie in a slot of a pool (and not in a copy of their own).
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        matches!(self.memory, Memory::Slot { .. })
    }

    /// Says that the first `bytes` bytes of the memory have been filled.
    #[inline]
    pub(crate) fn set_filled(&mut self, bytes: u32) {
        debug_assert!(bytes as usize <= self.capacity());
        self.start = 0;
        self.end = bytes;
    }

    /// Address and size of the whole memory, for the kernel to fill.
    #[inline]
    pub(crate) fn raw_memory(&mut self) -> (*mut u8, usize) {
        let memory = self.memory_mut();
        (memory.as_mut_ptr(), memory.len())
    }

    #[inline]
    fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Slot { pool, slot } => pool.region.slot_bytes(*slot) as usize,
            Memory::Heap(heap) => heap.len(),
            Memory::CopiedOut(copy) => copy.data.len(),
        }
    }

    #[inline]
    fn memory_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Slot { pool, slot } => {
                let region = &pool.region;
                // SAFETY: the lease is unique, the region outlives it and its memory was zeroed when it was made.
                unsafe { std::slice::from_raw_parts_mut(region.slot_address(*slot), region.slot_bytes(*slot) as usize) }
            }
            Memory::Heap(heap) => heap,
            Memory::CopiedOut(copy) => &mut copy.data,
        }
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let (start, len) = (self.start as usize, (self.end - self.start) as usize);
        match &self.memory {
            // SAFETY: the lease is unique, `start..end` lies inside the slot, and the region outlives the lease.
            Memory::Slot { pool, slot } => unsafe {
                std::slice::from_raw_parts(pool.region.slot_address(*slot).add(start), len)
            },
            Memory::Heap(heap) => &heap[start..start + len],
            Memory::CopiedOut(copy) => &copy.data[start..start + len],
        }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, end) = (self.start as usize, self.end as usize);
        &mut self.memory_mut()[start..end]
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        if let Memory::Slot { pool, slot } = &self.memory {
            pool.release(*slot);
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("len", &self.len()).field("pooled", &self.is_pooled()).finish()
    }
}

/// A slot that left its thread.
struct Remote {
    region: Arc<Region>,
    slot: SlotId,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for Remote {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: this is the only lease of the slot, nobody writes to it any more, and the region lives as long.
        unsafe {
            std::slice::from_raw_parts(self.region.slot_address(self.slot).add(self.start), self.end - self.start)
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.region.give_back(self.slot);
    }
}

/// A copy that left its thread.
struct RemoteCopy {
    copy: Box<CopiedOut>,
    start: usize,
    end: usize,
}

impl AsRef<[u8]> for RemoteCopy {
    fn as_ref(&self) -> &[u8] {
        &self.copy.data[self.start..self.end]
    }
}
