//! Plain non-blocking calls on a socket, shared by the readiness engine and by io_uring's direct mode.
//!
//! Both receive into the slot that was used last, which is still in the processor's cache, and send from it at once.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::platform::SEND_FLAGS;
use crate::buffer::{Buf, Chunk, Pool, SendQueue, SlotClass};

/// Most pieces of one vectored send (`IOV_MAX` is 1,024 on Linux; beyond some tens there is nothing to gain).
pub(crate) const PIECES_PER_SEND: usize = 64;

/// What a receive call found.
pub(crate) enum Received {
    /// Bytes, and whether they filled the buffer, so that there may be more.
    Data { buf: Buf, full: bool },
    /// Nothing yet.
    Empty,
    /// The peer's FIN.
    Fin,
    /// No slot is free; nothing was read.
    NoBuffer,
    /// The connection failed.
    Failed(io::Error),
}

/// Receives once into a slot of `pool`.
#[inline]
pub(crate) fn receive(fd: BorrowedFd<'_>, pool: &Pool, calls: &mut u64) -> Received {
    let Some(mut buf) = pool.lease(SlotClass::Large) else { return Received::NoBuffer };
    let (address, size) = buf.raw_memory();
    loop {
        *calls += 1;
        // SAFETY: the slot is leased by `buf`, writable and `size` bytes long, and the call returns before it is used.
        let count = unsafe { libc::recv(fd.as_raw_fd(), address.cast(), size, libc::MSG_DONTWAIT) };
        if count > 0 {
            buf.set_filled(count as u32);
            let full = count as usize == size;
            return Received::Data { buf: pool.relieve(buf, SlotClass::Large), full };
        }
        if count == 0 {
            return Received::Fin;
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error if error.kind() == io::ErrorKind::WouldBlock => return Received::Empty,
            error => return Received::Failed(error),
        }
    }
}

/// Sends the front of `queue` and takes what was sent out of it. Returns the bytes that the kernel took: less than
/// was queued means that it takes no more now.
///
/// # Errors
///
/// What send(2) answers, but for `EAGAIN` (that is 0 bytes) and `EINTR` (tried again).
#[inline]
pub(crate) fn send(fd: BorrowedFd<'_>, queue: &mut SendQueue, calls: &mut u64) -> io::Result<usize> {
    let mut total = 0;
    loop {
        *calls += 1;
        let (count, asked) = match queue.front() {
            None => return Ok(total),
            Some(only) if queue.pieces() == 1 => {
                let data = only.as_slice();
                // SAFETY: `data` is borrowed for the call.
                let count = unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), SEND_FLAGS) };
                (count, data.len())
            }
            Some(_) => send_vectored(fd, queue),
        };
        if count < 0 {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error if error.kind() == io::ErrorKind::WouldBlock => return Ok(total),
                error => return if total > 0 { Ok(total) } else { Err(error) },
            }
        }
        queue.consume(count as usize);
        total += count as usize;
        if (count as usize) < asked || queue.is_empty() {
            return Ok(total);
        }
    }
}

/// One sendmsg(2) over the first pieces. Returns its answer and how many bytes it was asked to send.
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

/// Describes `pieces` to the kernel, as many as fit, and returns how many those are.
pub(crate) fn fill_slices<'a>(pieces: impl Iterator<Item = &'a Chunk>, slices: &mut [libc::iovec]) -> usize {
    let mut count = 0;
    for (piece, slice) in pieces.zip(slices) {
        let data = piece.as_slice();
        *slice = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
        count += 1;
    }
    count
}
