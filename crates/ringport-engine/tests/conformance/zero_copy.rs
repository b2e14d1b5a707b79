//! Sends without a copy (F50), and that every engine without them does the same another way.

use ringport_engine::{Buf, Close, Engine, EngineConfig, PoolConfig, Want};

use crate::subject::Setup;
use crate::system;
use crate::world::{At, World, check_equal};

fn config(setup: &Setup, above: usize) -> EngineConfig {
    let mut config = setup.config();
    config.zero_copy_above = Some(above);
    config
}

/// Slots of the pool are back, and their bytes counted as sent, at the same time and not before.
pub fn pieces_are_in_use_until_sent<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::with(setup, config(setup, 1_000), PoolConfig::default());
    let (server, client) = world.pair();
    let mut wanted = Vec::new();
    for round in 0..60 {
        let length = {
            let most = world.scaled(16_000);
            1 + world.dice.below(most)
        };
        let data = world.dice.bytes(length);
        let mut buf =
            if round % 3 == 0 { Buf::copied(&data) } else { world.client.pool.writable(length).expect("a slot") };
        buf.append(&data);
        wanted.extend_from_slice(&data);
        world.client.send(client, buf);
        let (log, stats) = (world.client.log(client).in_flight, world.client.pool.stats());
        // The simulator's kernel copies, and may be late to say so.
        if log > 0 && round % 3 != 0 && !setup.sim {
            assert!(stats.leased > 0, "a piece in flight was given back");
        }
        world.until("it is sent", |world| {
            let log = world.client.log(client);
            log.outbox.is_empty() && log.in_flight == 0
        });
        if setup.sim {
            // Its kernel may go on reading for a while after it has said that it took everything.
            world.until("its slot is back", |world| world.client.pool.stats().leased == 0);
        }
        assert_eq!(world.client.pool.stats().leased, 0, "what is sent holds no slot");
    }
    world.expect(At::Server, server, &wanted);
    let counted = world.client.engine.stats().zero_copies;
    let masked = setup.sim || !setup.features.zero_copy;
    assert!(!masked || counted == 0, "{counted}");
    assert!(!setup.path.starts_with("uring") || masked || counted > 0, "nothing was sent without a copy");
    world.finish();
}

/// With the feature masked the size makes no difference.
pub fn masked_it_is_an_ordinary_send<E: Engine>(setup: &Setup) {
    let mut masked = config(setup, 1);
    masked.features.zero_copy = false;
    let mut world = World::<E>::with(setup, masked, PoolConfig::default());
    let (server, client) = world.pair();
    let length = world.scaled(300_000);
    let data = world.dice.bytes(length);
    world.client.send(client, data.clone());
    world.expect(At::Server, server, &data);
    assert_eq!(world.client.engine.stats().zero_copies, 0);
    world.finish();
}

/// However a connection ends while the kernel reads its memory: what the peer got and what came back is all there was.
pub fn closing_with_pieces_on_loan_loses_nothing<E: Engine>(setup: &Setup) {
    for how in [Close::Plain, Close::Abort] {
        let mut world = World::<E>::with(setup, config(setup, 1), PoolConfig::default());
        for (server, client) in world.silent_pairs(2) {
            let length = world.scaled(8 << 20);
            let data = world.dice.bytes(length);
            world.client.send(client, data);
            for _ in 0..world.dice.below(5) {
                world.step();
            }
            world.client.close(client, how);
            world.until_closed(At::Client, client);
            if how == Close::Plain {
                let log = world.client.log(client);
                let unsent = log.ended.as_ref().expect("it ended").unsent.len();
                let handed = log.wanted[..log.taken as usize - unsent].to_vec();
                world.server.engine.receive(server, Want::On);
                world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
                check_equal(&world.server.log(server).received, &handed);
            }
        }
        world.finish();
    }
}

/// Not every socket can do it: the bytes arrive all the same.
pub fn a_unix_socket_falls_back<E: Engine>(setup: &Setup) {
    if setup.sim {
        return; // It knows no kinds of socket.
    }
    if let Some(reason) = system::no_unix_sockets() {
        eprintln!("skipped: no Unix sockets: {reason}");
        return;
    }
    let path =
        std::env::temp_dir().join(format!("ringport-zero-{}-{}", std::process::id(), setup.path.replace(':', "")));
    let address = ringport_engine::socket::unix(&path).expect("a short path");
    let mut world = World::<E>::listening(setup, config(setup, 1), PoolConfig::default(), &address);
    let client = world.client.connect(&address);
    world.until("it is connected", |world| world.client.log(client).connected && !world.server.accepted.is_empty());
    let socket = world.server.accepted.pop().expect("it was accepted");
    let server = world.server.adopt(socket);
    world.server.engine.receive(server, Want::On);
    let data = world.dice.bytes(500_000);
    world.client.send(client, data.clone());
    world.expect(At::Server, server, &data);
    world.finish();
    let _ = std::fs::remove_file(path);
}
