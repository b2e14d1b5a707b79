//! A worker: one engine, one buffer pool, its sessions, timers and mailbox. The only place where engine and sessions meet.
//!
//! A turn, in this order:
//!
//! 1. wait for the engine, unless something is left to do (`turn`),
//! 2. each event to its session's handler, and what the handler asked for to the engine right after (`event`, `settle`),
//! 3. messages from other threads (`letters`),
//! 4. timers (`timer`),
//! 5. sessions that a callback of another session touched, and those that may write again.
//!
//! A panic in a callback is caught around the whole turn, so that it costs nothing a message; the session whose
//! callback it was is aborted and the turn goes on where it stopped.

mod accept;
mod context;
mod counters;
mod drain;
mod mailbox;
mod service;
mod settle;
mod timers;
mod wheel;

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) use context::Facts;
pub use context::{ConnectionId, Context};
pub(crate) use counters::Counters;
pub use counters::WorkerStats;
pub(crate) use mailbox::Mailbox;
use ringport_engine::{Buf, ConnId, Engine, EngineConfig, Event, ListenerId, Pool, PoolConfig};
use service::{Call, Happening, Service};
pub(crate) use service::{Factory, factory};
pub use timers::TimerId;
use timers::{Timer, Timers};
pub(crate) use wheel::TimerKey;

pub(crate) use self::accept::Share;
use self::drain::Drain;
use crate::remote::{Letter, Remote};
use crate::session::{CloseReason, ConnectionOptions, Ending, Phase};

/// One thread's share of a server or client.
pub(crate) struct Worker<E: Engine> {
    engine: E,
    context: Context,
    services: Vec<Box<dyn Service>>,
    listeners: Vec<Listening>,
    mailbox: Arc<Mailbox<Letter>>,
    share: Share,
    tick: Option<Duration>,
    drain: Option<Drain>,
    /// Ends when its last connection has ended: a client.
    until_idle: bool,
    /// Whose callback runs.
    current: Option<ConnId>,
}

struct Listening {
    id: ListenerId,
    service: u32,
    /// Its connections are spread over the workers by this one.
    hand_over: bool,
}

/// Messages taken out of the mailbox in one turn. The rest waits for the next, so that I/O goes on.
const LETTERS_PER_TURN: usize = 1024;

/// What a worker is made of, apart from its engine.
pub(crate) struct WorkerSetup {
    pub(crate) number: u16,
    pub(crate) services: Vec<(Factory, ConnectionOptions)>,
    pub(crate) remote: Remote,
    pub(crate) counters: Arc<Counters>,
    pub(crate) global_live: Arc<AtomicUsize>,
    pub(crate) share: Share,
    pub(crate) tick: Option<Duration>,
    pub(crate) until_idle: bool,
}

impl<E: Engine> Worker<E> {
    /// Opens the engine on this thread.
    pub(crate) fn open(config: &EngineConfig, pool: PoolConfig, setup: WorkerSetup) -> io::Result<Self> {
        let pool = Pool::new(pool);
        let engine = E::open(config, pool.clone())?;
        let now = engine.now();
        let mailbox = Arc::clone(&setup.remote.mailboxes[usize::from(setup.number)]);
        let waker = engine.waker();
        mailbox.bind(move || waker.wake());
        let mut timers = Timers::new(now);
        if let Some(period) = setup.tick {
            timers.insert(now + period, Timer::Tick);
        }
        let (factories, options): (Vec<_>, Vec<_>) = setup.services.into_iter().unzip();
        let context = Context {
            number: setup.number,
            sessions: Vec::new(),
            live: 0,
            options,
            pool,
            timers,
            dirty: Vec::new(),
            writable: VecDeque::new(),
            totals: WorkerStats::default(),
            counters: setup.counters,
            global_live: setup.global_live,
            started: now,
            now,
            clock: 0,
            remote: setup.remote,
            stopping: false,
        };
        Ok(Self {
            engine,
            context,
            services: factories.iter().map(|factory| factory()).collect(),
            listeners: Vec::new(),
            mailbox,
            share: setup.share,
            tick: setup.tick,
            drain: None,
            until_idle: setup.until_idle,
            current: None,
        })
    }

    /// One turn: waits at most until `deadline`, then does everything there is to do.
    ///
    /// # Errors
    ///
    /// Only what ends the worker: the engine cannot go on.
    pub(crate) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let busy = !self.context.dirty.is_empty() || !self.context.writable.is_empty();
        if busy || !self.mailbox.prepare_sleep() {
            self.engine.wait(Some(self.context.now))?;
        } else {
            let timer = self.context.timers.next_deadline();
            let until = deadline.into_iter().chain(timer).min();
            self.engine.wait(until)?;
        }
        self.mailbox.awake();
        self.context.set_now(self.engine.now());
        self.context.timers.expire(self.context.now);
        if let Some(within) = self.context.remote.stop_within() {
            self.shut_down(within);
        }
        let mut letters = LETTERS_PER_TURN;
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut letters))).is_err() {
            self.after_panic();
        }
        self.publish();
        Ok(())
    }

    /// Runs until everything has ended.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        while !self.is_finished() {
            self.turn(None)?;
        }
        Ok(())
    }

    /// Whether nothing is left to do, ever.
    pub(crate) fn is_finished(&self) -> bool {
        let ending = self.drain.is_some() || self.until_idle;
        let ended = self.context.live == 0 && self.listeners.is_empty();
        ending && ended || self.drain.as_ref().is_some_and(|drain| drain.is_hopeless(self.context.now))
    }

    /// Everything of a turn that may call a handler. After a panic it is called again and goes on.
    fn work(&mut self, letters: &mut usize) {
        while let Some(event) = self.engine.next() {
            self.event(event);
        }
        while *letters > 0
            && let Some(letter) = self.mailbox.pop()
        {
            *letters -= 1;
            self.letter(letter);
        }
        while let Some(timer) = self.context.timers.next_expired() {
            self.timer(timer);
        }
        while let Some(conn) = self.context.dirty.pop() {
            if let Some(session) = self.context.find(conn) {
                session.dirty = false;
                self.settle(conn);
            }
        }
        // Those that become writable meanwhile have their turn in the next one, since a handler may fill the queue at once again.
        for _ in 0..self.context.writable.len() {
            let Some(conn) = self.context.writable.pop_front() else { return };
            self.call(conn, Happening::Writable);
        }
    }

    #[inline]
    fn event(&mut self, event: Event) {
        match event {
            Event::Received { conn, buf } => self.received(conn, buf),
            Event::Sent { conn, bytes, idle } => self.sent(conn, bytes, idle),
            Event::Accepted { listener, socket } => self.accepted(listener, socket),
            Event::Connected { conn } => self.connected(conn),
            Event::PeerClosed { conn } => self.peer_closed(conn),
            Event::Closed { conn, why, unsent, unacked } => {
                let unsent = unsent.iter().map(|piece| piece.len() as u64).sum();
                self.closed(conn, why, unsent, unacked);
            }
            Event::AcceptFailed { listener, error } => {
                self.context.totals.accepts_failed += 1;
                tracing::warn!(%listener, %error, "accepting failed; trying again after a pause");
            }
            Event::ListenerClosed { listener } => self.listeners.retain(|listening| listening.id != listener),
            _ => {}
        }
    }

    #[inline]
    fn received(&mut self, conn: ConnId, buf: Buf) {
        let context = &mut self.context;
        context.totals.receives += 1;
        context.totals.received_bytes += buf.len() as u64;
        let clock = context.clock;
        let Some(session) = context.find(conn) else { return };
        session.received += buf.len() as u64;
        if session.phase != Phase::Open {
            return; // Closing: what still comes is discarded, as the graceful close promises.
        }
        session.active_at = clock;
        let (service, state) = (session.service as usize, session.state);
        self.current = Some(conn);
        self.services[service].data(Call { context, facts: &mut self.engine, conn, state }, buf);
        self.current = None;
        self.settle(conn);
    }

    #[inline]
    fn sent(&mut self, conn: ConnId, bytes: usize, idle: bool) {
        let context = &mut self.context;
        context.totals.sent_bytes += bytes as u64;
        let clock = context.clock;
        let Some(session) = context.find(conn) else { return };
        session.handed += bytes as u64;
        session.sending = !idle;
        session.active_at = clock;
        self.settle(conn);
    }

    fn connected(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn) else { return };
        session.phase = Phase::Open;
        self.context.totals.connected += 1;
        self.opened(conn);
    }

    /// The first callback of a session, and its idle timer.
    fn opened(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn) else { return };
        session.opened = true;
        let service = session.service as usize;
        if let Some(timeout) = self.context.options[service].idle_timeout {
            self.context.set_session_timer(conn, self.context.now + timeout, Timer::Idle(conn));
        }
        self.call(conn, Happening::Open);
    }

    fn peer_closed(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn) else { return };
        session.peer_closed = true;
        if session.phase == Phase::Open {
            self.call(conn, Happening::PeerClosed);
        } else {
            self.settle(conn);
        }
    }

    /// Calls the handler of an open session, then carries out what it asked for.
    fn call(&mut self, conn: ConnId, what: Happening<'_>) {
        let Some(session) = self.context.find(conn) else { return };
        if session.phase != Phase::Open {
            return;
        }
        let (service, state) = (session.service as usize, session.state);
        self.current = Some(conn);
        self.services[service].on(Call { context: &mut self.context, facts: &mut self.engine, conn, state }, what);
        self.current = None;
        self.settle(conn);
    }

    /// A callback panicked. Its session is aborted; if the panic was in its very last callback, it is only removed.
    #[cold]
    fn after_panic(&mut self) {
        self.context.totals.panics += 1;
        let Some(conn) = self.current.take() else {
            tracing::error!("a handler panicked outside of any connection");
            return;
        };
        tracing::error!(connection = %self.context.id_of(conn), "a handler panicked; its connection is aborted");
        let Some(session) = self.context.find(conn) else { return };
        if session.phase == Phase::Ended {
            self.forget(conn);
            return;
        }
        session.end(Ending::Abort, CloseReason::Panic);
        self.settle(conn);
    }

    fn letter(&mut self, letter: Letter) {
        match letter {
            Letter::Send(conn, data) => {
                self.context.send_to(self.context.id_of(conn), data);
            }
            Letter::Message(conn, message) => self.call(conn, Happening::Message(message)),
            Letter::Close(conn) => {
                self.context.end(self.context.id_of(conn), Ending::Graceful);
            }
            Letter::Abort(conn) => {
                self.context.end(self.context.id_of(conn), Ending::Abort);
            }
            Letter::Adopt(socket, service) => {
                self.context.totals.taken_over += 1;
                self.adopt(socket, service);
            }
        }
    }

    fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Idle(conn) => self.idle(conn),
            Timer::Linger(conn) => self.lingered(conn),
            Timer::User(id) => {
                if let Some(due) = self.context.timers.due(id, self.context.now) {
                    self.call(due.conn, Happening::Timer(id, due.token));
                }
            }
            Timer::Tick => self.run_tick(),
            Timer::Drain => self.drain_step(),
        }
    }

    /// The idle time since the timer was set may have been interrupted: refreshing costs a store, not a timer.
    fn idle(&mut self, conn: ConnId) {
        let (clock, now) = (self.context.clock, self.context.now);
        let Some(session) = self.context.find(conn) else { return };
        session.timer = None;
        if session.phase != Phase::Open {
            return;
        }
        let (service, quiet) = (session.service as usize, clock.wrapping_sub(session.active_at));
        let Some(timeout) = self.context.options[service].idle_timeout else { return };
        let quiet = Duration::from_millis(quiet.into());
        if quiet < timeout {
            self.context.set_session_timer(conn, now + (timeout - quiet), Timer::Idle(conn));
            return;
        }
        if let Some(session) = self.context.find(conn) {
            let how = if session.queued() == 0 { Ending::Plain } else { Ending::Abort };
            session.end(how, CloseReason::Idle);
        }
        self.settle(conn);
    }

    fn run_tick(&mut self) {
        let Some(period) = self.tick else { return };
        self.context.timers.insert(self.context.now + period, Timer::Tick);
        for service in &mut self.services {
            service.tick(&mut self.context);
        }
    }

    fn publish(&mut self) {
        let engine = self.engine.stats();
        let totals = &mut self.context.totals;
        totals.turns = engine.waits;
        totals.events = engine.events;
        totals.calls = engine.calls;
        totals.starved = engine.starved;
        totals.copies = self.context.pool.copies();
        self.context.publish();
    }

    pub(crate) fn context(&self) -> &Context {
        &self.context
    }

    /// Events so far.
    pub(crate) fn events(&self) -> u64 {
        self.engine.stats().events
    }

    /// When the next timer is due.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.context.timers.next_deadline()
    }
}

impl<E: Engine> Drop for Worker<E> {
    /// The connections that are left end with the engine; the limit must not count them for ever.
    fn drop(&mut self) {
        self.mailbox.close();
        self.context.global_live.fetch_sub(self.context.live, Ordering::Relaxed);
        self.context.live = 0;
        self.context.publish();
    }
}
