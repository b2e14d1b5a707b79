//! A turn: posting, learning of completions in one of four ways, and turning them into events.
//!
//! A notice (`RIONotify`) is a one-shot: one is asked for at a time, and it comes with the first completion, or at once if
//! there is one. What is taken in between without it does not take it back; then it comes later and finds nothing, which
//! costs a turn and no more.

use std::io;
use std::time::{Duration, Instant};

use windows_sys::Win32::Networking::WinSock::RIORESULT;

use super::RioEngine;
use super::datagram::DATAGRAM;
use super::queues::KEY_COMPLETIONS;
use super::receive::{RECEIVE, TAG_BITS};
use crate::engine::contract::{Event, RioCompletions};
use crate::engine::port::{Load, Packet};
use crate::id::ConnId;

/// Longest sleep while the system had no memory for a connection.
const STARVED_WAIT: Duration = Duration::from_millis(10);
/// Looks at an empty queue, after a turn that had work, before the thread sleeps.
const LOOKS: u32 = 32;
/// Looks between two times that a polling engine asks the port as well.
const LOOKS_PER_PORT: u32 = 16;
/// Turns with work in which the port is not asked. Accepts and wakes wait that long at most.
const BLIND_TURNS: u32 = 8;

impl RioEngine {
    pub(super) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.stats.waits += 1;
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.pool.collect();
        self.feed_starved();
        let pause_end = self.listeners.resume(&mut self.port, &self.extensions);
        self.post();
        self.post_datagrams();
        let until = self.until(deadline, pause_end);
        self.learn(until)?;
        self.now = Instant::now();
        self.ready_this_turn = self.ready.len();
        self.udp.outlets.begin_turn();
        self.events_left = self.config.events_per_turn.max(1);
        Ok(())
    }

    /// Posts what the connections have to post.
    fn post(&mut self) {
        let mut dirty = std::mem::take(&mut self.dirty);
        for id in dirty.drain(..) {
            let Some(conn) = self.conns.get_mut(id) else { continue };
            conn.dirty = false;
            self.post_sends(id);
            self.post_receive(id);
        }
        if self.dirty.is_empty() {
            // Keeps its room.
            self.dirty = dirty;
        }
    }

    /// When the thread has to be awake again. `None` for never.
    fn until(&self, deadline: Option<Instant>, pause_end: Option<Instant>) -> Until {
        let leftovers = self.next_result < self.results_end || self.port.has_leftovers();
        let leftovers = leftovers || self.udp.has_leftovers();
        if leftovers || !self.ready.is_empty() || !self.farewells.is_empty() || self.listeners.has_reports() {
            return Until::Now;
        }
        let starved = (!self.starved.is_empty()).then(|| Instant::now() + STARVED_WAIT);
        match [deadline, pause_end, starved, self.udp.outlets.stall_end()].into_iter().flatten().min() {
            Some(first) if first <= self.now => Until::Now,
            Some(first) => Until::At(first),
            None => Until::Never,
        }
    }

    /// Learns of completions and packets, and waits for them if there are none.
    fn learn(&mut self, until: Until) -> io::Result<()> {
        match self.config.rio_completions {
            RioCompletions::Polled => self.learn_by_looking(until),
            RioCompletions::Event | RioCompletions::Port => self.learn_by_notice(until),
            RioCompletions::Hybrid => self.learn_by_both(until),
        }
    }

    fn learn_by_looking(&mut self, until: Until) -> io::Result<()> {
        let mut looks = 0_u32;
        loop {
            self.refill()?;
            if self.next_result < self.results_end || looks.is_multiple_of(LOOKS_PER_PORT) {
                self.ask_port(Some(Duration::ZERO))?;
            }
            let found = self.next_result < self.results_end || self.port.has_leftovers();
            if found || until.is_over() {
                return Ok(());
            }
            looks += 1;
            if looks.is_multiple_of(LOOKS_PER_PORT) {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn learn_by_notice(&mut self, until: Until) -> io::Result<()> {
        self.ask_for_notice()?;
        // The notice is a packet like others: it is taken in `on_packet`, and the completions with it.
        self.ask_port(until.left())
    }

    fn learn_by_both(&mut self, until: Until) -> io::Result<()> {
        self.refill()?;
        let looks = if std::mem::take(&mut self.busy) && !matches!(until, Until::Now) { LOOKS } else { 0 };
        for _ in 0..looks {
            if self.next_result < self.results_end {
                break;
            }
            std::hint::spin_loop();
            self.refill()?;
        }
        if self.next_result < self.results_end {
            self.busy = true;
            self.blind_turns += 1;
            return if self.blind_turns > BLIND_TURNS { self.ask_port(Some(Duration::ZERO)) } else { Ok(()) };
        }
        if matches!(until, Until::Now) {
            return self.ask_port(Some(Duration::ZERO));
        }
        if self.spin.parks() {
            return self.look_then_sleep(until, None);
        }
        let (begin, budget) = (Instant::now(), self.spin.budget());
        let outcome = self.look_then_sleep(until, budget);
        let brought = self.next_result < self.results_end || self.port.has_leftovers();
        self.spin.waited(begin.elapsed(), budget.is_some(), brought);
        outcome
    }

    /// Looks without sleeping for a while, if that was asked for and has paid of late, and then sleeps.
    fn look_then_sleep(&mut self, until: Until, budget: Option<Duration>) -> io::Result<()> {
        if let Some(budget) = budget {
            self.stats.spins += 1;
            let end = Instant::now() + until.left().map_or(budget, |left| budget.min(left));
            self.learn_by_looking(Until::At(end))?;
            if self.next_result < self.results_end || self.port.has_leftovers() {
                return Ok(());
            }
        }
        self.ask_for_notice()?;
        self.ask_port(until.left())
    }

    fn ask_for_notice(&mut self) -> io::Result<()> {
        if !self.noticing {
            self.stats.notifies += 1;
            self.completions.notify()?;
            self.noticing = true;
        }
        Ok(())
    }

    fn ask_port(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.blind_turns = 0;
        if !self.port.has_leftovers() {
            self.stats.dequeues += 1;
            self.port.wait(timeout)?;
        }
        Ok(())
    }

    /// Takes completions, once those of the last time have been looked at.
    pub(super) fn refill(&mut self) -> io::Result<()> {
        if self.next_result == self.results_end {
            self.stats.dequeues += 1;
            self.looks += 1;
            let count = self.completions.dequeue(&mut self.results)?;
            (self.next_result, self.results_end) = (0, count);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn pop_result(&mut self) -> Option<RIORESULT> {
        let result = *self.results[..self.results_end].get(self.next_result)?;
        self.next_result += 1;
        Some(result)
    }

    #[inline]
    pub(super) fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.say_farewell() {
            return Some(event);
        }
        while self.ready_this_turn > 0 {
            self.ready_this_turn -= 1;
            let Some(id) = self.ready.pop_front() else { break };
            if let Some(conn) = self.conns.get_mut(id) {
                conn.queued = false;
            }
            if let Some(event) = self.deliver(id) {
                return Some(event);
            }
        }
        if let Some(event) = self.next_of_ready_outlets() {
            return Some(event);
        }
        loop {
            while let Some(result) = self.pop_result() {
                if let Some(event) = self.translate(&result) {
                    return Some(event);
                }
            }
            let Some(packet) = self.port.pop() else { break };
            if let Some(event) = self.on_packet(packet) {
                return Some(event);
            }
        }
        // What was just translated may have ended a connection without an event of its own.
        self.say_farewell()
    }

    #[inline]
    fn translate(&mut self, result: &RIORESULT) -> Option<Event> {
        let tag = result.RequestContext as usize;
        if tag & DATAGRAM != 0 {
            return self.on_datagram(tag, result);
        }
        // The slot is not reused before every completion of its connection was dequeued.
        let (id, _) = self.conns.slot_mut::<ConnId>((tag >> TAG_BITS) as u32)?;
        if tag & ((1 << TAG_BITS) - 1) == RECEIVE { self.on_receive(id, result) } else { self.on_send(id, tag, result) }
    }

    pub(super) fn on_packet(&mut self, packet: Packet) -> Option<Event> {
        match packet {
            Packet::Ended { record, success, .. } => match record.load {
                Load::Accept(_) => self.on_accept(record, success),
                Load::Connect(_) => self.on_connect(&record, success),
                Load::Receive | Load::Send(_) | Load::Datagram(_) | Load::Parcel(_) => None,
            },
            Packet::Rung => Some(Event::Woken),
            Packet::Signal(KEY_COMPLETIONS) => {
                self.noticing = false;
                self.failure = self.refill().err();
                None
            }
            Packet::Signal(_) => None,
        }
    }

    #[inline]
    fn say_farewell(&mut self) -> Option<Event> {
        if let Some(id) = self.farewells.pop_front() {
            let event = self.closed(id);
            self.shrink();
            return event;
        }
        if let Some(event) = self.next_udp_farewell() {
            return Some(event);
        }
        if self.listeners.has_reports() { self.listeners.next_report() } else { None }
    }
}

/// How long a wait may take.
#[derive(Clone, Copy)]
enum Until {
    Now,
    At(Instant),
    Never,
}

impl Until {
    fn is_over(self) -> bool {
        match self {
            Self::Now => true,
            Self::At(time) => time <= Instant::now(),
            Self::Never => false,
        }
    }

    fn left(self) -> Option<Duration> {
        match self {
            Self::Now => Some(Duration::ZERO),
            Self::At(time) => Some(time.saturating_duration_since(Instant::now())),
            Self::Never => None,
        }
    }
}
