//! A turn: what `wait` does before and after the one system call, and how packets become events.

use std::io;
use std::time::{Duration, Instant};

use super::{IocpEngine, Notice};
use crate::engine::contract::{Engine, Event};
use crate::engine::port::{Load, Packet};

impl IocpEngine {
    pub(super) fn turn(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        self.stats.waits += 1;
        if let Some(id) = self.current.take() {
            self.settle(id);
        }
        self.feed_starved();
        self.serve_datagrams();
        let pause_end = self.listeners.resume(&mut self.port, &self.extensions);
        let again_at = self.cancel_again();
        if !self.port.has_leftovers() {
            self.stats.dequeues += 1;
            let mut timeout = self.timeout([deadline, pause_end, again_at]);
            let hungry = !self.starved.is_empty() && timeout != Some(Duration::ZERO);
            if hungry && !self.pool.begin_shortage(&self.waker()) {
                timeout = Some(Duration::ZERO);
            }
            let parks = timeout == Some(Duration::ZERO) || self.spin.parks();
            let outcome = if parks { self.port.wait(timeout) } else { self.spin_then_wait(timeout) };
            if hungry {
                self.pool.end_shortage();
            }
            outcome?;
        }
        self.now = Instant::now();
        self.ready_this_turn = self.ready.len();
        self.udp.outlets.begin_turn();
        self.ready_first = !self.ready_first;
        self.events_left = self.config.events_per_turn.max(1);
        Ok(())
    }

    /// Asks without sleeping for a while, if that has paid of late, and then sleeps for what is left.
    #[cold]
    fn spin_then_wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let begin = Instant::now();
        let mut left = timeout;
        let budget = self.spin.budget();
        if let Some(budget) = budget {
            self.stats.spins += 1;
            let budget = timeout.map_or(budget, |timeout| budget.min(timeout));
            loop {
                self.port.wait(Some(Duration::ZERO))?;
                self.stats.dequeues += 1;
                if self.port.has_leftovers() {
                    self.spin.waited(begin.elapsed(), true, true);
                    return Ok(());
                }
                if begin.elapsed() >= budget {
                    break;
                }
                std::hint::spin_loop();
            }
            left = timeout.map(|timeout| timeout.saturating_sub(begin.elapsed()));
        }
        let outcome = self.port.wait(left);
        self.spin.waited(begin.elapsed(), budget.is_some(), self.port.has_leftovers());
        outcome
    }

    /// How long the kernel may let this thread sleep.
    fn timeout(&self, moments: [Option<Instant>; 3]) -> Option<Duration> {
        let datagrams = self.udp.outlets.has_leftovers();
        if datagrams || !self.ready.is_empty() || !self.notices.is_empty() || self.listeners.has_reports() {
            return Some(Duration::ZERO);
        }
        let first = moments.into_iter().chain([self.udp.outlets.stall_end()]).flatten().min()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    #[inline]
    pub(super) fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.next_notice() {
            return Some(event);
        }
        if let Some(id) = self.current.take()
            && let Some(event) = self.fetch(id)
        {
            return Some(event);
        }
        if let Some(event) = self.next_of_current_outlet() {
            return Some(event);
        }
        if self.ready_first
            && let Some(event) = self.next_ready()
        {
            return Some(event);
        }
        while let Some(packet) = self.port.pop() {
            if let Some(event) = self.translate(packet) {
                return Some(event);
            }
        }
        // What was just translated may have ended a connection without an event of its own.
        self.next_ready().or_else(|| self.next_notice())
    }

    fn next_ready(&mut self) -> Option<Event> {
        self.next_of_ready_outlets().or_else(|| self.next_ready_connection())
    }

    fn next_ready_connection(&mut self) -> Option<Event> {
        while self.ready_this_turn > 0 {
            self.ready_this_turn -= 1;
            let id = self.ready.pop_front()?;
            if let Some(conn) = self.conns.get_mut(id) {
                conn.queued = false;
            }
            self.current_bytes = 0;
            if let Some(event) = self.fetch(id) {
                return Some(event);
            }
        }
        None
    }

    #[inline]
    fn next_notice(&mut self) -> Option<Event> {
        while let Some(notice) = self.notices.pop_front() {
            let event = match notice {
                Notice::Connected(id) => self.say_connected(id),
                Notice::Closed(id) => self.say_closed(id),
                Notice::UdpClosed(id) => self.say_udp_closed(id),
            };
            if event.is_some() {
                return event;
            }
        }
        if self.listeners.has_reports() { self.listeners.next_report() } else { None }
    }

    #[inline]
    fn translate(&mut self, packet: Packet) -> Option<Event> {
        match packet {
            Packet::Ended { record, bytes, success } => match record.load {
                Load::Receive => self.on_receive(record, success),
                Load::Send(_) => self.on_send(record, bytes, success),
                Load::Accept(_) => self.on_accept(record, success),
                Load::Connect(_) => self.on_connect(&record, success),
                Load::Datagram(_) => self.on_datagram(record, bytes, success),
                Load::Parcel(_) => self.on_parcel(&record, success),
            },
            Packet::Rung => Some(Event::Woken),
            Packet::Signal(_) => None,
        }
    }
}
