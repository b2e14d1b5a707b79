//! Sending.
//!
//! `send` tries at once, from where the bytes are. Only what the kernel does not take is moved into the connection's
//! record, which the next writable edge continues.

use std::net::Shutdown;
use std::os::fd::AsFd;

use super::{Conn, ReadinessEngine};
use crate::buffer::SendQueue;
use crate::engine::contract::{Event, SendProgress};
use crate::engine::direct::{PIECES_PER_SEND, Sent, Then};
use crate::id::ConnId;

impl ReadinessEngine {
    #[inline]
    pub(super) fn begin_send(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        let nothing = SendProgress { bytes: 0, idle: false };
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.may_send()) else { return nothing };
        let Some(socket) = &conn.socket else { return nothing };
        if queue.is_empty() {
            return SendProgress { bytes: 0, idle: true };
        }
        let Sent { bytes, then } = self.sender.send(socket.as_fd(), queue, &self.pool, &mut self.stats.calls);
        match then {
            Then::Done => return SendProgress { bytes, idle: true },
            Then::Full => conn.record = Some(take_record(queue)),
            Then::Later => {
                conn.record = Some(take_record(queue));
                conn.writable = true;
                self.queue(id);
            }
            Then::Failed(error) => {
                conn.fail(error);
                self.queue(id);
            }
        }
        SendProgress { bytes, idle: false }
    }

    /// Sends more of the record.
    #[inline(never)]
    pub(super) fn continue_send(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        conn.writable = false;
        let (Some(socket), Some(record)) = (&conn.socket, &mut conn.record) else { return None };
        let Sent { bytes, then } = self.sender.send(socket.as_fd(), record, &self.pool, &mut self.stats.calls);
        let idle = matches!(then, Then::Done);
        match then {
            Then::Done => {
                conn.record = None;
                conn.finish_if_idle();
            }
            Then::Full => {}
            Then::Later => {
                conn.writable = true;
                self.turn.queue(id, conn);
            }
            Then::Failed(error) => conn.fail(error),
        }
        if bytes > 0 { Some(Event::Sent { conn: id, bytes, idle }) } else { None }
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.finishing) {
            conn.finishing = true;
            conn.finish_if_idle();
        }
    }
}

impl Conn {
    /// Whether `send` may take anything.
    #[inline]
    fn may_send(&self) -> bool {
        self.record.is_none() && !self.connecting && !self.finishing && self.failure.is_none()
    }

    /// Sends the FIN if it was asked for and nothing is in flight before it.
    pub(super) fn finish_if_idle(&self) {
        if let (Some(socket), None, true, false) = (&self.socket, &self.record, self.finishing, self.connecting) {
            // It fails only when the connection is gone already, and then receiving reports why.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// Moves the front of `queue` into a record.
#[cold]
fn take_record(queue: &mut SendQueue) -> Box<SendQueue> {
    let mut record = Box::new(SendQueue::new());
    for piece in std::iter::from_fn(|| queue.pop()).take(PIECES_PER_SEND) {
        record.push(piece);
    }
    record
}
