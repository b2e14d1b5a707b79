//! Ids: laws 3 and 8, and what is left when thousands of connections have gone.

use std::io::ErrorKind;

use ringport_engine::{Chunk, Close, Engine, SendQueue, Want};

use crate::subject::{Setup, alone};
use crate::system::descriptors;
use crate::world::{At, World, check_equal};

/// Every method with an id of the past does nothing, also when its slot has a new owner (F17).
pub fn stale_ids_do_nothing<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.client.close(client, Close::Plain);
    world.until_closed(At::Client, client);
    world.until("the server sees it", |world| world.server.log(server).peer_closed);
    world.server.close(server, Close::Plain);
    world.until_closed(At::Server, server);

    let (new_server, new_client) = world.pair();
    assert_eq!(new_client.slot(), client.slot(), "the slot is used again");
    for (side, stale) in [(&mut world.client, client), (&mut world.server, server)] {
        side.engine.receive(stale, Want::Paused);
        side.engine.shutdown_write(stale);
        side.engine.close(stale, Close::Abort);
        let mut queue = SendQueue::new();
        queue.push(Chunk::from("astray"));
        let progress = side.engine.send(stale, &mut queue);
        assert!(!progress.idle && progress.bytes == 0 && queue.bytes() == 6, "{progress:?}");
        assert_eq!(side.engine.info(stale).expect_err("a stale id").kind(), ErrorKind::NotFound);
    }
    for (at, from, to) in [(At::Client, new_client, new_server), (At::Server, new_server, new_client)] {
        world.at(at).send(from, "for the new one");
        let other = if at == At::Client { At::Server } else { At::Client };
        world.expect(other, to, b"for the new one");
    }
    let listener = world.listener;
    world.server.engine.unlisten(listener);
    world.until("the listener is closed", |world| !world.server.listeners_closed.is_empty());
    world.server.engine.accept(listener, Want::On);
    world.server.engine.unlisten(listener);
    world.settle();
    assert_eq!(world.server.listeners_closed, [listener]);
}

/// Slots come back, generations do not ([`Side::register`](crate::world::Side::register) looks at every id).
pub fn slots_are_reused_with_new_generations<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    for round in 0..8 {
        let pairs = world.pairs(4);
        for (server, client) in &pairs {
            assert!(client.slot() < 4 && server.slot() < 4, "round {round}: {client} {server}");
        }
        for (server, client) in pairs {
            world.client.close(client, Close::Abort);
            world.until_closed(At::Client, client);
            world.until_closed(At::Server, server);
        }
    }
    world.finish();
}

/// Thousands of connections come and go in every way; afterwards no slot, buffer or descriptor is missing (F18, F23).
pub fn churn_returns_everything<E: Engine>(setup: &Setup) {
    alone(setup, || {
        // Some handles a system opens at the first use and keeps.
        let mut world = World::<E>::new(setup);
        let _ = world.pair();
        world.finish();
        let before = descriptors();
        let mut world = World::<E>::new(setup);
        let (rounds, width) = if setup.sim { (4, 10) } else { (20, 100) };
        for round in 0..rounds {
            let pairs = world.pairs(width);
            let length = world.scaled(1 + round * 300);
            let data = world.dice.bytes(length);
            for (_, client) in &pairs {
                world.client.send(*client, data.clone());
            }
            for (server, _) in &pairs {
                world.until("all of it arrives", |world| world.server.log(*server).received.len() == data.len());
                check_equal(&world.server.log(*server).received, &data);
            }
            for (index, (server, client)) in pairs.iter().enumerate() {
                let how = if index % 2 == 0 { Close::Plain } else { Close::Abort };
                world.client.close(*client, how);
                if index % 3 == 0 {
                    world.server.close(*server, Close::Plain);
                }
            }
            world.until("the server learns of every end", |world| {
                pairs.iter().all(|(server, client)| {
                    let gone = world.server.is_closed(*server) || world.server.log(*server).peer_closed;
                    gone && world.client.is_closed(*client)
                })
            });
            for (server, _) in pairs {
                if !world.server.is_closed(server) && !world.server.log(server).closing {
                    world.server.close(server, Close::Plain);
                }
                world.until_closed(At::Server, server);
            }
        }
        world.finish();
        let after = descriptors();
        // The simulator has none of its own, and shares the process with other tests.
        assert!(setup.sim || after <= before, "{before} descriptors, then {after}: some were leaked");
    });
}
