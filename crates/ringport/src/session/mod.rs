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
mod options;

pub use close::{CloseReason, CloseReport};
pub use options::{ConnectionOptions, OverLimit};

use crate::worker::{TimerId, TimerKey};
use ringport_engine::{Chunk, ConnId, Pool, SendQueue};

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
}

impl SendOutcome {
    /// Whether the data was taken.
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
    /// Bytes that `send` took (A in the ledger).
    pub(crate) accepted: u64,
    /// Bytes that the kernel took (K in the ledger).
    pub(crate) handed: u64,
    pub(crate) received: u64,
    /// Milliseconds of the worker's clock at the last byte in either direction.
    pub(crate) active_at: u32,
    pub(crate) phase: Phase,
    pub(crate) fin: Fin,
    /// The handler has seen it.
    pub(crate) opened: bool,
    /// A send is in flight.
    pub(crate) sending: bool,
    /// The engine was told to receive.
    pub(crate) receiving: bool,
    pub(crate) paused_by_user: bool,
    /// Above the high mark, and not yet down to the low mark again.
    pub(crate) full: bool,
    pub(crate) peer_closed: bool,
    /// In the worker's list of sessions to settle.
    pub(crate) dirty: bool,
    /// The session's own timer: idle while it is open, linger while it closes.
    pub(crate) timer: Option<TimerKey>,
    /// Timers that the user set, for cancelling them at the end. Some may be gone already.
    #[expect(clippy::box_collection, reason = "most sessions have none, and every session has this field")]
    pub(crate) timers: Option<Box<Vec<TimerId>>>,
    /// What the user asked for and the worker has not yet carried out.
    pub(crate) ending: Option<Ending>,
    pub(crate) reason: Option<CloseReason>,
}

impl Session {
    pub(crate) fn new(conn: ConnId, service: u32, state: u32, phase: Phase, active_at: u32) -> Self {
        Self {
            conn,
            service,
            state,
            outbox: SendQueue::new(),
            accepted: 0,
            handed: 0,
            received: 0,
            active_at,
            phase,
            fin: Fin::No,
            opened: false,
            sending: false,
            receiving: false,
            paused_by_user: false,
            full: false,
            peer_closed: false,
            dirty: false,
            timer: None,
            timers: None,
            ending: None,
            reason: None,
        }
    }

    /// Bytes accepted that the kernel has not taken yet.
    #[inline]
    pub(crate) fn queued(&self) -> u64 {
        self.accepted - self.handed
    }

    #[inline]
    fn takes(&self, bytes: usize, options: &ConnectionOptions) -> Result<(), Refusal> {
        if self.phase != Phase::Open || self.ending.is_some() || self.fin != Fin::No {
            return Err(Refusal::Closing);
        }
        if self.queued() + bytes as u64 > options.send_limit { Err(Refusal::Limit) } else { Ok(()) }
    }

    /// Queues a piece, or refuses it as `options` say.
    #[inline]
    pub(crate) fn send(&mut self, data: Chunk, options: &ConnectionOptions) -> SendOutcome {
        match self.takes(data.len(), options) {
            Ok(()) => {
                self.accepted += data.len() as u64;
                self.outbox.push(data);
                self.check_high_mark(options);
                SendOutcome::Queued
            }
            Err(why) => self.refuse(data, why, options),
        }
    }

    /// Queues a copy of `data`.
    #[inline]
    pub(crate) fn write(&mut self, data: &[u8], pool: &Pool, options: &ConnectionOptions) -> SendOutcome {
        match self.takes(data.len(), options) {
            Ok(()) => {
                self.accepted += data.len() as u64;
                self.outbox.write(data, pool);
                self.check_high_mark(options);
                SendOutcome::Queued
            }
            Err(why) => self.refuse(data.to_vec().into(), why, options),
        }
    }

    #[cold]
    fn refuse(&mut self, data: Chunk, why: Refusal, options: &ConnectionOptions) -> SendOutcome {
        if why == Refusal::Limit && options.over_limit == OverLimit::Disconnect {
            self.end(Ending::Abort, CloseReason::Backpressure);
        }
        SendOutcome::Refused { data, why }
    }

    #[inline]
    fn check_high_mark(&mut self, options: &ConnectionOptions) {
        if self.queued() > options.high_mark {
            self.full = true;
        }
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
    use super::*;

    /// An idle connection costs this, the engine's record, a timer and the user's state: 400 bytes in all are allowed.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Option<Session>>() <= 144, "{}", size_of::<Option<Session>>());
    }
}
