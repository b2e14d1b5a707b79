//! A session: one connection as its worker sees it.
//!
//! A session is a state machine that records intents and never calls the engine. After each callback the worker reads
//! off what has changed and carries it out (`worker/settle.rs`).
//!
//! ```text
//!            close()                    outbox empty              peer's FIN
//!   Open ───────────────► Flushing ───────────────────► Lingering ───────────► Ended
//!     │  abort(), error, limit, deadline   FIN sent; what arrives is discarded    ▲
//!     └─────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! A half-close (`finish()`) is no phase: the session stays open for what the peer still sends, and [`Fin`] says how far
//! the sending direction is.

mod close;
mod deadlines;
mod keep;
mod options;
mod outbox;
mod rate;

pub use close::{CloseReason, CloseReport};
pub(crate) use deadlines::Verdict;
pub use options::{ConnectionOptions, Heartbeat, MinimumRate, OverLimit};
pub(crate) use rate::Bucket;
pub use rate::Rate;

use std::collections::VecDeque;

use ringport_engine::{Buf, Chunk, ConnId, SendQueue};

use crate::worker::{Account, Permit, TimerId, TimerKey};

/// How far a session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A connect is under way; the handler knows nothing of it yet.
    Connecting,
    /// The handler receives and sends.
    Open,
    /// Closing in order: what is queued goes out first.
    Flushing,
    /// Our FIN is out; waiting for the peer's, discarding what still comes.
    Lingering,
    /// Given to the engine to close; only its last event is awaited.
    Ended,
}

/// Why reading rests, apart from a full queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pauses(u8);

impl Pauses {
    /// The handler asked for it.
    pub(crate) const USER: Self = Self(1);
    /// The server is above its memory limit.
    pub(crate) const MEMORY: Self = Self(2);
    /// A rate limit is used up.
    pub(crate) const RATE: Self = Self(4);

    /// Whether there is any reason.
    #[inline]
    pub(crate) fn any(self) -> bool {
        self.0 != 0
    }

    /// Adds a reason; `false` if it was one already.
    pub(crate) fn add(&mut self, reason: Self) -> bool {
        let new = self.0 & reason.0 == 0;
        self.0 |= reason.0;
        new
    }

    /// Takes a reason away.
    pub(crate) fn remove(&mut self, reason: Self) {
        self.0 &= !reason.0;
    }
}

/// How far the sending direction of an open session is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fin {
    /// The handler may send.
    No,
    /// The handler has finished: a FIN follows what is queued.
    Asked,
    /// The FIN is with the engine.
    Sent,
}

/// Why a send was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The send limit of the connection is reached.
    Limit,
    /// The memory limit of the server or client is reached. When there may be room again,
    /// [`Handler::writable`](crate::Handler::writable) is called.
    ProcessLimit,
    /// The connection is closing, or was finished.
    Closing,
}

/// What became of a send.
#[derive(Debug)]
#[non_exhaustive]
pub enum SendOutcome {
    /// It is queued and belongs to the ledger now.
    Queued,
    /// It was not taken; here it is back.
    Refused {
        /// The data.
        data: Chunk,
        /// Why.
        why: Refusal,
    },
    /// It was dropped, and counted, by [`OverLimit::DropNewest`], or by [`OverLimit::DropOldest`] because all that waits
    /// has started already.
    Dropped,
}

impl SendOutcome {
    /// Whether the data was taken and will be sent, unless a policy drops it later.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        matches!(self, Self::Queued)
    }
}

/// What the user asked to happen to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Flush, FIN, wait for the peer's.
    Graceful,
    /// FIN at once, without waiting: for a peer that has been silent for long.
    Plain,
    /// RST at once.
    Abort,
}

/// One connection. Kept small: an idle one costs its size, and nothing else in user space.
pub(crate) struct Session {
    pub(crate) conn: ConnId,
    /// Which listener or client it belongs to.
    pub(crate) service: u32,
    /// Where the user's state lies in that service.
    pub(crate) state: u32,
    pub(crate) outbox: SendQueue,
    /// Bytes that `send` took (A in the ledger), without those that a policy dropped since.
    pub(crate) accepted: u64,
    /// Bytes that the kernel took (K in the ledger).
    pub(crate) handed: u64,
    pub(crate) received: u64,
    /// When it began to connect, then when it was established. This and the next two in milliseconds of the worker's clock.
    pub(crate) opened_at: u32,
    /// When the last byte was received.
    pub(crate) received_at: u32,
    /// When the kernel last took a byte, or was first offered those that it does not take.
    pub(crate) sent_at: u32,
    pub(crate) phase: Phase,
    pub(crate) fin: Fin,
    /// The handler has seen it.
    pub(crate) opened: bool,
    /// A send is in flight.
    pub(crate) sending: bool,
    /// The engine was told to receive.
    pub(crate) receiving: bool,
    pub(crate) pauses: Pauses,
    /// Above the high mark, and not yet down to the low mark again.
    pub(crate) full: bool,
    /// A rate of received bytes is limited.
    pub(crate) metered: bool,
    /// The handler was told that it is full.
    pub(crate) told_full: bool,
    /// Above the limit under [`OverLimit::Wait`]: reading rests until the low mark, whatever the options say.
    pub(crate) over: bool,
    pub(crate) peer_closed: bool,
    /// A partial frame is kept for the next bytes.
    pub(crate) keeps: bool,
    /// In the worker's list of sessions to settle.
    pub(crate) dirty: bool,
    /// The session's own timer: its deadlines while it connects or is open, linger while it closes.
    pub(crate) timer: Option<TimerKey>,
    /// What most sessions never need.
    pub(crate) rare: Option<Box<Rare>>,
    /// What the user asked for and the worker has not yet carried out.
    pub(crate) ending: Option<Ending>,
    pub(crate) reason: Option<CloseReason>,
}

/// The parts of a session that most do without, in memory of their own.
#[derive(Default)]
pub(crate) struct Rare {
    /// Timers that the user set, for cancelling them at the end. Some may be gone already.
    pub(crate) timers: Vec<TimerId>,
    /// Messages that may still be dropped, under a policy that does.
    pub(crate) pending: VecDeque<Chunk>,
    pub(crate) pending_bytes: u64,
    pub(crate) dropped_messages: u64,
    pub(crate) dropped_bytes: u64,
    /// Flushes under way, in order.
    pub(crate) flushes: VecDeque<Flush>,
    /// When the window of the minimum receive rate began, and what had been received by then.
    window_at: u32,
    window_received: u64,
    /// Heartbeats sent since the last received byte, and when the last was.
    heartbeats: u8,
    beat_at: u32,
    /// What may still be received, in bytes and in messages.
    pub(crate) bytes_left: Bucket,
    pub(crate) messages_left: Bucket,
    /// The race of several addresses that it is in while it connects.
    pub(crate) race: Option<u32>,
    /// The place that it takes of those of its address.
    pub(crate) permit: Option<Permit>,
    /// A partial frame.
    kept: Option<Buf>,
    /// Whether a send was refused for want of memory.
    pub(crate) wants_memory: WantsMemory,
}

/// Whether a session is to hear when there is memory again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum WantsMemory {
    #[default]
    No,
    /// A send was just refused.
    Asked,
    /// It is in the worker's list.
    Listed,
}

/// What [`Connection::flush`](crate::Connection::flush) waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush {
    /// Done when the kernel took this many bytes (K in the ledger).
    handed: u64,
    token: u64,
}

impl Rare {
    fn count_dropped(&mut self, bytes: u64, account: &mut Account) {
        self.dropped_messages += 1;
        self.dropped_bytes += bytes;
        account.dropped_messages += 1;
        account.dropped_bytes += bytes;
    }
}

impl Session {
    pub(crate) fn new(conn: ConnId, service: u32, state: u32, phase: Phase, clock: u32) -> Self {
        Self {
            conn,
            service,
            state,
            outbox: SendQueue::new(),
            accepted: 0,
            handed: 0,
            received: 0,
            opened_at: clock,
            received_at: clock,
            sent_at: clock,
            phase,
            fin: Fin::No,
            opened: false,
            sending: false,
            receiving: false,
            pauses: Pauses::default(),
            full: false,
            metered: false,
            told_full: false,
            over: false,
            peer_closed: false,
            keeps: false,
            dirty: false,
            timer: None,
            rare: None,
            ending: None,
            reason: None,
        }
    }

    /// Bytes accepted that the kernel has not taken yet.
    #[inline]
    pub(crate) fn queued(&self) -> u64 {
        self.accepted - self.handed
    }

    /// Whether there is nothing to be done for it after its sends: it is open, receives, has room and waits for nothing.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        let ending = self.phase != Phase::Open || self.ending.is_some() || self.fin == Fin::Asked;
        !ending && self.receiving && !self.full && !self.pauses.any() && self.rare.is_none()
    }

    /// What most sessions never need, made now if this one has none yet.
    pub(crate) fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Bytes charged to the worker's account.
    pub(crate) fn charged(&self) -> u64 {
        self.queued() + self.kept() as u64
    }

    /// Bytes that are queued and that the engine has not seen yet.
    pub(crate) fn unseen(&self) -> u64 {
        self.outbox.bytes() + self.rare.as_ref().map_or(0, |rare| rare.pending_bytes)
    }

    /// Asks for a FIN behind what is queued, while receiving goes on.
    pub(crate) fn finish(&mut self) {
        if self.fin == Fin::No {
            self.fin = Fin::Asked;
        }
    }

    /// Asks for an end. A graceful close that is under way can only be cut short; what cuts it short is the reason.
    pub(crate) fn end(&mut self, how: Ending, reason: CloseReason) {
        if self.phase == Phase::Ended || self.ending == Some(Ending::Abort) {
            return;
        }
        let closing = self.ending.is_some() || self.phase != Phase::Open;
        if how == Ending::Graceful && closing {
            return;
        }
        self.ending = Some(how);
        self.reason = Some(reason);
    }
}

#[cfg(test)]
mod tests {
    use ringport_engine::engine::sim::SimEngine;
    use ringport_engine::{Engine, EngineConfig, PoolConfig, SocketOptions, socket};

    use super::*;

    /// An account without much of a limit.
    pub(super) fn account() -> Account {
        Account::new(crate::worker::Budget::new(1 << 30, 1))
    }

    /// An open session with an id of a connection that goes nowhere.
    pub(super) fn session() -> Session {
        let mut engine = SimEngine::open(&EngineConfig::default(), ringport_engine::Pool::new(PoolConfig::default()))
            .expect("the simulator opens");
        let to = socket::ip(([127, 0, 0, 1], 1).into());
        let conn = engine.connect(&to, &SocketOptions::default()).expect("the simulator connects");
        Session::new(conn, 0, 0, Phase::Open, 0)
    }

    /// An idle connection costs this, the engine's record, a timer and the user's state: 400 bytes in all are allowed.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Option<Session>>() <= 144, "{}", size_of::<Option<Session>>());
    }
}
