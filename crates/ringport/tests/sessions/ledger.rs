//! The ledger under every fault the simulator knows, seed by seed.
//!
//! `RINGPORT_SEEDS` sets how many seeds are played (400 unless set), `RINGPORT_SEED` plays one alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringport::{Client, CloseReason, ConnectionOptions, Faults, OverLimit, Server, Simulation, SocketOptions};

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

/// Numbered messages to a reader that stops now and then, under a policy that drops.
///
/// Returns what each side logged, the number of messages that were sent and how many the counters say were dropped.
fn play_dropping(seed: u64) -> (Log, Log, u64, u64) {
    let (server, client) = (Log::default(), Log::default());
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let pusher = Player::with(&server, move |conn, what| match what {
        What::Open => drop(conn.set_interval(Duration::from_micros(1500), 0)),
        What::Timer(_) if conn.state.number >= 150 => conn.close(),
        What::Timer(_) => {
            for _ in 0..10 {
                conn.state.number += 1;
                count.fetch_add(1, Ordering::Relaxed);
                conn.send(message(conn.state.number));
            }
        }
        _ => {}
    });
    let reader = Player::dozing(&client);
    let policy = if seed.is_multiple_of(2) { OverLimit::DropOldest } else { OverLimit::DropNewest };
    let options = ConnectionOptions::default().send_limit(1000 + (seed % 7) * 1000, policy).marks(500, 1000);
    let mut simulation = Simulation::new(seed, Faults::drawn(seed));
    let listen = ringport::ListenOptions::default();
    let handle = simulation
        .serve(Server::new().listen_with(SIMULATED, listen, options, pusher.make()))
        .expect("the server starts");
    simulation.connect(Client::new().connect(SIMULATED, 1, reader.make())).expect("the client starts");
    let (at_client, at_server) = (client.clone(), server.clone());
    let done = move || {
        let (client, server) = (at_client.see(), at_server.see());
        client.closed.len() + client.connect_failed == 1 && server.closed.len() == server.opened
    };
    simulation.run_until(done).unwrap_or_else(|error| panic!("{}: {error}", replay(seed)));
    (server, client, sent.load(Ordering::Relaxed) as u64, handle.stats().dropped_messages)
}

/// Message number `number`: its length, its number, and bytes that follow from both.
fn message(number: usize) -> Vec<u8> {
    let length = 8 + number.wrapping_mul(37) % 600;
    let mut bytes = vec![(number * 13) as u8; length];
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    bytes[4..8].copy_from_slice(&(number as u32).to_le_bytes());
    bytes
}

/// The numbers of the whole messages in `stream`, each compared with what was sent, and the bytes behind the last of them.
fn messages_in(stream: &[u8]) -> (Vec<usize>, &[u8]) {
    let (mut rest, mut numbers) = (stream, Vec::new());
    while let Some((head, _)) = rest.split_first_chunk::<8>() {
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (length, number) = (word(0), word(4));
        assert!((8..608).contains(&length), "a message was torn");
        let Some((whole, behind)) = rest.split_at_checked(length) else { break };
        assert!(whole == message(number), "message {number} was torn");
        numbers.push(number);
        rest = behind;
    }
    (numbers, rest)
}

#[test]
fn what_policies_drop_is_whole_messages_and_counted() {
    let mut dropped_in_all = 0;
    for seed in seeds().into_iter().take(40) {
        let (server, client, sent, counted) = play_dropping(seed);
        let (server, client) = (server.see(), client.see());
        let Some(closed) = server.closed.first() else { continue };
        assert_eq!(counted, closed.dropped_messages, "{}", replay(seed));
        dropped_in_all += counted;
        let (numbers, torn) = messages_in(&client.received);
        assert!(numbers.is_sorted(), "{}", replay(seed));
        assert!(client.received.len() as u64 <= closed.handed, "{}: {closed:?}", replay(seed));
        if closed.reason == CloseReason::Local && !closed.failed && closed.unacked == Some(0) {
            assert!(torn.is_empty(), "{}", replay(seed));
            assert_eq!(closed.accepted, client.received.len() as u64, "{}: {closed:?}", replay(seed));
            assert_eq!(numbers.len() as u64 + counted, sent, "{}: {closed:?}", replay(seed));
            let lost: usize = (1..=sent as usize).filter(|n| !numbers.contains(n)).map(|n| message(n).len()).sum();
            assert_eq!(lost as u64, closed.dropped_bytes, "{}", replay(seed));
        }
    }
    assert!(dropped_in_all > 300, "{dropped_in_all} dropped messages show nothing");
}

#[test]
fn a_seed_replays_exactly() {
    for seed in seeds().into_iter().take(50) {
        assert_eq!(play(seed).trace, play(seed).trace, "{}", replay(seed));
    }
}
