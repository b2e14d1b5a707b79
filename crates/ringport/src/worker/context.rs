//! [`Context`]: what a worker has besides its engine and its handlers. Callbacks see it, so it knows neither.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use ringport_engine::{Chunk, ConnId, ConnInfo, Engine, OptionName, Pool, SocketOption, TcpInfo};

use super::counters::{Counters, Totals};
use super::timers::{Due, Timer, TimerId, Timers};
use crate::remote::Remote;
use crate::session::{CloseReason, ConnectionOptions, Ending, Phase, Refusal, SendOutcome, Session};

/// The handle of a connection: small, `Copy`, unique in the process. Using it after the connection has gone is
/// harmless and never reaches another connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId {
    pub(crate) worker: u16,
    pub(crate) conn: ConnId,
}

impl ConnectionId {
    /// Number of the worker that serves the connection.
    #[must_use]
    pub fn worker(self) -> usize {
        self.worker.into()
    }
}

impl std::fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "w{}/{}", self.worker, self.conn)
    }
}

impl std::fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self, f)
    }
}

/// A worker as its handlers see it: the other connections, the time, and the way in for other threads.
pub struct Context {
    pub(super) number: u16,
    pub(super) sessions: Vec<Option<Session>>,
    pub(super) live: usize,
    pub(super) options: Vec<ConnectionOptions>,
    pub(super) pool: Pool,
    pub(super) timers: Timers,
    /// Sessions that a callback of another connection, a timer or a message touched.
    pub(super) dirty: Vec<ConnId>,
    /// Sessions whose queue fell to the low mark.
    pub(super) writable: VecDeque<ConnId>,
    pub(super) totals: Totals,
    pub(super) counters: Arc<Counters>,
    pub(super) global_live: Arc<AtomicUsize>,
    pub(super) started: Instant,
    pub(super) now: Instant,
    /// `now` in milliseconds since `started`.
    pub(super) clock: u32,
    pub(super) remote: Remote,
    pub(super) stopping: bool,
}

impl Context {
    /// Number of this worker, from 0.
    #[must_use]
    pub fn number(&self) -> usize {
        self.number.into()
    }

    /// Connections of this worker.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.live
    }

    /// The time of this turn. Virtual in a simulation.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The way in for other threads.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Whether the server is shutting down.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Shuts the whole server down in order, as [`ServerHandle::shutdown`](crate::ServerHandle::shutdown) does.
    pub fn shut_down(&self, within: Duration) {
        self.remote.shut_down(within);
    }

    /// The buffers of this worker, to fill one without a copy.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Queues `data` on another connection of this worker.
    pub fn send_to(&mut self, to: ConnectionId, data: impl Into<Chunk>) -> SendOutcome {
        let data = data.into();
        match self.touch(to) {
            Some((session, options)) => session.send(data, options),
            None => SendOutcome::Refused { data, why: Refusal::Closing },
        }
    }

    /// Closes another connection of this worker in order. `false` if there is none.
    pub fn close(&mut self, id: ConnectionId) -> bool {
        self.end(id, Ending::Graceful)
    }

    /// Aborts another connection of this worker. `false` if there is none.
    pub fn abort(&mut self, id: ConnectionId) -> bool {
        self.end(id, Ending::Abort)
    }

    pub(super) fn end(&mut self, id: ConnectionId, how: Ending) -> bool {
        let found = self.touch(id);
        if let Some((session, _)) = found {
            session.end(how, CloseReason::Local);
            return true;
        }
        false
    }

    /// Sets a timer of a connection.
    pub(crate) fn set_timer(&mut self, conn: ConnId, delay: Duration, period: Option<Duration>, token: u64) -> TimerId {
        let timer = self.timers.insert_user(self.now + delay, Due { conn, token, period });
        let timers = &self.timers;
        if let Some(session) = self.sessions.get_mut(conn.slot()).and_then(Option::as_mut) {
            // The list is for cancelling them at the end. It is pruned before it grows, and so stays short.
            let own = session.timers.get_or_insert_default();
            if own.len() == own.capacity() {
                own.retain(|timer| timers.is_set(*timer));
            }
            own.push(timer);
        }
        timer
    }

    pub(crate) fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.timers.cancel_user(timer)
    }

    pub(crate) fn id_of(&self, conn: ConnId) -> ConnectionId {
        ConnectionId { worker: self.number, conn }
    }

    /// The session in a slot that is known to be filled.
    #[inline]
    pub(crate) fn session(&self, slot: usize) -> &Session {
        self.sessions[slot].as_ref().expect("a callback runs for a live session")
    }

    /// The session in a slot that is known to be filled, and what it needs to send.
    #[inline]
    pub(crate) fn parts(&mut self, slot: usize) -> (&mut Session, &ConnectionOptions, &Pool) {
        let session = self.sessions[slot].as_mut().expect("a callback runs for a live session");
        let options = &self.options[session.service as usize];
        (session, options, &self.pool)
    }

    /// The session of `conn`, if it is still that one.
    #[inline]
    pub(super) fn find(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.sessions.get_mut(conn.slot())?.as_mut().filter(|session| session.conn == conn)
    }

    /// The session of `id` if it is one of ours and alive; it will be settled at the end of the turn.
    fn touch(&mut self, id: ConnectionId) -> Option<(&mut Session, &ConnectionOptions)> {
        if id.worker != self.number {
            return None;
        }
        self.mark_dirty(id.conn);
        let session = self.sessions.get_mut(id.conn.slot())?.as_mut()?;
        if session.conn != id.conn || session.phase == Phase::Ended {
            return None;
        }
        let options = &self.options[session.service as usize];
        Some((session, options))
    }

    /// Has the session settled at the end of the turn.
    pub(super) fn mark_dirty(&mut self, conn: ConnId) {
        if let Some(session) = self.find(conn)
            && !std::mem::replace(&mut session.dirty, true)
        {
            self.dirty.push(conn);
        }
    }

    /// Puts a new session into the slot of its id.
    pub(super) fn insert(&mut self, session: Session) {
        let slot = session.conn.slot();
        if self.sessions.len() <= slot {
            self.sessions.resize_with(slot + 1, || None);
        }
        debug_assert!(self.sessions[slot].is_none(), "an id is new only after the last one closed");
        self.sessions[slot] = Some(session);
        self.live += 1;
    }

    /// Takes out a session and cancels its timers.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Session> {
        self.find(conn)?;
        let session = self.sessions[conn.slot()].take()?;
        self.live -= 1;
        if let Some(key) = session.timer {
            self.timers.cancel(key);
        }
        for timer in session.timers.iter().flat_map(|timers| timers.iter()) {
            self.timers.cancel_user(*timer);
        }
        Some(session)
    }

    /// Sets the session's own timer, in place of the one that was set.
    pub(super) fn set_session_timer(&mut self, conn: ConnId, at: Instant, timer: Timer) {
        let key = self.timers.insert(at, timer);
        if let Some(session) = self.find(conn)
            && let Some(old) = session.timer.replace(key)
        {
            self.timers.cancel(old);
        }
    }

    /// Reads the engine's clock.
    #[inline]
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
        self.clock = now.saturating_duration_since(self.started).as_millis() as u32;
    }

    /// Ids of all sessions, in the order of their slots.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.sessions.iter().flatten().map(|session| session.conn).collect()
    }

    /// Publishes the counters of this turn.
    pub(super) fn publish(&mut self) {
        self.totals.connections = self.live as u64;
        self.counters.publish(&self.totals);
    }
}

/// What a callback may ask the engine itself.
pub(crate) trait Facts {
    fn info(&self, conn: ConnId) -> io::Result<ConnInfo>;
    fn option(&self, conn: ConnId, name: OptionName) -> io::Result<SocketOption>;
    fn set_option(&mut self, conn: ConnId, option: &SocketOption) -> io::Result<()>;
    fn tcp_info(&self, conn: ConnId) -> io::Result<TcpInfo>;
    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()>;
    fn at_mark(&self, conn: ConnId) -> io::Result<bool>;
}

impl<E: Engine> Facts for E {
    fn info(&self, conn: ConnId) -> io::Result<ConnInfo> {
        Engine::info(self, conn)
    }

    fn option(&self, conn: ConnId, name: OptionName) -> io::Result<SocketOption> {
        Engine::option(self, conn, name)
    }

    fn set_option(&mut self, conn: ConnId, option: &SocketOption) -> io::Result<()> {
        Engine::set_option(self, conn, option)
    }

    fn tcp_info(&self, conn: ConnId) -> io::Result<TcpInfo> {
        Engine::tcp_info(self, conn)
    }

    fn watch_urgent(&mut self, conn: ConnId) -> io::Result<()> {
        Engine::watch_urgent(self, conn)
    }

    fn at_mark(&self, conn: ConnId) -> io::Result<bool> {
        Engine::at_mark(self, conn)
    }
}
