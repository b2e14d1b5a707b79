//! Accepting: law 8 (F15, F19).

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use ringport_engine::engine::sim::Faults;
use ringport_engine::socket::unix;
use ringport_engine::{Close, Engine, ListenOptions, PoolConfig, SockAddr, Socket, Want};

use crate::subject::{Setup, alone};
use crate::system::{self, fill_descriptors};
use crate::world::{At, World};

/// Paused, the kernel keeps connections waiting; afterwards all of them arrive.
pub fn accepting_pauses_and_goes_on<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (listener, address) = (world.listener, world.address.clone());
    world.server.engine.accept(listener, Want::Paused);
    world.settle();
    // A pause is a wish: some may come all the same.
    let conns: Vec<_> = (0..10).map(|_| world.client.connect(&address)).collect();
    world.until("they are connected", |world| conns.iter().all(|conn| world.client.log(*conn).connected));
    world.settle();
    let early = world.server.accepted.len();
    assert!(early < 10, "the pause had no effect");
    world.server.engine.accept(listener, Want::On);
    world.until("all are accepted", |world| world.server.accepted.len() == 10);
    world.finish();
}

/// `ListenerClosed` is the last event; then the address is free and nobody can connect.
pub fn unlisten_ends_with_listener_closed<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let (listener, address) = (world.listener, world.address.clone());
    world.server.engine.unlisten(listener);
    world.server.engine.unlisten(listener);
    world.until("it is closed", |world| !world.server.listeners_closed.is_empty());
    world.settle();
    assert_eq!(world.server.listeners_closed, [listener]);
    let conn = world.client.connect(&address);
    assert_eq!(world.until_closed(At::Client, conn), Some(ErrorKind::ConnectionRefused));
    world.client.send(client, "the accepted ones go on");
    world.expect(At::Server, server, b"the accepted ones go on");
    world.server.listeners_closed.clear();
    let again =
        Socket::listen(&address, &ListenOptions::default(), world.network.as_ref()).expect("the address is free");
    world.listener = world.server.engine.listen(again).expect("the engine takes it");
    assert_ne!(world.listener, listener);
    world.server.engine.accept(world.listener, Want::On);
    let _ = world.pair();
    world.finish();
}

/// Connections that are reset before anybody accepts them do not disturb those behind them.
pub fn reset_before_accept_is_skipped<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (listener, address) = (world.listener, world.address.clone());
    world.server.engine.accept(listener, Want::Paused);
    world.settle();
    let early: Vec<_> = (0..5).map(|_| world.client.connect(&address)).collect();
    world.until("they are connected", |world| early.iter().all(|conn| world.client.log(*conn).connected));
    for conn in early {
        world.client.close(conn, Close::Abort);
        world.until_closed(At::Client, conn);
    }
    let good = world.client.connect(&address);
    world.until("it is connected", |world| world.client.log(good).connected);
    world.client.engine.receive(good, Want::On);
    world.server.engine.accept(listener, Want::On);
    // Systems differ in whether the others are accepted, and fail, or are skipped.
    world.until("the good one is served", |world| {
        for socket in std::mem::take(&mut world.server.accepted) {
            let Ok(conn) = world.server.engine.adopt(socket) else { continue };
            world.server.register(conn);
            world.server.engine.receive(conn, Want::On);
            world.server.send(conn, "welcome");
        }
        !world.client.log(good).received.is_empty()
    });
    world.expect(At::Client, good, b"welcome");
    world.finish();
}

/// An accepted connection belongs to whoever adopts it, also to another engine than the one that accepted it (F13).
pub fn another_engine_may_adopt<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let address = world.address.clone();
    let near = world.client.connect(&address);
    world.until("it is accepted", |world| world.client.log(near).connected && !world.server.accepted.is_empty());
    let socket = world.server.accepted.remove(0);
    let far = world.client.adopt(socket);
    world.client.engine.receive(far, Want::On);
    world.client.engine.receive(near, Want::On);
    world.client.log(far).echo = true;
    let length = world.scaled(300_000);
    let data = world.dice.bytes(length);
    world.client.send(near, data.clone());
    world.expect(At::Client, near, &data);
    world.client.close(near, Close::Plain);
    world.until("the other end learns of it", |world| world.client.log(far).peer_closed);
    world.finish();
}

/// The bind is exclusive.
pub fn a_second_bind_fails<E: Engine>(setup: &Setup) {
    let world = World::<E>::new(setup);
    let second = Socket::listen(&world.address, &ListenOptions::default(), world.network.as_ref());
    assert_eq!(second.expect_err("the address is taken").kind(), ErrorKind::AddrInUse);
    world.finish();
}

/// Without a descriptor left the listener waits, ever longer; what is connected goes on, and service resumes soon.
pub fn out_of_descriptors_backs_off<E: Engine>(setup: &Setup) {
    alone(setup, || {
        let mut world = World::<E>::new(setup);
        let (server, client) = world.pair();
        world.server.log(server).echo = true;
        let (listener, address) = (world.listener, world.address.clone());
        world.server.engine.accept(listener, Want::Paused);
        world.settle();
        let waiting: Vec<_> = (0..3).map(|_| world.client.connect(&address)).collect();
        world.until("they are connected", |world| waiting.iter().all(|conn| world.client.log(*conn).connected));
        assert!(world.server.accepted.is_empty());

        let files = match exhaust(&world) {
            Ok(files) => files,
            Err(reason) => return eprintln!("skipped: {reason}"),
        };
        world.server.engine.accept(listener, Want::On);
        let (start, waits) = (world.server.engine.now(), world.server.engine.stats().waits);
        world.until("an accept fails", |world| world.server.accept_failures > 0);
        world.client.send(client, "still here?");
        world.expect(At::Client, client, b"still here?");
        let pause = Duration::from_millis(600);
        let mut turns = 0;
        while now(&world) < start + pause {
            world.server.turn(Some(start + pause));
            turns += 1;
        }
        let failures = world.server.accept_failures;
        assert!(world.server.accepted.is_empty());
        assert!((2..20).contains(&failures), "{failures} failures, {turns} turns, {waits} waits before");
        assert!(turns < 200, "{turns} turns: it spins");

        drop(files);
        if let Some(network) = &world.network {
            network.set_faults(Faults::drawn(setup.seed).harmless());
        }
        let back = now(&world);
        world.until("service resumes", |world| world.server.accepted.len() == 3);
        assert!(now(&world) < back + Duration::from_secs(1), "service took long to resume");
        world.finish();
    });
}

fn now<E: Engine>(world: &World<E>) -> Instant {
    if world.network.is_some() { world.server.engine.now() } else { Instant::now() }
}

/// Takes every descriptor, or lets the simulator say that there is none.
fn exhaust<E: Engine>(world: &World<E>) -> Result<Vec<std::fs::File>, &'static str> {
    let Some(network) = &world.network else { return fill_descriptors() };
    let mut faults = Faults::drawn(world.setup.seed).harmless();
    faults.emfile = 1000;
    network.set_faults(faults);
    Ok(Vec::new())
}

/// The same over IPv6.
pub fn ipv6_addresses_work<E: Engine>(setup: &Setup) {
    let v6 = SockAddr::from(std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0)));
    let mut world = World::<E>::listening(setup, setup.config(), PoolConfig::default(), &v6);
    let (server, client) = world.pair();
    world.client.send(client, "over IPv6");
    world.expect(At::Server, server, b"over IPv6");
    world.finish();
}

/// The same over a socket file, where there is such a thing.
pub fn unix_addresses_work<E: Engine>(setup: &Setup) {
    let kind = setup.path.replace(':', "-");
    let path = std::env::temp_dir().join(format!("ringport-{}-{kind}.socket", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let address = unix(&path).expect("a short path");
    if !setup.sim
        && let Some(reason) = system::no_unix_sockets()
    {
        let refused = Socket::listen(&address, &ListenOptions::default(), None);
        assert!(refused.is_err(), "there are socket files, although {reason}");
        return eprintln!("skipped: no socket files here: {reason}");
    }
    let mut world = World::<E>::listening(setup, setup.config(), PoolConfig::default(), &address);
    let client = world.client.connect(&address);
    world.until("it is accepted", |world| world.client.log(client).connected && !world.server.accepted.is_empty());
    let socket = world.server.accepted.remove(0);
    let server = world.server.adopt(socket);
    world.server.engine.receive(server, Want::On);
    world.client.send(client, "through a file");
    world.expect(At::Server, server, b"through a file");
    let _ = std::fs::remove_file(&path);
    world.finish();
}
