//! A turn: the clock runs until something concerns this engine, then its notes become events.

use std::io;
use std::time::{Duration, Instant};

use super::SimEngine;
use super::network::Note;
use super::personality::Oddity;
use crate::engine::contract::Event;
use crate::id::ConnId;

impl SimEngine {
    /// Lets the network go on until there is something to look at, or until `deadline`.
    pub(super) fn begin_turn(&mut self, deadline: Option<Instant>) {
        self.stats.waits += 1;
        self.stats.calls += 1;
        self.turn += 1;
        self.events_left = self.config.events_per_turn.max(1);
        self.ready.extend(self.later.drain(..));
        self.post_slots();
        self.feed_starved();
        self.feed_starved_ports();
        self.flush_datagrams();
        self.run_clock(deadline);
        // Only now, because who has something to look at does not wait.
        self.startle();
    }

    fn run_clock(&mut self, deadline: Option<Instant>) {
        let mut state = self.network.lock();
        if deadline.is_some() && state.flips() && state.is_odd(Oddity::SpuriousReturn) {
            return;
        }
        let visible = state.visible_notes();
        state.empty_inbox(self.number, &mut self.ready, visible);
        let deadline = deadline.map(|deadline| deadline.saturating_duration_since(state.base));
        while self.ready.is_empty() {
            match (state.next_at(), deadline) {
                (Some(at), deadline) if deadline.is_none_or(|deadline| at <= deadline) => state.step(),
                (_, Some(deadline)) => {
                    state.now = state.now.max(deadline);
                    return;
                }
                (_, None) => {
                    state.hopeless_waits += 1;
                    return;
                }
            }
            state.empty_inbox(self.number, &mut self.ready, visible);
        }
        // A kernel that is asked a little later has a little more to tell, which makes turns of many events.
        let until = state.now + state.batch_time();
        let until = deadline.map_or(until, |deadline| until.min(deadline));
        while state.next_at().is_some_and(|at| at <= until) {
            state.step();
        }
        let visible = visible.saturating_sub(self.ready.len());
        state.empty_inbox(self.number, &mut self.ready, visible);
    }

    /// Says of some connection that it is ready, which it need not be.
    fn startle(&mut self) {
        let mut state = self.network.lock();
        if state.is_odd(Oddity::SpuriousReady) {
            let conns = self.conns.ids::<ConnId>();
            let index = state.rng.below(conns.len() as u64) as usize;
            self.ready.extend(conns.get(index).into_iter().flat_map(|conn| [Note::Receive(*conn), Note::Send(*conn)]));
        }
    }

    pub(super) fn next_event(&mut self) -> Option<Event> {
        if self.events_left == 0 {
            return None;
        }
        // Each note is looked at once; those that a connection leaves behind come back as `ready` or as `later`.
        while let Some(note) = self.ready.pop_front() {
            let event = match note {
                Note::Accept(listener) => self.accept_one(listener),
                Note::AcceptAgain(listener) => self.accept_again(listener),
                Note::ListenerClosed(listener) => self.listener_closed(listener),
                Note::Connected(conn) => self.connected(conn),
                Note::Receive(conn) => self.receive_one(conn),
                Note::Send(conn) => self.send_one(conn),
                Note::Failed(conn) => self.fail_if_broken(conn),
                Note::Closed(conn, unacked) => self.closed(conn, unacked),
                Note::Released(conn) => self.released(conn),
                Note::Woken => Some(Event::Woken),
                Note::Datagram(udp) => self.receive_datagram(udp),
                Note::SendDatagrams(udp) => self.send_datagrams(udp, false),
                Note::UdpWritable(udp) => self.datagrams_writable(udp),
                Note::Unreachable(udp, to) => self.datagram_failed(udp, to, io::ErrorKind::ConnectionRefused),
                Note::TooLarge(udp, to) => self.datagram_failed(udp, to, io::ErrorKind::InvalidInput),
                Note::UdpClosed(udp) => self.port_closed(udp),
            };
            if event.is_some() {
                self.events_left -= 1;
                self.stats.events += 1;
                self.stats.received_bytes += Event::bytes(event.as_ref());
                return event;
            }
        }
        None
    }
}

impl super::State {
    /// The virtual time as an instant.
    pub(super) fn instant(&self) -> Instant {
        self.base + self.now
    }

    fn batch_time(&mut self) -> Duration {
        Duration::from_nanos(if self.flips() { self.rng.below(50_000) } else { 0 })
    }
}
