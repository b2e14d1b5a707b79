//! A reader that stalls: whatever the policy, what waits for it stays within the limit.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringport::{
    Buf, Bytes, Client, CloseReason, CloseReport, Connection, ConnectionId, ConnectionOptions, Handler, OverLimit,
    Refusal, SendOutcome, Server,
};

use crate::stage::{
    Log, Player, PlayerState, Stage, What, listen_on, listen_with_small_buffers, pattern, small_buffers, stages,
};

stages!(
    a_stalled_reader_costs_no_more_than_the_limit,
    waiting_echoes_everything_to_a_slow_reader,
    many_stalled_readers_cost_no_more_than_the_memory_limit,
    an_echo_at_the_memory_limit_waits_and_loses_nothing,
    what_memory_was_missing_for_can_be_sent_later,
    kept_frames_count_against_the_memory_limit,
);

const LIMIT: u64 = 256 << 10;
/// What the limit may be exceeded by.
const SLACK: u64 = 1 << 20;

/// Remembers the longest queue.
#[derive(Clone, Default)]
struct Peak(Arc<AtomicU64>);

impl Peak {
    fn note(&self, conn: &Connection<'_, PlayerState>) {
        self.0.fetch_max(conn.queued(), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

fn a_stalled_reader_costs_no_more_than_the_limit(stage: &Stage) {
    // The client reads nothing for 150 ms, in which the server tries to send 40 MB.
    for policy in
        [OverLimit::Refuse, OverLimit::Disconnect, OverLimit::Wait, OverLimit::DropOldest, OverLimit::DropNewest]
    {
        let (server, client, peak) = (Log::default(), Log::default(), Peak::default());
        let highest = peak.clone();
        let pusher = Player::with(&server, move |conn, what| match what {
            What::Open => drop(conn.set_interval(Duration::from_millis(1), 0)),
            What::Timer(_) if conn.state.number == 100 => conn.close(),
            What::Timer(_) => {
                conn.state.number += 1;
                for _ in 0..100 {
                    // Under the waiting policy the handler is to send less itself; what it takes beyond is bounded.
                    if policy != OverLimit::Wait || conn.queued() <= LIMIT {
                        conn.send(&[7; 4000]);
                    }
                    highest.note(conn);
                }
            }
            _ => {}
        });
        let reader = Player::with(&client, |conn, what| match what {
            What::Open => {
                conn.pause();
                conn.set_timer(Duration::from_millis(150), 0);
            }
            What::Timer(_) => conn.resume(),
            What::PeerClosed => conn.close(),
            _ => {}
        });
        let options = ConnectionOptions::default().send_limit(LIMIT, policy);
        stage.play(
            Server::new().listen_with(listen_on(stage), listen_with_small_buffers(), options, pusher.make()),
            |to| Client::new().connect_with(to, 1, small_buffers(), ConnectionOptions::default(), reader.make()),
            || {
                // A peer that is cut off at once may have been so before it knew that it was connected.
                let seen = client.see();
                server.all_closed(1) && seen.closed.len() + seen.connect_failed == 1
            },
        );
        let closed = server.see().closed[0].clone();
        assert!(peak.get() <= LIMIT + SLACK, "{policy:?}: {} bytes waited", peak.get());
        assert!(peak.get() > LIMIT / 2, "{policy:?}: only {} bytes waited, which shows nothing", peak.get());
        assert_eq!(closed.dropped_messages > 0, matches!(policy, OverLimit::DropOldest | OverLimit::DropNewest));
        if policy == OverLimit::Disconnect {
            assert_eq!(closed.reason, CloseReason::Backpressure);
        } else {
            assert_eq!((closed.reason, closed.handed), (CloseReason::Local, closed.accepted), "{policy:?}");
            assert_eq!(client.see().received.len() as u64, closed.accepted, "{policy:?}");
        }
        server.no_breaches();
    }
}

fn waiting_echoes_everything_to_a_slow_reader(stage: &Stage) {
    // An echo that looks at no outcome and does not rest by its high mark: the policy alone keeps it whole and small.
    let (server, client, peak) = (Log::default(), Log::default(), Peak::default());
    let bytes = if stage.is_simulated() { 200_000 } else { 3_000_000 };
    let limit = if stage.is_simulated() { 16 << 10 } else { 48 << 10 };
    let (highest, reached) = (peak.clone(), peak.clone());
    let echo = Player::with(&server, move |conn, what| match what {
        What::Data(data) => {
            assert!(conn.send(data.take().expect("there is data")).is_queued());
            highest.note(conn);
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(pattern(bytes));
            conn.pause();
            conn.set_timer(Duration::from_millis(150), 0);
        }
        // On a busy machine it takes a while.
        What::Timer(_) if reached.get() <= limit => drop(conn.set_timer(Duration::from_millis(50), 0)),
        What::Timer(_) => conn.resume(),
        What::Data(_) if conn.state.received == bytes => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default()
        .send_limit(limit, OverLimit::Wait)
        .marks(limit / 4, limit * 100)
        .rest_when_full(false);
    let patient = ConnectionOptions::default().rest_when_full(false);
    stage.play(
        Server::new().listen_with(listen_on(stage), listen_with_small_buffers(), options, echo.make()),
        |to| Client::new().connect_with(to, 1, small_buffers(), patient, sender.make()),
        || server.all_closed(1) && client.all_closed(1),
    );
    assert!(client.see().received == pattern(bytes), "{} bytes came back", client.see().received.len());
    assert!(peak.get() > limit, "the limit was never reached");
    assert!(peak.get() <= limit + SLACK, "{} bytes waited", peak.get());
}

/// Remembers how much is queued, or kept, on all connections together, and the most that it ever was.
#[derive(Clone, Default)]
struct Sum(Arc<Mutex<(BTreeMap<ConnectionId, u64>, u64)>>);

impl Sum {
    fn note(&self, conn: ConnectionId, bytes: u64) {
        let mut sum = self.0.lock().expect("no test panicked");
        sum.0.insert(conn, bytes);
        sum.1 = sum.1.max(sum.0.values().sum());
    }

    fn peak(&self) -> u64 {
        self.0.lock().expect("no test panicked").1
    }
}

const CONNECTIONS: usize = 20;

/// The memory limit. Smaller in a simulation, where every byte takes a while.
fn memory(stage: &Stage) -> u64 {
    if stage.is_simulated() { 128 << 10 } else { 1 << 20 }
}

fn many_stalled_readers_cost_no_more_than_the_memory_limit(stage: &Stage) {
    // Each may queue 10 MiB, all together 1 MiB.
    for policy in
        [OverLimit::Refuse, OverLimit::Disconnect, OverLimit::Wait, OverLimit::DropOldest, OverLimit::DropNewest]
    {
        let (server, client, sum) = (Log::default(), Log::default(), Sum::default());
        let (sums, notes) = (sum.clone(), server.clone());
        let pushing = Arc::new(AtomicUsize::new(CONNECTIONS));
        let (pushed, pushes) = (pushing.clone(), pushing);
        let pusher = Player::with(&server, move |conn, what| match what {
            What::Open => drop(conn.set_interval(Duration::from_millis(1), 0)),
            What::Timer(_) if conn.state.number == 50 => {
                conn.state.number += 1;
                pushed.fetch_sub(1, Ordering::Relaxed);
                conn.close();
            }
            What::Timer(_) if conn.state.number > 50 => {}
            What::Timer(_) => {
                conn.state.number += 1;
                for _ in 0..10 {
                    if let SendOutcome::Refused { why, .. } = conn.send(&[7; 4000]) {
                        assert_ne!(why, Refusal::Limit);
                        notes.see().notes.push("refused".into());
                    }
                    sums.note(conn.id(), conn.queued());
                }
            }
            What::Close => {
                if conn.state.number <= 50 {
                    pushed.fetch_sub(1, Ordering::Relaxed);
                }
                sums.note(conn.id(), 0);
            }
            _ => {}
        });
        // Nobody reads before all has been pushed: what is noted of a connection holds until then.
        let reader = Player::with(&client, move |conn, what| match what {
            What::Open => {
                conn.pause();
                conn.set_timer(Duration::from_millis(150), 0);
            }
            What::Timer(_) if pushes.load(Ordering::Relaxed) > 0 => drop(conn.set_timer(Duration::from_millis(50), 0)),
            What::Timer(_) => conn.resume(),
            What::PeerClosed => conn.close(),
            _ => {}
        });
        let options = ConnectionOptions::default().send_limit(10 << 20, policy);
        stage.play(
            Server::new().workers(if stage.is_simulated() { 1 } else { 2 }).memory_limit(memory(stage)).listen_with(
                listen_on(stage),
                listen_with_small_buffers(),
                options,
                pusher.make(),
            ),
            |to| {
                let options = ConnectionOptions::default();
                Client::new().connect_with(to, CONNECTIONS, small_buffers(), options, reader.make())
            },
            || {
                let seen = client.see();
                server.all_closed(CONNECTIONS) && seen.closed.len() + seen.connect_failed == CONNECTIONS
            },
        );
        // `Wait` takes up to 1 MiB more, which a handler that goes on sending uses up.
        let slack = if policy == OverLimit::Wait { SLACK + (1 << 20) } else { SLACK };
        // The sum is a little too large: what others have got rid of since they were looked at is in it.
        assert!(sum.peak() <= memory(stage) + slack, "{policy:?}: {} bytes waited", sum.peak());
        assert!(sum.peak() > memory(stage) / 2, "{policy:?}: only {} bytes waited, which shows nothing", sum.peak());
        let seen = server.see();
        let dropped: u64 = seen.closed.iter().map(|closed| closed.dropped_messages).sum();
        assert_eq!(dropped > 0, matches!(policy, OverLimit::DropOldest | OverLimit::DropNewest), "{policy:?}");
        let shed = seen.closed.iter().filter(|closed| closed.reason == CloseReason::Backpressure).count();
        assert_eq!(shed > 0, policy == OverLimit::Disconnect, "{policy:?}");
        assert!(policy != OverLimit::Refuse || !seen.notes.is_empty());
    }
}

/// Has [`CONNECTIONS`] clients send to a server that has memory for a part of it, until each has everything back.
fn at_the_memory_limit<H: Handler>(
    stage: &Stage,
    policy: OverLimit,
    (server, make): (&Log, impl Fn() -> H + Send + Sync + 'static),
    (client, sender): (&Log, Player),
    bytes: usize,
) {
    let options = ConnectionOptions::default().send_limit(10 << 20, policy).rest_when_full(false);
    let patient = ConnectionOptions::default().rest_when_full(false);
    let small = listen_with_small_buffers();
    stage.play(
        Server::new().memory_limit(memory(stage)).listen_with(listen_on(stage), small, options, make),
        |to| Client::new().connect_with(to, CONNECTIONS, small_buffers(), patient, sender.make()),
        || server.all_closed(CONNECTIONS) && client.all_closed(CONNECTIONS),
    );
    assert_eq!(client.see().received.len(), CONNECTIONS * bytes);
    assert!(client.reasons().iter().all(|reason| *reason == CloseReason::Local), "{:?}", client.reasons());
}

fn an_echo_at_the_memory_limit_waits_and_loses_nothing(stage: &Stage) {
    // The clients send 20 × 300 kB and read nothing for a while; the server may hold 1 MiB of it.
    let bytes = if stage.is_simulated() { 30_000 } else { 300_000 };
    let (server, client, sum) = (Log::default(), Log::default(), Sum::default());
    let sums = sum.clone();
    let echo = Player::with(&server, move |conn, what| match what {
        What::Data(data) => {
            assert!(conn.send(data.take().expect("there is data")).is_queued());
            sums.note(conn.id(), conn.queued());
        }
        What::PeerClosed => conn.close(),
        What::Close => sums.note(conn.id(), 0),
        _ => {}
    });
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(pattern(bytes));
            conn.pause();
            conn.set_timer(Duration::from_millis(150), 0);
        }
        What::Timer(_) => conn.resume(),
        What::Data(_) if conn.state.received == bytes => conn.close(),
        _ => {}
    });
    at_the_memory_limit(stage, OverLimit::Wait, (&server, echo.make()), (&client, sender), bytes);
    // What had been received already comes on top: at most the large slots.
    assert!(sum.peak() <= memory(stage) + (8 << 20), "{} bytes waited", sum.peak());
}

/// Echoes, and holds what was refused until it is told that it can be sent.
#[derive(Clone, Default)]
struct Holder {
    log: Log,
    /// Sends that were refused for want of memory.
    refused: Arc<AtomicUsize>,
}

impl Holder {
    /// Sends what is held as far as it is taken.
    fn go_on(&self, conn: &mut Connection<'_, VecDeque<Bytes>>) {
        while let Some(mut piece) = conn.state.pop_front() {
            let part = piece.split_to(piece.len().min(4096));
            if !piece.is_empty() {
                conn.state.push_front(piece);
            }
            if let SendOutcome::Refused { data, why } = conn.send(part) {
                conn.state.push_front(data.into_bytes());
                self.refused.fetch_add(usize::from(why == Refusal::ProcessLimit), Ordering::Relaxed);
                return;
            }
        }
        conn.resume();
    }
}

impl Handler for Holder {
    type State = VecDeque<Bytes>;

    fn data(&mut self, conn: &mut Connection<'_, Self::State>, data: Buf) {
        conn.state.push_back(data.into_bytes());
        conn.pause();
        if conn.state.len() == 1 {
            self.go_on(conn);
        }
    }

    fn writable(&mut self, conn: &mut Connection<'_, Self::State>) {
        self.go_on(conn);
    }

    fn close(&mut self, _: &mut Connection<'_, Self::State>, report: &CloseReport) {
        self.log.note_close(report);
    }
}

fn what_memory_was_missing_for_can_be_sent_later(stage: &Stage) {
    // As above, but the server refuses, and its connections have no other way to learn that there is memory again.
    let simulated = stage.is_simulated();
    let bytes = if simulated { 30_000 } else { 300_000 };
    let (holder, client) = (Holder::default(), Log::default());
    let (server, refused) = (holder.log.clone(), Arc::clone(&holder.refused));
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(pattern(bytes));
            conn.pause();
            conn.set_interval(Duration::from_millis(10), 0);
        }
        // Until the server has no memory left. Some simulated networks take in everything.
        What::Timer(_) => {
            conn.state.number += 1;
            if refused.load(Ordering::Relaxed) > 0 || simulated && conn.state.number == 15 {
                conn.resume();
            }
        }
        What::Data(_) if conn.state.received == bytes => conn.close(),
        _ => {}
    });
    at_the_memory_limit(stage, OverLimit::Refuse, (&server, move || holder.clone()), (&client, sender), bytes);
}

/// Keeps all that it receives.
#[derive(Clone)]
struct Keeper {
    log: Log,
    sum: Sum,
}

impl Handler for Keeper {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        conn.keep(data);
        self.sum.note(conn.id(), conn.kept() as u64);
    }

    fn close(&mut self, conn: &mut Connection<'_, ()>, report: &CloseReport) {
        self.sum.note(conn.id(), 0);
        self.log.note_close(report);
    }
}

fn kept_frames_count_against_the_memory_limit(stage: &Stage) {
    // Nobody's frame is ever whole: without the limit all that is sent would be kept. The policy is to disconnect.
    let bytes = if stage.is_simulated() { 30_000 } else { 200_000 };
    let (server, client, sum) = (Log::default(), Log::default(), Sum::default());
    let keeper = Keeper { log: server.clone(), sum: sum.clone() };
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            conn.send(vec![1; bytes]);
            conn.set_timer(Duration::from_millis(300), 0);
        }
        What::Timer(_) => conn.abort(),
        _ => {}
    });
    stage.play(
        Server::new().memory_limit(memory(stage)).listen_with(
            listen_on(stage),
            listen_with_small_buffers(),
            ConnectionOptions::default(),
            move || keeper.clone(),
        ),
        |to| {
            let options = ConnectionOptions::default();
            Client::new().connect_with(to, CONNECTIONS, small_buffers(), options, sender.make())
        },
        || {
            let seen = client.see();
            server.all_closed(CONNECTIONS) && seen.closed.len() + seen.connect_failed == CONNECTIONS
        },
    );
    assert!(sum.peak() > memory(stage) / 2 && sum.peak() <= memory(stage), "{} bytes were kept", sum.peak());
    let shed = server.reasons().iter().filter(|reason| **reason == CloseReason::Backpressure).count();
    assert!(shed > 0 && shed < CONNECTIONS, "{shed} connections were closed for it");
}
