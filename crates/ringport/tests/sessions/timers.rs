//! Timers of connections, and the background tick.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringport::{Buf, Client, Connection, Context, Handler, Server};

use crate::stage::{Log, Player, Stage, What, listen_on, stages};

stages!(timers_fire_once_or_periodically_until_cancelled, the_tick_runs_in_the_background);

fn timers_fire_once_or_periodically_until_cancelled(stage: &Stage) {
    let (server, client) = (Log::default(), Log::default());
    let notes = client.clone();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            let started = conn.now();
            notes.see().notes.push(String::new());
            conn.set_timer(Duration::from_millis(30), 1);
            conn.set_interval(Duration::from_millis(10), 2);
            let cancelled = conn.set_timer(Duration::from_millis(20), 3);
            assert!(conn.cancel_timer(cancelled));
            assert!(!conn.cancel_timer(cancelled), "a timer is cancelled once");
            conn.set_timer(Duration::from_millis(105), 4);
            assert!(conn.now() >= started);
        }
        What::Timer(token) => {
            notes.see().notes.push(token.to_string());
            if token == 4 {
                conn.close();
            }
        }
        _ => {}
    });
    stage.play(
        Server::new().listen(listen_on(stage), Player::new(&server).make()),
        |to| Client::new().connect(to, 1, sender.make()),
        || client.all_closed(1),
    );
    let notes = client.see().notes.clone();
    let count = |token: &str| notes.iter().filter(|note| *note == token).count();
    assert_eq!((count("1"), count("3"), count("4")), (1, 0, 1), "{notes:?}");
    // Ten periods have gone by; on a busy machine late ones are skipped, never doubled.
    assert!((1..=10).contains(&count("2")), "{notes:?}");
    assert!(!stage.is_simulated() || count("2") >= 8, "in virtual time nothing is late: {notes:?}");
}

struct Ticking {
    ticks: Arc<AtomicUsize>,
}

impl Handler for Ticking {
    type State = ();

    fn data(&mut self, _: &mut Connection<'_, ()>, _: Buf) {}

    fn tick(&mut self, worker: &mut Context) {
        assert_eq!(worker.number(), 0);
        self.ticks.fetch_add(1, Ordering::Relaxed);
    }
}

fn the_tick_runs_in_the_background(stage: &Stage) {
    let ticks = Arc::new(AtomicUsize::new(0));
    let (counted, seen) = (ticks.clone(), ticks.clone());
    let start = Instant::now();
    stage.play(
        Server::new()
            .tick(Duration::from_millis(5))
            .listen(listen_on(stage), move || Ticking { ticks: counted.clone() }),
        |to| Client::new().connect(to, 1, Player::new(&Log::default()).make()),
        || seen.load(Ordering::Relaxed) >= 10,
    );
    if !stage.is_simulated() {
        assert!(start.elapsed() >= Duration::from_millis(45), "ten ticks take ten intervals");
    }
}
