//! A reader that stalls: whatever the policy, what waits for it stays within the limit.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringport::{Client, CloseReason, Connection, ConnectionOptions, OverLimit, Server};

use crate::stage::{
    Log, Player, PlayerState, Stage, What, listen_on, listen_with_small_buffers, pattern, small_buffers, stages,
};

stages!(a_stalled_reader_costs_no_more_than_the_limit, waiting_echoes_everything_to_a_slow_reader);

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
            || server.all_closed(1) && client.all_closed(1),
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
    let bytes = if stage.is_simulated() { 500_000 } else { 3_000_000 };
    let limit = if stage.is_simulated() { 16 << 10 } else { 48 << 10 };
    let highest = peak.clone();
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
