//! [`Context`]: what a worker has besides its engine and its handlers. Callbacks see it, so it knows neither.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use ringport_engine::{Buf, Chunk, ConnId, ConnInfo, Engine, OptionName, Pool, SocketOption, TcpInfo, UdpId};

use super::account::Account;
use super::counters::Counters;
use super::service::Later;
use super::timers::{Due, Timer, TimerId, Timers};
use crate::aio::Runtime;
use crate::blocking::{Blocking, JobPanicked, QueueFull};
use crate::handler::Message;
use crate::remote::{Letter, Remote};
use crate::session::{
    Bucket, CloseReason, ConnectionOptions, Ending, Pauses, Phase, Rare, Rate, Refusal, SendOutcome, Session,
    WantsMemory,
};

/// Longest time that reading rests at a stretch because of a rate.
const THROTTLE_MAX: Duration = Duration::from_secs(60);

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
#[repr(C)]
pub struct Context {
    // What each turn and each message need comes first, in one place.
    pub(super) number: u16,
    pub(super) stopping: bool,
    /// `now` in milliseconds since `started`.
    pub(super) clock: u32,
    pub(super) now: Instant,
    pub(super) live: usize,
    pub(super) sessions: Vec<Option<Session>>,
    pub(super) options: Vec<ConnectionOptions>,
    pub(super) counters: Arc<Counters>,
    pub(super) aio: Rc<Runtime>,
    pub(super) pool: Pool,
    pub(super) account: Account,
    /// Sessions that a callback of another connection, a timer or a message touched.
    pub(super) dirty: Vec<ConnId>,
    /// Sessions that are to hear something about their queue.
    pub(super) later: VecDeque<(ConnId, Later)>,
    /// Results of blocking work, in a simulation.
    pub(super) done: VecDeque<(ConnectionId, Message)>,
    pub(super) remote: Remote,
    pub(super) timers: Timers,
    /// Sessions whose reading rests because of the memory limit.
    pub(super) resting: Vec<ConnId>,
    /// Sessions of which a send was refused because of the memory limit, the one that has waited longest first.
    pub(super) refused: VecDeque<ConnId>,
    /// Datagram sockets that wait for memory: to receive, or to send again what was refused.
    pub(super) udp_resting: Vec<UdpId>,
    /// A look at the memory is planned.
    pub(super) watches_memory: bool,
    pub(super) global_live: Arc<AtomicUsize>,
    pub(super) started: Instant,
    /// Threads for what blocks; `None` in a simulation, where everything happens on one.
    pub(super) blocking: Option<Arc<Blocking>>,
    /// Lookups of host names under way.
    pub(super) resolving: usize,
}

/// A session and what it needs to send.
pub(crate) struct Parts<'a> {
    pub(crate) session: &'a mut Session,
    pub(crate) options: &'a ConnectionOptions,
    pub(crate) pool: &'a Pool,
    pub(crate) account: &'a mut Account,
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
            Some((session, options, account)) => session.send(data, options, account),
            None => SendOutcome::Refused { data, why: Refusal::Closing },
        }
    }

    /// Runs `job`, which may block, on a thread made for that, and hands its result to
    /// [`Handler::message`](crate::Handler::message) of `to`, a connection of this worker. If it is gone by then, the result
    /// is dropped. If the job panics, the message is a [`JobPanicked`].
    ///
    /// The server has a few such threads ([`Server::blocking_threads`](crate::Server::blocking_threads)), and 1,024 jobs may
    /// wait for one. In a simulation the job runs at once, so that every run is the same.
    ///
    /// # Errors
    ///
    /// Hands the job back when too many wait already.
    pub fn spawn_blocking<F, R>(&mut self, to: ConnectionId, job: F) -> Result<(), QueueFull<F>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let Some(blocking) = &self.blocking else {
            self.done.push_back((to, outcome(job)));
            return Ok(());
        };
        let mailbox = Arc::clone(&self.remote.mailboxes[self.number()]);
        blocking.spawn(job, |job| Box::new(move || mailbox.push_patiently(Letter::Message(to.conn, outcome(job)))))
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
        if let Some((session, ..)) = found {
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
            let own = &mut session.rare().timers;
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
    pub(crate) fn parts(&mut self, slot: usize) -> Parts<'_> {
        let session = self.sessions[slot].as_mut().expect("a callback runs for a live session");
        let options = &self.options[session.service as usize];
        Parts { session, options, pool: &self.pool, account: &mut self.account }
    }

    /// The session of `conn`, if it is still that one.
    #[inline]
    pub(super) fn find(&mut self, conn: ConnId) -> Option<&mut Session> {
        self.sessions.get_mut(conn.slot())?.as_mut().filter(|session| session.conn == conn)
    }

    /// The session of `id` if it is one of ours and alive; it will be settled at the end of the turn.
    fn touch(&mut self, id: ConnectionId) -> Option<(&mut Session, &ConnectionOptions, &mut Account)> {
        if id.worker != self.number {
            return None;
        }
        self.mark_dirty(id.conn);
        let session = self.sessions.get_mut(id.conn.slot())?.as_mut()?;
        if session.conn != id.conn || session.phase == Phase::Ended {
            return None;
        }
        let options = &self.options[session.service as usize];
        Some((session, options, &mut self.account))
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
        self.counters.connections.set(self.live as u64);
    }

    /// Takes out a session and cancels its timers.
    pub(super) fn remove(&mut self, conn: ConnId) -> Option<Session> {
        self.find(conn)?;
        let session = self.sessions[conn.slot()].take()?;
        self.live -= 1;
        self.counters.connections.set(self.live as u64);
        self.account.release(session.charged());
        if let Some(key) = session.timer {
            self.timers.cancel(key);
        }
        for timer in session.rare.iter().flat_map(|rare| rare.timers.iter()) {
            self.timers.cancel_user(*timer);
        }
        Some(session)
    }

    /// Has reading of the session rest until the server is below its memory limit again.
    #[cold]
    pub(super) fn rest(&mut self, conn: ConnId) {
        let Some(session) = self.find(conn) else { return };
        if !session.pauses.add(Pauses::MEMORY) {
            return;
        }
        self.watch_memory();
        self.resting.push(conn);
    }

    /// Has the session hear when there is memory again.
    #[cold]
    pub(super) fn list_for_memory(&mut self, conn: ConnId) {
        let Some(session) = self.find(conn) else { return };
        session.rare().wants_memory = WantsMemory::Listed;
        self.watch_memory();
        self.refused.push_back(conn);
    }

    /// Has a datagram socket wait for memory. Called once until it is told.
    #[cold]
    pub(super) fn rest_datagrams(&mut self, udp: UdpId) {
        self.watch_memory();
        self.udp_resting.push(udp);
    }

    /// Whether anything waits until there is memory again.
    pub(super) fn waits_for_memory(&self) -> bool {
        !(self.resting.is_empty() && self.refused.is_empty() && self.udp_resting.is_empty())
    }

    /// Looks at the memory soon, unless that is planned already.
    pub(super) fn watch_memory(&mut self) {
        if !std::mem::replace(&mut self.watches_memory, true) {
            self.timers.insert(self.now + super::MEMORY_PAUSE, Timer::Memory);
        }
    }

    /// Takes received bytes out of the session's allowance.
    #[cold]
    pub(super) fn count_bytes(&mut self, conn: ConnId, bytes: u64) {
        self.count(conn, bytes, |options| options.receive_rate_max, |rare| &mut rare.bytes_left);
    }

    /// Takes received messages out of the session's allowance.
    pub(crate) fn count_messages(&mut self, conn: ConnId, messages: u64) {
        self.count(conn, messages, |options| options.message_rate_max, |rare| &mut rare.messages_left);
    }

    /// Has reading rest until an allowance that is overdrawn has something in it again.
    fn count(
        &mut self,
        conn: ConnId,
        amount: u64,
        rate: impl Fn(&ConnectionOptions) -> Option<Rate>,
        bucket: impl Fn(&mut Rare) -> &mut Bucket,
    ) {
        let now = self.now.saturating_duration_since(self.started);
        let Some(session) = self.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        let Some(rate) = rate(&self.options[session.service as usize]) else { return };
        let Some(wait) = bucket(session.rare()).spend(amount, rate, now) else { return };
        // A timer that was set for less wakes it early; then the next bytes put it to rest again.
        if session.pauses.add(Pauses::RATE) {
            self.counters.throttled.add(1);
            self.timers.insert(self.now + wait.min(THROTTLE_MAX), Timer::Rate(conn));
        }
    }

    /// What the session keeps, with `buf` behind it.
    #[cold]
    pub(super) fn join_kept(&mut self, conn: ConnId, buf: Buf) -> Buf {
        match self.sessions.get_mut(conn.slot()).and_then(Option::as_mut) {
            Some(session) => session.join(buf, &self.pool, &mut self.account),
            None => buf,
        }
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

    /// Cancels the session's own timer, if it is set.
    pub(super) fn cancel_session_timer(&mut self, conn: ConnId) {
        if let Some(key) = self.find(conn).and_then(|session| session.timer.take()) {
            self.timers.cancel(key);
        }
    }

    /// Takes over the engine's clock, and collects the timers that are due.
    #[inline]
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
        self.aio.set_now(now);
        self.clock = self.timers.expire(now) as u32;
    }

    /// Ids of all sessions, in the order of their slots.
    pub(super) fn ids(&self) -> Vec<ConnId> {
        self.sessions.iter().flatten().map(|session| session.conn).collect()
    }

    /// Charges a datagram against the memory limit, if that allows it.
    #[inline]
    pub(crate) fn charge_datagram(&mut self, bytes: u64) -> bool {
        self.account.charge_datagram(bytes)
    }

    pub(crate) fn count_refused_datagram(&mut self) {
        self.counters.datagrams_refused.add(1);
    }
}

/// What a job returns, or that it panicked.
fn outcome<R: Send + 'static>(job: impl FnOnce() -> R) -> Message {
    match catch_unwind(AssertUnwindSafe(job)) {
        Ok(result) => Box::new(result),
        Err(_) => Box::new(JobPanicked),
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
    fn udp_option(&self, udp: UdpId, name: OptionName) -> io::Result<SocketOption>;
    fn set_udp_option(&mut self, udp: UdpId, option: &SocketOption) -> io::Result<()>;
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

    fn udp_option(&self, udp: UdpId, name: OptionName) -> io::Result<SocketOption> {
        Engine::udp_option(self, udp, name)
    }

    fn set_udp_option(&mut self, udp: UdpId, option: &SocketOption) -> io::Result<()> {
        Engine::set_udp_option(self, udp, option)
    }
}
