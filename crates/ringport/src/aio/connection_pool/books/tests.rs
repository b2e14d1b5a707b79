//! The books against a model that knows where every connection is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const DESTINATIONS: u8 = 4;

#[derive(Clone, Debug)]
enum Op {
    Ask(u8),
    /// Gives up a ticket that waits or was granted.
    Cancel(usize),
    /// Takes what a ticket was granted; what was idle may turn out to be of no use.
    Take(usize, bool),
    /// A user is done: the connection is idle, since then or since earlier.
    GiveBack(usize, u64),
    /// A user drops a connection, which closes at once or needs a while.
    Drop(usize, bool),
    /// A connection that was on its way out is gone.
    Gone(usize),
    /// An idle connection died or was idle for too long.
    Discard(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let any_index = any::<usize>;
    prop_oneof![
        4 => (0..DESTINATIONS).prop_map(Op::Ask),
        1 => any_index().prop_map(Op::Cancel),
        4 => (any_index(), prop::bool::weighted(0.2)).prop_map(|(at, useless)| Op::Take(at, useless)),
        3 => (any_index(), 0..50_u64).prop_map(|(at, age)| Op::GiveBack(at, age)),
        1 => (any_index(), any::<bool>()).prop_map(|(at, at_once)| Op::Drop(at, at_once)),
        2 => any_index().prop_map(Op::Gone),
        1 => any_index().prop_map(Op::Discard),
    ]
}

/// Where everything is. Connections are numbers.
struct Model {
    limits: Limits,
    books: Books<u8, u32>,
    start: Instant,
    step: u64,
    made: u32,
    waiting: BTreeMap<Ticket, u8>,
    granted: BTreeMap<Ticket, u8>,
    held: Vec<(u8, u32)>,
    /// On their way out, and whether the books know.
    closing: Vec<(u8, u32, bool)>,
    /// With those that were granted and not taken yet.
    idle: BTreeMap<IdleKey, (u8, u32)>,
}

fn pick<T>(from: &[T], at: usize) -> Option<usize> {
    (!from.is_empty()).then(|| at % from.len())
}

impl Model {
    fn new(limits: Limits) -> Self {
        Self {
            limits,
            books: Books::new(limits),
            start: Instant::now(),
            step: 0,
            made: 0,
            waiting: BTreeMap::new(),
            granted: BTreeMap::new(),
            held: Vec::new(),
            closing: Vec::new(),
            idle: BTreeMap::new(),
        }
    }

    fn run(&mut self, op: &Op) {
        self.step += 1;
        match *op {
            Op::Ask(to) => {
                let ticket = self.books.ask(&to);
                self.waiting.insert(ticket, to);
            }
            Op::Cancel(at) => self.cancel(at),
            Op::Take(at, useless) => self.take(at, useless),
            Op::GiveBack(at, age) => {
                if let Some(at) = pick(&self.held, at) {
                    let (to, conn) = self.held.swap_remove(at);
                    self.give_back(to, conn, age);
                }
            }
            Op::Drop(at, at_once) => {
                if let Some(at) = pick(&self.held, at) {
                    let (to, conn) = self.held.swap_remove(at);
                    if at_once {
                        self.books.release(&to, false);
                    } else {
                        self.closing.push((to, conn, false));
                    }
                }
            }
            Op::Gone(at) => {
                if let Some(at) = pick(&self.closing, at) {
                    let (to, _, known) = self.closing.swap_remove(at);
                    self.books.release(&to, known);
                }
            }
            Op::Discard(at) => {
                let keys = self.idle.keys().copied().filter(|key| self.books.idle(*key).is_some());
                let keys: Vec<IdleKey> = keys.collect();
                if let Some(at) = pick(&keys, at) {
                    let found = self.books.discard(keys[at]);
                    let known = self.idle.remove(&keys[at]).expect("it was picked from there");
                    assert_eq!(found, Some(known));
                    self.closing.push((known.0, known.1, true));
                }
            }
        }
        self.look();
    }

    fn give_back(&mut self, to: u8, conn: u32, age: u64) {
        let since = self.start + Duration::from_millis(self.step.saturating_sub(age));
        let key = self.books.give_back(&to, conn, since);
        self.idle.insert(key, (to, conn));
    }

    fn cancel(&mut self, at: usize) {
        let tickets: Vec<(Ticket, u8)> = self.waiting.iter().chain(&self.granted).map(|(id, to)| (*id, *to)).collect();
        let Some(at) = pick(&tickets, at) else { return };
        let (ticket, to) = tickets[at];
        let waited = self.waiting.remove(&ticket).is_some();
        self.granted.remove(&ticket);
        if let Some((conn, _)) = self.books.cancel(ticket) {
            assert!(!waited, "only what was granted comes back");
            self.forget_idle(conn);
            self.give_back(to, conn, 0);
        }
        assert!(self.books.take(ticket).is_none() && self.books.cancel(ticket).is_none(), "a ticket is over once");
    }

    fn take(&mut self, at: usize, useless: bool) {
        let tickets: Vec<(Ticket, u8)> = self.granted.iter().map(|(id, to)| (*id, *to)).collect();
        let Some(at) = pick(&tickets, at) else { return };
        let (ticket, to) = tickets[at];
        self.granted.remove(&ticket);
        match self.books.take(ticket).expect("it was granted") {
            Grant::Open => {
                self.made += 1;
                self.held.push((to, self.made));
            }
            Grant::Reuse(conn, _) => {
                self.forget_idle(conn);
                if useless {
                    self.books.will_close();
                    self.closing.push((to, conn, true));
                    self.waiting.insert(ticket, to);
                    self.books.ask_again(ticket, &to);
                } else {
                    self.held.push((to, conn));
                }
            }
        }
    }

    /// A connection that was idle is somebody's.
    fn forget_idle(&mut self, conn: u32) {
        let key = self.idle.iter().find(|(_, idle)| idle.1 == conn).map(|(key, _)| *key);
        self.idle.remove(&key.expect("only what was idle is handed out"));
    }

    /// Learns what the books did, and checks it.
    fn look(&mut self) {
        let before = self.waiting.clone();
        let mut news = BTreeSet::new();
        while let Some(ticket) = self.books.next_granted() {
            let to = self.waiting.remove(&ticket).expect("only who waits is granted something, and once");
            self.granted.insert(ticket, to);
            news.insert(ticket);
        }
        while let Some((to, conn)) = self.books.next_evicted() {
            let key = self.idle.iter().find(|(_, idle)| **idle == (to, conn)).map(|(key, _)| *key);
            self.idle.remove(&key.expect("only what is idle is evicted"));
            self.closing.push((to, conn, true));
        }
        self.check_limits();
        self.check_order(&before, &news);
        self.check_progress();
    }

    fn places(&self, of: Option<u8>) -> usize {
        let counts = |to: &u8| of.is_none_or(|of| of == *to);
        let idle = self.idle.iter().filter(|(key, (to, _))| counts(to) && self.books.idle(**key).is_some()).count();
        self.held.iter().filter(|(to, _)| counts(to)).count()
            + self.closing.iter().filter(|(to, ..)| counts(to)).count()
            + self.granted.values().filter(|to| counts(to)).count()
            + idle
    }

    fn check_limits(&self) {
        assert_eq!(self.books.places(), self.places(None));
        assert!(self.books.places() <= self.limits.total);
        for to in 0..DESTINATIONS {
            assert!(self.places(Some(to)) <= self.limits.per_destination);
        }
        assert_eq!(self.books.waiting_len(), self.waiting.len());
    }

    /// The first who waits for each destination that has a place left for it.
    fn heads(&self) -> Vec<Ticket> {
        let mut seen = BTreeSet::new();
        let firsts = self.waiting.iter().filter(|(_, to)| seen.insert(**to));
        firsts.filter(|(_, to)| self.places(Some(**to)) < self.limits.per_destination).map(|(id, _)| *id).collect()
    }

    fn coming(&self) -> usize {
        self.closing.iter().filter(|(.., known)| *known).count()
    }

    fn check_order(&self, before: &BTreeMap<Ticket, u8>, news: &BTreeSet<Ticket>) {
        for ticket in news {
            let to = before[ticket];
            let overtaken = self.waiting.iter().find(|(other, waits_for)| **other < *ticket && **waits_for == to);
            assert!(overtaken.is_none(), "{ticket} overtook {overtaken:?}");
            // Those of other destinations are overtaken only if they cannot be helped, or a place is on its way for them.
            let passed = self.heads().into_iter().filter(|other| other < ticket).count();
            assert!(passed <= self.coming(), "{ticket} overtook {passed}, {} coming", self.coming());
        }
    }

    /// Nobody waits who could be helped.
    fn check_progress(&self) {
        for to in self.waiting.values() {
            assert!(
                !self.idle.iter().any(|(key, (of, _))| of == to && self.books.idle(*key).is_some()),
                "somebody waits for what is idle"
            );
        }
        let heads = self.heads();
        if !heads.is_empty() {
            assert_eq!(self.books.places(), self.limits.total, "{heads:?} wait, and there is a place");
            assert!(self.books.idle_len() == 0 || heads.len() <= self.coming(), "{heads:?} wait for no reason");
        }
    }

    /// Everybody who still waits is served, and then nothing is left.
    fn finish(mut self) {
        let mut rounds = 0;
        while !(self.waiting.is_empty() && self.granted.is_empty() && self.held.is_empty() && self.closing.is_empty()) {
            let (before, asked) = (self.waiting.len(), self.granted.len() + self.held.len() + self.closing.len());
            assert!(asked > 0, "{before} wait for nothing");
            for op in [Op::Take(0, false), Op::Drop(0, true), Op::Gone(0)] {
                self.run(&op);
            }
            rounds += 1;
            assert!(rounds < 10_000, "it does not end");
        }
        while !self.idle.is_empty() {
            self.run(&Op::Discard(0));
            self.run(&Op::Gone(0));
        }
        assert_eq!((self.books.places(), self.books.destinations.len(), self.books.eligible.len()), (0, 0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    #[test]
    fn limits_hold_turns_are_kept_and_nobody_is_forgotten(
        total in 1..7_usize,
        per_destination in 1..5_usize,
        ops in prop::collection::vec(op(), 1..150),
    ) {
        let mut model = Model::new(Limits { total, per_destination });
        for op in &ops {
            model.run(op);
        }
        model.finish();
    }
}

fn limits(total: usize, per_destination: usize) -> Books<&'static str, u32> {
    Books::new(Limits { total, per_destination })
}

#[test]
fn the_newest_idle_connection_is_used_and_the_oldest_makes_room() {
    let (mut books, start) = (limits(2, 2), Instant::now());
    for ticket in [books.ask(&"a"), books.ask(&"a")] {
        assert_eq!(books.take(ticket), Some(Grant::Open));
    }
    for conn in [1, 2] {
        books.give_back(&"a", conn, start + Duration::from_secs(conn.into()));
    }
    let ticket = books.ask(&"a");
    assert_eq!(books.take(ticket), Some(Grant::Reuse(2, start + Duration::from_secs(2))));
    books.give_back(&"a", 2, start + Duration::from_secs(3));
    let ticket = books.ask(&"b");
    assert_eq!((books.take(ticket), books.next_evicted(), books.next_evicted()), (None, Some(("a", 1)), None));
    books.release(&"a", true);
    assert_eq!(books.take(ticket), Some(Grant::Open));
}

#[test]
fn whoever_asked_first_for_another_destination_is_not_starved() {
    let (mut books, now) = (limits(1, 1), Instant::now());
    let first = books.ask(&"a");
    assert_eq!(books.take(first), Some(Grant::Open));
    let (other, again) = (books.ask(&"b"), books.ask(&"a"));
    // The connection comes back, but the turn is another's.
    books.give_back(&"a", 1, now);
    assert_eq!(books.next_evicted(), Some(("a", 1)));
    books.release(&"a", true);
    assert_eq!((books.take(other), books.take(again)), (Some(Grant::Open), None));
    books.release(&"b", false);
    assert_eq!(books.take(again), Some(Grant::Open));
}
