//! A turn: what `wait` does before and after the one system call, and how completions become events.

use std::hint::cold_path;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use io_uring::opcode;
use io_uring::types::{Fd, Timespec};

use super::ring::{Block, Completion, Ring};
use super::{Conn, Farewell, GENERATION_MASK, Op, UringEngine};
use crate::engine::contract::{Event, Usual, Wake, Waker};
use crate::engine::platform;
use crate::id::{ConnId, Id};
use crate::prefetch::NEAR_CONNECTIONS;

/// Alarms under way at once. A new one is needed when a deadline comes up that is earlier than all before.
const ALARMS: u32 = 16;

impl UringEngine {
    pub(super) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.stats.waits += 1;
        if let Some(id) = self.current.take() {
            cold_path();
            self.enqueue(id);
        }
        self.feed_starved();
        self.serve_datagrams();
        if let Some(chooser) = &mut self.chooser
            && chooser.is_due()
        {
            cold_path();
            chooser.sample(platform::thread_time());
        }
        let retry = self.resume_listeners();
        let mut block = self.block(deadline, retry);
        if self.holds_back() {
            cold_path();
            block = Block::No;
        }
        let starved = !self.starved.is_empty() || !self.starved_direct.is_empty();
        let sleeps = block != Block::No;
        let (hungry, hungry_ports) = (sleeps && starved, sleeps && self.udp.is_starved());
        if hungry && !self.pool.begin_shortage(&Waker(self.bell.clone()))
            || hungry_ports && !self.udp.begin_shortage(&Waker(self.bell.clone()))
        {
            cold_path();
            block = Block::No;
        }
        let parks = block == Block::No || self.spin.parks();
        let entered = if parks { self.ring.enter(block) } else { self.spin_then_enter(block) };
        if hungry {
            cold_path();
            self.pool.end_shortage();
        }
        if hungry_ports {
            cold_path();
            self.udp.end_shortage();
        }
        entered?;
        self.now = Instant::now();
        self.ring.looks_ahead = self.conns.len() > NEAR_CONNECTIONS;
        self.ready_this_turn = self.ready.len();
        self.udp.begin_turn();
        self.ready_first = !self.ready_first;
        self.events_left = self.events_per_turn;
        self.run_bytes = 0;
        Ok(())
    }

    /// Looks for completions without sleeping for a while, if that pays, and then sleeps. A deadline is an operation of its
    /// own, so that it ends the looking as any completion does.
    #[cold]
    fn spin_then_enter(&mut self, block: Block) -> io::Result<()> {
        self.spin.sample(platform::thread_time, &self.stats);
        let begin = Instant::now();
        let mut rest = block;
        let budget = self.spin.budget();
        if let Some(budget) = budget {
            self.stats.spins += 1;
            let most = if let Block::AtMost(time) = block { budget.min(time) } else { budget };
            loop {
                self.ring.enter(Block::No)?;
                if self.ring.has_leftovers() {
                    self.note_wait(begin, true);
                    return Ok(());
                }
                if begin.elapsed() >= most {
                    break;
                }
                std::hint::spin_loop();
            }
            if let Block::AtMost(time) = block {
                rest = Block::AtMost(time.saturating_sub(begin.elapsed()));
            }
        }
        self.ring.enter(rest)?;
        self.note_wait(begin, budget.is_some());
        Ok(())
    }

    /// Notes how a wait went. A deadline that is over, be it an old one, is no news.
    fn note_wait(&mut self, begin: Instant, polled: bool) {
        let news = self.ring.peek().is_some_and(|completion| !completion.is_of(Op::Alarm));
        self.spin.waited(begin.elapsed(), polled, news);
    }

    /// How long the enter may wait.
    fn block(&mut self, deadline: Option<Instant>, retry: Option<Instant>) -> Block {
        if !self.ready.is_empty() || !self.farewells.is_empty() || self.udp.has_leftovers() || self.ring.has_leftovers()
        {
            return Block::No;
        }
        let until = match (deadline, retry) {
            (Some(deadline), Some(retry)) => Some(deadline.min(retry)),
            (deadline, retry) => deadline.or(retry),
        };
        match until {
            None => Block::Forever,
            Some(until) if until <= self.now => Block::No,
            // The alarm ends the wait, in time or too early.
            Some(until) if self.alarm_at.is_some_and(|at| at <= until) => Block::Forever,
            Some(until) => self.set_alarm(until),
        }
    }

    /// A timeout of the enter itself would start and stop a timer of the kernel in every turn. An operation of its own is
    /// started once for the next deadline, which is often minutes away and stays while thousands of turns pass.
    fn set_alarm(&mut self, until: Instant) -> Block {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Block::No;
        }
        if self.alarms >= ALARMS {
            return Block::AtMost(left);
        }
        self.alarms += 1;
        self.alarm_at = Some(until);
        self.alarm_serial = self.alarm_serial.wrapping_add(1);
        *self.alarm_time = Timespec::from(left);
        let tag = Op::Alarm.tag(Id { slot: self.alarm_serial, generation: 0 });
        let entry = opcode::Timeout::new(&raw const *self.alarm_time).build().user_data(tag);
        // SAFETY: the kernel reads the time when it takes the entry, which is in the next enter at the latest but one;
        // the box lives as long as the ring, and is written again only for an entry that comes later.
        unsafe { self.ring.push(&entry) };
        Block::Forever
    }

    fn on_alarm(&mut self, completion: Completion) {
        self.alarms = self.alarms.saturating_sub(1);
        if completion.tag as u32 == self.alarm_serial {
            self.alarm_at = None;
        }
    }

    #[inline]
    pub(super) fn usual_next(&mut self) -> Usual {
        if !self.has_only_completions() || self.events_left == 0 || self.run_bytes >= self.bytes_per_turn {
            cold_path();
            return Usual::default();
        }
        let Some(completion) = self.ring.pop() else { return Usual::default() };
        if completion.is_of(Op::Receive)
            && completion.result > 0
            && completion.more()
            && let Some(received) = self.on_bytes(completion)
        {
            self.stats.received_bytes += received.1.len() as u64;
            self.count_events(true);
            return Usual { received: Some(received), sent: None };
        }
        if completion.is_of(Op::Send) {
            let sent = self.on_send(completion);
            self.count_events(sent.is_some());
            return Usual { received: None, sent };
        }
        self.ring.put_back(completion);
        Usual::default()
    }

    #[inline]
    fn count_events(&mut self, one: bool) {
        self.events_left -= usize::from(one);
        self.stats.events += u64::from(one);
    }

    #[inline]
    pub(super) fn any_next(&mut self) -> Option<Event> {
        let over = self.has_only_completions() && self.ring.is_empty();
        if self.events_left == 0 || over { None } else { self.next_of_any_kind() }
    }

    /// Whether nothing can have its turn but completions.
    #[inline]
    fn has_only_completions(&self) -> bool {
        let served = self.ready_this_turn == 0 && self.current.is_none() && self.farewells.is_empty();
        served && !self.udp.is_used()
    }

    #[inline(never)]
    fn next_of_any_kind(&mut self) -> Option<Event> {
        let event = self.next_event();
        self.count_events(event.is_some());
        self.stats.received_bytes += Event::bytes(event.as_ref());
        event
    }

    fn next_event(&mut self) -> Option<Event> {
        if !self.farewells.is_empty()
            && let Some(event) = self.say_farewell()
        {
            return Some(event);
        }
        if let Some(event) = self.next_datagram() {
            return Some(event);
        }
        if let Some(id) = self.current.take()
            && let Some(event) = self.go_on(id)
        {
            return Some(event);
        }
        if self.ready_first
            && self.ready_this_turn > 0
            && let Some(event) = self.next_ready()
        {
            return Some(event);
        }
        // What a connection got beyond its share stays in the ring, in order, for the next turn.
        while self.run_bytes < self.bytes_per_turn
            && let Some(completion) = self.ring.pop()
        {
            let event = self.translate(completion);
            if event.is_some() {
                return event;
            }
        }
        if self.ready_this_turn > 0
            && let Some(event) = self.next_ready()
        {
            return Some(event);
        }
        // What was just translated may have ended a connection without an event of its own.
        if self.farewells.is_empty() { None } else { self.say_farewell() }
    }

    fn next_ready(&mut self) -> Option<Event> {
        while self.ready_this_turn > 0 {
            self.ready_this_turn -= 1;
            let id = self.ready.pop_front()?;
            if let Some(event) = self.resume(id) {
                return Some(event);
            }
        }
        None
    }

    #[inline]
    pub(super) fn translate(&mut self, completion: Completion) -> Option<Event> {
        const RECEIVE: u64 = Op::Receive as u64;
        const SEND: u64 = Op::Send as u64;
        const POLL: u64 = Op::Poll as u64;
        const ACCEPT: u64 = Op::Accept as u64;
        const CONNECT: u64 = Op::Connect as u64;
        const RING: u64 = Op::Ring as u64;
        const ALARM: u64 = Op::Alarm as u64;
        const SEND_ZC: u64 = Op::SendZc as u64;
        const DATAGRAM: u64 = Op::Datagram as u64;
        const DATAGRAM_IN: u64 = Op::DatagramIn as u64;
        const DATAGRAM_OUT: u64 = Op::DatagramOut as u64;
        match completion.tag >> 60 {
            RECEIVE => self.on_receive(completion),
            SEND => self.on_send(completion).map(|(conn, bytes, idle)| Event::Sent { conn, bytes, idle }),
            SEND_ZC => self.on_zero_copy(completion),
            POLL => self.on_poll(completion),
            ACCEPT => self.on_accept(completion),
            CONNECT => self.on_connect(completion),
            RING => self.on_ring(completion),
            ALARM => {
                self.on_alarm(completion);
                None
            }
            DATAGRAM => self.on_datagram(completion),
            DATAGRAM_IN | DATAGRAM_OUT => self.on_port_poll(completion),
            // A cancellation, whose outcome its target reports.
            _ => None,
        }
    }

    /// The connection that a completion belongs to, unless the slot has passed to another since.
    #[inline]
    pub(super) fn conn_of(&mut self, completion: Completion) -> Option<(ConnId, &mut Conn)> {
        let (id, conn) = self.conns.slot_mut::<ConnId>(completion.tag as u32)?;
        let generation = (completion.tag >> 32) as u32 & GENERATION_MASK;
        (id.generation() & GENERATION_MASK == generation).then_some((id, conn))
    }

    #[cold]
    fn say_farewell(&mut self) -> Option<Event> {
        match self.farewells.pop_front()? {
            Farewell::Conn(id) => self.closed(id),
            Farewell::Listener(id) => {
                self.listeners.remove(id)?;
                Some(Event::ListenerClosed { listener: id })
            }
            Farewell::Udp(id) => self.port_closed(id),
        }
    }

    fn on_ring(&mut self, completion: Completion) -> Option<Event> {
        if !completion.more() {
            self.bell_armed = false;
            if completion.result >= 0 {
                self.bell.arm(&mut self.ring);
                self.bell_armed = true;
            }
        }
        (completion.result >= 0).then_some(Event::Woken)
    }
}

/// The doorbell: an eventfd that nobody reads. Each write to it completes the edge-triggered poll, however high the
/// counter stands, and 2⁶⁴ writes are more than there will ever be; so no call and no memory is needed to reset it.
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor has just been opened and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn arm(&self, ring: &mut Ring) {
        let events = (libc::EPOLLIN | libc::EPOLLET) as u32;
        let entry = opcode::PollAdd::new(Fd(self.0.as_raw_fd()), events).multi(true).build();
        // SAFETY: a poll refers to no memory.
        unsafe { ring.push(&entry.user_data(Op::Ring.tag(Id { slot: 0, generation: 0 }))) };
    }
}

impl Wake for Bell {
    fn wake(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: eight bytes are passed. It cannot fail but by a full counter, which leaves the poll completed.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }
}
