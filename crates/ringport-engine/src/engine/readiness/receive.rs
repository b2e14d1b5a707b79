//! Receiving.

use std::hint::cold_path;
use std::os::fd::AsFd;

use super::ReadinessEngine;
use super::wait::Ready;
use crate::buffer::{Buf, SlotClass};
use crate::engine::contract::{Event, Want};
use crate::engine::direct::{self, Received};
use crate::id::ConnId;

/// What became of an attempt to receive.
pub(super) enum Step {
    Event(Event),
    /// Nothing is there, or nothing is wanted.
    Drained,
    /// There may be more, in a later turn.
    Later,
}

impl ReadinessEngine {
    pub(super) fn set_receiving(&mut self, id: ConnId, want: Want) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.socket.is_some()) else { return };
        conn.receiving = want == Want::On;
        // A connection that is being served goes on by itself, a starved one when there is a buffer.
        if conn.may_receive() && !conn.starved && self.turn.current != Some(Ready::Conn(id)) {
            self.turn.queue(id, conn);
        }
    }

    /// Receives from the next connection in the case that counts. Whatever is found instead of bytes is left to
    /// [`receive_next`](Self::receive_next), which finds it again.
    #[inline]
    pub(super) fn receive_fresh(&mut self) -> Option<(ConnId, Buf)> {
        let Self { turn, conns, pool, stats, bytes_per_turn, .. } = self;
        let (id, conn) = turn.fresh(conns)?;
        let fd = conn.socket.as_ref()?.as_fd();
        match direct::receive(fd, pool, *bytes_per_turn, conn.urgent, &mut stats.calls) {
            Received::Data { buf, more, failed } => {
                turn.saw_edge();
                conn.readable = more;
                if more {
                    cold_path();
                    turn.current = Some(Ready::Conn(id));
                    turn.used = buf.len();
                    failed.into_iter().for_each(|error| conn.fail(error));
                }
                Some((id, buf))
            }
            Received::Failed(error) => {
                cold_path();
                conn.fail(error); // An error is told only once.
                None
            }
            _ => None,
        }
    }

    /// Receives once, if that is wanted and the connection's share of the turn is not used up.
    pub(super) fn receive_next(&mut self, id: ConnId) -> Step {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| conn.may_receive()) else { return Step::Drained };
        let Some(socket) = &conn.socket else { return Step::Drained };
        let Some(share) = direct::share_left(self.bytes_per_turn, self.turn.used) else {
            self.turn.queue(id, conn);
            return Step::Later;
        };
        match direct::receive(socket.as_fd(), &self.pool, share, conn.urgent, &mut self.stats.calls) {
            Received::Data { buf, more, failed } => {
                self.turn.used += buf.len();
                failed.into_iter().for_each(|error| conn.fail(error));
                conn.readable = more || conn.to_end;
                if !conn.readable {
                    // Nothing is left to be looked for. Whatever the caller asks for now makes an entry of its own.
                    self.turn.current = None;
                }
                Step::Event(Event::Received { conn: id, buf })
            }
            Received::Empty => {
                conn.readable = false;
                conn.to_end = false;
                Step::Drained
            }
            Received::Fin => {
                conn.peer_closed = true;
                // After a failure this is what is left of the connection, and not the peer's FIN.
                if conn.failure.is_some() { Step::Drained } else { Step::Event(Event::PeerClosed { conn: id }) }
            }
            Received::NoBuffer => {
                self.stats.starved += 1;
                if !std::mem::replace(&mut conn.starved, true) {
                    self.starved.push_back(id);
                }
                Step::Later
            }
            Received::Failed(error) => {
                conn.failure.get_or_insert(error);
                conn.readable = false;
                Step::Drained
            }
        }
    }

    /// Lets as many starved connections receive as there are free buffers, longest waiting first. All at once would find
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
                slots -= u32::from(conn.may_receive());
                self.turn.queue(id, conn);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::buffer::{Pool, PoolConfig};
    use crate::engine::contract::{Engine, EngineConfig};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn turn(engine: &mut ReadinessEngine) -> Vec<Event> {
        engine.wait(Some(Instant::now() + Duration::from_millis(200))).unwrap();
        std::iter::from_fn(|| engine.next()).collect()
    }

    /// Without a free slot nothing is received, nothing is lost, `wait` sleeps, and a slot that another thread gives
    /// back sets it going again (law 7).
    #[test]
    fn a_starved_connection_goes_on_when_a_buffer_returns() {
        let pool = Pool::new(PoolConfig::default().small_slots(4).large_slots(2));
        let mut engine = ReadinessEngine::open(&EngineConfig::default(), pool.clone()).unwrap();
        let (near, mut far) = pair();
        let id = engine.adopt(near.into()).unwrap();
        engine.receive(id, Want::On);
        let held: Vec<_> = std::iter::from_fn(|| pool.lease(SlotClass::Large)).collect();
        assert_eq!(held.len(), 2);
        far.write_all(b"hello").unwrap();
        drop(far);
        assert!(turn(&mut engine).is_empty());
        assert_eq!(engine.stats().starved, 1);
        let waits = engine.stats().waits;
        assert!(turn(&mut engine).is_empty());
        assert_eq!(engine.stats().waits, waits + 1, "a starved engine sleeps");

        let bytes: Vec<_> = held.into_iter().map(crate::Buf::into_bytes).collect();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(bytes);
        });
        let mut events = Vec::new();
        while events.len() < 2 {
            engine.wait(None).unwrap();
            let new = std::iter::from_fn(|| engine.next());
            events.extend(new.filter(|event| !matches!(event, Event::Woken)));
        }
        thread.join().unwrap();
        assert!(matches!(&events[0], Event::Received { buf, .. } if buf[..] == b"hello"[..]));
        assert!(matches!(&events[1], Event::PeerClosed { .. }));
    }

    /// A message costs one receive call. After one as large as those of a stream a second call follows at once, since more
    /// has probably come while it was copied.
    #[test]
    fn only_a_large_receive_looks_again() {
        let pool = Pool::new(PoolConfig::default());
        let mut engine = ReadinessEngine::open(&EngineConfig::default(), pool).unwrap();
        let (near, mut far) = pair();
        let watched = near.try_clone().unwrap();
        let id = engine.adopt(near.into()).unwrap();
        engine.receive(id, Want::On);
        let mut calls = |bytes: usize| {
            far.write_all(&vec![1; bytes]).unwrap();
            let mut look = vec![0; bytes];
            let patience = Instant::now() + Duration::from_secs(10);
            while !matches!(watched.peek(&mut look), Ok(there) if there == bytes) {
                assert!(Instant::now() < patience, "{bytes} bytes do not arrive");
            }
            let before = engine.stats().calls;
            let events = turn(&mut engine);
            assert!(matches!(&events[..], [Event::Received { buf, .. }] if buf.len() == bytes), "{events:?}");
            engine.stats().calls - before
        };
        let message = calls(16 * 1024);
        assert_eq!(calls(48 * 1024), message + 1);
    }
}
