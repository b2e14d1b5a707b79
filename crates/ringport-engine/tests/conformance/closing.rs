//! How connections end: laws 3 and 9 (F22, F24, F25).

use std::io::ErrorKind;

use ringport_engine::{Close, ConnId, Engine, ListenOptions, SockAddr, Socket, Want};

use crate::subject::Setup;
use crate::system;
use crate::world::{At, World, check_equal, check_prefix, local_address};

fn finish_sending<E: Engine>(world: &mut World<E>, at: At, conn: ConnId) {
    world.until("it is taken", |world| world.at(at).log(conn).outbox.is_empty());
    world.at(at).engine.shutdown_write(conn);
}

/// However it ends, there is one `Closed` and nothing after it (`Side::apply` looks at each event).
pub fn closed_is_the_last_event<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(12);
    for (index, (server, client)) in pairs.iter().enumerate() {
        let length = world.scaled(40_000);
        let data = world.dice.bytes(length);
        world.client.send(*client, data.clone());
        world.server.send(*server, data);
        let how = if index % 2 == 0 { Close::Plain } else { Close::Abort };
        match index % 3 {
            0 => world.client.close(*client, how),
            1 => world.server.close(*server, how),
            _ => {
                world.client.close(*client, how);
                world.server.close(*server, how);
            }
        }
        if index % 4 == 0 {
            world.step();
        }
    }
    for (server, client) in pairs {
        world.until("the other side knows", |world| {
            let mut over = |at: At, conn| world.at(at).is_closed(conn) || world.at(at).log(conn).peer_closed;
            let (server, client) = (over(At::Server, server), over(At::Client, client));
            server || client
        });
    }
    world.settle();
    world.finish();
}

/// After one side's FIN the other still sends, and each gets everything.
pub fn half_close_lets_data_pass_both_ways<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let (length, more) = (world.scaled(400_000), world.scaled(700_000));
    let (up, down) = (world.dice.bytes(length), world.dice.bytes(more));
    world.client.send(client, up.clone());
    finish_sending(&mut world, At::Client, client);
    world.server.send(server, down.clone());
    world.until("the FIN arrives", |world| world.server.log(server).peer_closed);
    check_equal(&world.server.log(server).received, &up);
    world.server.send(server, "and a last word");
    finish_sending(&mut world, At::Server, server);
    world.until("the other FIN arrives", |world| world.client.log(client).peer_closed);
    check_equal(&world.client.log(client).received, &[&down[..], b"and a last word"].concat());
    assert!(!world.server.is_closed(server) && !world.client.is_closed(client), "FINs alone close nothing");
    world.client.close(client, Close::Plain);
    assert_eq!(world.until_closed(At::Client, client), None);
    world.finish();
}

/// FIN, discard to the peer's FIN, close: the peer gets all, although it had sent what nobody read.
pub fn orderly_close_destroys_nothing<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.server.engine.receive(server, Want::Paused);
    let (length, more) = (world.scaled(200_000), world.scaled(500_000));
    let (up, down) = (world.dice.bytes(length), world.dice.bytes(more));
    world.client.send(client, up);
    world.settle();
    world.server.send(server, down.clone());
    finish_sending(&mut world, At::Server, server);
    world.server.engine.receive(server, Want::On);
    finish_sending(&mut world, At::Client, client);
    world.until("the server has discarded all", |world| world.server.log(server).peer_closed);
    world.until("all is sent", |world| world.server.log(server).in_flight == 0);
    world.server.close(server, Close::Plain);
    assert_eq!(world.until_closed(At::Server, server), None);
    world.until("the FIN arrives", |world| world.client.log(client).peer_closed);
    check_equal(&world.client.log(client).received, &down);
    world.finish();
}

/// An abort reaches the peer as a reset.
pub fn abort_resets_the_peer<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.client.close(client, Close::Abort);
    assert_eq!(world.until_closed(At::Client, client), None);
    assert_eq!(world.until_closed(At::Server, server), Some(ErrorKind::ConnectionReset));
    world.finish();
}

/// As close(2): what was left unread makes it a reset.
pub fn plain_close_with_unread_input_resets<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.silent_pairs(1).remove(0);
    world.server.engine.receive(server, Want::On);
    world.server.send(server, "nobody reads this");
    world.settle();
    world.client.close(client, Close::Plain);
    world.until_closed(At::Client, client);
    assert_eq!(world.until_closed(At::Server, server), Some(ErrorKind::ConnectionReset));
    world.finish();
}

/// Bytes that were there before the reset are delivered before `Closed`.
pub fn bytes_before_a_failure_arrive_first<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    // No more than the client's kernel holds by itself.
    let length = if setup.sim { world.scaled(200_000) / 400 + 1 } else { 20_000 };
    let data = world.dice.bytes(length);
    world.server.send(server, data.clone());
    // Only the server has turns, until the client's kernel has everything.
    loop {
        let now = if setup.sim { world.server.engine.now() } else { std::time::Instant::now() };
        world.server.turn(Some(now + std::time::Duration::from_micros(200)));
        let done = world.server.log(server).in_flight == 0 && world.server.log(server).outbox.is_empty();
        let unacked = world.server.engine.info(server).expect("a live connection").unacked;
        if done && unacked.unwrap_or(0) == 0 {
            break;
        }
    }
    world.server.close(server, Close::Abort);
    while !world.server.is_closed(server) {
        let now = if setup.sim { world.server.engine.now() } else { std::time::Instant::now() };
        world.server.turn(Some(now + std::time::Duration::from_micros(200)));
    }
    world.until("the client knows", |world| world.client.is_closed(client) || world.client.log(client).peer_closed);
    check_equal(&world.client.log(client).received, &data);
    if !setup.sim && world.client.log(client).peer_closed && system::loses_resets() {
        eprintln!("skipped: this system turns a reset into a FIN when nobody waits for bytes (Wine 8)");
        return world.finish();
    }
    assert_eq!(world.until_closed(At::Client, client), Some(ErrorKind::ConnectionReset));
    world.finish();
}

/// An address on which nobody listens. On a real system it is held as long as the socket, so that no test beside this
/// one gets it meanwhile.
fn unused_address<E: Engine>(world: &World<E>) -> (SockAddr, Option<socket2::Socket>) {
    if let Some(network) = &world.network {
        let nobody = Socket::listen(&local_address(), &ListenOptions::default(), Some(network)).expect("a port");
        return (nobody.local_addr().expect("an address"), None);
    }
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    held.bind(&local_address()).expect("a port");
    (held.local_addr().expect("an address"), Some(held))
}

/// Nobody listens: `Closed` with an error, never `Connected`.
pub fn refused_connect_closes_with_an_error<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (address, _held) = unused_address(&world);
    let conn = world.client.connect(&address);
    assert_eq!(world.until_closed(At::Client, conn), Some(ErrorKind::ConnectionRefused));
    assert!(!world.client.log(conn).connected);
    world.finish();
}

/// A connect that is under way, or that will never end, can be closed.
pub fn close_cancels_a_connect<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let address = world.address.clone();
    for round in 0..8 {
        let conn = world.client.connect(&address);
        if round % 2 == 1 {
            world.step();
        }
        world.client.close(conn, if round % 4 < 2 { Close::Plain } else { Close::Abort });
        assert_eq!(world.until_closed(At::Client, conn), None);
    }
    // A full backlog leaves connects without an answer.
    let mut options = ListenOptions::default();
    options.backlog = 1;
    let full = Socket::listen(&local_address(), &options, world.network.as_ref()).expect("a port");
    let address = full.local_addr().expect("an address");
    let conns: Vec<ConnId> = (0..6).map(|_| world.client.connect(&address)).collect();
    for _ in 0..20 {
        world.step();
    }
    assert!(conns.iter().any(|conn| !world.client.log(*conn).connected), "the backlog is never full");
    for conn in conns {
        // Windows answers for a full backlog with a refusal.
        let refused = world.client.is_closed(conn).then_some(ErrorKind::ConnectionRefused);
        world.client.close(conn, Close::Plain);
        assert_eq!(world.until_closed(At::Client, conn), refused);
    }
    drop(full);
    world.finish();
}

/// Connections that are closed with operations under way, while new ones begin, never mix their bytes.
pub fn close_in_flight_leaks_no_bytes<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    for round in 0..if setup.sim { 4 } else { 25 } {
        let pairs = world.pairs(4);
        let mut wanted = Vec::new();
        for (server, client) in &pairs {
            let length = world.scaled(1 + round * 40_000);
            let data = world.dice.bytes(length);
            world.server.send(*server, data.clone());
            wanted.push((*client, data));
            let data = world.dice.bytes(length);
            world.client.send(*client, data);
        }
        for _ in 0..world.dice.below(4) {
            world.step();
        }
        for (server, client) in &pairs {
            if world.dice.below(2) == 0 {
                world.client.close(*client, Close::Plain);
            } else if !world.server.is_closed(*server) {
                world.server.close(*server, Close::Abort);
            }
        }
        // The next round connects at once, to slots and descriptors that are just being freed.
        for (client, data) in wanted {
            check_prefix(&world.client.log(client).received, &data);
        }
        for (server, client) in pairs {
            let sent = world.client.log(client).wanted.clone();
            check_prefix(&world.server.log(server).received, &sent);
        }
        let (server, client) = world.pair();
        world.client.send(client, "new");
        world.expect(At::Server, server, b"new");
    }
    world.finish();
}

/// Closing what is closing already changes nothing.
pub fn close_twice_is_one_event<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    world.client.close(client, Close::Plain);
    world.client.close(client, Close::Abort);
    world.client.engine.shutdown_write(client);
    world.client.engine.receive(client, Want::On);
    world.until_closed(At::Client, client);
    world.client.close(client, Close::Plain);
    world.settle();
    world.until("the server knows", |world| world.server.is_closed(server) || world.server.log(server).peer_closed);
    world.finish();
}

/// A connection that failed while paused is closed with the reason at the latest when receiving goes on, after what had
/// arrived before, or when something is sent.
pub fn a_failure_while_paused_is_noticed_in_time<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.silent_pairs(2);
    for (_, client) in &pairs {
        world.client.send(*client, "L");
        world.until("it is sent", |world| {
            let log = world.client.log(*client);
            let done = log.in_flight == 0 && log.outbox.is_empty();
            done && world.client.engine.info(*client).expect("a live connection").unacked.unwrap_or(0) == 0
        });
        world.client.close(*client, Close::Abort);
        world.until_closed(At::Client, *client);
    }
    world.settle();
    let [(receives, _), (sends, _)] = pairs[..] else { unreachable!("two were made") };
    if !world.server.is_closed(receives) {
        world.server.engine.receive(receives, Want::On);
        world.until("the reset is noticed", |world| {
            world.server.is_closed(receives) || world.server.log(receives).peer_closed
        });
        if !setup.sim && world.server.log(receives).peer_closed && system::loses_resets() {
            eprintln!(
                "skipped: this system forgets a reset that no receive was waiting for, and says that the peer closed"
            );
            return world.finish();
        }
        assert_eq!(world.until_closed(At::Server, receives), Some(ErrorKind::ConnectionReset));
        check_equal(&world.server.log(receives).received, b"L");
    }
    if !world.server.is_closed(sends) {
        world.server.send(sends, "into the void");
    }
    let why = world.until_closed(At::Server, sends);
    assert!(matches!(why, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)), "{why:?}");
    assert!(world.server.log(sends).received.is_empty());
    world.finish();
}
