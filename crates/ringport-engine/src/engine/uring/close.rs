//! The end of connections, and of the engine.
//!
//! ```text
//!  Open ──close──► Closing ─┐ cancel what is armed,              ┌► descriptor closed ──► Closed (event)
//!    └───error───► Failing ─┴ await the terminal completions ────┘
//!                     └ then receive what is left, if that is wanted
//! ```

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::ring::Block;
use super::send::{Flight, TRUNCATED};
use super::{Farewell, Op, State, UringEngine};
use crate::buffer::truncated;
use crate::engine::contract::{Close, DROP_WAIT, Event};
use crate::engine::platform;
use crate::id::{ConnId, ListenerId};

const EVERYTHING: u8 = u8::MAX;

impl UringEngine {
    pub(super) fn start_close(&mut self, id: ConnId, how: Close) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if matches!(conn.state, State::Closing | State::Closed) {
            return;
        }
        conn.state = State::Closing;
        conn.abort = how == Close::Abort;
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
        if conn.armed != 0 {
            return self.cancel(id, EVERYTHING);
        }
        if conn.state == State::Failing && conn.wanted && !conn.eof {
            // What arrived before the failure is still in the socket.
            conn.readable = true;
            return self.enqueue(id);
        }
        self.finalize(id);
    }

    /// Closes the descriptor. Nothing is armed any more.
    pub(super) fn finalize(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        debug_assert_eq!(conn.armed, 0);
        if let Some(fd) = conn.fd.take() {
            // A socket that never connected holds nothing; what the kernel counts there is its SYN.
            let unacked = if conn.state == State::Connecting { Some(0) } else { platform::unacked(fd.as_fd()) };
            // It counts an unacknowledged FIN as one byte, and as the last, so that it is among whatever is left.
            let fin = u64::from(conn.finishing && matches!(conn.flight, Flight::None));
            conn.unacked = unacked.map(|bytes| bytes.saturating_sub(fin).min(u64::from(u32::MAX)) as u32);
            if conn.abort {
                // Only fails on sockets that cannot reset anyway.
                let _ = socket2::SockRef::from(&fd).set_linger(Some(Duration::ZERO));
            }
            drop(fd);
            self.descriptor_freed = true;
            conn.state = State::Closed;
            self.farewells.push_back(Farewell::Conn(id));
        }
    }

    /// The last event of a connection. Its slot is free from here on.
    pub(super) fn closed(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.remove(id)?;
        if let (true, Some(chooser)) = (conn.large, &mut self.chooser) {
            chooser.count(false);
        }
        let why = match conn.error {
            0 => None,
            TRUNCATED => Some(truncated()),
            error => Some(io::Error::from_raw_os_error(error)),
        };
        let unsent = match conn.flight {
            Flight::ZeroCopy(loan) => self.unsent_of_loan(loan),
            flight => flight.unsent(),
        };
        Some(Event::Closed { conn: id, why, unsent, unacked: conn.unacked.map(u64::from) })
    }

    /// Ends every operation and waits for the terminal completions. Whether all have come.
    fn abort_everything(&mut self) -> bool {
        let deadline = Instant::now() + DROP_WAIT;
        loop {
            self.drain_for_drop();
            self.reset_for_loans();
            if !self.anything_armed() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let any = io_uring::types::CancelBuilder::any();
            let entry = io_uring::opcode::AsyncCancel2::new(any).build();
            // SAFETY: a cancellation refers to no memory.
            unsafe { self.ring.push(&entry) };
            if left.is_zero() || self.ring.enter(Block::AtMost(left.min(Duration::from_millis(50)))).is_err() {
                return false;
            }
        }
    }

    /// Takes completions only to note what has ended. Accepted sockets are closed, slots go back to the pool.
    fn drain_for_drop(&mut self) {
        while let Some(completion) = self.ring.pop() {
            let op = completion.tag >> 60;
            if self.drain_datagram(completion) {
                continue;
            }
            if let (Some(buffer), Some(buffers)) = (completion.buffer(), self.buffers.as_mut()) {
                // SAFETY: the completion was just taken from the ring, and names a buffer.
                drop(unsafe { buffers.take(&self.pool, buffer, 0) });
            }
            if op == Op::Accept as u64 {
                drop(self.on_accept(completion));
            } else if op == Op::SendZc as u64 {
                drop(self.on_zero_copy(completion));
            } else if op == Op::Ring as u64 {
                self.bell_armed &= completion.more();
            } else if let Some(op) = Op::OF_CONN.into_iter().find(|known| *known as u64 == op)
                && !completion.more()
                && let Some((_, conn)) = self.conn_of(completion)
            {
                conn.disarm(op);
            }
        }
    }

    fn anything_armed(&mut self) -> bool {
        let conns = self.conns.ids::<ConnId>();
        let listeners = self.listeners.ids::<ListenerId>();
        self.bell_armed
            || self.loans.len() > 0
            || self.udp.anything_armed()
            || conns.into_iter().any(|id| self.conns.get(id).is_some_and(|conn| conn.armed != 0))
            || listeners.into_iter().any(|id| self.listeners.get(id).is_some_and(|listener| listener.armed))
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        for id in self.listeners.ids::<ListenerId>() {
            self.stop_listening(id);
        }
        if !self.abort_everything() {
            // The kernel may still read or write what the connections, the buffer ring and the pool own: they are
            // never freed. A process that closes its engines in order does not come here.
            return;
        }
        // SAFETY: nothing is armed, so that no operation can take a buffer; and each of these is dropped once, here.
        unsafe {
            if let Some(buffers) = ManuallyDrop::take(&mut self.buffers) {
                buffers.dissolve(&self.pool);
            }
            ManuallyDrop::take(&mut self.udp).dissolve();
            ManuallyDrop::drop(&mut self.conns);
            ManuallyDrop::drop(&mut self.loans);
            ManuallyDrop::drop(&mut self.pool);
        }
    }
}
