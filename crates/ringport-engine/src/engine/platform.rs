//! Small differences between the systems, in one place.

use std::io;

#[cfg(unix)]
use std::os::fd::BorrowedFd;

use super::contract::EngineConfig;
use super::select::{Candidate, EngineKind};

/// Flags of every plain send.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
/// Apple has no `MSG_NOSIGNAL`; `SO_NOSIGPIPE` is set on the socket instead.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android", target_os = "freebsd"))))]
pub(crate) const SEND_FLAGS: i32 = libc::MSG_DONTWAIT;

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

/// What readiness is asked for. Urgent data ends a receive early (see tcp(7)), so that a short one may leave bytes
/// behind: with `PRIORITY` the event says so.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) const INTEREST: mio::Interest =
    mio::Interest::READABLE.add(mio::Interest::WRITABLE).add(mio::Interest::PRIORITY);
/// What readiness is asked for. kqueue does not tell of urgent data.
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) const INTEREST: mio::Interest = mio::Interest::READABLE.add(mio::Interest::WRITABLE);

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

/// Whether an accept failed because the system is out of something, so that trying again at once would spin.
#[cfg(unix)]
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
/// Whether an accept failed because the system is out of something (WSAEMFILE, WSAENOBUFS).
#[cfg(windows)]
pub(crate) fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(10024 | 10055))
}

/// Sets how a listener shares its address.
#[cfg(unix)]
pub(crate) fn share_address(socket: &socket2::Socket, reuse_port: bool) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    if reuse_port { socket.set_reuse_port(true) } else { Ok(()) }
}
/// On Windows `SO_REUSEADDR` would let two listeners share an address; the default there is what we want.
#[cfg(windows)]
pub(crate) fn share_address(_: &socket2::Socket, reuse_port: bool) -> io::Result<()> {
    if reuse_port { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
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
/// The engines of Windows are not part of this version.
#[cfg(windows)]
pub(crate) fn candidates(_: &EngineConfig) -> Vec<Candidate> {
    Vec::new()
}
