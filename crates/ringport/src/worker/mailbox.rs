//! Messages from other threads to a worker, and the one doorbell that ends its sleep.
//!
//! A doorbell is a system call, and a worker under load looks into its mailbox every turn anyway. So a sender rings
//! only if the worker said that it sleeps, and only the first sender after that does:
//!
//! ```text
//!  sender                              worker
//!  push the message                    sleeping = true
//!  ── fence ──                         ── fence ──
//!  sleeping? then take it and ring     any message? then stay awake
//! ```
//!
//! Each side writes, then reads what the other wrote. The two fences (both sequentially consistent) make it impossible
//! that both read the old state: a message is seen before the sleep, or its sender sees the sleeper. Taking the
//! flag is a swap, so that of many senders one rings. The worker swaps too, where a store would do by the letter of the
//! C++ memory model: it costs next to nothing beside a sleep, and orders each use of the flag after the one before it
//! without an argument about modification orders (one that loom, for example, does not follow).
//!
//! The model at the end of the file checks all this in every order of events with up to three preemptions, and every
//! value that a load may return then.

use std::fmt;
use std::sync::OnceLock;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

#[cfg(not(loom))]
use crossbeam_queue::ArrayQueue as Queue;
#[cfg(loom)]
use model::Queue;

/// A bounded mailbox that many threads fill and one worker empties. Shared by an `Arc`.
pub(crate) struct Mailbox<T> {
    messages: Queue<T>,
    /// The worker sleeps or is about to, and nobody has rung yet.
    sleeping: AtomicBool,
    closed: AtomicBool,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    doorbells: AtomicU64,
}

impl<T> Mailbox<T> {
    /// A mailbox for up to `capacity` messages (at least one). Messages may be pushed before it is bound.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            messages: Queue::new(capacity.max(1)),
            sleeping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            bell: OnceLock::new(),
            doorbells: AtomicU64::new(0),
        }
    }

    /// Puts a message into the mailbox, and wakes the worker if it sleeps.
    ///
    /// A message that is accepted is handled by the worker, or dropped when the worker ends before it got to it.
    ///
    /// # Errors
    ///
    /// Hands the message back if the mailbox is full or closed.
    pub(crate) fn push(&self, message: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(message);
        }
        self.messages.push(message)?;
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            self.ring();
        }
        if self.closed.load(Ordering::Relaxed) {
            // The worker closed the mailbox meanwhile and may have emptied it before the message was in it.
            self.empty();
        }
        Ok(())
    }

    /// Puts a message into the mailbox as soon as there is room. For threads that may wait. When the worker is gone the
    /// message is dropped.
    pub(crate) fn push_patiently(&self, mut message: T) {
        while let Err(back) = self.push(message) {
            if self.is_closed() {
                return;
            }
            message = back;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Whether the worker is gone, so that nothing will be accepted any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// How often the doorbell was rung.
    pub(crate) fn doorbells(&self) -> u64 {
        self.doorbells.load(Ordering::Relaxed)
    }

    /// Says how to end the worker's sleep. The worker calls this once, before it sleeps for the first time.
    pub(crate) fn bind(&self, bell: impl Fn() + Send + Sync + 'static) {
        let first = self.bell.set(Box::new(bell)).is_ok();
        debug_assert!(first, "a mailbox belongs to one worker");
    }

    /// Takes the oldest message. For the worker.
    pub(crate) fn pop(&self) -> Option<T> {
        self.messages.pop()
    }

    /// Announces that the worker is about to sleep. If this returns false there are messages, and it must not.
    ///
    /// Until the next [`Mailbox::awake`] the doorbell is rung at most once.
    pub(crate) fn prepare_sleep(&self) -> bool {
        debug_assert!(self.bell.get().is_some(), "a worker that sleeps without a bell sleeps for good");
        if !self.messages.is_empty() {
            return false;
        }
        self.sleeping.swap(true, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        let sleep = self.messages.is_empty();
        if !sleep {
            self.awake();
        }
        sleep
    }

    /// Says that the worker is awake, whatever woke it, and returns whether nobody has rung.
    pub(crate) fn awake(&self) -> bool {
        self.sleeping.swap(false, Ordering::AcqRel)
    }

    /// Accepts nothing from now on and drops what is left. For the worker, at its end.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.empty();
    }

    fn empty(&self) {
        while self.messages.pop().is_some() {}
    }

    /// Wakes the worker for something that is not in the mailbox.
    pub(crate) fn wake(&self) {
        self.ring();
    }

    #[cold]
    fn ring(&self) {
        self.doorbells.fetch_add(1, Ordering::Relaxed);
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }
}

impl<T> fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mailbox")
            .field("closed", &self.is_closed())
            .field("doorbells", &self.doorbells())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::mpsc;
    use std::sync::{Arc, Weak};
    use std::time::Duration;

    use super::*;

    /// A mailbox, and where its bell is heard.
    fn bound<T>(capacity: usize) -> (Arc<Mailbox<T>>, mpsc::Receiver<()>) {
        let mailbox = Arc::new(Mailbox::new(capacity));
        let (bell, heard) = mpsc::channel();
        mailbox.bind(move || bell.send(()).unwrap_or_default());
        (mailbox, heard)
    }

    #[test]
    fn hands_back_what_does_not_fit() {
        let mailbox = Mailbox::new(2);
        assert_eq!([mailbox.push(1), mailbox.push(2), mailbox.push(3)], [Ok(()), Ok(()), Err(3)]);
        assert_eq!([mailbox.pop(), mailbox.pop(), mailbox.pop()], [Some(1), Some(2), None]);
    }

    #[test]
    fn rings_once_for_many_messages_and_only_while_asleep() {
        let (mailbox, heard) = bound(8);
        mailbox.push(1).unwrap();
        assert_eq!(mailbox.doorbells(), 0, "nobody sleeps");
        assert!(!mailbox.prepare_sleep(), "there is a message");
        mailbox.pop();
        assert!(mailbox.prepare_sleep());
        mailbox.push(2).unwrap();
        mailbox.push(3).unwrap();
        assert_eq!((mailbox.doorbells(), heard.try_iter().count()), (1, 1));
        mailbox.awake();
        mailbox.push(4).unwrap();
        assert_eq!(mailbox.doorbells(), 1, "the worker is awake");
    }

    #[test]
    fn a_closed_mailbox_takes_nothing_and_keeps_nothing() {
        let mailbox = Mailbox::new(8);
        let message = Arc::new(());
        mailbox.push(Arc::clone(&message)).unwrap();
        mailbox.close();
        assert!(mailbox.is_closed());
        assert_eq!(Weak::strong_count(&Arc::downgrade(&message)), 1, "what was left is dropped");
        assert!(mailbox.push(message).is_err());
    }

    #[test]
    fn no_message_is_lost_or_slept_through_under_load() {
        const SENDERS: u64 = 3;
        const MESSAGES: u64 = 20_000;
        let (mailbox, heard) = bound(64);
        let mut last = [None; SENDERS as usize];
        let (mut received, mut sleeps) = (0, 0);
        std::thread::scope(|scope| {
            for sender in 0..SENDERS {
                let mailbox = &mailbox;
                scope.spawn(move || {
                    for number in 0..MESSAGES {
                        let mut message = (sender, number);
                        while let Err(back) = mailbox.push(message) {
                            message = back;
                            std::thread::yield_now();
                        }
                    }
                });
            }
            while received < SENDERS * MESSAGES {
                while let Some((sender, number)) = mailbox.pop() {
                    assert!(last[sender as usize] < Some(number), "in the order of each sender");
                    last[sender as usize] = Some(number);
                    received += 1;
                }
                sleeps += 1;
                if received < SENDERS * MESSAGES && mailbox.prepare_sleep() {
                    heard.recv_timeout(Duration::from_secs(20)).expect("a message came, and so did the bell");
                    mailbox.awake();
                }
            }
        });
        assert!(mailbox.doorbells() <= sleeps);
    }
}

/// What the model below needs. Run it with
/// `RUSTFLAGS="--cfg loom" cargo test -p ringport --lib mailbox --release`.
#[cfg(loom)]
mod model {
    use std::collections::VecDeque;

    use loom::sync::Mutex;
    use loom::sync::atomic::{AtomicUsize, Ordering};

    /// Stands for the lock-free queue, of which it promises no more than a message and its order: `is_empty` reads a
    /// relaxed counter, so that the fences of the mailbox have to do the work.
    pub(super) struct Queue<T> {
        messages: Mutex<VecDeque<T>>,
        len: AtomicUsize,
        capacity: usize,
    }

    impl<T> Queue<T> {
        pub(super) fn new(capacity: usize) -> Self {
            Self { messages: Mutex::new(VecDeque::new()), len: AtomicUsize::new(0), capacity }
        }

        pub(super) fn push(&self, message: T) -> Result<(), T> {
            let mut messages = self.messages.lock().unwrap();
            if messages.len() == self.capacity {
                return Err(message);
            }
            messages.push_back(message);
            self.len.store(messages.len(), Ordering::Relaxed);
            Ok(())
        }

        pub(super) fn pop(&self) -> Option<T> {
            let mut messages = self.messages.lock().unwrap();
            let message = messages.pop_front();
            self.len.store(messages.len(), Ordering::Relaxed);
            message
        }

        pub(super) fn is_empty(&self) -> bool {
            self.len.load(Ordering::Relaxed) == 0
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::*;

    /// Two senders with one message each. A lost wake-up is a deadlock, which loom reports.
    ///
    /// Up to three preemptions: without a bound the loop of the worker has too many orders to try them all.
    #[test]
    fn mailbox_loses_no_wake_up_and_rings_once_a_sleep() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let mailbox = Arc::new(Mailbox::new(2));
            let bell = Arc::new(Notify::new());
            let ringer = Arc::clone(&bell);
            mailbox.bind(move || ringer.notify());
            let senders = [1, 2].map(|message| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(message).unwrap())
            });
            let (mut sum, mut sleeps) = (0, 0);
            while sum < 3 {
                while let Some(message) = mailbox.pop() {
                    sum += message;
                }
                if sum < 3 {
                    sleeps += 1;
                    if mailbox.prepare_sleep() {
                        bell.wait();
                        mailbox.awake();
                    }
                }
            }
            for sender in senders {
                sender.join().unwrap();
            }
            assert!(mailbox.doorbells() <= sleeps, "{} doorbells for {sleeps} sleeps", mailbox.doorbells());
        });
    }

    /// Two senders while the worker sleeps throughout: the first of them rings, the other does not.
    #[test]
    fn mailbox_rings_exactly_once_for_two_senders() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new(2));
            mailbox.bind(|| {});
            assert!(mailbox.prepare_sleep());
            let senders = [1, 2].map(|message| {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(message).unwrap())
            });
            for sender in senders {
                sender.join().unwrap();
            }
            assert_eq!(mailbox.doorbells(), 1);
        });
    }

    /// A message that races with the end of the worker comes back or is dropped, but does not stay behind.
    #[test]
    fn mailbox_keeps_nothing_when_closed() {
        loom::model(|| {
            let mailbox = Arc::new(Mailbox::new(2));
            let sender = {
                let mailbox = Arc::clone(&mailbox);
                thread::spawn(move || mailbox.push(1))
            };
            mailbox.close();
            let pushed = sender.join().unwrap();
            assert!(pushed == Ok(()) || pushed == Err(1));
            assert_eq!(mailbox.pop(), None);
        });
    }
}
