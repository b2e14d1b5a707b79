//! hyper 1's `rt` traits: [`Stream`] reads and writes, [`TaskExecutor`] spawns, [`TaskTimer`] sleeps.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use hyper::rt::{Executor, Read, ReadBufCursor, Sleep, Timer, Write};

use super::parts::{Sink, write_vectored};
use crate::aio::Stream;

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
        self.sink_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        write_vectored(&mut *self, cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sink_close(cx)
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
        let shared = Arc::new(Mutex::new(State::default()));
        drop(crate::aio::spawn(sleep_for(deadline, Arc::clone(&shared))));
        Box::pin(Sleeping(shared))
    }

    fn now(&self) -> Instant {
        crate::aio::now()
    }
}

/// hyper wants its sleeps `Send`, which those of a worker are not. So a task sleeps, and this waits for the task.
struct Sleeping(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    over: bool,
    waiting: Option<Waker>,
    /// The task that sleeps.
    sleeper: Option<Waker>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn sleep_for(deadline: Instant, shared: Arc<Mutex<State>>) {
    let mut sleep = crate::aio::sleep_until(deadline);
    std::future::poll_fn(|cx| {
        let mut state = lock(&shared);
        if state.over {
            return Poll::Ready(());
        }
        state.sleeper = Some(cx.waker().clone());
        drop(state);
        Pin::new(&mut sleep).poll(cx)
    })
    .await;
    let waiting = {
        let mut state = lock(&shared);
        state.over = true;
        state.waiting.take()
    };
    waiting.into_iter().for_each(Waker::wake);
}

impl Sleep for Sleeping {}

impl Future for Sleeping {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.0);
        if state.over {
            return Poll::Ready(());
        }
        state.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleeping {
    /// Nobody waits any more: the task ends.
    fn drop(&mut self) {
        let sleeper = {
            let mut state = lock(&self.0);
            state.over = true;
            state.sleeper.take()
        };
        sleeper.into_iter().for_each(Waker::wake);
    }
}
