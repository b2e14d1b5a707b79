//! Turns and waits: law 10, and wakers.

use std::time::{Duration, Instant};

use ringport_engine::{ConnId, Engine, PoolConfig, Want};

use crate::subject::Setup;
use crate::world::World;

fn now<E: Engine>(world: &World<E>) -> Instant {
    if world.network.is_some() { world.server.engine.now() } else { Instant::now() }
}

/// Pairs of which the client has sent `bytes` each, which lie in the server's kernel.
fn loaded<E: Engine>(world: &mut World<E>, count: usize, bytes: usize) -> Vec<(ConnId, ConnId)> {
    let pairs = world.silent_pairs(count);
    for (_, client) in &pairs {
        let data = world.dice.bytes(bytes);
        world.client.send(*client, data);
    }
    world.settle();
    pairs
}

/// No turn has more events than allowed (`Side::turn` counts), and nothing is lost by that.
pub fn a_turn_has_an_end<E: Engine>(setup: &Setup) {
    let mut config = setup.config();
    config.events_per_turn = 3;
    let mut world = World::<E>::with(setup, config, PoolConfig::default());
    let pairs = loaded(&mut world, 20, 1);
    for (server, _) in &pairs {
        world.server.engine.receive(*server, Want::On);
    }
    for (server, client) in pairs {
        let wanted = world.client.log(client).wanted.clone();
        world.expect(crate::world::At::Server, server, &wanted);
    }
    assert!(world.server.events_max <= 3);
    world.finish();
}

/// What one connection gets in one turn is bounded, so that the small ones have theirs early.
pub fn a_busy_connection_starves_nobody<E: Engine>(setup: &Setup) {
    check_share::<E>(setup, 1024);
}

/// Slots for large receives make the share of a turn no wider.
pub fn a_large_slot_widens_no_share<E: Engine>(setup: &Setup) {
    check_share::<E>(setup, 65_536);
}

fn check_share<E: Engine>(setup: &Setup, large_slot: u32) {
    // A kernel that chooses among the small slots by itself may go beyond the share by one of them.
    let (budget, slot) = (4096, 1024);
    let mut config = setup.config();
    config.bytes_per_turn = budget;
    let pool = PoolConfig::default().slot_bytes(slot as u32, large_slot);
    let mut world = World::<E>::with(setup, config, pool);
    let total = world.scaled(1 << 20);
    let (busy, busy_client) = loaded(&mut world, 1, total).remove(0);
    let small = loaded(&mut world, 10, 1);
    for server in small.iter().map(|(server, _)| *server).chain([busy]) {
        world.server.engine.receive(server, Want::On);
    }
    let mut waiting: Vec<ConnId> = small.into_iter().map(|(server, _)| server).collect();
    let mut busy_before = 0;
    world.until("the small ones are served", |world| {
        let received = world.server.log(busy).received.len();
        // Two turns at most lie between two looks: a step has a second one when nothing moved.
        assert!(received - busy_before <= 2 * (budget + slot), "{} bytes in a turn", received - busy_before);
        busy_before = received;
        waiting.retain(|conn| world.server.log(*conn).received.is_empty());
        waiting.is_empty()
    });
    if !setup.sim {
        assert!(busy_before < total / 4, "{busy_before} of {total} bytes came before the small ones");
    }
    let wanted = world.client.log(busy_client).wanted.clone();
    world.expect(crate::world::At::Server, busy, &wanted);
    world.finish();
}

/// With events left from the last turn, a wait with a far deadline returns at once.
pub fn leftovers_keep_wait_from_blocking<E: Engine>(setup: &Setup) {
    let mut config = setup.config();
    config.events_per_turn = 2;
    config.bytes_per_turn = 512;
    let mut world = World::<E>::with(setup, config, PoolConfig::default().slot_bytes(256, 256));
    // No more than the server's kernel holds by itself: only the server has turns.
    let bytes = if setup.sim { world.scaled(1_200_000) / 400 + 1 } else { 3_000 };
    let pairs = loaded(&mut world, 8, bytes);
    world.until("all of it is sent", |world| pairs.iter().all(|(_, client)| world.client.log(*client).in_flight == 0));
    for (server, _) in &pairs {
        world.server.engine.receive(*server, Want::On);
    }
    let start = now(&world);
    let mut turns = 0;
    while pairs.iter().any(|(server, _)| world.server.log(*server).received.len() < bytes) {
        let deadline = now(&world) + Duration::from_secs(3);
        world.server.turn(Some(deadline));
        turns += 1;
        assert!(turns < 10_000, "no end");
    }
    let took = now(&world) - start;
    assert!(took < Duration::from_secs(2), "{turns} turns took {took:?}: a wait blocked over what was left");
    world.finish();
}

/// From another thread, a wake ends a wait that nothing else would end.
pub fn a_waker_ends_a_wait<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    world.settle();
    let waker = world.server.engine.waker();
    let other = waker.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(if cfg!(miri) { 0 } else { 1 }));
        other.wake();
    });
    if setup.sim {
        // Virtual time does not wait for a thread.
        thread.join().expect("waking does not panic");
        world.server.turn(None);
    } else {
        let start = Instant::now();
        while world.server.woken == 0 && start.elapsed() < Duration::from_secs(5) {
            world.server.turn(Some(start + Duration::from_secs(5)));
        }
        assert!(start.elapsed() < Duration::from_secs(2), "the wake was not noticed");
        thread.join().expect("waking does not panic");
    }
    assert_eq!(world.server.woken, 1);
    // A wake before the wait counts as well.
    waker.wake();
    let deadline = now(&world) + Duration::from_secs(5);
    let start = Instant::now();
    while world.server.woken == 1 && now(&world) < deadline {
        world.server.turn(Some(deadline));
    }
    assert_eq!(world.server.woken, 2);
    assert!(start.elapsed() < Duration::from_secs(2), "the wake was not noticed");
    world.finish();
}

/// Many wakes are at least one `Woken` and no more than there were.
pub fn wakes_may_be_joined<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let waker = world.server.engine.waker();
    for _ in 0..100 {
        waker.wake();
    }
    world.until("it is woken", |world| world.server.woken > 0);
    world.settle();
    assert!(world.server.woken <= 100);
    let woken = world.server.woken;
    waker.wake();
    world.until("it is woken again", |world| world.server.woken > woken);
    world.finish();
}

/// Without events, a wait ends at its deadline and not much before.
pub fn a_deadline_ends_a_wait<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    world.settle();
    let start = now(&world);
    let deadline = start + Duration::from_millis(30);
    let mut turns = 0;
    while now(&world) < deadline {
        world.server.turn(Some(deadline));
        turns += 1;
    }
    let took = now(&world) - start;
    assert!(turns < 30, "{turns} turns: the wait spins");
    assert!(took < Duration::from_millis(1500), "the wait took {took:?}");
    assert!(world.server.engine.now() >= start, "the clock runs backwards");
    world.finish();
}
