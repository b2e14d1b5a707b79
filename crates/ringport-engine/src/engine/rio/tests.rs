//! What the conformance suite cannot bring about or see: refusals and faults of the system, how large the queues are, and
//! how often an idle engine looks.

use std::cell::Cell;
use std::ffi::c_void;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{
    RIO_BUF, RIO_CORRUPT_CQ, RIO_CQ, RIO_RQ, SOCKET, WSAECONNABORTED, WSAECONNRESET, WSAENOBUFS, WSASetLastError,
};

use super::*;
use crate::buffer::{Chunk, PoolConfig};
use crate::engine::contract::DROP_WAIT;
use crate::socket::ListenOptions;

const WAYS: [RioCompletions; 4] =
    [RioCompletions::Polled, RioCompletions::Event, RioCompletions::Port, RioCompletions::Hybrid];

/// An engine over the functions that stand in for the system's.
fn engine_with(completions: RioCompletions, pool: Pool) -> RioEngine {
    let (created, closing) = (rio_standin::created, rio_standin::closing);
    // SAFETY: the functions do what the documentation says, over overlapped sockets.
    unsafe { use_provider(Provider { table: rio_standin::functions(), created, closing }) };
    let config = EngineConfig { rio_completions: completions, ..EngineConfig::default() };
    RioEngine::open(&config, pool).unwrap()
}

fn engine() -> RioEngine {
    engine_with(RioCompletions::Hybrid, Pool::new(PoolConfig::default()))
}

/// Events until `done` finds what it waits for.
fn until(engine: &mut RioEngine, mut done: impl FnMut(&mut RioEngine, &Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut events = Vec::new();
    while Instant::now() < deadline {
        engine.wait(Some(deadline)).unwrap();
        while let Some(event) = engine.next() {
            let last = done(engine, &event);
            events.push(event);
            if last {
                return events;
            }
        }
    }
    panic!("waited in vain: {events:?}");
}

fn listen(engine: &mut RioEngine) -> SockAddr {
    let any = SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let socket = Socket::listen(&any, &ListenOptions::default(), None).unwrap();
    let address = socket.local_addr().unwrap();
    let listener = engine.listen(socket).unwrap();
    engine.accept(listener, Want::On);
    address
}

/// Connections of the engine with itself: so many pairs, both ends receiving.
fn pairs(engine: &mut RioEngine, count: usize) -> Vec<(ConnId, ConnId)> {
    let address = listen(engine);
    let mut pairs = Vec::new();
    while pairs.len() < count {
        let client = engine.connect(&address, &SocketOptions::default()).unwrap();
        let (mut server, mut connected) = (None, false);
        let events = until(engine, |_, event| {
            connected |= matches!(event, Event::Connected { .. });
            server = server.or_else(|| matches!(event, Event::Accepted { .. }).then_some(()));
            connected && server.is_some()
        });
        let accepted = events.into_iter().find_map(|event| match event {
            Event::Accepted { socket, .. } => Some(socket),
            _ => None,
        });
        let server = engine.adopt(accepted.unwrap()).unwrap();
        engine.receive(server, Want::On);
        engine.receive(client, Want::On);
        pairs.push((server, client));
    }
    pairs
}

fn send(engine: &mut RioEngine, conn: ConnId, data: impl Into<Chunk>) {
    let mut queue = SendQueue::new();
    queue.push(data);
    let progress = engine.send(conn, &mut queue);
    assert!(!progress.idle && queue.is_empty());
}

fn is_closed(event: &Event, of: ConnId) -> bool {
    matches!(event, Event::Closed { conn, .. } if *conn == of)
}

#[test]
fn an_idle_engine_sleeps() {
    for way in WAYS {
        let mut engine = engine_with(way, Pool::new(PoolConfig::default()));
        pairs(&mut engine, 3);
        engine.wait(Some(Instant::now() + Duration::from_millis(50))).unwrap();
        while engine.next().is_some() {}
        let before = engine.stats();
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            engine.wait(Some(end)).unwrap();
            assert!(engine.next().is_none());
        }
        let after = engine.stats();
        let dequeues = after.dequeues - before.dequeues;
        if way == RioCompletions::Polled {
            assert!(dequeues > 100, "looking is what this way does: {dequeues} times");
        } else {
            // A wait that ends a little early is followed by another; after a turn with work the engine looks some times.
            assert!(dequeues < 80, "{way:?}: {dequeues} looks in {} waits", after.waits - before.waits);
            assert!(after.calls - before.calls < 20, "{way:?}: {after:?} before: {before:?}");
            assert!(after.notifies - before.notifies <= 1, "{way:?}: a notice is asked for once");
        }
    }
}

#[test]
fn the_queue_grows_and_shrinks_with_the_connections() {
    let pool = Pool::new(PoolConfig::default().small_slots(16).large_slots(4));
    let mut engine = engine_with(RioCompletions::Hybrid, pool.clone());
    let first = engine.budget.capacity();
    let pairs = pairs(&mut engine, 200);
    assert!(engine.budget.capacity() >= 400 * DEPTH, "{:?}", engine.budget);
    assert_eq!(pool.stats().lent, 8, "half of the small slots lie under receives, the others wait elsewhere");
    let all: Vec<ConnId> = pairs.iter().flat_map(|(server, client)| [*server, *client]).collect();
    for conn in &all {
        engine.close(*conn, Close::Abort);
    }
    let mut left = all.len();
    until(&mut engine, |_, event| {
        left -= usize::from(matches!(event, Event::Closed { .. }));
        left == 0
    });
    assert_eq!(engine.budget.capacity(), first, "{:?}", engine.budget);
    let stats = pool.stats();
    assert_eq!((stats.lent, stats.leased), (0, 0));
}

#[test]
fn an_echo_is_two_posts() {
    for way in WAYS {
        let mut engine = engine_with(way, Pool::new(PoolConfig::default()));
        let (server, client) = pairs(&mut engine, 1)[0];
        let before = engine.stats();
        for _ in 0..50 {
            send(&mut engine, client, b"a small message");
            until(&mut engine, |engine, event| match event {
                Event::Received { conn, buf } if *conn == server => {
                    send(engine, server, buf.to_vec());
                    false
                }
                Event::Received { conn, .. } => *conn == client,
                _ => false,
            });
            while engine.conns.get(server).is_some_and(|conn| conn.flight.is_some()) {
                engine.wait(Some(Instant::now() + Duration::from_millis(50))).unwrap();
                while engine.next().is_some() {}
            }
        }
        let after = engine.stats();
        let [posts, sends, commits] =
            [after.posts - before.posts, after.sends - before.sends, after.commits - before.commits];
        // Both ends are here. The first receives were posted before, and the last ones may wait for the next turn.
        assert!((99..=102).contains(&posts), "{way:?}: {posts} receives");
        assert_eq!((sends, commits), (100, posts + sends), "{way:?}: no call but the posts");
    }
}

#[test]
fn the_last_send_of_a_failing_connection_leaves_its_record_empty() {
    let mut engine = engine();
    let (server, _) = pairs(&mut engine, 1)[0];
    send(&mut engine, server, b"last words");
    engine.post_sends(server);
    // As if the receive had failed while the send is with the system.
    engine.fail(server, WSAECONNRESET);
    let mut told = None;
    until(&mut engine, |_, event| {
        if let Event::Sent { conn, bytes, idle } = event {
            assert_eq!(*conn, server);
            told = Some((*bytes, *idle));
        }
        told.is_some()
    });
    assert_eq!(told, Some((10, true)));
}

#[test]
fn many_pieces_are_one_batch() {
    let mut engine = engine();
    let (server, client) = pairs(&mut engine, 1)[0];
    let pool = Pool::clone(&engine.pool);
    let mut queue = SendQueue::new();
    for piece in 0..4_u8 {
        let mut buf = pool.writable(100).unwrap();
        buf.append(&[piece; 100]);
        queue.push(buf);
    }
    let before = engine.stats();
    let _ = engine.send(client, &mut queue);
    let mut received = Vec::new();
    until(&mut engine, |_, event| {
        if let Event::Received { conn, buf } = event {
            assert_eq!(*conn, server);
            received.extend_from_slice(buf);
        }
        received.len() == 400
    });
    assert!(received.chunks(100).zip(0..).all(|(part, piece)| part == [piece; 100]));
    let after = engine.stats();
    assert_eq!(after.sends - before.sends, 4, "four slots, from where they lie");
    let commits = (after.commits - before.commits) - (after.posts - before.posts);
    assert_eq!(commits, 1, "one request starts all of them");
}

thread_local! {
    /// Calls of the faulty functions until they fail.
    static GOOD_CALLS: Cell<u32> = const { Cell::new(0) };
}

/// Whether the next call is to be one that fails.
fn fails() -> bool {
    let left = GOOD_CALLS.get();
    GOOD_CALLS.set(left.saturating_sub(1));
    // SAFETY: the call takes a number.
    unsafe { WSASetLastError(WSAENOBUFS) };
    left == 0
}

unsafe extern "system" fn refuse(_: RIO_RQ, _: *const RIO_BUF, _: u32, _: u32, _: *const c_void) -> i32 {
    fails();
    0
}

unsafe extern "system" fn refuse_second(
    queue: RIO_RQ,
    data: *const RIO_BUF,
    count: u32,
    flags: u32,
    context: *const c_void,
) -> i32 {
    // A commit refers to no data and always passes.
    if !data.is_null() && fails() {
        return 0;
    }
    // SAFETY: the caller's arguments.
    unsafe { rio_standin::functions().RIOSend.unwrap()(queue, data, count, flags, context) }
}

unsafe extern "system" fn no_queue(
    _: SOCKET,
    _: u32,
    _: u32,
    _: u32,
    _: u32,
    _: RIO_CQ,
    _: RIO_CQ,
    _: *const c_void,
) -> RIO_RQ {
    fails();
    0
}

unsafe extern "system" fn corrupt(_: RIO_CQ, _: *mut RIORESULT, _: u32) -> u32 {
    RIO_CORRUPT_CQ
}

unsafe extern "system" fn nothing(_: RIO_CQ, _: *mut RIORESULT, _: u32) -> u32 {
    0
}

/// Says that one byte less was taken of the first send.
unsafe extern "system" fn short(queue: RIO_CQ, results: *mut RIORESULT, room: u32) -> u32 {
    // SAFETY: the caller's arguments.
    let count = unsafe { rio_standin::functions().RIODequeueCompletion.unwrap()(queue, results, room) };
    for index in 0..count as usize {
        // SAFETY: so many were written.
        let result = unsafe { &mut *results.add(index) };
        if result.RequestContext & ((1 << receive::TAG_BITS) - 1) == 1 {
            result.BytesTransferred -= 1;
        }
    }
    count
}

#[test]
fn a_refused_receive_ends_the_connection_alone() {
    let mut engine = engine();
    let pairs = pairs(&mut engine, 2);
    let real = engine.functions;
    engine.functions.receive = refuse;
    GOOD_CALLS.set(0);
    let (server, client) = pairs[0];
    send(&mut engine, client, b"the next receive is refused");
    let events = until(&mut engine, |_, event| is_closed(event, server));
    let received = events.iter().any(|event| matches!(event, Event::Received { conn, .. } if *conn == server));
    assert!(received, "what was there is delivered: {events:?}");
    let Some(Event::Closed { why: Some(error), .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.raw_os_error(), Some(WSAENOBUFS));
    engine.functions = real;
    let (server, client) = pairs[1];
    send(&mut engine, client, b"the others go on");
    until(&mut engine, |_, event| matches!(event, Event::Received { conn, .. } if *conn == server));
}

#[test]
fn a_refused_send_gives_back_what_did_not_leave() {
    let mut engine = engine();
    let (server, client) = pairs(&mut engine, 1)[0];
    engine.functions.send = refuse_second;
    GOOD_CALLS.set(1);
    // More than one slot holds, so that it takes several sends.
    let data = vec![7; 3 * engine.pool.config().large_slot_bytes as usize];
    send(&mut engine, client, data.clone());
    let mut arrived = 0;
    let events = until(&mut engine, |_, event| {
        if let Event::Received { conn, buf } = event
            && *conn == server
        {
            arrived += buf.len();
        }
        is_closed(event, client)
    });
    let Some(Event::Closed { why: Some(error), unsent, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.raw_os_error(), Some(WSAENOBUFS));
    let unsent: usize = unsent.iter().map(Chunk::len).sum();
    assert!(unsent > 0 && unsent < data.len() && arrived <= data.len() - unsent, "{unsent} unsent, {arrived} arrived");
}

#[test]
fn a_hole_in_the_stream_ends_the_connection() {
    let mut engine = engine();
    let (_, client) = pairs(&mut engine, 1)[0];
    let pool = Pool::clone(&engine.pool);
    // The functions that dequeue are kept by the queue.
    engine.completions.set_dequeue(short);
    let mut queue = SendQueue::new();
    for _ in 0..3 {
        let mut buf = pool.writable(100).unwrap();
        buf.append(&[1; 100]);
        queue.push(buf);
    }
    let _ = engine.send(client, &mut queue);
    engine.receive(client, Want::Paused);
    let events = until(&mut engine, |_, event| is_closed(event, client));
    let Some(Event::Closed { why: Some(error), unsent, .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.raw_os_error(), Some(WSAECONNABORTED));
    assert_eq!(unsent.iter().map(Chunk::len).sum::<usize>(), 201, "one byte and what came behind it");
}

#[test]
fn without_a_request_queue_a_socket_is_not_taken() {
    let mut engine = engine();
    let address = listen(&mut engine);
    engine.functions.create_request_queue = no_queue;
    let client = engine.connect(&address, &SocketOptions::default()).unwrap();
    let (mut accepted, mut closed) = (false, false);
    let events = until(&mut engine, |_, event| {
        accepted |= matches!(event, Event::Accepted { .. });
        closed |= is_closed(event, client);
        accepted && closed
    });
    for event in events {
        match event {
            Event::Accepted { socket, .. } => {
                assert_eq!(engine.adopt(socket).unwrap_err().raw_os_error(), Some(WSAENOBUFS));
            }
            Event::Closed { why, .. } => assert_eq!(why.unwrap().raw_os_error(), Some(WSAENOBUFS)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(engine.budget.needed(64 * DEPTH), Some(64 * DEPTH), "nothing is charged");
}

#[test]
fn a_corrupt_queue_is_the_end_of_the_engine() {
    for way in WAYS {
        let mut engine = engine_with(way, Pool::new(PoolConfig::default()));
        let (_, client) = pairs(&mut engine, 1)[0];
        engine.completions.set_dequeue(corrupt);
        send(&mut engine, client, b"x");
        let end = Instant::now() + Duration::from_secs(10);
        let error = loop {
            assert!(Instant::now() < end, "{way:?}: nobody noticed");
            match engine.wait(Some(Instant::now() + Duration::from_millis(20))) {
                Ok(()) => while engine.next().is_some() {},
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("corrupt"), "{way:?}: {error}");
    }
}

#[test]
fn what_never_ends_is_leaked() {
    let pool = Pool::new(PoolConfig::default());
    let mut engine = engine_with(RioCompletions::Hybrid, pool.clone());
    pairs(&mut engine, 1);
    engine.completions.set_dequeue(nothing);
    let start = Instant::now();
    drop(engine);
    assert!(start.elapsed() >= DROP_WAIT && start.elapsed() < DROP_WAIT + Duration::from_secs(2));
    assert_eq!(pool.stats().lent, 2, "the slots under the receives stay with the system");
}
