//! TCP Fast Open (F28): the first data goes with the SYN where both systems know each other, and later where not.

use std::process::Command;

use ringport_engine::{Close, ConnId, Engine, ListenOptions, PoolConfig, Socket, SocketOptions, Want};

use crate::subject::Setup;
use crate::world::{At, World, local_address};

/// A world whose server listens with Fast Open on an address of its own.
fn world<E: Engine>(setup: &Setup) -> World<E> {
    let config = setup.config();
    let mut world = World::<E>::with(setup, config.clone(), PoolConfig::default());
    let mut options = ListenOptions::default();
    options.fast_open = Some(16);
    let socket = Socket::listen(&local_address(), &options, config.network.as_ref()).expect("the address is free");
    world.address = socket.local_addr().expect("it is bound");
    let listener = world.server.engine.listen(socket).expect("the engine takes it");
    world.server.engine.accept(listener, Want::On);
    let first = std::mem::replace(&mut world.listener, listener);
    world.server.engine.unlisten(first);
    world
}

/// Connects, sends `data` as soon as it is connected, and echoes it.
fn exchange<E: Engine>(world: &mut World<E>, data: &[u8]) -> (ConnId, ConnId) {
    let mut options = SocketOptions::default();
    options.fast_open = true;
    let address = world.address.clone();
    let client = world.client.engine.connect(&address, &options).expect("a socket can be made");
    world.client.register(client);
    world.client.engine.receive(client, Want::On);
    world.until("it counts as connected", |world| world.client.log(client).connected);
    world.client.send(client, data.to_vec());
    world.until("it is accepted", |world| !world.server.accepted.is_empty());
    let socket = world.server.accepted.pop().expect("it was accepted");
    let server = world.server.adopt(socket);
    world.server.log(server).echo = true;
    world.server.engine.receive(server, Want::On);
    world.expect(At::Client, client, data);
    (server, client)
}

/// Whatever this machine allows: the bytes arrive, in order, once.
pub fn without_the_system_it_is_an_ordinary_connect<E: Engine>(setup: &Setup) {
    let mut world = world::<E>(setup);
    for length in [1, 500, 100_000] {
        let length = world.scaled(length);
        let data = world.dice.bytes(length);
        let (_, client) = exchange(&mut world, &data);
        world.client.close(client, Close::Plain);
        world.until_closed(At::Client, client);
    }
    world.finish();
}

/// A connect that waits for its data learns with it that nobody listens.
pub fn a_refused_fast_open_closes<E: Engine>(setup: &Setup) {
    let mut world = world::<E>(setup);
    let data = world.dice.bytes(100);
    let (server, client) = exchange(&mut world, &data);
    world.client.close(client, Close::Abort);
    world.until_closed(At::Client, client);
    world.until_closed(At::Server, server);
    let listener = world.listener;
    world.server.engine.unlisten(listener);
    world.until("nobody listens", |world| world.server.listeners_closed.contains(&listener));
    let mut options = SocketOptions::default();
    options.fast_open = true;
    let address = world.address.clone();
    let client = world.client.engine.connect(&address, &options).expect("a socket can be made");
    world.client.register(client);
    world.client.engine.receive(client, Want::On);
    world.client.send(client, data);
    assert!(world.until_closed(At::Client, client).is_some());
    world.finish();
}

/// The kernel counts a connect that carried data, in a network where both sides allow it.
pub fn the_first_data_goes_with_the_syn<E: Engine>(setup: &Setup) {
    if setup.sim {
        return; // It has no SYN that could carry data.
    }
    if std::env::var("RINGPORT_ALONE").as_deref() != Ok(&setup.path) {
        return in_own_network(setup);
    }
    let mut world = world::<E>(setup);
    let before = counter("TCPFastOpenActive");
    for round in 0..3 {
        let data = world.dice.bytes(700);
        let (_, client) = exchange(&mut world, &data);
        world.client.close(client, Close::Plain);
        world.until_closed(At::Client, client);
        // The first connect fetches the cookie, the others use it.
        assert_eq!(counter("TCPFastOpenActive") - before, round, "round {round}");
    }
    world.finish();
    println!("{COUNTED}");
}

const COUNTED: &str = "the kernel counted them";

/// Runs this test again in a network namespace where Fast Open is on for both sides, if one can be made.
fn in_own_network(setup: &Setup) {
    let own = std::env::current_exe().expect("the test knows itself");
    let script = "python3 -c \"\
import fcntl, socket, struct
s = socket.socket()
fcntl.ioctl(s, 0x8914, struct.pack('16sh14x', b'lo', 0x41))\" && echo 3 > /proc/sys/net/ipv4/tcp_fastopen && exec \"$0\" \"$@\"";
    let mut child = Command::new("unshare");
    child.args(["--net", "sh", "-c", script]).arg(own).args(["--exact", &setup.path, "--nocapture"]);
    let output = match child.env("RINGPORT_ALONE", &setup.path).output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: there is no unshare(1): {error}"),
    };
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if !text.contains("running 1 test") {
        return println!("skipped: no network namespace with Fast Open can be made here: {text}");
    }
    let refused = text.contains("skipped: ");
    assert!(output.status.success() && (refused || text.contains(COUNTED)), "in a network of its own:\n{text}");
}

/// A counter of this network namespace, from `/proc/net/netstat`.
fn counter(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/netstat").expect("Linux has it");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(found, _)| *found == name).and_then(|(_, value)| value.parse().ok()).expect("a known counter")
}
