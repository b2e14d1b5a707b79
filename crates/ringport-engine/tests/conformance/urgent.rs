//! Urgent data (F51): sent in order, and found at the mark.

use std::io::ErrorKind;

use ringport_engine::engine::sim::Faults;
use ringport_engine::{Chunk, Engine, EngineKind, PoolConfig, Want};

use crate::subject::Setup;
use crate::world::{At, World};

fn says_that_there_is_none<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, _) = world.pair();
    let refusals = [
        world.server.engine.watch_urgent(server).expect_err("there is none"),
        world.server.engine.at_mark(server).expect_err("there is none"),
    ];
    for refusal in refusals {
        assert!(refusal.kind() == ErrorKind::Unsupported && refusal.to_string().contains("urgent"), "{refusal}");
    }
    world.finish();
}

/// The buffer before an urgent byte ends there, and the mark is at the byte.
pub fn the_mark_is_where_the_urgent_byte_is<E: Engine>(setup: &Setup) {
    if setup.is_windows("mark of urgent data") {
        return says_that_there_is_none::<E>(setup);
    }
    // The kernel has room for all that is sent: only then is it certain that the mark is known before its byte comes.
    let mut faults = Faults::drawn(setup.seed).harmless();
    faults.buffer_max = 1 << 18;
    let mut world = World::<E>::with(setup, setup.config_with(faults), PoolConfig::default());
    // As much as the receives of a stream bring, which are joined otherwise. Sent without a copy it takes more than that room.
    let large = if setup.zero_copy_above.is_some() { 20_000 } else { 40_000 };
    for (early, before) in [(true, 3), (false, 3), (true, large), (false, large), (true, 0)] {
        // Asked for before anything is received, or on a connection that has been receiving in its own way.
        let (server, client) = if early { world.silent_pairs(1).remove(0) } else { world.pair() };
        let mut wanted = Vec::new();
        if !early {
            wanted = world.dice.bytes(50_000);
            world.client.send(client, wanted.clone());
            world.expect(At::Server, server, &wanted);
        }
        world.server.engine.receive(server, Want::Paused);
        world.server.engine.watch_urgent(server).expect("TCP has it");
        world.server.log(server).marks = Some(Vec::new());
        world.settle();
        let data = world.dice.bytes(before);
        wanted.extend(data.clone());
        let mark = wanted.len();
        wanted.extend(b"!behind");
        world.client.send(client, data);
        world.client.send(client, Chunk::urgent(b'!'));
        world.client.send(client, "behind");
        world.settle();
        if before == 0 {
            assert!(world.server.engine.at_mark(server).expect("TCP has it"), "the first byte is urgent");
        }
        world.server.engine.receive(server, Want::On);
        world.expect(At::Server, server, &wanted);
        let marks = world.server.log(server).marks.take().expect("they were watched");
        assert_eq!(marks, if before == 0 { vec![] } else { vec![mark] }, "early {early}, {before} before");
        // And the connection goes on.
        world.server.log(server).received.clear();
        world.client.send(client, "more");
        world.expect(At::Server, server, b"more");
    }
    world.finish();
}

/// Among other data of any size, in one queue or one after the other, each urgent byte comes in its place.
pub fn urgent_bytes_keep_their_place<E: Engine>(setup: &Setup) {
    if setup.is_windows("mark of urgent data") {
        return;
    }
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.engine.watch_urgent(server).expect("TCP has it");
    for round in 0..30 {
        let length = {
            let most = world.scaled(40_000);
            world.dice.below(most)
        };
        let data = world.dice.bytes(length);
        let log = world.client.log(client);
        log.wanted.extend_from_slice(&data);
        log.wanted.push(round);
        log.outbox.push(data);
        log.outbox.push(Chunk::urgent(round));
        if round % 3 == 0 {
            world.client.pump(client);
            world.step();
        }
    }
    world.client.pump(client);
    let wanted = world.client.log(client).wanted.clone();
    world.expect(At::Server, server, &wanted);
    world.finish();
}

/// Who does not watch for urgent data gets the stream without it, and all that is behind it.
pub fn unwatched_it_is_not_in_the_stream<E: Engine>(setup: &Setup) {
    if setup.is_windows("mark of urgent data") {
        return;
    }
    if setup.kind == Some(EngineKind::Kqueue) {
        return eprintln!("skipped: kqueue does not tell of urgent data");
    }
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let mut wanted = Vec::new();
    for round in 0..5 {
        let data = world.dice.bytes(3_000 * round);
        wanted.extend_from_slice(&data);
        // Past the harness, which would wait for the urgent byte, too.
        let log = world.client.log(client);
        log.outbox.push(data);
        log.outbox.push(Chunk::urgent(b'!'));
        world.client.pump(client);
        world.until("all but the urgent byte arrives", |world| world.server.log(server).received.len() >= wanted.len());
        world.settle();
        assert!(world.server.log(server).received == wanted, "round {round}");
    }
    world.client.send(client, "behind");
    wanted.extend_from_slice(b"behind");
    world.expect(At::Server, server, &wanted);
    world.finish();
}
