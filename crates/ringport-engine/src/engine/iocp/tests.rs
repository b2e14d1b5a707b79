//! What the conformance suite cannot bring about: failures of the system, and operations that never end.

use std::cell::Cell;
use std::ffi::c_void;
use std::ptr;
use std::time::{Duration, Instant};

use windows_sys::Win32::Foundation::{ERROR_IO_PENDING, HANDLE, STATUS_INSUFFICIENT_RESOURCES};
use windows_sys::Win32::Networking::WinSock::{SOCKADDR, SOCKET, WSAECONNRESET, WSAENOBUFS, WSASetLastError};
use windows_sys::Win32::System::IO::{OVERLAPPED, PostQueuedCompletionStatus};
use windows_sys::core::BOOL;

use super::*;
use crate::buffer::{Chunk, PoolConfig};
use crate::engine::contract::{ACCEPT_BACKOFF_MAX, DROP_WAIT};
use crate::socket::ListenOptions;

/// What the accept of the tests does instead of accepting.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Refuses with this error.
    Refuse(i32),
    /// Goes on, and fails for want of memory.
    FailLater,
}

thread_local! {
    static FAULT: Cell<Fault> = const { Cell::new(Fault::FailLater) };
    static PORT: Cell<HANDLE> = const { Cell::new(ptr::null_mut()) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

unsafe extern "system" fn faulty_accept(
    _: SOCKET,
    _: SOCKET,
    _: *mut c_void,
    _: u32,
    _: u32,
    _: u32,
    _: *mut u32,
    overlapped: *mut OVERLAPPED,
) -> BOOL {
    CALLS.set(CALLS.get() + 1);
    let error = match FAULT.get() {
        Fault::Refuse(error) => error,
        Fault::FailLater => {
            // SAFETY: the engine lends the OVERLAPPED until its packet has come, and this is that packet.
            unsafe {
                (*overlapped).Internal = STATUS_INSUFFICIENT_RESOURCES as usize;
                assert_ne!(PostQueuedCompletionStatus(PORT.get(), 0, 0, overlapped), 0);
            }
            ERROR_IO_PENDING as i32
        }
    };
    // SAFETY: the call takes a number.
    unsafe { WSASetLastError(error) };
    0
}

unsafe extern "system" fn endless_connect(
    _: SOCKET,
    _: *const SOCKADDR,
    _: i32,
    _: *const c_void,
    _: u32,
    _: *mut u32,
    _: *mut OVERLAPPED,
) -> BOOL {
    // SAFETY: the call takes a number.
    unsafe { WSASetLastError(ERROR_IO_PENDING as i32) };
    0
}

fn engine() -> IocpEngine {
    IocpEngine::open(&EngineConfig::default(), Pool::new(PoolConfig::default())).unwrap()
}

fn listen(engine: &mut IocpEngine) -> (ListenerId, SockAddr) {
    let any = SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
    let socket = Socket::listen(&any, &ListenOptions::default(), None).unwrap();
    let address = socket.local_addr().unwrap();
    (engine.listen(socket).unwrap(), address)
}

/// Events until `time` has passed, or until one is what is wanted.
fn events(engine: &mut IocpEngine, time: Duration, done: impl Fn(&Event) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + time;
    let mut events = Vec::new();
    while Instant::now() < deadline && !events.last().is_some_and(&done) {
        engine.wait(Some(deadline)).unwrap();
        while let Some(event) = engine.next() {
            let last = done(&event);
            events.push(event);
            if last {
                break;
            }
        }
    }
    events
}

/// Out of buffers, whether the call says so or its packet, the listener pauses, ever longer, and service resumes (law 8).
#[test]
fn want_of_memory_makes_accepting_pause() {
    for fault in [Fault::Refuse(WSAENOBUFS), Fault::FailLater] {
        let mut engine = engine();
        let real = engine.extensions;
        engine.extensions = real.with_accept(Some(faulty_accept));
        FAULT.set(fault);
        PORT.set(engine.port.handle());
        CALLS.set(0);
        let (listener, address) = listen(&mut engine);
        engine.accept(listener, Want::On);
        let waits = engine.stats().waits;
        let failures = events(&mut engine, Duration::from_millis(600), |_| false);
        let failed = |event: &Event| matches!(event, Event::AcceptFailed { .. });
        assert!(failures.iter().all(failed), "{failures:?}");
        assert!((3..12).contains(&failures.len()), "{} pauses", failures.len());
        assert!(engine.stats().accepts_failed >= failures.len() as u64);
        assert!(CALLS.get() < 12 * 16 && engine.stats().waits - waits < 100, "it spins");

        engine.extensions = real;
        let (start, client) = (Instant::now(), std::net::TcpStream::connect(address.as_socket().unwrap()).unwrap());
        let accepted = |event: &Event| matches!(event, Event::Accepted { .. });
        let last = events(&mut engine, Duration::from_secs(5), accepted).pop().unwrap();
        assert!(accepted(&last), "{last:?}");
        assert!(start.elapsed() < ACCEPT_BACKOFF_MAX + Duration::from_millis(500));
        drop(client);
    }
}

/// A connection that is gone before it is accepted is counted, and no error; that it is so every time is no reason to
/// spin.
#[test]
fn lost_connections_are_counted_and_skipped() {
    let mut engine = engine();
    engine.extensions = engine.extensions.with_accept(Some(faulty_accept));
    FAULT.set(Fault::Refuse(WSAECONNRESET));
    CALLS.set(0);
    let (listener, _) = listen(&mut engine);
    engine.accept(listener, Want::On);
    let found = events(&mut engine, Duration::from_millis(300), |_| false);
    assert!(found.is_empty(), "{found:?}");
    assert!(CALLS.get() < 12 * 32, "{} calls: it spins", CALLS.get());
    assert_eq!(u64::from(CALLS.get()), engine.stats().accepts_failed);
}

/// An operation whose packet never comes is leaked, after a bounded time (law 2).
#[test]
fn what_never_ends_is_leaked_in_bounded_time() {
    let mut engine = engine();
    engine.extensions = engine.extensions.with_connect(Some(endless_connect));
    let (_, address) = listen(&mut engine);
    let conn = engine.connect(&address, &SocketOptions::default()).unwrap();
    engine.close(conn, Close::Abort);
    assert!(events(&mut engine, Duration::from_millis(50), |_| false).is_empty(), "closed with an operation under way");
    let start = Instant::now();
    drop(engine);
    let took = start.elapsed();
    assert!(took >= DROP_WAIT - Duration::from_millis(100) && took < DROP_WAIT + Duration::from_secs(1), "{took:?}");
}

/// A cancellation may pass over an operation that is between two of its steps. What that costs is a moment, and not the end of
/// the connection, the listener, the socket or the engine.
#[test]
fn what_a_cancellation_passes_over_is_cancelled_again() {
    use crate::engine::winsock::PASSES_OVER;
    let mut engine = engine();
    let (listener, address) = listen(&mut engine);
    engine.accept(listener, Want::On);
    let _client = std::net::TcpStream::connect(address.as_socket().unwrap()).unwrap();
    let accepted = |event: &Event| matches!(event, Event::Accepted { .. });
    let Some(Event::Accepted { socket, .. }) = events(&mut engine, Duration::from_secs(10), accepted).pop() else {
        panic!("nothing was accepted");
    };
    let conn = engine.adopt(socket).unwrap();
    engine.receive(conn, Want::On);
    let (udp, _) = crate::engine::datagram_windows::stage::bind(&mut engine);

    PASSES_OVER.set(3);
    engine.close(conn, Close::Abort);
    engine.close_udp(udp);
    engine.unlisten(listener);
    assert_eq!(PASSES_OVER.get(), 0, "there was nothing to cancel");
    let ended =
        |event: &Event| matches!(event, Event::Closed { .. } | Event::UdpClosed { .. } | Event::ListenerClosed { .. });
    for _ in 0..3 {
        let last = events(&mut engine, Duration::from_secs(10), ended).pop();
        assert!(last.is_some_and(|last| ended(&last)), "what was passed over is under way for good");
    }

    let (listener, _) = listen(&mut engine);
    engine.accept(listener, Want::On);
    PASSES_OVER.set(1);
    let start = Instant::now();
    drop(engine);
    assert!(start.elapsed() < DROP_WAIT / 2, "the engine waited in vain");
}

/// Thousands of operations in a row succeed at once, on a stack that has no room for a frame of each (F11).
#[test]
fn inline_completions_do_not_recurse() {
    let thread = std::thread::Builder::new().stack_size(256 * 1024).spawn(|| {
        let mut engine = engine();
        let (listener, address) = listen(&mut engine);
        engine.accept(listener, Want::On);
        let client = engine.connect(&address, &SocketOptions::default()).unwrap();
        let mut inline = 0;
        let mut send = |engine: &mut IocpEngine, conn, piece: Chunk| {
            let mut queue = SendQueue::new();
            queue.push(piece);
            inline += u32::from(engine.send(conn, &mut queue).idle);
            inline
        };
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            engine.wait(Some(start + Duration::from_secs(30))).unwrap();
            while let Some(event) = engine.next() {
                let sent = match event {
                    Event::Accepted { socket, .. } => {
                        let conn = engine.adopt(socket).unwrap();
                        engine.receive(conn, Want::On);
                        continue;
                    }
                    Event::Connected { conn } => {
                        engine.receive(conn, Want::On);
                        send(&mut engine, conn, Chunk::from("to and fro"))
                    }
                    Event::Received { conn, buf } => send(&mut engine, conn, buf.into()),
                    _ => continue,
                };
                if sent >= 5_000 {
                    engine.close(client, Close::Abort);
                    return engine.stats();
                }
            }
        }
        panic!("it took too long");
    });
    let stats = thread.unwrap().join().unwrap();
    assert!(stats.sends >= 5_000 && stats.receives >= 4_999, "{stats:?}");
}

/// Pinning is read back: setting a mask tells the one before.
#[test]
fn a_thread_is_pinned_to_one_core() {
    use windows_sys::Win32::System::Threading::{GetCurrentThread, SetThreadAffinityMask};
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let masks: std::collections::BTreeSet<usize> = (0..2 * cores)
        .map(|index| {
            crate::engine::pin_to_core(index).unwrap();
            // SAFETY: the handle stands for this thread. The mask allows the first core, which exists.
            unsafe { SetThreadAffinityMask(GetCurrentThread(), 1) }
        })
        .collect();
    assert_eq!(masks.len(), cores, "{masks:?}");
    assert!(masks.iter().all(|mask| mask.count_ones() == 1), "{masks:?}");
}

/// What was sent and is still in the socket, until all has come.
fn read_all(mut peer: std::net::TcpStream, length: usize) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut data = vec![0; length];
        std::io::Read::read_exact(&mut peer, &mut data).unwrap();
        data
    })
}

/// The system reads a file by itself; and where it carries out only some of that at a time, peers that do not read hold up
/// nobody else's file.
#[test]
fn files_are_sent_by_the_system_and_nobody_holds_up_the_others() {
    const LENGTH: usize = 3 << 20;
    let path = std::env::temp_dir().join(format!("ringport-transmit-{}", std::process::id()));
    let data: Vec<u8> = (0..LENGTH as u32).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
    std::fs::write(&path, &data).unwrap();
    let file = std::sync::Arc::new(std::fs::File::open(&path).unwrap());
    let range = || crate::buffer::FileRange::new(std::sync::Arc::clone(&file), 7, LENGTH - 7);
    let mut engine = engine();
    let acceptor = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let begin = |engine: &mut IocpEngine| {
        let near = std::net::TcpStream::connect(acceptor.local_addr().unwrap()).unwrap();
        let id = engine.adopt(near.into()).unwrap();
        let mut queue = SendQueue::new();
        queue.push(range());
        let progress = engine.send(id, &mut queue);
        (id, queue, progress.bytes, acceptor.accept().unwrap().0)
    };
    let stalled: Vec<_> = (0..transmit::ON_WORKSTATIONS).map(|_| begin(&mut engine)).collect();
    assert!(engine.stats().transmits >= transmit::ON_WORKSTATIONS as u64, "{:?}", engine.stats());
    let (id, mut queue, mut sent, peer) = begin(&mut engine);
    let reader = read_all(peer, LENGTH - 7);
    let deadline = Instant::now() + Duration::from_secs(30);
    while sent < LENGTH - 7 && Instant::now() < deadline {
        engine.wait(Some(Instant::now() + Duration::from_millis(50))).unwrap();
        while let Some(event) = engine.next() {
            if let Event::Sent { conn, bytes, idle } = event
                && conn == id
            {
                sent += bytes;
                if idle {
                    sent += engine.send(id, &mut queue).bytes;
                }
            }
        }
    }
    assert_eq!(sent, LENGTH - 7, "held up by the others: {:?}", engine.stats());
    assert!(reader.join().unwrap() == data[7..], "wrong bytes");
    drop((stalled, engine));
    drop(file);
    std::fs::remove_file(&path).unwrap();
}
