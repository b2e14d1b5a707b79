//! Polling before parking (F12): it changes when the thread sleeps, and nothing else.

use std::time::{Duration, Instant};

use ringport_engine::{Engine, EngineConfig, EngineKind, PoolConfig, RioCompletions};

use crate::subject::Setup;
use crate::world::{At, Side, World};

fn spinning(setup: &Setup, window: Duration) -> EngineConfig {
    let mut config = setup.config();
    config.spin = Some(window);
    config
}

/// Whether rio learns of completions in a way of which polling is no part.
fn looks_its_own_way(setup: &Setup) -> bool {
    let own = setup.kind == Some(EngineKind::Rio) && setup.completions != RioCompletions::Hybrid;
    if own {
        eprintln!("skipped: only hybrid completions of rio are polled for before parking");
    }
    own
}

/// Echoes pass through an engine that polls, and it does poll.
pub fn a_spinning_engine_serves_all<E: Engine>(setup: &Setup) {
    if looks_its_own_way(setup) {
        return;
    }
    let mut world = World::<E>::with(setup, spinning(setup, Duration::from_micros(200)), PoolConfig::default());
    let pairs = world.pairs(4);
    for (server, _) in &pairs {
        world.server.log(*server).echo = true;
    }
    for (_, client) in &pairs {
        for _ in 0..20 {
            let data = world.dice.bytes(500);
            world.client.send(*client, data);
        }
    }
    for (_, client) in pairs {
        let all = world.client.log(client).wanted.clone();
        world.expect(At::Client, client, &all);
    }
    world.settle();
    assert_eq!(world.server.engine.stats().spins > 0, !setup.sim, "{:?}", world.server.engine.stats());
    world.finish();
}

/// Once waits are long, each parks at once: the number of polling waits stands still.
pub fn a_spinning_engine_comes_to_rest<E: Engine>(setup: &Setup) {
    if looks_its_own_way(setup) {
        return;
    }
    let mut world = World::<E>::with(setup, spinning(setup, Duration::from_micros(50)), PoolConfig::default());
    let (server, client) = world.pair();
    world.client.send(client, "busy for a moment");
    world.expect(At::Server, server, b"busy for a moment");
    let wait = |world: &mut World<E>| {
        world.server.turn(Some(now(setup, &world.server) + Duration::from_millis(3)));
    };
    wait(&mut world);
    wait(&mut world);
    let before = world.server.engine.stats();
    (0..30).for_each(|_| wait(&mut world));
    let after = world.server.engine.stats();
    assert_eq!(after.spins, before.spins, "an idle engine polls");
    assert!(after.calls - before.calls <= 60, "{} calls in 30 waits", after.calls - before.calls);
    world.client.send(client, "and again");
    world.expect(At::Server, server, b"busy for a momentand again");
    world.finish();
}

/// A wait is over at its deadline, whether that comes before or after the end of the polling.
pub fn a_spinning_engine_keeps_deadlines<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::with(setup, spinning(setup, Duration::from_millis(5)), PoolConfig::default());
    for millis in [1, 2, 20, 1, 60] {
        let deadline = now(setup, &world.server) + Duration::from_millis(millis);
        let mut turns = 0;
        while now(setup, &world.server) < deadline {
            world.server.turn(Some(deadline));
            turns += 1;
            assert!(turns < 50, "it returns again and again before the deadline");
        }
    }
    world.finish();
}

fn now<E: Engine>(setup: &Setup, side: &Side<E>) -> Instant {
    if setup.sim { side.engine.now() } else { Instant::now() }
}

/// Whether the engine finds out by itself where polling saves processor time.
fn finds_out(setup: &Setup) -> bool {
    !setup.sim && !matches!(setup.kind, Some(EngineKind::Iocp | EngineKind::Rio))
}

/// By itself an engine tries polling where a wait brings one message at a time, and every byte arrives; where it is told never to
/// poll, it does not.
pub fn an_engine_tries_polling_for_single_messages<E: Engine>(setup: &Setup) {
    const MESSAGES: usize = 600;
    for never in [false, true] {
        let mut config = setup.config();
        config.spin = never.then_some(Duration::ZERO);
        let mut world = World::<E>::with(setup, config, PoolConfig::default());
        let (server, client) = world.pair();
        world.server.log(server).echo = true;
        for number in 1..=MESSAGES {
            let data = world.dice.bytes(20);
            // A wait for which nothing has come yet.
            world.server.turn(Some(now(setup, &world.server) + Duration::from_micros(50)));
            world.client.send(client, data);
            world.until("the echo arrives", |world| world.client.log(client).received.len() == 20 * number);
        }
        let all = world.client.log(client).wanted.clone();
        world.expect(At::Client, client, &all);
        let stats = world.server.engine.stats();
        assert_eq!(stats.received_bytes, 20 * MESSAGES as u64);
        assert_eq!(stats.spins > 0, finds_out(setup) && !never, "{stats:?}");
        world.finish();
    }
}

/// By itself an engine polls for nothing that waits without bytes bring, however many they are.
pub fn an_idle_engine_polls_for_nothing<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::with(setup, setup.config(), PoolConfig::default());
    let (server, client) = world.pair();
    for _ in 0..600 {
        world.server.turn(Some(now(setup, &world.server) + Duration::from_micros(100)));
    }
    assert_eq!(world.server.engine.stats().spins, 0);
    world.client.send(client, "still here");
    world.expect(At::Server, server, b"still here");
    world.finish();
}
