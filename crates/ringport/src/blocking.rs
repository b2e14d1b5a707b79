//! Work that blocks, moved off the workers: a few threads, started when they are needed, with a bounded queue.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Jobs that may wait for a thread. Beyond, they are handed back.
const QUEUE_MAX: usize = 1024;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// Too many jobs wait for a thread already. The job is handed back.
pub struct QueueFull<F>(pub F);

impl<F> fmt::Debug for QueueFull<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QueueFull")
    }
}

impl<F> fmt::Display for QueueFull<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{QUEUE_MAX} blocking jobs wait for a thread already; try again later, or allow more threads")
    }
}

impl<F> std::error::Error for QueueFull<F> {}

/// The message that comes instead of the result of a job that panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPanicked;

/// What a thread runs.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// The threads of one server or client. They end when this is dropped and they have nothing left to do.
pub(crate) struct Blocking {
    shared: Arc<Shared>,
    threads_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job.
    idle: usize,
    closed: bool,
}

impl Blocking {
    /// Up to `threads_max` threads, none of them started yet.
    pub(crate) fn new(threads_max: usize) -> Arc<Self> {
        Arc::new(Self { shared: Arc::default(), threads_max: threads_max.max(1) })
    }

    /// Runs on one of the threads what `wrap` makes of `job`.
    ///
    /// # Errors
    ///
    /// Hands the job back when too many wait, or when the system has no thread to give.
    pub(crate) fn spawn<F>(&self, job: F, wrap: impl FnOnce(F) -> Job) -> Result<(), QueueFull<F>> {
        let mut state = self.shared.lock();
        let short = state.jobs.len() >= state.idle;
        if short && state.threads < self.threads_max && self.start() {
            state.threads += 1;
        }
        if state.jobs.len() >= QUEUE_MAX || state.threads == 0 {
            return Err(QueueFull(job));
        }
        state.jobs.push_back(wrap(job));
        self.shared.work.notify_one();
        Ok(())
    }

    fn start(&self) -> bool {
        let shared = Arc::clone(&self.shared);
        std::thread::Builder::new().name("ringport-blocking".into()).spawn(move || shared.run()).is_ok()
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.jobs.clear();
        self.shared.work.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a thread.
    fn run(&self) {
        while let Some(job) = self.next() {
            // Who waits for the result is told by the job itself.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// The next job; `None` if the thread is to end.
    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            if state.closed {
                state.threads -= 1;
                return None;
            }
            state.idle += 1;
            let (woken, waited) = self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = woken;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn spawn<F: FnOnce() + Send + 'static>(blocking: &Blocking, job: F) -> Result<(), QueueFull<F>> {
        blocking.spawn(job, |job| Box::new(job))
    }

    #[test]
    fn threads_start_when_needed_and_no_more_than_allowed() {
        let blocking = Blocking::new(2);
        assert_eq!(blocking.shared.lock().threads, 0);
        let (tell, told) = mpsc::channel();
        let mut gates = Vec::new();
        for number in 0..4 {
            let (open, gate) = mpsc::channel::<()>();
            let tell = tell.clone();
            gates.push(open);
            let job = move || {
                gate.recv().expect("the test opens it");
                tell.send(number).expect("the test listens");
            };
            spawn(&blocking, job).expect("there is room");
        }
        assert_eq!(blocking.shared.lock().threads, 2);
        for gate in &gates {
            gate.send(()).expect("somebody waits or will");
        }
        let mut done: Vec<_> = (0..4).map(|_| told.recv_timeout(LIMIT).expect("the job is done")).collect();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
    }

    #[test]
    fn a_full_queue_hands_jobs_back_and_a_panic_costs_no_thread() {
        let blocking = Blocking::new(1);
        let (open, gate) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let started = tell.clone();
        let job = move || {
            started.send(0).expect("the test listens");
            gate.recv().expect("the test opens it");
            std::panic::resume_unwind(Box::new("a panic of the test's"));
        };
        spawn(&blocking, job).expect("there is room");
        told.recv_timeout(LIMIT).expect("it runs, and waits no more in the queue");
        for number in 1..=QUEUE_MAX {
            let tell = tell.clone();
            spawn(&blocking, move || tell.send(number).expect("the test listens")).expect("there is room");
        }
        let QueueFull(job) =
            spawn(&blocking, move || tell.send(9999).expect("the test listens")).expect_err("it is full");
        open.send(()).expect("the job waits");
        for number in 1..=QUEUE_MAX {
            assert_eq!(told.recv_timeout(LIMIT), Ok(number));
        }
        job();
        assert_eq!(told.recv_timeout(LIMIT), Ok(9999));
    }

    #[test]
    fn threads_end_with_their_owner() {
        let blocking = Blocking::new(2);
        let (tell, told) = mpsc::channel();
        spawn(&blocking, move || tell.send(()).expect("the test listens")).expect("there is room");
        told.recv_timeout(LIMIT).expect("it ran");
        let shared = Arc::downgrade(&blocking.shared);
        drop(blocking);
        let start = std::time::Instant::now();
        while shared.strong_count() > 0 {
            assert!(start.elapsed() < LIMIT, "the threads end");
            std::thread::yield_now();
        }
    }
}
