//! Sending.
//!
//! `send` tries at once, from where the bytes are. Only what the kernel does not take is moved into the connection's
//! record, which the next writable edge continues.

use std::hint::cold_path;
use std::net::Shutdown;
use std::os::fd::AsFd;

use super::{Conn, ReadinessEngine};
use crate::buffer::SendQueue;
use crate::engine::contract::{Event, SendProgress};
use crate::engine::direct::{PIECES_PER_SEND, Sent, Then};
use crate::id::ConnId;

impl ReadinessEngine {
    #[inline]
    pub(super) fn begin_send(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        let nothing = SendProgress { bytes: 0, idle: false };
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.may_send()) else { return nothing };
        let Some(socket) = &conn.socket else { return nothing };
        if queue.is_empty() {
            return SendProgress { bytes: 0, idle: true };
        }
        let Sent { bytes, then } = self.sender.send(socket.as_fd(), queue, &self.pool, &mut self.stats.calls);
        if matches!(then, Then::Done) {
            return SendProgress { bytes, idle: true };
        }
        cold_path();
        match then {
            Then::Done => {}
            Then::Full => {
                conn.record = Some(take_record(queue));
                conn.ask_for_room(id, self.poll.registry());
                if conn.failure.is_some() {
                    self.queue(id);
                }
            }
            Then::Later => {
                conn.record = Some(take_record(queue));
                conn.writable = true;
                self.queue(id);
            }
            Then::Failed(error) => {
                conn.fail(error);
                self.queue(id);
            }
        }
        SendProgress { bytes, idle: false }
    }

    /// Sends more of the record.
    #[inline(never)]
    pub(super) fn continue_send(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        conn.writable = false;
        let (Some(socket), Some(record)) = (&conn.socket, &mut conn.record) else { return None };
        let Sent { bytes, then } = self.sender.send(socket.as_fd(), record, &self.pool, &mut self.stats.calls);
        let idle = matches!(then, Then::Done);
        match then {
            Then::Done => {
                conn.record = None;
                conn.finish_if_idle();
            }
            Then::Full => conn.ask_for_room(id, self.poll.registry()),
            Then::Later => {
                conn.writable = true;
                self.turn.queue(id, conn);
            }
            Then::Failed(error) => conn.fail(error),
        }
        if bytes > 0 { Some(Event::Sent { conn: id, bytes, idle }) } else { None }
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.finishing) {
            conn.finishing = true;
            conn.finish_if_idle();
        }
    }
}

impl Conn {
    /// Whether `send` may take anything.
    #[inline]
    fn may_send(&self) -> bool {
        self.record.is_none() && !self.connecting && !self.finishing && self.failure.is_none()
    }

    /// Sends the FIN if it was asked for and nothing is in flight before it.
    pub(super) fn finish_if_idle(&self) {
        if let (Some(socket), None, true, false) = (&self.socket, &self.record, self.finishing, self.connecting) {
            // It fails only when the connection is gone already, and then receiving reports why.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// Moves the front of `queue` into a record.
#[cold]
fn take_record(queue: &mut SendQueue) -> Box<SendQueue> {
    let mut record = Box::new(SendQueue::new());
    for piece in std::iter::from_fn(|| queue.pop()).take(PIECES_PER_SEND) {
        record.push(piece);
    }
    record
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::buffer::{Pool, PoolConfig};
    use crate::engine::contract::{Engine, EngineConfig};

    /// Room is reported to who found none before, and to nobody else: it would be a report for nothing.
    #[test]
    fn only_who_found_no_room_is_told_of_room() {
        let mut engine = ReadinessEngine::open(&EngineConfig::default(), Pool::new(PoolConfig::default())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        let id = engine.adopt(near.into()).unwrap();
        engine.wait(Some(Instant::now() + Duration::from_millis(20))).unwrap();
        assert!(engine.upcoming(0).is_none(), "it never sent");

        let mut queue = SendQueue::new();
        let mut sent = 0;
        loop {
            queue.push(vec![7; 1 << 20]);
            sent += 1 << 20;
            if !engine.send(id, &mut queue).idle {
                break;
            }
        }
        assert!(queue.is_empty(), "one piece, which the engine keeps");
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; sent];
            far.read_exact(&mut all).map(|()| far)
        });
        let patience = Instant::now() + Duration::from_secs(10);
        let mut idle = false;
        while !idle {
            assert!(Instant::now() < patience, "the rest is never sent");
            engine.wait(Some(patience)).unwrap();
            while let Some(event) = engine.next() {
                idle |= matches!(event, Event::Sent { idle: true, .. });
            }
        }
        reader.join().unwrap().unwrap();
    }
}
