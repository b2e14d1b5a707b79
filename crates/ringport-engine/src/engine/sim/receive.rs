//! Receiving: bytes are written into a slot of the pool at the moment of completion, never before.

use super::network::Note;
use super::{ConnState, SimEngine};
use crate::buffer::{Buf, SlotClass};
use crate::engine::contract::{Event, Want};
use crate::id::ConnId;

impl SimEngine {
    pub(super) fn set_receiving(&mut self, id: ConnId, want: Want) {
        let Some((mut state, conn)) = self.open_conn(id) else { return };
        let kernel = conn.socket;
        let peer_closed = conn.peer_closed;
        let was_starving = want == Want::Paused && std::mem::take(&mut conn.starving);
        let Some(socket) = state.sockets.get_mut(kernel) else { return };
        // After the FIN there is nothing left to receive, but a failure must still be noticed.
        socket.armed = want == Want::On && !peer_closed;
        if was_starving {
            // It no longer waits for a buffer; a failure must reach it without one.
            socket.noted = false;
        }
        state.note_receive(kernel);
        drop(state);
        if was_starving {
            self.starved.retain(|starved| *starved != id);
        }
    }

    /// Starved connections try again: one for each free slot, the longest waiting first.
    pub(super) fn feed_starved(&mut self) {
        self.pool.collect();
        let slots = self.pool.free(SlotClass::Small) + self.pool.free(SlotClass::Large);
        for _ in 0..slots {
            let Some(id) = self.starved.pop_front() else { return };
            self.ready.push_back(Note::Receive(id));
        }
    }

    /// A receive completes: with bytes, the FIN or a failure.
    pub(super) fn receive_one(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id).filter(|conn| conn.state != ConnState::Closing)?;
        let mut state = self.network.lock();
        let kernel = conn.socket;
        let socket = state.sockets.get_mut(kernel)?;
        socket.noted = false;
        let (length, armed) = (socket.incoming.len(), socket.armed);
        if conn.state == ConnState::Connecting && socket.error.is_none() {
            // `connected` looks again.
            return None;
        }
        if !armed && !state.pauses_late() {
            // A failure does not wait for receiving to go on.
            conn.starving = false;
            drop(state);
            return self.fail_if_broken(id);
        }
        if length == 0 {
            let socket = state.sockets.get_mut(kernel)?;
            if socket.error.is_none() && socket.fin_received && !conn.peer_closed {
                conn.peer_closed = true;
                socket.armed = false;
                return Some(Event::PeerClosed { conn: id });
            }
            drop(state);
            return self.fail_if_broken(id);
        }
        if conn.turn != self.turn {
            (conn.turn, conn.received) = (self.turn, 0);
        }
        let budget = self.config.bytes_per_turn.max(1).saturating_sub(conn.received);
        if budget == 0 {
            self.later.push(Note::Receive(id));
            state.expect_receive(kernel, true);
            return None;
        }
        self.stats.calls += 1;
        let none = !conn.starving && state.hides_buffers();
        let (first, second) = state.either(SlotClass::Small, SlotClass::Large);
        let lease = || self.pool.lease(first).map(|buf| (buf, first));
        let lease = lease().or_else(|| self.pool.lease(second).map(|buf| (buf, second)));
        let Some((mut buf, class)) = lease.filter(|_| !none) else {
            conn.starving = true;
            self.stats.starved += 1;
            self.starved.push_back(id);
            state.expect_receive(kernel, true);
            return None;
        };
        conn.starving = false;
        let count = state.some_of(length.min(budget).min(buf.spare()));
        fill(&mut buf, &state.sockets.get(kernel)?.incoming, count);
        conn.received += count;
        state.take_incoming(kernel, count);
        state.note_down(count as u64);
        // What is left is looked at again after the other connections.
        let more = state.sockets.get(kernel).is_some_and(|socket| !socket.incoming.is_empty());
        if more && armed {
            state.expect_receive(kernel, true);
            self.ready.push_back(Note::Receive(id));
        } else {
            state.note_receive(kernel);
        }
        Some(Event::Received { conn: id, buf: self.pool.relieve(buf, class) })
    }
}

/// Copies the first `count` bytes.
fn fill(buf: &mut Buf, bytes: &std::collections::VecDeque<u8>, count: usize) {
    let (front, back) = bytes.as_slices();
    let first = count.min(front.len());
    buf.append(&front[..first]);
    buf.append(&back[..count - first]);
}
