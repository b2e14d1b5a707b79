//! Plain non-blocking calls on a socket, shared by the readiness engine and by io_uring's direct mode.
//!
//! Both receive into the slot that was used last, which is still in the processor's cache, and send from it at once.

use std::hint::cold_path;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::platform::{self, SEND_FLAGS};
use crate::buffer::{Buf, Chunk, Pool, SendQueue, SlotClass, truncated};

/// Most pieces of one vectored send (`IOV_MAX` is 1,024 on Linux; beyond some tens there is nothing to gain).
pub(crate) const PIECES_PER_SEND: usize = 64;

/// Bytes of one receive from which on the next follows at once even if there was room for more. While so many are copied
/// the peer of a stream sends the next, and a call that finds nothing costs less than a sleep: a byte of a stream takes 3 % less
/// processor time in that way. Messages are rarely as large. What such receives bring makes one event, up to the share of a turn.
const STREAM_BYTES: usize = 32 * 1024;

/// What a connection may still get in a turn in which it got `used` bytes, unless that is so little that it goes on in the
/// next turn. Four segments of a stream on the loopback, 64 KiB each but for some bytes, leave 212 bytes of the default share: a
/// call for these costs as much as one for everything that has come meanwhile.
#[inline]
pub(crate) fn share_left(bytes_per_turn: usize, used: usize) -> Option<usize> {
    let left = bytes_per_turn.max(1).saturating_sub(used);
    (used == 0 || left >= STREAM_BYTES).then_some(left)
}

/// What a receive call found.
pub(crate) enum Received {
    /// Bytes, and whether to look again: they are as many as were asked for, or so many that more have probably come. Why, if
    /// the connection failed right behind them, which is told only once.
    Data { buf: Buf, more: bool, failed: Option<io::Error> },
    /// Nothing yet.
    Empty,
    /// The peer's FIN.
    Fin,
    /// No slot is free; nothing was read.
    NoBuffer,
    /// The connection failed.
    Failed(io::Error),
}

/// Receives into a slot of `pool`, no more than `share` bytes: what the connection may still get in this turn. By one call, unless
/// that brings as much as a stream does and is not to end at the mark of urgent data (`to_mark`): then by as many as do. The
/// buffer is made only when there are bytes, so that it is made where it is needed.
#[inline(always)]
pub(crate) fn receive(fd: BorrowedFd<'_>, pool: &Pool, share: usize, to_mark: bool, calls: &mut u64) -> Received {
    let Some(slot) = pool.vacant(SlotClass::Large) else { return Received::NoBuffer };
    let (address, size) = slot.memory();
    let size = size.min(share);
    loop {
        *calls += 1;
        // SAFETY: `slot` holds the memory, which is writable and at least `size` bytes long, and the call returns before it
        // is used.
        let count = unsafe { libc::recv(fd.as_raw_fd(), address.cast(), size, libc::MSG_DONTWAIT) };
        if count > 0 {
            let mut got = Got { bytes: count as usize, more: count as usize >= size.min(STREAM_BYTES), failed: None };
            if got.more && !to_mark {
                cold_path();
                // SAFETY: as above.
                got = unsafe { receive_on(fd, address, size, got.bytes, calls) };
            }
            let Got { bytes, more, failed } = got;
            // Decided before there is a buffer: one that might be replaced has to be moved once more.
            if pool.is_low(SlotClass::Large) {
                cold_path();
                return Received::Data { buf: slot.copied(bytes as u32), more, failed };
            }
            return Received::Data { buf: slot.filled(bytes as u32), more, failed };
        }
        if let Some(nothing) = nothing_received(count) {
            slot.give_back();
            return nothing;
        }
    }
}

/// What the calls of one receive brought.
struct Got {
    bytes: usize,
    more: bool,
    failed: Option<io::Error>,
}

/// Goes on with a receive that has brought `bytes` of the `size` for which there is room at `memory`, as long as that much more
/// comes each time and there is room for as much. What else the last call finds is found again, but for a failure.
///
/// # Safety
///
/// `size` bytes at `memory` may be written.
#[inline(never)]
unsafe fn receive_on(fd: BorrowedFd<'_>, memory: *mut u8, size: usize, mut bytes: usize, calls: &mut u64) -> Got {
    while size - bytes >= STREAM_BYTES {
        *calls += 1;
        // SAFETY: the caller vouches for the memory, of which `bytes` are taken.
        let count = unsafe { libc::recv(fd.as_raw_fd(), memory.add(bytes).cast(), size - bytes, libc::MSG_DONTWAIT) };
        if count > 0 {
            bytes += count as usize;
            if (count as usize) < STREAM_BYTES {
                return Got { bytes, more: false, failed: None };
            }
            continue;
        }
        match nothing_received(count) {
            None => {}
            Some(Received::Empty) => return Got { bytes, more: false, failed: None },
            Some(Received::Failed(error)) => return Got { bytes, more: true, failed: Some(error) },
            Some(_) => break,
        }
    }
    Got { bytes, more: true, failed: None }
}

/// Why a receive call has no bytes; `None` if it has to be made again.
#[cold]
fn nothing_received(count: isize) -> Option<Received> {
    if count == 0 {
        return Some(Received::Fin);
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => None,
        error if error.kind() == io::ErrorKind::WouldBlock => Some(Received::Empty),
        error => Some(Received::Failed(error)),
    }
}

/// What a send achieved.
pub(crate) struct Sent {
    /// Bytes that the kernel took; they are out of the queue.
    pub(crate) bytes: usize,
    pub(crate) then: Then,
}

/// Why a send stopped.
pub(crate) enum Then {
    /// The queue is empty.
    Done,
    /// The kernel takes no more now.
    Full,
    /// A file has had its share; the others come first.
    Later,
    /// The connection failed, or a file that is to be sent.
    Failed(io::Error),
}

/// How plain sends are made on the sockets of an engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sender {
    /// The sockets are blocking. Every call says otherwise, but sendfile(2) cannot.
    pub(crate) blocking: bool,
    /// sendfile(2) may be used.
    pub(crate) sendfile: bool,
}

/// Most bytes of files that one connection sends before the others have their turn: half a millisecond's work.
const FILE_BYTES_PER_SEND: usize = 2 << 20;

impl Sender {
    /// Sends the front of `queue` and takes what was sent out of it, until all is sent or something is in the way.
    #[inline(always)]
    pub(crate) fn send(self, fd: BorrowedFd<'_>, queue: &mut SendQueue, pool: &Pool, calls: &mut u64) -> Sent {
        let Some(data) = queue.only() else {
            cold_path();
            return self.send_pieces(fd, queue, pool, calls);
        };
        *calls += 1;
        let asked = data.len();
        // SAFETY: `data` is borrowed for the call.
        let count = unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), asked, SEND_FLAGS) };
        if count == asked as isize {
            queue.drop_only();
            return Sent { bytes: asked, then: Then::Done };
        }
        cold_path();
        match took(count, asked, queue) {
            Some(sent) => sent,
            None => self.send_pieces(fd, queue, pool, calls),
        }
    }

    #[inline(never)]
    fn send_pieces(self, fd: BorrowedFd<'_>, queue: &mut SendQueue, pool: &Pool, calls: &mut u64) -> Sent {
        let mut bytes = 0;
        loop {
            let (count, asked) = match queue.front() {
                None => return Sent { bytes, then: Then::Done },
                Some(Chunk::File(_)) => {
                    let file = self.send_file(fd, queue, pool, calls);
                    bytes += file.bytes;
                    match file.then {
                        Then::Done => continue,
                        then => return Sent { bytes, then },
                    }
                }
                Some(Chunk::Urgent(byte)) => {
                    let (address, flags) = (std::ptr::from_ref::<u8>(byte), SEND_FLAGS | libc::MSG_OOB);
                    // SAFETY: the byte is borrowed for the call.
                    (unsafe { libc::send(fd.as_raw_fd(), address.cast(), 1, flags) }, 1)
                }
                Some(_) => send_vectored(fd, queue),
            };
            *calls += 1;
            match took(count, asked, queue) {
                None => {}
                Some(Sent { bytes: more, then: Then::Done }) => bytes += more,
                Some(Sent { bytes: more, then }) => return Sent { bytes: bytes + more, then },
            }
        }
    }

    /// Sends from the file in front of the queue. `Done` means that memory is in front now, or nothing.
    #[inline(never)]
    fn send_file(self, fd: BorrowedFd<'_>, queue: &mut SendQueue, pool: &Pool, calls: &mut u64) -> Sent {
        let mut bytes = 0;
        if self.blocking && self.sendfile {
            // Nobody else looks at the socket meanwhile: operations read the flag when they start, on this thread.
            if let Err(error) = platform::set_nonblocking(fd, true) {
                return Sent { bytes, then: Then::Failed(error) };
            }
        }
        let mut then = loop {
            let Some(Chunk::File(range)) = queue.front() else { break Then::Done };
            if bytes >= FILE_BYTES_PER_SEND {
                break Then::Later;
            }
            *calls += 1;
            let sent = if self.sendfile {
                platform::send_file(fd, range, FILE_BYTES_PER_SEND - bytes)
            } else {
                Err(io::ErrorKind::Unsupported.into())
            };
            match sent {
                Ok(0) => break Then::Failed(truncated()),
                Ok(count) => {
                    queue.consume(count);
                    bytes += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_not_yet(&error) => break Then::Full,
                // Not every file can be sent from (see sendfile(2)), but every file can be read.
                Err(error) if cannot_send(&error) => match queue.load_front(pool) {
                    Ok(()) => break Then::Done,
                    Err(error) => break Then::Failed(error),
                },
                Err(error) => break Then::Failed(error),
            }
        };
        if self.blocking
            && self.sendfile
            && let Err(error) = platform::set_nonblocking(fd, false)
        {
            then = Then::Failed(error);
        }
        Sent { bytes, then }
    }
}

/// Takes out of `queue` what a call took that answered `count` when it was asked to send `asked` bytes. `Done` means that
/// it took all of them, and `None` that the call has to be made again.
#[cold]
fn took(count: isize, asked: usize, queue: &mut SendQueue) -> Option<Sent> {
    let Ok(bytes) = usize::try_from(count) else {
        return match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => None,
            error if is_not_yet(&error) => Some(Sent { bytes: 0, then: Then::Full }),
            error => Some(Sent { bytes: 0, then: Then::Failed(error) }),
        };
    };
    queue.consume(bytes);
    Some(Sent { bytes, then: if bytes < asked { Then::Full } else { Then::Done } })
}

/// Whether there is no room now: also when the SYN of a connect that waited for data (TCP Fast Open) took none of it.
fn is_not_yet(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::EINPROGRESS)
}

/// Whether the system refused the way of sending and not the bytes.
fn cannot_send(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported
        || matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::EOVERFLOW))
        || error.raw_os_error() == Some(libc::ENOTSUP) // The same number on some systems.
}

/// One sendmsg(2) over the first pieces, without `MSG_MORE` also where a file follows: a head that shares a segment with the
/// file made files of 1 MiB cost 15 % more. Returns its answer and how many bytes it was asked to send.
#[inline(never)]
fn send_vectored(fd: BorrowedFd<'_>, queue: &SendQueue) -> (isize, usize) {
    let mut slices = [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES_PER_SEND];
    let count = fill_slices(queue.iter(), &mut slices);
    let asked = slices[..count].iter().map(|slice| slice.iov_len).sum();
    // SAFETY: an all-zero msghdr is valid: no name, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = slices.as_mut_ptr();
    message.msg_iovlen = count as _;
    // SAFETY: the message points to `slices`, whose pieces are borrowed from the queue for the call.
    (unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, SEND_FLAGS) }, asked)
}

/// Describes the `pieces` before the first that needs a call of its own, as many as fit, and returns how many those are.
pub(crate) fn fill_slices<'a>(pieces: impl Iterator<Item = &'a Chunk>, slices: &mut [libc::iovec]) -> usize {
    let mut count = 0;
    for (piece, slice) in pieces.take_while(|piece| !piece.is_alone()).zip(slices) {
        let data = piece.as_slice();
        *slice = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    /// What the first call of each receive here is said to have brought.
    const FIRST: usize = 40_000;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    /// Goes on with a receive of up to `size` bytes as soon as `arrived` says so. Returns what came behind the first.
    fn go_on(near: &TcpStream, size: usize, arrived: impl Fn() -> bool) -> (Got, Vec<u8>, u64) {
        let patience = Instant::now() + Duration::from_secs(10);
        while !arrived() {
            assert!(Instant::now() < patience, "it does not arrive");
        }
        let (mut memory, mut calls) = (vec![0; size], 0);
        // SAFETY: the memory is as large as that.
        let got = unsafe { receive_on(near.as_fd(), memory.as_mut_ptr(), size, FIRST, &mut calls) };
        memory.truncate(got.bytes);
        (got, memory.split_off(FIRST), calls)
    }

    fn holds(near: &TcpStream, bytes: usize) -> impl Fn() -> bool {
        move || matches!(near.peek(&mut vec![0; bytes + 1]), Ok(there) if there == bytes)
    }

    #[test]
    fn a_receive_goes_on_while_much_comes() {
        let (near, mut far) = pair();
        let data: Vec<u8> = (0..50_000_u32).map(|at| at as u8).collect();
        far.write_all(&data).unwrap();
        let (got, bytes, calls) = go_on(&near, 256 * 1024, holds(&near, data.len()));
        assert!(bytes == data && !got.more && got.failed.is_none(), "then it finds nothing");
        assert_eq!(calls, 2);

        far.write_all(&data[..100]).unwrap();
        let (got, bytes, calls) = go_on(&near, 256 * 1024, holds(&near, 100));
        assert!(bytes == data[..100] && !got.more && got.failed.is_none(), "little is the end");
        assert_eq!(calls, 1);

        far.write_all(&data).unwrap();
        let (got, bytes, calls) = go_on(&near, FIRST + STREAM_BYTES, holds(&near, data.len()));
        assert!(bytes == data[..STREAM_BYTES] && got.more && got.failed.is_none(), "its room is full");
        assert_eq!(calls, 1);
    }

    /// The FIN is found again, a failure is not.
    #[test]
    fn the_end_behind_a_receive_is_not_lost() {
        let (near, far) = pair();
        drop(far);
        let (got, bytes, _) = go_on(&near, 256 * 1024, holds(&near, 0));
        assert!(bytes.is_empty() && got.more && got.failed.is_none());

        let (near, far) = pair();
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        near.set_nonblocking(true).unwrap();
        // What waits is told by poll(2), which leaves the error where it is.
        let (got, bytes, _) = go_on(&near, 256 * 1024, || {
            let mut poll = libc::pollfd { fd: near.as_raw_fd(), events: 0, revents: 0 };
            // SAFETY: one entry is passed.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        });
        assert!(bytes.is_empty() && got.more);
        assert_eq!(got.failed.map(|error| error.kind()), Some(io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn little_that_is_left_of_a_share_is_left_for_the_next_turn() {
        const SHARE: usize = 256 * 1024;
        assert_eq!(share_left(SHARE, 0), Some(SHARE));
        assert_eq!(share_left(SHARE, 65_483), Some(SHARE - 65_483));
        assert_eq!(share_left(SHARE, 4 * 65_483), None, "212 bytes are left");
        assert_eq!(share_left(SHARE, SHARE), None);
        assert_eq!(share_left(SHARE, SHARE + 1), None);
        // However small the share is, each turn brings something.
        assert_eq!((share_left(1, 0), share_left(1, 1)), (Some(1), None));
        assert_eq!((share_left(0, 0), share_left(0, 1)), (Some(1), None));
    }
}
