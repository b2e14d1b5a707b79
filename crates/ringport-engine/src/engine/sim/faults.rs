//! What goes wrong in a simulated network, and the generator that decides when.

use std::time::Duration;

use super::Personality;

/// Splitmix64: small, fast, and the same on every machine.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number of `0..bound`; 0 if `bound` is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// Whether something that happens `permille` times in a thousand happens now.
    pub(super) fn chance(&mut self, permille: u16) -> bool {
        self.below(1000) < u64::from(permille)
    }
}

/// Spreads every bit of `word` over the whole result.
pub(super) fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// How often each thing goes wrong, in permille: 0 is never, 1,000 always.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Faults {
    /// A receive, a send or a segment moves fewer bytes than it could.
    pub partial: u16,
    /// A segment or a completion is late, by up to [`Faults::delay_max`].
    pub delay: u16,
    /// What happens at one moment happens in another order, across sockets.
    pub reorder: u16,
    /// A send is completed later instead of at once.
    pub queued_send: u16,
    /// A receive that was under way when receiving was paused still delivers.
    pub late_pause: u16,
    /// A receive finds no buffer although there is one.
    pub nobufs: u16,
    /// The network resets a connection when a segment passes.
    pub reset: u16,
    /// An accept fails for want of descriptors.
    pub emfile: u16,
    /// A connection is reset before it is accepted.
    pub accept_reset: u16,
    /// A connect is refused although somebody listens.
    pub connect_refused: u16,
    /// The kernel behaves in one of the ways that are peculiar to its [`Personality`].
    pub odd: u16,
    /// Which kernel interface the network behaves like. It stays what it was at first when faults are replaced.
    pub personality: Personality,
    /// A datagram is lost on its way. (What a full buffer loses comes on top.)
    pub datagram_loss: u16,
    /// A datagram is received without its end.
    pub datagram_truncation: u16,
    /// Longest delay.
    pub delay_max: Duration,
    /// Largest kernel buffer of one direction of a connection, in bytes. Each is drawn from an eighth of this to all.
    pub buffer_max: usize,
}

impl Faults {
    /// A perfect network: nothing fails, nothing is late, kernel buffers have 64 KiB.
    #[must_use]
    pub fn none() -> Self {
        Self {
            partial: 0,
            delay: 0,
            reorder: 0,
            queued_send: 0,
            late_pause: 0,
            nobufs: 0,
            reset: 0,
            emfile: 0,
            accept_reset: 0,
            connect_refused: 0,
            odd: 0,
            personality: Personality::Readiness,
            datagram_loss: 0,
            datagram_truncation: 0,
            delay_max: Duration::ZERO,
            buffer_max: 64 * 1024,
        }
    }

    /// Rates that follow from `seed`, never and always among them.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut rng = Rng::new(mix(seed ^ 0x00FA_017E_D5EE_D000));
        let mut rate = |most: u64| match rng.below(8) {
            0..=2 => 0,
            3 => 1000,
            _ => 1 + rng.below(most) as u16,
        };
        let mut faults = Self {
            partial: rate(500),
            delay: rate(500),
            reorder: rate(999),
            queued_send: rate(999),
            late_pause: rate(999),
            nobufs: rate(300),
            reset: rate(30),
            emfile: rate(500),
            accept_reset: rate(300),
            connect_refused: rate(300),
            odd: rate(500),
            personality: Personality::of_seed(seed),
            datagram_loss: 0,
            datagram_truncation: 0,
            delay_max: Duration::from_micros(10 << rng.below(10)),
            buffer_max: 1 << rng.below(19),
        };
        // Drawn last, so that the other rates of a seed do not depend on these.
        let mut rate = |most: u64| if rng.chance(500) { 0 } else { rng.below(most + 1) as u16 };
        (faults.datagram_loss, faults.datagram_truncation) = (rate(500), rate(300));
        faults
    }

    /// Without what ends or refuses connections or harms datagrams. What is left only makes them slow and their pieces odd.
    #[must_use]
    pub fn harmless(self) -> Self {
        Self {
            reset: 0,
            emfile: 0,
            accept_reset: 0,
            connect_refused: 0,
            datagram_loss: 0,
            datagram_truncation: 0,
            ..self
        }
    }
}
