//! Limits on connections.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringport::{Client, CloseReason, ConnectionOptions, Rate, Server};

use crate::stage::{
    LIMIT, Log, Player, Stage, What, each_engine, listen_on, listen_with_small_buffers, pattern, small_buffers, stages,
};

stages!(
    one_connection_too_many_is_refused_and_no_other_is_harmed,
    an_address_has_only_so_many_connections,
    only_so_many_connections_come_at_once,
    received_bytes_keep_to_their_rate_and_none_is_lost,
    received_messages_keep_to_their_rate_and_none_is_lost,
);

fn one_connection_too_many_is_refused_and_no_other_is_harmed(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.set_timer(Duration::from_millis(100), 0)),
        What::Timer(_) => drop(conn.write(b"ping")),
        What::Data(_) if conn.state.received == 4 => conn.close(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().max_connections(5).listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(to, 8, sender.make()),
        || client.all_closed(8),
    );
    let reasons = client.reasons();
    assert_eq!(reasons.iter().filter(|reason| **reason == CloseReason::Local).count(), 5, "{reasons:?}");
    assert_eq!(client.see().received.len(), 5 * 4);
    assert_eq!(server.see().opened, 5);
}

/// Opens `connections`, has each that is let in echo four bytes after a while, and checks that it was `let_in` of them.
fn check_refusals(stage: &Stage, connections: usize, let_in: usize, limit: impl Fn(Server) -> Server) {
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.set_timer(Duration::from_millis(100), 0)),
        What::Timer(_) => drop(conn.write(b"ping")),
        What::Data(_) if conn.state.received == 4 => conn.close(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        limit(Server::new()).listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(to, connections, sender.make()),
        || client.see().closed.len() == connections && server.all_closed(let_in),
    );
    let served = client.reasons().iter().filter(|reason| **reason == CloseReason::Local).count();
    assert_eq!((served, server.see().opened), (let_in, let_in));
    assert_eq!(client.see().received.len(), let_in * 4);
}

fn an_address_has_only_so_many_connections(stage: &Stage) {
    check_refusals(stage, 8, 5, |server| server.max_connections_per_address(Some(5)));
}

fn only_so_many_connections_come_at_once(stage: &Stage) {
    check_refusals(stage, 8, 5, |server| server.accept_rate(Some(Rate::new(1, 5))));
}

/// What arrives within `LEAST` shows that the rate was not kept.
const LEAST: Duration = Duration::from_millis(150);

/// Sends `bytes` and measures how long the server took to receive them all.
fn check_rate(stage: &Stage, bytes: usize, options: ConnectionOptions, count_messages: bool) {
    let (server, client) = (Log::default(), Log::default());
    let times = Arc::new(Mutex::new((None, Duration::ZERO)));
    let noted = times.clone();
    let reader = Player::with(&server, move |conn, what| match what {
        What::Open => noted.lock().expect("no test panicked").0 = Some(conn.now()),
        What::Data(data) => {
            if count_messages {
                conn.count_messages(data.as_ref().expect("there is data").len() as u64);
            }
            let mut times = noted.lock().expect("no test panicked");
            times.1 = conn.now() - times.0.expect("it is open");
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let sender = Player::with(&client, move |conn, what| {
        if let What::Open = what {
            conn.send(pattern(bytes));
            conn.close();
        }
    });
    stage.play(
        Server::new().listen_with(listen_on(stage), listen_with_small_buffers(), options, reader.make()),
        |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(server.see().received == pattern(bytes));
    assert_eq!(server.reasons(), [CloseReason::PeerClosed]);
    let took = times.lock().expect("no test panicked").1;
    assert!(took >= LEAST, "all was received within {took:?}");
}

fn received_bytes_keep_to_their_rate_and_none_is_lost(stage: &Stage) {
    // 600 kB at 1 MB a second, less what may come at once and what was received before a rest took effect.
    let options = ConnectionOptions::default().receive_rate_max(Some(Rate::new(1_000_000, 10_000)));
    check_rate(stage, 600_000, options, false);
}

fn received_messages_keep_to_their_rate_and_none_is_lost(stage: &Stage) {
    let options = ConnectionOptions::default().message_rate_max(Some(Rate::new(1_000_000, 10_000)));
    check_rate(stage, 600_000, options, true);
}

#[test]
fn addresses_are_counted_apart_and_over_all_workers() {
    each_engine(|kind| {
        let log = Log::default();
        let server = Server::new()
            .engine(Some(kind))
            .workers(3)
            .max_connections_per_address(Some(4))
            .listen("127.0.0.1:0", Player::echo(&log).make())
            .listen("[::1]:0", Player::echo(&log).make())
            .start()
            .expect("the server starts");
        let to: Vec<SocketAddr> =
            server.addresses().iter().map(|address| address.to_string().parse().expect("an IP address")).collect();
        let ask = |stream: &mut TcpStream| {
            stream.set_read_timeout(Some(LIMIT)).expect("sets a timeout");
            stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0]).is_ok()
        };
        let connect = |to: SocketAddr| TcpStream::connect(to).expect("connects");
        let mut four: Vec<_> = (0..4).map(|_| connect(to[0])).collect();
        assert!(four.iter_mut().all(ask), "{kind}");
        assert!(!ask(&mut connect(to[0])), "{kind}: one too many");
        let mut six: Vec<_> = (0..4).map(|_| connect(to[1])).collect();
        assert!(six.iter_mut().all(ask), "{kind}: the other address has its own number");
        assert!(four.iter_mut().all(ask), "{kind}: nobody was harmed");
        four.pop();
        let start = Instant::now();
        while !ask(&mut connect(to[0])) {
            assert!(start.elapsed() < LIMIT, "{kind}: a place that is free is given away");
        }
        // Counters are published at the end of a turn.
        while server.handle().stats().refused_by_address == 0 {
            assert!(start.elapsed() < LIMIT, "{kind}: {:?}", server.handle().stats());
        }
    });
}
