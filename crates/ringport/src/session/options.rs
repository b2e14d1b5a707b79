//! Limits and times of a connection. Everything is bounded by default.

use std::time::Duration;

use super::Rate;

/// What happens to a send beyond the send limit of its connection, or beyond the memory limit of the whole
/// [`Server`](crate::Server::memory_limit).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverLimit {
    /// The send is refused and the data handed back; the connection goes on.
    Refuse,
    /// The send is taken, and reading of the connection rests until the low mark. What was received already still comes,
    /// so that an echo never loses anything: what lies in received buffers is taken back beyond each limit, which costs no
    /// memory that the pool does not have anyway. Of all else up to 1 MiB is taken beyond each limit. What would exceed even
    /// this is refused, as by [`OverLimit::Refuse`].
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

/// The least that is to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MinimumRate {
    /// Bytes a second, on average over a window.
    pub bytes_per_second: u64,
    /// How long a window is. The first begins when the connection opens, each other one after the one before.
    pub window: Duration,
}

impl MinimumRate {
    /// At least `bytes_per_second` in each window.
    #[must_use]
    pub fn new(bytes_per_second: u64, window: Duration) -> Self {
        Self { bytes_per_second, window: window.max(Duration::from_millis(1)) }
    }
}

/// When a silent peer is asked whether it lives, and when it is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Heartbeat {
    /// Time without a received byte after which a heartbeat is sent, and between heartbeats.
    pub interval: Duration,
    /// So many heartbeats may stay without any answer; one interval after the last the connection is closed.
    pub misses: u8,
}

impl Heartbeat {
    /// A heartbeat after each `interval` of silence, and the end one interval after `misses` of them.
    #[must_use]
    pub fn new(interval: Duration, misses: u8) -> Self {
        Self { interval: interval.max(Duration::from_millis(1)), misses }
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
    /// Closes a connection on which no byte moved for this long, also one that never sent any: 5 minutes. Off if `None`.
    ///
    /// This and all deadlines are kept to the millisecond and may be up to 24 days long. Whatever was received before one
    /// is due is delivered first. Nothing queued: the connection is closed; something queued: it is reset.
    pub idle_timeout: Option<Duration>,
    /// Closes a connection on which no byte was received for this long while reading was on: off.
    pub read_timeout: Option<Duration>,
    /// Closes a connection of whose queue the kernel took nothing for this long: 1 minute.
    pub write_timeout: Option<Duration>,
    /// Gives up connecting after this long: 30 s. With several addresses, all of them together.
    pub connect_timeout: Option<Duration>,
    /// Closes a connection that is this old, whatever it does: off.
    pub lifetime: Option<Duration>,
    /// Closes a connection on which less is received, window by window, while reading is on: off. It is for peers that are
    /// to send without a break, such as uploads; one that waits for an answer is too slow as well.
    pub receive_rate_min: Option<MinimumRate>,
    /// Most bytes received a second and at once: off. Beyond, reading rests; nothing is dropped, and what had been received
    /// already still comes.
    pub receive_rate_max: Option<Rate>,
    /// Most messages received a second and at once, by the handler's own count
    /// ([`Connection::count_messages`](crate::Connection::count_messages)): off. Beyond, reading rests as well.
    pub message_rate_max: Option<Rate>,
    /// Has [`Handler::heartbeat`](crate::Handler::heartbeat) called on a connection on which nothing is received, and
    /// closes it when that does not help: off.
    pub heartbeat: Option<Heartbeat>,
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
            read_timeout: None,
            write_timeout: Some(Duration::from_secs(60)),
            connect_timeout: Some(Duration::from_secs(30)),
            lifetime: None,
            receive_rate_min: None,
            receive_rate_max: None,
            message_rate_max: None,
            heartbeat: None,
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

    /// Sets or removes the longest time without a received byte.
    #[must_use]
    pub fn read_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.read_timeout = timeout;
        self
    }

    /// Sets or removes the longest time for which a queue may not move.
    #[must_use]
    pub fn write_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets or removes the longest time for connecting. `None` leaves it to the system.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets or removes the longest life of a connection.
    #[must_use]
    pub fn lifetime(mut self, lifetime: Option<Duration>) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets or removes the minimum receive rate.
    #[must_use]
    pub fn receive_rate_min(mut self, rate: Option<MinimumRate>) -> Self {
        self.receive_rate_min = rate;
        self
    }

    /// Sets or removes the limit on received bytes a second.
    #[must_use]
    pub fn receive_rate_max(mut self, rate: Option<Rate>) -> Self {
        self.receive_rate_max = rate;
        self
    }

    /// Sets or removes the limit on received messages a second.
    #[must_use]
    pub fn message_rate_max(mut self, rate: Option<Rate>) -> Self {
        self.message_rate_max = rate;
        self
    }

    /// Sets or removes the heartbeat.
    #[must_use]
    pub fn heartbeat(mut self, heartbeat: Option<Heartbeat>) -> Self {
        self.heartbeat = heartbeat;
        self
    }

    /// Sets how long a graceful close waits for the peer's FIN.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }
}
