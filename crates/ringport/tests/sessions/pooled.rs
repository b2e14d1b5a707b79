//! The connection pool: what it hands out, to whom, how many, and what is left when futures are dropped.

use std::cell::{Cell, RefCell};
use std::io::{ErrorKind, Read, Write};
use std::rc::Rc;
use std::time::Duration;

use ringport::aio::{self, ConnectionPool, ConnectionPoolOptions, ConnectionPoolStats, Listener, PooledStream, Stream};
use ringport::{Address, Client, EngineKind, Server, block_on};

use crate::aio::{Done, echo, play};
use crate::dropped::{Dice, seed, until_dropped};
use crate::stage::{Stage, pattern, stages};

stages! {
    connections_are_used_again_and_counted,
    limits_hold_and_everybody_is_served,
    whoever_asks_first_is_served_first,
    another_destination_makes_the_oldest_idle_connection_go,
    stale_connections_are_never_handed_out,
    a_half_finished_exchange_ends_its_connection,
    idle_connections_are_closed_in_time,
    a_failed_connect_is_told_to_the_one_who_asked,
    unhealthy_connections_are_replaced,
    who_waits_for_too_long_is_refused,
    a_closed_pool_keeps_nothing,
    nothing_is_lost_by_dropping_futures,
}

fn options() -> ConnectionPoolOptions {
    ConnectionPoolOptions::default()
}

/// One exchange with an echo.
async fn exchange(pool: &ConnectionPool, to: &Address, message: &[u8]) -> std::io::Result<PooledStream> {
    let mut connection = pool.get(to.clone()).await?;
    connection.send(message.to_vec()).await?;
    let mut back = vec![0; message.len()];
    connection.read_exact(&mut back).await?;
    assert!(back == message, "the answer of another exchange");
    Ok(connection)
}

/// Waits until the pool says so.
async fn until(pool: &ConnectionPool, what: impl Fn(ConnectionPoolStats) -> bool) {
    let end = aio::now() + Duration::from_secs(20);
    while !what(pool.stats()) {
        assert!(aio::now() < end, "it never comes: {:?}", pool.stats());
        aio::sleep(Duration::from_millis(1)).await;
    }
}

fn connections_are_used_again_and_counted(stage: &Stage) {
    play(stage, echo, async |to| {
        let pool = ConnectionPool::default();
        for number in 0..20 {
            let connection = exchange(&pool, &to, &pattern(1 + number * 1000)).await?;
            assert_eq!((connection.is_reused(), pool.stats().in_use), (number > 0, 1));
            assert!(connection.complete());
        }
        let stats = pool.stats();
        assert_eq!((stats.created, stats.reused, stats.open, stats.idle, stats.in_use), (1, 19, 1, 1, 0));
        // Taken out of the pool for good.
        let mut stream = exchange(&pool, &to, b"?").await?.detach();
        assert_eq!(pool.stats().open, 0);
        // Given up, it keeps its place until it is closed, but nobody uses it.
        drop(exchange(&pool, &to, b"?").await?);
        assert_eq!((pool.stats().in_use, pool.stats().discarded), (0, 1));
        stream.send("!").await?;
        stream.read_exact(&mut [0]).await?;
        stream.close().await
    });
}

/// How many there are, and were at most.
#[derive(Clone, Default)]
struct Crowd(Rc<(Cell<usize>, Cell<usize>)>);

struct InCrowd(Crowd);

impl Crowd {
    fn enter(&self) -> InCrowd {
        self.0.0.set(self.0.0.get() + 1);
        self.0.1.set(self.0.1.get().max(self.0.0.get()));
        InCrowd(self.clone())
    }

    fn most(&self) -> usize {
        self.0.1.get()
    }
}

impl Drop for InCrowd {
    fn drop(&mut self) {
        self.0.0.0.set(self.0.0.0.get() - 1);
    }
}

/// Listens on this worker and serves each connection, counting it in each of the crowds as long as the server knows it.
fn listen<S>(stage: &Stage, port: u16, crowds: &[Crowd], serve: S) -> Address
where
    S: AsyncFn(Stream) -> std::io::Result<()> + Clone + 'static,
{
    let port = if stage.is_simulated() { port } else { 0 };
    let mut listener = Listener::bind(&format!("127.0.0.1:{port}")).expect("it listens");
    let (to, crowds) = (listener.address().clone(), crowds.to_vec());
    aio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let (serve, crowds) = (serve.clone(), crowds.clone());
            aio::spawn(async move {
                let _counted: Vec<InCrowd> = crowds.iter().map(Crowd::enter).collect();
                // A client may go in any way.
                let _ = serve(stream).await;
            });
        }
    });
    to
}

fn limits_hold_and_everybody_is_served(stage: &Stage) {
    let inner = stage.clone();
    play(stage, echo, async move |_| {
        let (all, ones, others) = (Crowd::default(), Crowd::default(), Crowd::default());
        let here = listen(&inner, 1001, &[all.clone(), ones.clone()], echo);
        let there = listen(&inner, 1002, &[all.clone(), others.clone()], echo);
        let pool = ConnectionPool::new(options().max_connections(4).max_connections_per_destination(3));
        let mut tasks = Vec::new();
        for number in 0..24_usize {
            let (pool, to) = (pool.clone(), if number % 3 == 0 { there.clone() } else { here.clone() });
            tasks.push(aio::spawn(async move {
                for round in 0..5 {
                    let connection = exchange(&pool, &to, &pattern(number * 300 + round + 1)).await?;
                    assert!(pool.stats().open <= 4);
                    // Some are given up in the middle of everything.
                    if (number + round) % 4 > 0 {
                        connection.complete();
                    }
                }
                Ok::<_, std::io::Error>(())
            }));
        }
        for task in tasks {
            task.await.expect("no panic")?;
        }
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.waiting, stats.created + stats.reused), (0, 0, 120), "{stats:?}");
        assert_eq!(stats.discarded, 30);
        assert!(stats.reused > 30 && stats.evicted_for_room > 0, "{stats:?}");
        assert!(all.most() <= 4 && ones.most() <= 3 && others.most() <= 3, "{} connections", all.most());
        assert!(all.most() >= 3, "the limits leave room for more than {}", all.most());
        Ok(())
    });
}

fn whoever_asks_first_is_served_first(stage: &Stage) {
    play(stage, echo, async |to| {
        let pool = ConnectionPool::new(options().max_connections_per_destination(1));
        let first = exchange(&pool, &to, b"first").await?;
        let order = Rc::new(RefCell::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..10_u64 {
            let (asked, to, order) = (pool.clone(), to.clone(), Rc::clone(&order));
            tasks.push(aio::spawn(async move {
                let connection = exchange(&asked, &to, b"next").await.expect("it has its turn");
                order.borrow_mut().push(number);
                // Whether it is given back, or closed and opened anew, the next one is next.
                if number % 2 == 0 {
                    connection.complete();
                }
            }));
            until(&pool, |stats| stats.waiting == number + 1).await;
        }
        // Three lose patience, the very next one too.
        for at in [7, 3, 0] {
            tasks.remove(at).abort();
        }
        assert_eq!(pool.stats().waiting, 7);
        first.complete();
        for task in tasks {
            task.await.expect("nobody is forgotten");
        }
        assert_eq!(*order.borrow(), [1, 2, 4, 5, 6, 8, 9]);
        Ok(())
    });
}

fn another_destination_makes_the_oldest_idle_connection_go(stage: &Stage) {
    let inner = stage.clone();
    play(stage, echo, async move |to| {
        let there = listen(&inner, 1001, &[], echo);
        let pool = ConnectionPool::new(options().max_connections(2));
        let (one, two) = (exchange(&pool, &to, b"1").await?, exchange(&pool, &to, b"2").await?);
        let kept = two.id();
        one.complete();
        aio::sleep(Duration::from_millis(5)).await;
        two.complete();
        exchange(&pool, &there, b"3").await?.complete();
        let stats = pool.stats();
        assert_eq!((stats.open, stats.idle, stats.created, stats.evicted_for_room), (2, 2, 3, 1));
        assert_eq!(exchange(&pool, &to, b"4").await?.id(), kept, "the younger one is still there");
        Ok(())
    });
}

fn stale_connections_are_never_handed_out(stage: &Stage) {
    // Answers once in order, and then does what it was told.
    let server = async |mut stream: Stream| {
        let mut order = [0];
        stream.read_exact(&mut order).await?;
        stream.send(order.to_vec()).await?;
        match order[0] {
            b'f' => stream.shutdown().await?,
            b'r' => {
                // The answer is to arrive.
                aio::sleep(Duration::from_millis(5)).await;
                stream.abort();
                return Ok(());
            }
            b'm' => stream.send("more").await?,
            b's' => stream.send("so much more").await?,
            _ => {}
        }
        stream.recv().await.map(drop)
    };
    play(stage, server, async |to| {
        let pool = ConnectionPool::default();
        let mut stale = 0;
        for order in [b"f", b"r", b"m", b"s", b"f"] {
            let mut connection = pool.get(to.clone()).await?;
            assert!(!connection.is_reused(), "{}: a connection that is not clean", order[0]);
            connection.send(&order[..]).await?;
            connection.read_exact(&mut [0]).await?;
            // It may have been noticed by now, or is soon.
            stale += u64::from(connection.complete());
            until(&pool, |stats| stats.idle == 0).await;
        }
        let stats = pool.stats();
        assert_eq!((stats.created, stats.evicted_stale, stats.discarded), (5, stale, 5 - stale));
        until(&pool, |stats| stats.open == 0).await;
        Ok(())
    });
}

fn a_half_finished_exchange_ends_its_connection(stage: &Stage) {
    play(stage, echo, async |to| {
        let pool = ConnectionPool::new(options().max_connections(1));
        // Dropped before the answer, in the middle of it, behind it, and never begun.
        for read in [0, 50_000, 100_000, 0] {
            let mut connection = pool.get(to.clone()).await?;
            assert!(!connection.is_reused());
            connection.send(pattern(100_000)).await?;
            let mut answer = vec![0; read];
            connection.read_exact(&mut answer).await?;
        }
        // What is said to be complete, and is not.
        let mut connection = pool.get(to.clone()).await?;
        connection.send(pattern(1000)).await?;
        connection.read_exact(&mut [0; 10]).await?;
        assert!(!connection.complete());
        let mut connection = pool.get(to.clone()).await?;
        connection.shutdown().await?;
        assert!(!connection.complete(), "nobody can send on it");
        assert!(!exchange(&pool, &to, b"whole").await?.is_reused());
        assert_eq!(pool.stats().discarded, 7);
        Ok(())
    });
}

fn idle_connections_are_closed_in_time(stage: &Stage) {
    play(stage, echo, async |to| {
        const TIMEOUT: Duration = Duration::from_millis(60);
        let pool = ConnectionPool::new(options().idle_timeout(Some(TIMEOUT)));
        let begin = aio::now();
        let (one, two) = (exchange(&pool, &to, b"1").await?, exchange(&pool, &to, b"2").await?);
        one.complete();
        aio::sleep(TIMEOUT / 2).await;
        two.complete();
        until(&pool, |stats| stats.evicted_idle == 2).await;
        assert!(aio::now() - begin >= TIMEOUT * 3 / 2, "each has its time");
        until(&pool, |stats| stats.open == 0).await;
        // What is in use is not idle, however long it takes.
        let connection = exchange(&pool, &to, b"3").await?;
        aio::sleep(TIMEOUT * 2).await;
        assert!(connection.complete());
        assert_eq!(pool.stats().evicted_idle, 2);
        Ok(())
    });
}

fn a_failed_connect_is_told_to_the_one_who_asked(stage: &Stage) {
    let nobody: Address = if stage.is_simulated() { "127.0.0.1:9" } else { "127.0.0.1:1" }.parse().expect("an address");
    play(stage, echo, async move |to| {
        let pool = ConnectionPool::new(options().max_connections(2).max_connections_per_destination(1));
        let healthy = exchange(&pool, &to, b"1").await?;
        let mut refused = Vec::new();
        for _ in 0..6 {
            let (pool, nobody) = (pool.clone(), nobody.clone());
            refused.push(aio::spawn(async move { pool.get(nobody).await.map(drop) }));
        }
        let (waiting, other) = (pool.clone(), to.clone());
        let waiting = aio::spawn(async move { exchange(&waiting, &other, b"2").await.map(PooledStream::complete) });
        for refused in refused {
            let outcome = refused.await.expect("no panic");
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        healthy.complete();
        assert!(waiting.await.expect("no panic")?);
        assert_eq!(pool.get("nonsense").await.unwrap_err().kind(), ErrorKind::InvalidInput);
        let stats = pool.stats();
        assert_eq!((stats.refused_connect, stats.created, stats.reused, stats.open), (6, 1, 1, 1));
        Ok(())
    });
}

fn unhealthy_connections_are_replaced(stage: &Stage) {
    // Answers so many bytes, and then no more.
    let server = async |mut stream: Stream| {
        let mut left = 5;
        while let Some(data) = stream.recv().await? {
            let answered = data.len().min(left);
            left -= answered;
            stream.send(data[..answered].to_vec()).await?;
        }
        Ok(())
    };
    let ping = async |stream: &mut Stream| {
        stream.send("p").await?;
        stream.read_exact(&mut [0]).await
    };
    play(stage, server, async move |to| {
        let (after, within) = (Duration::from_millis(20), Duration::from_millis(40));
        let pool = ConnectionPool::new(options().health_check(after, within, ping));
        exchange(&pool, &to, b"123").await?.complete();
        // Used again at once it is trusted, after a while it has to answer, and then it cannot any more.
        exchange(&pool, &to, b"4").await?.complete();
        aio::sleep(after).await;
        let checked = pool.get(to.clone()).await?;
        assert!(checked.is_reused());
        checked.complete();
        aio::sleep(after).await;
        assert!(!exchange(&pool, &to, b"1").await?.is_reused());
        let stats = pool.stats();
        assert_eq!((stats.created, stats.reused, stats.evicted_unhealthy), (2, 2, 1));
        Ok(())
    });
}

fn who_waits_for_too_long_is_refused(stage: &Stage) {
    play(stage, echo, async |to| {
        let limits = options().max_connections(1).max_waiting(1).acquire_timeout(Duration::from_millis(30));
        let pool = ConnectionPool::new(limits);
        let held = exchange(&pool, &to, b"1").await?;
        let (waiting, other) = (pool.clone(), to.clone());
        let waiting = aio::spawn(async move { waiting.get(other).await.map(drop) });
        until(&pool, |stats| stats.waiting == 1).await;
        assert_eq!(pool.get(to.clone()).await.unwrap_err().kind(), ErrorKind::QuotaExceeded);
        assert_eq!(waiting.await.expect("no panic").unwrap_err().kind(), ErrorKind::TimedOut);
        held.complete();
        assert!(exchange(&pool, &to, b"2").await?.is_reused());
        let stats = pool.stats();
        assert_eq!((stats.refused_full, stats.refused_timeout, stats.waiting), (1, 1, 0));
        Ok(())
    });
}

fn a_closed_pool_keeps_nothing(stage: &Stage) {
    play(stage, echo, async |to| {
        let pool = ConnectionPool::new(options().max_connections(2).max_connections_per_destination(2));
        let (idle, used) = (exchange(&pool, &to, b"1").await?, exchange(&pool, &to, b"2").await?);
        let (asking, other) = (pool.clone(), to.clone());
        let waiting = aio::spawn(async move { asking.get(other).await.map(drop) });
        until(&pool, |stats| stats.waiting == 1).await;
        pool.close();
        assert_eq!(waiting.await.expect("no panic").unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert!(!idle.complete() && pool.get(to.clone()).await.is_err());
        let mut used = used;
        used.send("still").await?;
        used.read_exact(&mut [0; 5]).await?;
        drop(used);
        until(&pool, |stats| stats.open == 0).await;
        Ok(())
    });
}

/// Every future of the pool, and every exchange on its connections, is dropped at any await. The answers stay those of
/// the questions, the limits hold, nobody is forgotten, and at the end nothing is in use.
fn nothing_is_lost_by_dropping_futures(stage: &Stage) {
    let (seed, inner) = (seed(stage), stage.clone());
    play(stage, echo, async move |_| {
        let (crowd, dice) = (Crowd::default(), Dice::new(seed));
        let to = [1001, 1002].map(|port| listen(&inner, port, std::slice::from_ref(&crowd), echo));
        let ping = async |stream: &mut Stream| {
            stream.send("p").await?;
            stream.read_exact(&mut [0]).await
        };
        let limits = options().max_connections(3).max_connections_per_destination(2);
        let pool = ConnectionPool::new(limits.health_check(Duration::from_millis(1), Duration::from_secs(10), ping));
        let mut tasks = Vec::new();
        for number in 0..8_u64 {
            let (pool, to, dice) = (pool.clone(), to.clone(), dice.clone());
            tasks.push(aio::spawn(async move {
                for round in 0..12 {
                    let (to, message) = (&to[dice.below(2) as usize], pattern(1 + (number * 40 + round) as usize));
                    let connection = loop {
                        match until_dropped(&dice, pool.get(to.clone())).await {
                            Some(connection) => break connection.expect("it connects"),
                            None => aio::yield_now().await,
                        }
                    };
                    let whole = async |mut connection: PooledStream| {
                        connection.send(message.clone()).await?;
                        let mut back = vec![0; message.len()];
                        connection.read_exact(&mut back).await?;
                        assert!(back == message, "the answer of another exchange");
                        Ok::<_, std::io::Error>(connection.complete())
                    };
                    if let Some(outcome) = until_dropped(&dice, whole(connection)).await {
                        assert!(outcome.expect("it answers"));
                    }
                    if dice.below(4) == 0 {
                        aio::sleep(Duration::from_millis(2)).await;
                    }
                }
            }));
        }
        for task in tasks {
            task.await.expect("no panic");
        }
        until(&pool, |stats| stats.open == stats.idle).await;
        let stats = pool.stats();
        assert_eq!((stats.in_use, stats.waiting, stats.refused_connect), (0, 0, 0), "seed {seed}: {stats:?}");
        assert!(crowd.most() <= 3, "seed {seed}: {} connections", crowd.most());
        // All places are there for whoever comes next.
        for to in &to {
            let held = (exchange(&pool, to, b"1").await?, exchange(&pool, to, b"2").await?);
            held.0.complete();
            held.1.complete();
        }
        Ok(())
    });
}

/// What the kernel has before somebody asks is found, although the worker has not looked yet.
#[test]
fn what_came_just_before_is_noticed() {
    for kind in [EngineKind::Uring, EngineKind::Epoll, EngineKind::Kqueue] {
        if Stage::real(kind).is_none() {
            continue;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("it listens");
        let to = listener.local_addr().expect("it has an address");
        let run = async move {
            let pool = ConnectionPool::default();
            for round in 0..20 {
                let mut connection = pool.get(to).await.expect("it accepts");
                assert!(!connection.is_reused(), "{kind}: stale, round {round}");
                let (mut peer, _) = listener.accept().expect("it is there");
                connection.send("?").await.expect("it takes data");
                connection.flush().await.expect("it has taken it");
                peer.read_exact(&mut [0]).expect("it arrives");
                peer.write_all(b"!").expect("it takes data");
                connection.read_exact(&mut [0]).await.expect("it answers");
                assert!(connection.complete());
                // The worker cannot see that before it has its turn.
                match round % 2 {
                    0 => drop(peer),
                    _ => peer.write_all(b"unasked").expect("it takes data"),
                }
            }
            assert_eq!(pool.stats().evicted_stale, 19);
        };
        Server::new().engine(Some(kind)).block_on(run).expect("an engine works");
    }
}

/// Nobody waits for connections that only a pool keeps, once the task that owned it has ended.
#[test]
fn a_client_ends_although_its_pool_had_idle_connections() {
    let server = Server::new().listen_async("127.0.0.1:0", echo).start().expect("it starts");
    let (to, done) = (server.addresses()[0].clone(), Done::default());
    let ended = done.clone();
    let task = async move || {
        let pool = ConnectionPool::default();
        exchange(&pool, &to, b"?").await?.complete();
        ended.one();
        Ok(())
    };
    Client::new().workers(2).task(task).run().expect("an engine works");
    assert_eq!(done.count(), 2);
}

/// One pool serves all workers; each has its own connections and limits, and the counters are those of all.
#[test]
fn workers_share_a_pool_but_not_its_connections() {
    let behind = Server::new().listen_async("127.0.0.1:0", echo).start().expect("it starts");
    let to = behind.addresses()[0].clone();
    let pool = ConnectionPool::new(options().max_connections(1));
    let (shared, ended) = (pool.clone(), Done::default());
    let done = ended.clone();
    let task = async move || {
        for _ in 0..10 {
            exchange(&shared, &to, b"?").await?.complete();
        }
        done.one();
        Ok(())
    };
    let client = Client::new().workers(2).task(task).start().expect("it starts");
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while ended.count() < 2 {
        assert!(std::time::Instant::now() < end, "it never ends: {:?}", pool.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = pool.stats();
    assert_eq!((stats.created, stats.reused, stats.in_use), (2, 18, 0));
    pool.close();
    client.join().expect("it ends with its last connection");
    let stats = pool.stats();
    assert_eq!((stats.created, stats.reused, stats.open, stats.idle), (2, 18, 0, 0));
}

/// A task that panics ends its own connection, and the pool goes on.
#[test]
fn a_panic_gives_the_place_back() {
    let server = Server::new().listen_async("127.0.0.1:0", echo).start().expect("it starts");
    let to = server.addresses()[0].clone();
    let run = async move {
        let pool = ConnectionPool::new(options().max_connections(1));
        for _ in 0..3 {
            let (pool, to) = (pool.clone(), to.clone());
            let panicking = aio::spawn(async move {
                let _connection = exchange(&pool, &to, b"?").await.expect("it answers");
                panic!("as the test wants it");
            });
            assert!(panicking.await.is_err_and(|error| error.is_panic()));
        }
        exchange(&pool, &to, b"?").await.expect("it answers").complete();
        assert_eq!(pool.stats().created, 4);
    };
    block_on(run).expect("an engine works");
}
