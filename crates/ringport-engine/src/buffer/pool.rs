//! The region and its two free lists.
//!
//! The region is shared by an atomic reference count between the pool and every `Bytes` made of a slot, so that no
//! order of dropping frees memory under somebody's feet. The free lists belong to one thread and need no lock; slots
//! that another thread drops come home through [`Region::returned`], a lock-free queue that has room for every slot.
//!
//! ```text
//! base ─► | small 0 | small 1 | … | large 0        | large 1        | …
//! ```

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::fmt;
use std::hint::cold_path;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;

use super::Buf;
use super::shortage::Shortage;
use crate::engine::contract::Waker;

const PAGE_BYTES: usize = 4096;

/// How many slots a pool has and how large they are.
///
/// Memory is reserved at once and touched only as slots are used: the default reserves 16 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolConfig {
    /// Number of small slots. The io_uring engine lends them to the kernel.
    pub small_slots: u32,
    /// Bytes in a small slot.
    pub small_slot_bytes: u32,
    /// Number of large slots. Plain receive calls fill them.
    pub large_slots: u32,
    /// Bytes in a large slot.
    pub large_slot_bytes: u32,
    /// Below this share of free slots of a class, in percent, received bytes are delivered as right-sized copies so
    /// that the slot returns at once.
    pub low_mark_percent: u32,
}

impl Default for PoolConfig {
    /// 512 slots of 16 KiB and 32 of 256 KiB, 8 MiB of each.
    ///
    /// Half of the small slots are the kernel's: 256 are enough that 8,000 busy connections rarely find none (a ring
    /// that runs dry costs far more than it saves), and 16 KiB hold what one receive usually finds. 256 KiB is the largest
    /// piece that one plain receive moves, since it is the share of a turn ([`EngineConfig::bytes_per_turn`]): a stream in
    /// writes of 1 MiB takes a fifth less of the processor than in pieces of 64 KiB, and larger ones gain nothing more.
    ///
    /// [`EngineConfig::bytes_per_turn`]: crate::EngineConfig::bytes_per_turn
    fn default() -> Self {
        Self {
            small_slots: 512,
            small_slot_bytes: 16 * 1024,
            large_slots: 32,
            large_slot_bytes: 256 * 1024,
            low_mark_percent: 12,
        }
    }
}

impl PoolConfig {
    /// Sets the number of small slots.
    #[must_use]
    pub fn small_slots(mut self, slots: u32) -> Self {
        self.small_slots = slots;
        self
    }

    /// Sets the number of large slots.
    #[must_use]
    pub fn large_slots(mut self, slots: u32) -> Self {
        self.large_slots = slots;
        self
    }

    /// Sets the bytes of a small and of a large slot.
    #[must_use]
    pub fn slot_bytes(mut self, small: u32, large: u32) -> Self {
        self.small_slot_bytes = small;
        self.large_slot_bytes = large;
        self
    }

    /// Sizes brought into the range that the engines support.
    fn sane(mut self) -> Self {
        self.small_slots = self.small_slots.clamp(4, 32_768);
        self.large_slots = self.large_slots.clamp(2, 32_768);
        self.small_slot_bytes = self.small_slot_bytes.clamp(64, 1 << 20).next_multiple_of(64);
        self.large_slot_bytes = self.large_slot_bytes.clamp(64, 1 << 24).next_multiple_of(64);
        self.low_mark_percent = self.low_mark_percent.min(90);
        self
    }
}

/// Counters of a pool, read at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolStats {
    /// Slots, both classes together.
    pub slots: u32,
    /// Slots in the free lists.
    pub free: u32,
    /// Slots that the kernel holds, ready to be filled.
    pub lent: u32,
    /// Slots that a [`Buf`] or a `Bytes` holds.
    pub leased: u32,
    /// Received messages that were delivered as copies because slots ran low.
    pub copies: u64,
}

/// Which of the two slot sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SlotClass {
    Small,
    Large,
}

/// A slot by number: small ones first, then the large ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId(pub(crate) u32);

/// The memory itself. Freed when the last owner is gone.
pub(super) struct Region {
    allocation: NonNull<u8>,
    /// First page boundary in the allocation.
    base: NonNull<u8>,
    layout: Layout,
    config: PoolConfig,
    /// Where the large slots begin.
    large: NonNull<u8>,
    /// Slots that other threads dropped.
    returned: ArrayQueue<u32>,
    /// Bytes of the copies that were made because slots ran low, as long as somebody holds them.
    pub(super) copied_out_bytes: AtomicU64,
    /// How many those are, and whether an engine waits for one.
    shortage: Shortage<Waker>,
}

// SAFETY: the region is plain memory. Every access goes through a lease of one slot, leases are unique, and what is
// shared (`returned`) is itself `Sync`.
unsafe impl Send for Region {}
// SAFETY: see above.
unsafe impl Sync for Region {}

impl Region {
    fn new(config: PoolConfig) -> Self {
        let small = config.small_slots as usize * config.small_slot_bytes as usize;
        let bytes = small.next_multiple_of(PAGE_BYTES) + config.large_slots as usize * config.large_slot_bytes as usize;
        // One page more than needed, aligned by hand: with an alignment above that of `malloc` the standard library
        // zeroes memory by writing to it, which would touch every page of the region.
        let layout = Layout::from_size_align(bytes + PAGE_BYTES, 16).expect("a region is at most 2^39 bytes");
        // SAFETY: the layout is not empty.
        let Some(allocation) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        let padding = allocation.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        // SAFETY: the padding is at most the page that was added.
        let base = unsafe { allocation.add(padding) };
        // SAFETY: the large slots follow the small ones, rounded up to a page, as `bytes` has it.
        let large = unsafe { base.add(small.next_multiple_of(PAGE_BYTES)) };
        let returned = ArrayQueue::new((config.small_slots + config.large_slots) as usize);
        let copied_out_bytes = AtomicU64::new(0);
        Self { allocation, base, layout, config, large, returned, shortage: Shortage::new(), copied_out_bytes }
    }

    #[inline]
    fn class(&self, slot: SlotId) -> SlotClass {
        if slot.0 < self.config.small_slots { SlotClass::Small } else { SlotClass::Large }
    }

    /// Address and size of a slot of `class`.
    #[inline]
    fn slot(&self, slot: SlotId, class: SlotClass) -> (NonNull<u8>, u32) {
        debug_assert!(self.class(slot) == class);
        let (first, number, size) = match class {
            SlotClass::Small => (self.base, slot.0, self.config.small_slot_bytes),
            SlotClass::Large => (self.large, slot.0 - self.config.small_slots, self.config.large_slot_bytes),
        };
        // SAFETY: `slot` is one of this region's, so that the address lies inside the allocation.
        (unsafe { first.add(number as usize * size as usize) }, size)
    }

    /// Gives a slot back from any thread. Wakes the engine if it waits for one.
    pub(super) fn give_back(&self, slot: SlotId) {
        let pushed = self.returned.push(slot.0);
        debug_assert!(pushed.is_ok(), "the list has room for every slot");
        if let Some(bell) = self.shortage.came_back() {
            bell.wake();
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; the last owner is gone.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) }
    }
}

/// What all handles to one pool share on its thread.
pub(super) struct Shared {
    pub(super) region: Arc<Region>,
    small: FreeList,
    large: FreeList,
    copies: Cell<u64>,
}

/// Free slots of one class. Only the pool's thread touches it.
struct FreeList {
    /// Room for every slot; the first `len` are free.
    slots: Box<[Cell<u32>]>,
    len: Cell<u32>,
    lent: Cell<u32>,
    first: u32,
    total: u32,
    low_mark: u32,
}

impl FreeList {
    fn new(first: u32, total: u32, low_mark_percent: u32) -> Self {
        let slots = (first..first + total).rev().map(Cell::new).collect();
        let low_mark = (total * low_mark_percent).div_ceil(100);
        Self { slots, len: Cell::new(total), lent: Cell::new(0), first, total, low_mark }
    }

    #[inline]
    fn pop(&self) -> Option<u32> {
        let last = self.len.get().checked_sub(1)?;
        self.len.set(last);
        Some(self.slots[last as usize].get())
    }

    #[inline]
    fn push(&self, slot: u32) {
        let len = self.len.get();
        self.slots[len as usize].set(slot);
        self.len.set(len + 1);
    }

    #[inline]
    fn len(&self) -> u32 {
        self.len.get()
    }
}

impl Shared {
    #[inline]
    fn list(&self, class: SlotClass) -> &FreeList {
        match class {
            SlotClass::Small => &self.small,
            SlotClass::Large => &self.large,
        }
    }

    /// Puts a slot whose lease ended into its free list.
    #[inline]
    pub(super) fn release(&self, slot: SlotId) {
        let list = if slot.0 < self.large.first { &self.small } else { &self.large };
        list.push(slot.0);
    }
}

/// A worker's buffers. Cheap to clone; every clone is the same pool.
///
/// `Pool` stays on its thread. A [`Buf`] keeps the pool's memory alive, so that dropping things in any order is safe.
#[derive(Clone)]
pub struct Pool(pub(super) Rc<Shared>);

impl Pool {
    /// Reserves the memory. Sizes out of range are brought into it.
    ///
    /// # Panics
    ///
    /// Aborts, as every allocation of the standard library does, when the system has no memory.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        let config = config.sane();
        let small = FreeList::new(0, config.small_slots, config.low_mark_percent);
        let large = FreeList::new(config.small_slots, config.large_slots, config.low_mark_percent);
        let region = Arc::new(Region::new(config));
        Self(Rc::new(Shared { region, small, large, copies: Cell::new(0) }))
    }

    /// The sizes in force.
    #[must_use]
    pub fn config(&self) -> &PoolConfig {
        &self.0.region.config
    }

    /// Counters of this moment.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.collect();
        let (small, large) = (&self.0.small, &self.0.large);
        let slots = small.total + large.total;
        let free = small.len() + large.len();
        let lent = small.lent.get() + large.lent.get();
        PoolStats { slots, free, lent, leased: slots - free - lent, copies: self.0.copies.get() }
    }

    /// Received messages that were delivered as copies because slots ran low.
    #[must_use]
    #[inline]
    pub fn copies(&self) -> u64 {
        self.0.copies.get()
    }

    /// Bytes of such copies that somebody still holds, on any thread. The memory of the pool itself is fixed; this comes
    /// on top of it.
    #[must_use]
    #[inline]
    pub fn copied_out_bytes(&self) -> u64 {
        self.0.region.copied_out_bytes.load(Ordering::Relaxed)
    }

    /// An empty, writable buffer with room for at least `bytes`, or `None` when no free slot is that large or slots
    /// are running low. The caller then allocates; the last slots are kept for receiving.
    #[must_use]
    pub fn writable(&self, bytes: usize) -> Option<Buf> {
        let class = if bytes <= self.config().small_slot_bytes as usize {
            SlotClass::Small
        } else if bytes <= self.config().large_slot_bytes as usize {
            SlotClass::Large
        } else {
            return None;
        };
        if self.is_low(class) { None } else { self.lease(class) }
    }

    /// Leases a slot of `class`, empty, even when slots are low.
    #[inline]
    pub(crate) fn lease(&self, class: SlotClass) -> Option<Buf> {
        let slot = self.0.list(class).pop().or_else(|| {
            cold_path();
            self.collect();
            self.0.list(class).pop()
        })?;
        Some(self.leased(SlotId(slot), class))
    }

    /// As [`Pool::lease`], for a call that may have nothing to put into the slot.
    #[allow(dead_code, reason = "the engines of Windows receive in their own way")]
    #[inline]
    pub(crate) fn vacant(&self, class: SlotClass) -> Option<Vacant<'_>> {
        let slot = self.0.list(class).pop().or_else(|| {
            cold_path();
            self.collect();
            self.0.list(class).pop()
        })?;
        let (address, size) = self.0.region.slot(SlotId(slot), class);
        Some(Vacant { pool: self, slot: SlotId(slot), address, size })
    }

    #[inline]
    fn leased(&self, slot: SlotId, class: SlotClass) -> Buf {
        let (address, size) = self.0.region.slot(slot, class);
        Buf::leased(Rc::clone(&self.0), slot, address, size)
    }

    /// Whether so few slots are left that what is received should be copied out.
    #[inline]
    pub(crate) fn is_low(&self, class: SlotClass) -> bool {
        let list = self.0.list(class);
        let low = || list.len() + list.lent.get() <= list.low_mark;
        // What other threads gave back ends the shortage at once, and not only when the list is empty.
        low() && {
            cold_path();
            self.collect();
            low()
        }
    }

    /// Takes a slot out of the free list for the kernel to fill later. It is neither free nor leased.
    pub(crate) fn lend(&self, class: SlotClass) -> Option<SlotId> {
        let list = self.0.list(class);
        let slot = list.pop()?;
        list.lent.set(list.lent.get() + 1);
        Some(SlotId(slot))
    }

    /// Turns a lent slot into a lease over its first `bytes` bytes.
    ///
    /// # Safety
    ///
    /// `slot` came from [`Pool::lend`] of this pool, has not been reclaimed since, and the kernel has let go of it.
    /// `bytes` is at most the size of the slot.
    #[inline]
    pub(crate) unsafe fn reclaim(&self, slot: SlotId, bytes: u32) -> Buf {
        let class = self.0.region.class(slot);
        let list = self.0.list(class);
        list.lent.set(list.lent.get() - 1);
        let mut buf = self.leased(slot, class);
        buf.set_filled(bytes);
        buf
    }

    /// Address and size of a slot, for the kernel.
    #[inline]
    pub(crate) fn slot_memory(&self, slot: SlotId) -> (*mut u8, u32) {
        let region = &self.0.region;
        let (address, size) = region.slot(slot, region.class(slot));
        (address.as_ptr(), size)
    }

    /// Address and size of the memory of all slots, for an engine that registers it with the kernel. It begins with a page.
    #[allow(dead_code, reason = "only rio registers the region")]
    pub(crate) fn memory(&self) -> (*mut u8, usize) {
        let region = &self.0.region;
        (region.base.as_ptr(), region.layout.size() - PAGE_BYTES)
    }

    /// Received bytes that lie outside the pool, as a copy: in a slot, or in memory that is counted when slots are low.
    #[allow(dead_code, reason = "only rio receives outside the pool")]
    pub(crate) fn copy_in(&self, data: &[u8]) -> Buf {
        self.0.copies.set(self.0.copies.get() + 1);
        match self.writable(data.len()) {
            Some(mut buf) => {
                buf.append(data);
                buf
            }
            None => Buf::copied_out(&self.0.region, data),
        }
    }

    /// A copy of received bytes: in a slot of `class`, or in memory that is counted if those are low or too small.
    #[inline]
    pub(crate) fn copied_into(&self, class: SlotClass, data: &[u8]) -> Buf {
        let bytes = match class {
            SlotClass::Small => self.config().small_slot_bytes,
            SlotClass::Large => self.config().large_slot_bytes,
        };
        if data.len() <= bytes as usize
            && !self.is_low(class)
            && let Some(mut buf) = self.lease(class)
        {
            buf.append(data);
            return buf;
        }
        Buf::copied_out(&self.0.region, data)
    }

    /// Free slots of a class, without those that other threads have just given back.
    #[inline]
    pub(crate) fn free(&self, class: SlotClass) -> u32 {
        self.0.list(class).len()
    }

    /// Takes in what other threads gave back.
    #[inline]
    pub(crate) fn collect(&self) {
        let region = &self.0.region;
        if region.shortage.is_over() {
            self.collect_slowly();
        }
    }

    #[cold]
    fn collect_slowly(&self) {
        let region = &self.0.region;
        // No more than were counted: one that is being given back just now counts itself in a moment.
        while region.shortage.is_over()
            && let Some(slot) = region.returned.pop()
        {
            region.shortage.taken_in();
            self.0.release(SlotId(slot));
        }
    }

    /// An engine with starved connections is about to sleep: a slot that another thread gives back rings `bell`. Returns
    /// `false` if one is there already; then it must not sleep.
    #[cold]
    pub(crate) fn begin_shortage(&self, bell: &Waker) -> bool {
        self.0.region.shortage.begin(bell)
    }

    /// The engine is awake again.
    #[cold]
    pub(crate) fn end_shortage(&self) {
        self.0.region.shortage.end();
    }

    /// A copy of the received bytes if slots are low, otherwise `buf` itself.
    #[inline]
    pub(crate) fn relieve(&self, buf: Buf, class: SlotClass) -> Buf {
        if self.is_low(class) { self.copy_out(buf) } else { buf }
    }

    #[cold]
    fn copy_out(&self, buf: Buf) -> Buf {
        self.0.copies.set(self.0.copies.get() + 1);
        Buf::copied_out(&self.0.region, &buf)
    }
}

/// A slot that was taken out of its free list and that nobody has filled yet.
#[allow(dead_code, reason = "the engines of Windows receive in their own way")]
#[must_use]
pub(crate) struct Vacant<'a> {
    pool: &'a Pool,
    slot: SlotId,
    address: NonNull<u8>,
    size: u32,
}

#[allow(dead_code, reason = "the engines of Windows receive in their own way")]
impl Vacant<'_> {
    /// Address and size of its memory.
    #[inline]
    pub(crate) fn memory(&self) -> (*mut u8, usize) {
        (self.address.as_ptr(), self.size as usize)
    }

    /// A buffer of its first `bytes` bytes, which have been filled.
    #[inline]
    pub(crate) fn filled(self, bytes: u32) -> Buf {
        let mut buf = Buf::leased(Rc::clone(&self.pool.0), self.slot, self.address, self.size);
        buf.set_filled(bytes);
        buf
    }

    /// A copy of those bytes, so that the slot is free again: slots are low.
    #[inline]
    pub(crate) fn copied(self, bytes: u32) -> Buf {
        let pool = self.pool;
        pool.copy_out(self.filled(bytes))
    }

    /// Puts it back: there was nothing.
    #[inline]
    pub(crate) fn give_back(self) {
        self.pool.0.release(self.slot);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("config", self.config()).field("stats", &self.stats()).finish()
    }
}
