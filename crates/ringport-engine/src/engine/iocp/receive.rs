//! Receiving: an operation without memory says when, plain calls fetch the bytes.

use super::{IocpEngine, State};
use crate::buffer::SlotClass;
use crate::engine::contract::Event;
use crate::engine::port::{Load, Record, Submitted};
use crate::engine::winsock;
use crate::id::ConnId;

/// Records that are kept for reuse.
pub(super) const SPARE_RECEIVES: usize = 256;

impl IocpEngine {
    /// Waits for bytes, or has those fetched that are there. Also leaves that to the loop that is fetching just now.
    pub(super) fn settle_receive(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        if !conn.wanted || conn.eof || conn.receiving || conn.starved || self.current == Some(id) {
            return;
        }
        if conn.readable || self.await_bytes(id) {
            self.enqueue(id);
        }
    }

    /// Starts to wait for bytes. True if there are some already, and no packet will say so.
    fn await_bytes(&mut self, id: ConnId) -> bool {
        let mut record = self.spare_receives.pop().unwrap_or_else(|| Record::new(id, Load::Receive));
        record.id = id.into();
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(socket) = &conn.socket else { return false };
        debug_assert!(!conn.receiving && conn.state == State::Open);
        self.stats.posts += 1;
        // SAFETY: one receive is started, on a socket that was attached to this port; it refers to no memory. `skip` is
        // what `skip_on_success` said of the socket.
        let submitted =
            unsafe { self.port.submit(record, conn.skip, |overlapped, _| winsock::await_readable(socket, overlapped)) };
        match submitted {
            Submitted::Pending => {
                conn.receiving = true;
                false
            }
            Submitted::Done(record) => {
                conn.readable = true;
                self.keep_receive(record);
                true
            }
            Submitted::Refused(record, error) => {
                self.keep_receive(record);
                self.fail(id, error);
                false
            }
        }
    }

    pub(super) fn on_receive(&mut self, record: Box<Record>, success: bool) -> Option<Event> {
        let id = ConnId::from(record.id);
        let conn = self.conns.get_mut(id)?;
        conn.receiving = false;
        conn.readable |= success;
        let failure = match &conn.socket {
            Some(socket) if !success => Some(record.failure(socket)),
            _ => None,
        };
        let open = conn.state == State::Open;
        self.keep_receive(record);
        match failure {
            None if open => {
                self.current_bytes = 0;
                return self.fetch(id);
            }
            Some(error) if open && !winsock::is_cancelled(error) => self.fail(id, error),
            _ => self.settle(id),
        }
        None
    }

    fn keep_receive(&mut self, record: Box<Record>) {
        if self.spare_receives.len() < SPARE_RECEIVES {
            self.spare_receives.push(record);
        }
    }

    /// Fetches bytes once, if there are some and they are wanted. With an event, the connection is the current one and
    /// goes on with the next call.
    pub(super) fn fetch(&mut self, id: ConnId) -> Option<Event> {
        loop {
            let conn = self.conns.get_mut(id)?;
            if !conn.readable || !conn.wanted || conn.eof || !matches!(conn.state, State::Open | State::Failing) {
                // What is there at once is fetched in this round: every way on from here leaves the loop.
                if conn.state == State::Open && conn.wanted && !conn.eof && !conn.receiving && self.await_bytes(id) {
                    continue;
                }
                return None;
            }
            let socket = conn.socket.as_ref()?;
            let share = self.config.bytes_per_turn.max(1).saturating_sub(self.current_bytes);
            if share == 0 {
                self.enqueue(id);
                return None;
            }
            let Some(mut buf) = self.pool.lease(SlotClass::Large) else {
                self.stats.starved += 1;
                conn.starved = true;
                self.starved.push_back(id);
                return None;
            };
            self.stats.receives += 1;
            let most = buf.spare().min(share);
            match winsock::receive(socket, &mut buf, most) {
                Ok(0) => return self.ended(id),
                Ok(bytes) => {
                    // Before a failure every byte counts, and no packet tells of those that are left.
                    conn.readable = bytes == most || conn.state == State::Failing;
                    self.current_bytes += bytes;
                    self.current = Some(id);
                    return Some(Event::Received { conn: id, buf: self.pool.relieve(buf, SlotClass::Large) });
                }
                Err(error) if winsock::would_block(error) && conn.state == State::Open => {
                    conn.readable = false;
                    // A system that contradicts itself costs a call in each turn, and not this thread.
                    self.settle_receive(id);
                    return None;
                }
                Err(error) => {
                    conn.eof = true;
                    self.fail(id, error);
                    return None;
                }
            }
        }
    }

    /// The peer has sent a FIN; after a failure this is what is left of the connection, and not the peer's FIN.
    fn ended(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        conn.readable = false;
        conn.eof = true;
        if conn.state == State::Open {
            return Some(Event::PeerClosed { conn: id });
        }
        self.settle(id);
        None
    }

    /// Puts a connection into the ready list.
    pub(super) fn enqueue(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !std::mem::replace(&mut conn.queued, true)
        {
            self.ready.push_back(id);
        }
    }

    /// Lets as many starved connections receive as there are free slots, longest waiting first. All at once would find
    /// nothing again.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        self.pool.collect();
        let mut slots = self.pool.free(SlotClass::Large);
        while slots > 0
            && let Some(id) = self.starved.pop_front()
        {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.starved = false;
                // One that no longer wants it takes nothing: nobody would wake the next.
                slots -= u32::from(conn.wanted && !conn.eof);
                self.enqueue(id);
            }
        }
    }
}
