//! Small differences between the systems, in one place.

use std::io;

#[cfg(unix)]
use std::os::fd::BorrowedFd;

use super::contract::{Engine, EngineConfig};
use super::select::{Candidate, EngineKind, SelectionError};

/// Code that is generic over the engine, so that one `match` a thread chooses the instance.
pub trait UseEngine {
    /// What it returns.
    type Output;

    /// Runs with engine `E`.
    fn run<E: Engine>(self) -> Self::Output;
}

/// Runs `user` with the engine called `kind`.
///
/// # Errors
///
/// If this platform has no such engine.
pub fn with_engine<U: UseEngine>(kind: EngineKind, user: U) -> Result<U::Output, SelectionError> {
    match kind {
        #[cfg(target_os = "linux")]
        EngineKind::Uring => Ok(user.run::<super::uring::UringEngine>()),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        EngineKind::Epoll => Ok(user.run::<super::readiness::ReadinessEngine>()),
        #[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
        EngineKind::Kqueue => Ok(user.run::<super::readiness::ReadinessEngine>()),
        #[cfg(windows)]
        EngineKind::Iocp => Ok(user.run::<super::iocp::IocpEngine>()),
        #[cfg(windows)]
        EngineKind::Rio => Ok(user.run::<super::rio::RioEngine>()),
        EngineKind::Sim => Ok(user.run::<super::sim::SimEngine>()),
        kind => Err(SelectionError::Elsewhere { kind }),
    }
}

/// Binds the calling thread to one of the cores that it may run on: the `index`-th, counted round.
///
/// # Errors
///
/// What sched_setaffinity(2) answers; `Unsupported` on other systems.
#[cfg(target_os = "linux")]
pub fn pin_to_core(index: usize) -> io::Result<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: an all-zero set is the empty set.
    let mut allowed: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set is writable and `size` bytes long; 0 means the calling thread.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the macro only reads bits inside the set.
    let cores: Vec<usize> = (0..size * 8).filter(|&core| unsafe { libc::CPU_ISSET(core, &allowed) }).collect();
    let Some(&core) = cores.get(index % cores.len().max(1)) else { return Err(io::ErrorKind::NotFound.into()) };
    // SAFETY: as above.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` is one of the bits of a set of this size.
    unsafe { libc::CPU_SET(core, &mut one) };
    // SAFETY: the set is readable and `size` bytes long.
    let answer = unsafe { libc::sched_setaffinity(0, size, &raw const one) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
/// Binds the calling thread to one of the cores that the process may run on: the `index`-th, counted round, among the
/// first 64 (those of the thread's processor group, see SetThreadAffinityMask).
///
/// # Errors
///
/// What SetThreadAffinityMask answers.
#[cfg(windows)]
pub fn pin_to_core(index: usize) -> io::Result<()> {
    use windows_sys::Win32::System::Threading::{
        GetCurrentProcess, GetCurrentThread, GetProcessAffinityMask, SetThreadAffinityMask,
    };
    let (mut allowed, mut system) = (0_usize, 0_usize);
    // SAFETY: both masks are writable; the handle stands for this process and needs no closing.
    if unsafe { GetProcessAffinityMask(GetCurrentProcess(), &raw mut allowed, &raw mut system) } == 0 {
        return Err(io::Error::last_os_error());
    }
    let cores: Vec<u32> = (0..usize::BITS).filter(|core| allowed >> core & 1 == 1).collect();
    let Some(&core) = cores.get(index % cores.len().max(1)) else { return Err(io::ErrorKind::NotFound.into()) };
    // SAFETY: the handle stands for this thread and needs no closing.
    let before = unsafe { SetThreadAffinityMask(GetCurrentThread(), 1 << core) };
    if before == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
/// Binding to a core is not offered here.
///
/// # Errors
///
/// Always `Unsupported`.
#[cfg(not(any(target_os = "linux", windows)))]
pub fn pin_to_core(_: usize) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The file of a Unix socket's address, if it has one.
#[cfg(unix)]
pub(crate) fn socket_path(address: &socket2::SockAddr) -> Option<&std::path::Path> {
    address.as_pathname()
}
/// No engine of this system serves Unix sockets.
#[cfg(windows)]
pub(crate) fn socket_path(_: &socket2::SockAddr) -> Option<&std::path::Path> {
    None
}

/// Whether `path` is a Unix socket.
#[cfg(unix)]
pub(crate) fn is_socket_file(path: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}
/// It cannot be told here.
#[cfg(windows)]
pub(crate) fn is_socket_file(_: &std::path::Path) -> bool {
    false
}

/// See [`crate::socket::REUSE_PORT_SPREADS`].
pub(crate) const REUSE_PORT_SPREADS: bool = cfg!(target_os = "linux");

/// A timer that a poll sees. Edge-triggered, so that nobody has to read it.
#[cfg(target_os = "linux")]
pub(crate) struct Alarm(std::os::fd::OwnedFd);

#[cfg(target_os = "linux")]
impl Alarm {
    /// Makes a timer and registers it. See timerfd_create(2).
    pub(crate) fn new(registry: &mio::Registry, token: mio::Token) -> io::Result<Self> {
        use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        registry.register(&mut mio::unix::SourceFd(&fd.as_raw_fd()), token, mio::Interest::READABLE)?;
        Ok(Self(fd))
    }

    /// Lets it go off after this time, and no longer at the time set before.
    pub(crate) fn set(&self, after: std::time::Duration) -> io::Result<()> {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = libc::timespec {
            tv_sec: after.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: after.subsec_nanos().into(),
        };
        let time = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: the structure is readable, and nothing is asked back.
        let answer = unsafe {
            libc::timerfd_settime(std::os::fd::AsRawFd::as_raw_fd(&self.0), 0, &raw const time, std::ptr::null_mut())
        };
        if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// There is none here: deadlines are timeouts of the poll.
#[cfg(all(unix, not(target_os = "linux")))]
pub(crate) struct Alarm;

#[cfg(all(unix, not(target_os = "linux")))]
impl Alarm {
    /// Always `Unsupported`.
    pub(crate) fn new(_: &mio::Registry, _: mio::Token) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    pub(crate) fn set(&self, _: std::time::Duration) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Processor time that the calling thread has used, see clock_gettime(2).
#[cfg(unix)]
pub(crate) fn thread_time() -> std::time::Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is writable. Where there is no such clock, the time stays zero.
    let _ = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    std::time::Duration::new(time.tv_sec.max(0) as u64, time.tv_nsec as u32)
}

/// Sets the calling thread's `errno`, so that a signal handler leaves it as it was.
#[cfg(unix)]
pub(crate) fn set_errno(value: i32) {
    #[cfg(any(target_os = "android", target_os = "openbsd", target_os = "netbsd"))]
    use libc::__errno as location;
    #[cfg(target_os = "linux")]
    use libc::__errno_location as location;
    #[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "dragonfly"))]
    use libc::__error as location;
    // SAFETY: the function returns the address of a variable of this thread.
    unsafe { *location() = value }
}

/// Flags of every plain send.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// Apple has no `MSG_NOSIGNAL`; `SO_NOSIGPIPE` is set on the socket instead.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android", target_os = "freebsd"))))]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT;

/// Sets whether calls on a socket wait, in one call instead of the two that fcntl(2) takes.
#[cfg(unix)]
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let mut value = libc::c_int::from(nonblocking);
    // SAFETY: FIONBIO reads one int. (The type of the request differs between the C libraries.)
    let failed = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::FIONBIO as _, &raw mut value) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Keeps a send to a closed peer from raising SIGPIPE, where that is an option of the socket.
#[cfg(target_vendor = "apple")]
pub(crate) fn no_sigpipe(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_nosigpipe(true)
}
/// Nothing to do: [`SEND_FLAGS`] has `MSG_NOSIGNAL`.
#[cfg(all(unix, not(target_vendor = "apple")))]
#[expect(clippy::unnecessary_wraps, reason = "the twin for Apple can fail")]
pub(crate) fn no_sigpipe(_: &socket2::Socket) -> io::Result<()> {
    Ok(())
}

/// Accepts a connection, closed on exec and, where that costs nothing more, non-blocking.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) fn accept(listener: &socket2::Socket) -> io::Result<socket2::Socket> {
    listener.accept4(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).map(|(socket, _)| socket)
}
/// Accepts a connection, closed on exec.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android", target_os = "freebsd"))))]
pub(crate) fn accept(listener: &socket2::Socket) -> io::Result<socket2::Socket> {
    listener.accept().map(|(socket, _)| socket)
}

/// What a connection that only receives asks for. Urgent data ends a receive early (see tcp(7)), so that a short one may
/// leave bytes behind: with `PRIORITY` the event says so.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const INTEREST: mio::Interest = mio::Interest::READABLE.add(mio::Interest::PRIORITY);
/// What a connection that only receives asks for. kqueue does not tell of urgent data.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) const INTEREST: mio::Interest = mio::Interest::READABLE;

/// Bytes in the kernel's send queue that the peer has not acknowledged. `None` for a Unix socket that holds some: the
/// system counts the memory there, not the bytes.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn unacked(fd: BorrowedFd<'_>) -> Option<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the same number as TIOCOUTQ, see tcp(7)) writes one int.
    let answer = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&fd), libc::TIOCOUTQ, &raw mut bytes) };
    match u64::try_from(bytes) {
        Ok(0) if answer == 0 => Some(0),
        Ok(bytes) if answer == 0 => {
            let domain = socket2::SockRef::from(&fd).domain();
            if domain.is_ok_and(|domain| domain != socket2::Domain::UNIX) { Some(bytes) } else { None }
        }
        _ => None,
    }
}
/// Unknown here.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) fn unacked(_: BorrowedFd<'_>) -> Option<u64> {
    None
}

/// Codes of errors that say that the process or the system is out of something: of descriptors, buffers or memory.
#[cfg(unix)]
pub const EXHAUSTION_CODES: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
/// Codes of errors that say that the process or the system is out of something: ERROR_NOT_ENOUGH_MEMORY,
/// ERROR_NO_SYSTEM_RESOURCES, WSAEMFILE, WSAENOBUFS.
#[cfg(windows)]
pub const EXHAUSTION_CODES: [i32; 4] = [8, 1450, 10024, 10055];

/// Whether the system is out of something, so that trying again at once would spin.
#[must_use]
pub fn is_exhaustion(error: &io::Error) -> bool {
    error.raw_os_error().is_some_and(|code| EXHAUSTION_CODES.contains(&code))
}

/// Sets how a listener shares its address.
#[cfg(unix)]
pub(crate) fn share_address(socket: &socket2::Socket, reuse_port: bool) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    if reuse_port { socket.set_reuse_port(true) } else { Ok(()) }
}
/// On Windows `SO_REUSEADDR` would let two listeners share an address, and the default would let another program take it
/// with that option. Nothing there spreads connections over several listeners.
#[cfg(windows)]
pub(crate) fn share_address(socket: &socket2::Socket, reuse_port: bool) -> io::Result<()> {
    if reuse_port {
        return Err(io::ErrorKind::Unsupported.into());
    }
    super::winsock::use_address_exclusively(socket)
}

/// Lets several datagram sockets share an address.
#[cfg(unix)]
pub(crate) fn share_datagram_address(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}
/// Windows has no `SO_REUSEPORT`.
#[cfg(windows)]
pub(crate) fn share_datagram_address(_: &socket2::Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Keeps others from binding to the address of a datagram socket: nothing to do here.
#[cfg(unix)]
pub(crate) fn keep_datagram_address(_: &socket2::Socket) -> io::Result<()> {
    Ok(())
}
/// On Windows another program could take the address over with `SO_REUSEADDR`.
#[cfg(windows)]
pub(crate) fn keep_datagram_address(socket: &socket2::Socket) -> io::Result<()> {
    super::winsock::use_address_exclusively(socket)
}

/// This platform's engines in the order of preference, each probed.
#[cfg(target_os = "linux")]
pub(crate) fn candidates(config: &EngineConfig) -> Vec<Candidate> {
    vec![
        Candidate::new(EngineKind::Uring, super::uring::probe(config)),
        Candidate::new(EngineKind::Epoll, super::readiness::probe(config)),
    ]
}
/// This platform's engines in the order of preference, each probed.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) fn candidates(config: &EngineConfig) -> Vec<Candidate> {
    vec![Candidate::new(EngineKind::Kqueue, super::readiness::probe(config))]
}
/// This platform's engines in the order of preference, each probed.
#[cfg(target_os = "android")]
pub(crate) fn candidates(config: &EngineConfig) -> Vec<Candidate> {
    vec![Candidate::new(EngineKind::Epoll, super::readiness::probe(config))]
}
/// This platform's engines in the order of preference, each probed.
#[cfg(windows)]
pub(crate) fn candidates(config: &EngineConfig) -> Vec<Candidate> {
    vec![
        Candidate::new(EngineKind::Iocp, super::iocp::probe(config)),
        Candidate::new(EngineKind::Rio, super::rio::probe(config)),
    ]
}

/// Reads a socket option as it is, see getsockopt(2). No option of any known system is longer than this reads.
#[cfg(unix)]
pub(crate) fn raw_option(socket: &socket2::Socket, level: i32, name: i32) -> io::Result<Vec<u8>> {
    const BYTES_MAX: usize = 1024;
    let mut value = vec![0; BYTES_MAX];
    let mut length = BYTES_MAX as libc::socklen_t;
    let fd = std::os::fd::AsRawFd::as_raw_fd(socket);
    // SAFETY: `value` is writable and `length` bytes long, and both live until the call returns.
    if unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    value.truncate(length as usize);
    Ok(value)
}
/// Raw options need a descriptor.
#[cfg(windows)]
pub(crate) fn raw_option(_: &socket2::Socket, _: i32, _: i32) -> io::Result<Vec<u8>> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Sets a socket option as it is, see setsockopt(2).
///
/// The kernel copies the bytes, with one exception: a few options hold the address of more memory (`SO_ATTACH_FILTER`
/// and its like). They are refused, because nobody vouches for such an address.
#[cfg(unix)]
pub(crate) fn set_raw_option(socket: &socket2::Socket, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    if holds_address(level, name) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "an option that holds an address cannot be set raw"));
    }
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(socket);
    // SAFETY: `value` is readable and `length` bytes long until the call returns, and holds no address.
    let answer = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), length) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
/// Raw options need a descriptor.
#[cfg(windows)]
pub(crate) fn set_raw_option(_: &socket2::Socket, _: i32, _: i32, _: &[u8]) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether the kernel would follow an address in the value of an option, or give back memory through one.
#[cfg(target_os = "linux")]
fn holds_address(level: i32, name: i32) -> bool {
    // Linux/tcp.h: the kernel maps received pages over the caller's memory.
    const TCP_ZEROCOPY_RECEIVE: i32 = 35;
    match level {
        libc::SOL_SOCKET => matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_REUSEPORT_CBPF),
        libc::IPPROTO_TCP => name == TCP_ZEROCOPY_RECEIVE,
        // Netfilter's tables, which share their numbers with these two levels.
        libc::IPPROTO_IP | libc::IPPROTO_IPV6 => (64..=70).contains(&name),
        _ => false,
    }
}
/// Elsewhere the options of the two usual levels are plain numbers; accept filters are copied whole.
#[cfg(all(unix, not(target_os = "linux")))]
fn holds_address(level: i32, _: i32) -> bool {
    !matches!(level, libc::SOL_SOCKET | libc::IPPROTO_TCP | libc::IPPROTO_IP | libc::IPPROTO_IPV6)
}

/// Reads at a place of a file, without its position.
#[cfg(unix)]
pub(crate) fn read_at(file: &std::fs::File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, memory, offset)
}
/// Reads at a place of a file; its position is moved, and used by nobody here.
#[cfg(windows)]
pub(crate) fn read_at(file: &std::fs::File, memory: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, memory, offset)
}

/// Lets the kernel send from a file, see sendfile(2): nothing passes through this process.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn send_file(fd: BorrowedFd<'_>, range: &crate::buffer::FileRange, most: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let mut offset = libc::off_t::try_from(range.offset()).map_err(|_| io::ErrorKind::Unsupported)?;
    let count = range.len().min(most);
    // SAFETY: the call reads and writes `offset`, and no other memory.
    let sent = unsafe { libc::sendfile(fd.as_raw_fd(), range.file().as_raw_fd(), &raw mut offset, count) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}
/// Lets the kernel send from a file, see sendfile(2) of macOS: the length that goes in comes back as what was sent, also
/// where the socket took only a part of it.
#[cfg(target_vendor = "apple")]
pub(crate) fn send_file(fd: BorrowedFd<'_>, range: &crate::buffer::FileRange, most: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let offset = libc::off_t::try_from(range.offset()).map_err(|_| io::ErrorKind::Unsupported)?;
    // A length of zero would mean the whole file.
    if range.is_empty() || most == 0 {
        return Ok(0);
    }
    let mut count = libc::off_t::try_from(range.len().min(most)).map_err(|_| io::ErrorKind::Unsupported)?;
    let file = range.file().as_raw_fd();
    // SAFETY: the call reads and writes `count`; there are no headers.
    let answer = unsafe { libc::sendfile(file, fd.as_raw_fd(), offset, &raw mut count, std::ptr::null_mut(), 0) };
    sent_of_file(answer, count)
}
/// Lets the kernel send from a file, see sendfile(2) of FreeBSD.
#[cfg(any(target_os = "freebsd", target_os = "dragonfly"))]
pub(crate) fn send_file(fd: BorrowedFd<'_>, range: &crate::buffer::FileRange, most: usize) -> io::Result<usize> {
    use std::os::fd::AsRawFd;
    let offset = libc::off_t::try_from(range.offset()).map_err(|_| io::ErrorKind::Unsupported)?;
    // A length of zero would mean the whole file.
    if range.is_empty() || most == 0 {
        return Ok(0);
    }
    let (file, length, mut count) = (range.file().as_raw_fd(), range.len().min(most), 0);
    // SAFETY: the call writes `count`; there are no headers.
    let answer =
        unsafe { libc::sendfile(file, fd.as_raw_fd(), offset, length, std::ptr::null_mut(), &raw mut count, 0) };
    sent_of_file(answer, count)
}

/// What a sendfile of the BSD kind has done: a part may be sent although the call says that it would have to wait.
#[cfg(any(target_vendor = "apple", target_os = "freebsd", target_os = "dragonfly"))]
fn sent_of_file(answer: libc::c_int, count: libc::off_t) -> io::Result<usize> {
    if answer == 0 {
        return Ok(usize::try_from(count).unwrap_or(0));
    }
    match io::Error::last_os_error() {
        // Only these two errors speak of a number of bytes.
        error if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            usize::try_from(count).ok().filter(|count| *count > 0).ok_or(error)
        }
        error => Err(error),
    }
}

/// Not used here: ranges are read into slots.
#[cfg(all(
    unix,
    not(any(
        target_os = "linux",
        target_os = "android",
        target_vendor = "apple",
        target_os = "freebsd",
        target_os = "dragonfly"
    ))
))]
pub(crate) fn send_file(_: BorrowedFd<'_>, _: &crate::buffer::FileRange, _: usize) -> io::Result<usize> {
    Err(io::ErrorKind::Unsupported.into())
}

/// `SIOCATMARK`, from asm-generic/sockios.h.
#[cfg(any(target_os = "linux", target_os = "android"))]
const AT_MARK: libc::c_ulong = 0x8905;
/// `SIOCATMARK`, from sys/sockio.h: `_IOR('s', 7, int)` on every BSD.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
const AT_MARK: libc::c_ulong = 0x4004_7307;

/// Whether urgent data is what comes next, see sockatmark(3).
#[cfg(unix)]
pub(crate) fn at_mark(socket: &socket2::Socket) -> io::Result<bool> {
    let mut answer: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one int. (The type of the request differs between the C libraries.)
    let failed = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(socket), AT_MARK as _, &raw mut answer) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(answer != 0) }
}
/// Unknown here.
#[cfg(windows)]
pub(crate) fn at_mark(_: &socket2::Socket) -> io::Result<bool> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Lets a connect wait for the first data and send it with the SYN, see `TCP_FASTOPEN_CONNECT` in tcp(7).
#[cfg(target_os = "linux")]
pub(crate) fn fast_open_connect(socket: &socket2::Socket) -> io::Result<()> {
    set_raw_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, &1_i32.to_ne_bytes())
}
/// Lets a listener take data with a SYN, see `TCP_FASTOPEN` in tcp(7).
#[cfg(target_os = "linux")]
pub(crate) fn fast_open_listen(socket: &socket2::Socket, waiting: u32) -> io::Result<()> {
    let waiting = i32::try_from(waiting).unwrap_or(i32::MAX);
    set_raw_option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, &waiting.to_ne_bytes())
}
/// Not used here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn fast_open_connect(_: &socket2::Socket) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
/// Not used here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn fast_open_listen(_: &socket2::Socket, _: u32) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
