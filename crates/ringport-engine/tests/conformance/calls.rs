//! What a message costs in system calls.

use std::time::{Duration, Instant};

use ringport_engine::{Engine, EngineKind};

use crate::subject::Setup;
use crate::world::{At, World};

const ECHOES: u64 = 100;

/// Calls that one side needs for one small message in each direction, besides waiting: the least that the interface
/// allows.
fn least_calls(setup: &Setup) -> Option<u64> {
    match setup.kind? {
        // The kernel receives by itself. A send that shares its turn with others is an entry for the next wait; here each has
        // a turn of its own, and as an entry it would cost another wait.
        EngineKind::Uring if setup.features.multishot_receive => Some(1),
        // A receive and a send.
        EngineKind::Uring | EngineKind::Epoll | EngineKind::Kqueue => Some(2),
        // The same, and one that asks for the next packet.
        EngineKind::Iocp => Some(3),
        _ => None,
    }
}

/// A small echo takes the calls it needs, and none to learn that nothing is left.
pub fn an_echo_takes_no_needless_call<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.log(server).echo = true;
    let echo = |world: &mut World<E>| {
        world.client.log(client).received.clear();
        world.client.send(client, "a small message");
        world.expect(At::Client, client, b"a small message");
    };
    echo(&mut world);
    world.settle();
    let before = [world.server.engine.stats(), world.client.engine.stats()];
    for _ in 0..ECHOES {
        echo(&mut world);
    }
    world.settle();
    let after = [world.server.engine.stats(), world.client.engine.stats()];
    for (before, after) in before.into_iter().zip(after) {
        let waits = after.waits - before.waits;
        let calls = after.calls - before.calls;
        if let Some(least) = least_calls(setup) {
            assert!(
                calls <= waits + least * ECHOES,
                "{ECHOES} echoes took {calls} calls with {waits} waits; {least} more for each are enough: {after:?}"
            );
        }
        let kinds = [after.posts - before.posts, after.receives - before.receives, after.sends - before.sends];
        match setup.kind {
            Some(EngineKind::Iocp) => assert_eq!(kinds, [ECHOES; 3], "posts, receives and sends"),
            Some(EngineKind::Rio) => {
                assert_eq!(kinds, [ECHOES, 0, ECHOES], "posts, receives and sends");
                // Each of them is the only one of its queue and turn: nothing is deferred, and no call only commits.
                assert_eq!(after.commits - before.commits, 2 * ECHOES);
                assert!(after.notifies - before.notifies <= waits, "{after:?} before: {before:?}");
            }
            _ => {}
        }
    }
    world.finish();
}

/// What has happened on many connections comes with one wait (F10).
pub fn a_loaded_wait_brings_many_events<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(if setup.sim { 8 } else { 40 });
    for (server, client) in &pairs {
        world.client.send(*client, "one of many");
        assert!(world.server.log(*server).received.is_empty());
    }
    if !setup.sim {
        // The server has no turn until its kernel has everything.
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(40) {
            world.client.turn(Some(Instant::now() + Duration::from_millis(5)));
        }
        let before = world.server.engine.stats().events;
        let mut busy_turns = 0;
        while pairs.iter().any(|(server, _)| world.server.log(*server).received.is_empty()) {
            busy_turns += u64::from(world.server.turn(Some(Instant::now() + Duration::from_millis(5))));
            assert!(start.elapsed() < Duration::from_secs(10), "not everything arrives");
        }
        let events = world.server.engine.stats().events - before;
        assert!(events >= pairs.len() as u64);
        assert!(events >= 4 * busy_turns, "{events} events in {busy_turns} turns that had any");
    }
    for (server, _) in pairs {
        world.expect(At::Server, server, b"one of many");
    }
    world.finish();
}
