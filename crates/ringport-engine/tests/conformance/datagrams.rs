//! Datagrams: laws 13 to 17.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringport_engine::engine::contract::{DATAGRAMS_QUEUED_MAX, DROP_WAIT};
use ringport_engine::engine::sim::Faults;
use ringport_engine::{Buf, Engine, Event, ListenOptions, SendTo, Socket, UdpId, UdpOptions, Want};

use crate::datagram_port::{PATIENCE, Port, bind, config, data_of, pair, settle, sorted, take, until};
use crate::subject::Setup;
use crate::world::Dice;

/// Every size comes back from an echo as it was sent, the empty and the largest datagram included.
pub fn datagrams_arrive_whole_and_once<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    server.echo = true;
    let mut dice = Dice::new(setup.seed);
    let mut sizes = vec![0, 1, 2, 63, 64, 1231, 1232, 1233, 1472, 4095, 9000, 16_384, 65_506, 65_507];
    sizes.extend((0..20).map(|_| dice.below(3000)));
    let wanted: Vec<Vec<u8>> = sizes.iter().map(|size| dice.bytes(*size)).collect();
    for (number, data) in wanted.iter().enumerate() {
        client.send(server.address, data.clone());
        if number % 4 == 3 {
            // Not more at a time than the kernel's buffers hold.
            until([&mut server, &mut client], "the echo is back", |ports| ports[1].received.len() > number);
        }
    }
    until([&mut server, &mut client], "all is back", |ports| ports[1].received.len() >= wanted.len());
    settle([&mut server, &mut client]);
    assert!(client.received.iter().all(|(from, _, truncated)| *from == server.address && !truncated));
    assert!(server.received.iter().all(|(from, ..)| *from == client.address));
    assert_eq!(sorted(data_of(&client)), sorted(wanted.clone()));
    let stats = server.engine.stats();
    assert_eq!((stats.datagrams_received, stats.datagrams_sent), (wanted.len() as u64, wanted.len() as u64));
    assert_eq!((stats.datagrams_truncated, stats.datagrams_failed), (0, 0));
    server.close();
    client.close();
}

/// A datagram larger than allowed for arrives cut and flagged; one that just fits does not.
pub fn truncation_is_flagged<E: Engine>(setup: &Setup) {
    let mut small = config(setup);
    small.datagram_bytes = 1000;
    let (mut server, mut client) = (Port::<E>::open(&small), Port::<E>::open(&small));
    let wanted: Vec<Vec<u8>> = [999, 1000, 1001, 1060, 1100, 5000].map(|size| vec![size as u8; size]).into();
    for data in &wanted {
        client.send(server.address, data.clone());
    }
    until([&mut server, &mut client], "all arrived", |ports| ports[0].received.len() >= wanted.len());
    for (_, data, truncated) in &server.received {
        let whole = wanted.iter().find(|whole| whole[0] == data[0]).expect("it was sent");
        assert_eq!(data[..], whole[..whole.len().min(1000)]);
        assert_eq!(*truncated, whole.len() > 1000, "{} bytes", whole.len());
    }
    assert_eq!(server.engine.stats().datagrams_truncated, 4);
    server.close();
    client.close();
}

/// Datagrams that leave as segments of one send, with shorter ones and other peers between, arrive one by one.
pub fn bursts_are_split_again<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let (mut server, mut client) = pair::<E>(&config);
    let mut other = Port::<E>::open(&config);
    server.echo = true;
    let mut dice = Dice::new(setup.seed);
    let mut wanted: [Vec<Vec<u8>>; 2] = Default::default();
    let mut total = 0;
    for round in 0..6 {
        for _ in 0..1 + dice.below(90) {
            let size = [64, 64, 64, 64, 40, 1200, 0, 1300][dice.below(8)];
            for _ in 0..1 + dice.below(20) {
                let data = dice.bytes(size);
                if dice.below(16) == 0 {
                    wanted[1].push(data.clone());
                    server.send(other.address, data);
                } else if server.engine.stats().datagrams_sent < u64::MAX && wanted[0].len() < (round + 1) * 120 {
                    wanted[0].push(data.clone());
                    client.send(server.address, data);
                }
            }
        }
        total = wanted[0].len().max(total);
        until([&mut server, &mut client, &mut other], "the burst is back", |ports| {
            ports[1].received.len() >= total && ports[2].received.len() >= wanted[1].len()
        });
    }
    settle([&mut server, &mut client, &mut other]);
    assert_eq!(sorted(data_of(&client)), sorted(wanted[0].clone()));
    assert_eq!(sorted(data_of(&other)), sorted(wanted[1].clone()));
    for port in [server, client, other] {
        port.close();
    }
}

/// The queue has an end, hands back what does not fit, and says when there is room.
pub fn a_full_datagram_queue_says_so<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    // Nobody reads, and large datagrams fill the kernel's buffers, so that what is sent in one turn has to wait.
    server.engine.receive_datagrams(server.udp, Want::Paused);
    let (mut taken, mut full) = (0, false);
    for number in 0..10 * DATAGRAMS_QUEUED_MAX {
        let data = vec![number as u8; 2000];
        match client.engine.send_to(client.udp, server.address, data.clone().into()) {
            SendTo::Taken => taken += 1,
            SendTo::Full(back) => {
                assert_eq!(back.as_slice(), data);
                full = true;
                break;
            }
            SendTo::Closed(_) => panic!("it is open"),
        }
    }
    if full {
        server.engine.receive_datagrams(server.udp, Want::On);
        until([&mut server, &mut client], "there is room", |ports| ports[1].writable > 0);
    }
    until([&mut server, &mut client], "all left", |ports| ports[1].engine.stats().datagrams_sent == taken);
    assert_eq!(client.writable, usize::from(full));
    assert!(full || !setup.sim, "the simulator takes nothing before a wait");
    server.close();
    client.close();
}

/// Datagrams obey the limit of events, and a flood on one socket does not keep others waiting.
pub fn a_turn_of_datagrams_has_an_end<E: Engine>(setup: &Setup) {
    let mut config = config(setup);
    config.events_per_turn = 3;
    let (mut server, mut client) = pair::<E>(&config);
    for number in 0..60_u8 {
        client.send(server.address, vec![number; 100]);
    }
    until([&mut server, &mut client], "all arrived", |ports| ports[0].received.len() >= 60);
    assert!(server.events_max <= 3, "{} events in a turn", server.events_max);
    assert_eq!(sorted(data_of(&server)), sorted((0..60_u8).map(|number| vec![number; 100])));
    server.close();
    client.close();
}

/// Whoever keeps all buffers gets nothing more until one comes back, and then what the kernel kept.
pub fn a_dry_datagram_pool_is_transient<E: Engine>(setup: &Setup) {
    let mut config = config(setup);
    config.datagram_slots = 8;
    let (mut server, mut client) = pair::<E>(&config);
    server.keep = true;
    let wanted: Vec<Vec<u8>> = (0..40_u8).map(|number| vec![number; 2000]).collect();
    for data in &wanted {
        client.send(server.address, data.clone());
    }
    settle([&mut server, &mut client]);
    until([&mut server, &mut client], "all arrived", |ports| {
        // Some of the kept ones may be copies outside of the pool.
        ports[0].kept.clear();
        ports[0].received.len() >= wanted.len()
    });
    assert_eq!(sorted(data_of(&server)), sorted(wanted));
    server.close();
    client.close();
}

/// Sockets that wait hold no buffer that others need, however few there are.
pub fn few_buffers_serve_many_sockets<E: Engine>(setup: &Setup) {
    let mut config = config(setup);
    config.datagram_slots = 4;
    let (mut server, mut client) = pair::<E>(&config);
    let network = config.network.as_ref();
    let (mut waiting, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..12 {
        let (udp, address) = take(&mut server.engine, "127.0.0.1:0", network);
        server.engine.receive_datagrams(udp, Want::On);
        waiting.push(udp);
        addresses.push(address);
    }
    let mut found = BTreeMap::new();
    for round in 1..=3_u8 {
        for address in addresses.iter().rev() {
            client.send(*address, vec![round; 500]);
        }
        until([&mut client], "all left", |ports| {
            ports[0].engine.stats().datagrams_sent == u64::from(round) * addresses.len() as u64
        });
        let (start, mut turns) = (Instant::now(), 0);
        while found.values().filter(|count| **count == round).count() < waiting.len() {
            let now = if setup.sim { server.engine.now() } else { Instant::now() };
            server.engine.wait(Some(now + Duration::from_micros(300))).expect("the engine goes on");
            while let Some(event) = server.engine.next() {
                let Event::Datagram { udp, buf, .. } = event else { panic!("{event:?}") };
                assert_eq!(buf[..], [round; 500]);
                *found.entry(udp).or_insert(0) += 1;
            }
            turns += 1;
            assert!(start.elapsed() < PATIENCE && turns < 100_000, "{found:?}");
        }
    }
    assert!(waiting.iter().all(|udp| found[udp] == 3));
    client.close();
}

/// Paused is a wish, and nothing is lost by it that fits the kernel's buffer.
pub fn paused_datagrams_stay_in_the_kernel<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    let mut wanted = Vec::new();
    for number in 0..40_u8 {
        let want = if number % 3 == 0 { Want::Paused } else { Want::On };
        server.engine.receive_datagrams(server.udp, want);
        wanted.push(vec![number; 10]);
        client.send(server.address, vec![number; 10]);
        client.turn(Duration::ZERO);
        server.turn(Duration::ZERO);
    }
    server.engine.receive_datagrams(server.udp, Want::Paused);
    settle([&mut server, &mut client]);
    let before = server.received.len();
    client.send(server.address, vec![99; 10]);
    wanted.push(vec![99; 10]);
    settle([&mut server, &mut client]);
    assert!(setup.sim || server.received.len() == before, "paused, and still it receives");
    server.engine.receive_datagrams(server.udp, Want::On);
    until([&mut server, &mut client], "all arrived", |ports| ports[0].received.len() >= wanted.len());
    assert_eq!(sorted(data_of(&server)), sorted(wanted));
    server.close();
    client.close();
}

/// What overflows the kernel's buffer is lost, and counted: sent is received and dropped.
pub fn drops_are_counted<E: Engine>(setup: &Setup) {
    if setup.is_windows("count of dropped datagrams") {
        return;
    }
    let mut faults = Faults::drawn(setup.seed).harmless();
    faults.buffer_max = 1;
    let mut config = setup.config_with(faults);
    // The kernel counts segments that travel together as one drop.
    config.features.gso = false;
    let mut client = Port::<E>::open(&config);
    let mut server = Port::<E>::open(&config);
    server.engine.receive_datagrams(server.udp, Want::Paused);
    let total = 3000;
    for number in 0..total {
        client.send(server.address, vec![number as u8; 1000]);
        if number % 64 == 63 {
            // The simulator may take only some at a time, and its queue has an end.
            let sent = number + 1;
            until([&mut client], "these left", |ports| ports[0].engine.stats().datagrams_sent == sent);
        }
    }
    until([&mut client], "all left", |ports| ports[0].engine.stats().datagrams_sent == total);
    settle([&mut client]);
    server.engine.receive_datagrams(server.udp, Want::On);
    settle([&mut server, &mut client]);
    // The count comes with the next datagram that arrives.
    client.send(server.address, b"last".to_vec());
    until([&mut server, &mut client], "the last arrived", |ports| {
        ports[0].received.iter().any(|(_, data, _)| data == b"last")
    });
    let stats = server.engine.stats();
    let received = server.received.len() as u64;
    assert!(received < total, "nothing was dropped");
    assert_eq!(received + stats.datagrams_dropped, total + 1, "{stats:?}");
    server.close();
    client.close();
}

/// A peer that nobody has answers with ICMP: that is reported and counted, and others are served on.
pub fn an_unreachable_peer_kills_nothing<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let (mut server, mut client) = pair::<E>(&config);
    let (nobody, gone) = bind("127.0.0.1:0", config.network.as_ref());
    drop(nobody);
    server.echo = true;
    for round in 0..5_usize {
        client.send(gone, vec![1; 100]);
        client.send(server.address, vec![round as u8; 100]);
        client.send(gone, vec![2; 64]);
        until([&mut server, &mut client], "the living one answers", |ports| ports[1].received.len() > round);
    }
    if !setup.is_windows("word of unreachable peers") {
        until([&mut server, &mut client], "the failure is told", |ports| !ports[1].failed.is_empty());
    }
    settle([&mut server, &mut client]);
    assert!(client.failed.iter().all(|(to, kind)| *to == Some(gone) && *kind == io::ErrorKind::ConnectionRefused));
    assert!(client.engine.stats().datagrams_failed >= client.failed.len() as u64);
    assert_eq!((client.received.len(), server.received.len()), (5, 5));
    server.close();
    client.close();
}

/// One that no packet can hold fails by itself; those before and behind it arrive.
pub fn a_datagram_too_large_kills_nothing<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    client.send(server.address, b"before".to_vec());
    client.send(server.address, vec![0; 65_508]);
    client.send(server.address, b"behind".to_vec());
    until([&mut server, &mut client], "it failed and the others arrived", |ports| {
        ports[0].received.len() >= 2 && !ports[1].failed.is_empty()
    });
    assert_eq!(sorted(data_of(&server)), [b"before".to_vec(), b"behind".to_vec()]);
    assert_eq!((client.failed[0].0, client.failed.len()), (Some(server.address), 1));
    assert_eq!(client.engine.stats().datagrams_failed, 1);
    server.close();
    client.close();
}

/// Each of many peers gets its own answers.
pub fn many_peers_are_told_apart<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let (mut server, mut client) = pair::<E>(&config);
    server.echo = true;
    let peers: Vec<(UdpId, SocketAddr)> = (0..50)
        .map(|_| {
            let (udp, address) = take(&mut client.engine, "127.0.0.1:0", config.network.as_ref());
            client.engine.receive_datagrams(udp, Want::On);
            (udp, address)
        })
        .collect();
    let mut back: BTreeMap<UdpId, Vec<u8>> = BTreeMap::new();
    for (number, (udp, _)) in peers.iter().enumerate() {
        let outcome = client.engine.send_to(*udp, server.address, vec![number as u8; 64].into());
        assert!(matches!(outcome, SendTo::Taken));
    }
    let start = Instant::now();
    let mut turns = 0;
    while back.len() < peers.len() {
        server.turn(Duration::ZERO);
        let now = if setup.sim { client.engine.now() } else { Instant::now() };
        client.engine.wait(Some(now + Duration::from_micros(300))).expect("the engine goes on");
        while let Some(event) = client.engine.next() {
            let Event::Datagram { udp, from, buf, .. } = event else { panic!("{event:?}") };
            assert_eq!(from, server.address);
            assert!(back.insert(udp, buf.to_vec()).is_none(), "a second answer");
        }
        turns += 1;
        assert!(start.elapsed() < PATIENCE && turns < 100_000, "{} answers", back.len());
    }
    for (number, (udp, address)) in peers.iter().enumerate() {
        assert_eq!(back[udp], vec![number as u8; 64]);
        assert_eq!(server.received.iter().filter(|(from, ..)| from == address).count(), 1);
    }
    for (udp, _) in peers {
        client.engine.close_udp(udp);
    }
    let mut closed = 0;
    while closed < 50 {
        client.engine.wait(Some(client.engine.now() + Duration::from_millis(1))).expect("the engine goes on");
        while let Some(event) = client.engine.next() {
            closed += usize::from(matches!(event, Event::UdpClosed { .. }));
        }
        assert!(start.elapsed() < 2 * PATIENCE, "{closed} closed");
    }
    server.close();
    client.close();
}

/// Closing at any moment is one last event; what was taken left or is counted, and the address is free again.
pub fn closing_a_datagram_socket_returns_all<E: Engine>(setup: &Setup) {
    let config = config(setup);
    for count in [0, 1, 5, 200] {
        let (mut server, mut client) = pair::<E>(&config);
        for number in 0..count {
            client.send(server.address, vec![number as u8; 64]);
        }
        client.engine.close_udp(client.udp);
        client.engine.close_udp(client.udp);
        until([&mut client], "it is closed", |ports| ports[0].closed.is_some());
        let (unsent, sent) = (client.closed.expect("it is closed"), client.engine.stats().datagrams_sent);
        assert_eq!(unsent as u64 + sent, count);
        assert!(setup.sim || unsent == 0, "the kernel had room");
        until([&mut server], "what left arrives", |ports| ports[0].received.len() as u64 >= sent);
        let again = Socket::bind_udp(client.address, &UdpOptions::default(), config.network.as_ref());
        assert!(again.is_ok(), "the address is free: {again:?}");
        server.close();
    }
    if let Some(network) = &config.network {
        assert_eq!(network.sockets(), 0, "sockets were leaked");
    }
}

/// A stale id reaches nothing, not even the socket in the same slot.
pub fn stale_datagram_ids_do_nothing<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let (mut server, mut client) = pair::<E>(&config);
    let old = client.udp;
    client.engine.close_udp(old);
    until([&mut client], "it is closed", |ports| ports[0].closed.take().is_some());
    (client.udp, _) = take(&mut client.engine, "127.0.0.1:0", config.network.as_ref());
    assert_ne!(client.udp, old);
    client.engine.receive_datagrams(old, Want::On);
    let outcome = client.engine.send_to(old, server.address, b"stale".into());
    assert!(matches!(&outcome, SendTo::Closed(back) if back.as_slice() == b"stale"), "{outcome:?}");
    client.engine.close_udp(old);
    settle([&mut server, &mut client]);
    assert!(server.received.is_empty() && client.closed.is_none());
    client.send(server.address, b"fresh".to_vec());
    until([&mut server, &mut client], "the new one works", |ports| ports[0].received.len() == 1);
    server.close();
    client.close();
}

/// Law 2 for datagrams: received ones may be kept, and dropping takes a bounded time.
pub fn an_engine_with_datagrams_under_way_is_dropped<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&config(setup));
    server.keep = true;
    for number in 0..30_u8 {
        client.send(server.address, vec![number; 500]);
    }
    until([&mut server, &mut client], "some arrived", |ports| ports[0].received.len() > 10);
    for number in 0..30_u8 {
        client.send(server.address, vec![number; 500]);
    }
    let start = Instant::now();
    let Port { engine, kept, received, .. } = server;
    drop(engine);
    drop(client);
    assert!(start.elapsed() < 2 * DROP_WAIT, "dropping took {:?}", start.elapsed());
    for (buf, (_, data, _)) in kept.iter().zip(&received) {
        assert_eq!(buf[..], data[..]);
    }
    let bytes: Vec<_> = kept.into_iter().map(Buf::into_bytes).collect();
    std::thread::spawn(move || drop(bytes)).join().expect("dropping elsewhere is harmless");
}

/// The same over IPv6, scope and all.
pub fn datagrams_over_ipv6<E: Engine>(setup: &Setup) {
    if std::net::UdpSocket::bind("[::1]:0").is_err() && !setup.sim {
        println!("skipped: there is no IPv6 here");
        return;
    }
    let config = config(setup);
    let mut server = Port::<E>::open_at(&config, "[::1]:0");
    let mut client = Port::<E>::open_at(&config, "[::1]:0");
    server.echo = true;
    for number in 0..20_u8 {
        client.send(server.address, vec![number; 64]);
    }
    until([&mut server, &mut client], "all is back", |ports| ports[1].received.len() >= 20);
    assert!(client.received.iter().all(|(from, ..)| *from == server.address));
    assert_eq!(sorted(data_of(&client)), sorted((0..20_u8).map(|number| vec![number; 64])));
    server.close();
    client.close();
}

/// A listener and a datagram socket have one port number, and a second datagram socket has not.
pub fn streams_and_datagrams_share_a_port<E: Engine>(setup: &Setup) {
    let config = config(setup);
    let network = config.network.as_ref();
    let mut server = Port::<E>::open(&config);
    let taken = Socket::bind_udp(server.address, &UdpOptions::default(), network);
    assert_eq!(taken.expect_err("it is taken").kind(), io::ErrorKind::AddrInUse);
    let socket = match Socket::listen(&server.address.into(), &ListenOptions::default(), network) {
        Ok(socket) => socket,
        Err(error) => {
            println!("skipped: another program has the TCP port: {error}");
            return server.close();
        }
    };
    let listener = server.engine.listen(socket).expect("the engine takes the listener");
    server.engine.accept(listener, Want::On);
    let mut client = Port::<E>::open(&config);
    client.send(server.address, b"both".to_vec());
    until([&mut server, &mut client], "it arrives", |ports| ports[0].received.len() == 1);
    drop(server);
    client.close();
}

/// With every fault of the simulator what arrives was sent, whole or flagged, and no more often than it was sent.
pub fn lossy_networks_lose_whole_datagrams<E: Engine>(setup: &Setup) {
    let (mut server, mut client) = pair::<E>(&setup.config_with(Faults::drawn(setup.seed)));
    server.echo = true;
    let mut dice = Dice::new(setup.seed);
    let wanted: Vec<Vec<u8>> = (0..100_u8).map(|number| [vec![number], dice.bytes(200)].concat()).collect();
    for data in &wanted {
        client.send(server.address, data.clone());
        server.turn(Duration::ZERO);
        client.turn(Duration::ZERO);
    }
    settle([&mut server, &mut client]);
    let mut seen = [0; 256];
    for (from, data, truncated) in &server.received {
        assert_eq!(*from, client.address);
        let whole = &wanted[usize::from(data[0])];
        seen[usize::from(data[0])] += 1;
        assert!(if *truncated { whole.starts_with(data) } else { whole == data });
    }
    assert!(seen.iter().all(|count| *count <= 1), "a datagram came twice");
    server.close();
    client.close();
}
