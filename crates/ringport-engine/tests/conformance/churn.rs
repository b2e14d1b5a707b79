//! Many connections: at once, and one after another for long, with memory and descriptors flat (F18, F23).
//!
//! `RINGPORT_CHURN=100000` asks [`one_after_another`] for so many instead of what fits into a run of all tests.

use ringport_engine::{Close, Engine, PoolStats};

use crate::subject::{Setup, alone, number};
use crate::system::{allow_descriptors, descriptors, resident_kib};
use crate::world::{At, World};

/// Connections that are open at the same time. Both ends are in one process.
const AT_ONCE: usize = 2_000;
/// So many of them begin together.
const BATCH: usize = 50;
/// Connections one after another, unless `RINGPORT_CHURN` says otherwise.
const ONE_BY_ONE: u64 = 2_000;
/// What the allocator may keep, in KiB; a connection that left 100 bytes behind would show after 50,000.
const SLACK_KIB: usize = 4 * 1024;

/// All of them are served, in both directions, and nothing of them is left.
pub fn thousands_at_once<E: Engine>(setup: &Setup) {
    alone(setup, || {
        let count = if setup.sim { 50 } else { AT_ONCE };
        if let (false, Err(reason)) = (setup.sim, allow_descriptors(2 * count + 200)) {
            return eprintln!("skipped: {reason}");
        }
        warm_up::<E>(setup);
        let before = descriptors();
        serve_at_once::<E>(setup, count);
        let once = descriptors();
        if cfg!(windows) && once > before {
            // Wine opens handles of its own, at any time and once. What is leaked is leaked again.
            serve_at_once::<E>(setup, count);
            let twice = descriptors();
            assert!(twice <= once, "{before} descriptors, then {once}, then {twice}: some were leaked");
        } else {
            assert!(once <= before, "{before} descriptors, then {once}: some were leaked");
        }
    });
}

fn serve_at_once<E: Engine>(setup: &Setup, count: usize) {
    let before = descriptors();
    let mut world = World::<E>::new(setup);
    // A step of the world looks at every connection, so that all at once would be slow for the tests' own sake.
    let pairs: Vec<_> = (0..count / BATCH).flat_map(|_| world.pairs(BATCH)).collect();
    if !setup.sim && before > 0 {
        assert!(descriptors() >= before + 2 * count, "both ends of each are open");
    }
    for (number, (server, client)) in pairs.iter().enumerate() {
        world.server.log(*server).echo = true;
        world.client.send(*client, format!("connection {number} of {count}").into_bytes());
    }
    for (number, (_, client)) in pairs.iter().enumerate() {
        world.expect(At::Client, *client, format!("connection {number} of {count}").as_bytes());
    }
    // The last answers may have arrived before the server hears that they have left.
    world.until("connections at rest hold no slots", |world| world.server.pool.stats().leased == 0);
    world.finish();
}

/// After many connections there are as many descriptors and slots as after a few, and no more memory.
pub fn one_after_another<E: Engine>(setup: &Setup) {
    alone(setup, || {
        let count = if setup.sim { 100 } else { number("RINGPORT_CHURN").unwrap_or(ONE_BY_ONE) };
        warm_up::<E>(setup);
        let mut world = World::<E>::new(setup);
        // What grows at first and then stays, such as the queues of the engine, has grown after some.
        play(&mut world, 0, count / 10);
        let before = Held::now(&world);
        play(&mut world, count / 10, count);
        let after = Held::now(&world);
        if !setup.sim {
            eprintln!("{count} connections: {before:?}, then {after:?}");
            assert!(after.descriptors <= before.descriptors, "{before:?}, then {after:?}");
            assert!(after.resident_kib < before.resident_kib + SLACK_KIB, "{before:?}, then {after:?}");
        }
        for (after, before) in after.pools.iter().zip(before.pools) {
            assert_eq!((after.leased, after.slots), (0, before.slots), "{after:?}");
        }
        world.finish();
    });
}

/// What a process holds.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    /// 0 where the system does not tell.
    resident_kib: usize,
    pools: [PoolStats; 2],
}

impl Held {
    fn now<E: Engine>(world: &World<E>) -> Self {
        let pools = [world.server.pool.stats(), world.client.pool.stats()];
        Self { descriptors: descriptors(), resident_kib: resident_kib(), pools }
    }
}

/// Some handles a system opens at the first use and keeps.
fn warm_up<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let _ = world.pair();
    world.finish();
}

/// Connects, echoes and closes, one at a time.
fn play<E: Engine>(world: &mut World<E>, first: u64, end: u64) {
    for number in first..end {
        let (server, client) = world.pair();
        world.server.log(server).echo = true;
        let message = number.to_le_bytes();
        world.client.send(client, message.to_vec());
        world.expect(At::Client, client, &message);
        // Mostly with a reset, because an orderly close occupies the port for minutes.
        world.client.close(client, if number % 16 == 0 { Close::Plain } else { Close::Abort });
        world.until_closed(At::Client, client);
        world.until("the server knows", |world| world.server.is_closed(server) || world.server.log(server).peer_closed);
        if !world.server.is_closed(server) {
            world.server.close(server, Close::Plain);
            world.until_closed(At::Server, server);
        }
        assert!(server.slot() == 0 && client.slot() == 0, "{server} {client}: slots are reused");
        world.server.forget(server);
        world.client.forget(client);
    }
}
