//! Sockets before an engine owns them, and the options that are set on them.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

pub use socket2::SockAddr;
use socket2::{Domain, Protocol, Type};

use crate::engine::{platform, sim};
use crate::options::{KeepAlive, SocketOption};

/// Connections that the kernel queues before they are accepted, unless [`ListenOptions::backlog`] says otherwise. The
/// system caps it (`net.core.somaxconn` on Linux, 4,096 by default).
pub const BACKLOG: u32 = 4096;

/// A socket that belongs to no engine yet. It may move to another thread, and is closed when dropped.
#[derive(Debug)]
pub struct Socket(pub(crate) Repr);

#[derive(Debug)]
pub(crate) enum Repr {
    System(socket2::Socket),
    Simulated(sim::Endpoint),
}

/// Options of a listening socket.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ListenOptions {
    /// Queue length, see listen(2).
    pub backlog: u32,
    /// Lets several sockets share the address (`SO_REUSEPORT`, see socket(7)). Off by default: a second bind fails.
    pub reuse_port: bool,
    /// Takes data with the SYN of clients that have been here before (TCP Fast Open, RFC 7413), from at most so many at once
    /// that have not been accepted. Off if `None`, and where the system or its `net.ipv4.tcp_fastopen` does not offer it.
    /// A SYN can come twice, and then so does its data: only for protocols whose first request may.
    pub fast_open: Option<u32>,
    /// Options that accepted sockets inherit.
    pub socket: SocketOptions,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self { backlog: BACKLOG, reuse_port: false, fast_open: None, socket: SocketOptions::default() }
    }
}

/// Options of a connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SocketOptions {
    /// Sends small segments at once (`TCP_NODELAY`, see tcp(7)). On by default. Ignored for Unix sockets.
    pub no_delay: bool,
    /// Bytes of the kernel's receive buffer (`SO_RCVBUF`); the system's default if `None`.
    pub receive_buffer: Option<u32>,
    /// Bytes of the kernel's send buffer (`SO_SNDBUF`); the system's default if `None`.
    pub send_buffer: Option<u32>,
    /// Probes a silent peer after this time (`SO_KEEPALIVE`, `TCP_KEEPIDLE`); off if `None`.
    pub keep_alive: Option<Duration>,
    /// Connects from this address (bind(2)); port 0 leaves the port to the system. `None`, the default, leaves all of it to
    /// the system. Only for connecting over IP; the family must be that of the destination.
    pub bind: Option<SocketAddr>,
    /// Sends the first data with the SYN to servers that have been connected to before (TCP Fast Open, RFC 7413); to others,
    /// and where the system does not offer it, connects as ever. Off by default; for connects only.
    ///
    /// Such a connection counts as connected at once, and its SYN leaves with the first data: it is for protocols in which
    /// the client speaks first. That it was refused is learned from its close.
    pub fast_open: bool,
    /// Further options, set in this order before the socket connects or listens.
    pub more: Vec<SocketOption>,
}

impl Default for SocketOptions {
    fn default() -> Self {
        Self {
            no_delay: true,
            receive_buffer: None,
            send_buffer: None,
            keep_alive: None,
            bind: None,
            fast_open: false,
            more: Vec::new(),
        }
    }
}

impl SocketOptions {
    /// Sets what differs from the system's defaults.
    pub(crate) fn apply(&self, socket: &socket2::Socket, tcp: bool) -> io::Result<()> {
        self.options(tcp).try_for_each(|option| option.set(socket))
    }

    /// What differs from the system's defaults, in the order in which it is set.
    pub(crate) fn options(&self, tcp: bool) -> impl Iterator<Item = SocketOption> {
        let keep_alive = self.keep_alive.map(|after| SocketOption::KeepAlive(Some(KeepAlive::after(after))));
        let no_delay = (tcp && self.no_delay).then_some(SocketOption::NoDelay(true));
        let receive_buffer = self.receive_buffer.map(SocketOption::ReceiveBuffer);
        let send_buffer = self.send_buffer.map(SocketOption::SendBuffer);
        let usual = [no_delay, receive_buffer, send_buffer, keep_alive.filter(|_| tcp)];
        usual.into_iter().flatten().chain(self.more.iter().cloned())
    }

    /// A new socket for connecting to `to`.
    pub(crate) fn open(&self, to: &SockAddr) -> io::Result<socket2::Socket> {
        let (socket, tcp) = stream_socket(to)?;
        self.apply(&socket, tcp)?;
        if let (true, Some(local)) = (tcp, self.bind) {
            socket.bind(&local.into())?;
        }
        if tcp && self.fast_open {
            // Where it is not offered, the connect is an ordinary one.
            let _ = platform::fast_open_connect(&socket);
        }
        Ok(socket)
    }
}

/// Options of a datagram socket.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct UdpOptions {
    /// Lets several sockets share the address (`SO_REUSEPORT`, see socket(7)): on Linux the kernel then chooses one for
    /// each peer by a hash. Off by default: a second bind fails.
    pub reuse_port: bool,
    /// Bytes of the kernel's receive buffer (`SO_RCVBUF`); the system's default if `None`. What does not fit is lost.
    pub receive_buffer: Option<u32>,
    /// Bytes of the kernel's send buffer (`SO_SNDBUF`); the system's default if `None`.
    pub send_buffer: Option<u32>,
    /// Further options, set in this order before the socket is bound. Those of TCP are refused.
    pub more: Vec<SocketOption>,
}

impl UdpOptions {
    /// What differs from the system's defaults, in the order in which it is set.
    pub(crate) fn options(&self) -> impl Iterator<Item = SocketOption> {
        let receive_buffer = self.receive_buffer.map(SocketOption::ReceiveBuffer);
        let send_buffer = self.send_buffer.map(SocketOption::SendBuffer);
        receive_buffer.into_iter().chain(send_buffer).chain(self.more.iter().cloned())
    }
}

impl Socket {
    /// Binds a datagram socket to `address`, on the system or, if the configuration names one, in a simulated network.
    ///
    /// The bind is exclusive unless `options` ask to share.
    ///
    /// # Errors
    ///
    /// `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and what else bind(2) answers; `Unsupported` for an option that
    /// only connections have, and what setsockopt(2) answers.
    pub fn bind_udp(address: SocketAddr, options: &UdpOptions, network: Option<&sim::Network>) -> io::Result<Self> {
        options.more.iter().try_for_each(|option| option.name().check_datagrams())?;
        if let Some(network) = network {
            return Ok(Self(Repr::Simulated(network.bind_udp(address, options)?)));
        }
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if options.reuse_port {
            // Not SO_REUSEADDR: for datagrams it lets a second socket take the address over, see socket(7).
            platform::share_datagram_address(&socket)?;
        } else {
            platform::keep_datagram_address(&socket)?;
        }
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        options.options().try_for_each(|option| option.set(&socket))?;
        socket.bind(&address.into())?;
        Ok(Self(Repr::System(socket)))
    }

    /// Binds to `address` and listens, on the system or, if the configuration names one, in a simulated network.
    ///
    /// The bind is exclusive unless `options` ask to share: another listener on the address makes it fail. (`SO_REUSEADDR`
    /// is set on Unix, where it only skips the TIME_WAIT state, see socket(7).)
    ///
    /// # Errors
    ///
    /// `AddrInUse`, `AddrNotAvailable`, `PermissionDenied` and what else bind(2) and listen(2) answer.
    pub fn listen(address: &SockAddr, options: &ListenOptions, network: Option<&sim::Network>) -> io::Result<Self> {
        if let Some(network) = network {
            return Ok(Self(Repr::Simulated(network.listen(address, options)?)));
        }
        let (socket, tcp) = stream_socket(address)?;
        if tcp {
            platform::share_address(&socket, options.reuse_port)?;
            if address.is_ipv6() {
                // An IPv6 listener serves IPv6 alone, on every system: see ipv6(7).
                socket.set_only_v6(true)?;
            }
        }
        options.socket.apply(&socket, tcp)?;
        socket.bind(address)?;
        if let (true, Some(waiting)) = (tcp, options.fast_open) {
            // Where it is not offered, every client connects in the ordinary way.
            let _ = platform::fast_open_listen(&socket, waiting);
        }
        socket.listen(i32::try_from(options.backlog).unwrap_or(i32::MAX))?;
        Ok(Self(Repr::System(socket)))
    }

    /// The address that the socket is bound to; with port 0 asked for, the real one.
    ///
    /// # Errors
    ///
    /// What getsockname(2) answers.
    pub fn local_addr(&self) -> io::Result<SockAddr> {
        match &self.0 {
            Repr::System(socket) => socket.local_addr(),
            Repr::Simulated(endpoint) => Ok(endpoint.local_addr()),
        }
    }

    /// The address of the peer.
    ///
    /// # Errors
    ///
    /// `NotConnected` when the peer has already gone; see getpeername(2).
    pub fn peer_addr(&self) -> io::Result<SockAddr> {
        match &self.0 {
            Repr::System(socket) => socket.peer_addr(),
            Repr::Simulated(endpoint) => endpoint.peer_addr(),
        }
    }

    /// The system's socket, for an engine that works on the system.
    pub(crate) fn into_system(self) -> io::Result<socket2::Socket> {
        match self.0 {
            Repr::System(socket) => Ok(socket),
            Repr::Simulated(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "a simulated socket works only in its simulator"))
            }
        }
    }
}

impl From<socket2::Socket> for Socket {
    fn from(socket: socket2::Socket) -> Self {
        Self(Repr::System(socket))
    }
}

impl From<std::net::UdpSocket> for Socket {
    fn from(socket: std::net::UdpSocket) -> Self {
        Self(Repr::System(socket.into()))
    }
}

impl From<std::net::TcpStream> for Socket {
    fn from(stream: std::net::TcpStream) -> Self {
        Self(Repr::System(stream.into()))
    }
}

impl From<std::net::TcpListener> for Socket {
    fn from(listener: std::net::TcpListener) -> Self {
        Self(Repr::System(listener.into()))
    }
}

/// A socket address for `address`.
#[must_use]
pub fn ip(address: SocketAddr) -> SockAddr {
    address.into()
}

/// A socket address for a Unix socket file.
///
/// # Errors
///
/// If the path is too long (108 bytes on Linux, see unix(7)).
pub fn unix(path: &Path) -> io::Result<SockAddr> {
    SockAddr::unix(path)
}

/// The file of a Unix socket's address. `None` for other addresses, for an unnamed socket, and on Windows.
#[must_use]
pub fn path(address: &SockAddr) -> Option<&Path> {
    platform::socket_path(address)
}

/// Whether sockets of this address speak TCP.
pub(crate) fn is_tcp(address: &SockAddr) -> bool {
    address.is_ipv4() || address.is_ipv6()
}

fn stream_socket(address: &SockAddr) -> io::Result<(socket2::Socket, bool)> {
    let tcp = is_tcp(address);
    let socket =
        socket2::Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, tcp.then_some(Protocol::TCP))?;
    Ok((socket, tcp))
}

/// Whether listening sockets that share a port share its connections evenly enough to have one for each worker. True on
/// Linux, where the kernel hashes over them (socket(7)); elsewhere the last or first gets them all.
pub const REUSE_PORT_SPREADS: bool = platform::REUSE_PORT_SPREADS;

/// Whether somebody listens on a Unix socket file: `None` if there is no such socket, or it cannot be told.
#[must_use]
pub fn is_listening(address: &SockAddr) -> Option<bool> {
    if !platform::is_socket_file(path(address)?) {
        return None; // connect(2) answers "refused" for an ordinary file, too.
    }
    let socket = socket2::Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None).ok()?;
    match socket.connect(address) {
        Ok(()) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Some(false),
        Err(_) => None,
    }
}
