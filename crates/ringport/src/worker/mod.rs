//! A worker: one engine, one buffer pool, its sessions, timers and mailbox. The only place where engine and sessions meet.
//!
//! A turn, in this order:
//!
//! 1. wait for the engine, unless something is left to do (`turn`),
//! 2. each event to its session's handler, and what the handler asked for to the engine right after (`event`, `settle`) or,
//!    with many connections, after some others (`GROUP`),
//! 3. messages from other threads (`letters`),
//! 4. timers (`timer`), then tasks that are ready (`run_tasks`),
//! 5. sessions that a callback of another session touched, then those that are to hear of their queue (`Later`).
//!
//! A panic in a callback is caught around the whole turn, so that it costs nothing a message; the session whose
//! callback it was is aborted and the turn goes on where it stopped.

mod accept;
mod account;
mod ahead;
mod context;
mod counters;
mod datagram;
mod drain;
mod gate;
mod mailbox;
mod race;
mod service;
mod settle;
mod tasks;
mod timers;
mod wheel;

use std::collections::{BTreeMap, VecDeque};
use std::hint::cold_path;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(crate) use account::{Account, Budget, OVERRUN, RECEIVED_OVERRUN};
pub use context::{ConnectionId, Context};
pub(crate) use context::{Facts, Parts};
pub(crate) use counters::Counters;
pub use counters::WorkerStats;
pub(crate) use datagram::{DatagramFactory, DatagramService, Incident, datagram_factory};
pub(crate) use gate::{Gate, Permit};
pub(crate) use mailbox::Mailbox;
use race::Race;
pub(crate) use race::Resolved;
use ringport_engine::engine::{asked_to_end, ring_when_asked_to_end};
use ringport_engine::{Buf, ConnId, Engine, EngineConfig, Event, ListenerId, Pool, PoolConfig, UdpId};
use service::Later;
pub(crate) use service::{Call, Factory, Happening, Service, factory};
pub use timers::TimerId;
use timers::{Timer, Timers};
pub(crate) use wheel::TimerKey;
#[cfg(test)]
pub(crate) use wheel::Wheel;

pub(crate) use self::accept::Share;
use self::drain::Drain;
use crate::aio::{ListenerCell, Runtime, Streams};
use crate::blocking::Blocking;
use crate::remote::{Letter, Remote};
use crate::session::{CloseReason, ConnectionOptions, Ending, Pauses, Phase, WantsMemory};

/// One thread's share of a server or client. In this order what each turn needs lies together.
#[repr(C)]
pub(crate) struct Worker<E: Engine> {
    engine: E,
    /// Whose callback runs.
    current: Option<ConnId>,
    /// Whose wishes are carried out next, together: see [`GROUP`].
    group: Vec<ConnId>,
    /// Time to drain when the process is asked to end; `None` if another worker sees to that, or nobody.
    stop_on_signals: Option<Duration>,
    services: Vec<Box<dyn Service>>,
    mailbox: Arc<Mailbox<Letter>>,
    /// Datagram sockets by the slots of their ids.
    udp: Vec<Option<datagram::UdpSocket>>,
    /// Datagram sockets whose sends were refused and that have room again.
    udp_writable: Vec<UdpId>,
    /// Ends when its last connection has ended: a client.
    until_idle: bool,
    drain: Option<Drain>,
    context: Context,
    listeners: Vec<Listening>,
    /// Datagrams that were waiting when their socket was closed.
    datagrams_unsent: u64,
    /// Bytes of datagrams that the engine had sent when the counters were published last.
    datagram_bytes_sent: u64,
    share: Share,
    tick: Option<Duration>,
    /// Connects to several addresses under way, by number.
    races: BTreeMap<u32, Race>,
    next_race: u32,
    /// The service of the connections that tasks open.
    task_service: u32,
}

struct Listening {
    id: ListenerId,
    service: u32,
    /// Its connections are spread over the workers by this one.
    hand_over: bool,
    /// The listener of a task that waits for its connections.
    queue: Option<Rc<ListenerCell>>,
}

/// Entries that each list of what is to be done has room for from the beginning, so that a burst on a busy machine costs a
/// worker that has been running for long no allocation.
pub(crate) const LISTED_AT_FIRST: usize = 256;

/// Handlers that have received bytes before what they asked for is carried out, with more than [`GROUP_FROM`] connections.
///
/// Caches that have forgotten a connection have forgotten the code for it, too: so the handlers' code runs some times in a row, and then
/// the system's for what they send. Nobody has a second event before that, and any other event than bytes ends the group.
const GROUP: usize = 4;
const GROUP_FROM: usize = 128;

/// Messages taken out of the mailbox in one turn. The rest waits for the next, so that I/O goes on.
const LETTERS_PER_TURN: usize = 1024;

/// How long connections rest at least when the server is above its memory limit.
const MEMORY_PAUSE: Duration = Duration::from_millis(10);

/// Connections that may try again to send what the memory limit refused, each time that memory is looked at. However many
/// wait, trying takes little of a worker's time.
const TRIES_AT_ONCE: usize = 256;

/// What a worker is made of, apart from its engine.
pub(crate) struct WorkerSetup {
    pub(crate) number: u16,
    pub(crate) services: Vec<(Factory, ConnectionOptions)>,
    pub(crate) remote: Remote,
    pub(crate) counters: Arc<Counters>,
    pub(crate) global_live: Arc<AtomicUsize>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) blocking: Option<Arc<Blocking>>,
    pub(crate) share: Share,
    pub(crate) tick: Option<Duration>,
    pub(crate) stop_on_signals: Option<Duration>,
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
        if setup.stop_on_signals.is_some() {
            ring_when_asked_to_end(engine.waker())?;
        }
        let mut timers = Timers::new(now);
        if let Some(period) = setup.tick {
            timers.insert(now + period, Timer::Tick);
        }
        let (factories, mut options): (Vec<_>, Vec<_>) = setup.services.into_iter().unzip();
        let mut services: Vec<_> = factories.iter().map(|factory| factory()).collect();
        let task_service = services.len() as u32;
        services.push(Streams::of_tasks());
        options.push(ConnectionOptions::default().rest_when_full(false));
        let aio = Runtime::new(setup.number, pool.clone(), config.network.clone(), &setup.remote, now);
        let context = Context {
            number: setup.number,
            sessions: Vec::new(),
            live: 0,
            options,
            pool,
            timers,
            dirty: Vec::with_capacity(LISTED_AT_FIRST),
            later: VecDeque::with_capacity(LISTED_AT_FIRST),
            account: Account::new(setup.budget),
            resting: Vec::with_capacity(LISTED_AT_FIRST),
            refused: VecDeque::new(),
            udp_resting: Vec::new(),
            watches_memory: false,
            counters: setup.counters,
            global_live: setup.global_live,
            started: now,
            now,
            clock: 0,
            remote: setup.remote,
            stopping: false,
            aio,
            blocking: setup.blocking,
            done: VecDeque::new(),
            resolving: 0,
        };
        Ok(Self {
            engine,
            context,
            services,
            listeners: Vec::new(),
            udp: Vec::new(),
            udp_writable: Vec::new(),
            datagrams_unsent: 0,
            datagram_bytes_sent: 0,
            mailbox,
            share: setup.share,
            tick: setup.tick,
            stop_on_signals: setup.stop_on_signals,
            drain: None,
            races: BTreeMap::new(),
            next_race: 0,
            until_idle: setup.until_idle,
            task_service,
            current: None,
            group: Vec::with_capacity(GROUP),
        })
    }

    /// One turn: waits at most until `deadline`, then does everything there is to do.
    ///
    /// # Errors
    ///
    /// Only what ends the worker: the engine cannot go on.
    pub(crate) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let _entered = self.context.aio.enter();
        self.turn_entered(deadline)
    }

    /// A turn of a worker whose runtime is this thread's.
    fn turn_entered(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let context = &self.context;
        let busy = !context.dirty.is_empty()
            || !context.later.is_empty()
            || !context.done.is_empty()
            || !self.udp_writable.is_empty()
            || self.has_ready_tasks();
        let sleeps = !busy && self.mailbox.prepare_sleep();
        let until = if sleeps {
            let timer = self.context.timers.next_deadline();
            deadline.map_or(timer, |deadline| Some(timer.map_or(deadline, |timer| timer.min(deadline))))
        } else {
            cold_path();
            Some(self.context.now)
        };
        self.engine.wait(until)?;
        // Whoever has pushed a message while this thread slept has rung, or is about to and finds it awake: then the
        // message is seen before the next sleep.
        let may_have_letters = !(sleeps && self.mailbox.awake());
        self.context.set_now(self.engine.now());
        if let Some(within) = self.context.remote.stop_within() {
            cold_path();
            self.shut_down(within);
        }
        let mut letters = if may_have_letters { LETTERS_PER_TURN } else { 0 };
        while catch_unwind(AssertUnwindSafe(|| self.work(&mut letters))).is_err() {
            self.after_panic();
        }
        self.publish();
        Ok(())
    }

    /// Runs until everything has ended.
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let _entered = self.context.aio.enter();
        while !self.is_finished() {
            self.turn_entered(None)?;
        }
        Ok(())
    }

    /// Whether nothing is left to do, ever.
    pub(crate) fn is_finished(&self) -> bool {
        if self.drain.is_none() && !self.until_idle {
            return false;
        }
        let listens = !self.listeners.is_empty() || self.has_datagrams();
        let ended = self.context.live == 0 && !listens && self.context.resolving == 0;
        let idle = self.drain.is_some() || !self.context.aio.has_tasks();
        ended && idle || self.drain.as_ref().is_some_and(|drain| drain.is_hopeless(self.context.now))
    }

    /// Everything of a turn that may call a handler. After a panic it is called again and goes on.
    fn work(&mut self, letters: &mut usize) {
        loop {
            let usual = self.engine.next_usual();
            if let Some((conn, buf)) = usual.received {
                self.look_ahead();
                if self.group.contains(&conn) {
                    self.settle_group();
                }
                self.received(conn, buf);
            } else if let Some((conn, bytes, idle)) = usual.sent {
                self.look_ahead();
                self.settle_group();
                self.sent(conn, bytes, idle);
            } else {
                self.settle_group();
                let Some(event) = self.engine.next() else { break };
                cold_path();
                self.look_ahead();
                self.event(event);
            }
        }
        while *letters > 0
            && let Some(letter) = self.mailbox.pop()
        {
            cold_path();
            *letters -= 1;
            self.letter(letter);
        }
        for _ in 0..self.context.done.len() {
            cold_path();
            let Some((to, message)) = self.context.done.pop_front() else { break };
            if to.worker() == self.context.number() {
                self.call(to.conn, Happening::Message(message));
            }
        }
        while let Some(timer) = self.context.timers.next_expired() {
            cold_path();
            self.timer(timer);
        }
        self.run_tasks();
        while let Some(conn) = self.context.dirty.pop() {
            cold_path();
            if let Some(session) = self.context.find(conn) {
                session.dirty = false;
                self.settle(conn);
            }
        }
        self.tell_writable_datagrams();
        // What is added meanwhile has its turn in the next one, since a handler may fill its queue at once again.
        for _ in 0..self.context.later.len() {
            cold_path();
            let Some((conn, later)) = self.context.later.pop_front() else { return };
            self.call(conn, later.into());
        }
    }

    /// An event of any kind.
    #[inline(never)]
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
                self.context.counters.accepts_failed.add(1);
                tracing::warn!(%listener, %error, "accepting failed; trying again after a pause");
            }
            Event::Datagram { udp, from, buf, truncated } => self.datagram(udp, from, buf, truncated),
            Event::DatagramsWritable { udp } => self.datagrams_writable(udp),
            Event::DatagramFailed { udp, to, error } => self.incident(udp, datagram::Incident::Failed(to, &error)),
            Event::UdpClosed { udp, unsent } => self.udp_closed(udp, unsent),
            Event::ListenerClosed { listener } => self.listener_closed(listener),
            Event::Woken => self.woken(),
            _ => {}
        }
    }

    /// Another thread wants something, or a signal arrived.
    fn woken(&mut self) {
        if let Some(within) = self.stop_on_signals
            && let Some(given) = asked_to_end()
        {
            let within = within.min(given);
            self.stop_on_signals = None;
            tracing::info!(?within, "draining");
            self.context.remote.shut_down(within);
        }
    }

    #[inline]
    fn received(&mut self, conn: ConnId, buf: Buf) {
        let context = &mut self.context;
        context.counters.receives.add(1);
        context.counters.received_bytes.add(buf.len() as u64);
        let clock = context.clock;
        let Some(session) = context.find(conn) else { return };
        session.received += buf.len() as u64;
        if session.phase != Phase::Open {
            cold_path();
            return; // Closing: what still comes is discarded, as the graceful close promises.
        }
        session.received_at = clock;
        let (service, state, keeps) = (session.service as usize, session.state, session.keeps);
        if session.metered {
            cold_path();
            context.count_bytes(conn, buf.len() as u64);
        }
        if keeps {
            cold_path();
            let joined = context.join_kept(conn, buf);
            self.hand_over(conn, service, state, joined);
        } else {
            self.hand_over(conn, service, state, buf);
        }
    }

    /// Gives received bytes to their handler, then carries out what it asked for, at once or with its [`GROUP`].
    #[inline]
    fn hand_over(&mut self, conn: ConnId, service: usize, state: u32, buf: Buf) {
        let context = &mut self.context;
        if context.account.is_over() {
            cold_path();
            context.rest(conn);
        }
        self.current = Some(conn);
        let call = Call { context, facts: &mut self.engine, conn, state };
        self.services[service].data(call, buf);
        self.current = None;
        if self.context.live <= GROUP_FROM {
            return self.settle(conn);
        }
        self.group.push(conn);
        if self.group.len() == GROUP {
            self.settle_group();
        }
    }

    #[inline]
    fn sent(&mut self, conn: ConnId, bytes: usize, idle: bool) {
        let context = &mut self.context;
        context.counters.sent_bytes.add(bytes as u64);
        let clock = context.clock;
        let Some(session) = context.find(conn) else { return };
        session.handed += bytes as u64;
        session.sending = !idle;
        session.sent_at = clock;
        let settled = session.outbox.is_empty() && session.is_settled();
        context.account.release(bytes as u64);
        if !settled {
            self.settle(conn);
        }
    }

    fn connected(&mut self, conn: ConnId) {
        let Some(session) = self.context.find(conn).filter(|session| session.phase == Phase::Connecting) else {
            return;
        };
        session.phase = Phase::Open;
        if let Some(race) = session.rare.as_ref().and_then(|rare| rare.race) {
            self.win(race, conn);
        }
        self.context.counters.connected.add(1);
        self.opened(conn);
    }

    /// The first callback of a session, and its deadlines.
    fn opened(&mut self, conn: ConnId) {
        let context = &mut self.context;
        let Some(session) = context.sessions.get_mut(conn.slot()).and_then(Option::as_mut) else { return };
        session.opened = true;
        session.begin(&context.options[session.service as usize], context.clock);
        context.cancel_session_timer(conn);
        self.deadline(conn);
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
        self.context.counters.panics.add(1);
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
            Letter::Wake => {} // It has ended the sleep; the tasks have their turn after the letters.
            Letter::Start(start) => start(),
            Letter::Resolved(resolved) => self.resolved(*resolved),
            Letter::Adopt(socket, service, permit) => {
                self.context.counters.taken_over.add(1);
                self.adopt(socket, service, permit);
            }
        }
    }

    fn timer(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline(conn) => self.deadline(conn),
            Timer::Linger(conn) => self.lingered(conn),
            Timer::User(id) => {
                if let Some(due) = self.context.timers.due(id, self.context.now) {
                    self.call(due.conn, Happening::Timer(id, due.token));
                }
            }
            Timer::Sleep(sleep) => {
                let waiting = self.context.aio.slept(sleep);
                self.context.aio.poll_now(waiting);
                self.context.carry_out(&self.engine, None);
            }
            Timer::Tick => self.run_tick(),
            Timer::Sweep(udp) => self.sweep(udp),
            Timer::Drain => self.drain_step(),
            Timer::Rate(conn) => {
                if let Some(session) = self.context.find(conn) {
                    session.pauses.remove(Pauses::RATE);
                    self.settle(conn);
                }
            }
            Timer::Race(number) => self.next_attempt(number),
            Timer::Memory => self.look_at_memory(),
        }
    }

    /// Lets those that rest for want of memory read again, if there is some, and some of those whose sends were refused try
    /// again; otherwise looks again soon, since it may be other workers that free it.
    fn look_at_memory(&mut self) {
        self.context.watches_memory = false;
        let over = self.context.account.is_still_over();
        if !over {
            for conn in std::mem::take(&mut self.context.resting) {
                if let Some(session) = self.context.find(conn) {
                    session.pauses.remove(Pauses::MEMORY);
                    self.settle(conn);
                }
            }
            for udp in std::mem::take(&mut self.context.udp_resting) {
                self.wake_datagrams(udp);
            }
        }
        let tries = if over && !self.context.account.has_room_beside_copies() { 0 } else { TRIES_AT_ONCE };
        for _ in 0..tries {
            let Some(conn) = self.context.refused.pop_front() else { break };
            if let Some(session) = self.context.find(conn) {
                session.rare().wants_memory = WantsMemory::No;
                // One that is full hears it when it is no more.
                if !session.full {
                    self.context.later.push_back((conn, Later::Writable));
                }
            }
        }
        if self.context.waits_for_memory() {
            self.context.watch_memory();
        }
    }

    fn run_tick(&mut self) {
        let Some(period) = self.tick else { return };
        self.context.timers.insert(self.context.now + period, Timer::Tick);
        for service in &mut self.services {
            service.tick(&mut self.context);
        }
        self.tick_datagrams();
    }

    /// Publishes what is counted elsewhere, and charges for what others hold.
    #[inline]
    fn publish(&mut self) {
        let engine = self.engine.stats();
        let counters: &Counters = &self.context.counters;
        counters.turns.set(engine.waits);
        counters.events.set(engine.events);
        counters.calls.set(engine.calls);
        counters.starved.set(engine.starved);
        counters.charged_bytes.set(self.context.account.used());
        let copies = self.context.pool.copies();
        if copies > 0 || self.context.account.dropped_messages > 0 || !self.udp.is_empty() {
            self.publish_further(copies);
        }
    }

    /// All that many servers never have.
    #[inline(never)]
    fn publish_further(&mut self, copies: u64) {
        let context = &mut self.context;
        let counters = &context.counters;
        counters.dropped_messages.set(context.account.dropped_messages);
        counters.dropped_bytes.set(context.account.dropped_bytes);
        counters.copies.set(copies);
        context.account.set_copies(context.pool.copied_out_bytes());
        if !self.udp.is_empty() {
            let engine = self.engine.stats();
            counters.datagrams_received.set(engine.datagrams_received);
            counters.datagrams_sent.set(engine.datagrams_sent);
            counters.datagrams_dropped.set(engine.datagrams_dropped);
            counters.datagrams_truncated.set(engine.datagrams_truncated);
            counters.datagrams_failed.set(engine.datagrams_failed + self.datagrams_unsent);
            counters.sent_bytes.add(engine.datagram_bytes_sent - self.datagram_bytes_sent);
            self.datagram_bytes_sent = engine.datagram_bytes_sent;
            let waiting: u64 = self.datagrams_waiting();
            let total = engine.datagram_bytes_queued + engine.datagram_bytes_copied + waiting;
            self.context.account.set_datagrams(total);
        }
        self.context.counters.charged_bytes.set(self.context.account.used());
    }

    /// Starts the tasks that the services have for the beginning.
    pub(crate) fn start(&mut self) {
        let _entered = self.context.aio.enter();
        for service in &mut self.services {
            service.start(&mut self.context);
        }
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
        self.context.aio.close();
        self.mailbox.close();
        self.context.global_live.fetch_sub(self.context.live, Ordering::Relaxed);
        self.context.live = 0;
        self.context.counters.connections.set(0);
    }
}
