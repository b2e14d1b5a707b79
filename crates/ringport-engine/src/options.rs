//! Socket options: typed for the usual ones, raw bytes for the rest, and what TCP knows of a connection.
//!
//! The same [`SocketOption`] is used before a connection exists ([`SocketOptions::more`](crate::SocketOptions::more))
//! and on a live one ([`Engine::set_option`](crate::Engine::set_option)). What a system does not have it refuses with
//! `Unsupported`; nothing is ignored in silence.

use std::io;
use std::time::Duration;

use crate::engine::system_options;

/// One option of a socket with its value. See socket(7), tcp(7) and ip(7) for what each does.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SocketOption {
    /// Sends small segments at once (`TCP_NODELAY`).
    NoDelay(bool),
    /// Probes a silent peer (`SO_KEEPALIVE`, `TCP_KEEPIDLE`, `TCP_KEEPINTVL`, `TCP_KEEPCNT`); off if `None`.
    KeepAlive(Option<KeepAlive>),
    /// Bytes of the kernel's receive buffer (`SO_RCVBUF`). Linux doubles what is set and reads the double back.
    ReceiveBuffer(u32),
    /// Bytes of the kernel's send buffer (`SO_SNDBUF`). Linux doubles what is set and reads the double back.
    SendBuffer(u32),
    /// What closing does with unsent bytes (`SO_LINGER`): `None` sends them, zero discards them with a reset. Any other
    /// time is refused, because the close would block the worker; the graceful close of a session lingers instead.
    Linger(Option<Duration>),
    /// Type of service of the packets (`IP_TOS`, `IPV6_TCLASS`).
    TypeOfService(u8),
    /// Longest time that sent bytes may stay unacknowledged before the connection fails (`TCP_USER_TIMEOUT`, Linux);
    /// the system's rule if `None`.
    UserTimeout(Option<Duration>),
    /// Acknowledges at once (`TCP_QUICKACK`, Linux). The kernel takes it as a hint and leaves the mode by itself.
    QuickAck(bool),
    /// Name of the congestion control (`TCP_CONGESTION`, Linux).
    CongestionControl(String),
    /// Largest segment in bytes (`TCP_MAXSEG`, Linux). Read on a live connection it is the one in use.
    MaxSegment(u32),
    /// The processor that receives for the socket (`SO_INCOMING_CPU`, Linux).
    IncomingCpu(u32),
    /// Mark of the packets for routing and firewalls (`SO_MARK`, Linux; needs `CAP_NET_ADMIN`).
    Mark(u32),
    /// Any option by its numbers, for instance those of libc.
    Raw {
        /// Protocol level, such as `SOL_SOCKET`.
        level: i32,
        /// Number of the option.
        name: i32,
        /// The bytes that setsockopt(2) takes, and getsockopt(2) returned.
        value: Vec<u8>,
    },
}

/// Which option is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is described at the SocketOption of the same name")]
pub enum OptionName {
    NoDelay,
    KeepAlive,
    ReceiveBuffer,
    SendBuffer,
    Linger,
    TypeOfService,
    UserTimeout,
    QuickAck,
    CongestionControl,
    MaxSegment,
    IncomingCpu,
    Mark,
    Raw { level: i32, name: i32 },
}

/// When a silent peer is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeepAlive {
    /// Silence before the first probe, in whole seconds.
    pub after: Duration,
    /// Time between probes, in whole seconds; the system's if `None`.
    pub interval: Option<Duration>,
    /// Unanswered probes after which the connection fails; the system's number if `None`.
    pub probes: Option<u32>,
}

impl KeepAlive {
    /// Probes after this much silence, otherwise as the system does.
    #[must_use]
    pub fn after(after: Duration) -> Self {
        Self { after, interval: None, probes: None }
    }

    /// Sets the time between probes.
    #[must_use]
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// Sets the number of unanswered probes.
    #[must_use]
    pub fn probes(mut self, probes: u32) -> Self {
        self.probes = Some(probes);
        self
    }

    fn to_system(&self) -> socket2::TcpKeepalive {
        let mut params = socket2::TcpKeepalive::new().with_time(self.after);
        if let Some(interval) = self.interval {
            params = params.with_interval(interval);
        }
        match self.probes {
            Some(probes) => system_options::with_probes(params, probes),
            None => params,
        }
    }
}

/// What TCP knows of a connection at one moment (`TCP_INFO`, see tcp(7)). What an older kernel does not tell is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub round_trip: Duration,
    /// How much it varies.
    pub round_trip_variation: Duration,
    /// Shortest round-trip time seen lately.
    pub round_trip_min: Duration,
    /// Congestion window, in segments.
    pub congestion_window: u32,
    /// Largest segment that is sent, in bytes.
    pub send_segment: u32,
    /// Segments that are sent and not acknowledged.
    pub unacked_segments: u32,
    /// Segments that are thought lost now.
    pub lost_segments: u32,
    /// Segments sent again since the connection began.
    pub retransmits: u32,
    /// Bytes that the peer has acknowledged.
    pub acknowledged_bytes: u64,
    /// Bytes that the peer has sent.
    pub received_bytes: u64,
}

impl SocketOption {
    /// Which option this is.
    #[must_use]
    pub fn name(&self) -> OptionName {
        match self {
            Self::NoDelay(_) => OptionName::NoDelay,
            Self::KeepAlive(_) => OptionName::KeepAlive,
            Self::ReceiveBuffer(_) => OptionName::ReceiveBuffer,
            Self::SendBuffer(_) => OptionName::SendBuffer,
            Self::Linger(_) => OptionName::Linger,
            Self::TypeOfService(_) => OptionName::TypeOfService,
            Self::UserTimeout(_) => OptionName::UserTimeout,
            Self::QuickAck(_) => OptionName::QuickAck,
            Self::CongestionControl(_) => OptionName::CongestionControl,
            Self::MaxSegment(_) => OptionName::MaxSegment,
            Self::IncomingCpu(_) => OptionName::IncomingCpu,
            Self::Mark(_) => OptionName::Mark,
            Self::Raw { level, name, .. } => OptionName::Raw { level: *level, name: *name },
        }
    }

    /// Checks what no system may be asked for.
    pub(crate) fn check(&self) -> io::Result<()> {
        match self {
            Self::Linger(Some(time)) if !time.is_zero() => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a lingering close(2) would block the worker; close gracefully instead",
            )),
            _ => Ok(()),
        }
    }

    /// Sets it on a socket of the system.
    pub(crate) fn set(&self, socket: &socket2::Socket) -> io::Result<()> {
        self.check()?;
        match self {
            Self::NoDelay(on) => socket.set_tcp_nodelay(*on),
            Self::KeepAlive(None) => socket.set_keepalive(false),
            Self::KeepAlive(Some(keep_alive)) => socket.set_tcp_keepalive(&keep_alive.to_system()),
            Self::ReceiveBuffer(bytes) => socket.set_recv_buffer_size(*bytes as usize),
            Self::SendBuffer(bytes) => socket.set_send_buffer_size(*bytes as usize),
            Self::Linger(time) => socket.set_linger(*time),
            other => system_options::set(socket, other),
        }
    }

    /// Reads an option of a socket of the system.
    pub(crate) fn read(socket: &socket2::Socket, name: OptionName) -> io::Result<Self> {
        let bytes = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Ok(match name {
            OptionName::NoDelay => Self::NoDelay(socket.tcp_nodelay()?),
            OptionName::KeepAlive if !socket.keepalive()? => Self::KeepAlive(None),
            OptionName::KeepAlive => Self::KeepAlive(Some(system_options::keep_alive(socket)?)),
            OptionName::ReceiveBuffer => Self::ReceiveBuffer(bytes(socket.recv_buffer_size()?)),
            OptionName::SendBuffer => Self::SendBuffer(bytes(socket.send_buffer_size()?)),
            OptionName::Linger => Self::Linger(socket.linger()?),
            other => return system_options::read(socket, other),
        })
    }
}

impl OptionName {
    /// Refuses what only connections have: the options of TCP, and those that come into force when a connection closes.
    pub(crate) fn check_datagrams(self) -> io::Result<()> {
        match self {
            Self::NoDelay
            | Self::KeepAlive
            | Self::Linger
            | Self::UserTimeout
            | Self::QuickAck
            | Self::CongestionControl
            | Self::MaxSegment => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "an option of connections, not of datagrams"))
            }
            Self::ReceiveBuffer
            | Self::SendBuffer
            | Self::TypeOfService
            | Self::IncomingCpu
            | Self::Mark
            | Self::Raw { .. } => Ok(()),
        }
    }

    /// The value that a simulated socket has where nothing was set. `None` for a raw one, which no simulator knows.
    pub(crate) fn simulated(self) -> Option<SocketOption> {
        Some(match self {
            Self::NoDelay => SocketOption::NoDelay(false),
            Self::KeepAlive => SocketOption::KeepAlive(None),
            Self::ReceiveBuffer => SocketOption::ReceiveBuffer(64 * 1024),
            Self::SendBuffer => SocketOption::SendBuffer(64 * 1024),
            Self::Linger => SocketOption::Linger(None),
            Self::TypeOfService => SocketOption::TypeOfService(0),
            Self::UserTimeout => SocketOption::UserTimeout(None),
            Self::QuickAck => SocketOption::QuickAck(true),
            Self::CongestionControl => SocketOption::CongestionControl("reno".to_owned()),
            Self::MaxSegment => SocketOption::MaxSegment(1460),
            Self::IncomingCpu => SocketOption::IncomingCpu(0),
            Self::Mark => SocketOption::Mark(0),
            Self::Raw { .. } => return None,
        })
    }
}

/// The system's socket of a connection, for its options and nothing else: reading from it or writing to it would
/// overtake the engine.
#[derive(Debug)]
pub struct SocketRef<'a>(pub(crate) socket2::SockRef<'a>);
