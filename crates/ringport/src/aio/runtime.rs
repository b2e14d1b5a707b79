//! The tasks of one worker, and what they ask of it.
//!
//! A future cannot reach its worker while it is polled. So it leaves what it wants in its stream's cell or in a list
//! here, and the worker carries it out right after the poll (`worker/tasks.rs`), as it does for a handler's callback.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::hint::cold_path;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ringport_engine::engine::sim::Network;
use ringport_engine::{ConnId, ListenerId, Pool, SendQueue, SockAddr, Socket, SocketOptions, prefetch};

use super::cell::{StreamCell, Touched};
use super::connection_pool::Local;
use super::datagram::DatagramCell;
use super::listener::ListenerCell;
use super::task::{BoxFuture, TaskId, Tasks, Woken};
use super::time::Sleeps;
use crate::remote::Remote;
use crate::worker::LISTED_AT_FIRST;

thread_local! {
    /// The runtime whose worker has its turn on this thread.
    static CURRENT: RefCell<Option<Rc<Runtime>>> = const { RefCell::new(None) };
}

/// Who waits for something.
#[derive(Default)]
pub(crate) enum Interest {
    #[default]
    None,
    /// A task that waits by itself: an event polls it in place.
    Task(TaskId),
    /// Somebody else's waker, for example that of a set of futures inside a task. Rare, and so in memory of its own.
    Waker(Box<Waker>),
}

impl Interest {
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::None)
    }
}

/// What a task wants that takes more than its stream's session.
pub(crate) enum Request {
    /// Boxed, since most requests are small.
    Connect {
        stream: Rc<StreamCell>,
        whither: Box<(SockAddr, SocketOptions)>,
    },
    Listen {
        listener: Rc<ListenerCell>,
        socket: Socket,
    },
    BindDatagrams {
        cell: Rc<DatagramCell>,
        socket: Socket,
    },
    /// A datagram socket has something to carry out.
    Datagrams(Rc<DatagramCell>),
    AcceptMore(ListenerId),
    Unlisten(ListenerId),
}

/// The async side of one worker. In this order what each turn and each message needs lies together.
#[repr(C)]
pub(crate) struct Runtime {
    pub(super) number: u16,
    /// A task, a stream, a request or a timer may wait for the worker. Set whenever one is left for it, so that most turns need
    /// not look into each list; taken back when all of them were found empty.
    stirred: Cell<bool>,
    /// Set while the future of a task that panicked is dropped.
    panicked: Cell<bool>,
    cancel_all: Cell<bool>,
    /// The worker shuts down.
    stopping: Cell<bool>,
    closed: Cell<bool>,
    now: Cell<Instant>,
    turns: Cell<u64>,
    woken: Arc<Woken>,
    /// An empty queue, for a stream that sends: the one that goes to and fro while one stream at a time sends.
    queue: Cell<Option<Box<SendQueue>>>,
    /// The task that is being polled, and what its own waker looks like.
    polling: Cell<Option<(TaskId, WakerShape)>>,
    /// Streams by the slot of their connection.
    streams: RefCell<Vec<Option<Rc<StreamCell>>>>,
    tasks: RefCell<Tasks>,
    /// How many of them only tidy up, so that nobody waits for their end.
    pub(super) background: Cell<usize>,
    /// Tasks to poll, for whatever reason other than an event.
    ready: RefCell<VecDeque<TaskId>>,
    /// Streams with something to carry out.
    touched: RefCell<Vec<Rc<StreamCell>>>,
    requests: RefCell<VecDeque<Request>>,
    /// More empty queues.
    #[expect(clippy::vec_box, reason = "a queue moves into a stream's cell as a pointer, without an allocation")]
    queues: RefCell<Vec<Box<SendQueue>>>,
    pub(super) sleeps: RefCell<Sleeps>,
    /// For whom the connection is that the worker is about to open.
    accepting: RefCell<Option<Rc<ListenerCell>>>,
    pub(super) pool: Pool,
    pub(super) network: Option<Network>,
    /// The parts of connection pools that lie on this worker.
    pub(super) pools: RefCell<Vec<Rc<Local>>>,
    panics: Cell<u64>,
}

/// Empty queues that are kept. One poll rarely sends on more streams.
const QUEUES_KEPT: usize = 256;

/// Data and table of a waker: equal for clones of the same one.
type WakerShape = (*const (), *const std::task::RawWakerVTable);

fn shape(waker: &Waker) -> WakerShape {
    (waker.data(), ptr::from_ref(waker.vtable()))
}

impl Runtime {
    pub(crate) fn new(number: u16, pool: Pool, network: Option<Network>, remote: &Remote, now: Instant) -> Rc<Self> {
        Rc::new(Self {
            number,
            stirred: Cell::new(false),
            woken: Arc::new(Woken::new(Arc::clone(&remote.mailboxes[usize::from(number)]))),
            tasks: RefCell::default(),
            background: Cell::new(0),
            ready: RefCell::new(VecDeque::with_capacity(LISTED_AT_FIRST)),
            polling: Cell::new(None),
            streams: RefCell::default(),
            touched: RefCell::new(Vec::with_capacity(LISTED_AT_FIRST)),
            requests: RefCell::default(),
            queue: Cell::new(None),
            queues: RefCell::new(Vec::with_capacity(QUEUES_KEPT)),
            sleeps: RefCell::default(),
            accepting: RefCell::default(),
            now: Cell::new(now),
            turns: Cell::new(0),
            pool,
            network,
            pools: RefCell::default(),
            panicked: Cell::new(false),
            panics: Cell::new(0),
            cancel_all: Cell::new(false),
            stopping: Cell::new(false),
            closed: Cell::new(false),
        })
    }

    /// The runtime of the worker that has its turn on this thread.
    ///
    /// # Panics
    ///
    /// On any other thread. `what` names the caller.
    pub(super) fn current(what: &str) -> Rc<Self> {
        Self::with(what, Rc::clone)
    }

    /// Does something with the runtime of the worker that has its turn on this thread.
    ///
    /// # Panics
    ///
    /// As [`Self::current`].
    pub(super) fn with<R>(what: &str, action: impl FnOnce(&Rc<Self>) -> R) -> R {
        CURRENT.with(|current| match current.borrow().as_ref() {
            Some(runtime) => action(runtime),
            None => {
                panic!("`{what}` works on the thread of a ringport worker only: inside of a task, or below `block_on`")
            }
        })
    }

    /// Does something with the runtime of the worker that `home` belongs to, if that has its turn on this thread.
    #[cfg(feature = "hyper")]
    pub(super) fn at_home<R>(home: &Arc<Woken>, action: impl FnOnce(&Rc<Self>) -> R) -> Option<R> {
        CURRENT
            .try_with(|current| {
                let current = current.borrow();
                current.as_ref().filter(|runtime| Arc::ptr_eq(&runtime.woken, home)).map(action)
            })
            .ok()
            .flatten()
    }

    /// What tells this worker from all others, on any thread.
    #[cfg(feature = "hyper")]
    pub(super) fn home(&self) -> Arc<Woken> {
        Arc::clone(&self.woken)
    }

    /// Makes this the runtime of the thread until the guard is dropped.
    pub(crate) fn enter(self: &Rc<Self>) -> Entered {
        Entered { before: CURRENT.with(|current| current.replace(Some(Rc::clone(self)))) }
    }

    /// Queues a task if the worker that `woken` belongs to has its turn on this thread.
    pub(super) fn wake_here(woken: &Arc<Woken>, task: TaskId) -> bool {
        let here = CURRENT.try_with(|current| {
            let current = current.borrow();
            let Some(runtime) = current.as_ref().filter(|runtime| Arc::ptr_eq(&runtime.woken, woken)) else {
                return false;
            };
            runtime.make_ready(task);
            true
        });
        here.unwrap_or(false)
    }

    // Tasks.

    /// Adds a task, to be polled before this turn ends or in the next one.
    pub(super) fn start(&self, future: BoxFuture) -> TaskId {
        let task = self.tasks.borrow_mut().insert(future, &self.woken);
        if self.closed.get() {
            self.cancel(task);
        } else {
            self.queue(task);
        }
        task
    }

    /// Adds a task and polls it at once.
    pub(super) fn start_now(&self, future: BoxFuture) {
        let task = self.tasks.borrow_mut().insert(future, &self.woken);
        self.poll(task);
    }

    fn queue(&self, task: TaskId) {
        if self.tasks.borrow_mut().queue(task) {
            self.make_ready(task);
        }
    }

    fn make_ready(&self, task: TaskId) {
        self.ready.borrow_mut().push_back(task);
        self.stir();
    }

    /// Drops the future of a task.
    pub(super) fn cancel(&self, task: TaskId) {
        let taken = self.tasks.borrow_mut().cancel(task);
        drop(taken);
    }

    /// Has every task dropped before the next ones are polled.
    pub(crate) fn cancel_all(&self) {
        self.cancel_all.set(true);
        self.stir();
    }

    /// Something is left for the worker.
    #[inline]
    pub(super) fn stir(&self) {
        self.stirred.set(true);
    }

    /// Whether something may be left for the worker.
    #[inline]
    pub(crate) fn is_stirred(&self) -> bool {
        self.stirred.get()
    }

    /// Whether there are tasks that somebody may wait for.
    pub(crate) fn has_tasks(&self) -> bool {
        self.tasks.borrow().len() > self.background.get()
    }

    /// Whether there is nothing to do for now.
    #[inline]
    pub(crate) fn is_quiet(&self) -> bool {
        (!self.is_stirred() || self.has_settled()) && !self.woken.is_any()
    }

    /// Looks into each list.
    #[inline(never)]
    fn has_settled(&self) -> bool {
        let settled = self.ready.borrow().is_empty()
            && self.requests.borrow().is_empty()
            && self.touched.borrow().is_empty()
            && self.is_settled()
            && !self.cancel_all.get();
        self.stirred.set(!settled);
        settled
    }

    /// How many tasks wait to be polled, those woken by other threads included.
    pub(crate) fn collect(&self) -> usize {
        if self.cancel_all.take() {
            self.drop_tasks();
        }
        let mut ready = self.ready.borrow_mut();
        self.woken.collect(&mut ready);
        ready.len()
    }

    /// Polls the next task that waits for it.
    pub(crate) fn poll_ready(&self) {
        let next = self.ready.borrow_mut().pop_front();
        if let Some(task) = next
            && self.tasks.borrow_mut().is_queued(task)
        {
            self.poll(task);
        }
    }

    /// Polls who waits for an event, here and now.
    #[inline]
    pub(crate) fn poll_now(&self, who: Interest) {
        match who {
            Interest::None => {}
            Interest::Task(task) => self.poll(task),
            Interest::Waker(waker) => waker.wake(),
        }
    }

    /// Has who waits polled within this turn or the next.
    pub(crate) fn notify(&self, who: Interest) {
        match who {
            Interest::None => {}
            Interest::Task(task) => self.queue(task),
            Interest::Waker(waker) => waker.wake(),
        }
    }

    /// As [`Self::poll_now`] for what happened on `stream`. Returns whether that has something to carry out then, which is
    /// cheaper than the list of those that were touched.
    #[inline]
    pub(crate) fn poll_at_hand(&self, who: Interest, stream: &Rc<StreamCell>) -> bool {
        let Interest::Task(task) = who else {
            cold_path();
            self.poll_now(who);
            return false;
        };
        if stream.touched.get() == Touched::No {
            stream.touched.set(Touched::AtHand);
        }
        self.poll(task);
        // A panic that does not come back here ends the connection, and nothing is carried out for it any more.
        let wanted = stream.touched.get() == Touched::Wanted;
        if stream.touched.get() != Touched::Listed {
            stream.touched.set(Touched::No);
        }
        wanted
    }

    /// Notes who waits: the polled task itself if the waker is its own, else the waker.
    #[inline]
    pub(super) fn register(&self, who: &mut Interest, cx: &Context<'_>) {
        match self.polling.get() {
            Some((task, own)) if own == shape(cx.waker()) => *who = Interest::Task(task),
            _ => register_other(who, cx),
        }
    }

    /// One poll. A panic ends the task and nothing else.
    fn poll(&self, task: TaskId) {
        let taken = self.tasks.borrow_mut().take(task);
        let Some(mut taken) = taken else { return };
        debug_assert!(self.polling.get().is_none(), "only a worker polls its tasks, one after the other");
        self.polling.set(Some((task, shape(&taken.waker))));
        let polled =
            catch_unwind(AssertUnwindSafe(|| taken.future.as_mut().poll(&mut Context::from_waker(&taken.waker))));
        self.polling.set(None);
        match polled {
            Ok(Poll::Pending) => {
                let cancelled = self.tasks.borrow_mut().put_back(task, taken);
                drop(cancelled);
            }
            Ok(Poll::Ready(())) => {
                cold_path();
                self.tasks.borrow_mut().remove(task);
            }
            Err(_) => {
                cold_path();
                self.tasks.borrow_mut().remove(task);
                self.bury(taken.future);
            }
        }
    }

    /// Drops a future that panicked. Its streams are aborted.
    #[cold]
    fn bury(&self, future: BoxFuture) {
        tracing::error!("a task panicked; its connections are aborted");
        self.panics.set(self.panics.get() + 1);
        self.panicked.set(true);
        if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
            tracing::error!("what a panicked task left behind panicked, too");
        }
        self.panicked.set(false);
    }

    /// Whether a stream that is dropped now is dropped because its task panicked: by unwinding, or with what that left.
    pub(super) fn is_burying(&self) -> bool {
        self.panicked.get() || std::thread::panicking()
    }

    pub(crate) fn take_panics(&self) -> u64 {
        self.panics.take()
    }

    fn drop_tasks(&self) {
        // A task that is dropped may start another.
        while self.tasks.borrow().len() > 0 {
            let ids = self.tasks.borrow().ids();
            for task in ids {
                let taken = self.tasks.borrow_mut().remove(task);
                if catch_unwind(AssertUnwindSafe(|| drop(taken))).is_err() {
                    tracing::error!("a task panicked while it was dropped");
                }
            }
        }
        self.ready.borrow_mut().clear();
    }

    /// The worker ends: tasks are dropped, and whatever is left over answers that it is closed.
    pub(crate) fn close(self: &Rc<Self>) {
        self.closed.set(true);
        let _entered = self.enter();
        self.drop_tasks();
        self.touched.borrow_mut().clear();
        self.requests.borrow_mut().clear();
        let pools = std::mem::take(&mut *self.pools.borrow_mut());
        pools.iter().for_each(|pool| pool.end());
        let streams = std::mem::take(&mut *self.streams.borrow_mut());
        for stream in streams.into_iter().flatten() {
            stream.lost();
        }
    }

    /// The worker begins to shut down.
    pub(crate) fn stop(&self) {
        self.stopping.set(true);
    }

    /// Logs the error that a task ended with. While the worker shuts down, its listeners and sockets end with errors, and
    /// tasks with them: nothing to warn of.
    pub(super) fn tell_of_end(&self, whose: &str, error: &io::Error) {
        if self.stopping.get() {
            tracing::debug!(%error, "{whose} ended as the worker shut down");
        } else {
            tracing::warn!(%error, "{whose} ended with an error");
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    // Time.

    /// Whether no timer is to be set or cancelled.
    #[inline]
    pub(crate) fn is_settled(&self) -> bool {
        self.sleeps.borrow().is_settled()
    }

    pub(crate) fn set_now(&self, now: Instant) {
        self.now.set(now);
        self.turns.set(self.turns.get() + 1);
    }

    /// How many turns the worker has begun.
    pub(super) fn turns(&self) -> u64 {
        self.turns.get()
    }

    pub(super) fn now(&self) -> Instant {
        self.now.get()
    }

    // What tasks leave for the worker.

    /// Has the worker look at `stream` after this poll.
    #[inline]
    pub(super) fn touch(&self, stream: &Rc<StreamCell>) {
        match stream.touched.get() {
            Touched::Listed | Touched::Wanted => {}
            Touched::AtHand => stream.touched.set(Touched::Wanted),
            Touched::No => self.list(stream),
        }
    }

    fn list(&self, stream: &Rc<StreamCell>) {
        stream.touched.set(Touched::Listed);
        if !self.closed.get() {
            self.touched.borrow_mut().push(Rc::clone(stream));
            self.stir();
        }
    }

    #[inline]
    pub(crate) fn next_touched(&self) -> Option<Rc<StreamCell>> {
        let stream = self.touched.borrow_mut().pop()?;
        stream.touched.set(Touched::No);
        Some(stream)
    }

    /// An empty queue.
    #[inline]
    pub(super) fn take_queue(&self) -> Box<SendQueue> {
        self.queue.take().unwrap_or_else(|| self.queues.borrow_mut().pop().unwrap_or_default())
    }

    /// Takes an empty queue back.
    #[inline]
    pub(super) fn give_queue(&self, queue: Box<SendQueue>) {
        if let Some(another) = self.queue.replace(Some(queue)) {
            let mut queues = self.queues.borrow_mut();
            if queues.len() < QUEUES_KEPT {
                queues.push(another);
            }
        }
    }

    pub(super) fn request(&self, request: Request) {
        if !self.closed.get() {
            self.requests.borrow_mut().push_back(request);
            self.stir();
        }
    }

    pub(crate) fn next_request(&self) -> Option<Request> {
        self.requests.borrow_mut().pop_front()
    }

    // Streams by connection.

    /// The stream of a connection.
    #[inline]
    pub(crate) fn stream(&self, conn: ConnId) -> Option<Rc<StreamCell>> {
        let streams = self.streams.borrow();
        streams.get(conn.slot())?.as_ref().filter(|stream| stream.conn.get() == Some(conn)).map(Rc::clone)
    }

    /// Has the processor fetch the stream of a slot.
    #[inline]
    pub(crate) fn fetch_stream(&self, slot: usize) {
        if let Some(Some(stream)) = self.streams.borrow().get(slot) {
            prefetch(&**stream);
        }
    }

    /// The same of the place of the task that reads there.
    #[inline]
    pub(crate) fn fetch_place(&self, slot: usize) {
        if let Some(task) = self.reader_of(slot) {
            self.tasks.borrow().fetch_place(task);
        }
    }

    /// The same of that task's future.
    #[inline]
    pub(crate) fn fetch_future(&self, slot: usize) {
        if let Some(task) = self.reader_of(slot) {
            self.tasks.borrow().fetch_future(task);
        }
    }

    #[inline]
    fn reader_of(&self, slot: usize) -> Option<TaskId> {
        self.streams.borrow().get(slot)?.as_ref()?.reading_task()
    }

    /// Makes `stream` the one of `conn`.
    pub(crate) fn attach(&self, conn: ConnId, stream: Rc<StreamCell>) {
        let mut streams = self.streams.borrow_mut();
        if streams.len() <= conn.slot() {
            streams.resize_with(conn.slot() + 1, || None);
        }
        stream.conn.set(Some(conn));
        streams[conn.slot()] = Some(stream);
    }

    /// Takes the stream away from a connection that is gone.
    pub(crate) fn detach(&self, conn: ConnId) -> Option<Rc<StreamCell>> {
        let stream = self.stream(conn)?;
        self.streams.borrow_mut()[conn.slot()] = None;
        stream.conn.set(None);
        Some(stream)
    }

    /// The session of `conn` has begun to close, so that nothing can be sent any more.
    pub(crate) fn closing(&self, conn: ConnId) {
        if let Some(stream) = self.stream(conn) {
            stream.closing();
        }
    }

    /// Says for whom the next connection is that the worker opens.
    pub(crate) fn set_accepting(&self, listener: Option<Rc<ListenerCell>>) {
        *self.accepting.borrow_mut() = listener;
    }

    pub(super) fn take_accepting(&self) -> Option<Rc<ListenerCell>> {
        self.accepting.borrow_mut().take()
    }
}

/// Notes a waker that is not the polled task's own.
#[inline(never)]
fn register_other(who: &mut Interest, cx: &Context<'_>) {
    match who {
        Interest::Waker(waker) if waker.will_wake(cx.waker()) => {}
        _ => *who = Interest::Waker(Box::new(cx.waker().clone())),
    }
}

/// Restores the runtime of the thread.
pub(crate) struct Entered {
    before: Option<Rc<Runtime>>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.with(|current| *current.borrow_mut() = self.before.take());
    }
}
