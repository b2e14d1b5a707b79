//! How a slot that another thread gives back ends the sleep of an engine that waits for one.
//!
//! An engine that found no slot says so before it sleeps; whoever gives a slot back and finds that said rings. The danger
//! is a slot that comes back between the engine's last look and its sleep. So the number of slots that came back and
//! what the engine said lie in one word, and both sides change it by one atomic step: whichever comes second sees the
//! first. Nobody rings while the engine is awake, and giving back costs the one step that it did before.
//!
//! ```text
//! engine                                    another thread
//!   hungry: word |= HUNGRY                    push the slot
//!     slots in the old word? do not sleep     word += 1
//!   sleep ◄───────────────────────────────────── HUNGRY in the old word? take it away and ring
//! ```

#[cfg(loom)]
use loom::sync::Mutex;
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};
#[cfg(not(loom))]
use std::sync::Mutex;
use std::sync::PoisonError;
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

/// The engine sleeps, or is about to, and wants to know of the next slot. A pool has fewer slots than this.
const HUNGRY: u32 = 1 << 31;

/// What a pool's thread and all others know about slots that came back, and the bell `B` of an engine that waits for one.
pub(super) struct Shortage<B> {
    /// How many slots came back, and [`HUNGRY`].
    word: AtomicU32,
    bell: Mutex<Option<B>>,
}

impl<B: Clone> Shortage<B> {
    pub(super) fn new() -> Self {
        Self { word: AtomicU32::new(0), bell: Mutex::new(None) }
    }

    /// Whether slots came back that the pool has not taken in yet. After `true` they can be found.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.word.load(Ordering::Acquire) & !HUNGRY > 0
    }

    /// The pool took one in.
    pub(super) fn taken_in(&self) {
        self.word.fetch_sub(1, Ordering::AcqRel);
    }

    /// A slot came back, and can be found already. Returns the bell that is to be rung, if any.
    pub(super) fn came_back(&self) -> Option<B> {
        let old = self.word.fetch_add(1, Ordering::AcqRel);
        if old & HUNGRY == 0 { None } else { self.bell() }
    }

    /// Of all who found that the engine is hungry one gets the bell.
    #[cold]
    fn bell(&self) -> Option<B> {
        let old = self.word.fetch_and(!HUNGRY, Ordering::AcqRel);
        if old & HUNGRY == 0 {
            return None;
        }
        self.bell.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The engine is about to sleep and needs a slot: from now on one that comes back rings `bell`. Returns `false` if
    /// one has come back already; then the engine must not sleep.
    #[must_use]
    pub(super) fn begin(&self, bell: &B) -> bool {
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = Some(bell.clone());
        let old = self.word.fetch_or(HUNGRY, Ordering::AcqRel);
        let sleeps = old & !HUNGRY == 0;
        if !sleeps {
            self.end();
        }
        sleeps
    }

    /// The engine is awake, for whatever reason, and nobody needs to ring.
    pub(super) fn end(&self) {
        self.word.fetch_and(!HUNGRY, Ordering::AcqRel);
        *self.bell.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn only_the_first_slot_rings_and_only_while_somebody_sleeps() {
        let shortage = Shortage::new();
        let bell = Arc::new(());
        assert!(shortage.came_back().is_none(), "nobody waits");
        assert!(!shortage.begin(&bell), "a slot is there");
        shortage.taken_in();
        assert!(shortage.begin(&bell));
        assert!(!shortage.is_over());
        assert!(shortage.came_back().is_some());
        assert!(shortage.came_back().is_none(), "it was rung already");
        assert!(shortage.is_over());
        shortage.end();
        assert_eq!(Arc::strong_count(&bell), 1, "the bell is kept no longer than it is needed");
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p ringport-engine --lib shortage:: --release`.
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::sync::{Arc, Notify};
    use loom::thread;

    use super::*;

    /// Two threads give back one slot each, and the engine sleeps whenever it may until it has both. A lost bell is a
    /// deadlock, which loom reports.
    ///
    /// Up to two preemptions: without a bound the loop of the engine has too many orders to try them all.
    #[test]
    fn shortage_loses_no_bell() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let shortage = Arc::new(Shortage::<Arc<Notify>>::new());
            let bell = Arc::new(Notify::new());
            let threads = [1, 2].map(|_| {
                let shortage = Arc::clone(&shortage);
                thread::spawn(move || {
                    if let Some(bell) = shortage.came_back() {
                        bell.notify();
                    }
                })
            });
            let mut slots = 0;
            while slots < 2 {
                while shortage.is_over() {
                    shortage.taken_in();
                    slots += 1;
                }
                if slots < 2 && shortage.begin(&bell) {
                    bell.wait();
                    shortage.end();
                }
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    /// While the engine sleeps one of two rings, and not both.
    #[test]
    fn shortage_rings_once() {
        loom::model(|| {
            let shortage = Arc::new(Shortage::new());
            assert!(shortage.begin(&()));
            let threads = [1, 2].map(|_| {
                let shortage = Arc::clone(&shortage);
                thread::spawn(move || shortage.came_back().is_some())
            });
            let rung = threads.map(|thread| thread.join().unwrap());
            assert!(rung[0] != rung[1], "{rung:?}");
        });
    }
}
