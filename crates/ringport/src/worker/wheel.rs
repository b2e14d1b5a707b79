//! The timer wheel of a worker: every deadline of every connection, in constant time.
//!
//! A heap costs a logarithm for each timer that is set and for each that is cancelled, and nearly all timers of a
//! server are cancelled. Here both are a few stores: a timer lies in a list whose number follows from its deadline.
//!
//! ```text
//! level 0: 64 slots of 1 ms      ▒▒▒▒▒▒▒█░░░   one slot = one tick, fires when its tick comes
//! level 1: 64 slots of 64 ms     ▒▒█░░░░░░░░   a slot *cascades* at its first tick: its timers move down
//! …
//! level 4: 64 slots of 4.7 hours ▒█░░░░░░░░░   a ring of 12.4 days; what lies beyond parks in its last slot
//!          (▒ past, █ now, ░ ahead)
//! ```
//!
//! The lower four levels cover only the slot of the next level in which *now* lies, so that whatever is on a lower
//! level comes before everything on a higher one. One bitmap for each level then says in five steps what comes next.
//!
//! A list is an array of timers, and a slab says for each key where its timer is: twelve bytes that stay in the cache longer
//! than the timers themselves. Chains through one slab were tried: each cascade then waits for one cache miss after the
//! other, and to fire one of a million timers cost three to four times as much. A list that is emptied keeps room for [`KEPT`] timers and gives more back, so that a wheel with few timers at a
//! time soon allocates nothing, and a large one at most once for each doubling of a list.

use std::cell::Cell;
use std::hint::cold_path;
use std::time::{Duration, Instant};

use ringport_engine::prefetch;

const LEVELS: usize = 5;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const TOP: usize = LEVELS - 1;
/// Ticks of one slot of the top level, as a shift.
const TOP_SHIFT: u32 = SLOT_BITS * TOP as u32;
/// The list behind those of the slots: timers that were due when they were set, or at the first tick of a cascade.
const DUE: usize = LEVELS * SLOTS;
const TICK: Duration = Duration::from_millis(1);
/// No entry, or no list.
const NONE: u32 = u32::MAX;
/// Timers of a list between the one in hand and the one whose entry is fetched.
const FETCHED_AHEAD: usize = 8;
/// Room that every list keeps, in timers: 640 KiB in all lists together.
const KEPT: usize = 64;

/// A timer that was set. Stale once it fired or was cancelled; using a stale key does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TimerKey {
    index: u32,
    generation: u32,
}

/// Timers that carry a `T` each.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Wheel<T: Copy> {
    // What every turn looks at comes first: most turns are shorter than a tick, and need no more than this.
    /// The tick up to which everything has fired.
    current: u64,
    /// When the next tick begins.
    next_tick: Instant,
    /// Something is in the list [`DUE`].
    has_due: bool,
    /// What [`Wheel::next_deadline`] said last, until a list gets its first entry or loses its last. It is asked every turn.
    next: Cell<Option<Option<Instant>>>,
    /// Tick 0.
    origin: Instant,
    /// One bit for each slot whose list is not empty.
    occupied: [u64; LEVELS],
    /// `LEVELS × SLOTS` lists, and [`DUE`].
    lists: Vec<Vec<Item<T>>>,
    entries: Vec<Entry>,
    /// First entry that is not in use, chained by `place`.
    free: u32,
}

/// A timer in a list.
#[derive(Clone, Copy, Debug)]
struct Item<T> {
    /// The first tick at which the timer may fire.
    tick: u64,
    value: T,
    /// Its entry.
    index: u32,
}

/// Where a timer is.
#[derive(Debug)]
struct Entry {
    generation: u32,
    /// The list that the entry is in, or [`NONE`] if it is free.
    list: u32,
    /// Where in that list it is, or the next free entry.
    place: u32,
}

impl<T: Copy> Wheel<T> {
    /// An empty wheel whose time begins at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            origin: now,
            current: 0,
            next_tick: now + TICK,
            has_due: false,
            occupied: [0; LEVELS],
            lists: vec![Vec::new(); DUE + 1],
            entries: Vec::new(),
            free: NONE,
            next: Cell::new(None),
        }
    }

    /// Number of timers that are set.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.entries.iter().filter(|entry| entry.list != NONE).count()
    }

    /// Sets a timer. One that lies in the past fires at the next [`Wheel::expire`].
    pub(crate) fn insert(&mut self, at: Instant, value: T) -> TimerKey {
        let tick = self.tick_after(at);
        let index = self.allocate();
        self.place(Item { tick, value, index });
        TimerKey { index, generation: self.entries[index as usize].generation }
    }

    /// Cancels a timer and returns its value, or `None` if it is not set any more.
    pub(crate) fn cancel(&mut self, key: TimerKey) -> Option<T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation != key.generation || entry.list == NONE {
            return None;
        }
        let (list, place) = (entry.list as usize, entry.place as usize);
        let value = self.remove(list, place);
        self.release(key.index);
        Some(value)
    }

    /// When [`Wheel::expire`] should be called next: never later than the first deadline (rounded up to a tick), and
    /// earlier when timers only move down a level then. `None` if no timer is set.
    #[inline]
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if let Some(next) = self.next.get() {
            return next;
        }
        cold_path();
        let next = self.find_next_deadline();
        self.next.set(Some(next));
        next
    }

    #[inline(never)]
    fn find_next_deadline(&self) -> Option<Instant> {
        let tick = if self.has_due { self.current } else { self.next_slot()?.0 };
        // A deadline that the clock cannot express never comes.
        self.origin.checked_add(Duration::from_millis(tick))
    }

    /// Moves the values of all timers that are due at `now` to the end of `out`, in the order of their ticks. Returns the
    /// whole milliseconds between the beginning of the wheel's time and `now`.
    ///
    /// None fires before its deadline, and none later than the first call at least one tick after it. A `now` before
    /// that of the last call counts as that.
    pub(crate) fn expire(&mut self, now: Instant, out: &mut Vec<T>) -> u64 {
        if self.is_due(now) {
            let tick = self.tick_before(now).max(self.current);
            self.expire_until(tick, out);
            self.next_tick = self.origin.checked_add(Duration::from_millis(tick + 1)).unwrap_or(now);
        }
        self.current
    }

    /// Whether [`Wheel::expire`] would do anything.
    #[inline]
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now >= self.next_tick || self.has_due
    }

    /// The whole milliseconds between the beginning of the wheel's time and the last [`Wheel::expire`].
    #[inline]
    pub(crate) fn clock(&self) -> u64 {
        self.current
    }

    fn expire_until(&mut self, target: u64, out: &mut Vec<T>) {
        self.fire(DUE, out);
        while let Some((tick, level, slot)) = self.next_slot().filter(|(tick, ..)| *tick <= target) {
            self.current = tick;
            let list = level * SLOTS + slot;
            if level == 0 {
                self.fire(list, out);
            } else {
                self.cascade(list);
                self.fire(DUE, out);
            }
        }
        self.current = target;
    }

    /// The slot that comes next: its first tick, its level and its number.
    fn next_slot(&self) -> Option<(u64, usize, usize)> {
        let level = self.occupied.iter().position(|slots| *slots != 0)?;
        let shift = SLOT_BITS * level as u32;
        let now = self.current >> shift;
        // Turned so that the slot after the present one is bit 0. On the lower levels nothing lies behind, so that
        // the turn changes nothing there; the top level is a ring.
        let ahead = self.occupied[level].rotate_right((now as u32).wrapping_add(1) % SLOTS as u32);
        let slot = now + 1 + u64::from(ahead.trailing_zeros());
        Some((slot << shift, level, (slot % SLOTS as u64) as usize))
    }

    /// Puts a timer into the list that its tick asks for.
    #[inline]
    fn place(&mut self, item: Item<T>) {
        let tick = item.tick;
        let list = if tick <= self.current {
            DUE
        } else if tick >> TOP_SHIFT == self.current >> TOP_SHIFT {
            // The highest bit in which the tick differs from now names the level.
            let level = ((tick ^ self.current).ilog2() / SLOT_BITS) as usize;
            level * SLOTS + (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS
        } else {
            // Up to 63 slots ahead; the one after that is the present one again. A timer beyond the ring waits in
            // the farthest slot and is placed anew when that cascades.
            let farthest = (self.current >> TOP_SHIFT) + SLOTS as u64 - 1;
            TOP * SLOTS + (tick >> TOP_SHIFT).min(farthest) as usize % SLOTS
        };
        let items = &mut self.lists[list];
        let entry = &mut self.entries[item.index as usize];
        (entry.list, entry.place) = (list as u32, items.len() as u32);
        items.push(item);
        if items.len() == 1 {
            self.set_occupied(list, true);
        }
    }

    /// Places every timer of a list anew.
    fn cascade(&mut self, list: usize) {
        let mut items = self.take(list);
        for (number, item) in items.iter().enumerate() {
            self.fetch_entry_of(items.get(number + FETCHED_AHEAD));
            self.place(*item);
        }
        items.clear();
        self.keep(list, items);
    }

    /// Fires every timer of a list.
    fn fire(&mut self, list: usize, out: &mut Vec<T>) {
        let mut items = self.take(list);
        for (number, item) in items.iter().enumerate() {
            self.fetch_entry_of(items.get(number + FETCHED_AHEAD));
            self.release(item.index);
            out.push(item.value);
        }
        items.clear();
        self.keep(list, items);
    }

    /// Has the processor fetch where a timer is noted. Neighbours in a list are anywhere in the slab.
    #[inline]
    fn fetch_entry_of(&self, item: Option<&Item<T>>) {
        item.and_then(|item| self.entries.get(item.index as usize)).into_iter().for_each(prefetch);
    }

    /// Empties a list.
    fn take(&mut self, list: usize) -> Vec<Item<T>> {
        self.set_occupied(list, false);
        std::mem::take(&mut self.lists[list])
    }

    /// Gives a list that was emptied its room back, unless that is more than a list keeps.
    fn keep(&mut self, list: usize, room: Vec<Item<T>>) {
        if room.capacity() <= KEPT && self.lists[list].is_empty() {
            self.lists[list] = room;
        }
    }

    /// Takes a timer out of its list; the last one there takes its place.
    fn remove(&mut self, list: usize, place: usize) -> T {
        let items = &mut self.lists[list];
        let value = items.swap_remove(place).value;
        if let Some(moved) = items.get(place) {
            self.entries[moved.index as usize].place = place as u32;
        }
        // Not before three quarters are empty, so that each timer that is moved was paid for by others that went.
        if items.capacity() > KEPT && items.len() < items.capacity() / 4 {
            items.shrink_to((items.capacity() / 2).max(KEPT));
        }
        if items.is_empty() {
            self.set_occupied(list, false);
        }
        value
    }

    fn set_occupied(&mut self, list: usize, occupied: bool) {
        self.next.set(None);
        if list == DUE {
            self.has_due = occupied;
            return;
        }
        let bit = 1 << (list % SLOTS);
        if occupied {
            self.occupied[list / SLOTS] |= bit;
        } else {
            self.occupied[list / SLOTS] &= !bit;
        }
    }

    /// An entry that is in no list yet, from the free ones if there are any.
    fn allocate(&mut self) -> u32 {
        if self.free == NONE {
            let index = u32::try_from(self.entries.len()).ok().filter(|index| *index != NONE);
            let index = index.expect("fewer than 2^32 timers fit into memory");
            self.entries.push(Entry { generation: 0, list: NONE, place: NONE });
            return index;
        }
        let index = self.free;
        self.free = self.entries[index as usize].place;
        index
    }

    /// Frees an entry that is in no list any more, and makes its key stale.
    #[inline]
    fn release(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.list = NONE;
        entry.place = std::mem::replace(&mut self.free, index);
    }

    /// The first tick that is not before `at`.
    fn tick_after(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.origin);
        let begun = !since.subsec_nanos().is_multiple_of(1_000_000);
        whole_millis(since).saturating_add(u64::from(begun))
    }

    /// The last tick that is not after `now`.
    fn tick_before(&self, now: Instant) -> u64 {
        whole_millis(now.saturating_duration_since(self.origin))
    }
}

fn whole_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    /// Ticks that the ring of the top level covers.
    const RANGE: u64 = 1 << (TOP_SHIFT + SLOT_BITS);

    fn fired(wheel: &mut Wheel<u32>, now: Instant) -> Vec<u32> {
        let mut out = Vec::new();
        wheel.expire(now, &mut out);
        out
    }

    #[test]
    fn fires_at_its_tick_and_not_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.insert(start + 10 * MS, 1);
        assert_eq!(wheel.next_deadline(), Some(start + 10 * MS));
        assert_eq!(fired(&mut wheel, start + 10 * MS - Duration::from_nanos(1)), []);
        assert_eq!(fired(&mut wheel, start + 10 * MS), [1]);
        assert_eq!((wheel.len(), wheel.next_deadline()), (0, None));
    }

    #[test]
    fn a_deadline_within_a_tick_waits_for_its_end() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.insert(start + Duration::from_nanos(1), 1);
        assert_eq!(fired(&mut wheel, start), []);
        assert_eq!(wheel.next_deadline(), Some(start + MS));
        assert_eq!(fired(&mut wheel, start + MS), [1]);
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(fired(&mut wheel, start + 100 * MS), []);
        wheel.insert(start + 50 * MS, 1);
        wheel.insert(start, 2);
        assert!(wheel.next_deadline().unwrap() <= start + 100 * MS);
        assert_eq!(fired(&mut wheel, start + 100 * MS), [1, 2]);
    }

    #[test]
    fn a_stale_key_cancels_nothing() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let first = wheel.insert(start + MS, 1);
        assert_eq!(wheel.cancel(first), Some(1));
        assert_eq!(wheel.cancel(first), None);
        let second = wheel.insert(start + MS, 2);
        assert_eq!(first.index, second.index, "the entry is used again");
        assert_eq!(wheel.cancel(first), None);
        assert_eq!(fired(&mut wheel, start + MS), [2]);
        assert_eq!(wheel.cancel(second), None);
    }

    #[test]
    fn fires_in_order_across_levels() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let ticks = [1, 63, 64, 65, 4095, 4096, 4097, 262_143, 262_144, 16_777_216, 16_777_217, RANGE - 1];
        for tick in ticks.iter().rev() {
            wheel.insert(start + MS * *tick as u32, *tick as u32);
        }
        assert_eq!(fired(&mut wheel, start + MS * RANGE as u32), ticks.map(|tick| tick as u32));
    }

    #[test]
    fn what_lies_beyond_the_range_parks_and_fires_in_time() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let far = start + Duration::from_millis(5 * RANGE + 12_345);
        wheel.insert(far, 1);
        let mut steps = 0;
        while let Some(deadline) = wheel.next_deadline() {
            assert!(deadline <= far);
            let out = fired(&mut wheel, deadline);
            assert_eq!(out.is_empty(), deadline < far);
            steps += 1;
        }
        assert!(steps < 20, "a parked timer is looked at rarely, not {steps} times");
    }

    #[test]
    fn a_near_timer_across_the_end_of_the_ring_is_not_late() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let before_end = start + Duration::from_millis(RANGE - 1);
        assert_eq!(fired(&mut wheel, before_end), []);
        wheel.insert(before_end + 5 * MS, 1);
        assert_eq!(fired(&mut wheel, before_end + 4 * MS), []);
        assert_eq!(fired(&mut wheel, before_end + 5 * MS), [1]);
    }

    #[test]
    fn a_clock_that_goes_back_changes_nothing() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        assert_eq!(fired(&mut wheel, start + 70 * MS), []);
        wheel.insert(start + 75 * MS, 1);
        assert_eq!(fired(&mut wheel, start + 3 * MS), []);
        assert_eq!(fired(&mut wheel, start + 75 * MS), [1]);
    }

    #[test]
    fn a_steady_state_allocates_nothing() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let mut out = Vec::with_capacity(64);
        let mut capacity = 0;
        for turn in 0..10_000_u32 {
            let now = start + turn * MS;
            let cancelled = wheel.insert(now + 30_000 * MS, turn);
            wheel.insert(now + 40 * MS, turn);
            wheel.cancel(cancelled);
            wheel.expire(now, &mut out);
            out.clear();
            if turn == 100 {
                capacity = wheel.entries.capacity();
            }
        }
        assert_eq!((wheel.entries.capacity(), out.capacity()), (capacity, 64));
    }

    /// Nanoseconds each of `count` steps took.
    fn report(what: &str, count: u32, since: Instant) {
        println!("{what}: {} ns each", since.elapsed().as_nanos() / u128::from(count));
    }

    /// A million timers at one time, of which most are cancelled or refreshed, as those of connections are.
    ///
    /// What each step costs is measured by `cargo bench -p ringport --bench timers`.
    #[test]
    fn a_million_timers_fire_once_each_and_in_order() {
        const COUNT: u32 = 1_000_000;
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        // Spread over 17 minutes, in an order that has nothing to do with the deadlines.
        let deadline = |number: u32| start + MS * (1 + number.wrapping_mul(2_654_435_761) % 1_000_000);
        let clock = Instant::now();
        let mut keys: Vec<_> = (0..COUNT).map(|number| wheel.insert(deadline(number), number)).collect();
        report("insert", COUNT, clock);
        let clock = Instant::now();
        for number in (0..COUNT).step_by(2) {
            let key = &mut keys[number as usize];
            assert_eq!(wheel.cancel(*key), Some(number));
            *key = wheel.insert(deadline(number) + 1000 * MS, number);
        }
        report("refresh", COUNT / 2, clock);
        let clock = Instant::now();
        for number in (0..COUNT).step_by(4) {
            assert_eq!(wheel.cancel(keys[number as usize]), Some(number));
        }
        report("cancel", COUNT / 4, clock);
        let (mut now, mut out, mut last) = (start, Vec::new(), start);
        let clock = Instant::now();
        while let Some(next) = wheel.next_deadline() {
            now = now.max(next);
            let from = out.len();
            wheel.expire(now, &mut out);
            for number in &out[from..] {
                let at = deadline(*number) + 1000 * MS * u32::from(number.is_multiple_of(2));
                assert!(at <= now && at > last, "{number} did not fire at its tick");
            }
            if out.len() > from {
                last = now;
            }
        }
        report("expire", COUNT / 4 * 3, clock);
        out.sort_unstable();
        assert!(out.into_iter().eq((0..COUNT).filter(|number| !number.is_multiple_of(4))), "each fires once");
        assert_eq!(wheel.len(), 0);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert { after: u64 },
        Cancel { pick: usize },
        Advance { by: u64 },
        AdvanceToDeadline,
    }

    /// Spans in nanoseconds that reach every level, and beyond the last one.
    fn span() -> impl Strategy<Value = u64> {
        let millis = prop_oneof![
            4 => 0..70_u64,
            3 => 0..5_000_u64,
            2 => 0..300_000_u64,
            2 => 0..RANGE,
            1 => RANGE..4 * RANGE,
        ];
        (millis, prop_oneof![Just(0), 0..1_000_000_u64]).prop_map(|(millis, nanos)| millis * 1_000_000 + nanos)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => span().prop_map(|after| Step::Insert { after }),
            1 => any::<usize>().prop_map(|pick| Step::Cancel { pick }),
            2 => span().prop_map(|by| Step::Advance { by }),
            2 => Just(Step::AdvanceToDeadline),
        ]
    }

    /// What is set, in the order in which it is to fire; the order within one tick is free.
    type Model = BTreeMap<(u64, u32), (Instant, TimerKey)>;

    /// Expires both, and compares.
    fn check_expire(wheel: &mut Wheel<u32>, model: &mut Model, now: Instant) -> Result<(), TestCaseError> {
        let out = fired(wheel, now);
        let mut ticks = Vec::new();
        for value in &out {
            let (key, (at, _)) = model.iter().find(|(key, _)| key.1 == *value).expect("what fires was set");
            prop_assert!(*at <= now, "{value} fired early");
            ticks.push(key.0);
            let key = *key;
            model.remove(&key);
        }
        prop_assert!(ticks.is_sorted(), "out of order: {ticks:?}");
        let late = model.values().find(|(at, _)| *at + MS <= now);
        prop_assert!(late.is_none(), "late: {late:?}");
        Ok(())
    }

    proptest! {
        #[test]
        fn behaves_as_a_sorted_map(steps in proptest::collection::vec(step(), 1..200)) {
            let start = Instant::now();
            let (mut wheel, mut model) = (Wheel::new(start), Model::new());
            let (mut now, mut dead) = (start, Vec::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Insert { after } => {
                        let (at, value) = (now + Duration::from_nanos(after), number as u32);
                        let tick = wheel.tick_after(at).max(wheel.current);
                        let key = wheel.insert(at, value);
                        model.insert((tick, value), (at, key));
                    }
                    Step::Cancel { pick } => {
                        if let Some(key) = model.keys().nth(pick % model.len().max(1)).copied() {
                            let (_, timer) = model.remove(&key).unwrap();
                            prop_assert_eq!(wheel.cancel(timer), Some(key.1));
                            dead.push(timer);
                        }
                    }
                    Step::Advance { by } => {
                        now += Duration::from_nanos(by);
                        check_expire(&mut wheel, &mut model, now)?;
                    }
                    Step::AdvanceToDeadline => {
                        if let Some(deadline) = wheel.next_deadline() {
                            now = now.max(deadline);
                            check_expire(&mut wheel, &mut model, now)?;
                        }
                    }
                }
                for timer in &dead {
                    prop_assert_eq!(wheel.cancel(*timer), None);
                }
                prop_assert_eq!(wheel.len(), model.len());
                let first = model.keys().next().map(|(tick, _)| start + Duration::from_millis(*tick));
                prop_assert_eq!(wheel.next_deadline().is_some(), first.is_some());
                prop_assert!(wheel.next_deadline() <= first, "the wheel would be woken late");
            }
        }
    }
}
