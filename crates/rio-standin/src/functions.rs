//! The thirteen functions. Each asks the rules first; `sockets.rs` does what they allow.

use std::collections::{HashSet, VecDeque};
use std::ffi::c_void;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use ringport_engine::engine::rio::{Provider, use_provider};
use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{
    RIO_BUF, RIO_EVENT_COMPLETION, RIO_EXTENSION_FUNCTION_TABLE, RIO_NOTIFICATION_COMPLETION, RIORESULT, SO_TYPE,
    SOCK_DGRAM, SOCKET, SOL_SOCKET, WSASetLastError, getsockopt,
};
use windows_sys::Win32::System::Threading::{CreateEventW, GetCurrentProcess, ResetEvent, TerminateProcess};

use crate::BREACH;
use crate::rules::{self, Answer, Direction, No, Notification, Post, Slice};
use crate::sockets::{ABORTED, Call, Lines, State, cancel, pump};

/// How often each function was called, and how often one of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// `RIOReceive` and `RIOReceiveEx` with a request.
    pub receives: u64,
    /// `RIOSend` and `RIOSendEx` with a request.
    pub sends: u64,
    /// Those of them that were deferred.
    pub deferred: u64,
    /// `RIO_MSG_COMMIT_ONLY`.
    pub commits: u64,
    /// `RIODequeueCompletion`.
    pub dequeues: u64,
    /// `RIONotify`.
    pub notifies: u64,
    /// `RIORegisterBuffer`.
    pub registrations: u64,
    /// `RIOResizeCompletionQueue`.
    pub resizes: u64,
    /// Calls that failed.
    pub failures: u64,
    /// What is in use now.
    pub in_use: rules::InUse,
}

#[derive(Default)]
struct Counters {
    receives: AtomicU64,
    sends: AtomicU64,
    deferred: AtomicU64,
    commits: AtomicU64,
    dequeues: AtomicU64,
    notifies: AtomicU64,
    registrations: AtomicU64,
    resizes: AtomicU64,
    failures: AtomicU64,
}

/// What every call shares.
pub(crate) struct Standin {
    pub(crate) state: Mutex<State>,
    /// Request and completion queues that a call is at work on.
    busy: Mutex<HashSet<isize>>,
    counters: Counters,
    /// Wakes the pump.
    pub(crate) event: usize,
    /// The pump has looked at all operations.
    pub(crate) swept: Condvar,
}

static STANDIN: OnceLock<Standin> = OnceLock::new();

pub(crate) fn standin() -> &'static Standin {
    STANDIN.get_or_init(|| {
        // SAFETY: no memory is passed.
        let event = unsafe { CreateEventW(std::ptr::null(), 0, 0, std::ptr::null()) };
        assert!(!event.is_null(), "an event can be made");
        std::thread::Builder::new().name("rio-pump".to_owned()).spawn(pump).expect("a thread can be started");
        Standin {
            state: Mutex::default(),
            busy: Mutex::default(),
            counters: Counters::default(),
            event: event as usize,
            swept: Condvar::new(),
        }
    })
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Ends the process: the caller broke a rule.
pub(crate) fn broken(message: &str) -> ! {
    // Not by the macro, whose output a test harness keeps to itself.
    let _ = writeln!(std::io::stderr(), "{BREACH}: {message}");
    // Not by ExitProcess, which waits for locks that other threads had when they were ended.
    // SAFETY: the handle stands for this process.
    unsafe { TerminateProcess(GetCurrentProcess(), 101) };
    std::process::abort()
}

/// Turns an answer of the rules into one of a function: a failure sets the error of the thread.
fn answer<T>(answer: Answer<T>) -> Option<T> {
    match answer {
        Ok(value) => Some(value),
        Err(No::Error(code)) => {
            count(&standin().counters.failures);
            // SAFETY: no memory is passed.
            unsafe { WSASetLastError(code) };
            None
        }
        Err(No::Breach(message)) => broken(&message),
    }
}

/// Marks a queue as used by this call. Two calls on one queue at the same time break a rule.
struct Busy(isize);

impl Busy {
    fn enter(queue: isize) -> Self {
        if !lock(&standin().busy).insert(queue) {
            broken("two calls use one queue at the same time");
        }
        Self(queue)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&standin().busy).remove(&self.0);
    }
}

/// The counts so far.
#[must_use]
pub fn calls() -> Calls {
    let Counters { receives, sends, deferred, commits, dequeues, notifies, registrations, resizes, failures } =
        &standin().counters;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Calls {
        receives: read(receives),
        sends: read(sends),
        deferred: read(deferred),
        commits: read(commits),
        dequeues: read(dequeues),
        notifies: read(notifies),
        registrations: read(registrations),
        resizes: read(resizes),
        failures: read(failures),
        in_use: lock(&standin().state).rules.in_use(),
    }
}

/// The table.
#[must_use]
pub fn functions() -> RIO_EXTENSION_FUNCTION_TABLE {
    RIO_EXTENSION_FUNCTION_TABLE {
        cbSize: size_of::<RIO_EXTENSION_FUNCTION_TABLE>() as u32,
        RIOReceive: Some(receive),
        RIOReceiveEx: Some(receive_ex),
        RIOSend: Some(send),
        RIOSendEx: Some(send_ex),
        RIOCloseCompletionQueue: Some(close_completion_queue),
        RIOCreateCompletionQueue: Some(create_completion_queue),
        RIOCreateRequestQueue: Some(create_request_queue),
        RIODequeueCompletion: Some(dequeue_completion),
        RIODeregisterBuffer: Some(deregister_buffer),
        RIONotify: Some(notify),
        RIORegisterBuffer: Some(register_buffer),
        RIOResizeCompletionQueue: Some(resize_completion_queue),
        RIOResizeRequestQueue: Some(resize_request_queue),
    }
}

/// See [`crate::install`].
pub(crate) fn install() {
    if std::env::var_os("RINGPORT_REAL_RIO").is_some() {
        return;
    }
    // SAFETY: the functions do what the documentation says, over overlapped sockets, and touch only memory of slices that
    // the rules found inside a registered buffer.
    unsafe { use_provider(Provider { table: functions(), created, closing }) };
}

/// To be told of each socket that is created with `WSA_FLAG_REGISTERED_IO`: Wine keeps no note of that.
pub fn created(socket: usize) {
    lock(&standin().state).sockets.insert(socket);
}

/// To be told of each socket with a request queue, right before it is closed: the queue goes with it.
pub fn closing(socket: usize) {
    let mut state = lock(&standin().state);
    state.sockets.remove(&socket);
    let Some(queue) = state.rules.sockets().find(|(_, of)| *of == socket).map(|(queue, _)| queue) else { return };
    let mut ended = state.rules.socket_closed(queue);
    if let Some(mut lines) = state.lines.remove(&queue) {
        // The first of each line is with Winsock.
        let Lines { receive, send, .. } = &mut lines;
        ended.extend(receive.drain(..).skip(1).chain(send.drain(..).skip(1)).map(|started| started.request));
    }
    for request in ended {
        state.end(request, ABORTED, 0);
    }
    cancel(standin(), state, socket, queue);
}

fn slice(data: *const RIO_BUF) -> Option<Slice> {
    // SAFETY: the functions are given a valid RIO_BUF or null.
    let data = unsafe { data.as_ref() }?;
    Some(Slice { buffer: data.BufferId, offset: data.Offset, length: data.Length })
}

/// All four functions that post requests.
fn post(queue: isize, direction: Direction, post: Post<'_>) -> i32 {
    let counters = &standin().counters;
    let commit = post.flags & rules::COMMIT_ONLY != 0;
    // A commit is the one call that may run beside another.
    let _busy = (!commit).then(|| Busy::enter(queue));
    match direction {
        _ if commit => count(&counters.commits),
        Direction::Receive => count(&counters.receives),
        Direction::Send => count(&counters.sends),
    }
    if post.flags & rules::DEFER != 0 {
        count(&counters.deferred);
    }
    let mut state = lock(&standin().state);
    let Some(started) = answer(state.rules.post(queue, direction, post)) else { return 0 };
    state.enqueue(queue, direction, started);
    1
}

unsafe extern "system" fn receive(
    queue: isize,
    data: *const RIO_BUF,
    buffers: u32,
    flags: u32,
    context: *const c_void,
) -> i32 {
    let (data, context) = (slice(data), context as u64);
    post(queue, Direction::Receive, Post { data, count: buffers, addresses: &[], flags, context })
}

unsafe extern "system" fn send(
    queue: isize,
    data: *const RIO_BUF,
    buffers: u32,
    flags: u32,
    context: *const c_void,
) -> i32 {
    let (data, context) = (slice(data), context as u64);
    post(queue, Direction::Send, Post { data, count: buffers, addresses: &[], flags, context })
}

unsafe extern "system" fn receive_ex(
    queue: isize,
    data: *const RIO_BUF,
    buffers: u32,
    local: *const RIO_BUF,
    remote: *const RIO_BUF,
    control: *const RIO_BUF,
    more: *const RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> i32 {
    let addresses = remote_only(local, remote, control, more);
    let (data, context) = (slice(data), context as u64);
    post(queue, Direction::Receive, Post { data, count: buffers, addresses: &addresses, flags, context })
}

unsafe extern "system" fn send_ex(
    queue: isize,
    data: *const RIO_BUF,
    buffers: u32,
    local: *const RIO_BUF,
    remote: *const RIO_BUF,
    control: *const RIO_BUF,
    more: *const RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> i32 {
    let addresses = remote_only(local, remote, control, more);
    let (data, context) = (slice(data), context as u64);
    post(queue, Direction::Send, Post { data, count: buffers, addresses: &addresses, flags, context })
}

/// The remote address of an extended request. Nothing else is stood in for.
fn remote_only(
    local: *const RIO_BUF,
    remote: *const RIO_BUF,
    control: *const RIO_BUF,
    flags: *const RIO_BUF,
) -> Vec<Slice> {
    if !local.is_null() || !control.is_null() || !flags.is_null() {
        broken("the stand-in knows no local address, control data or flags of an extended request");
    }
    slice(remote).into_iter().collect()
}

unsafe extern "system" fn register_buffer(data: *const u8, length: u32) -> isize {
    count(&standin().counters.registrations);
    let mut state = lock(&standin().state);
    // RIO_INVALID_BUFFERID is all ones.
    let Some(buffer) = answer(state.rules.register(length)) else { return -1 };
    state.buffers.insert(buffer, data as usize);
    buffer
}

unsafe extern "system" fn deregister_buffer(buffer: isize) {
    let mut state = lock(&standin().state);
    answer(state.rules.deregister(buffer));
    state.buffers.remove(&buffer);
}

unsafe extern "system" fn create_completion_queue(
    size: u32,
    notification: *const RIO_NOTIFICATION_COMPLETION,
) -> isize {
    // SAFETY: the caller passes a valid structure or null, whose type says which part of the union is set.
    let call = unsafe {
        notification.as_ref().map(|how| {
            if how.Type == RIO_EVENT_COMPLETION {
                let how = how.Anonymous.Event;
                Call::Event { event: how.EventHandle as usize, reset: how.NotifyReset != 0 }
            } else {
                let how = how.Anonymous.Iocp;
                let (key, overlapped) = (how.CompletionKey as usize, how.Overlapped as usize);
                Call::Port { port: how.IocpHandle as usize, key, overlapped }
            }
        })
    };
    let rule = call.map(|call| match call {
        Call::Event { .. } => Notification::Event,
        Call::Port { overlapped, .. } => Notification::Port { overlapped },
    });
    let mut state = lock(&standin().state);
    let Some(queue) = answer(state.rules.create_completion_queue(size, rule)) else { return 0 };
    if let Some(call) = call {
        state.notifications.insert(queue, call);
    }
    queue
}

unsafe extern "system" fn close_completion_queue(queue: isize) {
    let mut state = lock(&standin().state);
    answer(state.rules.close_completion_queue(queue));
    state.notifications.remove(&queue);
}

unsafe extern "system" fn resize_completion_queue(queue: isize, size: u32) -> i32 {
    count(&standin().counters.resizes);
    i32::from(answer(lock(&standin().state).rules.resize_completion_queue(queue, size)).is_some())
}

unsafe extern "system" fn create_request_queue(
    socket: SOCKET,
    receives: u32,
    receive_buffers: u32,
    sends: u32,
    send_buffers: u32,
    receive_completions: isize,
    send_completions: isize,
    context: *const c_void,
) -> isize {
    let mut state = lock(&standin().state);
    let registered = state.sockets.contains(&socket);
    let buffers = (receive_buffers, send_buffers);
    let created = state.rules.create_request_queue(
        socket,
        registered,
        receives,
        sends,
        buffers,
        receive_completions,
        send_completions,
        context as u64,
    );
    let Some(queue) = answer(created) else { return 0 };
    if is_for_datagrams(socket) {
        state.rules.is_for_datagrams(queue);
    }
    state.lines.insert(queue, Lines { socket, receive: VecDeque::new(), send: VecDeque::new() });
    queue
}

/// Whether a socket is one for datagrams.
fn is_for_datagrams(socket: SOCKET) -> bool {
    let (mut kind, mut bytes) = (0_i32, size_of::<i32>() as i32);
    // SAFETY: the option writes one number, for which there is room.
    let answer = unsafe { getsockopt(socket, SOL_SOCKET, SO_TYPE, (&raw mut kind).cast(), &raw mut bytes) };
    answer == 0 && kind == SOCK_DGRAM
}

unsafe extern "system" fn resize_request_queue(queue: isize, receives: u32, sends: u32) -> i32 {
    let _busy = Busy::enter(queue);
    i32::from(answer(lock(&standin().state).rules.resize_request_queue(queue, receives, sends)).is_some())
}

unsafe extern "system" fn dequeue_completion(queue: isize, results: *mut RIORESULT, room: u32) -> u32 {
    count(&standin().counters.dequeues);
    let _busy = Busy::enter(queue);
    let room = if results.is_null() { 0 } else { room as usize };
    let Some(completions) = answer(lock(&standin().state).rules.dequeue(queue, room)) else { return 0 };
    for (index, completion) in completions.iter().enumerate() {
        let result = RIORESULT {
            Status: completion.status,
            BytesTransferred: completion.bytes,
            SocketContext: completion.socket_context,
            RequestContext: completion.request_context,
        };
        // SAFETY: the caller's array has room for as many, and there are no more.
        unsafe { results.add(index).write(result) };
    }
    completions.len() as u32
}

unsafe extern "system" fn notify(queue: isize) -> i32 {
    count(&standin().counters.notifies);
    let state = &mut *lock(&standin().state);
    if let Some(Call::Event { event, reset: true }) = state.notifications.get(&queue) {
        // SAFETY: the event belongs to the caller of the functions, who keeps it as long as the queue.
        unsafe { ResetEvent(*event as HANDLE) };
    }
    match state.rules.notify(queue) {
        Ok(true) => {
            state.call(queue);
            0
        }
        Ok(false) => 0,
        Err(No::Error(code)) => {
            count(&standin().counters.failures);
            code
        }
        Err(No::Breach(message)) => broken(&message),
    }
}
