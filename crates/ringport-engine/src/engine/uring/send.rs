//! Sending: at most one record in flight for each connection, which owns what the kernel reads.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;

use io_uring::types::Fd;
use io_uring::{opcode, squeue};

use super::ring::Completion;
use super::zero::is_for_loan;
use super::{Mode, Op, State, UringEngine};
use crate::buffer::{Chunk, SendQueue};
use crate::engine::contract::SendProgress;
use crate::engine::direct::{self, PIECES_PER_SEND, Then};
use crate::id::{ConnId, Id};
use crate::socket::SockAddr;

/// Whether a connection in multishot mode, too, sends by a plain call at once. Measured with echoes of 64 and 1,024 bytes
/// on 50 and 1,000 connections: an entry for the next enter costs 10 to 13 % less server time a message.
pub(super) const SEND_AT_ONCE: bool = false;

/// Records with several pieces that are kept for reuse; each has about 1 KiB.
pub(super) const SPARE_BATCHES: usize = 64;

pub(super) const FLAGS: i32 = libc::MSG_NOSIGNAL;

/// What the kernel reads from while an operation is armed. Moving it does not move the bytes.
pub(super) enum Flight {
    None,
    /// The address of a connect.
    Address(#[expect(dead_code, reason = "read by the kernel")] Box<SockAddr>),
    /// One piece, by far the most frequent.
    One(Chunk),
    Many(Box<Batch>),
    /// A file, and what of it was read already. A poll says when there is room, and plain calls send.
    ///
    /// A splice operation would not wait like that: it always runs on a worker thread of the kernel, and keeps that
    /// thread as long as the peer does not read.
    Polled(Box<SendQueue>),
    /// A piece on loan, see [`zero`](super::zero).
    ZeroCopy(Id),
}

/// Several pieces and their description for sendmsg(2).
pub(super) struct Batch {
    pieces: SendQueue,
    slices: [libc::iovec; PIECES_PER_SEND],
    message: libc::msghdr,
}

impl Batch {
    fn new() -> Box<Self> {
        let empty = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        // SAFETY: an all-zero msghdr is valid: no name, no pieces, no control data.
        let message = unsafe { std::mem::zeroed() };
        Box::new(Self { pieces: SendQueue::new(), slices: [empty; PIECES_PER_SEND], message })
    }

    /// Moves pieces out of `queue`, as many as one call can send.
    fn load(&mut self, queue: &mut SendQueue) {
        for _ in 0..PIECES_PER_SEND {
            if queue.front().is_none_or(Chunk::is_alone) {
                return;
            }
            if let Some(piece) = queue.pop() {
                self.pieces.push(piece);
            }
        }
    }

    /// Describes the pieces as they are now. The description is valid as long as neither they nor the box change.
    fn describe(&mut self) -> *const libc::msghdr {
        let count = direct::fill_slices(self.pieces.iter(), &mut self.slices);
        self.message.msg_iov = self.slices.as_mut_ptr();
        self.message.msg_iovlen = count as _;
        &raw const self.message
    }
}

impl Flight {
    /// Drops the bytes that were sent. Whether nothing is left.
    #[inline]
    fn consume(&mut self, bytes: usize) -> bool {
        match self {
            Self::None | Self::Address(_) | Self::Polled(_) | Self::ZeroCopy(_) => true,
            Self::One(piece) if bytes >= piece.len() => true,
            Self::One(piece) => {
                piece.advance(bytes);
                false
            }
            Self::Many(batch) => {
                batch.pieces.consume(bytes.min(batch.pieces.bytes() as usize));
                batch.pieces.is_empty()
            }
        }
    }

    /// What has not been sent.
    pub(super) fn unsent(self) -> Vec<Chunk> {
        match self {
            Self::None | Self::Address(_) | Self::ZeroCopy(_) => Vec::new(),
            Self::One(piece) => vec![piece],
            Self::Many(mut batch) => std::iter::from_fn(|| batch.pieces.pop()).collect(),
            Self::Polled(mut pieces) => std::iter::from_fn(|| pieces.pop()).collect(),
        }
    }
}

/// The answer to a send while the kernel has taken nothing yet.
const NOTHING: SendProgress = SendProgress { bytes: 0, idle: false };

/// The operation that sends one piece. Inlined for the reason that [`Ring::push`](super::ring::Ring::push) is.
#[inline(always)]
fn send_entry(fd: Fd, piece: &Chunk) -> squeue::Entry {
    let data = piece.as_slice();
    // A piece of 4 GiB or more goes in parts; the completion says how much went.
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
    let urgent = if matches!(piece, Chunk::Urgent(_)) { libc::MSG_OOB } else { 0 };
    opcode::Send::new(fd, data.as_ptr(), length).flags(FLAGS | urgent).build()
}

/// Whether a file stands behind the first piece.
#[inline]
fn file_is_next(queue: &SendQueue) -> bool {
    queue.pieces() > 1 && matches!(queue.iter().nth(1), Some(Chunk::File(_)))
}

/// Stands for a file that was too short, where an `errno` is kept.
pub(super) const TRUNCATED: i32 = i32::MAX;

/// An error as [`Conn::error`](super::Conn) keeps it.
fn code_of(error: &io::Error) -> i32 {
    let other = if error.kind() == io::ErrorKind::UnexpectedEof { TRUNCATED } else { libc::EIO };
    error.raw_os_error().unwrap_or(other)
}

impl UringEngine {
    #[inline]
    pub(super) fn start_send(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        let alone = self.is_alone();
        let Some(conn) = self.conns.get_mut(id) else { return NOTHING };
        if conn.state != State::Open || conn.finishing || conn.is_sending() {
            return NOTHING;
        }
        let at_once = self.send_at_once || conn.mode != Mode::Multishot || alone;
        if !at_once
            && self.zero_copy_above.is_none()
            && let Some(piece) = queue.take_only()
        {
            // What was there is nothing, but to drop it would mean to look what it is.
            let before = ManuallyDrop::new(std::mem::replace(&mut conn.flight, Flight::One(piece)));
            debug_assert!(matches!(*before, Flight::None));
            conn.arm(Op::Send);
            let Flight::One(piece) = &conn.flight else { return NOTHING };
            let entry = send_entry(conn.target(), piece).user_data(Op::Send.tag(id));
            // SAFETY: as in `submit_flight`.
            unsafe { self.ring.push(&entry) };
            return NOTHING;
        }
        self.start_other_send(id, queue, at_once)
    }

    /// What most sends are not: at once, of several pieces, of a file, on loan.
    #[inline(never)]
    fn start_other_send(&mut self, id: ConnId, queue: &mut SendQueue, at_once: bool) -> SendProgress {
        let Some(conn) = self.conns.get_mut(id) else { return NOTHING };
        if queue.is_empty() {
            return SendProgress { bytes: 0, idle: true };
        }
        let mut bytes = 0;
        let loan = queue.front().is_some_and(|piece| is_for_loan(self.zero_copy_above, piece));
        // What stands before a file goes with it: two turns less than by itself.
        if !loan && (at_once || file_is_next(queue)) || matches!(queue.front(), Some(Chunk::File(_))) {
            let Some(fd) = &conn.fd else { return NOTHING };
            let sent = self.sender.send(fd.as_fd(), queue, &self.pool, &mut self.stats.calls);
            bytes = sent.bytes;
            match sent.then {
                Then::Done => return SendProgress { bytes, idle: true },
                Then::Full | Then::Later => {}
                Then::Failed(error) => {
                    self.fail(id, code_of(&error));
                    return SendProgress { bytes, idle: false };
                }
            }
        }
        self.start_flight(id, queue);
        SendProgress { bytes, idle: false }
    }

    /// Sends the front of `queue` by an operation. By itself, since it needs much of the stack.
    #[inline(never)]
    fn start_flight(&mut self, id: ConnId, queue: &mut SendQueue) {
        match queue.front() {
            Some(piece) if is_for_loan(self.zero_copy_above, piece) => {
                let piece = queue.pop();
                piece.into_iter().for_each(|piece| self.lend(id, piece));
            }
            _ => {
                self.load_flight(id, queue);
                self.submit_flight(id);
            }
        }
    }

    /// Whether this turn had a single event. Its answer then shares an enter with nobody: the next one would end with the
    /// completion of the send alone, and a second one would have to wait for what comes.
    #[inline]
    fn is_alone(&self) -> bool {
        self.events_left + 1 >= self.events_per_turn
    }

    /// Moves the front of `queue` to where the kernel can read it.
    #[inline]
    fn load_flight(&mut self, id: ConnId, queue: &mut SendQueue) {
        let flight = if matches!(queue.front(), Some(Chunk::File(_))) {
            let mut file = Box::new(SendQueue::new());
            queue.pop().into_iter().for_each(|piece| file.push(piece));
            Flight::Polled(file)
        } else if queue.pieces() == 1 || queue.front().is_some_and(Chunk::is_alone) {
            queue.pop().map_or(Flight::None, Flight::One)
        } else {
            let mut batch = self.spare_batches.pop().unwrap_or_else(Batch::new);
            batch.load(queue);
            Flight::Many(batch)
        };
        if let Some(conn) = self.conns.get_mut(id) {
            conn.flight = flight;
        }
    }

    #[inline]
    pub(super) fn submit_flight(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let fd = conn.target();
        let entry = match &mut conn.flight {
            Flight::None | Flight::Address(_) | Flight::ZeroCopy(_) => return,
            Flight::One(piece) => send_entry(fd, piece),
            Flight::Many(batch) => opcode::SendMsg::new(fd, batch.describe()).flags(FLAGS as u32).build(),
            Flight::Polled(_) => opcode::PollAdd::new(fd, libc::EPOLLOUT as u32).build(),
        };
        conn.arm(Op::Send);
        // SAFETY: the bytes belong to the flight, and with several pieces the description does, too. The flight stays in
        // the connection, untouched, until the terminal completion; moving the connection moves neither bytes nor box.
        unsafe { self.ring.push(&entry.user_data(Op::Send.tag(id))) };
    }

    #[inline]
    pub(super) fn on_send(&mut self, completion: Completion) -> Option<(ConnId, usize, bool)> {
        let (id, conn) = self.conn_of(completion)?;
        conn.disarm(Op::Send);
        if let Flight::One(Chunk::Buf(buf)) = &conn.flight
            && usize::try_from(completion.result) == Ok(buf.len())
            && conn.state == State::Open
            && !conn.finishing
        {
            conn.flight = Flight::None; // Which drops the buffer where it is.
            return Some((id, completion.result as usize, true));
        }
        self.on_other_send(id, completion)
    }

    /// What the completion of a send seldom is: not of one buffer that went whole.
    #[inline(never)]
    fn on_other_send(&mut self, id: ConnId, completion: Completion) -> Option<(ConnId, usize, bool)> {
        let conn = self.conns.get_mut(id)?;
        if completion.result < 0 {
            self.send_failed(id, -completion.result);
            return None;
        }
        if matches!(conn.flight, Flight::Polled(_)) {
            return self.continue_polled(id);
        }
        let bytes = completion.result as usize;
        let idle = conn.flight.consume(bytes);
        let (open, closing) = (conn.state == State::Open, conn.state == State::Closing);
        if idle {
            let flight = std::mem::replace(&mut conn.flight, Flight::None);
            if conn.finishing && open {
                self.send_fin(id);
            }
            self.recycle(flight);
        } else if open {
            self.submit_flight(id);
        }
        if !open {
            self.settle(id);
        }
        // A failing connection takes no more, but what the kernel took still counts.
        if closing { None } else { Some((id, bytes, idle && open)) }
    }

    /// There is room for more of a file.
    fn continue_polled(&mut self, id: ConnId) -> Option<(ConnId, usize, bool)> {
        let conn = self.conns.get_mut(id)?;
        if conn.state != State::Open {
            self.settle(id);
            return None;
        }
        let (Flight::Polled(pieces), Some(fd)) = (&mut conn.flight, &conn.fd) else { return None };
        let sent = self.sender.send(fd.as_fd(), pieces, &self.pool, &mut self.stats.calls);
        let (bytes, idle) = (sent.bytes, matches!(sent.then, Then::Done));
        match sent.then {
            Then::Done => {
                conn.flight = Flight::None;
                if conn.finishing {
                    self.send_fin(id);
                }
            }
            // The poll is answered at once if there is room still, but only in the next turn.
            Then::Full | Then::Later => self.submit_flight(id),
            Then::Failed(error) => self.fail(id, code_of(&error)),
        }
        (bytes > 0).then_some((id, bytes, idle))
    }

    #[cold]
    fn send_failed(&mut self, id: ConnId, error: i32) {
        let open = self.conns.get(id).is_some_and(|conn| conn.state == State::Open);
        match error {
            // The second: the SYN of a connect that waited for data (TCP Fast Open) took none of it.
            libc::EAGAIN | libc::EINPROGRESS | libc::EINTR if open => self.submit_flight(id),
            _ if open => self.fail(id, error),
            _ => self.settle(id),
        }
    }

    #[inline]
    fn recycle(&mut self, flight: Flight) {
        if let Flight::Many(batch) = flight
            && self.spare_batches.len() < SPARE_BATCHES
        {
            self.spare_batches.push(batch);
        }
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.finishing, true) {
            return;
        }
        if conn.state == State::Open && !conn.is_sending() {
            self.send_fin(id);
        }
    }

    /// Everything was handed to the kernel: the FIN goes behind it.
    pub(super) fn send_fin(&mut self, id: ConnId) {
        if let Some(fd) = self.conns.get(id).and_then(|conn| conn.fd.as_ref()) {
            // A connection that is gone already says so elsewhere.
            let _ = socket2::SockRef::from(fd).shutdown(std::net::Shutdown::Write);
        }
    }
}
