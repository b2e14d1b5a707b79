//! Pausing and buffers: laws 6 and 7.

use std::time::{Duration, Instant};

use ringport_engine::{Close, Engine, PoolConfig, Want};

use crate::subject::Setup;
use crate::world::{At, World, check_equal, check_prefix};

/// Pausing and going on at random loses nothing and reorders nothing.
pub fn pausing_loses_nothing<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let length = world.scaled(2 << 20);
    let data = world.dice.bytes(length);
    world.client.send(client, data.clone());
    for _ in 0..60 {
        let want = if world.dice.below(2) == 0 { Want::On } else { Want::Paused };
        world.server.engine.receive(server, want);
        for _ in 0..world.dice.below(6) {
            world.step();
        }
        check_prefix(&world.server.log(server).received, &data);
    }
    world.server.engine.receive(server, Want::Paused);
    world.settle();
    let before = world.server.log(server).received.len();
    world.settle();
    assert_eq!(world.server.log(server).received.len(), before, "bytes arrive although receiving is paused");
    world.server.engine.receive(server, Want::On);
    world.expect(At::Server, server, &data);
    world.finish();
}

/// A FIN while paused comes after all bytes before it.
pub fn pause_then_fin<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.engine.receive(server, Want::Paused);
    let length = world.scaled(50_000);
    let data = world.dice.bytes(length);
    world.client.send(client, data.clone());
    world.until("it is taken", |world| world.client.log(client).outbox.is_empty());
    world.client.engine.shutdown_write(client);
    world.settle();
    world.server.engine.receive(server, Want::On);
    world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
    check_equal(&world.server.log(server).received, &data);
    world.server.send(server, "still open");
    world.expect(At::Client, client, b"still open");
    world.finish();
}

/// Connections that have nothing to say hold no slot (F36).
pub fn idle_connections_pin_no_buffer<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(if setup.sim { 30 } else { 200 });
    for (server, client) in &pairs {
        world.client.send(*client, "hello");
        world.server.send(*server, "hello");
    }
    for (server, client) in &pairs {
        world.expect(At::Server, *server, b"hello");
        world.expect(At::Client, *client, b"hello");
    }
    world.settle();
    for side in [&world.server, &world.client] {
        let stats = side.pool.stats();
        assert_eq!(stats.leased, 0, "idle connections hold slots: {stats:?}");
    }
    world.finish();
}

/// With every slot in the test's hands, receiving stops without an error; it goes on when they return.
pub fn a_dry_pool_is_transient<E: Engine>(setup: &Setup) {
    let mut pool = PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(256, 1024);
    pool.low_mark_percent = 0;
    let mut world = World::<E>::with(setup, setup.config(), pool);
    let pairs = world.pairs(6);
    let mut held = Vec::new();
    for bytes in [1024, 256] {
        held.extend(std::iter::from_fn(|| world.server.pool.writable(bytes)));
    }
    assert!(!held.is_empty());
    let length = world.scaled(5_000);
    let data = world.dice.bytes(length);
    for (_, client) in &pairs {
        world.client.send(*client, data.clone());
        world.until("it is taken", |world| world.client.log(*client).outbox.is_empty());
        world.client.engine.shutdown_write(*client);
    }
    world.settle();
    let dry = world.server.pool.stats();
    // An engine that had to receive elsewhere delivers copies, and is not starved.
    if dry.free + dry.lent == 0 && dry.copies == 0 {
        assert!(world.server.engine.stats().starved > 0, "nobody noticed that there was no slot");
        for (server, _) in &pairs {
            assert!(world.server.log(*server).received.is_empty() && !world.server.log(*server).peer_closed);
        }
    }
    for (server, _) in &pairs {
        assert!(!world.server.is_closed(*server), "want of a slot is no failure");
    }
    // They return through another thread and by simply being dropped.
    let away: Vec<_> = held.drain(..held.len() / 2).map(ringport_engine::Buf::into_bytes).collect();
    std::thread::spawn(move || drop(away)).join().expect("dropping does not panic");
    drop(held);
    for (server, _) in pairs {
        world.expect(At::Server, server, &data);
        world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
    }
    world.finish();
}

/// A pool of the smallest size serves many connections whose data nobody drops for long.
pub fn one_slot_feeds_many<E: Engine>(setup: &Setup) {
    let pool = PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(64, 128);
    let mut world = World::<E>::with(setup, setup.config(), pool);
    let pairs = world.pairs(if setup.sim { 10 } else { 40 });
    let length = world.scaled(3_000);
    let data = world.dice.bytes(length);
    for (server, client) in &pairs {
        world.server.log(*server).echo = true;
        world.client.send(*client, data.clone());
    }
    for (_, client) in pairs {
        world.expect(At::Client, client, &data);
    }
    world.finish();
}

/// Who keeps what it received cannot hold the others up: below the low mark it gets copies.
pub fn low_slots_are_copied<E: Engine>(setup: &Setup) {
    let pool = PoolConfig::default().small_slots(8).large_slots(4).slot_bytes(256, 512);
    let mut world = World::<E>::with(setup, setup.config(), pool);
    let pairs = world.pairs(4);
    for (server, _) in &pairs {
        world.server.log(*server).keep = true;
    }
    let mut wanted = vec![Vec::new(); pairs.len()];
    for _ in 0..30 {
        for ((server, client), wanted) in pairs.iter().zip(&mut wanted) {
            wanted.extend(world.dice.bytes(10));
            let piece = wanted[wanted.len() - 10..].to_vec();
            world.client.send(*client, piece);
            world.until("it arrives", |world| world.server.log(*server).received.len() == wanted.len());
        }
    }
    let stats = world.server.pool.stats();
    assert!(stats.copies > 0 && stats.leased < stats.slots, "{stats:?}");
    for ((server, _), wanted) in pairs.iter().zip(&wanted) {
        check_equal(&world.server.log(*server).received, wanted);
        // Nobody wrote into a buffer while the test had it.
        let kept: Vec<u8> = world.server.log(*server).kept.drain(..).flat_map(|buf| buf.to_vec()).collect();
        check_equal(&kept, wanted);
    }
    world.finish();
}

/// Both ends agree on who they are.
pub fn addresses_match<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let near = world.client.engine.info(client).expect("a live connection");
    let far = world.server.engine.info(server).expect("a live connection");
    assert_eq!((near.local.as_socket(), near.peer.as_socket()), (far.peer.as_socket(), far.local.as_socket()));
    assert_eq!(near.peer.as_socket(), world.address.as_socket());
    world.client.close(client, Close::Plain);
    world.finish();
}

/// Who waits for a slot sleeps, and the return of one from another thread ends the sleep (law 7).
pub fn a_slot_from_another_thread_ends_the_sleep<E: Engine>(setup: &Setup) {
    if setup.sim {
        // It lives on one thread and in its own time.
        return;
    }
    let mut pool = PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(256, 1024);
    pool.low_mark_percent = 0;
    let mut world = World::<E>::with(setup, setup.config(), pool);
    let (server, client) = world.pair();
    world.server.log(server).keep = true;
    let mut held = Vec::new();
    for bytes in [1024, 256] {
        held.extend(std::iter::from_fn(|| world.server.pool.writable(bytes)));
    }
    let data = world.dice.bytes(8_000);
    world.client.send(client, data.clone());
    world.until("there is no slot left", |world| {
        world.server.engine.stats().starved > 0 || world.server.log(server).received.len() == data.len()
    });
    world.settle();

    if world.server.log(server).received.len() == data.len() {
        // A slot that the kernel picks is copied out of when it is the last, so that one always goes round; and what
        // Registered I/O receives lands in memory of its own when slots are few.
        held.clear();
        world.server.log(server).kept.clear();
        return world.finish();
    }
    held.append(&mut world.server.log(server).kept);
    world.server.log(server).keep = false;
    let before = world.server.log(server).received.len();
    let away: Vec<_> = held.into_iter().map(ringport_engine::Buf::into_bytes).collect();
    let begin = Instant::now();
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(200));
        let returned = Instant::now();
        drop(away);
        returned
    });
    let waits = world.server.engine.stats().waits;
    let end = begin + Duration::from_secs(10);
    while world.server.log(server).received.len() == before {
        assert!(Instant::now() < end, "the return of a slot woke nobody");
        world.server.turn(Some(end));
    }
    let waits = world.server.engine.stats().waits - waits;
    assert!(other.join().expect("dropping does not panic") > begin);
    assert!(waits < 10, "{waits} waits for one slot: it does not sleep");
    world.expect(At::Server, server, &data);
    world.finish();
}
