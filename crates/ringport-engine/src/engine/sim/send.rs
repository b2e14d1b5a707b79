//! Sending: pieces move into the connection's record, and from there into the kernel's buffer as it has room.

use super::memory::Reading;
use super::network::{Action, Note, State};
use super::personality::Oddity;
use super::{Conn, ConnState, SimEngine};
use crate::buffer::{Chunk, Pool, SendQueue};
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
        if conn.state != ConnState::Open || conn.finishing || conn.failed.is_some() || conn.is_sending() {
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
        if state.is_odd(Oddity::LatePacket) {
            conn.unreported = hand_over(&mut state, conn, number, id, &pool);
        }
        let waits = conn.unreported > 0 || state.queues_sends();
        let bytes = if waits { 0 } else { hand_over(&mut state, conn, number, id, &pool) };
        if conn.unreported > 0 {
            conn.post_send();
            state.schedule(Action::Tell(number, Note::Send(id)));
        } else if !conn.record.is_empty() {
            go_on_later(&mut state, conn, number, id);
        }
        SendProgress { bytes, idle: !conn.is_sending() }
    }

    /// A send completes, wholly or in part.
    pub(super) fn send_one(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        let mut state = self.network.lock();
        let posted = std::mem::take(&mut conn.send_posted);
        if conn.state == ConnState::Closing {
            // The cancel comes before or after this completion, which nobody is told about.
            if state.flips() {
                hand_over(&mut state, conn, self.number, id, &self.pool);
            }
            return None;
        }
        if !conn.is_sending() || (conn.failed.is_some() && conn.unreported == 0) {
            return None;
        }
        assert!(posted || state.tells_edges(), "a send completes that was not posted");
        let bytes = std::mem::take(&mut conn.unreported) + hand_over(&mut state, conn, self.number, id, &self.pool);
        let idle = conn.record.is_empty();
        if !idle {
            go_on_later(&mut state, conn, self.number, id);
        } else if conn.finishing {
            state.finish(conn.socket);
        }
        (bytes > 0).then_some(Event::Sent { conn: id, bytes, idle })
    }

    /// The kernel lets go of what it read.
    pub(super) fn released(&mut self, id: ConnId) -> Option<Event> {
        if let Some(reading) = self.conns.get_mut(id)?.reading.pop_front() {
            reading.end();
        }
        None
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        let Some((mut state, conn)) = self.open_conn(id) else { return };
        conn.finishing = true;
        if conn.record.is_empty() && conn.state == ConnState::Open {
            state.finish(conn.socket);
        }
    }
}

impl Conn {
    /// Whether a send is in flight.
    fn is_sending(&self) -> bool {
        !self.record.is_empty() || self.unreported > 0
    }

    /// Puts a send into the request queue. On a real machine one too many is lost without a word.
    fn post_send(&mut self) {
        assert!(!std::mem::replace(&mut self.send_posted, true), "the request queue is full");
    }

    /// Whether the kernel still reads memory of sends that are complete.
    pub(super) fn is_read(&self) -> bool {
        !self.reading.is_empty()
    }
}

/// Moves what fits out of the record into the kernel and says how much that was. A file that cannot be read ends the
/// connection.
fn hand_over(state: &mut State, conn: &mut Conn, engine: usize, id: ConnId, pool: &Pool) -> usize {
    if conn.failed.is_some() {
        return 0;
    }
    let room = state.send_room(conn.socket).min(usize::try_from(conn.record.bytes()).unwrap_or(usize::MAX));
    let room = room.min(state.slice_bytes());
    let count = state.some_of(room);
    let late = count > 0 && state.is_odd(Oddity::LateNotice);
    let Some(socket) = state.sockets.get_mut(conn.socket) else { return 0 };
    let (mut left, mut pieces) = (count, Vec::new());
    while left > 0 {
        if let Err(error) = conn.record.load_front(pool) {
            conn.failed = Some(error.kind());
            break;
        }
        let Some(piece) = conn.record.front() else { break };
        let part = left.min(piece.len());
        socket.write(&piece.as_slice()[..part], matches!(piece, Chunk::Urgent(_)));
        // What the kernel still reads after it has said that it took it stays in use.
        if late && part == piece.len() {
            pieces.extend(conn.record.pop());
        } else {
            conn.record.consume(part);
        }
        left -= part;
    }
    let count = count - left;
    if !pieces.is_empty() {
        conn.reading.push_back(Reading::new(pieces));
        state.schedule(Action::Tell(engine, Note::Released(id)));
    }
    state.note_down(count as u64);
    state.kick(conn.socket);
    count
}

/// Continues the record when the kernel has room: later if there is some already, else when the peer took something.
fn go_on_later(state: &mut State, conn: &mut Conn, engine: usize, id: ConnId) {
    if conn.failed.is_some() {
        state.schedule(Action::Tell(engine, Note::Failed(id)));
        return;
    }
    conn.post_send();
    if state.send_room(conn.socket) > 0 {
        state.schedule(Action::Tell(engine, Note::Send(id)));
    } else if let Some(socket) = state.sockets.get_mut(conn.socket) {
        socket.send_armed = true;
    }
}
