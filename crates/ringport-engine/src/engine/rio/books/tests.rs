//! The books against the rules of Registered I/O. They also run under Miri, on any system:
//! `cargo +nightly miri test -p ringport-engine --lib books`.

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;
use rio_standin::rules::{Direction, Post, Rules, Slice};

use super::*;
use crate::buffer::{Buf, Chunk, Pool, PoolConfig, SendQueue};

fn cases(many: u32) -> ProptestConfig {
    let cases = if cfg!(miri) { 4 } else { many };
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A completion queue as the engine keeps it, with the rules as the system.
struct Queues {
    rules: Rules,
    completions: isize,
    memory: isize,
    budget: Budget,
    /// Request queues of open sockets, and of closed ones that still have requests.
    open: Vec<(isize, Vec<u64>)>,
    closing: Vec<(isize, Vec<u64>)>,
    sockets: usize,
    posts: u32,
}

const DEPTH: u32 = 3;

impl Queues {
    fn new() -> Self {
        let mut rules = Rules::new();
        let budget = Budget::new(4);
        let completions = rules.create_completion_queue(budget.capacity(), None).unwrap();
        let memory = rules.register(1 << 20).unwrap();
        Self { rules, completions, memory, budget, open: Vec::new(), closing: Vec::new(), sockets: 0, posts: 0 }
    }

    fn resize(&mut self, capacity: u32) {
        self.rules.resize_completion_queue(self.completions, capacity).expect("room for what is charged");
        self.budget.resized(capacity);
    }

    fn connect(&mut self) {
        let needed = self.budget.needed(DEPTH).unwrap();
        if needed != self.budget.capacity() {
            self.resize(needed);
        }
        self.sockets += 1;
        let Self { rules, completions, sockets, .. } = self;
        let queue = rules.create_request_queue(*sockets, true, 1, DEPTH - 1, (1, 1), *completions, *completions, 0);
        self.open.push((queue.expect("the books promised room"), Vec::new()));
        self.budget.charge(DEPTH);
    }

    /// Posts a send, if the depth allows another.
    fn post(&mut self, index: usize) {
        let Some((queue, requests)) = self.open.get_mut(index) else { return };
        if requests.len() < DEPTH as usize - 1 {
            self.posts += 1;
            let data = Some(Slice { buffer: self.memory, offset: self.posts, length: 1 });
            let post = Post { data, count: 1, ..Post::default() };
            let started = self.rules.post(*queue, Direction::Send, post).expect("within the depth");
            requests.push(started[0].request);
        }
    }

    fn close(&mut self, index: usize) {
        let (queue, requests) = self.open.swap_remove(index);
        assert!(self.rules.socket_closed(queue).is_empty());
        self.closing.push((queue, requests));
        self.note_ends();
    }

    /// Ends a request of every connection, and dequeues all completions.
    fn run(&mut self) {
        for (_, requests) in self.open.iter_mut().chain(&mut self.closing) {
            if let Some(request) = requests.pop() {
                self.rules.complete(request, 0, 1).expect("the completion queue has room");
            }
        }
        self.rules.dequeue(self.completions, 1000).unwrap();
        self.note_ends();
    }

    /// As the engine does when the last completion of a closed connection was dequeued.
    fn note_ends(&mut self) {
        let budget = &mut self.budget;
        self.closing.retain(|(_, requests)| {
            if requests.is_empty() {
                budget.release(DEPTH);
            }
            !requests.is_empty()
        });
        while let Some(capacity) = self.budget.spare() {
            self.resize(capacity);
        }
    }
}

proptest! {
    #![proptest_config(cases(300))]

    /// Whatever comes and goes, the system never sees more promised than there is room for, and the queue shrinks again.
    #[test]
    fn request_queues_always_fit_the_completion_queue(steps in proptest::collection::vec((0..10_u8, any::<usize>()), 1..300)) {
        let mut queues = Queues::new();
        for (step, pick) in steps {
            let index = pick % queues.open.len().max(1);
            match step {
                0..=3 => queues.connect(),
                4..=6 => queues.post(index),
                7 if !queues.open.is_empty() => queues.close(index),
                _ => queues.run(),
            }
        }
        while !queues.open.is_empty() {
            queues.close(0);
        }
        for _ in 0..DEPTH {
            queues.run();
        }
        prop_assert_eq!(queues.rules.in_use().request_queues, 0);
        prop_assert_eq!(queues.budget.capacity(), 4);
    }

    /// No slice has two owners, and chunks go when nobody is in them.
    #[test]
    fn slices_have_one_owner(steps in proptest::collection::vec((any::<bool>(), any::<usize>()), 1..200)) {
        let mut slices = Slices::new(4);
        let (mut mine, mut chunks) = (BTreeSet::new(), BTreeSet::new());
        for (take, pick) in steps {
            if take || mine.is_empty() {
                let slice = slices.take().unwrap_or_else(|| {
                    assert!(chunks.insert(slices.add()), "a chunk is added that is there");
                    slices.take().unwrap()
                });
                prop_assert!(chunks.contains(&slice.chunk) && slice.index < 4);
                prop_assert!(mine.insert(slice), "{:?} is somebody's", slice);
            } else {
                let slice = *mine.iter().nth(pick % mine.len()).unwrap();
                mine.remove(&slice);
                if let Some(gone) = slices.give_back(slice) {
                    prop_assert!(chunks.remove(&gone));
                    prop_assert!(mine.iter().all(|slice| slice.chunk != gone), "a chunk goes that is used");
                }
            }
        }
        for slice in mine {
            if let Some(gone) = slices.give_back(slice) {
                chunks.remove(&gone);
            }
        }
        prop_assert_eq!(chunks.len(), 1, "one chunk stays for the next");
    }

    /// In whatever pieces and order the system takes it: what arrives, with what comes back, is what was given.
    #[test]
    fn nothing_is_lost_or_sent_twice(
        pieces in proptest::collection::vec((1..200_usize, any::<bool>()), 1..12),
        steps in proptest::collection::vec((any::<bool>(), any::<usize>(), 0..20_u8), 0..80),
    ) {
        let pool = Pool::new(PoolConfig::default().small_slots(64).large_slots(2).slot_bytes(256, 256));
        let mut queue = SendQueue::new();
        let mut all = Vec::new();
        for (number, (length, pooled)) in pieces.iter().enumerate() {
            let data: Vec<u8> = (0..*length).map(|index| (number * 31 + index) as u8).collect();
            all.extend_from_slice(&data);
            match pool.writable(*length) {
                Some(mut buf) if *pooled => {
                    buf.append(&data);
                    queue.push(buf);
                }
                _ => queue.push(data),
            }
        }
        let mut wire = Wire { flight: Flight::take(&mut queue, 64), posts: Vec::new(), taken: VecDeque::new(), arrived: Vec::new() };
        for (post, pick, luck) in steps {
            if post { wire.post() } else { wire.end(pick, luck) }
        }
        // What is in flight ends; with the socket closed, nothing more is taken.
        while !wire.posts.is_empty() {
            wire.end(0, 0);
        }
        prop_assert!(all.starts_with(&wire.arrived));
        let unsent: Vec<u8> = wire.flight.unsent().iter().flat_map(|piece| piece.as_slice().to_vec()).collect();
        prop_assert_eq!([wire.arrived, unsent].concat(), all);
        prop_assert_eq!(pool.stats().leased, 0);
    }
}

/// One flight, and the system that takes it.
struct Wire {
    flight: Flight<Vec<u8>>,
    /// Number, address and length of what is posted.
    posts: Vec<(u32, *const u8, usize)>,
    /// What was taken of each send, in the order in which they were posted.
    taken: VecDeque<(u32, Vec<u8>)>,
    arrived: Vec<u8>,
}

impl Wire {
    fn post(&mut self) {
        let pooled = |piece: &Chunk| matches!(piece, Chunk::Buf(buf) if buf.is_pooled());
        let (stage, address, bytes) = match self.flight.next(150, pooled) {
            None => return,
            Some(Next::InPlace(address, bytes)) => (None, address, bytes),
            Some(Next::Copied(bytes)) => {
                let mut stage = Vec::with_capacity(100);
                let copied = self.flight.copy(bytes, |data| {
                    let count = data.len().min(100 - stage.len());
                    stage.extend_from_slice(&data[..count]);
                    count
                });
                let address = stage.as_ptr();
                assert_eq!(stage.len(), copied);
                (Some(stage), address, copied)
            }
        };
        let number = self.flight.posted(bytes, stage);
        assert!(number < SENDS && self.posts.iter().all(|(other, ..)| *other != number), "a number is in use");
        self.posts.push((number, address, bytes));
        self.taken.push_back((number, Vec::new()));
    }

    /// Ends one of the posted sends. The memory is read now, so that Miri sees if it was given away before.
    fn end(&mut self, pick: usize, luck: u8) {
        if self.posts.is_empty() {
            return;
        }
        // Mostly in order, which is what the system does.
        let index = if luck < 4 { pick % self.posts.len() } else { 0 };
        let (number, address, bytes) = self.posts.remove(index);
        let taken = match luck {
            0 => 0,
            1 => pick % (bytes + 1),
            _ => bytes,
        };
        // SAFETY: the flight keeps the bytes until the end of the send, which it is told of below.
        let data = unsafe { std::slice::from_raw_parts(address, taken) }.to_vec();
        let entry = self.taken.iter_mut().find(|(other, _)| *other == number);
        entry.expect("it was posted").1 = data;
        let mut left = self.flight.ended(number, taken, drop).bytes;
        while left > 0 {
            let (_, data) = self.taken.pop_front().expect("no more counts than was taken");
            left -= data.len();
            self.arrived.extend(data);
        }
        // Sends of which nothing was taken count for nothing, and their numbers come again.
        self.taken.retain(|(number, data)| !data.is_empty() || self.posts.iter().any(|(other, ..)| other == number));
    }
}

#[test]
fn a_send_that_is_taken_in_part_goes_on_from_there() {
    let mut queue = SendQueue::new();
    queue.push(b"0123456789");
    let mut flight = Flight::<Buf>::take(&mut queue, 64);
    let everywhere = |_: &Chunk| true;
    let Some(Next::InPlace(_, 4)) = flight.next(4, everywhere) else { panic!("four bytes at a time") };
    let number = flight.posted(4, None);
    assert_eq!(flight.ended(number, 3, drop).bytes, 3);
    let Some(Next::InPlace(address, 7)) = flight.next(100, everywhere) else { panic!("the rest") };
    // SAFETY: the piece is static.
    assert_eq!(unsafe { *address }, b'3');
    let number = flight.posted(7, None);
    assert!(!flight.is_done());
    assert_eq!(flight.ended(number, 7, drop).bytes, 7);
    assert!(flight.is_done() && flight.next(100, everywhere).is_none());
}

#[test]
fn a_hole_in_the_stream_is_told() {
    let mut queue = SendQueue::new();
    queue.push(b"abcdef");
    let mut flight = Flight::<Buf>::take(&mut queue, 64);
    let (first, second) = (flight.posted(3, None), flight.posted(3, None));
    let progress = flight.ended(first, 1, drop);
    assert!(progress.hole && progress.bytes == 1);
    let progress = flight.ended(second, 3, drop);
    assert!(!progress.hole && progress.bytes == 0, "what came behind the hole does not count");
    assert_eq!(flight.in_flight(), 0);
    let unsent: Vec<Vec<u8>> = flight.unsent().iter().map(|piece| piece.as_slice().to_vec()).collect();
    assert_eq!(unsent, [b"bcdef"]);
}

#[test]
fn no_more_sends_are_in_flight_than_the_queue_is_deep() {
    let mut queue = SendQueue::new();
    queue.push(vec![1; 100]);
    let mut flight = Flight::<Buf>::take(&mut queue, 64);
    for _ in 0..SENDS {
        assert!(flight.next(1, |_| true).is_some());
        flight.posted(1, None);
    }
    assert!(flight.next(1, |_| true).is_none());
    flight.ended(0, 1, drop);
    assert!(flight.next(1, |_| true).is_some());
}

#[test]
fn small_pieces_on_the_heap_are_sent_together() {
    let mut queue = SendQueue::new();
    for piece in [b"one ", b"two ", b"more"] {
        queue.push(piece);
    }
    let flight = Flight::<Buf>::take(&mut queue, 64);
    assert_eq!(flight.next(1000, |_| false), Some(Next::Copied(12)));
    let mut copy = Vec::new();
    let append = |data: &[u8]| {
        copy.extend_from_slice(data);
        data.len()
    };
    assert_eq!(flight.copy(12, append), 12);
    assert_eq!(copy, b"one two more");
}

#[test]
#[should_panic(expected = "exceed the completion queue")]
fn a_charge_beyond_the_room_is_caught() {
    Budget::new(4).charge(5);
}

#[test]
fn a_completion_queue_has_an_end() {
    let budget = Budget::new(0x0800_0000);
    assert_eq!(budget.needed(0x0800_0000), Some(0x0800_0000));
    assert_eq!(budget.needed(0x0800_0001), None);
    assert_eq!(Budget::new(3).needed(0x0700_0000), Some(0x0800_0000), "doubled up to the bound");
}
