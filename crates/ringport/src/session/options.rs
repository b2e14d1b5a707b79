//! Limits and times of a connection. Everything is bounded by default.

use std::time::Duration;

/// What happens to a send beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverLimit {
    /// The send is refused and the data handed back; the connection goes on.
    Refuse,
    /// The send is taken, and reading of the connection rests until the low mark. What was received already still comes,
    /// so that a handler that only answers never loses anything; up to 4 MiB are taken beyond the limit for that. What
    /// would exceed even this is refused, as by [`OverLimit::Refuse`].
    Wait,
    /// The oldest messages that have not started to be sent are dropped until there is room; without enough of those, the
    /// new one is. A message is what one `send` or `write` took: it arrives whole or not at all. One that is larger than the
    /// limit is refused. For telemetry and other data that ages.
    DropOldest,
    /// The new message is dropped.
    DropNewest,
    /// The connection is aborted with [`CloseReason::Backpressure`](super::CloseReason::Backpressure).
    Disconnect,
}

impl OverLimit {
    /// Whether messages may be dropped.
    #[inline]
    pub(crate) fn drops(self) -> bool {
        matches!(self, Self::DropOldest | Self::DropNewest)
    }
}

/// Options of the connections of one listener or client.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionOptions {
    /// Most bytes that may wait to be sent on a connection: 10 MiB.
    pub send_limit: u64,
    /// What happens beyond it: [`OverLimit::Disconnect`].
    pub over_limit: OverLimit,
    /// Above this many waiting bytes the connection counts as full: 256 KiB.
    pub high_mark: u64,
    /// Whether reading rests while it is full, so that an echo to a peer that does not read stays small. On for servers,
    /// off for what [`Client::connect`](crate::Client::connect) opens: a client that sends much before it reads would
    /// wait for a server that waits for it.
    pub rest_when_full: bool,
    /// At or below this many waiting bytes it is no longer full, and `Handler::writable` is called: 64 KiB.
    pub low_mark: u64,
    /// Most bytes of a partial frame that [`Connection::keep`](crate::Connection::keep) takes: 1 MiB. More closes the
    /// connection with [`CloseReason::FrameLimit`](super::CloseReason::FrameLimit).
    pub frame_limit: usize,
    /// Closes a connection on which no byte moved for this long, also one that never sent any. Off if `None`: the
    /// default of the library is 5 minutes.
    pub idle_timeout: Option<Duration>,
    /// How long a graceful close waits for the peer's FIN: 5 s.
    pub linger: Duration,
}

impl Default for ConnectionOptions {
    fn default() -> Self {
        Self {
            send_limit: 10 << 20,
            over_limit: OverLimit::Disconnect,
            high_mark: 256 << 10,
            rest_when_full: true,
            low_mark: 64 << 10,
            frame_limit: 1 << 20,
            idle_timeout: Some(Duration::from_secs(300)),
            linger: Duration::from_secs(5),
        }
    }
}

impl ConnectionOptions {
    /// Sets the send limit, in bytes, and what happens beyond it.
    #[must_use]
    pub fn send_limit(mut self, bytes: u64, over_limit: OverLimit) -> Self {
        self.send_limit = bytes;
        self.over_limit = over_limit;
        self
    }

    /// Sets the marks, in bytes: above `high` the connection is full, at `low` it is no longer.
    #[must_use]
    pub fn marks(mut self, low: u64, high: u64) -> Self {
        self.low_mark = low.min(high);
        self.high_mark = high;
        self
    }

    /// Sets whether reading rests while the connection is full.
    #[must_use]
    pub fn rest_when_full(mut self, rest: bool) -> Self {
        self.rest_when_full = rest;
        self
    }

    /// Sets the most bytes of a partial frame.
    #[must_use]
    pub fn frame_limit(mut self, bytes: usize) -> Self {
        self.frame_limit = bytes;
        self
    }

    /// Sets or removes the idle timeout.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets how long a graceful close waits for the peer's FIN.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }
}
