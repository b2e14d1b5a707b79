//! Connecting to whatever answers first of several addresses (RFC 8305, "Happy Eyeballs").
//!
//! ```text
//! address 1 ──────────────────────────────────►  under way for 250 ms: the next begins beside it
//! address 2          ──────► refused             the next begins at once
//! address 3                 ─────► connected     the first to connect wins, the others are closed
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use ringport_engine::{ConnId, Engine, SockAddr, SocketOptions, socket};

use super::Worker;
use super::timers::Timer;
use super::wheel::TimerKey;
use crate::address::Destination;
use crate::remote::Letter;
use crate::session::{CloseReason, Ending, Phase};

/// Time after which the next address is tried beside the one under way: section 8 of RFC 8305.
const STAGGER: Duration = Duration::from_millis(250);

/// Several addresses of which one is to be connected.
pub(super) struct Race {
    service: u32,
    options: SocketOptions,
    /// Addresses not tried yet.
    left: VecDeque<SockAddr>,
    /// Under way.
    attempts: Vec<ConnId>,
    /// When it began, in milliseconds of the worker's clock: the connect timeout is for all attempts together.
    began: u32,
    /// The last failure.
    error: Option<io::Error>,
    timer: Option<TimerKey>,
}

/// Connections to make once it is known where to.
#[derive(Debug)]
pub(crate) struct Resolved {
    service: u32,
    connections: usize,
    options: SocketOptions,
    addresses: io::Result<Vec<SocketAddr>>,
}

impl<E: Engine> Worker<E> {
    /// Opens `connections` connections to `to` for `service`.
    pub(crate) fn connect_to(&mut self, to: Destination, connections: usize, options: SocketOptions, service: u32) {
        match to {
            Destination::Addresses(addresses) => {
                let addresses = addresses.iter().map(crate::Address::to_system).collect::<io::Result<Vec<_>>>();
                self.connect_each(addresses, connections, &options, service);
            }
            Destination::Host(name) => {
                let resolve = move || {
                    let addresses = name.to_socket_addrs().map(|found| interleave(found.collect()));
                    Resolved { service, connections, options, addresses }
                };
                self.context.resolving += 1;
                let Some(blocking) = &self.context.blocking else { return self.resolved(resolve()) };
                let mailbox = Arc::clone(&self.mailbox);
                let spawned = blocking.spawn(resolve, |resolve| {
                    Box::new(move || mailbox.push_patiently(Letter::Resolved(Box::new(resolve()))))
                });
                if let Err(full) = spawned {
                    // Looking up here blocks the worker, which is better than not to connect at all.
                    self.resolved((full.0)());
                }
            }
        }
    }

    /// The lookup of a host name has ended.
    pub(super) fn resolved(&mut self, resolved: Resolved) {
        self.context.resolving -= 1;
        let Resolved { service, connections, options, addresses } = resolved;
        if self.drain.is_none() {
            let addresses = addresses.map(|addresses| addresses.into_iter().map(socket::ip).collect());
            self.connect_each(addresses, connections, &options, service);
        }
    }

    fn connect_each(
        &mut self,
        addresses: io::Result<Vec<SockAddr>>,
        connections: usize,
        options: &SocketOptions,
        service: u32,
    ) {
        let none = || io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        let addresses = addresses.and_then(|all| if all.is_empty() { Err(none()) } else { Ok(all) });
        for _ in 0..connections {
            match &addresses {
                Ok(addresses) if addresses.len() == 1 => self.connect(&addresses[0], options, service),
                Ok(addresses) => self.begin_race(addresses.iter().cloned().collect(), options, service),
                Err(error) => self.services[service as usize].connect_failed(&mut self.context, None, error),
            }
        }
    }

    fn begin_race(&mut self, left: VecDeque<SockAddr>, options: &SocketOptions, service: u32) {
        let number = self.next_race;
        self.next_race = self.next_race.wrapping_add(1);
        let began = self.context.clock;
        let options = options.clone();
        let race = Race { service, options, left, attempts: Vec::new(), began, error: None, timer: None };
        self.races.insert(number, race);
        self.next_attempt(number);
    }

    /// Tries the next address, or ends a race in which nothing is left to try.
    pub(super) fn next_attempt(&mut self, number: u32) {
        let Some(race) = self.races.get_mut(&number) else { return };
        if let Some(key) = race.timer.take() {
            self.context.timers.cancel(key);
        }
        let (service, began) = (race.service, race.began);
        while let Some(to) = race.left.pop_front() {
            match self.engine.connect(&to, &race.options) {
                Ok(conn) => {
                    race.attempts.push(conn);
                    if !race.left.is_empty() {
                        let at = self.context.now + STAGGER;
                        race.timer = Some(self.context.timers.insert(at, Timer::Race(number)));
                    }
                    self.begin_attempt(conn, service, number, began);
                    return;
                }
                Err(error) => race.error = Some(error),
            }
        }
        if race.attempts.is_empty()
            && let Some(race) = self.races.remove(&number)
        {
            let error = race.error.unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into());
            self.services[service as usize].connect_failed(&mut self.context, None, &error);
        }
    }

    fn begin_attempt(&mut self, conn: ConnId, service: u32, race: u32, began: u32) {
        self.insert_connecting(conn, service);
        if let Some(session) = self.context.find(conn) {
            session.opened_at = began;
            session.rare().race = Some(race);
        }
        self.deadline(conn);
    }

    /// A connection of a race has failed. Without the race it had lost before.
    pub(super) fn attempt_failed(&mut self, number: u32, conn: ConnId, error: io::Error) {
        let over = self.drain.is_some() || error.kind() == io::ErrorKind::TimedOut && self.is_late(number);
        let Some(race) = self.races.get_mut(&number) else { return };
        race.attempts.retain(|attempt| *attempt != conn);
        race.error = Some(error);
        if over {
            race.left.clear();
        }
        // What is under way beside it goes on; only a race that stands still, or whose turn it is, goes to the next address.
        self.next_attempt(number);
    }

    /// Whether the time for all attempts together is over.
    fn is_late(&self, number: u32) -> bool {
        let Some(race) = self.races.get(&number) else { return true };
        let limit = self.context.options[race.service as usize].connect_timeout;
        let passed = Duration::from_millis(self.context.clock.wrapping_sub(race.began).into());
        limit.is_some_and(|limit| passed >= limit)
    }

    /// A connection of a race is established: the others are closed.
    pub(super) fn win(&mut self, number: u32, winner: ConnId) {
        let Some(race) = self.races.remove(&number) else { return };
        if let Some(key) = race.timer {
            self.context.timers.cancel(key);
        }
        if let Some(session) = self.context.find(winner) {
            session.rare().race = None;
        }
        for loser in race.attempts.into_iter().filter(|attempt| *attempt != winner) {
            if let Some(session) = self.context.find(loser).filter(|session| session.phase == Phase::Connecting) {
                session.end(Ending::Abort, CloseReason::Local);
                self.settle(loser);
            }
        }
    }
}

/// The addresses in turn by their families, beginning with that of the first: section 4 of RFC 8305.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let (one, other): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv4() == first);
    let (mut one, mut other, mut all) = (one.into_iter(), other.into_iter(), Vec::new());
    loop {
        let pair = [one.next(), other.next()];
        if pair == [None, None] {
            return all;
        }
        all.extend(pair.into_iter().flatten());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_alternate() {
        let parse =
            |text: &str| text.split(' ').map(|word| word.parse().expect("an address")).collect::<Vec<SocketAddr>>();
        let all = parse("[::1]:1 [::2]:1 [::3]:1 1.0.0.1:1 1.0.0.2:1");
        assert_eq!(interleave(all), parse("[::1]:1 1.0.0.1:1 [::2]:1 1.0.0.2:1 [::3]:1"));
        assert_eq!(interleave(parse("1.0.0.1:1 [::1]:1")), parse("1.0.0.1:1 [::1]:1"));
        assert_eq!(interleave(Vec::new()), []);
    }
}
