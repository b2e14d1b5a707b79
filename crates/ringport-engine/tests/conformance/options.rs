//! Socket options (F30): what is set is read back, on a live connection and at creation.

use std::io::ErrorKind;
use std::time::Duration;

use ringport_engine::{
    Close, Engine, KeepAlive, ListenOptions, OptionName, PoolConfig, Socket, SocketOption, SocketOptions, Want,
};

use crate::subject::Setup;
use crate::system;
use crate::world::{At, World, local_address};

/// Whether the system may refuse an option that others have.
fn is_linux_only(option: &SocketOption) -> bool {
    !matches!(
        option,
        SocketOption::NoDelay(_)
            | SocketOption::KeepAlive(_)
            | SocketOption::Linger(_)
            | SocketOption::TypeOfService(_)
            | SocketOption::ReceiveBuffer(_)
            | SocketOption::SendBuffer(_)
    )
}

/// Each typed option is read back as it was set, and the connection still works.
pub fn options_round_trip<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let keep_alive = KeepAlive::after(Duration::from_secs(77)).interval(Duration::from_secs(7)).probes(3);
    let wanted = [
        SocketOption::NoDelay(false),
        SocketOption::NoDelay(true),
        SocketOption::KeepAlive(Some(keep_alive)),
        SocketOption::KeepAlive(None),
        SocketOption::Linger(Some(Duration::ZERO)),
        SocketOption::Linger(None),
        SocketOption::TypeOfService(0x10),
        SocketOption::UserTimeout(Some(Duration::from_millis(12_345))),
        SocketOption::UserTimeout(None),
        SocketOption::QuickAck(true),
        SocketOption::CongestionControl("reno".to_owned()),
        SocketOption::IncomingCpu(0),
        SocketOption::Mark(7),
    ];
    let engine = &mut world.server.engine;
    for option in wanted {
        match engine.set_option(server, &option) {
            Ok(()) => match engine.option(server, option.name()).expect("it can be read") {
                SocketOption::KeepAlive(Some(unknown)) if unknown == KeepAlive::after(Duration::ZERO) => {
                    assert!(matches!(option, SocketOption::KeepAlive(Some(_))), "{option:?}");
                    eprintln!("skipped: this system does not tell the times of keep-alive");
                }
                read => assert_eq!(read, option),
            },
            Err(error) => {
                assert!(is_linux_only(&option), "{option:?}: {error}");
                eprintln!("skipped: {option:?}: {error}");
            }
        }
    }
    for (option, least) in [(SocketOption::ReceiveBuffer(70_000), 70_000), (SocketOption::SendBuffer(80_000), 80_000)] {
        engine.set_option(server, &option).expect("a buffer of this size is allowed");
        match engine.option(server, option.name()).expect("it can be read") {
            SocketOption::ReceiveBuffer(bytes) | SocketOption::SendBuffer(bytes) => assert!(bytes >= least),
            other => panic!("{other:?}"),
        }
    }
    let refused = engine.set_option(server, &SocketOption::Linger(Some(Duration::from_secs(1))));
    assert_eq!(refused.expect_err("it would block").kind(), ErrorKind::InvalidInput);
    world.client.send(client, "still well");
    world.expect(At::Server, server, b"still well");
    world.finish();
}

/// Options of a connect are in force when it is connected, those of a listener in what it accepted.
pub fn options_at_creation<E: Engine>(setup: &Setup) {
    let config = setup.config();
    let mut world = World::<E>::with(setup, config.clone(), PoolConfig::default());
    let mut listen = ListenOptions::default();
    listen.socket.keep_alive = Some(Duration::from_secs(99));
    listen.socket.more = vec![SocketOption::TypeOfService(0x08)];
    let socket = Socket::listen(&local_address(), &listen, config.network.as_ref()).expect("the address is free");
    let address = socket.local_addr().expect("it is bound");
    let listener = world.server.engine.listen(socket).expect("the engine takes it");
    world.server.engine.accept(listener, Want::On);
    let mut options = SocketOptions::default();
    options.more = vec![SocketOption::NoDelay(false), SocketOption::TypeOfService(0x10)];
    let client = world.client.engine.connect(&address, &options).expect("a socket can be made");
    world.client.register(client);
    world.until("the connection stands", |world| {
        world.client.log(client).connected && !world.server.accepted.is_empty()
    });
    let socket = world.server.accepted.pop().expect("it was accepted");
    let server = world.server.adopt(socket);
    let read = |engine: &E, conn, name| engine.option(conn, name).expect("it can be read");
    let (near, far) = (&world.client.engine, &world.server.engine);
    assert_eq!(read(near, client, OptionName::NoDelay), SocketOption::NoDelay(false), "the last one counts");
    assert_eq!(read(near, client, OptionName::TypeOfService), SocketOption::TypeOfService(0x10));
    assert_eq!(read(far, server, OptionName::NoDelay), SocketOption::NoDelay(true));
    assert!(matches!(read(far, server, OptionName::KeepAlive), SocketOption::KeepAlive(Some(_))));
    assert_eq!(read(far, server, OptionName::TypeOfService), SocketOption::TypeOfService(0x08));
    world.server.engine.unlisten(listener);
    world.finish();
}

/// Any option by its numbers; one that holds an address is refused.
pub fn raw_options_round_trip<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, _) = world.pair();
    let (level, name) = system::NO_DELAY;
    let raw = |value: i32| SocketOption::Raw { level, name, value: value.to_ne_bytes().to_vec() };
    let engine = &mut world.server.engine;
    if setup.sim {
        let refused = engine.set_option(server, &raw(0)).expect_err("the simulator knows no numbers");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        return world.finish();
    }
    if !system::RAW_OPTIONS {
        let refused = engine.set_option(server, &raw(0)).expect_err("nobody knows which of its numbers hold addresses");
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
        return world.finish();
    }
    for value in [0, 1] {
        engine.set_option(server, &raw(value)).expect("it can be set");
        assert_eq!(engine.option(server, OptionName::Raw { level, name }).expect("it can be read"), raw(value));
        assert_eq!(engine.option(server, OptionName::NoDelay).expect("it"), SocketOption::NoDelay(value == 1));
    }
    let unknown = engine.option(server, OptionName::Raw { level, name: 9_999 });
    assert!(unknown.is_err(), "{unknown:?}");
    if let Some((level, name)) = system::FILTER {
        let filter = SocketOption::Raw { level, name, value: vec![0; 16] };
        assert_eq!(engine.set_option(server, &filter).expect_err("it holds an address").kind(), ErrorKind::Unsupported);
    }
    world.finish();
}

/// TCP's own account agrees with what was sent.
pub fn tcp_info_knows_the_connection<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    if setup.sim || setup.is_windows("TCP_INFO") {
        assert_eq!(world.server.engine.tcp_info(server).expect_err("no TCP").kind(), ErrorKind::Unsupported);
        return world.finish();
    }
    let data = world.dice.bytes(100_000);
    world.client.send(client, data.clone());
    world.expect(At::Server, server, &data);
    let info = world.server.engine.tcp_info(server).expect("the kernel tells");
    assert_eq!(info.received_bytes, 100_000, "{info:?}");
    assert!(info.congestion_window > 0 && info.send_segment > 0, "{info:?}");
    assert!(info.round_trip > Duration::ZERO && info.round_trip < Duration::from_secs(5), "{info:?}");
    let mut acknowledged = 0;
    world.until("all is acknowledged", |world| {
        acknowledged = world.client.engine.tcp_info(client).expect("the kernel tells").acknowledged_bytes;
        acknowledged >= 100_000
    });
    // The SYN counts as one, see RFC 9293.
    assert!(acknowledged <= 100_001, "{acknowledged}");
    world.finish();
}

/// A stale id is an error and reaches nobody.
pub fn stale_ids_have_no_options<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, _) = world.pair();
    world.server.close(server, Close::Plain);
    world.until_closed(At::Server, server);
    let engine = &mut world.server.engine;
    assert_eq!(engine.option(server, OptionName::NoDelay).expect_err("stale").kind(), ErrorKind::NotFound);
    assert_eq!(engine.set_option(server, &SocketOption::NoDelay(true)).expect_err("stale").kind(), ErrorKind::NotFound);
    if !setup.sim {
        assert_eq!(engine.tcp_info(server).expect_err("stale").kind(), ErrorKind::NotFound);
    }
    world.finish();
}
