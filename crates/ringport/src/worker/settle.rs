//! Carrying out what a session intends.

use std::io;

use ringport_engine::{Close, ConnId, Engine, Want};

use super::service::{Call, Happening};
use super::timers::Timer;
use super::{Ordering, Worker};
use crate::session::{CloseReason, CloseReport, Ending, Fin, Phase};

impl<E: Engine> Worker<E> {
    /// Brings the engine in line with the session: sends, reading on or off, closing.
    #[inline]
    pub(super) fn settle(&mut self, conn: ConnId) {
        let context = &mut self.context;
        let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        if session.conn != conn {
            return;
        }
        while !session.sending && !session.outbox.is_empty() && session.phase != Phase::Ended {
            let progress = self.engine.send(conn, &mut session.outbox);
            session.handed += progress.bytes as u64;
            session.sending = !progress.idle;
            context.totals.sent_bytes += progress.bytes as u64;
            context.totals.sends_at_once += u64::from(progress.idle);
            if progress.bytes == 0 {
                break;
            }
        }
        if session.full && session.queued() <= context.options[session.service as usize].low_mark {
            session.full = false;
            context.writable.push_back(conn);
        }
        if session.phase == Phase::Open && session.ending.is_none() {
            if session.fin == Fin::Asked && !session.sending && session.outbox.is_empty() {
                session.fin = Fin::Sent;
                self.engine.shutdown_write(conn);
            }
            let rests = session.full && context.options[session.service as usize].rest_when_full;
            let receiving = !session.paused_by_user && !rests;
            if receiving != session.receiving {
                session.receiving = receiving;
                self.engine.receive(conn, if receiving { Want::On } else { Want::Paused });
            }
        } else {
            self.advance(conn);
        }
    }

    /// Takes a session that is closing as far as it can go now.
    fn advance(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn) else { return };
        match (session.phase, session.ending.take()) {
            (Phase::Ended, _) => {}
            (_, Some(Ending::Abort)) => self.give_up(conn, Close::Abort),
            (_, Some(Ending::Plain)) => self.give_up(conn, Close::Plain),
            (Phase::Open, Some(Ending::Graceful)) => {
                session.phase = Phase::Flushing;
                let was_receiving = std::mem::replace(&mut session.receiving, true);
                let service = session.service as usize;
                if !was_receiving {
                    // A peer that is stuck in its own sends never reads what we flush: discard what it sends.
                    self.engine.receive(conn, Want::On);
                }
                let linger = self.context.options[service].linger;
                self.context.set_session_timer(conn, self.context.now + linger, Timer::Linger(conn));
                self.flushed(conn);
            }
            (Phase::Flushing, _) => self.flushed(conn),
            (Phase::Lingering, _) if session.peer_closed => self.give_up(conn, Close::Plain),
            _ => {}
        }
    }

    /// When the last byte is out: FIN, or the end if the peer's FIN is there already.
    fn flushed(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn) else { return };
        if session.sending || !session.outbox.is_empty() {
            return;
        }
        if session.peer_closed {
            self.give_up(conn, Close::Plain);
        } else {
            session.phase = Phase::Lingering;
            if std::mem::replace(&mut session.fin, Fin::Sent) != Fin::Sent {
                self.engine.shutdown_write(conn);
            }
        }
    }

    fn give_up(&mut self, conn: ConnId, how: Close) {
        if let Some(session) = self.context.find(conn) {
            session.phase = Phase::Ended;
        }
        self.engine.close(conn, how);
    }

    /// The linger time is over, unless bytes still moved.
    pub(super) fn lingered(&mut self, conn: ConnId) {
        let (clock, now) = (self.context.clock, self.context.now);
        let Some(session) = self.context.find(conn) else { return };
        session.timer = None;
        let service = session.service as usize;
        let quiet = std::time::Duration::from_millis(clock.wrapping_sub(session.active_at).into());
        let linger = self.context.options[service].linger;
        let Some(session) = self.context.find(conn) else { return };
        if session.phase == Phase::Flushing && quiet < linger {
            self.context.set_session_timer(conn, now + (linger - quiet), Timer::Linger(conn));
            return;
        }
        session.end(Ending::Abort, CloseReason::LingerTimeout);
        self.settle(conn);
    }

    /// The engine's last word on a connection.
    pub(super) fn closed(&mut self, conn: ConnId, why: Option<io::Error>, unsent: u64, unacked: Option<u64>) {
        let Some(session) = self.context.find(conn) else { return };
        // What the kernel still took after the engine was told to close has had no event of its own.
        let handed = session.accepted.saturating_sub(unsent + session.outbox.bytes());
        debug_assert!(handed >= session.handed, "the ledger of {conn}: {handed} < {}", session.handed);
        let late = handed - session.handed;
        session.handed = handed;
        let (service, state) = (session.service as usize, session.state);
        if !session.opened {
            let error = why.unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
            self.forget(conn);
            self.services[service].connect_failed(&mut self.context, &error);
            return;
        }
        let reason = match &why {
            Some(error) => CloseReason::of_error(error),
            None => session.reason.unwrap_or(CloseReason::Local),
        };
        let report = CloseReport {
            reason,
            error: why,
            accepted: session.accepted,
            handed_to_kernel: session.handed,
            unacked: unacked.map(|unacked| unacked + session.queued()),
            received: session.received,
        };
        session.phase = Phase::Ended;
        self.context.totals.sent_bytes += late;
        self.current = Some(conn);
        let call = Call { context: &mut self.context, facts: &mut self.engine, conn, state };
        self.services[service].on(call, Happening::Close(&report));
        self.current = None;
        self.forget(conn);
    }

    /// Removes a session and all that belongs to it.
    pub(super) fn forget(&mut self, conn: ConnId) {
        let Some(session) = self.context.remove(conn) else { return };
        self.services[session.service as usize].drop_state(session.state);
        self.context.totals.closed += 1;
        self.context.global_live.fetch_sub(1, Ordering::Relaxed);
    }
}
