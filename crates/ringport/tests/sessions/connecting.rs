//! Connecting: several addresses in turn, host names, and from where.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use ringport::{Client, CloseReason, ConnectionOptions, Server, SocketOptions};

use crate::stage::{LIMIT, Log, Player, Stage, What, each_engine, full_backlog, listen_on, stages};

stages!(
    an_address_that_refuses_is_passed_over,
    when_all_addresses_fail_it_is_told_once,
    a_connection_comes_from_the_address_that_was_asked_for,
);

/// Nobody listens there.
const REFUSES: ([u8; 4], u16) = ([127, 0, 0, 1], 9);

fn ip(address: &ringport::Address) -> SocketAddr {
    address.to_string().parse().expect("an IP address")
}

/// Says something and closes when it comes back.
fn asker(log: &Log) -> Player {
    Player::with(log, |conn, what| match what {
        What::Open => drop(conn.write(b"hello")),
        What::Data(_) if conn.state.received == 5 => conn.close(),
        _ => {}
    })
}

fn an_address_that_refuses_is_passed_over(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    stage.play(
        Server::new().listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(vec![REFUSES.into(), REFUSES.into(), ip(&to)], 3, asker(&client).make()),
        || server.all_closed(3) && client.all_closed(3),
    );
    assert_eq!(client.reasons(), [CloseReason::Local; 3]);
    assert_eq!(client.see().connect_failed, 0, "an address that fails is no failure of the connect");
    client.no_breaches();
}

fn when_all_addresses_fail_it_is_told_once(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    stage.play(
        Server::new().listen(listen_on(stage), Player::echo(&server).make()),
        |_| Client::new().connect(vec![REFUSES.into(); 4], 2, asker(&client).make()),
        || client.see().connect_failed >= 2,
    );
    let seen = client.see();
    assert_eq!((seen.connect_failed, seen.opened), (2, 0));
    assert!(seen.notes.iter().all(|note| note.contains("refused")), "{:?}", seen.notes);
}

fn a_connection_comes_from_the_address_that_was_asked_for(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let notes = server.clone();
    let host = Player::with(&server, move |conn, what| match what {
        What::Open => {
            let peer = conn.info().expect("it is alive").peer;
            notes.see().notes.extend(peer.as_socket().map(|peer| peer.to_string()));
        }
        What::Data(data) => drop(conn.send(data.take().expect("there is data"))),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    // A port that is free, as far as one can know.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("there is a free port");
    let mut from = SocketOptions::default();
    from.bind = Some(free);
    stage.play(
        Server::new().listen(listen_on(stage), host.make()),
        |to| Client::new().connect_with(to, 1, from, ConnectionOptions::default(), asker(&client).make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.see().notes, [free.to_string()]);
    assert_eq!(client.reasons(), [CloseReason::Local]);
}

#[test]
fn the_next_address_is_tried_beside_one_that_does_not_answer() {
    each_engine(|kind| {
        let (backlog, black_hole) = full_backlog();
        let (at_server, at_client) = (Log::default(), Log::default());
        let server = Server::new()
            .engine(Some(kind))
            .listen("127.0.0.1:0", Player::echo(&at_server).make())
            .start()
            .expect("the server starts");
        let good = ip(&server.addresses()[0]);
        let start = Instant::now();
        Client::new()
            .engine(Some(kind))
            .connect(vec![REFUSES.into(), black_hole, good, black_hole], 1, asker(&at_client).make())
            .run()
            .expect("it ends with its only connection, since the loser was closed");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(249) && took < LIMIT, "{kind}: {took:?}");
        assert_eq!(at_client.reasons(), [CloseReason::Local], "{kind}");
        assert_eq!(at_client.see().connect_failed, 0, "{kind}");
        drop(backlog);
    });
}

#[test]
fn the_time_for_connecting_is_for_all_addresses_together() {
    each_engine(|kind| {
        let (backlog, black_hole) = full_backlog();
        let log = Log::default();
        let options = ConnectionOptions::default().connect_timeout(Some(Duration::from_millis(400)));
        let start = Instant::now();
        Client::new()
            .engine(Some(kind))
            .connect_with(vec![black_hole; 8], 1, SocketOptions::default(), options, asker(&log).make())
            .run()
            .expect("it gives up");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(399) && took < LIMIT, "{kind}: {took:?}");
        let seen = log.see();
        assert_eq!((seen.connect_failed, seen.opened), (1, 0), "{kind}");
        assert!(seen.notes[0].contains("timed out"), "{kind}: {:?}", seen.notes);
        drop(backlog);
    });
}

#[test]
fn host_names_are_looked_up_while_the_client_runs() {
    each_engine(|kind| {
        let (at_server, at_client) = (Log::default(), Log::default());
        let server = Server::new()
            .engine(Some(kind))
            .listen("127.0.0.1:0", Player::echo(&at_server).make())
            .start()
            .expect("the server starts");
        // It may have an IPv6 address as well, where nobody listens.
        let name = format!("localhost:{}", ip(&server.addresses()[0]).port());
        Client::new().engine(Some(kind)).connect(&name, 3, asker(&at_client).make()).run().expect("runs to its end");
        assert_eq!(at_client.reasons(), [CloseReason::Local; 3], "{kind}");
        // No name has an empty part, so that nobody is asked for it.
        let unknown = Log::default();
        Client::new().engine(Some(kind)).connect("no..where:1", 2, asker(&unknown).make()).run().expect("ends");
        let seen = unknown.see();
        assert_eq!((seen.connect_failed, seen.opened), (2, 0), "{kind}");
    });
}
