//! What datagrams have beside laws 13 to 17: options, counted bytes, and chunks that no datagram can carry.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringport_engine::buffer::{Chunk, FileRange};
use ringport_engine::{Engine, OptionName, SendTo, Socket, SocketOption, UdpOptions, Want};

use crate::datagram_port::{PATIENCE, Port, config, data_of, pair, sorted, until};
use crate::subject::Setup;

/// A range of a file and urgent data are nothing that a datagram can carry; those before and behind them arrive.
pub fn what_is_no_bytes_fails<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    let file = std::fs::File::open(std::env::current_exe().expect("the test knows itself")).expect("it is a file");
    let odd = [Chunk::from(FileRange::new(Arc::new(file), 0, 100)), Chunk::urgent(7)];
    client.send(server.address, b"before".to_vec());
    for chunk in odd {
        let outcome = client.engine.send_to(client.udp, server.address, chunk);
        assert!(matches!(outcome, SendTo::Taken), "{outcome:?}");
    }
    client.send(server.address, b"behind".to_vec());
    until([&mut server, &mut client], "they failed and the others arrived", |ports| {
        ports[0].received.len() >= 2 && ports[1].failed.len() >= 2
    });
    assert_eq!(sorted(data_of(&server)), [b"before".to_vec(), b"behind".to_vec()]);
    assert_eq!(client.failed, [(Some(server.address), io::ErrorKind::InvalidInput); 2]);
    assert_eq!(client.engine.stats().datagrams_failed, 2);
    server.close();
    client.close();
}

/// What waits to be sent is counted in bytes, and no longer once it has left, failed or been given up.
pub fn bytes_of_datagrams_are_counted<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    for size in [100, 0, 1000, 65_508] {
        client.send(server.address, vec![1; size]);
    }
    assert_eq!(client.engine.stats().datagram_bytes_queued, 100 + 1000 + 65_508);
    until([&mut server, &mut client], "all left or failed", |ports| {
        ports[0].received.len() == 3 && ports[1].failed.len() == 1
    });
    let stats = client.engine.stats();
    assert_eq!((stats.datagram_bytes_queued, stats.datagram_bytes_sent, stats.datagrams_sent), (0, 1100, 3));
    client.send(server.address, vec![1; 500]);
    client.engine.close_udp(client.udp);
    until([&mut client], "it is closed", |ports| ports[0].closed.is_some());
    let stats = client.engine.stats();
    assert_eq!((stats.datagram_bytes_queued, stats.datagram_bytes_sent % 500), (0, 100));
    server.close();
}

/// Many datagrams a turn, then one at a time, and many again: each comes back, once, however the engine receives them.
pub fn changes_of_load_lose_nothing<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    server.echo = true;
    let mut wanted = Vec::new();
    for phase in [12, 1, 12, 1] {
        for round in 0..80_u8 {
            for number in 0..phase {
                let data = vec![number, round, phase, wanted.len() as u8];
                client.send(server.address, data.clone());
                wanted.push(data);
            }
            if round % 8 == 7 {
                server.engine.receive_datagrams(server.udp, Want::Paused);
                server.turn(Duration::ZERO);
                server.engine.receive_datagrams(server.udp, Want::On);
            }
            until([&mut server, &mut client], "the round is back", |ports| ports[1].received.len() >= wanted.len());
        }
    }
    assert_eq!(sorted(data_of(&client)), sorted(wanted));
    server.close();
    client.close();
}

/// The answers of a turn hold all slots until they leave, at the beginning of a wait: that wait does not sleep on them.
pub fn slots_of_answers_feed_the_next_receive<E: Engine>(setup: &Setup) {
    let mut config = config(setup);
    config.datagram_slots = 8;
    let (mut server, mut client) = pair::<E>(&config);
    server.echo = true;
    let (mut total, mut waited) = (0, Duration::ZERO);
    for round in 0..80_u8 {
        for number in 0..40_u8 {
            client.send(server.address, vec![number, round]);
        }
        total += 40;
        if setup.sim {
            // A long wait would let the time pass that the client needs for its own part.
            until([&mut server, &mut client], "all arrived", |ports| ports[0].received.len() >= total);
        }
        while server.received.len() < total {
            client.turn(Duration::ZERO);
            let begin = Instant::now();
            server.turn(2 * PATIENCE);
            waited += begin.elapsed();
        }
    }
    assert!(waited < PATIENCE, "a wait slept although there was something to receive");
    until([&mut server, &mut client], "all is back", |ports| ports[1].received.len() >= total);
    server.close();
    client.close();
}

/// Options are set before the bind and on the live socket, and read back; those of connections are refused.
pub fn options_of_datagram_sockets<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let mut options = UdpOptions::default();
    options.more = vec![SocketOption::TypeOfService(0x10)];
    let address = "127.0.0.1:0".parse().expect("an address");
    let socket = Socket::bind_udp(address, &options, config.network.as_ref()).expect("a free port");
    let mut port = Port::<E>::open(&config);
    let udp = port.engine.bind_udp(socket).expect("another socket");
    let engine = &mut port.engine;
    assert_eq!(engine.udp_option(udp, OptionName::TypeOfService).expect("it is read"), options.more[0]);
    let other = SocketOption::TypeOfService(0x08);
    engine.set_udp_option(udp, &other).expect("it is set");
    assert_eq!(engine.udp_option(udp, OptionName::TypeOfService).expect("it is read"), other);
    engine.set_udp_option(udp, &SocketOption::ReceiveBuffer(50_000)).expect("it is set");
    let read = engine.udp_option(udp, OptionName::ReceiveBuffer).expect("it is read");
    assert!(matches!(read, SocketOption::ReceiveBuffer(50_000 | 100_000)), "{read:?}");

    let refused = engine.set_udp_option(udp, &SocketOption::NoDelay(true)).expect_err("TCP alone has it");
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);
    options.more = vec![SocketOption::NoDelay(true)];
    let refused = Socket::bind_udp(address, &options, config.network.as_ref()).expect_err("TCP alone has it");
    assert_eq!(refused.kind(), io::ErrorKind::Unsupported);

    engine.close_udp(udp);
    let stale = engine.udp_option(udp, OptionName::TypeOfService).expect_err("it is closing");
    assert_eq!(stale.kind(), io::ErrorKind::NotFound);
    let stale = engine.set_udp_option(udp, &other).expect_err("it is closing");
    assert_eq!(stale.kind(), io::ErrorKind::NotFound);
}
