//! The calls for datagrams that every Unix has: one message at a time, and nothing beside it.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::datagram::{self, Control, Message, answer};
use super::platform::SEND_FLAGS;

/// What came beside a datagram: nothing here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ancillary {
    pub(crate) segment: Option<usize>,
    pub(crate) dropped: Option<u32>,
}

/// There is no error queue here.
pub(crate) fn report_errors(_: &socket2::Socket) {}

/// Drops are not counted here.
pub(crate) fn count_drops(_: &socket2::Socket) {}

/// Segments come one by one here.
pub(crate) fn join_segments(_: &socket2::Socket) {}

/// Never.
pub(crate) fn can_segment(_: &socket2::Socket) -> bool {
    false
}

/// Never called: nothing is segmented.
pub(crate) fn write_segment_size(_: &mut libc::msghdr, _: &mut Control, _: u16) {}

/// Nothing is asked for.
///
/// # Safety
///
/// None is needed; on Linux it is.
pub(crate) unsafe fn read_control(_: &libc::msghdr) -> Ancillary {
    Ancillary::default()
}

/// Sends the first message.
///
/// # Safety
///
/// It points to an address, slices and control data that are readable during the call.
pub(crate) unsafe fn send(fd: BorrowedFd<'_>, messages: &mut [Message], _: bool) -> io::Result<usize> {
    // SAFETY: the caller vouches for what the message points to.
    answer(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const messages[0].header, SEND_FLAGS) }).map(|_| 1)
}

/// Receives one message.
///
/// # Safety
///
/// It points to room for an address and data that is writable during the call and shared with nobody.
pub(crate) unsafe fn receive(fd: BorrowedFd<'_>, messages: &mut [Message], _: bool) -> io::Result<usize> {
    // SAFETY: the caller vouches for what the message points to.
    unsafe { datagram::receive_one(fd, &mut messages[0]) }
}

/// There is no error queue here.
pub(crate) fn next_error(_: BorrowedFd<'_>) -> Option<(Option<SocketAddr>, io::Error)> {
    None
}
