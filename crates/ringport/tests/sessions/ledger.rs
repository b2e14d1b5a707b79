//! The ledger under every fault the simulator knows, seed by seed.
//!
//! `RINGPORT_SEEDS` sets how many seeds are played (400 unless set), `RINGPORT_SEED` plays one alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringport::{Client, CloseReason, ConnectionOptions, Faults, Server, Simulation, SocketOptions};

use crate::stage::{Log, Player, SIMULATED, What};

const CONNECTIONS: usize = 6;

fn seeds() -> Vec<u64> {
    let read = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match read("RINGPORT_SEED") {
        Some(seed) => vec![seed],
        None => (0..read("RINGPORT_SEEDS").unwrap_or(400)).collect(),
    }
}

/// What one connection's client says it sent, by its position: `number` and offset make every byte unique enough.
fn byte_at(number: usize, at: usize) -> u8 {
    (number.wrapping_mul(89) ^ at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(7)) as u8
}

struct Run {
    server: Log,
    client: Log,
    trace: u64,
    mismatches: usize,
    panics: u64,
}

/// Clients send seeded amounts and close, pause, or abort; the server echoes and panics now and then.
fn play(seed: u64) -> Run {
    let (server, client) = (Log::default(), Log::default());
    let mismatches = Arc::new(AtomicUsize::new(0));
    let wrong = mismatches.clone();
    let counter = AtomicUsize::new(0);
    let sizes: Vec<usize> = (0..CONNECTIONS).map(|n| 1 << (seed.wrapping_mul(7 + n as u64) % 17)).collect();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.state.number = counter.fetch_add(1, Ordering::Relaxed);
            let number = conn.state.number;
            let data: Vec<u8> = (0..sizes[number]).map(|at| byte_at(number, at)).collect();
            conn.send(data);
            if number == 4 {
                conn.set_timer(Duration::from_micros(seed % 5000), 1);
            }
        }
        What::Data(data) => {
            let number = conn.state.number;
            let data = data.take().expect("there is data");
            let from = conn.state.received - data.len();
            if !data.iter().enumerate().all(|(at, byte)| *byte == byte_at(number, from + at)) {
                wrong.fetch_add(1, Ordering::Relaxed);
            }
            if number == 3 {
                conn.pause();
                conn.set_timer(Duration::from_millis(1), 0);
            }
            if conn.state.received == sizes[number] {
                conn.close();
            }
        }
        What::Timer(0) => conn.resume(),
        What::Timer(_) => conn.abort(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let fragile = seed.is_multiple_of(5);
    let echo = Player::with(&server, move |conn, what| match what {
        What::Data(data) => {
            assert!(!(fragile && conn.state.received > 3000), "a panic of the test's");
            conn.send(data.take().expect("there is data"));
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let mut simulation = Simulation::new(seed, Faults::drawn(seed));
    let options = ConnectionOptions::default()
        .marks(1 << (seed % 15), 1 << (seed % 15 + 2))
        .idle_timeout(Some(Duration::from_secs(2)))
        .linger(Duration::from_millis(500))
        .rest_when_full(!seed.is_multiple_of(3));
    let listen = ringport::ListenOptions::default();
    let handle = simulation
        .serve(Server::new().listen_with(SIMULATED, listen, options.clone(), echo.make()))
        .expect("the server starts");
    simulation
        .connect(Client::new().connect_with(SIMULATED, CONNECTIONS, SocketOptions::default(), options, sender.make()))
        .expect("the client starts");
    let (at_client, at_server) = (client.clone(), server.clone());
    let done = move || {
        let (client, server) = (at_client.see(), at_server.see());
        client.closed.len() + client.connect_failed == CONNECTIONS && server.closed.len() == server.opened
    };
    simulation.run_until(done).unwrap_or_else(|error| panic!("{}: {error}", replay(seed)));
    let trace = simulation.trace();
    Run { server, client, trace, mismatches: mismatches.load(Ordering::Relaxed), panics: handle.stats().panics }
}

fn replay(seed: u64) -> String {
    format!("seed {seed} (replay: RINGPORT_SEED={seed} cargo test -p ringport --test sessions ledger)")
}

#[test]
fn the_ledger_holds_under_every_fault() {
    // Panics of the handlers are part of the test; their messages are not.
    std::panic::set_hook(Box::new(|info| {
        if !info.to_string().contains("a panic of the test's") {
            eprintln!("{info}");
        }
    }));
    let (mut graceful, mut ended) = (0, 0);
    for seed in seeds() {
        let run = play(seed);
        assert_eq!(run.mismatches, 0, "{}: a byte came back wrong", replay(seed));
        for log in [&run.server, &run.client] {
            let seen = log.see();
            assert!(seen.breaches.is_empty(), "{}: {:?}", replay(seed), seen.breaches);
            assert_eq!(seen.opened, seen.closed.len(), "{}", replay(seed));
            for closed in &seen.closed {
                ended += 1;
                assert!(closed.handed <= closed.accepted, "{}: {closed:?}", replay(seed));
                let in_order = matches!(closed.reason, CloseReason::Local | CloseReason::PeerClosed) && !closed.failed;
                if in_order && closed.unacked == Some(0) {
                    graceful += 1;
                    assert_eq!(closed.handed, closed.accepted, "{}: {closed:?}", replay(seed));
                }
            }
        }
        let panicked = run.server.see().closed.iter().filter(|closed| closed.reason == CloseReason::Panic).count();
        assert_eq!(panicked as u64, run.panics, "{}: each panic ends one connection", replay(seed));
    }
    println!("{ended} connections ended, {graceful} of them with everything delivered");
    assert!(graceful * 4 > ended, "most runs must end well, or this test shows nothing");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in seeds().into_iter().take(50) {
        assert_eq!(play(seed).trace, play(seed).trace, "{}", replay(seed));
    }
}
