//! Tasks: futures in numbered slots, and what wakes them.

use std::any::Any;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use ringport_engine::prefetch;

use super::runtime::{Interest, Runtime};
use crate::remote::Letter;
use crate::worker::Mailbox;

/// A future that a worker runs.
pub(super) type BoxFuture = Pin<Box<dyn Future<Output = ()>>>;

/// Which task: a slot and how many tasks it held before, so that a stale wake reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    slot: u32,
    generation: u32,
}

/// What other threads have woken, for one worker.
pub(crate) struct Woken {
    tasks: Mutex<VecDeque<TaskId>>,
    /// Whether `tasks` may hold something; read once a turn.
    any: AtomicBool,
    mailbox: Arc<Mailbox<Letter>>,
}

impl Woken {
    pub(super) fn new(mailbox: Arc<Mailbox<Letter>>) -> Self {
        Self { tasks: Mutex::default(), any: AtomicBool::new(false), mailbox }
    }

    /// Notes a wake and sees to it that the worker looks.
    ///
    /// Each task is in the list at most once, so that the list is bounded by the number of tasks. The letter only ends the
    /// worker's sleep: a full mailbox refuses it, but then the worker is awake and looks here after it has read its
    /// letters.
    fn push(&self, task: TaskId) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push_back(task);
        if !self.any.swap(true, Ordering::SeqCst) {
            let _ = self.mailbox.push(Letter::Wake);
        }
    }

    /// Moves what was woken behind `ready`.
    pub(super) fn collect(&self, ready: &mut VecDeque<TaskId>) {
        if self.any.load(Ordering::SeqCst) {
            self.any.store(false, Ordering::SeqCst);
            ready.append(&mut self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    pub(super) fn is_any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }
}

/// What became of something that was to be started on a worker.
#[cfg(feature = "hyper")]
pub(super) enum Started {
    Yes,
    /// The mailbox is full for now.
    Full,
    /// The worker has ended.
    Gone,
}

#[cfg(feature = "hyper")]
impl Woken {
    /// Has the worker do something, from any thread.
    pub(super) fn start(&self, what: impl FnOnce() + Send + 'static) -> Started {
        match self.mailbox.push(Letter::Start(Box::new(what))) {
            Ok(()) => Started::Yes,
            Err(_) if self.mailbox.is_closed() => Started::Gone,
            Err(_) => Started::Full,
        }
    }
}

/// What a task's waker points to.
pub(super) struct TaskWaker {
    pub(super) woken: Arc<Woken>,
    id: TaskId,
    /// The task is in a list of those to be polled.
    pub(super) queued: AtomicBool,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::AcqRel) && !Runtime::wake_here(&self.woken, self.id) {
            self.woken.push(self.id);
        }
    }
}

/// What a poll needs, taken out of the slot while it lasts.
pub(super) struct Taken {
    pub(super) future: BoxFuture,
    pub(super) waker: Waker,
}

struct Slot {
    generation: u32,
    /// To be dropped when the poll that runs returns.
    cancelled: bool,
    task: Option<Task>,
}

struct Task {
    /// `None` while it is being polled.
    taken: Option<Taken>,
    shared: Arc<TaskWaker>,
}

/// All tasks of a worker.
#[derive(Default)]
pub(super) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Tasks {
    pub(super) fn insert(&mut self, future: BoxFuture, woken: &Arc<Woken>) -> TaskId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, cancelled: false, task: None });
            self.slots.len() as u32 - 1
        });
        let entry = &mut self.slots[slot as usize];
        let id = TaskId { slot, generation: entry.generation };
        let shared = Arc::new(TaskWaker { woken: Arc::clone(woken), id, queued: AtomicBool::new(false) });
        let taken = Some(Taken { future, waker: Waker::from(Arc::clone(&shared)) });
        entry.task = Some(Task { taken, shared });
        entry.cancelled = false;
        id
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn get(&mut self, id: TaskId) -> Option<&mut Task> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.task.as_mut() } else { None }
    }

    /// Whether it is newly queued: not gone, and not in a list already.
    pub(super) fn queue(&mut self, id: TaskId) -> bool {
        self.get(id).is_some_and(|task| !task.shared.queued.swap(true, Ordering::AcqRel))
    }

    /// Whether the entry of a list still stands: it does not once the task was polled for another reason.
    pub(super) fn is_queued(&mut self, id: TaskId) -> bool {
        self.get(id).is_some_and(|task| task.shared.queued.load(Ordering::Acquire))
    }

    /// Has the processor fetch what is noted of a task.
    #[inline]
    pub(super) fn fetch_place(&self, id: TaskId) {
        self.slots.get(id.slot as usize).into_iter().for_each(prefetch);
    }

    /// The same of its future and of what its waker points to.
    #[inline]
    pub(super) fn fetch_future(&self, id: TaskId) {
        if let Some(task) = self.slots.get(id.slot as usize).and_then(|slot| slot.task.as_ref()) {
            prefetch(&*task.shared);
            task.taken.iter().for_each(|taken| prefetch(&*taken.future));
        }
    }

    /// Takes the future out to be polled. Wakes that come from now on queue the task again.
    pub(super) fn take(&mut self, id: TaskId) -> Option<Taken> {
        let task = self.get(id)?;
        let taken = task.taken.take()?;
        // Mostly an event polls a task that nobody has woken, and an exchange costs more than a look. A wake that comes
        // between the two is in a list and stays there.
        if task.shared.queued.load(Ordering::Acquire) {
            task.shared.queued.swap(false, Ordering::AcqRel);
        }
        Some(taken)
    }

    /// Puts the future back, unless the task was cancelled meanwhile: then it comes back, to be dropped.
    pub(super) fn put_back(&mut self, id: TaskId, taken: Taken) -> Option<Taken> {
        let slot = &mut self.slots[id.slot as usize];
        if !slot.cancelled
            && slot.generation == id.generation
            && let Some(task) = &mut slot.task
        {
            task.taken = Some(taken);
            return None;
        }
        self.remove(id);
        Some(taken)
    }

    pub(super) fn remove(&mut self, id: TaskId) -> Option<Taken> {
        self.get(id)?;
        let slot = &mut self.slots[id.slot as usize];
        let task = slot.task.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        task.taken
    }

    /// Takes a task away. One that is being polled goes when the poll returns.
    pub(super) fn cancel(&mut self, id: TaskId) -> Option<Taken> {
        let task = self.get(id)?;
        if task.taken.is_none() {
            self.slots[id.slot as usize].cancelled = true;
            return None;
        }
        self.remove(id)
    }

    pub(super) fn ids(&self) -> Vec<TaskId> {
        let used = self.slots.iter().enumerate().filter(|(_, slot)| slot.task.is_some());
        used.map(|(slot, entry)| TaskId { slot: slot as u32, generation: entry.generation }).collect()
    }
}

/// Why a task has no result: it was aborted, its worker ended, or it panicked.
pub struct JoinError {
    /// What it panicked with. In a mutex, so that the error is `Sync`.
    payload: Option<Mutex<Box<dyn Any + Send>>>,
}

impl JoinError {
    pub(crate) const CANCELLED: Self = Self { payload: None };

    fn panicked(payload: Box<dyn Any + Send>) -> Self {
        Self { payload: Some(Mutex::new(payload)) }
    }

    /// Whether the task panicked.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.payload.is_some()
    }

    /// What the task panicked with, for example to go on panicking with.
    #[must_use]
    pub fn into_panic(self) -> Option<Box<dyn Any + Send>> {
        self.payload.map(|payload| payload.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinError").field("panic", &self.is_panic()).finish()
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_panic() { "the task panicked" } else { "the task was cancelled" })
    }
}

impl From<JoinError> for io::Error {
    fn from(error: JoinError) -> Self {
        Self::other(error)
    }
}

impl std::error::Error for JoinError {}

/// Where a task leaves its result.
struct Joint<T> {
    result: Option<Result<T, JoinError>>,
    waiting: Interest,
}

/// The result of a spawned task, as a future. Dropping it lets the task go on by itself.
///
/// # Cancel safety
///
/// Awaiting a `&mut JoinHandle` and dropping that loses nothing: the result stays until it is taken.
pub struct JoinHandle<T> {
    runtime: Rc<Runtime>,
    id: TaskId,
    joint: Rc<RefCell<Joint<T>>>,
}

impl<T> JoinHandle<T> {
    /// Drops the task's future, at once or when the poll that runs returns. Nothing happens if it has ended.
    pub fn abort(&self) {
        self.runtime.cancel(self.id);
    }

    /// Whether the task has ended, in whatever way.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.joint.borrow().result.is_some()
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = Result<T, JoinError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut joint = self.joint.borrow_mut();
        if let Some(result) = joint.result.take() {
            return Poll::Ready(result);
        }
        self.runtime.register(&mut joint.waiting, cx);
        Poll::Pending
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinHandle").field("task", &self.id).finish()
    }
}

/// Leaves the result, also when the task is dropped before it has one.
struct Leave<T> {
    runtime: Rc<Runtime>,
    joint: Rc<RefCell<Joint<T>>>,
}

impl<T> Leave<T> {
    fn leave(&self, result: Result<T, JoinError>) {
        let mut joint = self.joint.borrow_mut();
        joint.result = Some(result);
        let waiting = joint.waiting.take();
        drop(joint);
        self.runtime.notify(waiting);
    }
}

impl<T> Drop for Leave<T> {
    fn drop(&mut self) {
        if Rc::strong_count(&self.joint) > 1 && self.joint.borrow().result.is_none() {
            self.leave(Err(JoinError::CANCELLED));
        }
    }
}

/// A task that only tidies up, as long as it lives.
struct Background(Rc<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.background.set(self.0.background.get() - 1);
    }
}

/// Runs `future` as a task for whose end no worker waits.
pub(super) fn spawn_background(runtime: &Rc<Runtime>, future: impl Future<Output = ()> + 'static) {
    runtime.background.set(runtime.background.get() + 1);
    let background = Background(Rc::clone(runtime));
    runtime.start(Box::pin(async move {
        future.await;
        drop(background);
    }));
}

/// Runs `future` as a task of its own.
pub(super) fn spawn_on<T: 'static>(runtime: &Rc<Runtime>, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    let joint = Rc::new(RefCell::new(Joint { result: None, waiting: Interest::None }));
    let leave = Leave { runtime: Rc::clone(runtime), joint: Rc::clone(&joint) };
    let id = runtime.start(Box::pin(async move {
        let mut future = pin!(future);
        let polled = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(payload) => Poll::Ready(Err(payload)),
        });
        match polled.await {
            Ok(result) => leave.leave(Ok(result)),
            Err(payload) => {
                leave.leave(Err(JoinError::panicked(payload)));
                // What the future held is dropped by unwinding, so that streams can tell.
                resume_unwind(Box::new(()));
            }
        }
    }));
    JoinHandle { runtime: Rc::clone(runtime), id, joint }
}
