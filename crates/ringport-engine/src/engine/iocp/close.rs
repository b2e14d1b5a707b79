//! The end of connections, and of the engine.
//!
//! ```text
//!  Open ──close──► Closing ─┐ cancel what is under way,       ┌► socket closed ──► Closed (event)
//!    └───error───► Failing ─┴ await the packets ──────────────┘
//!                     └ then receive what is left, if that is wanted
//! ```

use std::time::{Duration, Instant};

use super::{IocpEngine, Notice, State};
use crate::buffer::Chunk;
use crate::engine::contract::{Close, DROP_WAIT, Event};
use crate::engine::winsock::{self, CANCEL_AGAIN};
use crate::id::{ConnId, UdpId};

/// How long one wait for the packets of a dropped engine takes at most.
const DROP_STEP: Duration = Duration::from_millis(50);

/// What was cancelled and may not have ended yet.
#[derive(Default)]
pub(super) struct Cancelled {
    of: Vec<Busy>,
    /// When it is cancelled again; `None` if there is none.
    again_at: Option<Instant>,
}

/// Who has something under way.
pub(super) enum Busy {
    Connection(ConnId),
    Datagrams(UdpId),
}

impl Cancelled {
    pub(super) fn note(&mut self, who: Busy) {
        self.of.push(who);
        self.again_at.get_or_insert_with(|| Instant::now() + CANCEL_AGAIN);
    }
}

impl IocpEngine {
    /// Cancels again what has not ended, if it is time to. Returns when the next time is.
    #[inline]
    pub(super) fn cancel_again(&mut self) -> Option<Instant> {
        let again_at = self.cancelled.again_at?;
        let now = Instant::now();
        if now < again_at {
            return Some(again_at);
        }
        let mut of = std::mem::take(&mut self.cancelled.of);
        of.retain(|who| {
            let socket = match *who {
                Busy::Connection(id) => {
                    self.conns.get(id).filter(|conn| conn.is_busy()).and_then(|conn| conn.socket.as_ref())
                }
                Busy::Datagrams(id) => self.udp.busy_socket(id),
            };
            socket.into_iter().for_each(winsock::cancel);
            socket.is_some()
        });
        let again_at = (!of.is_empty()).then(|| now + CANCEL_AGAIN);
        self.cancelled = Cancelled { of, again_at };
        again_at
    }

    pub(super) fn start_close(&mut self, id: ConnId, how: Close) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if matches!(conn.state, State::Closing | State::Closed) {
            return;
        }
        conn.state = State::Closing;
        conn.abort = how == Close::Abort;
        // What it failed of does not matter to an owner who gave it up.
        conn.error = 0;
        self.wind_down(id);
    }

    /// The connection failed by itself.
    #[cold]
    pub(super) fn fail(&mut self, id: ConnId, error: i32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.state == State::Open {
            conn.state = State::Failing;
            conn.error = error;
        }
        self.settle(id);
    }

    /// Ends a connection that is failing or closing, as far as that goes now.
    pub(super) fn wind_down(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.is_busy() {
            if let (Some(socket), false) = (&conn.socket, std::mem::replace(&mut conn.cancelled, true)) {
                winsock::cancel(socket);
                self.cancelled.note(Busy::Connection(id));
            }
            return;
        }
        if conn.state == State::Failing && conn.wanted && !conn.eof {
            // What arrived before the failure is still in the socket.
            conn.readable = true;
            if !conn.starved && self.current != Some(id) {
                self.enqueue(id);
            }
            return;
        }
        self.finalize(id);
    }

    /// Closes the socket. Nothing is under way any more.
    pub(super) fn finalize(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        debug_assert!(!conn.is_busy());
        if let Some(socket) = conn.socket.take() {
            if conn.abort {
                // Only fails on sockets that cannot reset anyway.
                let _ = socket.set_linger(Some(Duration::ZERO));
            }
            drop(socket);
            conn.state = State::Closed;
            self.notices.push_back(Notice::Closed(id));
        }
    }

    /// The last event of a connection. Its slot is free from here on.
    pub(super) fn say_closed(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.remove(id)?;
        let why = (conn.error != 0).then(|| winsock::error(conn.error));
        let mut pieces = conn.unsent.unwrap_or_default();
        let unsent: Vec<Chunk> = std::iter::from_fn(|| pieces.pop()).collect();
        Some(Event::Closed { conn: id, why, unsent, unacked: None })
    }

    /// Ends every operation of connections and datagram sockets.
    fn cancel_everything(&self) {
        self.udp.cancel_all();
        for id in self.conns.ids::<ConnId>() {
            if let Some(socket) = self.conns.get(id).filter(|conn| conn.is_busy()).and_then(|conn| conn.socket.as_ref())
            {
                winsock::cancel(socket);
            }
        }
    }
}

impl Drop for IocpEngine {
    /// Takes the packets of all operations, so that their records are freed. What has not come after [`DROP_WAIT`] is
    /// leaked: nobody has a box of it, and the kernel may still use it.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_WAIT;
        self.listeners.stop_all(&mut self.port, &self.extensions, self.now);
        loop {
            while let Some(packet) = self.port.pop() {
                drop(packet);
            }
            // What was passed over is met next time. Records that have come back do no harm.
            self.cancel_everything();
            self.listeners.resume(&mut self.port, &self.extensions);
            let left = deadline.saturating_duration_since(Instant::now());
            if self.port.in_flight() == 0 || left.is_zero() || self.port.wait(Some(left.min(DROP_STEP))).is_err() {
                return;
            }
        }
    }
}
