//! Bytes through sessions: exact, in order, bounded.

use std::time::Duration;

use ringport::{Client, ConnectionOptions, ListenOptions, OverLimit, PoolConfig, Refusal, SendOutcome, Server};

use crate::stage::{Log, Player, Stage, What, listen_on, listen_with_small_buffers, pattern, small_buffers, stages};

stages!(
    echo_is_byte_exact,
    many_connections_echo_at_once,
    a_mebibyte_passes_through_small_buffers,
    small_writes_of_one_callback_leave_together,
    reading_rests_between_the_marks,
    refused_data_comes_back,
    writable_drives_an_endless_writer,
    full_and_writable_take_turns,
    flushes_are_told_in_order_when_the_kernel_has_all,
    a_paused_reader_closes_the_window,
    paused_reading_loses_nothing,
    many_who_pause_lose_nothing,
    callbacks_come_in_order_over_churn,
);

fn echo_is_byte_exact(stage: &Stage) {
    for length in [1, 64, 4096, 4097, 70_000] {
        let (server, client) = (Log::default(), Log::default());
        let data = pattern(length);
        let sent = data.clone();
        let sender = Player::with(&client, move |conn, what| match what {
            What::Open => drop(conn.send(sent.clone())),
            What::Data(_) if conn.state.received == sent.len() => conn.close(),
            _ => {}
        });
        stage.play(
            Server::new().listen(listen_on(stage), Player::echo(&server).make()),
            |to| Client::new().connect(to, 1, sender.make()),
            || server.all_closed(1) && client.all_closed(1),
        );
        assert!(client.see().received == data, "{length} bytes come back unchanged");
        for log in [&server, &client] {
            log.no_breaches();
            let closed = log.see().closed[0].clone();
            assert_eq!((closed.accepted, closed.handed), (length as u64, length as u64));
        }
    }
}

fn many_connections_echo_at_once(stage: &Stage) {
    const CONNECTIONS: usize = 200;
    const ROUNDS: usize = 20;
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => drop(conn.write(&[7; 100])),
        What::Data(_) if conn.state.received == 100 * ROUNDS => conn.close(),
        What::Data(_) if conn.state.received.is_multiple_of(100) => drop(conn.write(&[7; 100])),
        _ => {}
    });
    stage.play(
        Server::new().listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().connect(to, CONNECTIONS, sender.make()),
        || server.all_closed(CONNECTIONS) && client.all_closed(CONNECTIONS),
    );
    assert_eq!(client.see().received.len(), CONNECTIONS * ROUNDS * 100);
    server.no_breaches();
    client.no_breaches();
}

fn a_mebibyte_passes_through_small_buffers(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let data = pattern(1 << 20);
    let sent = data.clone();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => drop(conn.send(sent.clone())),
        What::Data(_) if conn.state.received == sent.len() => conn.close(),
        _ => {}
    });
    let pool = PoolConfig::default().small_slots(16).large_slots(4).slot_bytes(512, 4096);
    stage.play(
        Server::new().pool(pool.clone()).listen(listen_on(stage), Player::echo(&server).make()),
        |to| Client::new().pool(pool).connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(client.see().received == data, "{:?} {:?}", server.see().closed, client.see().closed);
    server.no_breaches();
}

fn small_writes_of_one_callback_leave_together(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => {
            for number in 0..100_u8 {
                conn.write(&[number; 3]);
            }
            assert_eq!(conn.queued(), 300, "nothing leaves before the callback returns");
            conn.close();
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    stage.play(
        Server::new().listen(listen_on(stage), Player::new(&server).make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let expected: Vec<u8> = (0..100_u8).flat_map(|number| [number; 3]).collect();
    assert_eq!(server.see().received, expected);
}

fn reading_rests_between_the_marks(stage: &Stage) {
    // The client sends 4 MiB and reads nothing before a timer says so. The server echoes, so its queue must stay near
    // the high mark instead of growing to 4 MiB.
    let (server, client) = (Log::default(), Log::default());
    let data = pattern(4 << 20);
    let sent = data.clone();
    let peak = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let highest = peak.clone();
    let echo = Player::with(&server, move |conn, what| match what {
        What::Data(data) => {
            conn.send(data.take().expect("there is data"));
            highest.fetch_max(conn.queued(), std::sync::atomic::Ordering::Relaxed);
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.pause();
            conn.set_timer(Duration::from_millis(300), 0);
            conn.send(sent.clone());
        }
        What::Timer(_) => conn.resume(),
        What::Data(_) if conn.state.received == sent.len() => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().marks(64 << 10, 128 << 10);
    let client_options = ConnectionOptions::default().rest_when_full(false);
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, echo.make()),
        |to| Client::new().connect_with(to, 1, ringport::SocketOptions::default(), client_options, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(client.see().received == data);
    let peak = peak.load(std::sync::atomic::Ordering::Relaxed);
    assert!(peak <= (128 << 10) + (1 << 20), "the queue reached {peak} bytes");
}

fn refused_data_comes_back(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let notes = client.clone();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            assert!(conn.write(&[1; 900]).is_queued());
            match conn.send(vec![2; 101]) {
                SendOutcome::Refused { data, why: Refusal::Limit } => {
                    notes.see().notes.push(format!("{} bytes back", data.len()));
                }
                other => panic!("{other:?}"),
            }
            assert!(conn.write(&[3; 100]).is_queued());
            conn.close();
            assert!(!conn.write(&[4]).is_queued(), "a closing connection takes nothing");
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().send_limit(1000, OverLimit::Refuse);
    stage.play(
        Server::new().listen(listen_on(stage), Player::new(&server).make()),
        |to| Client::new().connect_with(to, 1, ringport::SocketOptions::default(), options, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let expected: Vec<u8> = [1; 900].into_iter().chain([3; 100]).collect();
    assert_eq!(server.see().received, expected);
    assert_eq!(client.see().notes, ["101 bytes back"]);
}

fn writable_drives_an_endless_writer(stage: &Stage) {
    // A generator fills its queue to the high mark and goes on whenever it may: no other call wakes it.
    const TOTAL: usize = 3 << 20;
    fn fill(conn: &mut ringport::Connection<'_, crate::stage::PlayerState>) {
        while conn.queued() <= 64 << 10 && conn.state.number < TOTAL {
            let at = conn.state.number;
            let piece: Vec<u8> = (at..at + 8192).map(|at| (at % 251) as u8).collect();
            conn.state.number += piece.len();
            conn.send(piece);
        }
        if conn.state.number >= TOTAL {
            conn.close();
        }
    }
    let (server, client) = (Log::default(), Log::default());
    let generator = Player::with(&server, |conn, what| match what {
        What::Open | What::Writable => fill(conn),
        _ => {}
    });
    let options = ConnectionOptions::default().marks(32 << 10, 64 << 10);
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, generator.make()),
        |to| Client::new().connect(to, 1, Player::new(&client).make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let seen = client.see();
    assert_eq!(seen.received.len(), TOTAL);
    assert!(seen.received.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
}

fn full_and_writable_take_turns(stage: &Stage) {
    // The client stalls until it is told by a timer; the server writes until it hears that it is full.
    let (server, client) = (Log::default(), Log::default());
    let notes = server.clone();
    let writer = Player::with(&server, move |conn, what| match what {
        What::Open => drop(conn.set_interval(Duration::from_millis(1), 0)),
        What::Timer(_) if conn.state.number == 0 => drop(conn.write(&[1; 50_000])),
        What::Full => {
            conn.state.number = 1;
            assert!(conn.queued() > 64 << 10);
            notes.see().notes.push("full".into());
        }
        What::Writable if conn.state.number == 1 => {
            assert!(conn.queued() <= 16 << 10);
            notes.see().notes.push("writable".into());
            conn.close();
        }
        _ => {}
    });
    let reader = Player::with(&client, |conn, what| match what {
        What::Open => {
            conn.pause();
            conn.set_timer(Duration::from_millis(400), 0);
        }
        What::Timer(_) => conn.resume(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().marks(16 << 10, 64 << 10);
    stage.play(
        Server::new().listen_with(listen_on(stage), listen_with_small_buffers(), options, writer.make()),
        |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), reader.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert_eq!(server.see().notes, ["full", "writable"]);
    assert_eq!(client.see().received.len() as u64, server.see().closed[0].accepted);
    server.no_breaches();
}

fn flushes_are_told_in_order_when_the_kernel_has_all(stage: &Stage) {
    const STEPS: u64 = 30;
    const BYTES: u64 = 20_000;
    let (server, client) = (Log::default(), Log::default());
    let notes = client.clone();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            assert!(conn.flush(0), "a flush of nothing is one, too");
            for step in 1..=STEPS {
                conn.send(vec![step as u8; BYTES as usize]);
                assert!(conn.flush(step));
            }
            assert_eq!(conn.queued(), STEPS * BYTES);
        }
        What::Flushed(token) => {
            assert!(conn.queued() <= (STEPS - token) * BYTES, "{} bytes wait after flush {token}", conn.queued());
            notes.see().notes.push(token.to_string());
            if token == STEPS {
                conn.close();
                assert!(!conn.flush(99), "a closing connection has nothing to tell");
            }
        }
        _ => {}
    });
    stage.play(
        Server::new().listen_with(
            listen_on(stage),
            listen_with_small_buffers(),
            ConnectionOptions::default(),
            Player::new(&server).make(),
        ),
        |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let expected: Vec<String> = (0..=STEPS).map(|step| step.to_string()).collect();
    assert_eq!(client.see().notes, expected);
    assert_eq!(server.see().received.len() as u64, STEPS * BYTES);
    client.no_breaches();
}

fn a_paused_reader_closes_the_window(stage: &Stage) {
    // The peer's sends block: its kernel takes no more, and has bytes that nobody acknowledged, until reading goes on.
    let (server, client) = (Log::default(), Log::default());
    let notes = client.clone();
    let reader = Player::with(&server, move |conn, what| match what {
        What::Open => {
            conn.pause();
            conn.set_interval(Duration::from_millis(20), 0);
        }
        What::Timer(_) if notes.see().notes.last().is_some_and(|last| last == "enough") => conn.resume(),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let notes = client.clone();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(vec![5; 2_000_000]);
            conn.set_interval(Duration::from_millis(100), 0);
        }
        What::Timer(_) => {
            let unacked = conn.info().expect("it is alive").unacked;
            let queued = conn.queued().to_string();
            let notes = &mut notes.see().notes;
            // Until the buffers on the way are full, bytes move.
            if notes.last() == Some(&queued) || notes.len() == 20 {
                assert!(unacked.is_none_or(|unacked| unacked > 0), "the kernel still has bytes to send");
                notes.extend([queued, "enough".into()]);
                conn.close();
            } else {
                notes.push(queued);
            }
        }
        _ => {}
    });
    stage.play(
        Server::new().listen_with(
            listen_on(stage),
            listen_with_small_buffers(),
            ConnectionOptions::default(),
            reader.make(),
        ),
        |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    let notes = client.see().notes.clone();
    let [.., before, last, _] = &notes[..] else { panic!("it looked too seldom: {notes:?}") };
    assert!(before == last && last != "0", "while the window is closed nothing moves: {notes:?}");
    assert_eq!(server.see().received.len(), 2_000_000);
}

fn paused_reading_loses_nothing(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let data = pattern(300_000);
    let sent = data.clone();
    let reader = Player::dozing(&server);
    let sender = Player::with(&client, move |conn, what| {
        if let What::Open = what {
            conn.send(sent.clone());
            conn.close();
        }
    });
    stage.play(
        Server::new().listen(listen_on(stage), reader.make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(server.see().received == data);
}

/// With so many connections that what their handlers ask for is carried out in groups.
fn many_who_pause_lose_nothing(stage: &Stage) {
    const CONNECTIONS: usize = 150;
    const BYTES: usize = 20_000;
    let (server, client) = (Log::default(), Log::default());
    let reader = Player::dozing(&server);
    let sender = Player::with(&client, |conn, what| {
        if let What::Open = what {
            conn.send(pattern(BYTES));
            conn.close();
        }
    });
    stage.play(
        Server::new().pool(PoolConfig::default().slot_bytes(1024, 2048)).listen(listen_on(stage), reader.make()),
        |to| Client::new().connect(to, CONNECTIONS, sender.make()),
        || server.all_closed(CONNECTIONS) && client.all_closed(CONNECTIONS),
    );
    server.no_breaches();
    assert_eq!(server.see().received.len(), CONNECTIONS * BYTES);
}

fn callbacks_come_in_order_over_churn(stage: &Stage) {
    // Many short connections, half of which abort.
    let rounds = if stage.is_simulated() { 1 } else { 5 };
    for _ in 0..rounds {
        let (server, client) = (Log::default(), Log::default());
        let sender = Player::with(&client, |conn, what| match what {
            What::Open => drop(conn.write(b"0123456789")),
            What::Data(_) if conn.id().to_string().len().is_multiple_of(2) => conn.abort(),
            What::Data(_) => conn.close(),
            _ => {}
        });
        stage.play(
            Server::new().listen(listen_on(stage), Player::echo(&server).make()),
            |to| Client::new().connect(to, 100, sender.make()),
            || server.all_closed(100) && client.all_closed(100),
        );
        server.no_breaches();
        client.no_breaches();
    }
}
