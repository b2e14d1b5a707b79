//! The room of the completion queue.

/// Most entries of a completion queue (`RIO_MAX_CQ_SIZE`).
const CAPACITY_MAX: u32 = 0x0800_0000;

/// How much of a completion queue is promised to request queues.
///
/// Each request queue is charged with its depth from before it is created until its socket is closed and its last
/// completion was dequeued. The sum never exceeds the capacity, so that the queue cannot overflow.
#[derive(Debug)]
pub(crate) struct Budget {
    capacity: u32,
    charged: u32,
    /// The capacity at the beginning, below which it never shrinks.
    least: u32,
}

impl Budget {
    /// Nothing charged, room for `capacity` entries.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { capacity, charged: 0, least: capacity }
    }

    /// Entries that the completion queue has room for.
    pub(crate) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The capacity that is needed before a request queue of this depth can be charged, doubled where it has to grow.
    /// `None` when a completion queue cannot be that large.
    pub(crate) fn needed(&self, depth: u32) -> Option<u32> {
        let sum = self.charged.checked_add(depth).filter(|sum| *sum <= CAPACITY_MAX)?;
        let mut capacity = self.capacity;
        while capacity < sum {
            capacity = capacity.saturating_mul(2).min(CAPACITY_MAX);
        }
        Some(capacity)
    }

    /// Half of the capacity, when a quarter would do.
    pub(crate) fn spare(&self) -> Option<u32> {
        let half = self.capacity / 2;
        (half >= self.least && self.charged <= half / 2).then_some(half)
    }

    /// The queue was resized.
    pub(crate) fn resized(&mut self, capacity: u32) {
        self.capacity = capacity;
        self.check();
    }

    /// Charges a request queue of this depth.
    pub(crate) fn charge(&mut self, depth: u32) {
        self.charged += depth;
        self.check();
    }

    /// Takes the charge back.
    pub(crate) fn release(&mut self, depth: u32) {
        assert!(depth <= self.charged, "more is released than was charged");
        self.charged -= depth;
    }

    /// What must always hold. Not only in tests: beyond this the system loses completions without a word.
    fn check(&self) {
        assert!(self.charged <= self.capacity, "request queues exceed the completion queue");
    }
}
