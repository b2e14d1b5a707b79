//! Bytes: laws 1, 4 and 5.

use std::time::{Duration, Instant};

use ringport_engine::{Buf, Chunk, Close, ConnId, Engine, SendQueue, Want};

use crate::subject::Setup;
use crate::world::{At, World, check_equal};

/// More than the kernel's buffers of a connection hold.
const TOO_MUCH: usize = 16 << 20;

/// From one byte to 3 MiB, both ways at once (F42).
pub fn every_size_arrives_exactly<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    for size in [1, 2, 63, 64, 65, 1500, 4095, 4096, 4097, 16_384, 65_535, 65_536, 65_537, 300_000, 3 << 20] {
        let size = world.scaled(size);
        let (up, down) = (world.dice.bytes(size), world.dice.bytes(size));
        world.client.send(client, up.clone());
        world.server.send(server, down.clone());
        world.expect(At::Server, server, &up);
        world.expect(At::Client, client, &down);
        world.server.log(server).received.clear();
        world.client.log(client).received.clear();
    }
    world.finish();
}

/// Up to 200 pieces of random sizes in one go (F38).
pub fn vectored_sends_arrive_exactly<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let mut all = Vec::new();
    for round in 0..8 {
        for _ in 0..[1, 2, 3, 17, 64, 65, 130, 200][round] {
            let length = {
                let most = world.scaled(if round == 7 { 20_000 } else { 700 }) / 10 + 1;
                1 + world.dice.below(most)
            };
            let piece = world.dice.bytes(length);
            all.extend_from_slice(&piece);
            let log = world.client.log(client);
            log.wanted.extend_from_slice(&piece);
            log.outbox.push(piece);
        }
        world.client.pump(client);
    }
    world.expect(At::Server, server, &all);
    world.finish();
}

/// Streams of several megabytes in both directions, each in pieces of random size.
pub fn large_messages_stream_both_ways<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(3);
    let total = world.scaled(1 << 20);
    let mut wanted = Vec::new();
    for (server, client) in &pairs {
        for (at, conn) in [(At::Server, *server), (At::Client, *client)] {
            let data = world.dice.bytes(total);
            let mut rest = &data[..];
            while !rest.is_empty() {
                let (piece, later) = rest.split_at((1 + world.dice.below(total / 4 + 1)).min(rest.len()));
                world.at(at).send(conn, piece.to_vec());
                rest = later;
            }
            wanted.push((at, data));
        }
    }
    for ((server, client), sent) in pairs.into_iter().zip(wanted.chunks(2)) {
        world.expect(At::Client, client, &sent[0].1);
        world.expect(At::Server, server, &sent[1].1);
    }
    world.finish();
}

/// Sends more than the kernel takes to a peer that does not read.
fn stall<E: Engine>(world: &mut World<E>, client: ConnId) {
    let length = world.scaled(TOO_MUCH);
    // Windows takes a whole send while less than SO_SNDBUF is waiting, however large it is.
    for _ in 0..3 {
        let data = world.dice.bytes(length);
        world.client.send(client, data);
        world.settle();
        if world.client.log(client).in_flight > 0 {
            break;
        }
    }
    let log = world.client.log(client);
    assert!(log.in_flight > 0, "the kernel took {} bytes", log.taken);
    assert_eq!(log.sent + log.in_flight, log.taken);
}

/// While a send is in flight, another takes nothing (F40).
pub fn one_send_is_in_flight<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.silent_pairs(1).remove(0);
    stall(&mut world, client);
    let mut queue = SendQueue::new();
    queue.push(Chunk::from("out of turn"));
    let progress = world.client.engine.send(client, &mut queue);
    assert!(!progress.idle && progress.bytes == 0 && queue.bytes() == 11, "{progress:?}");
    world.client.send(client, "in turn");
    world.server.engine.receive(server, Want::On);
    let all = world.client.log(client).wanted.clone();
    world.expect(At::Server, server, &all);
    world.finish();
}

/// `Sent` adds up to what was sent, in the end exactly (F39).
pub fn sent_says_what_the_kernel_took<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.silent_pairs(1).remove(0);
    stall(&mut world, client);
    world.server.engine.receive(server, Want::On);
    world.until("all is sent", |world| {
        let log = world.client.log(client);
        log.outbox.is_empty() && log.in_flight == 0
    });
    let log = world.client.log(client);
    assert_eq!((log.sent, log.taken), (log.wanted.len() as u64, log.wanted.len() as u64));
    let all = log.wanted.clone();
    world.expect(At::Server, server, &all);
    world.finish();
}

/// A plain close gives back what the kernel did not take, and the peer gets all the rest and a FIN.
pub fn unsent_comes_back<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.silent_pairs(1).remove(0);
    stall(&mut world, client);
    world.client.close(client, Close::Plain);
    world.until_closed(At::Client, client);
    let log = world.client.log(client);
    let end = log.ended.as_ref().expect("it ended");
    assert!(end.why.is_none(), "{end:?}");
    let handed = log.taken as usize - end.unsent.len();
    assert!(handed as u64 >= log.sent, "more came back than was left");
    let handed = log.wanted[..handed].to_vec();
    world.server.engine.receive(server, Want::On);
    world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
    check_equal(&world.server.log(server).received, &handed);
    world.finish();
}

/// What the engine took needs neither the queue nor the pool's handle any more.
pub fn sent_bytes_need_no_caller<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let mut wanted = Vec::new();
    for _ in 0..30 {
        let length = {
            let most = world.scaled(5_000);
            1 + world.dice.below(most)
        };
        let data = world.dice.bytes(length);
        let mut queue = SendQueue::new();
        queue.write(&data, &world.client.pool);
        queue.push(Buf::copied(&data));
        let before = queue.bytes() as usize;
        let progress = world.client.engine.send(client, &mut queue);
        let took = before - queue.bytes() as usize;
        wanted.extend([&data[..], &data[..]].concat().iter().take(took));
        drop(queue);
        let mut in_flight = took - progress.bytes;
        let log = world.client.log(client);
        log.wanted = wanted.clone();
        (log.taken, log.in_flight) = (log.taken + took as u64, in_flight as u64);
        while in_flight > 0 {
            world.step();
            in_flight = world.client.log(client).in_flight as usize;
        }
    }
    world.client.engine.shutdown_write(client);
    world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
    check_equal(&world.server.log(server).received, &wanted);
    world.finish();
}

/// An echo sends the very buffers that it received.
pub fn received_buffers_are_sent_on<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(5);
    let mut wanted = Vec::new();
    for (server, client) in &pairs {
        world.server.log(*server).echo = true;
        for _ in 0..20 {
            let length = {
                let most = world.scaled(30_000) / 2 + 1;
                1 + world.dice.below(most)
            };
            let data = world.dice.bytes(length);
            world.client.send(*client, data);
        }
        wanted.push(world.client.log(*client).wanted.clone());
    }
    for ((_, client), data) in pairs.into_iter().zip(wanted) {
        world.expect(At::Client, client, &data);
    }
    world.finish();
}

/// Small writes are one piece, and arrive in order.
pub fn small_writes_coalesce<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let data = {
        let length = world.scaled(1_000);
        world.dice.bytes(length)
    };
    let mut queue = SendQueue::new();
    for part in data.chunks(7) {
        queue.write(part, &world.client.pool);
    }
    assert_eq!(queue.pieces(), 1);
    let log = world.client.log(client);
    log.wanted = data.clone();
    log.outbox = queue;
    world.client.pump(client);
    world.expect(At::Server, server, &data);
    world.finish();
}

/// Until `Connected` was delivered nothing is taken, not even when the kernel has connected long ago. Then all arrives.
pub fn sending_waits_for_connected<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let address = world.address.clone();
    let conn = world.client.connect(&address);
    for _ in 0..3 {
        let mut queue = SendQueue::new();
        for bytes in [0, 3] {
            queue.push(vec![b'x'; bytes]);
            let progress = world.client.engine.send(conn, &mut queue);
            assert_eq!((progress.bytes, progress.idle, queue.bytes()), (0, false, bytes as u64));
        }
        let now = if setup.sim { world.client.engine.now() } else { Instant::now() };
        world.client.engine.wait(Some(now + Duration::from_millis(1))).expect("the engine goes on");
    }
    let length = world.scaled(100_000);
    let data = world.dice.bytes(length);
    world.client.send(conn, data.clone());
    assert_eq!(world.client.log(conn).taken, 0);
    world.until("it is accepted", |world| !world.server.accepted.is_empty());
    let socket = world.server.accepted.remove(0);
    let server = world.server.adopt(socket);
    world.server.engine.receive(server, Want::On);
    world.expect(At::Server, server, &data);
    world.finish();
}
