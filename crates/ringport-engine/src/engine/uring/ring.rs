//! The two rings shared with the kernel, and the ring of buffers that it picks from.
//!
//! [`Ring`] hides three things from the rest of the engine: that the submission queue can be full, that the kernel may
//! refuse to take entries for a while, and which of the newer flags this kernel knows.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::VecDeque;
use std::hint::cold_path;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, squeue};

use super::Op;
use super::starved::LastTurn;
use crate::buffer::{Buf, Pool, SlotClass, SlotId};
use crate::engine::contract::Features;

/// Entries of the submission queue. One turn seldom asks for more; when it does, they are submitted in the middle.
const SUBMISSIONS: u32 = 1024;
/// Entries of the completion queue. What does not fit is kept by the kernel until there is room, but slowly.
const COMPLETIONS: u32 = 16 * 1024;
/// The group of provided buffers for connections.
pub(super) const BUFFER_GROUP: u16 = 0;
/// The group of provided buffers for datagrams.
pub(super) const DATAGRAM_GROUP: u16 = 1;

/// Whether to wait for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    No,
    AtMost(Duration),
    Forever,
}

/// One entry of the completion queue.
#[derive(Clone, Copy)]
pub(super) struct Completion {
    pub(super) tag: u64,
    pub(super) result: i32,
    pub(super) flags: u32,
}

impl Completion {
    #[inline]
    pub(super) fn is_of(&self, op: Op) -> bool {
        self.tag >> 60 == op as u64
    }

    /// Whether the operation goes on: otherwise this is its terminal completion.
    #[inline]
    pub(super) fn more(&self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer that the kernel filled.
    #[inline]
    pub(super) fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

impl From<cqueue::Entry> for Completion {
    #[inline]
    fn from(entry: cqueue::Entry) -> Self {
        Self { tag: entry.user_data(), result: entry.result(), flags: entry.flags() }
    }
}

/// As many completions are known ahead, if there are so many.
const AHEAD: usize = 4;
/// Completions taken out of the queue at a time, at most.
const TAKEN_MAX: usize = 16;

/// Completions taken out of the queue ahead of their turn, in order.
#[repr(C)]
struct Taken {
    len: usize,
    first: usize,
    entries: [Completion; TAKEN_MAX],
}

impl Taken {
    const fn new() -> Self {
        Self { entries: [Completion { tag: 0, result: 0, flags: 0 }; TAKEN_MAX], first: 0, len: 0 }
    }

    /// Takes as many as there is room for.
    #[inline]
    fn fill(&mut self, from: impl Iterator<Item = Completion>) {
        for completion in from.take(TAKEN_MAX - self.len) {
            self.entries[(self.first + self.len) % TAKEN_MAX] = completion;
            self.len += 1;
        }
    }

    #[inline]
    fn pop(&mut self) -> Option<Completion> {
        self.len = self.len.checked_sub(1)?;
        let completion = self.entries[self.first];
        self.first = (self.first + 1) % TAKEN_MAX;
        Some(completion)
    }

    /// Undoes a pop.
    #[inline]
    fn put_back(&mut self, completion: Completion) {
        debug_assert!(self.len < TAKEN_MAX);
        self.first = (self.first + TAKEN_MAX - 1) % TAKEN_MAX;
        self.entries[self.first] = completion;
        self.len += 1;
    }

    /// The one that comes `ahead` of them after the next.
    #[inline]
    fn get(&self, ahead: usize) -> Option<&Completion> {
        (ahead < self.len).then(|| &self.entries[(self.first + ahead) % TAKEN_MAX])
    }
}

/// Submission and completion queue. In this order what each turn needs lies together.
#[repr(C)]
pub(super) struct Ring {
    /// Calls of `io_uring_enter`.
    pub(super) enters: u64,
    enter_flags: EnterFlags,
    /// Whether to tell what comes next.
    pub(super) looks_ahead: bool,
    /// Entries that found the submission queue full and the kernel unwilling to empty it.
    held_back: VecDeque<squeue::Entry>,
    uring: IoUring,
    /// What has left the queue in order to tell what comes next.
    taken: Taken,
    /// The setup flags in force, for the probe to tell.
    pub(super) setup: &'static str,
}

/// A set of setup flags: its name, whether it defers task work, and how it is asked for.
type Setup = (&'static str, bool, fn(&mut io_uring::Builder));

/// Sets of setup flags from the newest (Linux 6.6) to the oldest.
const SETUPS: [Setup; 4] = [
    ("deferred task work, no submission array", true, |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun().setup_no_sqarray();
    }),
    ("deferred task work", true, |builder| {
        builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
    }),
    ("cooperative task work", false, |builder| {
        builder.setup_coop_taskrun();
    }),
    ("plain", false, |_| {}),
];

impl Ring {
    /// Sets up the queues with the best flags that the kernel knows and `features` allows.
    pub(super) fn open(features: &Features) -> io::Result<Self> {
        let mut refusal = io::Error::from(io::ErrorKind::Unsupported);
        for (setup, deferred, flags) in SETUPS {
            if deferred && !features.defer_taskrun {
                continue;
            }
            let mut builder = IoUring::builder();
            builder.setup_cqsize(COMPLETIONS).setup_clamp().setup_submit_all();
            flags(&mut builder);
            match builder.build(SUBMISSIONS) {
                Ok(uring) => return Self::new(uring, setup, features),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => refusal = error,
                Err(error) => return Err(error),
            }
        }
        Err(refusal)
    }

    fn new(uring: IoUring, setup: &'static str, features: &Features) -> io::Result<Self> {
        let found = uring.params();
        if !(found.is_feature_nodrop() && found.is_feature_ext_arg() && found.is_feature_fast_poll()) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let mut enter_flags = EnterFlags::GETEVENTS;
        if features.no_iowait && found.is_feature_no_iowait() {
            enter_flags |= EnterFlags::NO_IOWAIT;
        }
        Ok(Self {
            uring,
            looks_ahead: false,
            taken: Taken::new(),
            held_back: VecDeque::new(),
            enter_flags,
            enters: 0,
            setup,
        })
    }

    /// Queues an operation for the next [`Ring::enter`].
    ///
    /// Inlined, and the entry is handed on by its address to nobody, so that it is written where the kernel reads it and
    /// not put together elsewhere first: reading a line right after it was written in small parts stalls the processor.
    ///
    /// # Safety
    ///
    /// Memory that `entry` points to stays valid until its terminal completion has been taken from this ring.
    #[inline(always)]
    pub(super) unsafe fn push(&mut self, entry: &squeue::Entry) {
        if self.held_back.is_empty() {
            // SAFETY: the caller vouches for the memory.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return;
            }
        }
        self.push_slowly(entry.clone());
    }

    /// The queue is full: the kernel takes its entries now, or this one has to wait for that.
    #[cold]
    fn push_slowly(&mut self, entry: squeue::Entry) {
        self.held_back.push_back(entry);
        let queued = self.uring.submission().len() as u32;
        self.enters += 1;
        // SAFETY: no argument is passed. A refusal leaves the entries in the queue for the next enter.
        let _ = unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued, 0, 0, None) };
        self.release_held_back();
    }

    fn release_held_back(&mut self) {
        let mut submission = self.uring.submission();
        while let Some(entry) = self.held_back.front() {
            // SAFETY: whoever pushed the entry vouched for its memory until the terminal completion.
            if unsafe { submission.push(entry) }.is_err() {
                return;
            }
            self.held_back.pop_front();
        }
    }

    /// The next completion.
    #[inline(always)]
    pub(super) fn pop(&mut self) -> Option<Completion> {
        if self.looks_ahead {
            return self.pop_ahead();
        }
        if self.taken.len > 0 {
            cold_path();
            return self.taken.pop();
        }
        self.uring.completion().next().map(Completion::from)
    }

    /// Whether no completion is there.
    #[inline]
    pub(super) fn is_empty(&mut self) -> bool {
        self.taken.len == 0 && self.uring.completion().is_empty()
    }

    /// The next completion, which stays that.
    pub(super) fn peek(&mut self) -> Option<Completion> {
        let completion = self.pop()?;
        self.taken.put_back(completion);
        Some(completion)
    }

    /// Undoes a pop.
    #[inline]
    pub(super) fn put_back(&mut self, completion: Completion) {
        self.taken.put_back(completion);
    }

    #[inline(never)]
    fn pop_ahead(&mut self) -> Option<Completion> {
        if self.taken.len < AHEAD {
            self.taken.fill(self.uring.completion().map(Completion::from));
        }
        self.taken.pop()
    }

    /// The tag of the next completion, or of the one that comes `ahead` of them after it.
    #[inline]
    pub(super) fn upcoming(&self, ahead: usize) -> Option<u64> {
        self.taken.get(ahead).map(|completion| completion.tag)
    }

    /// Whether completions or entries are left over, so that waiting would be wrong.
    #[inline]
    pub(super) fn has_leftovers(&mut self) -> bool {
        let overflow = self.uring.submission().cq_overflow();
        overflow || self.taken.len > 0 || !self.held_back.is_empty() || !self.uring.completion().is_empty()
    }

    /// Submits what is queued, lets the kernel complete what it can, and waits for a completion as `block` says: one
    /// system call.
    ///
    /// # Errors
    ///
    /// Only what no retry can mend.
    pub(super) fn enter(&mut self, block: Block) -> io::Result<()> {
        if !self.held_back.is_empty() {
            cold_path();
            self.release_held_back();
        }
        self.enters += 1;
        let queued = self.uring.submission().len() as u32;
        let submitter = self.uring.submitter();
        let flags = self.enter_flags;
        let answer = match block {
            // SAFETY: no argument is passed.
            Block::No => unsafe { submitter.enter::<libc::sigset_t>(queued, 0, flags.bits(), None) },
            // SAFETY: as above.
            Block::Forever => unsafe { submitter.enter::<libc::sigset_t>(queued, 1, flags.bits(), None) },
            Block::AtMost(time) => {
                cold_path();
                let time = Timespec::from(time);
                let arguments = SubmitArgs::new().timespec(&time);
                let flags = flags | EnterFlags::EXT_ARG;
                // SAFETY: the flag says that the argument is of this type; it lives until the call returns.
                unsafe { submitter.enter(queued, 1, flags.bits(), Some(&arguments)) }
            }
        };
        match answer {
            Ok(_) => Ok(()),
            // A signal, no memory for now, completions that must be taken first, and the deadline: the next turn
            // carries on from whatever state the queues are in.
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME) => Ok(()),
                _ => Err(error),
            },
        }
    }
}

/// Slots in the ring of connections at first. It doubles whenever a turn has used more than half of them for small messages:
/// a ring that runs dry costs more than anything else. A few connections that wait for each answer never need more, and
/// these few stay in the nearest cache: with 64 the memory that a lonely message came into was in none, and copying it there
/// took twice the time.
const SLOTS_AT_FIRST: u32 = 8;
/// Slots in the ring when messages are large, or datagrams. Large messages bring it back to these, since a ring of 1 MiB stays in
/// the cache and one of many is read from memory.
const SLOTS_FOR_LARGE: u32 = 64;
/// The same when many connections have large messages: so many as are sent while the next are received stay in the nearer cache.
const SLOTS_FOR_MANY: u32 = 16;
/// Bytes in a slot, on average of what a turn has used, from which on its messages are large.
const LARGE_BYTES: u64 = 8 * 1024;

/// Small slots of the pool, lent to the kernel.
///
/// The memory of this ring and the slots in it belong to the kernel as long as a receive may be armed, so the engine
/// drops it only after the terminal completions of all of them, and otherwise leaks it.
pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    mask: u16,
    tail: u16,
    /// Slots in the ring that no completion has named yet, and how many these were when slots were lent last.
    lent: u32,
    filled: u32,
    /// Bytes received since slots were lent last, and what was used between that and the time before.
    bytes: u64,
    last: LastTurn,
    /// What used up more than half of the ring last were large messages.
    large: bool,
    /// Slots that the ring should have. The kernel goes round through all of them, so that each is memory that is
    /// touched; there are only as many as the load has shown to need.
    target: u32,
    target_max: u32,
    /// Free slots that are left for [`Pool::writable`].
    reserve: u32,
}

impl BufferRing {
    /// Registers a ring with room for every small slot, and lends the first ones.
    pub(super) fn register(ring: &Ring, pool: &Pool, group: u16) -> io::Result<Self> {
        let config = pool.config();
        // Half of what is below the low mark: the other half keeps the kernel going while received bytes are copied.
        let reserve = (u64::from(config.small_slots) * u64::from(config.low_mark_percent) / 200) as u32;
        let capacity = config.small_slots.next_power_of_two().min(32 * 1024);
        let bytes = capacity as usize * size_of::<BufRingEntry>();
        // The kernel wants whole pages, and the ring begins on one.
        let layout = Layout::from_size_align(bytes.next_multiple_of(4096), 4096)
            .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        // SAFETY: the layout is not empty.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(io::ErrorKind::OutOfMemory)?;
        let mask = (capacity - 1) as u16;
        // The other half is with those who were handed received bytes, so that these need not be copied out at once.
        let target_max = config.small_slots.div_ceil(2);
        let first = if group == BUFFER_GROUP { SLOTS_AT_FIRST } else { SLOTS_FOR_LARGE };
        let mut this = Self {
            entries: memory.cast(),
            layout,
            mask,
            tail: 0,
            lent: 0,
            filled: 0,
            bytes: 0,
            last: LastTurn { slots: 0, bytes: 0 },
            large: false,
            target: first.min(target_max),
            target_max,
            reserve,
        };
        let address = this.entries.as_ptr() as u64;
        // SAFETY: the memory holds `capacity` entries and lives until `this` is dropped, which happens when the kernel
        // has no receive left that could use it (see the type).
        unsafe { ring.uring.submitter().register_buf_ring_with_flags(address, capacity as u16, group, 0)? };
        this.refill(pool, false);
        Ok(this)
    }

    /// Slots that the kernel can fill.
    #[inline]
    pub(super) fn lent(&self) -> u32 {
        self.lent
    }

    /// What was used between the last two times that slots were lent, if messages are large.
    #[inline]
    pub(super) fn large_turn(&self) -> Option<LastTurn> {
        self.large.then_some(self.last)
    }

    /// Lends free slots up to the target and makes them visible to the kernel, all at once. `many`: so many connections have large
    /// messages that [`super::starved`] gives them shares.
    #[inline]
    pub(super) fn refill(&mut self, pool: &Pool, many: bool) {
        let before = self.tail;
        self.last = LastTurn { slots: self.filled - self.lent, bytes: std::mem::take(&mut self.bytes) };
        if self.last.slots > self.target / 2 {
            cold_path();
            // One turn used up more than half: the next may need more than there are.
            self.large = self.last.bytes >= u64::from(self.last.slots) * LARGE_BYTES;
            self.target = next_target(self.target, self.large, many).min(self.target_max);
        }
        while self.lent < self.target
            && pool.free(SlotClass::Small) > self.reserve
            && let Some(slot) = pool.lend(SlotClass::Small)
        {
            self.write(slot, pool);
        }
        self.filled = self.lent;
        if self.tail != before {
            self.publish();
        }
    }

    #[inline]
    fn write(&mut self, slot: SlotId, pool: &Pool) {
        let (address, bytes) = pool.slot_memory(slot);
        // SAFETY: the index is below the capacity. The kernel reads an entry only after the tail has moved past it, and
        // the ring has room for every small slot, so that this one is not in use.
        let entry = unsafe { &mut *self.entries.as_ptr().add(usize::from(self.tail & self.mask)) };
        entry.set_addr(address as u64);
        entry.set_len(bytes);
        entry.set_bid(slot.0 as u16);
        self.tail = self.tail.wrapping_add(1);
        self.lent += 1;
    }

    #[inline]
    fn publish(&self) {
        // SAFETY: the tail lies in the first entry of the ring, is aligned to 2 bytes and shared with the kernel alone.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(self.entries.as_ptr()).cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// The buffer that a completion names.
    ///
    /// # Safety
    ///
    /// A completion that was just taken from the ring named `buffer`, with `bytes` bytes in it.
    #[inline]
    pub(super) unsafe fn take(&mut self, pool: &Pool, buffer: u16, bytes: u32) -> Buf {
        debug_assert!(self.lent > 0);
        self.lent -= 1;
        self.bytes += u64::from(bytes);
        // SAFETY: the slot was lent in `write`, and the completion says that the kernel has let go of it.
        unsafe { pool.reclaim(SlotId(u32::from(buffer)), bytes) }
    }

    /// Gives every slot back that the kernel did not use.
    ///
    /// # Safety
    ///
    /// No operation that could take a buffer from the ring is armed any more.
    pub(super) unsafe fn dissolve(mut self, pool: &Pool) {
        while self.lent > 0 {
            // The kernel takes from the front, so those it left are the ones written last.
            let index = usize::from(self.tail.wrapping_sub(self.lent as u16) & self.mask);
            // SAFETY: the index is below the capacity.
            let buffer = unsafe { (*self.entries.as_ptr().add(index)).bid() };
            // SAFETY: the entry is in the ring, and the caller says that the kernel takes none of them.
            drop(unsafe { self.take(pool, buffer, 0) });
        }
    }
}

/// How many slots the ring should have, if a turn has used more than half of `target`, for messages that were large, of many.
fn next_target(target: u32, large: bool, many: bool) -> u32 {
    match (large, many) {
        (false, _) => target * 2,
        (true, false) => SLOTS_FOR_LARGE.max(target / 2),
        (true, true) => SLOTS_FOR_MANY.max(target / 2),
    }
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        // SAFETY: allocated in `register` with this layout; the engine drops it when the kernel is done with it.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_grows_for_many_messages_and_not_for_large_ones() {
        assert_eq!(next_target(SLOTS_AT_FIRST, false, false), 2 * SLOTS_AT_FIRST);
        assert_eq!(next_target(SLOTS_FOR_LARGE, false, true), 2 * SLOTS_FOR_LARGE);
        assert_eq!(next_target(SLOTS_AT_FIRST, true, false), SLOTS_FOR_LARGE);
        assert_eq!(next_target(SLOTS_FOR_MANY, true, false), SLOTS_FOR_LARGE);
        assert_eq!(next_target(SLOTS_FOR_LARGE, true, true), SLOTS_FOR_LARGE / 2);
        assert_eq!(next_target(SLOTS_FOR_MANY, true, true), SLOTS_FOR_MANY);
        assert_eq!(next_target(1024, true, false), 512);
    }

    #[test]
    fn what_is_taken_ahead_keeps_its_order() {
        let mut coming = (0..100_u64).map(|tag| Completion { tag, result: 0, flags: 0 });
        let (mut taken, mut next) = (Taken::new(), 0);
        // A queue with three completions at a time never fills it, one with dozens does.
        for coming_now in [3, 50].into_iter().cycle().take(60) {
            taken.fill(coming.by_ref().take(coming_now));
            assert!(taken.len <= TAKEN_MAX);
            for ahead in 0..taken.len {
                assert_eq!(taken.get(ahead).map(|completion| completion.tag), Some(next + ahead as u64));
            }
            assert!(taken.get(taken.len).is_none());
            for _ in 0..5 {
                let Some(completion) = taken.pop() else { break };
                taken.put_back(completion);
                assert_eq!(taken.pop().map(|completion| completion.tag), Some(next));
                next += 1;
            }
        }
        assert_eq!(next, 100, "none is lost");
    }
}
