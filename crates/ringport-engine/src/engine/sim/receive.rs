//! Receiving: bytes are written into a slot of the pool at the moment of completion, never before.

use super::network::{Action, Note};
use super::personality::{Oddity, Personality};
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
        let edges = state.tells_edges();
        let Some(socket) = state.sockets.get_mut(kernel) else { return };
        // After the FIN there is nothing left to receive, but a failure must still be noticed.
        socket.armed = want == Want::On && !peer_closed;
        if was_starving {
            // It no longer waits for a buffer; a failure must reach it without one.
            socket.noted = false;
        }
        let mut remembered = false;
        if edges && !was_starving {
            // The kernel told it once; who did not read then must remember.
            remembered = want == Want::On && conn.readable && !std::mem::replace(&mut socket.noted, true);
        } else {
            state.note_receive(kernel);
        }
        drop(state);
        if remembered {
            self.ready.push_back(Note::Receive(id));
        }
        if was_starving {
            self.starved.retain(|starved| *starved != id);
        }
    }

    /// Starved connections try again: one for each free slot, the longest waiting first.
    pub(super) fn feed_starved(&mut self) {
        self.pool.collect();
        let slots = self.posted.len() + self.pool.free(SlotClass::Small) + self.pool.free(SlotClass::Large);
        for _ in 0..slots {
            let Some(id) = self.starved.pop_front() else { return };
            self.ready.push_back(Note::Receive(id));
        }
    }

    /// A kernel that picks buffers by itself is given some.
    pub(super) fn post_slots(&mut self) {
        let picks = { self.network.lock().faults.personality == Personality::Uring };
        if picks {
            self.pool.collect();
            self.posted.refill();
        }
    }

    /// A receive that nobody cancelled completes after the connection was closed. Its bytes are lost.
    fn eat(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        let kernel = conn.socket;
        let mut state = self.network.lock();
        let length = state.sockets.get(kernel)?.incoming.len();
        if length > 0 && std::mem::take(&mut conn.eats) && state.is_odd(Oddity::ReceiveAfterClose) {
            let mut buf = self.posted.take()?;
            let count = length.min(buf.spare());
            fill(&mut buf, &state.sockets.get(kernel)?.incoming, count);
            state.take_incoming(kernel, count);
        }
        None
    }

    /// A receive completes: with bytes, the FIN or a failure.
    pub(super) fn receive_one(&mut self, id: ConnId) -> Option<Event> {
        if self.conns.get(id)?.state == ConnState::Closing {
            return self.eat(id);
        }
        let conn = self.conns.get_mut(id)?;
        let mut state = self.network.lock();
        let kernel = conn.socket;
        conn.readable = true;
        state.skip_urgent(kernel);
        let socket = state.sockets.get_mut(kernel)?;
        socket.noted = false;
        let (length, armed) = (socket.receivable(), socket.armed);
        if conn.state == ConnState::Connecting && socket.error.is_none() {
            // `connected` looks again.
            return None;
        }
        // A system that tells only that there are bytes has none under way when a pause comes.
        if !armed && (state.tells_edges() || !state.pauses_late()) {
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
        let mut take = || {
            let posted = self.posted.take().map(|buf| (buf, SlotClass::Small));
            let lease = |class| self.pool.lease(class).map(|buf| (buf, class));
            posted.or_else(|| lease(first)).or_else(|| lease(second))
        };
        let Some((mut buf, class)) = (if none { None } else { take() }) else {
            conn.starving = true;
            self.stats.starved += 1;
            self.starved.push_back(id);
            state.expect_receive(kernel, true);
            return None;
        };
        conn.starving = false;
        let most = length.min(budget).min(buf.spare()).min(state.slice_bytes());
        let count = state.some_of(most);
        fill(&mut buf, &state.sockets.get(kernel)?.incoming, count);
        conn.received += count;
        state.take_incoming(kernel, count);
        state.note_down(count as u64);
        // What is left is looked at again after the other connections.
        let more = state.sockets.get(kernel).is_some_and(|socket| !socket.incoming.is_empty());
        conn.readable = more;
        if more && armed {
            state.expect_receive(kernel, true);
            if state.is_odd(Oddity::MultishotEnds) {
                // It is armed again with the next submission, and looks again then.
                state.schedule(Action::Tell(self.number, Note::Receive(id)));
            } else {
                self.ready.push_back(Note::Receive(id));
            }
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
