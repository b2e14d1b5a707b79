//! What both engines of Windows share for datagrams: the two queues of a socket, and the calls of Winsock.
//!
//! ```text
//! send_to ─► Mailbox::outgoing ── take ─► a call, or a request ─► sent, failed or cancelled
//! a receive that has ended ── deliver ─► Mailbox::incoming ─► Event::Datagram
//! ```
//!
//! **Every receive has room for the largest datagram,** whatever [`EngineConfig::datagram_bytes`] says; what is larger than
//! that is cut here. So the system never has to cut one. It would say so by WSAEMSGSIZE, an error that may or may not have a
//! packet: "any other error code indicates that no completion indication will occur" says the page on WSARecvFrom, but the
//! status behind that number is a warning, and those do have one.
//!
//! **Peers that cannot be reached are not reported.** By default an answer of ICMP to some datagram that was sent ends the
//! next receive with WSAECONNRESET, without saying whose answer it is. That is switched off (`SIO_UDP_CONNRESET`,
//! `SIO_UDP_NETRESET`). Should it come all the same, it is a failure of nobody in particular, and the socket goes on.
//!
//! Not used: segments of one send or one receive (`UDP_SEND_MSG_SIZE`, `UDP_RECV_MAX_COALESCED_SIZE`).

use std::collections::VecDeque;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock::{
    AF_INET, AF_INET6, SIO_UDP_CONNRESET, SIO_UDP_NETRESET, SOCKADDR_IN, SOCKADDR_IN6, SOCKADDR_STORAGE, WSABUF,
    WSAECONNREFUSED, WSAECONNRESET, WSAEINVAL, WSAEMSGSIZE, WSAENETRESET, WSAIoctl, WSARecvFrom, WSASendTo,
};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::core::BOOL;

use super::contract::{DATAGRAMS_QUEUED_MAX, EngineConfig, EngineStats, Event, SendTo};
use super::winsock::{self, Started};
use crate::buffer::{Buf, Chunk, Pool, PoolConfig};
use crate::id::{Table, UdpId};
use crate::options::{OptionName, SocketOption, SocketRef};

#[cfg(test)]
#[path = "datagram_windows_stage.rs"]
pub(crate) mod stage;

/// Room of one receive: the largest datagram (see RFC 768), and so much that slots are not a multiple of a page apart, when
/// they would all share the same few lines of the cache.
pub(crate) const SLOT_BYTES: u32 = 65_536 + 64;
/// Failures of one socket that wait to be reported; more are only counted.
const FAILURES_MAX: usize = 64;
/// What a datagram counts at least in the budget of a turn: a small one has its share of a call, too.
pub(crate) const BYTES_MIN: usize = 256;
/// Calls in a row that fail for somebody else's sake; then the next turn goes on.
pub(crate) const RETRIES_MAX: u32 = 16;
/// When a socket is tried again on which no receive could be started.
const STALL: Duration = Duration::from_millis(10);

/// The buffers for datagrams.
pub(crate) fn pool(config: &EngineConfig) -> Pool {
    Pool::new(PoolConfig::default().small_slots(config.datagram_slots).large_slots(2).slot_bytes(SLOT_BYTES, 64))
}

/// A datagram socket of an engine, as far as [`Outlets`] looks at it.
pub(crate) trait Outlet {
    /// `None` once it is closed, until the last event is taken.
    fn socket(&self) -> Option<&socket2::Socket>;
    /// Given up by its owner.
    fn is_closing(&self) -> bool;
    /// Whether there is an event to deliver.
    fn has_news(&self) -> bool;
    /// The lists that it is in.
    fn listed(&mut self) -> &mut Listed;
}

/// Whether a socket is in the list of those that go on next turn, and of those to be tried again.
#[derive(Default)]
pub(crate) struct Listed {
    queued: bool,
    stalled: bool,
}

impl Listed {
    /// Whether it is left alone for a while.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }
}

/// The datagram sockets of an engine, which of them have something to deliver, and which of them are left alone for a while.
pub(crate) struct Outlets<O> {
    pub(crate) table: Table<Box<O>>,
    /// Those that go on next turn, and how many of them are left to serve in this one.
    ready: VecDeque<UdpId>,
    ready_this_turn: usize,
    stalled: Vec<UdpId>,
    stall_end: Option<Instant>,
}

impl<O: Outlet> Outlets<O> {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(), ready: VecDeque::new(), ready_this_turn: 0, stalled: Vec::new(), stall_end: None }
    }

    /// A socket that has not been given up.
    #[inline]
    pub(crate) fn open(&mut self, id: UdpId) -> Option<&mut O> {
        self.table.get_mut(id).map(|outlet| &mut **outlet).filter(|outlet| !outlet.is_closing())
    }

    /// The system's socket of one that has not been given up.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none.
    pub(crate) fn socket(&self, id: UdpId) -> io::Result<SocketRef<'_>> {
        let outlet = self.table.get(id).filter(|outlet| !outlet.is_closing()).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketRef(outlet.socket().ok_or(io::ErrorKind::NotFound)?.into()))
    }

    /// Has a socket go on next turn.
    pub(crate) fn enqueue(&mut self, id: UdpId) {
        if let Some(outlet) = self.open(id)
            && !std::mem::replace(&mut outlet.listed().queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// The same if there is an event to deliver.
    pub(crate) fn enqueue_news(&mut self, id: UdpId) {
        if self.open(id).is_some_and(|outlet| outlet.has_news()) {
            self.enqueue(id);
        }
    }

    /// Whether there is something to do without the system's word.
    pub(crate) fn has_leftovers(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn begin_turn(&mut self) {
        self.ready_this_turn = self.ready.len();
    }

    /// The next socket of this turn. It is out of the list then.
    pub(crate) fn next_ready(&mut self) -> Option<UdpId> {
        while self.ready_this_turn > 0 {
            self.ready_this_turn -= 1;
            let id = self.ready.pop_front()?;
            if let Some(outlet) = self.open(id) {
                outlet.listed().queued = false;
                return Some(id);
            }
        }
        None
    }

    /// Makes the one that [`Self::next_ready`] returned the next one again.
    pub(crate) fn put_back(&mut self, id: UdpId) {
        if let Some(outlet) = self.open(id)
            && !std::mem::replace(&mut outlet.listed().queued, true)
        {
            self.ready.push_front(id);
            self.ready_this_turn += 1;
        }
    }

    /// Leaves a socket alone for a while: its receives fail, and would do so again at once.
    #[cold]
    pub(crate) fn stall(&mut self, id: UdpId) {
        if let Some(outlet) = self.open(id)
            && !std::mem::replace(&mut outlet.listed().stalled, true)
        {
            self.stalled.push(id);
            self.stall_end.get_or_insert_with(|| Instant::now() + STALL);
        }
    }

    /// When those are tried again on which no receive could be started.
    pub(crate) fn stall_end(&self) -> Option<Instant> {
        self.stall_end
    }

    /// The sockets that are to be tried again now.
    pub(crate) fn end_stall(&mut self) -> Vec<UdpId> {
        if self.stall_end.is_none_or(|end| end > Instant::now()) {
            return Vec::new();
        }
        self.stall_end = None;
        let ids = std::mem::take(&mut self.stalled);
        for id in &ids {
            if let Some(outlet) = self.open(*id) {
                outlet.listed().stalled = false;
            }
        }
        ids
    }
}

/// What waits for one socket, in both directions.
pub(crate) struct Mailbox {
    outgoing: VecDeque<(SocketAddr, Chunk)>,
    incoming: VecDeque<(SocketAddr, Buf, bool)>,
    failures: VecDeque<(Option<SocketAddr>, io::Error)>,
    /// Datagrams that were taken out to be sent and have no answer yet.
    under_way: usize,
    /// Datagrams that will not be sent because the socket is being closed.
    cancelled: usize,
    /// Datagrams are wanted.
    pub(crate) wanted: bool,
    /// `send_to` was refused, and its caller waits to be told.
    full: bool,
    writable_due: bool,
    /// Largest datagram that is delivered whole.
    bytes_max: usize,
}

impl Mailbox {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Self {
            outgoing: VecDeque::new(),
            incoming: VecDeque::new(),
            failures: VecDeque::new(),
            under_way: 0,
            cancelled: 0,
            wanted: false,
            full: false,
            writable_due: false,
            bytes_max: config.datagram_bytes.clamp(1, 65_535) as usize,
        }
    }

    /// Queues a datagram.
    #[inline]
    pub(crate) fn push(&mut self, to: SocketAddr, data: Chunk, stats: &mut EngineStats) -> SendTo {
        if self.outgoing.len() + self.under_way >= DATAGRAMS_QUEUED_MAX {
            self.full = true;
            return SendTo::Full(data);
        }
        if data.is_alone() {
            self.note_failure(Some(to), WSAEINVAL, stats);
            return SendTo::Taken;
        }
        stats.datagram_bytes_queued += data.len() as u64;
        self.outgoing.push_back((to, data));
        SendTo::Taken
    }

    /// Datagrams that wait to be sent.
    pub(crate) fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// The next datagram to be sent. One of `sent`, `failed` and `cancelled` follows for it, with its size.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<(SocketAddr, Chunk)> {
        let next = self.outgoing.pop_front()?;
        self.under_way += 1;
        Some(next)
    }

    /// Takes one back that was taken out too early.
    pub(crate) fn put_back(&mut self, to: SocketAddr, data: Chunk) {
        self.under_way -= 1;
        self.outgoing.push_front((to, data));
    }

    /// The system took a datagram.
    #[inline]
    pub(crate) fn sent(&mut self, bytes: usize, stats: &mut EngineStats) {
        stats.datagrams_sent += 1;
        stats.datagram_bytes_sent += bytes as u64;
        self.answered(bytes, stats);
    }

    /// A datagram cannot be sent.
    #[cold]
    pub(crate) fn failed(&mut self, to: SocketAddr, bytes: usize, error: i32, stats: &mut EngineStats) {
        self.note_failure(Some(to), error, stats);
        self.answered(bytes, stats);
    }

    /// A datagram was not sent because the socket is being closed.
    pub(crate) fn cancelled(&mut self, bytes: usize, stats: &mut EngineStats) {
        self.cancelled += 1;
        self.answered(bytes, stats);
    }

    #[inline]
    fn answered(&mut self, bytes: usize, stats: &mut EngineStats) {
        self.under_way -= 1;
        stats.datagram_bytes_queued -= bytes as u64;
        if self.full && self.outgoing.len() + self.under_way <= DATAGRAMS_QUEUED_MAX / 2 {
            self.full = false;
            self.writable_due = true;
        }
    }

    /// What waits will never be sent. Says how many datagrams were taken from the caller and not by the system.
    pub(crate) fn give_up(&mut self, stats: &mut EngineStats) -> usize {
        let waiting = std::mem::take(&mut self.outgoing);
        stats.datagram_bytes_queued -= waiting.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
        waiting.len() + self.under_way + self.cancelled
    }

    /// A failure of one peer or, where it is not known of which, of the socket.
    #[cold]
    pub(crate) fn note_failure(&mut self, to: Option<SocketAddr>, error: i32, stats: &mut EngineStats) {
        stats.datagrams_failed += 1;
        if self.failures.len() < FAILURES_MAX {
            // Of a datagram this says what WSAECONNREFUSED says of a connection.
            let error = if error == WSAECONNRESET { WSAECONNREFUSED } else { error };
            self.failures.push_back((to, io::Error::from_raw_os_error(error)));
        }
    }

    /// Cuts what was received to the largest size, and keeps it to be told. `truncated` says that the system cut it.
    #[inline]
    pub(crate) fn deliver(&mut self, from: SocketAddr, mut buf: Buf, truncated: bool, stats: &mut EngineStats) {
        let truncated = truncated || buf.len() > self.bytes_max;
        buf.truncate(self.bytes_max);
        stats.datagrams_received += 1;
        stats.datagrams_truncated += u64::from(truncated);
        self.incoming.push_back((from, buf, truncated));
    }

    /// Datagrams that have not been told.
    pub(crate) fn untold(&self) -> usize {
        self.incoming.len()
    }

    /// Forgets what was received: the socket is being closed.
    pub(crate) fn forget_received(&mut self) {
        self.incoming.clear();
    }

    /// Whether there is an event to deliver. What was received stays while it is not wanted.
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        (self.wanted && !self.incoming.is_empty()) || !self.failures.is_empty() || self.writable_due
    }

    /// The next event that is there already.
    #[inline]
    pub(crate) fn next_event(&mut self, udp: UdpId) -> Option<Event> {
        if self.wanted
            && let Some((from, buf, truncated)) = self.incoming.pop_front()
        {
            return Some(Event::Datagram { udp, from, buf, truncated });
        }
        if let Some((to, error)) = self.failures.pop_front() {
            return Some(Event::DatagramFailed { udp, to, error });
        }
        std::mem::take(&mut self.writable_due).then_some(Event::DatagramsWritable { udp })
    }
}

/// What a receive under way writes to. It does not move until the operation has ended.
pub(crate) struct Landing {
    /// The datagram's memory.
    pub(crate) buf: Option<Buf>,
    from: SOCKADDR_STORAGE,
    from_bytes: i32,
    flags: u32,
}

impl Landing {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self { buf: None, from: SOCKADDR_STORAGE::default(), from_bytes: 0, flags: 0 })
    }

    /// Who sent what was received.
    pub(crate) fn from(&self) -> Option<SocketAddr> {
        address_of(&self.from)
    }
}

/// A datagram that is being sent. It does not move until the operation has ended.
pub(crate) struct Parcel {
    pub(crate) to: SocketAddr,
    address: socket2::SockAddr,
    data: Chunk,
}

impl Parcel {
    pub(crate) fn new(to: SocketAddr, data: Chunk) -> Box<Self> {
        Box::new(Self { to, address: to.into(), data })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }
}

/// Whether a socket is one for datagrams.
///
/// # Errors
///
/// `InvalidInput` if it is not.
pub(crate) fn check_kind(socket: &socket2::Socket) -> io::Result<()> {
    if socket.r#type()? == socket2::Type::DGRAM {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a datagram socket"))
}

/// Closes a datagram socket and makes one for Registered I/O with its address and options.
///
/// # Errors
///
/// What the system answers, `AddrInUse` if somebody was quicker. The address is free then.
pub(crate) fn register(socket: socket2::Socket) -> io::Result<socket2::Socket> {
    let address = socket.local_addr()?;
    let only_v6 = address.is_ipv6() && socket.only_v6()?;
    // What else there is, Windows has not, or has only for connections.
    let options = [OptionName::ReceiveBuffer, OptionName::SendBuffer, OptionName::TypeOfService];
    let options = options.map(|name| SocketOption::read(&socket, name));
    drop(socket);
    let kind = socket2::Type::DGRAM.no_inherit().registered_io();
    let socket = socket2::Socket::new_raw(address.domain(), kind, Some(socket2::Protocol::UDP))?;
    super::rio::note_created(&socket);
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    options.iter().flatten().try_for_each(|option| option.set(&socket))?;
    winsock::use_address_exclusively(&socket)?;
    socket.bind(&address)?;
    Ok(socket)
}

/// Keeps answers of ICMP from ending receives. Where that cannot be switched, they are failures that the socket survives.
pub(crate) fn leave_out_unreachable_peers(socket: &socket2::Socket) {
    for what in [SIO_UDP_CONNRESET, SIO_UDP_NETRESET] {
        let (no, mut written): (BOOL, u32) = (0, 0);
        let (value, bytes) = (ptr::from_ref(&no).cast(), size_of::<BOOL>() as u32);
        let (nothing, wait) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the request reads one BOOL, and is done when the call returns.
        unsafe { WSAIoctl(winsock::raw(socket), what, value, bytes, nothing, 0, &raw mut written, wait, None) };
    }
}

/// Whether an error speaks of a datagram that was sent before, and not of what the call was about.
pub(crate) fn is_about_another(error: i32) -> bool {
    matches!(error, WSAECONNRESET | WSAENETRESET | WSAECONNREFUSED)
}

/// Whether the system had to cut a datagram.
pub(crate) fn is_truncation(error: i32) -> bool {
    error == WSAEMSGSIZE
}

/// Starts to receive a datagram. If that is done at once, `bytes` tells how long it is.
///
/// # Safety
///
/// `landing` and `overlapped` stay valid and untouched until the operation has ended.
pub(crate) unsafe fn receive_from(
    socket: &socket2::Socket,
    landing: &mut Landing,
    overlapped: *mut OVERLAPPED,
    bytes: &mut u32,
) -> Started {
    let Landing { buf: Some(buf), from, from_bytes, flags } = landing else { return Started::Refused(WSAEMSGSIZE) };
    let (memory, size) = buf.raw_memory();
    let slice = WSABUF { len: size as u32, buf: memory };
    *flags = 0;
    // An address of no family, should the system write none.
    from.ss_family = 0;
    *from_bytes = size_of::<SOCKADDR_STORAGE>() as i32;
    let (name, name_bytes) = (ptr::from_mut(from).cast(), ptr::from_mut(from_bytes));
    // SAFETY: the description of the memory is read before the call returns (see WSARecvFrom). The caller vouches for
    // everything else.
    let answer =
        unsafe { WSARecvFrom(winsock::raw(socket), &slice, 1, bytes, flags, name, name_bytes, overlapped, None) };
    match winsock::started(answer == 0) {
        // Does not occur with this much room. If it did, the record is not freed before a packet has come.
        Started::Refused(WSAEMSGSIZE) => Started::Pending,
        started => started,
    }
}

/// Starts to send a datagram.
///
/// # Safety
///
/// `parcel` and `overlapped` stay valid and untouched until the operation has ended.
pub(crate) unsafe fn start_send_to(socket: &socket2::Socket, parcel: &Parcel, overlapped: *mut OVERLAPPED) -> Started {
    // SAFETY: the caller vouches for what the call is shown.
    let answer = unsafe { call_send_to(socket, &parcel.address, parcel.data.as_slice(), overlapped) };
    winsock::started(answer == 0)
}

/// Sends a datagram on a socket that does not block.
///
/// # Errors
///
/// The error number; see [`winsock::would_block`].
pub(crate) fn send_to(socket: &socket2::Socket, to: SocketAddr, data: &[u8]) -> Result<(), i32> {
    // SAFETY: without an OVERLAPPED the call is done with its arguments when it returns.
    let answer = unsafe { call_send_to(socket, &to.into(), data, ptr::null_mut()) };
    if answer == 0 { Ok(()) } else { Err(winsock::last_error()) }
}

/// # Safety
///
/// With an OVERLAPPED, the arguments stay valid and untouched until the operation has ended.
unsafe fn call_send_to(
    socket: &socket2::Socket,
    to: &socket2::SockAddr,
    data: &[u8],
    overlapped: *mut OVERLAPPED,
) -> i32 {
    let slice = WSABUF { len: data.len() as u32, buf: data.as_ptr().cast_mut() };
    let (mut sent, name, name_bytes) = (0, to.as_ptr().cast(), to.len());
    // SAFETY: the description of the data is read before the call returns (see WSASendTo), and the data is not written to.
    // The caller vouches for the rest.
    unsafe { WSASendTo(winsock::raw(socket), &slice, 1, &raw mut sent, 0, name, name_bytes, overlapped, None) }
}

/// The IP address in `storage`; `None` if there is none.
pub(crate) fn address_of(storage: &SOCKADDR_STORAGE) -> Option<SocketAddr> {
    let memory = ptr::from_ref(storage);
    match storage.ss_family {
        AF_INET => {
            // SAFETY: the storage is larger than an IPv4 address and aligned for every kind; its family says that it is one.
            let (port, ip) = unsafe {
                let found = &*memory.cast::<SOCKADDR_IN>();
                (found.sin_port, found.sin_addr.S_un.S_addr)
            };
            Some(SocketAddr::from((Ipv4Addr::from(u32::from_be(ip)), u16::from_be(port))))
        }
        AF_INET6 => {
            // SAFETY: as above, with IPv6. The scope is a number in either of its two forms.
            let (found, ip, scope) = unsafe {
                let found = &*memory.cast::<SOCKADDR_IN6>();
                (found, found.sin6_addr.u.Byte, found.Anonymous.sin6_scope_id)
            };
            let port = u16::from_be(found.sin6_port);
            Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, found.sin6_flowinfo, scope).into())
        }
        _ => None,
    }
}
