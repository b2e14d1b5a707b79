//! The functions over real sockets: they move bytes, and a broken rule ends the process.
#![cfg(windows)]

use std::ffi::c_void;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::windows::io::AsRawSocket;
use std::process::Command;
use std::ptr;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use rio_standin::rules::{COMMIT_ONLY, DEFER, WAITALL};
use rio_standin::{BREACH, calls, closing, created, functions};
use socket2::{Domain, Protocol, Socket, Type};
use windows_sys::Win32::Foundation::{HANDLE, INVALID_HANDLE_VALUE, WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows_sys::Win32::Networking::WinSock::{
    RIO_BUF, RIO_EVENT_COMPLETION, RIO_EXTENSION_FUNCTION_TABLE, RIO_IOCP_COMPLETION, RIO_NOTIFICATION_COMPLETION,
    RIORESULT, WSAEALREADY, WSAEMSGSIZE, WSAGetLastError,
};
use windows_sys::Win32::System::IO::{CreateIoCompletionPort, GetQueuedCompletionStatus, OVERLAPPED};
use windows_sys::Win32::System::Threading::{CreateEventW, WaitForSingleObject};

const BYTES: usize = 8192;

/// A connection whose near end has a request queue, on one completion queue, over one registered buffer.
struct Stage {
    table: RIO_EXTENSION_FUNCTION_TABLE,
    near: Near,
    far: TcpStream,
    completions: isize,
    queue: isize,
    buffer: isize,
    memory: *mut u8,
}

/// A socket for Registered I/O. It says when it is closed.
struct Near(Socket);

impl Near {
    fn new(kind: Type, protocol: Protocol) -> Self {
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol)).unwrap();
        created(socket.as_raw_socket() as usize);
        Self(socket)
    }

    fn raw(&self) -> usize {
        self.0.as_raw_socket() as usize
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        closing(self.raw());
    }
}

fn pair() -> (Near, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = Near::new(Type::STREAM, Protocol::TCP);
    near.0.connect(&listener.local_addr().unwrap().into()).unwrap();
    (near, listener.accept().unwrap().0)
}

impl Stage {
    fn new(how: Option<&RIO_NOTIFICATION_COMPLETION>) -> Self {
        let (near, far) = pair();
        let table = functions();
        let memory = Box::leak(vec![0_u8; BYTES].into_boxed_slice()).as_mut_ptr();
        let how = how.map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the memory is leaked, and what the notification names lives to the end of the test.
        unsafe {
            let completions = table.RIOCreateCompletionQueue.unwrap()(8, how);
            let buffer = table.RIORegisterBuffer.unwrap()(memory, BYTES as u32);
            let socket = near.raw();
            let queue = table.RIOCreateRequestQueue.unwrap()(socket, 2, 1, 4, 1, completions, completions, ptr::null());
            assert!(completions != 0 && buffer != -1 && queue != 0);
            Self { table, near, far, completions, queue, buffer, memory }
        }
    }

    fn slice(&self, offset: u32, length: u32) -> RIO_BUF {
        RIO_BUF { BufferId: self.buffer, Offset: offset, Length: length }
    }

    fn receive(&self, offset: u32, length: u32, flags: u32, tag: usize) -> bool {
        // SAFETY: the slice lies in leaked memory.
        unsafe { self.table.RIOReceive.unwrap()(self.queue, &self.slice(offset, length), 1, flags, context(tag)) != 0 }
    }

    fn send(&self, offset: u32, data: &[u8], flags: u32, tag: usize) -> bool {
        self.write(offset, data);
        let slice = self.slice(offset, data.len() as u32);
        // SAFETY: the slice lies in leaked memory.
        unsafe { self.table.RIOSend.unwrap()(self.queue, &slice, 1, flags, context(tag)) != 0 }
    }

    fn commit(&self) -> bool {
        // SAFETY: nothing is passed.
        unsafe { self.table.RIOSend.unwrap()(self.queue, ptr::null(), 0, COMMIT_ONLY, ptr::null()) != 0 }
    }

    fn write(&self, offset: u32, data: &[u8]) {
        assert!(offset as usize + data.len() <= BYTES);
        // SAFETY: inside the memory, and in no slice in flight.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.memory.add(offset as usize), data.len()) };
    }

    fn read(&self, offset: u32, length: u32) -> Vec<u8> {
        // SAFETY: inside the memory, and in no slice in flight.
        unsafe { std::slice::from_raw_parts(self.memory.add(offset as usize), length as usize).to_vec() }
    }

    fn dequeue(&self) -> Vec<RIORESULT> {
        let mut results = [RIORESULT::default(); 8];
        // SAFETY: there is room for eight.
        let count = unsafe { self.table.RIODequeueCompletion.unwrap()(self.completions, results.as_mut_ptr(), 8) };
        results[..count as usize].to_vec()
    }

    /// The next completions, so many of them.
    fn results(&self, count: usize) -> Vec<RIORESULT> {
        let start = Instant::now();
        let mut results = Vec::new();
        while results.len() < count {
            assert!(start.elapsed() < Duration::from_secs(10), "completions are missing");
            results.extend(self.dequeue());
            std::thread::yield_now();
        }
        results
    }

    fn notify(&self) -> i32 {
        // SAFETY: no memory is passed.
        unsafe { self.table.RIONotify.unwrap()(self.completions) }
    }
}

fn context(tag: usize) -> *const c_void {
    ptr::without_provenance(tag)
}

fn event() -> HANDLE {
    // SAFETY: no memory is passed.
    unsafe { CreateEventW(ptr::null(), 0, 0, ptr::null()) }
}

#[test]
fn bytes_travel_both_ways() {
    let mut stage = Stage::new(None);
    for round in 0..300_usize {
        assert!(stage.receive(0, 100, 0, round));
        stage.far.write_all(b"ping").unwrap();
        let result = stage.results(1)[0];
        assert_eq!((result.Status, result.BytesTransferred, result.RequestContext), (0, 4, round as u64));
        assert_eq!(stage.read(0, 4), b"ping");
        assert!(stage.send(200, b"pong", 0, 7));
        let mut answer = [0; 4];
        stage.far.read_exact(&mut answer).unwrap();
        assert_eq!((&answer, stage.results(1)[0].BytesTransferred), (b"pong", 4));
    }
}

#[test]
fn deferred_sends_arrive_in_order() {
    let mut stage = Stage::new(None);
    assert!(stage.send(0, b"one ", DEFER, 1) && stage.send(10, b"two ", DEFER, 2));
    stage.far.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(stage.far.read(&mut [0; 4]).is_err(), "nothing has started");
    assert!(stage.send(20, b"three ", 0, 3) && stage.send(30, b"four", DEFER, 4) && stage.commit());
    let mut all = [0; 18];
    stage.far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stage.far.read_exact(&mut all).unwrap();
    assert_eq!(&all, b"one two three four");
    let tags: Vec<u64> = stage.results(4).iter().map(|result| result.RequestContext).collect();
    assert_eq!(tags, [1, 2, 3, 4]);
}

#[test]
fn a_receive_can_wait_for_all() {
    let mut stage = Stage::new(None);
    assert!(stage.receive(0, 10, WAITALL, 1));
    for part in [&b"abc"[..], b"defg", b"hij"] {
        stage.far.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((stage.results(1)[0].BytesTransferred, stage.read(0, 10)), (10, b"abcdefghij".to_vec()));
}

#[test]
fn an_end_and_a_reset_are_told() {
    let stage = Stage::new(None);
    assert!(stage.receive(0, 10, 0, 1));
    stage.far.shutdown(std::net::Shutdown::Write).unwrap();
    let result = stage.results(1)[0];
    assert_eq!((result.Status, result.BytesTransferred), (0, 0));
    let stage = Stage::new(None);
    assert!(stage.receive(0, 10, 0, 1));
    socket2::SockRef::from(&stage.far).set_linger(Some(Duration::ZERO)).unwrap();
    let far = stage.far.try_clone().unwrap();
    let Stage { table, near, far: first, completions, .. } = stage;
    drop((first, far));
    let mut result = RIORESULT::default();
    let start = Instant::now();
    // SAFETY: there is room for one.
    while unsafe { table.RIODequeueCompletion.unwrap()(completions, &raw mut result, 1) } == 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "the reset is not told");
    }
    assert_eq!(result.Status, 10054);
    drop(near);
}

/// Many sockets are reset at once, each with several sends under way. Each of them ends, although all ends come by one
/// event, and what lies behind a failed send can only fail as well.
#[test]
fn many_resets_at_once_are_all_told() {
    let (_near, spare) = pair();
    for _ in 0..8 {
        let mut stages: Vec<Stage> = (0..16).map(|_| Stage::new(None)).collect();
        for stage in &stages {
            stage.near.0.set_nonblocking(true).unwrap();
            while stage.near.0.send(&[0; 65_536]).is_ok() {}
            assert!((0..4).all(|tag| stage.send(1024 * tag as u32, &[0; 1024], 0, tag)));
            socket2::SockRef::from(&stage.far).set_linger(Some(Duration::ZERO)).unwrap();
        }
        let spares = stages.iter().map(|_| spare.try_clone().unwrap()).collect::<Vec<_>>();
        for (stage, spare) in stages.iter_mut().zip(spares) {
            drop(std::mem::replace(&mut stage.far, spare));
        }
        for stage in &stages {
            let results = stage.results(4);
            assert!(results.iter().any(|result| result.Status != 0), "a reset ends the sends");
        }
    }
}

#[test]
fn closing_the_socket_ends_its_requests() {
    let stage = Stage::new(None);
    assert!(stage.receive(0, 10, 0, 1) && stage.receive(10, 10, 0, 2) && stage.send(20, b"x", DEFER, 3));
    let Stage { table, near, far, completions, queue, buffer, memory } = stage;
    drop(near);
    let (far, near) = (far, Near::new(Type::STREAM, Protocol::TCP));
    let stage = Stage { table, near, far, completions, queue, buffer, memory };
    let mut ended: Vec<(i32, u64)> =
        stage.results(3).iter().map(|result| (result.Status, result.RequestContext)).collect();
    ended.sort_unstable();
    assert_eq!(ended, [(995, 1), (995, 2), (995, 3)]);
    // Everything was given back.
    // SAFETY: no request is under way.
    unsafe {
        table.RIODeregisterBuffer.unwrap()(buffer);
        table.RIOCloseCompletionQueue.unwrap()(completions);
    }
}

/// Sockets are closed while their peers reset, write or end: Winsock may be at work on a request at just that moment.
#[test]
fn closing_at_any_moment_ends_every_request() {
    for round in 0..60 {
        let mut stages: Vec<Stage> = (0..16).map(|_| Stage::new(None)).collect();
        let (mut nears, mut fars) = (Vec::new(), Vec::new());
        for stage in &mut stages {
            assert!(stage.receive(0, 10, 0, 1));
            let (near, far) = pair();
            nears.push(std::mem::replace(&mut stage.near, near));
            fars.push(std::mem::replace(&mut stage.far, far));
        }
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                for mut far in fars.drain(..) {
                    match round % 3 {
                        0 => socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap(),
                        // Nobody may be there any more.
                        1 => drop(far.write(b"x")),
                        _ => {}
                    }
                }
            });
            start.wait();
            nears.drain(..).for_each(drop);
        });
        for stage in &stages {
            assert_eq!(stage.results(1)[0].RequestContext, 1);
        }
    }
}

/// What one thread starts ends with it (see the remark at WSARecv). So one that closes a socket and ends must start nothing of
/// others, although it waits for what they have as well.
#[test]
fn a_thread_that_closes_a_socket_starts_nothing_for_others() {
    for round in 0..100_u8 {
        let mut stage = Stage::new(None);
        assert!(stage.receive(0, 1, 0, 1) && stage.receive(1, 1, 0, 2));
        let others: Vec<Stage> = (0..4).map(|_| Stage::new(None)).collect();
        assert!(others.iter().all(|other| other.receive(0, 1, 0, 3)));
        let nears: Vec<Near> = others.into_iter().map(|other| other.near).collect();
        std::thread::scope(|scope| {
            scope.spawn(|| nears.into_iter().for_each(drop));
            // The second becomes Winsock's meanwhile.
            stage.far.write_all(&[round]).unwrap();
        });
        assert_eq!(stage.results(1)[0].Status, 0);
        std::thread::sleep(Duration::from_millis(1));
        stage.far.write_all(&[round]).unwrap();
        let result = stage.results(1)[0];
        assert_eq!((result.Status, result.BytesTransferred), (0, 1), "round {round}");
    }
}

#[test]
fn an_event_is_set_once() {
    let mut how = RIO_NOTIFICATION_COMPLETION { Type: RIO_EVENT_COMPLETION, ..Default::default() };
    let event = event();
    how.Anonymous.Event.EventHandle = event;
    let stage = Stage::new(Some(&how));
    // SAFETY: the event is open.
    let is_set = |time| unsafe { WaitForSingleObject(event, time) } == WAIT_OBJECT_0;
    assert!(stage.send(0, b"unasked", 0, 1));
    stage.results(1);
    assert!(!is_set(0));
    assert_eq!((stage.notify(), stage.notify()), (0, WSAEALREADY));
    assert!(stage.send(0, b"asked", 0, 1) && is_set(10_000));
    assert!(!is_set(0));
    assert_eq!(stage.notify(), 0);
    assert!(is_set(10_000), "at once, since the completion is still there");
    // SAFETY: the event is open.
    assert_eq!(unsafe { WaitForSingleObject(event, 0) }, WAIT_TIMEOUT);
}

#[test]
fn a_port_gets_a_packet() {
    // SAFETY: a new port, and no memory.
    let port = unsafe { CreateIoCompletionPort(INVALID_HANDLE_VALUE, ptr::null_mut(), 0, 1) };
    let overlapped = Box::leak(Box::<OVERLAPPED>::default());
    let mut how = RIO_NOTIFICATION_COMPLETION { Type: RIO_IOCP_COMPLETION, ..Default::default() };
    how.Anonymous.Iocp.IocpHandle = port;
    how.Anonymous.Iocp.CompletionKey = ptr::without_provenance_mut(77);
    how.Anonymous.Iocp.Overlapped = ptr::from_mut(overlapped).cast();
    let mut stage = Stage::new(Some(&how));
    // Also when the socket is bound to the port itself: its operations post nothing there.
    let socket = ptr::without_provenance_mut(stage.near.raw());
    // SAFETY: both are open.
    assert!(!unsafe { CreateIoCompletionPort(socket, port, 1, 0) }.is_null());
    let packet = |time| {
        let (mut bytes, mut key, mut overlapped) = (0, 0, ptr::null_mut());
        // SAFETY: there is room for the answer.
        let done = unsafe { GetQueuedCompletionStatus(port, &raw mut bytes, &raw mut key, &raw mut overlapped, time) };
        (done != 0).then_some(key)
    };
    assert!(stage.receive(0, 10, 0, 1));
    assert_eq!(stage.notify(), 0);
    assert_eq!(packet(0), None);
    stage.far.write_all(b"hello").unwrap();
    assert_eq!(packet(10_000), Some(77));
    assert_eq!(stage.results(1)[0].BytesTransferred, 5);
    assert_eq!(packet(20), None);
}

#[test]
fn datagrams_have_addresses() {
    let peer = UdpSocket::bind("127.0.0.1:0").unwrap();
    let near = Near::new(Type::DGRAM, Protocol::UDP);
    near.0.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let address = near.0.local_addr().unwrap();
    let mut stage = Stage::new(None);
    // SAFETY: the completion queue is live.
    unsafe {
        stage.table.RIOResizeCompletionQueue.unwrap()(stage.completions, 20);
        let (socket, queue) = (near.raw(), stage.completions);
        stage.queue = stage.table.RIOCreateRequestQueue.unwrap()(socket, 2, 1, 2, 1, queue, queue, ptr::null());
    }
    let (data, from) = (stage.slice(0, 100), stage.slice(100, 28));
    // SAFETY: the slices lie in leaked memory.
    let posted = unsafe {
        let none = ptr::null();
        stage.table.RIOReceiveEx.unwrap()(stage.queue, &data, 1, none, &from, none, none, 0, context(1))
    };
    assert_ne!(posted, 0);
    peer.send_to(b"a datagram", address.as_socket().unwrap()).unwrap();
    assert_eq!((stage.results(1)[0].BytesTransferred, stage.read(0, 10)), (10, b"a datagram".to_vec()));
    // The answer goes to the address that came.
    stage.write(200, b"an answer");
    let (data, to) = (stage.slice(200, 9), stage.slice(100, 28));
    // SAFETY: the slices lie in leaked memory.
    let posted = unsafe {
        let none = ptr::null();
        stage.table.RIOSendEx.unwrap()(stage.queue, &data, 1, none, &to, none, none, 0, context(2))
    };
    assert_ne!(posted, 0);
    let mut answer = [0; 20];
    peer.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(peer.recv(&mut answer).unwrap(), 9);
    assert_eq!(&answer[..9], b"an answer");
    assert_eq!((stage.results(1)[0].Status, stage.dequeue().len()), (0, 0));

    // One without data has no buffer either.
    // SAFETY: the slices lie in leaked memory.
    let posted = unsafe {
        let none = ptr::null();
        stage.table.RIOSendEx.unwrap()(stage.queue, none, 0, none, &to, none, none, 0, context(3))
    };
    assert_ne!(posted, 0);
    assert_eq!(peer.recv(&mut answer).unwrap(), 0);
    let result = stage.results(1)[0];
    assert_eq!((result.Status, result.BytesTransferred, result.RequestContext), (0, 0, 3));

    // What does not fit is cut, and the status says so.
    let data = stage.slice(0, 4);
    // SAFETY: the slices lie in leaked memory.
    let posted = unsafe {
        let none = ptr::null();
        stage.table.RIOReceiveEx.unwrap()(stage.queue, &data, 1, none, &from, none, none, 0, context(4))
    };
    assert_ne!(posted, 0);
    peer.send_to(b"too long", address.as_socket().unwrap()).unwrap();
    assert_eq!(stage.results(1)[0].Status, WSAEMSGSIZE);
    assert_eq!(stage.read(0, 4), b"too ");
}

#[test]
fn calls_are_counted() {
    let before = calls();
    let stage = Stage::new(None);
    assert!(stage.send(0, b"x", DEFER, 0) && stage.commit());
    stage.results(1);
    // SAFETY: the queue is live.
    assert_eq!(unsafe { stage.table.RIOResizeCompletionQueue.unwrap()(stage.completions, 1) }, 0);
    // SAFETY: no memory is passed.
    assert_eq!(unsafe { WSAGetLastError() }, 10022);
    let after = calls();
    // Other tests may run beside this one.
    assert!(after.sends > before.sends && after.deferred > before.deferred && after.commits > before.commits);
    assert!(after.dequeues > before.dequeues && after.resizes > before.resizes && after.failures > before.failures);
    assert!(after.in_use.completion_queues > 0);
}

/// Runs `body` in a process of its own, which must end with a message about `rule`.
fn breaks(test: &str, rule: &str, body: fn(&mut Stage)) {
    if std::env::var("RIO_STANDIN_BREAKS").as_deref() == Ok(test) {
        body(&mut Stage::new(None));
        // To be told apart from the end that is expected.
        std::process::exit(0);
    }
    let own = std::env::current_exe().unwrap();
    let output = Command::new(own).args(["--exact", test]).env("RIO_STANDIN_BREAKS", test).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(101), "no breach was found: {text}");
    assert!(text.contains(BREACH) && text.contains(rule), "{text:?} is not about {rule:?}");
}

macro_rules! breaches {
    ($($name:ident: $rule:literal, $body:expr;)+) => {
        $(
            #[test]
            fn $name() {
                breaks(stringify!($name), $rule, $body);
            }
        )+
    };
}

breaches! {
    two_buffers: "not exactly 1", |stage| {
        // SAFETY: never started.
        unsafe { stage.table.RIOSend.unwrap()(stage.queue, &stage.slice(0, 1), 2, 0, ptr::null()) };
    };
    a_slice_outside: "inside its buffer", |stage| {
        stage.receive(BYTES as u32 - 1, 2, 0, 0);
    };
    overlapping_slices: "overlap", |stage| {
        stage.receive(0, 10, 0, 0);
        stage.receive(5, 10, 0, 0);
    };
    too_many_requests: "overflows", |stage| {
        for number in 0..3 {
            stage.receive(number * 10, 10, DEFER, 0);
        }
    };
    a_queue_without_room: "resize it first", |stage| {
        let (near, _far) = pair();
        let (socket, queue) = (near.raw(), stage.completions);
        // SAFETY: the handles are live.
        unsafe { stage.table.RIOCreateRequestQueue.unwrap()(socket, 2, 1, 1, 1, queue, queue, ptr::null()) };
    };
    a_commit_with_data: "commit has other arguments", |stage| {
        stage.send(0, b"x", COMMIT_ONLY, 0);
    };
    a_buffer_in_use: "while a request uses it", |stage| {
        stage.receive(0, 10, 0, 0);
        // SAFETY: that it is not safe is what is tested.
        unsafe { stage.table.RIODeregisterBuffer.unwrap()(stage.buffer) };
    };
    an_ordinary_socket: "created for Registered I/O", |stage| {
        let (socket, queue) = (stage.far.as_raw_socket() as usize, stage.completions);
        // SAFETY: the handles are live.
        unsafe { stage.table.RIOCreateRequestQueue.unwrap()(socket, 1, 1, 1, 1, queue, queue, ptr::null()) };
    };
    a_closed_socket: "socket is closed", |stage| {
        closing(stage.near.raw());
        stage.receive(0, 10, 0, 0);
    };
    a_closed_completion_queue: "unknown completion queue", |stage| {
        // SAFETY: nothing is under way.
        unsafe { stage.table.RIOCloseCompletionQueue.unwrap()(stage.completions) };
        stage.dequeue();
    };
    one_overlapped_for_two_queues: "share one OVERLAPPED", |stage| {
        let mut how = RIO_NOTIFICATION_COMPLETION { Type: RIO_IOCP_COMPLETION, ..Default::default() };
        how.Anonymous.Iocp.Overlapped = stage.memory.cast();
        // SAFETY: the structure is valid.
        unsafe {
            stage.table.RIOCreateCompletionQueue.unwrap()(1, &how);
            stage.table.RIOCreateCompletionQueue.unwrap()(1, &how);
        }
    };
    two_threads_on_one_queue: "at the same time", |stage| {
        // SAFETY: the queue is live.
        unsafe { stage.table.RIOResizeCompletionQueue.unwrap()(stage.completions, 100) };
        let (table, queue) = (stage.table, stage.queue);
        let hammer = move || {
            for _ in 0..200_000 {
                // SAFETY: the queue is live.
                unsafe { table.RIOResizeRequestQueue.unwrap()(queue, 2, 4) };
            }
        };
        let other = std::thread::spawn(hammer);
        hammer();
        other.join().unwrap();
    };
}
