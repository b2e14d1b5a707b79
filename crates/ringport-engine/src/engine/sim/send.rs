//! Sending: pieces move into the connection's record, and from there into the kernel's buffer as it has room.

use super::network::{Action, Note, State};
use super::{Conn, ConnState, SimEngine};
use crate::buffer::{Pool, SendQueue};
use crate::engine::contract::{Event, SendProgress};
use crate::id::ConnId;

/// Most pieces of one send.
const PIECES_PER_SEND: u64 = 64;

const NOTHING: SendProgress = SendProgress { bytes: 0, idle: false };

impl SimEngine {
    pub(super) fn begin_sending(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        self.stats.calls += 1;
        let (number, pool) = (self.number, self.pool.clone());
        let Some((mut state, conn)) = self.open_conn(id) else { return NOTHING };
        if conn.state != ConnState::Open || conn.finishing || conn.failed.is_some() || !conn.record.is_empty() {
            return NOTHING;
        }
        if queue.is_empty() {
            return SendProgress { bytes: 0, idle: true };
        }
        if state.sockets.get(conn.socket).is_none_or(|socket| socket.error.is_some()) {
            return NOTHING;
        }
        for _ in 0..state.pieces_of(PIECES_PER_SEND) {
            let Some(piece) = queue.pop() else { break };
            conn.record.push(piece);
        }
        let bytes = if state.queues_sends() { 0 } else { hand_over(&mut state, conn, &pool) };
        if !conn.record.is_empty() {
            go_on_later(&mut state, conn, number, id);
        }
        SendProgress { bytes, idle: conn.record.is_empty() }
    }

    /// A send completes, wholly or in part.
    pub(super) fn send_one(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        let mut state = self.network.lock();
        if conn.state == ConnState::Closing {
            // The cancel comes before or after this completion, which nobody is told about.
            if state.flips() {
                hand_over(&mut state, conn, &self.pool);
            }
            return None;
        }
        if conn.record.is_empty() || conn.failed.is_some() {
            return None;
        }
        let bytes = hand_over(&mut state, conn, &self.pool);
        let idle = conn.record.is_empty();
        if !idle {
            go_on_later(&mut state, conn, self.number, id);
        } else if conn.finishing {
            state.finish(conn.socket);
        }
        (bytes > 0).then_some(Event::Sent { conn: id, bytes, idle })
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        let Some((mut state, conn)) = self.open_conn(id) else { return };
        conn.finishing = true;
        if conn.record.is_empty() && conn.state == ConnState::Open {
            state.finish(conn.socket);
        }
    }
}

/// Moves what fits out of the record into the kernel and says how much that was. A file that cannot be read ends the
/// connection.
fn hand_over(state: &mut State, conn: &mut Conn, pool: &Pool) -> usize {
    let room = state.send_room(conn.socket).min(usize::try_from(conn.record.bytes()).unwrap_or(usize::MAX));
    let count = state.some_of(room);
    let Some(socket) = state.sockets.get_mut(conn.socket) else { return 0 };
    let mut left = count;
    while left > 0 {
        if let Err(error) = conn.record.load_front(pool) {
            conn.failed = Some(error.kind());
            break;
        }
        let Some(piece) = conn.record.front() else { break };
        let part = left.min(piece.len());
        socket.outgoing.extend(&piece.as_slice()[..part]);
        conn.record.consume(part);
        left -= part;
    }
    let count = count - left;
    state.note_down(count as u64);
    state.kick(conn.socket);
    count
}

/// Continues the record when the kernel has room: later if there is some already, else when the peer took something.
fn go_on_later(state: &mut State, conn: &Conn, engine: usize, id: ConnId) {
    if conn.failed.is_some() {
        state.schedule(Action::Tell(engine, Note::Failed(id)));
    } else if state.send_room(conn.socket) > 0 {
        state.schedule(Action::Tell(engine, Note::Send(id)));
    } else if let Some(socket) = state.sockets.get_mut(conn.socket) {
        socket.send_armed = true;
    }
}
