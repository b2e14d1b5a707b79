//! Who outlives whom: law 2.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use ringport_engine::engine::contract::DROP_WAIT;
use ringport_engine::{Buf, ConnId, Engine, Event, Pool, PoolConfig, SendQueue, Want};

use crate::subject::Setup;
use crate::world::{At, Side, World, check_prefix};

/// A world in which the client has receives armed and sends stuck, and the server does not read.
fn busy_world<E: Engine>(setup: &Setup) -> (World<E>, Vec<(ConnId, ConnId)>) {
    let mut world = World::<E>::new(setup);
    let pairs = world.silent_pairs(4);
    for (_, client) in &pairs {
        world.client.engine.receive(*client, Want::On);
        let length = world.scaled(16 << 20) / 4;
        let data = world.dice.bytes(length);
        world.client.send(*client, data);
    }
    world.settle();
    let address = world.address.clone();
    world.client.connect(&address);
    (world, pairs)
}

/// Everything under way is cancelled in bounded time, and the peers learn of it.
pub fn an_engine_dropped_in_flight<E: Engine>(setup: &Setup) {
    let (mut world, pairs) = busy_world::<E>(setup);
    let wanted: Vec<Vec<u8>> = pairs.iter().map(|(_, client)| world.client.log(*client).wanted.clone()).collect();
    let mut config = setup.config();
    config.network.clone_from(&world.network);
    let spare = Side::<E>::open(&config, Pool::new(PoolConfig::default()));
    let old = std::mem::replace(&mut world.client, spare);
    let (pool, start) = (old.pool.clone(), Instant::now());
    drop(old.engine);
    assert!(start.elapsed() < DROP_WAIT + Duration::from_secs(1), "dropping took {:?}", start.elapsed());
    drop(old.conns);
    let stats = pool.stats();
    assert_eq!(stats.leased, 0, "{stats:?}");
    for ((server, _), wanted) in pairs.into_iter().zip(wanted) {
        world.server.engine.receive(server, Want::On);
        world.until("the peer learns of it", |world| {
            world.server.is_closed(server) || world.server.log(server).peer_closed
        });
        check_prefix(&world.server.log(server).received, &wanted);
    }
    world.finish();
}

/// Buffers, bytes and wakers work after their engine and their pool are gone.
pub fn buffers_outlive_the_engine<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.log(server).keep = true;
    world.client.send(client, "kept for later");
    world.expect(At::Server, server, b"kept for later");
    let waker = world.server.engine.waker();
    let mut kept = std::mem::take(&mut world.server.log(server).kept);
    let last = kept.pop().expect("something was received").into_bytes();
    drop(world);
    waker.wake();
    std::thread::spawn(move || waker.wake()).join().expect("a late wake is harmless");
    let text: Vec<u8> = kept.iter().flat_map(|buf| buf.to_vec()).chain(last.iter().copied()).collect();
    assert_eq!(text, b"kept for later");
    for mut buf in kept {
        buf.fill(0);
    }
    std::thread::spawn(move || drop(last)).join().expect("dropping elsewhere is harmless");
}

/// A forgotten engine leaks, and that is all.
#[expect(clippy::mem_forget, reason = "that it is harmless is what is tested")]
pub fn a_forgotten_engine_is_harmless<E: Engine>(setup: &Setup) {
    let (world, _) = busy_world::<E>(setup);
    let World { server, client, .. } = world;
    let waker = client.engine.waker();
    std::mem::forget(client.engine);
    drop(client.pool);
    drop(client.conns);
    waker.wake();
    let mut server = server;
    for _ in 0..5 {
        let now = server.engine.now();
        server.turn(Some(now + Duration::from_millis(1)));
    }
}

/// The pool's handles may be dropped before the engine, which goes on.
pub fn the_pool_may_go_first<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.log(server).keep = true;
    world.server.pool = Pool::new(PoolConfig::default());
    let length = world.scaled(100_000);
    let data = world.dice.bytes(length);
    world.client.send(client, data.clone());
    world.expect(At::Server, server, &data);
    let kept: Vec<Buf> = std::mem::take(&mut world.server.log(server).kept);
    let World { server, .. } = world;
    drop(server.pool);
    drop(server.engine);
    let bytes: Vec<u8> = kept.iter().flat_map(|buf| buf.to_vec()).collect();
    check_prefix(&bytes, &data);
}

/// A panic between two events unwinds through everything without harm, and so does the drop after it.
pub fn a_panic_in_a_turn_is_survived<E: Engine>(setup: &Setup) {
    let (mut world, pairs) = busy_world::<E>(setup);
    for (server, _) in &pairs {
        world.server.engine.receive(*server, Want::On);
    }
    let side = &mut world.server;
    let panic = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let now = if setup.sim { side.engine.now() } else { Instant::now() };
            side.engine.wait(Some(now + Duration::from_millis(1))).expect("the engine goes on");
            while let Some(event) = side.engine.next() {
                if let Event::Received { conn, buf } = event {
                    let mut queue = SendQueue::new();
                    queue.push(buf);
                    let _ = side.engine.send(conn, &mut queue);
                    panic!("a handler fails");
                }
            }
        }
    }));
    assert!(panic.is_err());
    // The engine still works: the events that were left are delivered.
    for _ in 0..3 {
        let now = if setup.sim { side.engine.now() } else { Instant::now() };
        side.engine.wait(Some(now + Duration::from_millis(1))).expect("the engine goes on");
        while side.engine.next().is_some() {}
    }
    drop(world);
}
