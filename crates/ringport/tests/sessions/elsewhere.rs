//! Streams used from other threads and runtimes, and the blocking ones.

use std::io::{ErrorKind, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use ringport::aio::remote::{Hub, RemoteStream};
use ringport::{Server, sync};

use crate::aio::echo;
use crate::stage::{each_engine, pattern};

fn each_hub(test: impl Fn(Hub)) {
    each_engine(|kind| {
        let server = Server::new().engine(Some(kind)).workers(2).listen_async("127.0.0.1:0", echo);
        test(Hub::with(server).expect("the hub starts"));
    });
}

fn tokio() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("tokio starts")
}

/// Another runtime, whose tasks use the streams of a hub.
trait Elsewhere {
    /// Starts a task. What is returned ends with it.
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send;
    /// Drops a future that takes longer.
    fn within<T: Send>(
        time: Duration,
        future: impl Future<Output = T> + Send,
    ) -> impl Future<Output = Option<T>> + Send;
}

struct Tokio;

impl Elsewhere for Tokio {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
        let task = tokio::spawn(task);
        async { task.await.expect("it ends well") }
    }

    async fn within<T: Send>(time: Duration, future: impl Future<Output = T> + Send) -> Option<T> {
        tokio::time::timeout(time, future).await.ok()
    }
}

struct Smol;

impl Elsewhere for Smol {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> impl Future<Output = ()> + Send {
        smol::spawn(task)
    }

    async fn within<T: Send>(time: Duration, future: impl Future<Output = T> + Send) -> Option<T> {
        let over = async {
            smol::Timer::after(time).await;
            None
        };
        smol::future::or(async { Some(future.await) }, over).await
    }
}

/// Tasks that send and receive at the same time, each on a stream of its own.
async fn tasks_send_and_receive<E: Elsewhere>(hub: Arc<Hub>) {
    let to = hub.running().addresses()[0].clone();
    let mut tasks = Vec::new();
    for number in 0..8 {
        let (hub, to) = (Arc::clone(&hub), to.clone());
        tasks.push(E::spawn(async move {
            let stream = Arc::new(hub.connect(to).await.expect("it accepts"));
            let data = pattern(500_000 + number);
            let (sender, sent) = (Arc::clone(&stream), data.clone());
            let sending = E::spawn(async move {
                for piece in sent.chunks(30_000) {
                    sender.send(piece.to_vec()).await.expect("it takes data");
                }
                sender.shutdown().await.expect("it takes all");
                assert_eq!(sender.send("more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
            });
            let mut back = Vec::new();
            // A receive that is dropped loses nothing.
            loop {
                match E::within(Duration::from_micros(50), stream.recv()).await {
                    Some(Ok(Some(piece))) => back.extend_from_slice(&piece),
                    Some(end) => break assert!(end.expect("an end in order").is_none()),
                    None => {}
                }
            }
            assert!(back == data, "{} of {} bytes", back.len(), data.len());
            sending.await;
        }));
    }
    for task in tasks {
        task.await;
    }
}

/// Nothing is open any more, and the hub ends in order.
fn check_the_end(hub: Arc<Hub>) {
    let hub = Arc::into_inner(hub).expect("nobody else holds it");
    let stats = hub.running().handle();
    hub.close().expect("it ends in order");
    assert_eq!(stats.stats().connections, 0);
}

#[test]
fn tokio_tasks_send_and_receive() {
    each_hub(|hub| {
        let hub = Arc::new(hub);
        tokio().block_on(tasks_send_and_receive::<Tokio>(Arc::clone(&hub)));
        check_the_end(hub);
    });
}

#[test]
fn smol_tasks_send_and_receive() {
    each_hub(|hub| {
        let hub = Arc::new(hub);
        smol::block_on(tasks_send_and_receive::<Smol>(Arc::clone(&hub)));
        check_the_end(hub);
    });
}

#[test]
fn a_remote_listener_hands_out_streams_and_a_hub_that_ends_says_so() {
    each_hub(|hub| {
        tokio().block_on(async {
            let listener = hub.listen("127.0.0.1:0").await.expect("it listens");
            let asker = hub.connect(listener.address().clone()).await.expect("it accepts");
            let answerer = listener.accept().await.expect("there is one");
            assert!(answerer.peer_addr().is_some());
            asker.send("hello").await.expect("it takes data");
            assert_eq!(answerer.recv().await.expect("it arrives").as_deref(), Some(&b"hello"[..]));
            answerer.abort();
            assert_eq!(asker.recv().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let refused = hub.connect("127.0.0.1:1").await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
            let waiting: RemoteStream = hub.connect(listener.address().clone()).await.expect("it accepts");
            drop(hub);
            let error = waiting.recv().await;
            assert!(!matches!(error, Ok(Some(_))), "{error:?}");
            assert!(waiting.send("x").await.is_err());
            // One may have been accepted before the end.
            while listener.accept().await.is_ok() {}
        });
    });
}

#[test]
fn a_slow_reader_elsewhere_makes_the_peer_wait() {
    each_hub(|hub| {
        tokio().block_on(async {
            let listener = hub.listen("127.0.0.1:0").await.expect("it listens");
            let sender = hub.connect(listener.address().clone()).await.expect("it accepts");
            let reader = listener.accept().await.expect("there is one");
            let mut sent = 0;
            while tokio::time::timeout(Duration::from_millis(200), sender.send(vec![1; 100_000])).await.is_ok() {
                sent += 100_000;
                assert!(sent < 100_000_000, "the sender is never made to wait");
            }
            // Closed in order: all that was taken arrives.
            drop(sender);
            let mut received = 0;
            while let Some(piece) = reader.recv().await.expect("it arrives") {
                received += piece.len();
            }
            assert_eq!(received, sent);
        });
    });
}

#[test]
fn blocking_streams_read_and_write() {
    let listener = sync::Listener::bind("127.0.0.1:0").expect("it listens");
    let to = listener.address().clone();
    let serving = std::thread::spawn(move || {
        let mut stream = listener.accept().expect("there is one");
        let mut all = Vec::new();
        stream.read_to_end(&mut all).expect("it arrives");
        stream.write_all(&all).expect("it takes data");
        stream.flush().expect("it leaves");
    });
    let mut stream = sync::Stream::connect(to).expect("it accepts");
    stream.set_read_timeout(Some(Duration::from_millis(30)));
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::TimedOut);
    stream.set_read_timeout(None);
    let data = pattern(700_000);
    stream.write_all(&data).expect("it takes data");
    stream.shutdown().expect("it takes all");
    let mut back = Vec::new();
    stream.read_to_end(&mut back).expect("it answers");
    assert!(back == data, "{} of {} bytes", back.len(), data.len());
    serving.join().expect("it ends well");
    assert_eq!(sync::Stream::connect("nonsense").unwrap_err().kind(), ErrorKind::InvalidInput);
}
