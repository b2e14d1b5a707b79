//! Each deadline closes with its own reason, on time, and takes nothing away that had been received.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringport::{
    Client, CloseReason, ConnectionOptions, Faults, Heartbeat, ListenOptions, MinimumRate, Server, Simulation,
    SocketOptions,
};

use crate::stage::{
    LIMIT, Log, Player, SIMULATED, Stage, What, each_engine, full_backlog, listen_on, listen_with_small_buffers,
    small_buffers, stages,
};

stages!(
    a_peer_that_sends_nothing_more_is_closed,
    a_peer_that_does_not_read_is_closed,
    a_connection_lives_as_long_as_it_may,
    a_slow_sender_is_closed_and_a_fast_one_is_not,
    a_server_that_only_sends_is_not_idle,
    reading_that_rests_is_not_held_against_the_peer,
    a_frozen_peer_misses_its_heartbeats_and_a_live_one_does_not,
);

const TIME: Duration = Duration::from_millis(120);

/// Measures the life of one connection, on its own worker's clock.
#[derive(Clone, Default)]
struct Life(Arc<Mutex<(Option<Instant>, Duration)>>);

impl Life {
    /// Of several connections the first counts.
    fn open(&self, now: Instant) {
        self.0.lock().expect("no test panicked").0.get_or_insert(now);
    }

    fn close(&self, now: Instant) {
        let mut life = self.0.lock().expect("no test panicked");
        life.1 = now - life.0.expect("it was open");
    }

    /// Times are kept to the millisecond. In virtual time little is late, on a busy machine anything may be.
    fn check(&self, stage: &Stage, expected: Duration) {
        let life = self.0.lock().expect("no test panicked").1;
        let slack = Duration::from_millis(1);
        assert!(life + slack >= expected, "{life:?} instead of {expected:?}");
        assert!(!stage.is_simulated() || life <= expected + 10 * slack, "{life:?} instead of {expected:?}");
    }
}

/// A server that measures the life of its connection and sends `x` at an interval.
fn ticking(log: &Log, life: &Life) -> Player {
    let life = life.clone();
    Player::with(log, move |conn, what| match what {
        What::Open => {
            life.open(conn.now());
            conn.set_interval(Duration::from_millis(10), 0);
        }
        What::Timer(_) => drop(conn.write(b"x")),
        What::PeerClosed => conn.close(),
        What::Close => life.close(conn.now()),
        _ => {}
    })
}

fn a_peer_that_sends_nothing_more_is_closed(stage: &Stage) {
    let (server, client, life) = (Log::default(), Log::default(), Life::default());
    let talker = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.write(b"hello")),
        // The server's first word, 10 ms after the connection opened there.
        What::Data(_) if std::mem::replace(&mut conn.state.number, 1) == 0 => {
            conn.set_timer(Duration::from_millis(50), 0);
        }
        What::Timer(_) => drop(conn.write(b" again")),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().read_timeout(Some(TIME));
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, ticking(&server, &life).make()),
        |to| Client::new().connect(to, 1, talker.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.reasons(), [CloseReason::ReadTimeout]);
    assert_eq!(server.see().received, b"hello again");
    assert!(client.see().received.len() >= 3, "what the server sent meanwhile does not count");
    // The second word put it off.
    life.check(stage, TIME + Duration::from_millis(60) - Duration::from_millis(1));
}

fn a_peer_that_does_not_read_is_closed(stage: &Stage) {
    let (server, client, life) = (Log::default(), Log::default(), Life::default());
    let lives = life.clone();
    let pusher = Player::with(&server, move |conn, what| match what {
        What::Open => {
            lives.open(conn.now());
            conn.send(vec![1; 9_000_000]);
        }
        What::Close => lives.close(conn.now()),
        _ => {}
    });
    // It goes on sending, so that the connection is not idle.
    let stubborn = Player::with(&client, |conn, what| match what {
        What::Open => {
            conn.pause();
            conn.set_interval(Duration::from_millis(10), 0);
        }
        What::Timer(_) if conn.state.number < 100 => {
            conn.state.number += 1;
            conn.write(b"x");
        }
        What::Timer(_) => conn.resume(),
        _ => {}
    });
    let options = ConnectionOptions::default().write_timeout(Some(TIME)).rest_when_full(false);
    stage.play(
        Server::new().listen_with(listen_on(stage), listen_with_small_buffers(), options, pusher.make()),
        |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), stubborn.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let closed = server.see().closed[0].clone();
    assert_eq!(closed.reason, CloseReason::WriteStall);
    assert!(closed.handed < closed.accepted && closed.received > 0, "{closed:?}");
    let life = life.0.lock().expect("no test panicked").1;
    assert!(life + Duration::from_millis(1) >= TIME, "{life:?}");
}

fn a_connection_lives_as_long_as_it_may(stage: &Stage) {
    let (server, client, life) = (Log::default(), Log::default(), Life::default());
    let options = ConnectionOptions::default().lifetime(Some(TIME));
    let talker = ticking(&client, &Life::default());
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, ticking(&server, &life).make()),
        |to| Client::new().connect(to, 1, talker.make()),
        || server.all_closed(1),
    );
    assert_eq!(server.reasons(), [CloseReason::Lifetime]);
    assert!(!server.see().received.is_empty());
    life.check(stage, TIME);
}

fn a_slow_sender_is_closed_and_a_fast_one_is_not(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let number = Arc::new(Mutex::new(0));
    // Two connections: 1 byte every 10 ms, and 1,000 bytes every 10 ms.
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            let mut number = number.lock().expect("no test panicked");
            conn.state.number = [1, 1000][*number];
            *number += 1;
            conn.set_interval(Duration::from_millis(10), 0);
            conn.set_timer(Duration::from_millis(450), 1);
        }
        What::Timer(0) => drop(conn.write(&vec![0; conn.state.number])),
        What::Timer(_) => conn.close(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options =
        ConnectionOptions::default().receive_rate_min(Some(MinimumRate::new(1000, Duration::from_millis(200))));
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, Player::new(&server).make()),
        |to| Client::new().connect(to, 2, sender.make()),
        || server.all_closed(2) && client.all_closed(2),
    );
    assert_eq!(server.reasons(), [CloseReason::TooSlow, CloseReason::PeerClosed]);
    let slow = server.see().closed[0].clone();
    assert!(slow.received > 0 && slow.received < 200, "what came was delivered: {slow:?}");
}

fn a_server_that_only_sends_is_not_idle(stage: &Stage) {
    // Its sends are taken at once, so that no event but its own timer ever comes.
    let (server, client, life) = (Log::default(), Log::default(), Life::default());
    let listener = Player::with(&client, |conn, what| match what {
        What::Open => drop(conn.set_timer(3 * TIME, 0)),
        What::Timer(_) => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().idle_timeout(Some(TIME));
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, ticking(&server, &life).make()),
        |to| Client::new().connect(to, 1, listener.make()),
        || client.all_closed(1),
    );
    assert_eq!(client.reasons(), [CloseReason::Local]);
}

fn reading_that_rests_is_not_held_against_the_peer(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let reader = Player::with(&server, |conn, what| match what {
        What::Open => {
            conn.pause();
            conn.set_timer(3 * TIME, 0);
        }
        What::Timer(_) => conn.resume(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let sender = Player::with(&client, |conn, what| {
        if let What::Open = what {
            conn.write(b"early");
            conn.close();
        }
    });
    let options = ConnectionOptions::default()
        .read_timeout(Some(TIME))
        .receive_rate_min(Some(MinimumRate::new(1, Duration::from_secs(1))));
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, reader.make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.reasons(), [CloseReason::PeerClosed]);
    assert_eq!(server.see().received, b"early");
}

fn a_frozen_peer_misses_its_heartbeats_and_a_live_one_does_not(stage: &Stage) {
    let interval = Duration::from_millis(100);
    let (server, client, life) = (Log::default(), Log::default(), Life::default());
    let lives = life.clone();
    let asker = Player::with(&server, move |conn, what| match what {
        What::Heartbeat => drop(conn.write(b"?")),
        What::PeerClosed => conn.close(),
        What::Open => lives.open(conn.now()),
        What::Close if conn.state.received == 0 => lives.close(conn.now()),
        _ => {}
    });
    let number = Arc::new(Mutex::new(0));
    let answerer = Player::with(&client, move |conn, what| match what {
        What::Open => {
            let mut number = number.lock().expect("no test panicked");
            conn.state.number = *number;
            *number += 1;
            if conn.state.number == 1 {
                conn.set_timer(7 * interval, 0);
            }
        }
        What::Data(_) if conn.state.number == 1 => drop(conn.write(b"!")),
        What::Timer(_) => conn.close(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().heartbeat(Some(Heartbeat::new(interval, 2)));
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, asker.make()),
        |to| Client::new().connect(to, 2, answerer.make()),
        || server.all_closed(2) && client.all_closed(2),
    );
    assert_eq!(server.reasons(), [CloseReason::Heartbeat, CloseReason::PeerClosed]);
    let frozen = server.see().closed[0].clone();
    assert_eq!((frozen.accepted, frozen.received), (2, 0), "two heartbeats were sent");
    assert!(server.see().received.len() >= 2, "the live one answered more than once");
    life.check(stage, 3 * interval);
}

#[test]
fn connecting_is_given_up_in_time() {
    each_engine(|kind| {
        let (backlog, to) = full_backlog();
        let client = Log::default();
        let options = ConnectionOptions::default().connect_timeout(Some(TIME));
        let start = Instant::now();
        Client::new()
            .engine(Some(kind))
            .connect_with(to, 2, SocketOptions::default(), options, Player::new(&client).make())
            .run()
            .expect("it ends when both have failed");
        assert!(start.elapsed() >= TIME && start.elapsed() < LIMIT, "{kind}: {:?}", start.elapsed());
        let seen = client.see();
        assert_eq!((seen.opened, seen.connect_failed), (0, 2));
        assert!(seen.notes.iter().all(|note| note.contains("timed out")), "{kind}: {:?}", seen.notes);
        drop(backlog);
    });
}

#[test]
fn connecting_is_given_up_in_time_in_a_simulation() {
    for seed in 0..20 {
        // Nothing is ever accepted, so that the queue of one is soon full.
        let mut faults = Faults::none();
        faults.emfile = 1000;
        let (server, client) = (Log::default(), Log::default());
        let mut simulation = Simulation::new(seed, faults);
        let mut listen = ListenOptions::default();
        listen.backlog = 1;
        let options = ConnectionOptions::default();
        simulation
            .serve(Server::new().listen_with(SIMULATED, listen, options, Player::new(&server).make()))
            .expect("the server starts");
        let options = ConnectionOptions::default().connect_timeout(Some(TIME));
        let late =
            Client::new().connect_with(SIMULATED, 4, SocketOptions::default(), options, Player::new(&client).make());
        let handle = simulation.connect(late).expect("the client starts");
        let failed = client.clone();
        simulation.run_until(|| failed.see().connect_failed == 3).expect("three do not get in");
        assert!(client.see().notes.iter().all(|note| note.contains("timed out")), "{:?}", client.see().notes);
        handle.shutdown(Duration::ZERO);
    }
}

#[test]
fn a_real_peer_sees_the_end() {
    each_engine(|kind| {
        let log = Log::default();
        let options = ConnectionOptions::default().read_timeout(Some(TIME));
        let server = Server::new()
            .engine(Some(kind))
            .listen_with("127.0.0.1:0", ListenOptions::default(), options, Player::new(&log).make())
            .start()
            .expect("the server starts");
        let to: SocketAddr = server.addresses()[0].to_string().parse().expect("an IP address");
        let start = Instant::now();
        let mut peer = TcpStream::connect(to).expect("connects");
        peer.set_read_timeout(Some(LIMIT)).expect("sets a timeout");
        assert_eq!(peer.read_to_end(&mut Vec::new()).expect("the end comes in order"), 0);
        assert!(start.elapsed() + Duration::from_millis(1) >= TIME, "{kind}: {:?}", start.elapsed());
    });
}
