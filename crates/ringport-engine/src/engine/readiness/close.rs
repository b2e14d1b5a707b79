//! Closing.
//!
//! The kernel holds nothing of a connection between two calls, so the descriptor is closed at once. What remains is a
//! slot without a socket, which keeps the id from being reused until [`Event::Closed`] has been delivered.

use std::io;
use std::time::Duration;

use super::ReadinessEngine;
use crate::buffer::Chunk;
use crate::engine::contract::{Close, Event};
use crate::id::{ConnId, ListenerId, UdpId};

/// A last event to be delivered.
#[derive(Debug)]
pub(super) enum Farewell {
    Conn { id: ConnId, unacked: Option<u64> },
    Listener(ListenerId),
    Udp { id: UdpId, unsent: usize },
}

impl ReadinessEngine {
    pub(super) fn close_conn(&mut self, id: ConnId, how: Close) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let unacked = conn.unacked();
        let Some(socket) = conn.socket.take() else { return };
        if how == Close::Abort {
            // Where the option is refused (a connection that is gone already), there is nothing left to discard.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        drop(socket);
        self.note_freed_descriptor();
        self.turn.farewells.push_back(Farewell::Conn { id, unacked });
    }

    pub(super) fn close_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        if listener.socket.take().is_some() {
            self.note_freed_descriptor();
            self.turn.farewells.push_back(Farewell::Listener(id));
        }
    }

    /// Ends a connection that failed, with its last event.
    pub(super) fn remove(&mut self, id: ConnId, why: io::Error) -> Option<Event> {
        let unacked = self.conns.get(id)?.unacked();
        self.note_freed_descriptor();
        self.farewell(id, Some(why), unacked)
    }

    /// The last event of the next connection or listener that was closed.
    pub(super) fn next_farewell(&mut self) -> Option<Event> {
        match self.turn.farewells.pop_front()? {
            Farewell::Conn { id, unacked } => self.farewell(id, None, unacked),
            Farewell::Listener(id) => {
                self.listeners.remove(id);
                Some(Event::ListenerClosed { listener: id })
            }
            Farewell::Udp { id, unsent } => self.port_closed(id, unsent),
        }
    }

    fn farewell(&mut self, id: ConnId, why: Option<io::Error>, unacked: Option<u64>) -> Option<Event> {
        let mut record = self.conns.remove(id)?.record.unwrap_or_default();
        let unsent: Vec<Chunk> = std::iter::from_fn(|| record.pop()).collect();
        Some(Event::Closed { conn: id, why, unsent, unacked })
    }

    /// A listener that ran out of descriptors may find one now.
    pub(super) fn note_freed_descriptor(&mut self) {
        self.descriptor_freed = !self.resting.is_empty();
    }
}
