//! The books of a pool: who holds a place, what is idle and who is next. Pure: no sockets, no clock and no wakers, so that
//! a model can be held against it.
//!
//! A **place** is the right to one connection. It is held from the moment in which a connection may be opened until that
//! connection is gone, also while it is idle or closing; the limits count places. Whoever asks gets a **ticket**, and
//! later a **grant** for it: an idle connection, or a place for a new one.
//!
//! ```text
//!   ask ──► waiting ──► granted ──► take ──► held ──► give_back ──► idle ──► granted …
//!              │           │                  │                      │
//!            cancel      cancel            release ◄── closed ◄── discarded, evicted
//! ```
//!
//! Tickets are served in order. One is passed over only while its own destination has neither an idle connection nor
//! a place left, for then nothing that others hold could help it. When the limit of the whole pool is what is missing, the
//! connection that has been idle for longest goes, whosever it is.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

/// A place in the order of those who ask.
pub(super) type Ticket = u64;

/// An idle connection: since when, and a number that tells it from all others.
pub(super) type IdleKey = (Instant, u64);

/// Most places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) total: usize,
    pub(super) per_destination: usize,
}

/// What a ticket gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grant<C> {
    /// A place, for a new connection.
    Open,
    /// An idle connection with its place, and since when it was idle.
    Reuse(C, Instant),
}

/// What is known of one destination. It is forgotten with its last place and its last ticket.
#[derive(Default)]
struct Destination {
    places: usize,
    /// Oldest first.
    idle: VecDeque<IdleKey>,
    /// In order.
    waiting: VecDeque<Ticket>,
    /// The ticket under which it stands in `eligible`.
    listed: Option<Ticket>,
}

/// The books, for destinations `D` and connections `C`.
pub(super) struct Books<D, C> {
    limits: Limits,
    destinations: BTreeMap<D, Destination>,
    idle: BTreeMap<IdleKey, (D, C)>,
    waiting: BTreeMap<Ticket, D>,
    /// The first ticket of each destination that has an idle connection or a place left.
    eligible: BTreeMap<Ticket, D>,
    granted: BTreeMap<Ticket, (D, Grant<C>)>,
    /// Tickets granted since somebody looked.
    news: Vec<Ticket>,
    /// Idle connections that have to be closed to make room.
    evicted: Vec<(D, C)>,
    places: usize,
    /// Places of connections that were taken out of the idle ones to be closed: they will be free soon.
    coming: usize,
    next: u64,
}

enum Step<D> {
    Reuse(Ticket, D),
    Open(Ticket, D),
    Evict(IdleKey),
}

impl<D: Clone + Ord, C> Books<D, C> {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            destinations: BTreeMap::new(),
            idle: BTreeMap::new(),
            waiting: BTreeMap::new(),
            eligible: BTreeMap::new(),
            granted: BTreeMap::new(),
            news: Vec::new(),
            evicted: Vec::new(),
            places: 0,
            coming: 0,
            next: 0,
        }
    }

    /// Asks for a connection to `to`.
    pub(super) fn ask(&mut self, to: &D) -> Ticket {
        let ticket = self.number();
        self.ask_again(ticket, to);
        ticket
    }

    /// Asks with a ticket whose grant was of no use, without losing its turn. The place of that grant must have been
    /// given up, or its connection be on its way to be closed.
    pub(super) fn ask_again(&mut self, ticket: Ticket, to: &D) {
        let waiting = &mut self.destinations.entry(to.clone()).or_default().waiting;
        let at = waiting.partition_point(|earlier| *earlier < ticket);
        waiting.insert(at, ticket);
        self.waiting.insert(ticket, to.clone());
        self.refresh(to);
        self.serve();
    }

    /// What the ticket got, once.
    pub(super) fn take(&mut self, ticket: Ticket) -> Option<Grant<C>> {
        self.granted.remove(&ticket).map(|(_, grant)| grant)
    }

    /// Gives up a ticket, wherever it is. An idle connection that was granted comes back together with its place.
    pub(super) fn cancel(&mut self, ticket: Ticket) -> Option<(C, Instant)> {
        if let Some(to) = self.waiting.remove(&ticket) {
            if let Some(destination) = self.destinations.get_mut(&to) {
                destination.waiting.retain(|other| *other != ticket);
            }
            self.refresh(&to);
            self.serve();
            return None;
        }
        match self.granted.remove(&ticket)? {
            (to, Grant::Open) => {
                self.release(&to, false);
                None
            }
            (_, Grant::Reuse(conn, since)) => Some((conn, since)),
        }
    }

    /// A connection can be used by others: it is idle, or somebody's who waits for it.
    pub(super) fn give_back(&mut self, to: &D, conn: C, since: Instant) -> IdleKey {
        let key = (since, self.number());
        if let Some(destination) = self.destinations.get_mut(to) {
            let at = destination.idle.partition_point(|earlier| *earlier < key);
            destination.idle.insert(at, key);
            self.idle.insert(key, (to.clone(), conn));
            self.refresh(to);
            self.serve();
        }
        key
    }

    /// A connection is gone, or was never made: its place is free. `soon` says that it was on its way to be closed.
    pub(super) fn release(&mut self, to: &D, soon: bool) {
        let Some(destination) = self.destinations.get_mut(to) else { return };
        debug_assert!(destination.places > 0 && self.places > 0, "a place is given up once");
        destination.places -= 1;
        self.places -= 1;
        self.coming -= usize::from(soon);
        self.refresh(to);
        self.serve();
    }

    /// A connection that somebody holds is on its way to be closed.
    pub(super) fn will_close(&mut self) {
        self.coming += 1;
    }

    /// Takes an idle connection out, to be closed. Its place is free when that is done.
    pub(super) fn discard(&mut self, key: IdleKey) -> Option<(D, C)> {
        let (to, conn) = self.idle.remove(&key)?;
        if let Some(destination) = self.destinations.get_mut(&to) {
            destination.idle.retain(|other| *other != key);
        }
        self.coming += 1;
        self.refresh(&to);
        Some((to, conn))
    }

    /// The connection that has been idle for longest.
    pub(super) fn oldest(&self) -> Option<IdleKey> {
        self.idle.first_key_value().map(|(key, _)| *key)
    }

    /// An idle connection.
    pub(super) fn idle(&self, key: IdleKey) -> Option<&C> {
        self.idle.get(&key).map(|(_, conn)| conn)
    }

    /// The next idle connection that has to be closed to make room.
    pub(super) fn next_evicted(&mut self) -> Option<(D, C)> {
        self.evicted.pop()
    }

    /// The next ticket that was granted.
    pub(super) fn next_granted(&mut self) -> Option<Ticket> {
        self.news.pop()
    }

    pub(super) fn places(&self) -> usize {
        self.places
    }

    pub(super) fn idle_len(&self) -> usize {
        self.idle.len()
    }

    pub(super) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_waiting(&self, ticket: Ticket) -> bool {
        self.waiting.contains_key(&ticket)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Keeps `eligible` and the table of destinations true for `to`.
    fn refresh(&mut self, to: &D) {
        let Some(destination) = self.destinations.get_mut(to) else { return };
        let able = !destination.idle.is_empty() || destination.places < self.limits.per_destination;
        let first = destination.waiting.front().copied().filter(|_| able);
        if destination.listed != first {
            if let Some(old) = std::mem::replace(&mut destination.listed, first) {
                self.eligible.remove(&old);
            }
            if let Some(new) = first {
                self.eligible.insert(new, to.clone());
            }
        }
        if destination.places == 0 && destination.waiting.is_empty() {
            self.destinations.remove(to);
        }
    }

    /// Grants all that can be granted.
    fn serve(&mut self) {
        while let Some(step) = self.next_step() {
            match step {
                Step::Reuse(ticket, to) => {
                    let newest = self.destinations.get_mut(&to).and_then(|destination| destination.idle.pop_back());
                    if let Some(key) = newest
                        && let Some((_, conn)) = self.idle.remove(&key)
                    {
                        self.grant(ticket, to, Grant::Reuse(conn, key.0));
                    }
                }
                Step::Open(ticket, to) => {
                    self.places += 1;
                    if let Some(destination) = self.destinations.get_mut(&to) {
                        destination.places += 1;
                    }
                    self.grant(ticket, to, Grant::Open);
                }
                Step::Evict(key) => {
                    let evicted = self.discard(key);
                    self.evicted.extend(evicted);
                }
            }
        }
    }

    /// What can be done for the first ticket that can be helped. Tickets for which a place is on its way are passed over.
    fn next_step(&self) -> Option<Step<D>> {
        let mut coming = self.coming;
        for (ticket, to) in &self.eligible {
            if self.destinations.get(to).is_some_and(|destination| !destination.idle.is_empty()) {
                return Some(Step::Reuse(*ticket, to.clone()));
            }
            if self.places < self.limits.total {
                return Some(Step::Open(*ticket, to.clone()));
            }
            if coming == 0 {
                return self.oldest().map(Step::Evict);
            }
            coming -= 1;
        }
        None
    }

    fn grant(&mut self, ticket: Ticket, to: D, grant: Grant<C>) {
        self.waiting.remove(&ticket);
        if let Some(destination) = self.destinations.get_mut(&to) {
            destination.waiting.retain(|other| *other != ticket);
        }
        self.refresh(&to);
        self.granted.insert(ticket, (to, grant));
        self.news.push(ticket);
    }
}

#[cfg(test)]
mod tests;
