//! What is peculiar to each kernel interface, as far as those above an engine can notice it.
//!
//! A network has one [`Personality`], and [`Faults::odd`](super::Faults::odd) says how often its kernel behaves in one of
//! the ways that are peculiar to it. Each way is an [`Oddity`], and how often each happened is counted: a simulation in
//! which a thing never happens shows nothing about it.

use super::faults::mix;

/// The kernel interface that a simulated network behaves like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Personality {
    /// io_uring: receives that go on by themselves and end at any time, memory that is let go late, completions that
    /// stay invisible for a while, closing that cancels nothing.
    Uring,
    /// I/O completion ports: success at once with a packet that comes later, packets after a cancel.
    Iocp,
    /// Registered I/O: everything passes through slices, few completions are seen at a time, sends never end at once.
    Rio,
    /// epoll and kqueue: wake-ups for nothing, and edges that are told once.
    Readiness,
}

impl Personality {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Uring, Self::Iocp, Self::Rio, Self::Readiness];

    /// The one of a seed: seeds in a row have them in turn, so that four seeds see all.
    #[must_use]
    pub fn of_seed(seed: u64) -> Self {
        Self::ALL[(seed % 4) as usize]
    }
}

/// Something that only some kernels do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Oddity {
    /// `Uring`: a multishot receive ends although there is more, and must be armed again.
    MultishotEnds,
    /// `Uring`: the kernel still reads the memory of a send that is complete, and says later that it no longer does.
    LateNotice,
    /// `Uring`: the completion queue overflows; the surplus shows up in a later turn.
    Overflow,
    /// `Uring`: a receive completes after the connection was closed and eats what it finds.
    ReceiveAfterClose,
    /// `Uring` and `Iocp`: a completion arrives for a connection that is gone.
    StaleCompletion,
    /// `Iocp`: the kernel takes everything at once, and its packet comes later.
    LatePacket,
    /// `Iocp`: the packets of cancelled operations delay the end of a connection.
    LateCancel,
    /// `Rio`: a send or a receive moves no more than a slice.
    Sliced,
    /// `Rio`: no more completions are taken out of the queue at a time.
    ShortDequeue,
    /// `Readiness`: a wait returns for nothing.
    SpuriousReturn,
    /// `Readiness`: a connection is said to be ready and is not.
    SpuriousReady,
}

impl Oddity {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::MultishotEnds,
        Self::LateNotice,
        Self::Overflow,
        Self::ReceiveAfterClose,
        Self::StaleCompletion,
        Self::LatePacket,
        Self::LateCancel,
        Self::Sliced,
        Self::ShortDequeue,
        Self::SpuriousReturn,
        Self::SpuriousReady,
    ];

    /// Whether a kernel of this kind does it.
    #[must_use]
    pub fn belongs_to(self, personality: Personality) -> bool {
        match self {
            Self::MultishotEnds | Self::LateNotice | Self::Overflow | Self::ReceiveAfterClose => {
                personality == Personality::Uring
            }
            Self::StaleCompletion => matches!(personality, Personality::Uring | Personality::Iocp),
            Self::LatePacket | Self::LateCancel => personality == Personality::Iocp,
            Self::Sliced | Self::ShortDequeue => personality == Personality::Rio,
            Self::SpuriousReturn | Self::SpuriousReady => personality == Personality::Readiness,
        }
    }
}

/// How often each [`Oddity`] happened.
pub(super) type Oddities = [u64; Oddity::ALL.len()];

impl super::State {
    /// Whether the kernel behaves in this odd way now.
    pub(super) fn is_odd(&mut self, oddity: Oddity) -> bool {
        let happens = oddity.belongs_to(self.faults.personality) && self.rng.chance(self.faults.odd);
        if happens {
            self.oddities[oddity as usize] += 1;
            self.note_down(mix(oddity as u64));
        }
        happens
    }

    /// Whether readiness is told once, when it begins.
    pub(super) fn tells_edges(&self) -> bool {
        self.faults.personality == Personality::Readiness
    }

    /// How many completions a turn sees.
    pub(super) fn visible_notes(&mut self) -> usize {
        if self.is_odd(Oddity::Overflow) || self.is_odd(Oddity::ShortDequeue) {
            1 + self.rng.below(4) as usize
        } else {
            usize::MAX
        }
    }

    /// How many bytes one operation can move.
    pub(super) fn slice_bytes(&mut self) -> usize {
        if self.is_odd(Oddity::Sliced) { 1 + self.rng.below(2048) as usize } else { usize::MAX }
    }
}
