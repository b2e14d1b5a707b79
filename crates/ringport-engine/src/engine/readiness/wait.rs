//! A turn: what the kernel reports, and the order in which it is worked off.

use std::collections::VecDeque;
use std::hint::cold_path;
use std::io;
use std::time::{Duration, Instant};

use mio::Token;

use super::accept::Listener;
use super::close::Farewell;
use super::receive::Step;
use super::{Conn, EVENTS_PER_CALL, ReadinessEngine};
use crate::engine::LISTED_AT_FIRST;
use crate::engine::contract::{Event, Upcoming, Usual};
use crate::engine::datagram::Port;
use crate::engine::platform;
use crate::id::{ConnId, Id, ListenerId, Table, UdpId};

/// A deadline at least this far away is left to the alarm, where there is one: it is set once, and thousands of turns
/// pass without a timeout of their own, which would start and stop a timer of the kernel each time.
const ALARM_FROM: Duration = Duration::from_millis(50);

/// The token of the alarm.
pub(super) const ALARM: Token = Token(Target::Alarm as usize);

/// The token of the waker.
pub(super) const WAKER: Token = Token(0);

/// What a token stands for, in its lowest three bits. The slot follows, then as much of the generation as there is room
/// for: all but three bits of it with 64 bits, nine bits with 32 (where a million connections do not fit into memory).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    Waker = 0,
    Conn = 1,
    Listener = 2,
    Alarm = 3,
    Udp = 4,
}

const TARGET_BITS: u32 = 3;
const SLOT_BITS: u32 = if usize::BITS >= 64 { 32 } else { 20 };
const SLOT_MASK: usize = (1 << SLOT_BITS) - 1;

impl Target {
    pub(super) fn token(self, id: impl Into<Id>) -> Token {
        let Id { slot, generation } = id.into();
        let slot = (slot as usize & SLOT_MASK) << TARGET_BITS;
        Token(self as usize | slot | (generation as usize) << (TARGET_BITS + SLOT_BITS))
    }

    fn of(Token(token): Token) -> (Option<Self>, u32) {
        let target = match token & ((1 << TARGET_BITS) - 1) {
            0 => Some(Self::Waker),
            1 => Some(Self::Conn),
            2 => Some(Self::Listener),
            3 => Some(Self::Alarm),
            4 => Some(Self::Udp),
            _ => None,
        };
        (target, ((token >> TARGET_BITS) & SLOT_MASK) as u32)
    }
}

/// Something that can go on. Stale once its socket is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Conn(ConnId),
    Listener(ListenerId),
    Udp(UdpId),
}

/// What the kernel reported of one socket, in the words of this file.
struct Edge {
    token: Token,
    flags: u8,
}

/// The socket failed.
const BROKEN: u8 = 1;
/// No edge follows for what is there to be received: a receive that does not fill its buffer is not the last.
const TO_END: u8 = 2;
const READABLE: u8 = 4;
const WRITABLE: u8 = 8;

impl Edge {
    #[inline]
    fn of(event: &mio::event::Event) -> Self {
        let flag = |flag, is: bool| if is { flag } else { 0 };
        let broken = event.is_error();
        let ended = broken || event.is_read_closed() || event.is_priority();
        let readable = ended || event.is_readable();
        let writable = broken || event.is_writable() || event.is_write_closed();
        let flags = flag(BROKEN, broken) | flag(TO_END, ended) | flag(READABLE, readable) | flag(WRITABLE, writable);
        Self { token: event.token(), flags }
    }
}

/// The order of work.
pub(super) struct Turn {
    ready: VecDeque<Ready>,
    /// How many of `ready` belong to this turn. What is appended during the turn waits for the next one.
    left: usize,
    /// What the kernel reported last, and how much of that has been looked at. It comes after what was left over.
    edges: Vec<Edge>,
    edges_seen: usize,
    /// Events that this turn may still deliver.
    events_left: usize,
    /// What is being served.
    pub(super) current: Option<Ready>,
    /// Bytes received, or connections accepted, since `current` is being served.
    pub(super) used: usize,
    pub(super) farewells: VecDeque<Farewell>,
    woken: bool,
}

impl Turn {
    pub(super) fn new() -> Self {
        Self {
            ready: VecDeque::with_capacity(LISTED_AT_FIRST),
            left: 0,
            // As many as one call reports, which is how many there ever are.
            edges: Vec::with_capacity(EVENTS_PER_CALL),
            edges_seen: 0,
            events_left: 0,
            current: None,
            used: 0,
            farewells: VecDeque::new(),
            woken: false,
        }
    }

    #[inline]
    pub(super) fn queue(&mut self, id: ConnId, conn: &mut Conn) {
        if !std::mem::replace(&mut conn.queued, true) {
            self.ready.push_back(Ready::Conn(id));
        }
    }

    pub(super) fn queue_listener(&mut self, id: ListenerId, listener: &mut Listener) {
        if !std::mem::replace(&mut listener.queued, true) {
            self.ready.push_back(Ready::Listener(id));
        }
    }

    pub(super) fn queue_port(&mut self, id: UdpId, port: &mut Port) {
        if !std::mem::replace(&mut port.queued, true) {
            self.ready.push_back(Ready::Udp(id));
        }
    }

    /// The connection that is next, if the kernel reported nothing but bytes of it and nothing else is to be done for it: the
    /// case that counts.
    #[inline]
    pub(super) fn fresh<'a>(&self, conns: &'a mut Table<Conn>) -> Option<(ConnId, &'a mut Conn)> {
        if self.woken || self.left > 0 || self.current.is_some() {
            cold_path();
            return None;
        }
        let &Edge { token, flags } = self.edges.get(self.edges_seen)?;
        let (_, slot) = Target::of(token);
        let (id, conn) = conns.slot_mut::<ConnId>(slot)?;
        let fresh = Target::Conn.token(id) == token && flags & !WRITABLE == READABLE && conn.only_receives();
        fresh.then_some((id, conn))
    }

    /// What the kernel reported of the next socket has been worked off.
    #[inline]
    pub(super) fn saw_edge(&mut self) {
        self.edges_seen += 1;
    }

    /// Whose turn the report of the kernel says is next, or `ahead` of those after it.
    #[inline]
    pub(super) fn upcoming(&self, ahead: usize) -> Option<Upcoming> {
        let edge = self.edges.get(self.edges_seen + ahead)?;
        let (target, slot) = Target::of(edge.token);
        let received = edge.flags & READABLE != 0;
        (target == Some(Target::Conn)).then_some(Upcoming { slot: slot as usize, received })
    }

    /// Whether something that the kernel reported has not been looked at.
    #[inline]
    fn has_edges(&self) -> bool {
        self.edges_seen < self.edges.len()
    }

    /// Whether this turn has no further event.
    #[inline]
    fn is_over(&self) -> bool {
        let goes_on = self.woken || self.current.is_some() || self.left > 0 || self.has_edges();
        self.events_left == 0 || !goes_on && self.farewells.is_empty()
    }

    fn has_leftovers(&self) -> bool {
        self.current.is_some() || !self.ready.is_empty() || self.has_edges() || !self.farewells.is_empty() || self.woken
    }
}

impl ReadinessEngine {
    pub(super) fn begin_turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.stats.waits += 1;
        if self.turn.has_edges() {
            cold_path();
            self.keep_edges();
        }
        self.feed_starved();
        // What leaves gives its slots back, and nobody would tell the starved of those.
        self.udp.flush(self.poll.registry(), &mut self.turn, &mut self.stats);
        self.udp.feed_starved(&mut self.turn);
        let mut timeout = self.timeout(deadline);
        let sleeps = timeout != Some(Duration::ZERO);
        let (hungry, hungry_ports) = (sleeps && !self.starved.is_empty(), sleeps && self.udp.is_starved());
        if hungry && !self.pool.begin_shortage(&self.waker) || hungry_ports && !self.udp.begin_shortage(&self.waker) {
            cold_path();
            timeout = Some(Duration::ZERO);
        }
        let parks = timeout == Some(Duration::ZERO) || self.spin.parks();
        let outcome = if parks { self.poll(timeout) } else { self.spin_then_poll(timeout) };
        if hungry {
            cold_path();
            self.pool.end_shortage();
        }
        if hungry_ports {
            cold_path();
            self.udp.end_shortage();
        }
        outcome?;
        self.now = Instant::now();
        self.note_events();
        self.end_rests();
        self.turn.left = self.turn.ready.len();
        self.turn.events_left = self.events_per_turn;
        Ok(())
    }

    fn poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stats.calls += 1;
        match self.poll.poll(&mut self.events, timeout) {
            // The list of events is empty when a signal came.
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(()),
        }
    }

    /// Polls without sleeping for a while, if that pays, and then sleeps for what is left.
    #[cold]
    fn spin_then_poll(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.spin.sample(platform::thread_time, &self.stats);
        let begin = Instant::now();
        let mut left = timeout;
        let budget = self.spin.budget();
        if let Some(budget) = budget {
            self.stats.spins += 1;
            let budget = timeout.map_or(budget, |timeout| budget.min(timeout));
            loop {
                self.poll(Some(Duration::ZERO))?;
                if !self.events.is_empty() {
                    self.spin.waited(begin.elapsed(), true, self.has_news());
                    return Ok(());
                }
                if begin.elapsed() >= budget {
                    break;
                }
                std::hint::spin_loop();
            }
            left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
        }
        self.poll(left)?;
        self.spin.waited(begin.elapsed(), budget.is_some(), self.has_news());
        Ok(())
    }

    /// Whether the kernel reported anything but a deadline.
    fn has_news(&self) -> bool {
        self.events.iter().any(|event| event.token() != ALARM)
    }

    /// How long the kernel may let this thread sleep. (mio rounds up to what the kernel can count, so that the last
    /// fraction of a millisecond before a deadline is slept and not spun.)
    fn timeout(&mut self, deadline: Option<Instant>) -> Option<Duration> {
        if self.turn.has_leftovers() || self.udp.has_leftovers() || self.descriptor_freed {
            return Some(Duration::ZERO);
        }
        if self.resting.is_empty() {
            let deadline = deadline?;
            if deadline <= self.now {
                return Some(Duration::ZERO);
            }
            if self.alarm_at.is_some_and(|at| at <= deadline) {
                return None;
            }
        }
        let now = Instant::now();
        let resting = self.resting.iter().filter_map(|id| self.listeners.get(*id));
        let rests =
            resting.filter(|listener| listener.socket.is_some()).filter_map(|listener| listener.backoff.until());
        let first = rests.chain(deadline).min()?;
        let left = first.saturating_duration_since(now);
        if left >= ALARM_FROM && self.alarm.as_ref().is_some_and(|alarm| alarm.set(left).is_ok()) {
            self.alarm_at = Some(first);
            return None;
        }
        Some(left)
    }

    /// Puts those that the last turn did not come to into the ready list, before the kernel reports anew.
    #[cold]
    fn keep_edges(&mut self) {
        while self.turn.has_edges() {
            match self.next_edge() {
                Some(Ready::Conn(id)) => self.queue(id),
                Some(Ready::Listener(id)) => {
                    if let Some(listener) = self.listeners.get_mut(id) {
                        self.turn.queue_listener(id, listener);
                    }
                }
                // Ports are put into the list as soon as they are reported.
                Some(Ready::Udp(_)) | None => {}
            }
        }
    }

    /// Takes over what the kernel reported.
    fn note_events(&mut self) {
        let Self { events, udp, turn, alarm_at, stats, .. } = self;
        turn.edges.clear();
        turn.edges_seen = 0;
        for event in &*events {
            let token = event.token();
            match Target::of(token) {
                (Some(Target::Conn | Target::Listener), _) => turn.edges.push(Edge::of(event)),
                (Some(Target::Udp), slot) => {
                    cold_path();
                    if let Some((id, port)) = udp.at(slot, token)
                        && port.note(event, stats)
                    {
                        turn.queue_port(id, port);
                    }
                }
                (Some(Target::Waker), _) => {
                    cold_path();
                    turn.woken = true;
                }
                (Some(Target::Alarm), _) => *alarm_at = None,
                (None, _) => {}
            }
        }
    }

    /// Turns what the kernel reported of the next socket into its flags. Says which it is, if it can go on and does not stand
    /// in the ready list anyway.
    fn next_edge(&mut self) -> Option<Ready> {
        let Self { turn, conns, listeners, .. } = self;
        let &Edge { token, flags } = turn.edges.get(turn.edges_seen)?;
        turn.edges_seen += 1;
        let (target, slot) = Target::of(token);
        match target {
            Some(Target::Conn) => {
                let (id, conn) = conns.slot_mut::<ConnId>(slot).filter(|(id, _)| Target::Conn.token(*id) == token)?;
                (conn.note(flags) && !conn.queued).then_some(Ready::Conn(id))
            }
            Some(Target::Listener) => {
                let (id, listener) = listeners.slot_mut::<ListenerId>(slot)?;
                listener.readable |= Target::Listener.token(id) == token;
                (listener.may_accept() && !listener.queued).then_some(Ready::Listener(id))
            }
            _ => None,
        }
    }

    /// Lets listeners try again whose pause is over, or all of them if a descriptor has become free.
    fn end_rests(&mut self) {
        let freed = std::mem::take(&mut self.descriptor_freed);
        let Self { resting, listeners, turn, now, .. } = self;
        resting.retain(|&id| {
            let Some(listener) = listeners.get_mut(id) else { return false };
            let rests_on = !listener.backoff.expire(*now) && !freed;
            listener.resting = rests_on;
            if listener.may_accept() {
                turn.queue_listener(id, listener);
            }
            rests_on
        });
    }

    #[inline]
    pub(super) fn usual_next(&mut self) -> Usual {
        if self.turn.events_left == 0 {
            cold_path();
            return Usual::default();
        }
        let received = self.receive_fresh();
        self.count_events(received.is_some());
        self.stats.received_bytes += received.as_ref().map_or(0, |(_, buf)| buf.len() as u64);
        Usual { received, sent: None }
    }

    #[inline]
    pub(super) fn any_next(&mut self) -> Option<Event> {
        if self.turn.is_over() { None } else { self.next_of_any_kind() }
    }

    #[inline(never)]
    fn next_of_any_kind(&mut self) -> Option<Event> {
        let event = self.produce();
        self.count_events(event.is_some());
        self.stats.received_bytes += Event::bytes(event.as_ref());
        event
    }

    #[inline]
    fn count_events(&mut self, one: bool) {
        self.turn.events_left -= usize::from(one);
        self.stats.events += u64::from(one);
    }

    fn produce(&mut self) -> Option<Event> {
        if std::mem::take(&mut self.turn.woken) {
            return Some(Event::Woken);
        }
        loop {
            let event = match self.turn.current {
                Some(Ready::Conn(id)) => self.advance(id),
                Some(Ready::Listener(id)) => self.accept_next(id),
                Some(Ready::Udp(id)) => self.next_datagram(id),
                None => None,
            };
            if event.is_some() {
                return event;
            }
            if !self.serve_next() {
                return self.next_farewell();
            }
        }
    }

    /// Goes on to the next entry of this turn, if there is one.
    fn serve_next(&mut self) -> bool {
        self.turn.used = 0;
        if self.turn.left > 0 {
            self.turn.current = self.next_left_over();
            return true;
        }
        while self.turn.has_edges() {
            self.turn.current = self.next_edge();
            if self.turn.current.is_some() {
                return true;
            }
        }
        self.turn.current = None;
        false
    }

    #[cold]
    fn next_left_over(&mut self) -> Option<Ready> {
        self.turn.left -= 1;
        let ready = self.turn.ready.pop_front()?;
        match ready {
            Ready::Conn(id) => self.conns.get_mut(id)?.queued = false,
            Ready::Listener(id) => self.listeners.get_mut(id)?.queued = false,
            Ready::Udp(id) => self.udp.unqueue(id),
        }
        Some(ready)
    }

    /// The next thing that a connection has to say. What is in flight goes first: it may make room for the answer to
    /// what is received next.
    fn advance(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        conn.socket.as_ref()?;
        if conn.connecting {
            return self.finish_connect(id);
        }
        // One that is in the list again has had its share of this turn.
        if conn.writable
            && !conn.queued
            && let Some(event) = self.continue_send(id)
        {
            return Some(event);
        }
        match self.receive_next(id) {
            Step::Event(event) => Some(event),
            Step::Drained => self.end_if_failed(id),
            Step::Later => None,
        }
    }

    /// Ends a connection that has failed and has nothing more to deliver.
    #[cold]
    fn end_if_failed(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        if conn.broken && conn.peer_closed {
            // After a FIN a receive call would report that FIN for ever, and not the error.
            conn.broken = false;
            if let Ok(Some(error)) = conn.socket.as_ref()?.take_error() {
                conn.failure.get_or_insert(error);
            }
        }
        let why = conn.failure.take()?;
        self.remove(id, why)
    }
}

impl Conn {
    /// Whether it does nothing but receive: nothing is in flight, nothing failed, and it has no place in any list.
    #[inline]
    fn only_receives(&self) -> bool {
        let lists = self.queued | self.starved;
        let ending = self.to_end | self.peer_closed | self.failure.is_some();
        let sending = self.connecting | self.record.is_some();
        self.receiving & !(lists | ending | sending)
    }

    /// Takes over what the kernel reported, and says whether the connection can go on now.
    fn note(&mut self, flags: u8) -> bool {
        self.broken |= flags & BROKEN != 0;
        self.to_end |= flags & TO_END != 0;
        self.readable |= flags & READABLE != 0;
        // Once it has asked, most events say that there is room. It counts only for who was refused just before.
        self.writable |= flags & WRITABLE != 0 && (self.connecting || self.record.is_some());
        self.writable || (self.may_receive() && !self.starved) || (self.broken && self.peer_closed)
    }
}
