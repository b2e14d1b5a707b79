//! [`Bell`]: what reaches the part of a pool that lies on a worker, from connections and from other threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use super::books::IdleKey;
use super::options::ConnectionPoolStats;

/// Rings when something happened on an idle connection, or the pool is closed. The keeper listens.
#[derive(Default)]
pub(super) struct Bell {
    /// Idle connections on which something happened; each rings at most once for each time that it is watched.
    rung: Mutex<Vec<IdleKey>>,
    keeper: Mutex<Option<Waker>>,
    closed: AtomicBool,
    stats: Mutex<ConnectionPoolStats>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bell {
    pub(super) fn listen(&self, waker: &Waker) {
        let mut keeper = lock(&self.keeper);
        if !keeper.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *keeper = Some(waker.clone());
        }
    }

    pub(super) fn take_rung(&self) -> Vec<IdleKey> {
        std::mem::take(&mut *lock(&self.rung))
    }

    /// The pool ends: nothing is idle any more, and nobody gets anything.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub(super) fn publish(&self, stats: ConnectionPoolStats) {
        *lock(&self.stats) = stats;
    }

    pub(super) fn stats(&self) -> ConnectionPoolStats {
        *lock(&self.stats)
    }

    fn wake(&self) {
        let keeper = lock(&self.keeper).clone();
        if let Some(waker) = keeper {
            waker.wake();
        }
    }
}

/// The waker of one idle connection.
pub(super) struct Watch {
    bell: Arc<Bell>,
    key: IdleKey,
}

impl Watch {
    pub(super) fn waker(bell: &Arc<Bell>, key: IdleKey) -> Waker {
        Waker::from(Arc::new(Self { bell: Arc::clone(bell), key }))
    }
}

impl Wake for Watch {
    fn wake(self: Arc<Self>) {
        lock(&self.bell.rung).push(self.key);
        self.bell.wake();
    }
}
