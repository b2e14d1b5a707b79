//! Carrying out what a session intends.

use std::hint::cold_path;
use std::io;

use ringport_engine::{Close, ConnId, Engine, Want};

use super::service::{Call, Happening, Later};
use super::timers::Timer;
use super::{Ordering, Worker};
use crate::session::{CloseReason, CloseReport, Ending, Fin, Phase, Verdict, WantsMemory};

impl<E: Engine> Worker<E> {
    /// Brings the engine in line with the session: sends, reading on or off, closing.
    #[inline]
    pub(super) fn settle(&mut self, conn: ConnId) {
        let context = &mut self.context;
        let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        if session.conn != conn {
            cold_path();
            return;
        }
        while !session.sending && session.phase != Phase::Ended && (!session.outbox.is_empty() || session.refill()) {
            let progress = self.engine.send(conn, &mut session.outbox);
            session.sent_at = context.clock;
            session.handed += progress.bytes as u64;
            session.sending = !progress.idle;
            context.counters.sent_bytes.add(progress.bytes as u64);
            context.account.release(progress.bytes as u64);
            context.counters.sends_at_once.add(u64::from(progress.idle));
            if progress.bytes == 0 {
                break;
            }
        }
        if !session.is_settled() {
            cold_path();
            self.settle_further(conn);
        }
    }

    /// Carries out what the handlers of a group asked for.
    #[inline]
    pub(super) fn settle_group(&mut self) {
        if !self.group.is_empty() {
            self.settle_each();
        }
    }

    #[inline(never)]
    fn settle_each(&mut self) {
        for member in 0..self.group.len() {
            self.settle(self.group[member]);
        }
        self.group.clear();
    }

    /// All that most messages leave as it is.
    #[inline(never)]
    fn settle_further(&mut self, conn: ConnId) {
        let context = &mut self.context;
        let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        if session.full {
            let low = session.queued() <= context.options[session.service as usize].low_mark;
            if low {
                (session.full, session.told_full, session.over) = (false, false, false);
                context.later.push_back((conn, Later::Writable));
            } else if !std::mem::replace(&mut session.told_full, true) {
                context.later.push_back((conn, Later::Full));
            }
        }
        while let Some(token) = session.next_flushed() {
            context.later.push_back((conn, Later::Flushed(token)));
        }
        if session.phase == Phase::Open && session.ending.is_none() {
            if session.rare.as_ref().is_some_and(|rare| rare.wants_memory == WantsMemory::Asked) {
                context.list_for_memory(conn);
            }
            let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
            if session.fin == Fin::Asked && !session.sending && session.outbox.is_empty() {
                session.fin = Fin::Sent;
                self.engine.shutdown_write(conn);
            }
            let rests = session.full && (session.over || context.options[session.service as usize].rest_when_full);
            let receiving = !rests && !session.pauses.any();
            if receiving != session.receiving {
                session.receiving = receiving;
                if receiving {
                    session.begin_reading(&context.options[session.service as usize], context.clock);
                }
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
                self.context.aio().closing(conn);
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

    /// A deadline of a session that connects or is open may be over.
    pub(super) fn deadline(&mut self, conn: ConnId) {
        let context = &mut self.context;
        let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        if session.conn != conn {
            return;
        }
        session.timer = None;
        if !matches!(session.phase, Phase::Connecting | Phase::Open) || session.ending.is_some() {
            return;
        }
        match session.judge(&context.options[session.service as usize], context.clock) {
            Verdict::Wait(None) => {}
            Verdict::Wait(Some(time)) => context.set_session_timer(conn, context.now + time, Timer::Deadline(conn)),
            Verdict::Beat(time) => {
                context.set_session_timer(conn, context.now + time, Timer::Deadline(conn));
                self.call(conn, Happening::Heartbeat);
            }
            Verdict::Close(reason) => {
                let lost = session.queued() > 0 || session.phase == Phase::Connecting;
                session.end(if lost { Ending::Abort } else { Ending::Plain }, reason);
                self.settle(conn);
            }
        }
    }

    fn give_up(&mut self, conn: ConnId, how: Close) {
        if let Some(session) = self.context.find(conn) {
            session.phase = Phase::Ended;
        }
        self.context.aio().closing(conn);
        self.engine.close(conn, how);
    }

    /// The linger time is over, unless bytes still moved.
    pub(super) fn lingered(&mut self, conn: ConnId) {
        let (clock, now) = (self.context.clock, self.context.now);
        let Some(session) = self.context.find(conn) else { return };
        session.timer = None;
        let service = session.service as usize;
        let quiet = session.quiet(clock);
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
        let handed = session.accepted.saturating_sub(unsent + session.unseen());
        debug_assert!(handed >= session.handed, "the ledger of {conn}: {handed} < {}", session.handed);
        let late = handed.saturating_sub(session.handed);
        session.handed += late;
        let (service, state) = (session.service as usize, session.state);
        if !session.opened {
            let late = session.reason == Some(CloseReason::ConnectTimeout);
            let kind = if late { io::ErrorKind::TimedOut } else { io::ErrorKind::ConnectionAborted };
            let error = why.unwrap_or_else(|| kind.into());
            let race = session.rare.as_ref().and_then(|rare| rare.race);
            self.forget(conn);
            match race {
                Some(race) => self.attempt_failed(race, conn, error),
                None => self.services[service].connect_failed(&mut self.context, Some(conn), &error),
            }
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
            dropped_messages: session.rare.as_ref().map_or(0, |rare| rare.dropped_messages),
            dropped_bytes: session.rare.as_ref().map_or(0, |rare| rare.dropped_bytes),
        };
        session.phase = Phase::Ended;
        self.context.counters.sent_bytes.add(late);
        self.context.account.release(late);
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
        self.context.counters.closed.add(1);
        self.context.global_live.fetch_sub(1, Ordering::Relaxed);
    }
}
