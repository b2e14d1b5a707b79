//! [`Buf`]: a unique lease of one slot.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
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
    /// The first of the bytes. Where they lie is looked up once, when the buffer is made: every message asks for it
    /// several times.
    data: NonNull<u8>,
    /// How many there are.
    len: u32,
    /// Room behind them, up to the end of the memory.
    spare: u32,
    /// What keeps the memory: the `Rc<Shared>` of the pool that `slot` belongs to, or a `Box<Own>` if that is [`NO_SLOT`]. Not
    /// an enum, since a buffer is moved several times in the life of a message: plain numbers move in registers, but what may
    /// be one thing or another moves through memory, in parts that do not match, and each such move stalls the processor.
    owner: NonNull<()>,
    slot: SlotId,
}

/// The memory lies outside every pool.
const NO_SLOT: SlotId = SlotId(u32::MAX);

/// What keeps the memory of a buffer that has come to its end.
enum Owner {
    Pool(Rc<Shared>, SlotId),
    Own(Box<Own>),
}

/// Memory outside every pool.
struct Own {
    /// From a `Box`, and only a pointer: a `Box` would claim the memory for itself each time it is moved.
    memory: NonNull<[u8]>,
    /// Who counts the bytes, if they were copied out of a slot because slots ran low.
    region: Option<Arc<Region>>,
}

// SAFETY: the memory belongs to this value alone, as that of a `Box` does, and `Region` is `Send`.
unsafe impl Send for Own {}

impl Own {
    fn new(memory: Box<[u8]>, region: Option<Arc<Region>>) -> Box<Self> {
        Box::new(Self { memory: NonNull::from(Box::leak(memory)), region })
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(region) = &self.region {
            region.copied_out_bytes.fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
        }
        // SAFETY: it came from a `Box` in `new`, and nobody can use it any more.
        drop(unsafe { Box::from_raw(self.memory.as_ptr()) });
    }
}

impl Buf {
    /// A lease of `slot`, which is `size` bytes at `data`, without bytes in it. The caller took the slot out of its free
    /// list.
    #[inline]
    pub(super) fn leased(pool: Rc<Shared>, slot: SlotId, data: NonNull<u8>, size: u32) -> Self {
        debug_assert!(slot != NO_SLOT);
        // SAFETY: `into_raw` never gives null.
        let owner = unsafe { NonNull::new_unchecked(Rc::into_raw(pool).cast_mut().cast()) };
        Self { data, len: 0, spare: size, owner, slot }
    }

    /// Takes the owner out.
    ///
    /// # Safety
    ///
    /// The buffer is neither used nor dropped afterwards.
    #[inline]
    unsafe fn take_owner(&mut self) -> Owner {
        let owner = self.owner.as_ptr();
        if self.slot == NO_SLOT {
            // SAFETY: `own` made it out of such a box, and by what the caller says it becomes one again but once.
            Owner::Own(unsafe { Box::from_raw(owner.cast()) })
        } else {
            // SAFETY: as above, for `leased`.
            Owner::Pool(unsafe { Rc::from_raw(owner.cast_const().cast()) }, self.slot)
        }
    }

    /// The first `len` bytes of `memory`, which are not in a pool.
    fn own(memory: Box<[u8]>, len: usize, region: Option<Arc<Region>>) -> Self {
        let size = u32::try_from(memory.len()).expect("a buffer is smaller than 4 GiB");
        let own = Own::new(memory, region);
        let data = own.memory.cast();
        let owner = NonNull::from(Box::leak(own)).cast();
        Self { data, len: len as u32, spare: size - len as u32, owner, slot: NO_SLOT }
    }

    /// A copy of `data` in memory of its own, outside every pool.
    #[must_use]
    pub fn copied(data: &[u8]) -> Self {
        Self::own(data.into(), data.len(), None)
    }

    /// A copy of `data` that `region` counts as long as it is held, on whatever thread.
    pub(super) fn copied_out(region: &Arc<Region>, data: &[u8]) -> Self {
        region.copied_out_bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
        Self::own(data.into(), data.len(), Some(Arc::clone(region)))
    }

    /// An empty buffer with room for `bytes`, in memory of its own, outside every pool.
    ///
    /// # Panics
    ///
    /// If `bytes` is 4 GiB or more.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        assert!(u32::try_from(bytes).is_ok(), "a buffer is smaller than 4 GiB");
        Self::own(vec![0; bytes].into(), 0, None)
    }

    /// Bytes that fit behind the filled part.
    #[must_use]
    pub fn spare(&self) -> usize {
        self.spare as usize
    }

    /// Appends as much of `data` as fits and says how much that was.
    pub fn append(&mut self, data: &[u8]) -> usize {
        let count = data.len().min(self.spare());
        // SAFETY: the lease is unique, so that `data` lies elsewhere, and there are `spare` bytes behind the filled part.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.data.as_ptr().add(self.len as usize), count) };
        self.len += count as u32;
        self.spare -= count as u32;
        count
    }

    /// Drops the first `count` bytes.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    #[inline]
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len(), "cannot advance by {count} in a buffer of {} bytes", self.len());
        // SAFETY: the new beginning lies inside the filled part or at its end.
        self.data = unsafe { self.data.add(count) };
        self.len -= count as u32;
    }

    /// Keeps only the first `count` bytes, if there are more.
    pub fn truncate(&mut self, count: usize) {
        if count < self.len() {
            self.spare += self.len - count as u32;
            self.len = count as u32;
        }
    }

    /// The bytes as [`Bytes`], which any thread may hold. No payload is copied; one small allocation is made.
    ///
    /// The slot returns to its pool when the last clone is dropped, on whatever thread that is. If the pool is gone
    /// by then, its memory is freed with the last of them.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        let (data, len) = (self.data, self.len as usize);
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is neither used again nor dropped.
        match unsafe { this.take_owner() } {
            Owner::Pool(pool, slot) => {
                let lease = Lease { region: Arc::clone(&pool.region), slot };
                Bytes::from_owner(Remote { data, len, _owner: lease })
            }
            Owner::Own(own) => Bytes::from_owner(Remote { data, len, _owner: own }),
        }
    }

    /// Whether the bytes lie in a slot of a pool (and not in a copy of their own).
    #[must_use]
    pub fn is_pooled(&self) -> bool {
        self.slot != NO_SLOT
    }

    /// Says that the first `bytes` bytes of the memory have been filled. Nothing was taken off its front before.
    #[inline]
    pub(crate) fn set_filled(&mut self, bytes: u32) {
        let size = self.len + self.spare;
        debug_assert!(bytes <= size);
        self.len = bytes;
        self.spare = size - bytes;
    }

    /// Address and size of the whole memory, for the kernel to fill. Nothing was taken off its front before.
    #[inline]
    pub(crate) fn raw_memory(&mut self) -> (*mut u8, usize) {
        (self.data.as_ptr(), (self.len + self.spare) as usize)
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the lease is unique, these bytes lie inside its memory, which it keeps alive and which was zeroed or filled.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.len as usize) }
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
        // SAFETY: this is the end of the buffer, so that nobody uses what is left in `self`.
        match unsafe { self.take_owner() } {
            Owner::Pool(pool, slot) => pool.release(slot),
            Owner::Own(own) => drop_own(own),
        }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf").field("len", &self.len()).field("pooled", &self.is_pooled()).finish()
    }
}

#[cold]
fn drop_own(own: Box<Own>) {
    drop(own);
}

/// Bytes that left their thread, and what keeps them.
struct Remote<O> {
    data: NonNull<u8>,
    len: usize,
    _owner: O,
}

// SAFETY: the owner is the only one of this memory, and may be dropped on any thread.
unsafe impl<O: Send> Send for Remote<O> {}

impl<O> AsRef<[u8]> for Remote<O> {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the owner keeps the memory for itself, nobody writes to it any more, and it lives as long.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.len) }
    }
}

/// A slot that left its thread.
struct Lease {
    region: Arc<Region>,
    slot: SlotId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.region.give_back(self.slot);
    }
}
