//! What lies between a stream's worker and the threads that hold its [`RemoteStream`](super::remote::RemoteStream).
//!
//! ```text
//!   stream ──► task `inward`  ──► inbox  ──► recv      any thread, any runtime
//!   stream ◄── task `outward` ◄── outbox ◄── send
//! ```
//!
//! Both queues are bounded. A lock is held for a push or a pop and never while anything waits or wakes.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

/// Bytes in a queue above which its filler waits.
const QUEUE_BYTES: usize = 256 * 1024;

/// An error that can be handed out again and again.
#[derive(Clone)]
struct Failure(io::ErrorKind, String);

impl Failure {
    fn error(&self) -> io::Error {
        io::Error::new(self.0, self.1.clone())
    }
}

/// Those who wait for one thing. All are woken, and look again.
#[derive(Default)]
struct Waiting(Vec<Waker>);

impl Waiting {
    fn add(&mut self, cx: &Context<'_>) {
        if !self.0.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.0.push(cx.waker().clone());
        }
    }

    fn take(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.0)
    }
}

#[derive(Default)]
struct State {
    inbox: VecDeque<Bytes>,
    inbox_bytes: usize,
    /// The peer has closed, or something went wrong.
    input_end: Option<Result<(), Failure>>,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    finish: bool,
    flush_asked: u64,
    flush_done: u64,
    output_end: Option<Failure>,
    abort: bool,
    /// Nobody holds the remote side any more.
    abandoned: bool,
    readers: Waiting,
    writers: Waiting,
    inward: Waiting,
    outward: Waiting,
}

/// What the task that sends is to do next.
pub(super) enum Command {
    Send(Bytes),
    Flush(u64),
    /// Send a FIN, and wait for what else.
    Finish,
    Abort,
    /// Everything is done.
    End,
}

#[derive(Default)]
pub(super) struct Bridge(Mutex<State>);

impl Bridge {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then wakes whom the change concerns.
    fn change(&self, change: impl FnOnce(&mut State) -> Vec<Waker>) {
        let waiting = change(&mut self.lock());
        waiting.into_iter().for_each(Waker::wake);
    }

    // The worker's side.

    /// Waits for room in the inbox; ready with `false` when nobody reads it any more.
    pub(super) fn poll_inbox_room(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut state = self.lock();
        if state.abandoned {
            return Poll::Ready(false);
        }
        if state.inbox_bytes <= QUEUE_BYTES {
            return Poll::Ready(true);
        }
        state.inward.add(cx);
        Poll::Pending
    }

    pub(super) fn deliver(&self, data: Bytes) {
        self.change(|state| {
            state.inbox_bytes += data.len();
            state.inbox.push_back(data);
            state.readers.take()
        });
    }

    /// Nothing more will arrive.
    pub(super) fn end_input(&self, outcome: io::Result<()>) {
        self.change(|state| {
            let outcome = outcome.map_err(|error| Failure(error.kind(), error.to_string()));
            state.input_end.get_or_insert(outcome);
            state.readers.take()
        });
    }

    /// Nothing more can be sent.
    pub(super) fn end_output(&self, error: &io::Error) {
        self.change(|state| {
            state.output_end.get_or_insert(Failure(error.kind(), error.to_string()));
            state.outbox.clear();
            state.writers.take()
        });
    }

    /// `finished` says whether the FIN was sent already.
    pub(super) fn poll_command(&self, cx: &Context<'_>, finished: bool) -> Poll<Command> {
        let mut state = self.lock();
        if state.abort {
            return Poll::Ready(Command::Abort);
        }
        if state.output_end.is_some() {
            state.outward.add(cx);
            return if state.abandoned { Poll::Ready(Command::End) } else { Poll::Pending };
        }
        if let Some(data) = state.outbox.pop_front() {
            state.outbox_bytes -= data.len();
            let waiting = if state.outbox_bytes <= QUEUE_BYTES { state.writers.take() } else { Vec::new() };
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
            return Poll::Ready(Command::Send(data));
        }
        if state.finish && !finished {
            return Poll::Ready(Command::Finish);
        }
        if state.flush_asked > state.flush_done {
            return Poll::Ready(Command::Flush(state.flush_asked));
        }
        if state.abandoned {
            return Poll::Ready(Command::End);
        }
        state.outward.add(cx);
        Poll::Pending
    }

    /// Whether everything is to end at once; wakes the caller when that changes.
    pub(super) fn is_aborted(&self, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        state.outward.add(cx);
        state.abort
    }

    pub(super) fn flushed(&self, number: u64) {
        self.change(|state| {
            state.flush_done = state.flush_done.max(number);
            state.writers.take()
        });
    }

    // The remote side.

    pub(super) fn poll_recv(&self, cx: &Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        let mut state = self.lock();
        if let Some(data) = state.inbox.pop_front() {
            state.inbox_bytes -= data.len();
            let waiting = if state.inbox_bytes <= QUEUE_BYTES / 2 { state.inward.take() } else { Vec::new() };
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(Some(data)));
        }
        match &state.input_end {
            Some(Ok(())) => Poll::Ready(Ok(None)),
            Some(Err(failure)) => Poll::Ready(Err(failure.error())),
            None => {
                state.readers.add(cx);
                Poll::Pending
            }
        }
    }

    /// Puts back what was not used of the first piece.
    pub(super) fn put_back(&self, data: Bytes) {
        let mut state = self.lock();
        state.inbox_bytes += data.len();
        state.inbox.push_front(data);
    }

    pub(super) fn poll_send(&self, cx: &Context<'_>, data: &mut Option<Bytes>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if let Some(failure) = &state.output_end {
            return Poll::Ready(Err(failure.error()));
        }
        if state.finish {
            let text = "this side has said that it sends no more";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, text)));
        }
        if state.outbox_bytes > QUEUE_BYTES {
            state.writers.add(cx);
            return Poll::Pending;
        }
        if let Some(data) = data.take() {
            state.outbox_bytes += data.len();
            state.outbox.push_back(data);
        }
        let waiting = state.outward.take();
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        Poll::Ready(Ok(()))
    }

    pub(super) fn ask_flush(&self) -> u64 {
        let mut number = 0;
        self.change(|state| {
            state.flush_asked += 1;
            number = state.flush_asked;
            state.outward.take()
        });
        number
    }

    pub(super) fn poll_flushed(&self, number: u64, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.flush_done >= number {
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = &state.output_end {
            return Poll::Ready(Err(failure.error()));
        }
        state.writers.add(cx);
        Poll::Pending
    }

    pub(super) fn finish(&self) {
        self.change(|state| {
            state.finish = true;
            state.outward.take()
        });
    }

    pub(super) fn abort(&self) {
        self.change(|state| {
            state.abort = true;
            state.outward.take()
        });
    }

    pub(super) fn abandon(&self) {
        self.change(|state| {
            state.abandoned = true;
            state.inbox.clear();
            let mut waiting = state.outward.take();
            waiting.extend(state.inward.take());
            waiting
        });
    }
}

/// What a remote future waits for: one value from a worker.
pub(super) struct Answer<T>(Mutex<(Option<T>, Option<Waker>, bool)>);

/// Gives the answer, or says at its end that there is none.
pub(super) struct Answering<T>(Arc<Answer<T>>);

impl<T> Answer<T> {
    pub(super) fn new() -> (Arc<Self>, Answering<T>) {
        let answer = Arc::new(Self(Mutex::new((None, None, false))));
        let answering = Answering(Arc::clone(&answer));
        (answer, answering)
    }

    fn lock(&self) -> MutexGuard<'_, (Option<T>, Option<Waker>, bool)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready with `None` when nobody will answer.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<Option<T>> {
        let mut state = self.lock();
        match state.0.take() {
            Some(value) => Poll::Ready(Some(value)),
            None if state.2 => Poll::Ready(None),
            None => {
                state.1 = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl<T> Answering<T> {
    pub(super) fn give(self, value: T) {
        self.0.lock().0 = Some(value);
    }
}

impl<T> Drop for Answering<T> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.2 = true;
            state.1.take()
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}
