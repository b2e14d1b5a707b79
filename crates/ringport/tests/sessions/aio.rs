//! Streams, listeners, tasks and time, as a task sees them.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringport::aio::{self, JoinError, Listener, Stream};
use ringport::{Address, Client, Server, block_on};

use crate::stage::{Stage, each_engine, listen_on, loses_resets, pattern, stages};

stages! {
    an_echo_is_whole_and_half_closes,
    exact_reads_take_all_or_nothing,
    a_stream_that_is_not_read_is_bounded,
    a_flush_tells_when_the_kernel_has_taken_it,
    a_task_that_panics_ends_its_connection_alone,
    a_task_that_wakes_itself_starves_nobody,
    a_listener_hands_out_every_connection,
    deadlines_end_one_operation_only,
    refused_and_reset_connections_say_so,
    sleeps_and_ticks_come_in_order,
    deadlines_begun_anew_wait_for_their_own_time,
    a_large_send_goes_through_a_small_limit,
    both_ends_learn_of_each_other,
}

/// Counts what has gone well.
#[derive(Clone, Default)]
pub(crate) struct Done(Arc<AtomicUsize>);

impl Done {
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

pub(crate) async fn echo(mut stream: Stream) -> std::io::Result<()> {
    while let Some(data) = stream.recv().await? {
        stream.send(data).await?;
    }
    Ok(())
}

pub(crate) async fn read_all(stream: &mut Stream) -> std::io::Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(data) = stream.recv().await? {
        all.extend_from_slice(&data);
    }
    Ok(all)
}

/// Plays `server` for each connection against one run of `client`, until the client has ended well.
pub(crate) fn play<S, C>(stage: &Stage, server: S, client: C)
where
    S: AsyncFn(Stream) -> std::io::Result<()> + Clone + Send + Sync + 'static,
    C: AsyncFn(Address) -> std::io::Result<()> + Clone + Send + Sync + 'static,
{
    let done = Done::default();
    let ended = done.clone();
    let server = Server::new().listen_async(listen_on(stage), server);
    let client = move |address: Address| {
        Client::new().task(async move || {
            client(address.clone()).await.expect("the client's part");
            ended.one();
            Ok(())
        })
    };
    stage.play(server, client, || done.count() == 1);
}

fn an_echo_is_whole_and_half_closes(stage: &Stage) {
    play(stage, echo, async |to| {
        let (mut reader, mut writer) = aio::connect(to).await?.split();
        let data = pattern(300_000);
        let sent = data.clone();
        let sending = aio::spawn(async move {
            for piece in sent.chunks(7_001) {
                writer.send(piece.to_vec()).await?;
            }
            writer.shutdown().await?;
            assert_eq!(writer.send("more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            Ok::<_, std::io::Error>(writer)
        });
        let mut back = Vec::new();
        while let Some(piece) = reader.recv().await? {
            back.extend_from_slice(&piece);
        }
        assert!(back == data, "{} of {} bytes", back.len(), data.len());
        assert!(reader.recv().await?.is_none(), "the end stays the end");
        let writer = sending.await.expect("it ends by itself")?;
        let stream = reader.unsplit(writer).expect("they are halves of one stream");
        stream.close().await
    });
}

fn exact_reads_take_all_or_nothing(stage: &Stage) {
    play(stage, echo, async |to| {
        let mut stream = aio::connect(to).await?;
        let data = pattern(200_000);
        stream.send_all([data[..10].to_vec(), data[10..].to_vec()]).await?;
        let mut head = [0; 3];
        stream.read_exact(&mut head).await?;
        assert_eq!(head, data[..3]);
        // More than an inbox usually holds.
        let mut rest = vec![0; data.len() - 3 - 5];
        stream.read_exact(&mut rest).await?;
        assert!(rest == data[3..data.len() - 5]);
        stream.shutdown().await?;
        assert_eq!(stream.read_exact(&mut [0; 6]).await.unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let mut last = [0; 16];
        let mut count = 0;
        while count < 5 {
            count += stream.read(&mut last[count..]).await?;
        }
        assert_eq!(last[..5], data[data.len() - 5..], "what was too little is still there");
        assert_eq!(stream.read(&mut last).await?, 0);
        Ok(())
    });
}

fn a_stream_that_is_not_read_is_bounded(stage: &Stage) {
    let reader = async |mut stream: Stream| {
        // The client sends until it has to wait; only then does this side read.
        aio::sleep(Duration::from_millis(200)).await;
        let all = read_all(&mut stream).await?;
        stream.send(all.len().to_string()).await
    };
    play(stage, reader, async |to| {
        let mut stream = aio::connect(to).await?;
        let mut sent = 0;
        while let Ok(outcome) = aio::timeout(Duration::from_millis(50), stream.send(vec![7; 10_000])).await {
            outcome?;
            sent += 10_000;
            assert!(sent < 100_000_000, "the sender is never made to wait");
        }
        // The inbox of the peer, both kernels and this side's queue are full. The queue holds the high mark and a piece.
        assert!(stream.queued() <= 256 * 1024 + 10_000, "{}", stream.queued());
        stream.shutdown().await?;
        assert_eq!(read_all(&mut stream).await?, sent.to_string().into_bytes(), "what timed out was not sent");
        Ok(())
    });
}

fn a_flush_tells_when_the_kernel_has_taken_it(stage: &Stage) {
    play(
        stage,
        async |mut stream: Stream| read_all(&mut stream).await.map(drop),
        async |to| {
            let mut stream = aio::connect(to).await?;
            stream.flush().await?;
            for _ in 0..5 {
                stream.send(vec![1; 150_000]).await?;
                stream.flush().await?;
                assert_eq!(stream.queued(), 0);
            }
            Ok(())
        },
    );
}

fn a_task_that_panics_ends_its_connection_alone(stage: &Stage) {
    let server = async |mut stream: Stream| {
        while let Some(data) = stream.recv().await? {
            assert!(&data[..] != b"!", "as the test wants it");
            stream.send(data).await?;
        }
        Ok(())
    };
    play(stage, server, async |to: Address| {
        let mut healthy = aio::connect(to.clone()).await?;
        let mut other = aio::connect(to).await?;
        let mut back = [0; 2];
        for stream in [&mut healthy, &mut other] {
            stream.send("ok").await?;
            stream.read_exact(&mut back).await?;
        }
        other.send("!").await?;
        assert_eq!(other.recv().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        healthy.send("ok").await?;
        healthy.read_exact(&mut back).await?;
        let ended = aio::spawn(async { panic!("as the test wants it") }).await;
        assert!(ended.is_err_and(|error: JoinError| error.is_panic()));
        Ok(())
    });
}

fn a_task_that_wakes_itself_starves_nobody(stage: &Stage) {
    play(stage, echo, async |to| {
        let turns = Rc::new(std::cell::Cell::new(0_u64));
        let counted = Rc::clone(&turns);
        let spinning = aio::spawn(async move {
            loop {
                counted.set(counted.get() + 1);
                aio::yield_now().await;
            }
        });
        // In a simulation time moves only while nothing is ready, so that the spinner has to rest there.
        if turns.get() == 0 {
            let mut stream = aio::connect(to).await;
            for _ in 0..10 {
                if let Ok(stream) = &mut stream {
                    stream.send("x").await?;
                    stream.read_exact(&mut [0]).await?;
                }
            }
        }
        assert!(turns.get() > 0);
        spinning.abort();
        assert!(spinning.await.is_err_and(|error| !error.is_panic()));
        Ok(())
    });
}

fn a_listener_hands_out_every_connection(stage: &Stage) {
    const CONNECTIONS: usize = 300;
    let done = Done::default();
    let ended = done.clone();
    let other = if stage.is_simulated() { "127.0.0.1:1001" } else { "127.0.0.1:0" };
    let server = Server::new().listen_async(listen_on(stage), async move |mut asked: Stream| {
        let mut listener = Listener::bind(other)?;
        asked.send(listener.address().to_string()).await?;
        asked.shutdown().await?;
        for _ in 0..CONNECTIONS {
            let stream = listener.accept().await?;
            aio::spawn(echo(stream));
        }
        asked.recv().await.map(drop)
    });
    let client = move |address: Address| {
        Client::new().task(async move || {
            let mut asked = aio::connect(address.clone()).await?;
            let at = read_all(&mut asked).await?;
            let at = String::from_utf8_lossy(&at).into_owned();
            let mut streams = Vec::new();
            for number in 0..CONNECTIONS {
                let mut stream = aio::connect(&at).await.unwrap_or_else(|error| panic!("{number}: {error}"));
                stream.send(number.to_string()).await?;
                streams.push(stream);
            }
            for (number, mut stream) in streams.into_iter().enumerate() {
                let number = number.to_string();
                let mut back = vec![0; number.len()];
                stream.read_exact(&mut back).await.expect("each is served");
                assert_eq!(back, number.as_bytes());
            }
            ended.one();
            Ok(())
        })
    };
    stage.play(server, client, || done.count() == 1);
}

fn deadlines_end_one_operation_only(stage: &Stage) {
    play(stage, echo, async |to| {
        let mut stream = aio::connect(to).await?;
        stream.set_read_timeout(Some(Duration::from_millis(30)));
        for _ in 0..2 {
            let begin = aio::now();
            assert_eq!(stream.recv().await.unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(aio::now() - begin >= Duration::from_millis(30));
            stream.send("still there").await?;
            stream.read_exact(&mut [0; 11]).await?;
        }
        stream.set_read_timeout(None);
        assert!(aio::timeout(Duration::from_millis(50), stream.recv()).await.is_err());
        stream.set_write_timeout(Some(Duration::from_millis(30)));
        let outcome = loop {
            // Nobody reads what comes back, so that at last nothing more is taken.
            if let Err(error) = stream.send(vec![1; 100_000]).await {
                break error;
            }
        };
        assert_eq!(outcome.kind(), ErrorKind::TimedOut);
        stream.abort();
        Ok(())
    });
}

fn refused_and_reset_connections_say_so(stage: &Stage) {
    let lost = !stage.is_simulated() && loses_resets();
    let nobody = if stage.is_simulated() { "127.0.0.1:9" } else { "127.0.0.1:1" };
    play(
        stage,
        async |stream: Stream| {
            stream.abort();
            Ok(())
        },
        async move |to| {
            assert_eq!(aio::connect(nobody).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            assert_eq!(aio::connect("nonsense").await.unwrap_err().kind(), ErrorKind::InvalidInput);
            // The reset may overtake the end of the connect.
            if let Ok(mut stream) = aio::connect(to).await {
                match stream.recv().await {
                    Ok(None) if lost => println!("skipped: a reset that is lost here"),
                    other => assert_eq!(other.unwrap_err().kind(), ErrorKind::ConnectionReset),
                }
                let mut error = stream.send("x").await;
                while error.is_ok() {
                    aio::sleep(Duration::from_millis(1)).await;
                    error = stream.send("x").await;
                }
                assert!(!stream.is_open());
            }
            Ok(())
        },
    );
}

fn sleeps_and_ticks_come_in_order(stage: &Stage) {
    play(stage, echo, async |_| {
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let sleeper = |milliseconds: u64| {
            let order = Rc::clone(&order);
            aio::spawn(async move {
                aio::sleep(Duration::from_millis(milliseconds)).await;
                order.borrow_mut().push(milliseconds);
            })
        };
        let sleepers = [sleeper(60), sleeper(20), sleeper(40)];
        let mut ticks = aio::interval(Duration::from_millis(10));
        let begin = aio::now();
        for _ in 0..3 {
            // A tick that is not waited for to its end is not lost.
            while aio::timeout(Duration::from_millis(3), ticks.tick()).await.is_err() {}
        }
        assert!(aio::now() - begin >= Duration::from_millis(30));
        for sleeper in sleepers {
            sleeper.await.expect("it ends by itself");
        }
        assert_eq!(*order.borrow(), [20, 40, 60]);
        Ok(())
    });
}

/// One deadline after another, each given up and the next begun in the same poll: none may end at the time of an earlier
/// one, nor only at that of a later one.
fn deadlines_begun_anew_wait_for_their_own_time(stage: &Stage) {
    play(stage, echo, async |_| {
        let milliseconds = Duration::from_millis;
        let mut deadline = aio::sleep(milliseconds(30));
        for _ in 0..8 {
            let early = aio::timeout(milliseconds(10), &mut deadline).await;
            assert!(early.is_err() || aio::now() >= deadline.deadline(), "it ended before its time");
            deadline.reset(aio::now() + milliseconds(30));
        }
        let until = deadline.deadline();
        deadline.await;
        assert!(aio::now() >= until);
        for _ in 0..3 {
            let begin = aio::now();
            aio::timeout(Duration::from_secs(3600), aio::yield_now()).await?;
            aio::sleep(milliseconds(5)).await;
            let took = aio::now() - begin;
            assert!(took >= milliseconds(5) && took < Duration::from_secs(600), "{took:?}");
        }
        Ok(())
    });
}

fn a_large_send_goes_through_a_small_limit(stage: &Stage) {
    let done = Done::default();
    let ended = done.clone();
    for policy in [ringport::OverLimit::Disconnect, ringport::OverLimit::Refuse, ringport::OverLimit::Wait] {
        let options = ringport::ConnectionOptions::default().send_limit(5_000, policy).marks(1_000, 2_000);
        // The process has less than what is sent, too.
        let server = Server::new().memory_limit(100_000).listen_async_with(
            listen_on(stage),
            ringport::ListenOptions::default(),
            options,
            async |mut stream: Stream| {
                let data = pattern(150_000);
                let mut pieces = data.chunks(40_000).map(<[u8]>::to_vec);
                let last = pieces.next_back();
                stream.send_all(pieces).await?;
                stream.send_all(last).await?;
                stream.flush().await
            },
        );
        let (before, ended) = (done.count(), ended.clone());
        let client = move |address: Address| {
            Client::new().task(async move || {
                let mut stream = aio::connect(address.clone()).await?;
                assert!(read_all(&mut stream).await? == pattern(150_000));
                ended.one();
                Ok(())
            })
        };
        stage.play(server, client, || done.count() > before);
    }
}

fn both_ends_learn_of_each_other(stage: &Stage) {
    let named = async |mut stream: Stream| {
        let text = format!("{} {}", stream.peer_addr().await?, stream.local_addr().await?);
        stream.send(text).await
    };
    play(stage, named, async |to| {
        let mut stream = aio::connect(to.clone()).await?;
        let own = stream.local_addr().await?;
        assert_eq!(stream.peer_addr().await?, to);
        assert!(stream.id().is_some());
        let text = read_all(&mut stream).await?;
        assert_eq!(String::from_utf8_lossy(&text), format!("{own} {to}"));
        Ok(())
    });
}

#[test]
fn block_on_returns_what_its_future_returns_and_ends_the_rest() {
    let dropped = Rc::new(());
    let held = Rc::clone(&dropped);
    let result = block_on(async move {
        aio::spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        let mut listener = Listener::bind("127.0.0.1:0").expect("it listens");
        let to = listener.address().clone();
        let asking = aio::spawn(async move {
            let mut stream = aio::connect(to).await?;
            stream.send("hello").await?;
            stream.shutdown().await?;
            read_all(&mut stream).await
        });
        aio::spawn(echo(listener.accept().await.expect("it accepts")));
        asking.await.expect("it ends by itself").expect("it is answered")
    });
    assert_eq!(result.expect("an engine works"), b"hello");
    assert_eq!(Rc::strong_count(&dropped), 1, "the task that never ends is dropped");
}

#[test]
fn block_on_panics_as_its_future_does() {
    let caught = std::panic::catch_unwind(|| block_on(async { panic!("seven") }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"seven"));
}

#[test]
fn wakes_from_other_threads_arrive_and_stale_ones_are_harmless() {
    block_on(async {
        for _ in 0..200 {
            let (value, result) = (Arc::new(Mutex::new((0, None::<std::task::Waker>))), Done::default());
            let (set, told) = (Arc::clone(&value), result.clone());
            let thread = std::thread::spawn(move || {
                let mut woken = 0;
                while woken < 3 {
                    let mut value = set.lock().expect("nobody panicked");
                    if let Some(waker) = value.1.take() {
                        value.0 += 1;
                        woken = value.0;
                        drop(value);
                        waker.wake_by_ref();
                        // Stale by now, or soon.
                        waker.wake();
                    }
                    std::thread::yield_now();
                }
                told.one();
            });
            std::future::poll_fn(|cx| {
                let mut value = value.lock().expect("nobody panicked");
                if value.0 == 3 {
                    return std::task::Poll::Ready(());
                }
                value.1 = Some(cx.waker().clone());
                std::task::Poll::Pending
            })
            .await;
            thread.join().expect("it ends");
            assert_eq!(result.count(), 1);
        }
    })
    .expect("an engine works");
}

#[test]
fn several_workers_serve_and_a_shutdown_drains_them() {
    each_engine(|kind| {
        let server = Server::new().engine(Some(kind)).workers(2).listen_async("127.0.0.1:0", echo);
        let server = server.start().expect("the server starts");
        let to = server.addresses()[0].clone();
        let handle = server.handle();
        block_on(async move {
            let mut streams = Vec::new();
            for _ in 0..50 {
                let mut stream = aio::connect(to.clone()).await.expect("it accepts");
                // Once the first byte is back it is accepted.
                stream.send("!").await.expect("it takes data");
                stream.read_exact(&mut [0]).await.expect("it comes back");
                stream.send(vec![3; 20_000]).await.expect("it takes data");
                streams.push(stream);
            }
            handle.shutdown(Duration::from_secs(5));
            for mut stream in streams {
                let mut back = vec![0; 20_000];
                stream.read_exact(&mut back).await.expect("what was sent comes back");
                assert!(stream.recv().await.expect("an end in order").is_none());
            }
        })
        .expect("an engine works");
        server.join().expect("it ends");
    });
}
