//! Polling before parking (F12): it changes when the thread sleeps, and nothing else.

use std::time::{Duration, Instant};

use ringport_engine::{Engine, EngineConfig, EngineKind, PoolConfig, RioCompletions};

use crate::subject::Setup;
use crate::world::{At, World};

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
        let now = if setup.sim { world.server.engine.now() } else { Instant::now() };
        world.server.turn(Some(now + Duration::from_millis(3)));
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
        let now = || if setup.sim { world.server.engine.now() } else { Instant::now() };
        let deadline = now() + Duration::from_millis(millis);
        let mut turns = 0;
        while (if setup.sim { world.server.engine.now() } else { Instant::now() }) < deadline {
            world.server.turn(Some(deadline));
            turns += 1;
            assert!(turns < 50, "it returns again and again before the deadline");
        }
    }
    world.finish();
}
