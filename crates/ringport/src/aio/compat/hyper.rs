//! hyper 1's `rt` traits: [`Stream`] reads and writes, [`TaskExecutor`] spawns, [`TaskTimer`] sleeps.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::{Executor, Read, ReadBufCursor, Sleep, Timer, Write};

use crate::aio::Stream;
use crate::aio::runtime::Runtime;
use crate::aio::task::{Started, Woken};
use crate::aio::time::SleepId;

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut to: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let lent = self.poll_lend(cx, |data| {
            let count = data.len().min(to.remaining());
            to.put_slice(&data[..count]);
            count
        });
        lent.map_ok(|_| ())
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Stream::poll_write(&mut self, cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Stream::poll_write_vectored(&mut self, cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Waits only while the queue is above its high mark. Below, what was written leaves as soon as the task waits for
    /// something else, and to be woken for that would cost each answer a second poll. [`Write::poll_shutdown`] waits for all.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_below_mark(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Stream::poll_shutdown(&mut self, cx)
    }
}

/// Spawns on the worker of whoever spawns.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskExecutor;

impl<F: Future<Output: 'static> + 'static> Executor<F> for TaskExecutor {
    fn execute(&self, future: F) {
        drop(crate::aio::spawn(future));
    }
}

/// Sleeps on the worker of whoever sleeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct TaskTimer;

impl Timer for TaskTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(self.now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        let home = Runtime::with("sleep_until", |runtime| runtime.home());
        Box::pin(Sleeping { home, until: deadline, id: None, elsewhere: None })
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<Sleeping>() {
            Some(sleeping) => sleeping.get_mut().reset(deadline),
            None => *sleep = self.sleep_until(deadline),
        }
    }

    fn now(&self) -> Instant {
        crate::aio::now()
    }
}

/// A sleep on the wheel of a worker.
///
/// hyper wants its sleeps `Send`, and those of a worker are not. So this holds no more than the number of one, which is
/// good on its worker's thread. Should it be polled on another one, then a task of its worker sleeps for it.
struct Sleeping {
    home: Arc<Woken>,
    until: Instant,
    id: Option<SleepId>,
    elsewhere: Option<Arc<Mutex<Elsewhere>>>,
}

/// What the task that sleeps has in common with who waits for it on another thread.
#[derive(Default)]
struct Elsewhere {
    over: bool,
    waiting: Option<Waker>,
}

impl Sleeping {
    fn reset(&mut self, until: Instant) {
        self.end();
        self.until = until;
    }

    /// Gives up what sleeps. A timer that cannot be reached from here, and the task, find out when they are due.
    fn end(&mut self) {
        self.elsewhere = None;
        let id = &mut self.id;
        Runtime::at_home(&self.home, |runtime| runtime.end_sleep(id));
        *id = None;
    }

    #[cold]
    fn poll_elsewhere(&mut self, cx: &Context<'_>) -> Poll<()> {
        if let Some(shared) = &self.elsewhere {
            let mut state = lock(shared);
            if state.over {
                return Poll::Ready(());
            }
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let shared = Arc::new(Mutex::new(Elsewhere { over: false, waiting: Some(cx.waker().clone()) }));
        let (until, theirs) = (self.until, Arc::downgrade(&shared));
        match self.home.start(move || drop(crate::aio::spawn(sleep_for(until, theirs)))) {
            Started::Yes => self.elsewhere = Some(shared),
            // The worker has more to do than its mailbox holds: asked again until there is room.
            Started::Full => cx.waker().wake_by_ref(),
            Started::Gone => {}
        }
        Poll::Pending
    }
}

fn lock(state: &Mutex<Elsewhere>) -> MutexGuard<'_, Elsewhere> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn sleep_for(deadline: Instant, shared: Weak<Mutex<Elsewhere>>) {
    crate::aio::sleep_until(deadline).await;
    if let Some(shared) = shared.upgrade() {
        let waiting = {
            let mut state = lock(&shared);
            state.over = true;
            state.waiting.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Sleep for Sleeping {}

impl Future for Sleeping {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let (id, until) = (&mut this.id, this.until);
        match Runtime::at_home(&this.home, |runtime| runtime.poll_sleep(id, until, cx)) {
            Some(polled) => polled,
            None => this.poll_elsewhere(cx),
        }
    }
}

impl Drop for Sleeping {
    fn drop(&mut self) {
        self.end();
    }
}
