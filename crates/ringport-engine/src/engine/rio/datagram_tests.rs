//! What the conformance suite cannot bring about for datagrams: requests that are refused, and memory that is short.

use std::cell::Cell;
use std::ffi::c_void;
use std::time::Duration;

use windows_sys::Win32::Networking::WinSock::{RIO_BUF, RIO_RQ, WSAENOBUFS, WSASetLastError};
use windows_sys::core::BOOL;

use super::*;
use crate::buffer::{Pool, PoolConfig};
use crate::engine::contract::{Engine, EngineConfig, RioCompletions};
use crate::engine::datagram_windows::stage::{bind, events};
use crate::engine::rio::{Provider, use_provider};

thread_local! {
    /// Calls that succeed before one is refused.
    static GOOD_CALLS: Cell<u32> = const { Cell::new(0) };
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

fn engine(pool: PoolConfig) -> RioEngine {
    let (created, closing) = (rio_standin::created, rio_standin::closing);
    // SAFETY: the functions stand in for those of Registered I/O.
    unsafe { use_provider(Provider { table: rio_standin::functions(), created, closing }) };
    let config = EngineConfig { rio_completions: RioCompletions::Hybrid, ..EngineConfig::default() };
    RioEngine::open(&config, Pool::new(pool)).unwrap()
}

fn send(engine: &mut RioEngine, from: UdpId, to: SocketAddr, data: Vec<u8>) {
    assert!(matches!(engine.send_to(from, to, data.into()), SendTo::Taken));
}

fn close(engine: &mut RioEngine, id: UdpId) -> usize {
    engine.close_udp(id);
    let closed = |event: &Event| matches!(event, Event::UdpClosed { udp, .. } if *udp == id);
    let last = events(engine, Duration::from_secs(10), closed).pop();
    let Some(Event::UdpClosed { unsent, .. }) = last else { panic!("{last:?}") };
    unsent
}

unsafe extern "system" fn refuse(
    queue: RIO_RQ,
    data: *const RIO_BUF,
    count: u32,
    local: *const RIO_BUF,
    remote: *const RIO_BUF,
    control: *const RIO_BUF,
    more: *const RIO_BUF,
    flags: u32,
    context: *const c_void,
) -> BOOL {
    CALLS.set(CALLS.get() + 1);
    if GOOD_CALLS.get() > 0 {
        GOOD_CALLS.set(GOOD_CALLS.get() - 1);
        let send = rio_standin::functions().RIOSendEx.unwrap();
        // SAFETY: the caller's arguments.
        return unsafe { send(queue, data, count, local, remote, control, more, flags, context) };
    }
    // SAFETY: the call takes a number.
    unsafe { WSASetLastError(WSAENOBUFS) };
    0
}

#[test]
fn the_completion_queue_has_room_for_every_socket() {
    let mut engine = engine(PoolConfig::default());
    let first = engine.budget.capacity();
    let sockets: Vec<UdpId> = (0..12).map(|_| bind(&mut engine).0).collect();
    let depths: Vec<u32> = sockets.iter().map(|id| engine.udp.outlets.table.get(*id).unwrap().depth()).collect();
    assert!(engine.budget.capacity() >= depths.iter().sum(), "{:?}", engine.budget);
    assert!(depths.last() < depths.first(), "those that come later have fewer receives: {depths:?}");
    events(&mut engine, Duration::from_millis(20), |_| false);
    for id in sockets {
        assert_eq!(close(&mut engine, id), 0);
    }
    assert_eq!(engine.budget.capacity(), first, "{:?}", engine.budget);
    assert_eq!(engine.budget.needed(first), Some(first), "nothing is charged");
}

#[test]
fn without_a_slot_one_datagram_at_a_time_is_sent_from_the_block() {
    let mut engine = engine(PoolConfig::default().small_slots(8).large_slots(2).slot_bytes(64, 64));
    let (near, _) = bind(&mut engine);
    let (far, to) = bind(&mut engine);
    let sizes = [3000, 10, 65_507, 0, 700, 1];
    for size in sizes {
        send(&mut engine, near, to, vec![7; size]);
    }
    let mut received = Vec::new();
    events(&mut engine, Duration::from_secs(10), |event| {
        if let Event::Datagram { udp, buf, truncated, .. } = event {
            assert!(*udp == far && !truncated && buf.iter().all(|byte| *byte == 7));
            received.push(buf.len());
        }
        received.len() == sizes.len()
    });
    received.sort_unstable();
    assert_eq!(received, [0, 1, 10, 700, 3000, 65_507]);
    assert!(!engine.udp.outlets.table.get(near).unwrap().staged, "the place is free again");
    assert_eq!((close(&mut engine, near), close(&mut engine, far)), (0, 0));
}

#[test]
fn a_refused_send_costs_its_datagram_alone() {
    let mut engine = engine(PoolConfig::default());
    let (near, _) = bind(&mut engine);
    let (far, to) = bind(&mut engine);
    let real = engine.functions;
    engine.functions.send_to = refuse;
    GOOD_CALLS.set(2);
    for number in 0..3 {
        send(&mut engine, near, to, vec![number]);
    }
    let (mut received, mut failed) = (Vec::new(), None);
    events(&mut engine, Duration::from_secs(10), |event| {
        match event {
            Event::Datagram { buf, .. } => received.push(buf[0]),
            Event::DatagramFailed { to, error, .. } => failed = Some((*to, error.raw_os_error())),
            other => panic!("{other:?}"),
        }
        received.len() == 2 && failed.is_some()
    });
    assert_eq!((received, failed), (vec![0, 1], Some((Some(to), Some(WSAENOBUFS)))), "what was deferred leaves, too");
    engine.functions = real;
    send(&mut engine, near, to, vec![3]);
    let arrived = |event: &Event| matches!(event, Event::Datagram { udp, .. } if *udp == far);
    assert!(events(&mut engine, Duration::from_secs(10), arrived).iter().any(arrived));
    assert_eq!(close(&mut engine, near), 0);
}

#[test]
fn refused_receives_are_tried_again_without_spinning() {
    let mut engine = engine(PoolConfig::default());
    let real = engine.functions;
    engine.functions.receive_from = refuse;
    GOOD_CALLS.set(0);
    CALLS.set(0);
    let (near, to) = bind(&mut engine);
    let failures = events(&mut engine, Duration::from_millis(200), |_| false);
    assert!(failures.iter().all(|event| matches!(event, Event::DatagramFailed { to: None, .. })), "{failures:?}");
    assert!((2..40).contains(&CALLS.get()), "{} tries", CALLS.get());
    engine.functions = real;
    send(&mut engine, near, to, vec![1; 100]);
    let arrived = |event: &Event| matches!(event, Event::Datagram { .. });
    assert!(events(&mut engine, Duration::from_secs(10), arrived).iter().any(arrived));
    assert_eq!(close(&mut engine, near), 0);
}

#[test]
fn many_sockets_or_long_datagrams_have_few_receives() {
    assert_eq!(receives(1, 65_535, 256), 15);
    assert_eq!(receives(8, 65_535, 256), 15);
    assert_eq!(receives(16, 65_535, 256), 7);
    assert_eq!(receives(1000, 65_535, 256), 2);
    assert_eq!(receives(1, 1500, 1000), 256);
    assert_eq!(receives(1, 1500, 4), 4);
    assert_eq!(receives(1, 1, 0), 2);
}
