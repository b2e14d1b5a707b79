//! What was taken for one connection and is on its way.
//!
//! ```text
//!  queue:   [ piece ][ piece ][ piece ][ piece ] …
//!             posted ────────────►│ cursor
//!  posts:   [  send 1  ][ send 2  ]
//! ```
//!
//! A request of Registered I/O has exactly one buffer, so that several pieces are several requests, in order. Pieces in
//! registered memory are sent from where they lie; others are copied into a stage first, as many as fit together. The
//! queue keeps its pieces until the system has taken them: what it never takes comes back from there.

use std::collections::VecDeque;

use crate::buffer::{Chunk, SendQueue};

/// Sends of one connection that may be in flight at once: enough that the next is there when one ends.
pub(crate) const SENDS: u32 = 4;

/// What is to be posted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Bytes that can be sent from where they lie.
    InPlace(*const u8, usize),
    /// So many bytes that have to be copied first.
    Copied(usize),
}

/// What a completion means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes that the system took, in order.
    pub(crate) bytes: usize,
    /// Less was taken than posted although more was posted behind it: there is a hole in the stream.
    pub(crate) hole: bool,
}

/// The record of one connection. `S` is the memory that a copy is sent from.
#[derive(Debug)]
pub(crate) struct Flight<S> {
    queue: SendQueue,
    /// Bytes of the queue, from its front, that were posted.
    posted: usize,
    posts: VecDeque<Sent<S>>,
    /// The number of the next send.
    next: u32,
    /// Bytes are missing in what was sent: nothing behind them counts.
    broken: bool,
}

#[derive(Debug)]
struct Sent<S> {
    bytes: usize,
    /// Bytes that were taken of it, once it has ended.
    ended: Option<usize>,
    stage: Option<S>,
}

impl<S> Flight<S> {
    /// Takes the first `pieces` of `queue`, up to one that cannot be sent like others.
    pub(crate) fn take(queue: &mut SendQueue, pieces: usize) -> Self {
        let mut taken = SendQueue::new();
        let mut next = || queue.front().is_some_and(|piece| !piece.is_alone()).then(|| queue.pop()).flatten();
        for piece in std::iter::from_fn(&mut next).take(pieces) {
            taken.push(piece);
        }
        Self { queue: taken, posted: 0, posts: VecDeque::new(), next: 0, broken: false }
    }

    /// What is to be posted next, at most `most` bytes in one go; `None` if that is nothing, or not now.
    pub(crate) fn next(&self, most: usize, lies_in_place: impl Fn(&Chunk) -> bool) -> Option<Next> {
        if self.posts.len() >= SENDS as usize {
            return None;
        }
        let mut copied = 0;
        for (piece, rest) in self.rest() {
            if !lies_in_place(piece) {
                copied += rest.len();
            } else if copied == 0 {
                return Some(Next::InPlace(rest.as_ptr(), rest.len().min(most)));
            } else {
                break;
            }
        }
        (copied > 0).then_some(Next::Copied(copied.min(most)))
    }

    /// The pieces, and what of them was not posted.
    fn rest(&self) -> impl Iterator<Item = (&Chunk, &[u8])> {
        let mut skip = self.posted;
        self.queue.iter().filter_map(move |piece| {
            let data = piece.as_slice();
            let skipped = skip.min(data.len());
            skip -= skipped;
            (skipped < data.len()).then(|| (piece, &data[skipped..]))
        })
    }

    /// Copies what is next into `stage`: the bytes that [`Flight::next`] spoke of, as far as they fit. `append` says how
    /// many it took.
    pub(crate) fn copy(&self, bytes: usize, mut append: impl FnMut(&[u8]) -> usize) -> usize {
        let mut copied = 0;
        for (_, rest) in self.rest() {
            let part = &rest[..rest.len().min(bytes - copied)];
            let took = append(part);
            copied += took;
            if took < part.len() || copied == bytes {
                break;
            }
        }
        copied
    }

    /// Notes a send that was posted, and says its number: one of `0..SENDS`, that no other in flight has.
    pub(crate) fn posted(&mut self, bytes: usize, stage: Option<S>) -> u32 {
        debug_assert!(self.posts.len() < SENDS as usize && bytes > 0);
        self.posted += bytes;
        self.posts.push_back(Sent { bytes, ended: None, stage });
        let number = self.next;
        self.next = (number + 1) % SENDS;
        number
    }

    /// Notes the end of send `number`, of which the system took `bytes`. Stages that are free again go to `release`.
    ///
    /// What was taken counts in the order in which it was posted, whatever the order of the completions.
    pub(crate) fn ended(&mut self, number: u32, bytes: usize, mut release: impl FnMut(S)) -> Progress {
        let in_flight = self.posts.len() as u32;
        let first = (self.next + SENDS - in_flight) % SENDS;
        let index = (number + SENDS - first) % SENDS;
        let mut progress = Progress { bytes: 0, hole: false };
        let Some(sent) = self.posts.get_mut(index as usize).filter(|sent| sent.ended.is_none()) else {
            return progress;
        };
        sent.ended = Some(bytes.min(sent.bytes));
        if let Some(stage) = sent.stage.take() {
            release(stage);
        }
        while let (Some(Sent { bytes, ended: Some(taken), .. }), false) = (self.posts.front(), self.broken) {
            let (bytes, taken) = (*bytes, *taken);
            self.posts.pop_front();
            self.queue.consume(taken);
            self.posted -= taken;
            progress.bytes += taken;
            if taken < bytes {
                // Nobody will send the rest: with more behind it that is a hole, otherwise it is posted again.
                self.broken = !self.posts.is_empty();
                progress.hole = self.broken;
                self.posted = 0;
            }
        }
        progress
    }

    /// Sends that have not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.posts.iter().filter(|sent| sent.ended.is_none()).count()
    }

    /// Whether everything was taken.
    pub(crate) fn is_done(&self) -> bool {
        self.queue.is_empty()
    }

    /// What was not taken, once nothing is in flight.
    pub(crate) fn unsent(mut self) -> Vec<Chunk> {
        debug_assert_eq!(self.in_flight(), 0);
        std::iter::from_fn(|| self.queue.pop()).collect()
    }
}
