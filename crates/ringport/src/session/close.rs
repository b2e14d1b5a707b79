//! Why a connection ended, and what became of its bytes.

use std::fmt;
use std::io;

/// The one reason of a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed first, and everything was delivered.
    PeerClosed,
    /// The peer reset the connection, or it broke.
    Reset,
    /// It could not be connected.
    ConnectFailed,
    /// Connecting took longer than the connect timeout. [`Handler::connect_failed`](crate::Handler::connect_failed) gets
    /// it as an error of the kind `TimedOut`.
    ConnectTimeout,
    /// No byte moved for the idle timeout.
    Idle,
    /// No byte was received for the read timeout.
    ReadTimeout,
    /// The kernel took none of what was queued for the write timeout: the peer does not read.
    WriteStall,
    /// Less was received than the minimum receive rate asks for.
    TooSlow,
    /// The peer answered none of several heartbeats.
    Heartbeat,
    /// It lasted as long as it may.
    Lifetime,
    /// A graceful close waited for the peer's FIN in vain.
    LingerTimeout,
    /// More was queued than the send limit allows, or the memory limit of the server.
    Backpressure,
    /// A frame of the peer's was longer than the frame limit.
    FrameLimit,
    /// The handler found the peer in breach of the protocol.
    Protocol,
    /// The handler closed it.
    Local,
    /// The server shut down.
    Shutdown,
    /// The handler panicked in a callback of this connection.
    Panic,
    /// The system failed in some other way.
    System,
}

impl CloseReason {
    /// A short name for logs and counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PeerClosed => "peer-closed",
            Self::Reset => "reset",
            Self::ConnectFailed => "connect-failed",
            Self::ConnectTimeout => "connect-timeout",
            Self::Idle => "idle",
            Self::ReadTimeout => "read-timeout",
            Self::WriteStall => "write-stall",
            Self::TooSlow => "too-slow",
            Self::Heartbeat => "heartbeat",
            Self::Lifetime => "lifetime",
            Self::LingerTimeout => "linger-timeout",
            Self::Backpressure => "backpressure",
            Self::FrameLimit => "frame-limit",
            Self::Protocol => "protocol",
            Self::Local => "local",
            Self::Shutdown => "shutdown",
            Self::Panic => "panic",
            Self::System => "system",
        }
    }

    /// What the system's error means for a connection that nobody here asked to close.
    pub(crate) fn of_error(error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::ConnectionAborted
            | Kind::TimedOut
            | Kind::NotConnected => Self::Reset,
            _ => Self::System,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The last word on a connection: the ledger of what was sent.
///
/// What the peer's application got is always a byte-exact prefix of `accepted`. After a close in order
/// ([`CloseReason::Local`], [`CloseReason::PeerClosed`], [`CloseReason::Shutdown`]) without `error` it got all of it.
#[derive(Debug)]
#[non_exhaustive]
pub struct CloseReport {
    /// Why it ended.
    pub reason: CloseReason,
    /// The system's error, if one ended it.
    pub error: Option<io::Error>,
    /// Bytes that `send` took, without those that [`OverLimit`](super::OverLimit) dropped since.
    pub accepted: u64,
    /// Bytes of those that the kernel took.
    pub handed_to_kernel: u64,
    /// Bytes of `accepted` that the peer's system had not acknowledged at the end. `None` where the system cannot say.
    pub unacked: Option<u64>,
    /// Bytes that were received.
    pub received: u64,
    /// Messages that [`OverLimit::DropOldest`](super::OverLimit::DropOldest) and
    /// [`OverLimit::DropNewest`](super::OverLimit::DropNewest) dropped.
    pub dropped_messages: u64,
    /// Bytes of those.
    pub dropped_bytes: u64,
}
