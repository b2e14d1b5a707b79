//! The calls for datagrams that Linux has: many messages at once, segments, counted drops, an error queue.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::datagram::{self, CONTROL_BYTES, Control, Message, answer};
use super::platform::SEND_FLAGS;

const _: () = assert!(size_of::<Message>() == size_of::<libc::mmsghdr>());

/// `UDP_SEGMENT` and `UDP_GRO` of udp(7); not every C library's headers have them.
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;

/// What came beside a datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ancillary {
    /// The size of the segments that were put together.
    pub(crate) segment: Option<usize>,
    /// Datagrams that this socket has dropped so far.
    pub(crate) dropped: Option<u32>,
}

fn set(socket: &socket2::Socket, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> bool {
    let size = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is readable and `size` bytes long.
    unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) == 0 }
}

/// Has errors of single peers reported (`IP_RECVERR`, see ip(7) and ipv6(7)). Where that is refused nothing is lost but
/// the reports.
pub(crate) fn report_errors(socket: &socket2::Socket) {
    let _ = set(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1) | set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
}

/// Has drops counted (`SO_RXQ_OVFL`, see socket(7)).
pub(crate) fn count_drops(socket: &socket2::Socket) {
    set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
}

/// Has segments put together. A kernel that cannot delivers them one by one.
pub(crate) fn join_segments(socket: &socket2::Socket) {
    set(socket, libc::SOL_UDP, UDP_GRO, 1);
}

/// Whether this kernel can segment: it knows the option, which is left at "no segments".
pub(crate) fn can_segment(socket: &socket2::Socket) -> bool {
    set(socket, libc::SOL_UDP, UDP_SEGMENT, 0)
}

/// Writes the size of the segments of a message into `control`, and has the header point there.
pub(crate) fn write_segment_size(header: &mut libc::msghdr, control: &mut Control, bytes: u16) {
    header.msg_control = control.0.as_mut_ptr().cast();
    // SAFETY: CMSG_SPACE and CMSG_LEN only compute. The control data is aligned and longer than one entry of two bytes, so
    // that the first entry exists and all that is written lies in it.
    unsafe {
        header.msg_controllen = libc::CMSG_SPACE(2) as _;
        let entry = libc::CMSG_FIRSTHDR(header);
        (*entry).cmsg_level = libc::SOL_UDP;
        (*entry).cmsg_type = UDP_SEGMENT;
        (*entry).cmsg_len = libc::CMSG_LEN(2) as _;
        libc::CMSG_DATA(entry).cast::<u16>().write_unaligned(bytes);
    }
}

/// Reads what came beside a datagram.
///
/// # Safety
///
/// `header` points to control data as the kernel wrote it, aligned, `msg_controllen` bytes long.
pub(crate) unsafe fn read_control(header: &libc::msghdr) -> Ancillary {
    let mut found = Ancillary::default();
    // SAFETY: the caller vouches for the control data; the macros stay inside it.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !entry.is_null() {
        // SAFETY: the macro returned an entry that lies in the control data.
        let (level, kind, data) = unsafe { ((*entry).cmsg_level, (*entry).cmsg_type, libc::CMSG_DATA(entry)) };
        // SAFETY: both kinds that are read carry four bytes.
        let number = || unsafe { data.cast::<u32>().read_unaligned() };
        match (level, kind) {
            (libc::SOL_UDP, UDP_GRO) => found.segment = Some(number() as usize),
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => found.dropped = Some(number()),
            _ => {}
        }
        // SAFETY: as with the first.
        entry = unsafe { libc::CMSG_NXTHDR(header, entry) };
    }
    found
}

/// Sends messages: all of them in one call, or the first.
///
/// # Safety
///
/// The messages point to addresses, slices and control data that are readable during the call.
pub(crate) unsafe fn send(fd: BorrowedFd<'_>, messages: &mut [Message], many: bool) -> io::Result<usize> {
    if many && messages.len() > 1 {
        let (address, count) = (messages.as_mut_ptr().cast(), messages.len() as libc::c_uint);
        // SAFETY: the layout is that of mmsghdr (asserted above), and the caller vouches for what is in it.
        return answer(unsafe { libc::sendmmsg(fd.as_raw_fd(), address, count, SEND_FLAGS as _) } as isize);
    }
    let header = &messages[0].header;
    if header.msg_iovlen == 1 && header.msg_controllen == 0 {
        // A single datagram with nothing beside it: the kernel has no header to copy and to check.
        // SAFETY: the message has one slice and an address, which the caller vouches for.
        let answered = unsafe {
            let slice = &*header.msg_iov;
            let to = header.msg_name.cast();
            libc::sendto(fd.as_raw_fd(), slice.iov_base, slice.iov_len, SEND_FLAGS, to, header.msg_namelen)
        };
        return answer(answered).map(|_| 1);
    }
    // SAFETY: as above.
    answer(unsafe { libc::sendmsg(fd.as_raw_fd(), header, SEND_FLAGS) }).map(|_| 1)
}

/// Receives messages: as many as there are and fit in one call, or one.
///
/// # Safety
///
/// The messages point to room for addresses, data and control data that is writable during the call and shared with nobody.
pub(crate) unsafe fn receive(fd: BorrowedFd<'_>, messages: &mut [Message], many: bool) -> io::Result<usize> {
    if many && messages.len() > 1 {
        let (address, count) = (messages.as_mut_ptr().cast(), messages.len() as libc::c_uint);
        let none = std::ptr::null_mut();
        // SAFETY: the layout is that of mmsghdr, and the caller vouches for what is in it. No timeout is passed.
        return answer(
            unsafe { libc::recvmmsg(fd.as_raw_fd(), address, count, libc::MSG_DONTWAIT as _, none) } as isize
        );
    }
    // SAFETY: as above.
    unsafe { datagram::receive_one(fd, &mut messages[0]) }
}

/// An error from the network in the socket's error queue (`MSG_ERRQUEUE`, see recvmsg(2) and ip(7)): to whom the datagram
/// was, and what became of it. Errors of this system are in the queue, too, but the call that failed has told them.
pub(crate) fn next_error(fd: BorrowedFd<'_>) -> Option<(Option<SocketAddr>, io::Error)> {
    loop {
        let (to, origin, error) = read_error(fd)?;
        if origin != libc::SO_EE_ORIGIN_LOCAL {
            return Some((to, io::Error::from_raw_os_error(error)));
        }
    }
}

/// The next entry of the error queue: to whom, where the error arose, and which it is.
fn read_error(fd: BorrowedFd<'_>) -> Option<(Option<SocketAddr>, u8, i32)> {
    // SAFETY: all-zero is an address of no family.
    let mut name: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let mut control = [Control([0; CONTROL_BYTES]); 8];
    // SAFETY: an all-zero msghdr is valid.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_storage>() as _;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to room for an address and control data; the datagram itself is not asked for.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if got < 0 {
        return None;
    }
    let (mut origin, mut error) = (libc::SO_EE_ORIGIN_NONE, libc::EIO);
    // SAFETY: the kernel has just filled the control data.
    let mut entry = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !entry.is_null() {
        // SAFETY: the macro returned an entry that lies in the control data.
        let (level, kind, data) = unsafe { ((*entry).cmsg_level, (*entry).cmsg_type, libc::CMSG_DATA(entry)) };
        if matches!((level, kind), (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)) {
            // SAFETY: an entry of this kind carries a sock_extended_err.
            let found = unsafe { data.cast::<libc::sock_extended_err>().read_unaligned() };
            (origin, error) = (found.ee_origin, found.ee_errno as i32);
        }
        // SAFETY: as with the first.
        entry = unsafe { libc::CMSG_NXTHDR(&raw const header, entry) };
    }
    Some((datagram::address_of(&name), origin, error))
}
