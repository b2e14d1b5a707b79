//! The end of connections, and of the engine.
//!
//! ```text
//!  Open ──close──────────────────────────────┐
//!    └──error──► Failing ──► receive what is ─┴► close the socket ──► its requests end ──► Closed (event)
//!                            left, if wanted
//! ```
//!
//! Requests of Registered I/O cannot be cancelled one by one. Closing the socket ends them all; each still has its
//! completion, and only that gives its slice back.

use std::io;
use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use super::datagram::DATAGRAM;
use super::queues::DEPTH;
use super::receive::{RECEIVE, TAG_BITS};
use super::{RioEngine, State, table};
use crate::engine::contract::{Close, DROP_WAIT, Event};
use crate::engine::winsock;
use crate::id::ConnId;

/// How long the last completions are waited for in one go.
const DROP_STEP: Duration = Duration::from_millis(1);

impl RioEngine {
    pub(super) fn start_close(&mut self, id: ConnId, how: Close) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.given_up, true) {
            return;
        }
        // What it failed of does not matter to an owner who gave it up.
        conn.error = 0;
        if let (Close::Abort, Some(socket)) = (how, &conn.socket) {
            // Only fails on sockets that cannot reset anyway.
            let _ = socket.set_linger(Some(Duration::ZERO));
        }
        self.close_socket(id);
    }

    /// The connection failed by itself.
    #[cold]
    pub(super) fn fail(&mut self, id: ConnId, error: i32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state == State::Open {
            conn.state = State::Failing;
            conn.error = error;
            if !conn.receiving {
                self.soil(id);
            }
        }
        self.settle(id);
    }

    /// The connection cannot go on at all.
    #[cold]
    pub(super) fn end(&mut self, id: ConnId, error: i32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.error == 0 && !conn.given_up {
            conn.error = error;
        }
        self.close_socket(id);
    }

    /// Goes on with the end of a connection, as far as that goes now.
    pub(super) fn settle(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match conn.state {
            // What arrived before the failure comes first: another receive finds it, until there is none.
            State::Failing if !conn.wanted || conn.eof => self.close_socket(id),
            State::Closing if !conn.is_busy() => {
                conn.state = State::Closed;
                if conn.requests.take().is_some() {
                    self.budget.release(DEPTH);
                }
                self.farewells.push_back(id);
            }
            _ => {}
        }
    }

    /// Closes the socket, which ends everything that is under way.
    fn close_socket(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let Some(socket) = conn.socket.take() else { return };
        conn.state = State::Closing;
        table::close(socket);
        if !conn.receiving {
            self.forget_received(id);
        }
        self.settle(id);
    }

    /// The last event of a connection. Its slot is free from here on.
    pub(super) fn closed(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.remove(id)?;
        let why = (conn.error != 0).then(|| winsock::error(conn.error));
        let unsent = conn.flight.map(|flight| flight.unsent()).unwrap_or_default();
        Some(Event::Closed { conn: id, why, unsent, unacked: None })
    }

    /// Makes the completion queue smaller when most connections have gone.
    pub(super) fn shrink(&mut self) {
        if let Some(capacity) = self.budget.spare()
            && self.completions.resize(capacity).is_ok()
        {
            self.budget.resized(capacity);
        }
    }

    /// Takes completions and packets only to note what has ended.
    fn drain_for_drop(&mut self) -> io::Result<()> {
        loop {
            self.refill()?;
            if self.next_result == self.results_end {
                break;
            }
            while let Some(result) = self.pop_result() {
                let tag = result.RequestContext as usize;
                if tag & DATAGRAM != 0 {
                    drop(self.on_datagram(tag, &result));
                    continue;
                }
                let slot = (tag >> TAG_BITS) as u32;
                let Some((id, _)) = self.conns.slot_mut::<ConnId>(slot) else { continue };
                if tag & ((1 << TAG_BITS) - 1) == RECEIVE {
                    drop(self.on_receive(id, &result));
                } else {
                    drop(self.on_send(id, tag, &result));
                }
            }
        }
        while let Some(packet) = self.port.pop() {
            drop(self.on_packet(packet));
        }
        Ok(())
    }

    /// Closes everything and waits for the last completions. Whether all have come.
    fn abort_everything(&mut self) -> bool {
        let deadline = Instant::now() + DROP_WAIT;
        self.listeners.stop_all(&mut self.port, &self.extensions, self.now);
        self.udp.close_all();
        for id in self.conns.ids::<ConnId>() {
            self.start_close(id, Close::Plain);
        }
        loop {
            if self.drain_for_drop().is_err() {
                return false;
            }
            self.listeners.resume(&mut self.port, &self.extensions);
            let conns = self.conns.ids::<ConnId>();
            let busy = conns.into_iter().any(|id| self.conns.get(id).is_some_and(super::Conn::is_busy));
            if !busy && !self.udp.is_busy() && self.port.in_flight() == 0 {
                return true;
            }
            if Instant::now() > deadline || self.port.wait(Some(DROP_STEP)).is_err() {
                return false;
            }
        }
    }
}

impl Drop for RioEngine {
    fn drop(&mut self) {
        if !self.abort_everything() {
            // The system may still write into slots and slices: neither they nor what they are registered with is ever
            // freed. A process that closes its engines in order does not come here.
            return;
        }
        // SAFETY: no request is under way, so that nothing writes into this memory; and each is dropped once, here.
        unsafe {
            ManuallyDrop::drop(&mut self.conns);
            ManuallyDrop::drop(&mut self.completions);
            ManuallyDrop::drop(&mut self.landing);
            ManuallyDrop::drop(&mut self.udp);
            ManuallyDrop::drop(&mut self.region);
            ManuallyDrop::drop(&mut self.pool);
        }
    }
}
