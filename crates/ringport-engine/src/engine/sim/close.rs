//! Connections that end.

use std::io;

use super::network::{Action, Note};
use super::personality::Oddity;
use super::{ConnState, SimEngine};
use crate::buffer::{Chunk, SendQueue};
use crate::engine::contract::{Close, Event};
use crate::id::ConnId;

impl SimEngine {
    /// Closing does not take effect at once: what is under way must be cancelled first, and may complete meanwhile.
    pub(super) fn begin_closing(&mut self, id: ConnId, how: Close) {
        let engine = self.number;
        let Some((mut state, conn)) = self.open_conn(id) else { return };
        conn.state = ConnState::Closing;
        if let Some(socket) = state.sockets.get_mut(conn.socket) {
            conn.eats = std::mem::take(&mut socket.armed);
        }
        state.schedule(Action::Close { socket: conn.socket, how, engine, conn: id });
    }

    /// The kernel has let go of a connection that was closed.
    pub(super) fn closed(&mut self, id: ConnId, unacked: u64) -> Option<Event> {
        let mut state = self.network.lock();
        if self.conns.get(id)?.is_read() {
            // Its last event comes after the last notification.
            state.schedule(Action::Tell(self.number, Note::Closed(id, unacked)));
            return None;
        }
        if state.is_odd(Oddity::StaleCompletion) {
            for note in [Note::Receive(id), Note::Send(id), Note::Connected(id)] {
                state.schedule(Action::Tell(self.number, note));
            }
        }
        drop(state);
        let conn = self.conns.remove(id)?;
        Some(Event::Closed { conn: id, why: None, unsent: pieces(conn.record), unacked: Some(unacked) })
    }

    /// A connection that failed closes itself.
    pub(super) fn fail_if_broken(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get(id).filter(|conn| conn.state != ConnState::Closing)?;
        let mut state = self.network.lock();
        let socket = state.sockets.get_mut(conn.socket)?;
        socket.noted = false;
        let why = socket.error.or(conn.failed).map(io::Error::from)?;
        if socket.armed && !socket.incoming.is_empty() {
            // What arrived before the failure is delivered first.
            let by_itself = socket.error.is_some();
            state.note_receive(conn.socket);
            if !by_itself {
                state.schedule(Action::Tell(self.number, Note::Failed(id)));
            }
            return None;
        }
        if conn.is_read() {
            socket.noted = true;
            state.schedule(Action::Tell(self.number, Note::Failed(id)));
            return None;
        }
        let unacked = Some(socket.outgoing.len() as u64);
        state.release(conn.socket, Close::Plain);
        drop(state);
        let conn = self.conns.remove(id)?;
        Some(Event::Closed { conn: id, why: Some(why), unsent: pieces(conn.record), unacked })
    }
}

fn pieces(mut record: SendQueue) -> Vec<Chunk> {
    std::iter::from_fn(|| record.pop()).collect()
}
