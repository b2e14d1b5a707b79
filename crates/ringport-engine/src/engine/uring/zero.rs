//! Sending without a copy: the kernel reads the piece itself while it sends, and says in a *notification* when it no
//! longer does.
//!
//! ```text
//! send ─► result (more follows) ─────────────► notification ─► Sent, the piece is dropped
//!           │ connection closes: the descriptor goes, the piece stays ─┘
//!           └ without "more": no notification comes, this was the last
//! ```
//!
//! A piece that is on loan lies in a table of the engine's and not in the connection, because a notification can come long
//! after the connection has gone: the kernel goes on sending what it took. A send that fails may be followed by a
//! notification all the same (io_uring_prep_send_zc(3)), so that nothing but the completion without "more" ends a loan.
//!
//! `Sent` comes with the notification: until then the memory is in use, and counts as queued. One send is in flight at a
//! time as always, so that each waits for the acknowledgement of the last; that suits large pieces, and only those are
//! sent so.

use bytes::Buf as _;
use io_uring::{cqueue, opcode};

use super::ring::Completion;
use super::send::{FLAGS, Flight};
use super::{Conn, Op, State, UringEngine};
use crate::buffer::{Buf, Chunk};
use crate::engine::contract::Event;
use crate::id::{ConnId, Id};

/// A piece that the kernel reads from.
pub(super) struct Loan {
    conn: ConnId,
    piece: Chunk,
    /// What the send came to, once that is known.
    result: Option<i32>,
}

impl Conn {
    /// Whether a send is in flight, be it that only its memory is still in use.
    #[inline]
    pub(super) fn is_sending(&self) -> bool {
        self.is_armed(Op::Send) || matches!(self.flight, Flight::ZeroCopy(_))
    }
}

/// Whether a piece is so large that it is to be sent without a copy.
#[inline]
pub(super) fn is_for_loan(above: Option<usize>, piece: &Chunk) -> bool {
    above.is_some_and(|above| piece.len() >= above && matches!(piece, Chunk::Buf(_) | Chunk::Bytes(_)))
}

impl UringEngine {
    /// Starts a send without a copy.
    pub(super) fn lend(&mut self, id: ConnId, piece: Chunk) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let data = piece.as_slice();
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let entry = opcode::SendZc::new(conn.target(), data.as_ptr(), length).flags(FLAGS).build();
        let loan: Id = self.loans.insert(Loan { conn: id, piece, result: None });
        conn.flight = Flight::ZeroCopy(loan);
        conn.arm(Op::Send);
        // SAFETY: the bytes belong to the loan, which stays in the table until the completion without "more"; moving it
        // within the table does not move them.
        unsafe { self.ring.push(&entry.user_data(Op::SendZc.tag(loan))) };
    }

    pub(super) fn on_zero_copy(&mut self, completion: Completion) -> Option<Event> {
        let (id, loan) = self.loans.slot_mut::<Id>(completion.tag as u32)?;
        if completion.tag != Op::SendZc.tag(id) {
            return None;
        }
        let conn = loan.conn;
        if !cqueue::notif(completion.flags) {
            loan.result = Some(completion.result);
            if let Some(conn) = self.conns.get_mut(conn) {
                conn.disarm(Op::Send);
            }
        }
        if !completion.more() {
            return self.end_loan(id);
        }
        if self.conns.get(conn).is_some_and(|conn| conn.state != State::Open) {
            // Nothing refers to the descriptor any more: it may be closed before the notification.
            self.settle(conn);
        }
        None
    }

    /// The kernel has let go of the piece.
    fn end_loan(&mut self, id: Id) -> Option<Event> {
        let Loan { conn: owner, mut piece, result } = self.loans.remove(id)?;
        let conn =
            self.conns.get_mut(owner).filter(|conn| matches!(conn.flight, Flight::ZeroCopy(loan) if loan == id))?;
        conn.flight = Flight::None;
        let (open, closing) = (conn.state == State::Open, matches!(conn.state, State::Closing | State::Closed));
        let result = result.unwrap_or(-libc::ECANCELED);
        let bytes = usize::try_from(result).unwrap_or(0).min(piece.len());
        if result >= 0 {
            self.stats.zero_copies += 1;
            piece.advance(bytes);
        }
        let idle = piece.is_empty();
        if !idle && let Some(conn) = self.conns.get_mut(owner) {
            conn.flight = Flight::One(piece);
        }
        match (open, result) {
            (true, 0..) if !idle => self.submit_flight(owner),
            (true, 0..) => {
                if self.conns.get(owner).is_some_and(|conn| conn.finishing) {
                    self.send_fin(owner);
                }
            }
            (true, error) => self.refused(owner, -error),
            (false, _) => self.settle(owner),
        }
        (bytes > 0 && !closing).then_some(Event::Sent { conn: owner, bytes, idle: idle && open })
    }

    /// A send without a copy failed. If only the way was refused, an ordinary send follows.
    #[cold]
    fn refused(&mut self, id: ConnId, error: i32) {
        match error {
            // Not with this protocol (Unix sockets), not with this kernel, or too much memory is on loan already.
            libc::EOPNOTSUPP
            | libc::EINVAL
            | libc::ENOMEM
            | libc::ENOBUFS
            | libc::EAGAIN
            | libc::EINPROGRESS
            | libc::EINTR => {
                self.submit_flight(id);
            }
            error => self.fail(id, error),
        }
    }

    /// What of a piece on loan the kernel did not take, in memory of its own: the piece itself stays where it is.
    pub(super) fn unsent_of_loan(&self, id: Id) -> Vec<Chunk> {
        let Some(loan) = self.loans.get(id) else { return Vec::new() };
        let taken = loan.result.map_or(0, |result| usize::try_from(result).unwrap_or(0)).min(loan.piece.len());
        let rest = match &loan.piece {
            Chunk::Bytes(bytes) => {
                let mut rest = bytes.clone();
                rest.advance(taken);
                rest.into()
            }
            piece => Chunk::from(Buf::copied(&piece.as_slice()[taken..])),
        };
        if rest.is_empty() { Vec::new() } else { vec![rest] }
    }

    /// At the end of the engine: lets the kernel forget what closed connections had under way, so that it notifies soon.
    pub(super) fn reset_for_loans(&mut self) {
        if self.loans.len() == 0 {
            return;
        }
        for id in self.conns.ids::<ConnId>() {
            if let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.armed == 0)
                && let Some(fd) = conn.fd.take()
            {
                // Only fails on sockets that cannot reset anyway.
                let _ = socket2::SockRef::from(&fd).set_linger(Some(std::time::Duration::ZERO));
            }
        }
    }
}
