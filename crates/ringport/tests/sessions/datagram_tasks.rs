//! Datagram sockets of tasks.

use std::cell::Cell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use ringport::aio::{self, DatagramSocket};
use ringport::{EngineConfig, EngineKind, Server, UdpOptions};

use crate::aio::{echo, play};
use crate::datagrams::receive;
use crate::dropped::{Dice, seed, until_dropped};
use crate::stage::{Stage, pattern, stages};

stages! {
    datagrams_come_back_as_they_were_sent,
    what_is_not_received_at_once_waits,
    sends_wait_for_room,
    a_failed_datagram_is_told_and_the_socket_goes_on,
    a_deadline_ends_one_operation_only,
    a_socket_that_is_dropped_gives_its_address_back,
    no_datagram_is_lost_or_doubled_by_dropping_futures,
}

/// Runs `client` on the stage, beside a server that it does not need.
fn run<C>(stage: &Stage, client: C)
where
    C: AsyncFn() -> std::io::Result<()> + Clone + Send + Sync + 'static,
{
    play(stage, echo, async move |_| client().await);
}

async fn echo_datagrams(mut socket: DatagramSocket) -> std::io::Result<()> {
    loop {
        let datagram = socket.recv_from().await?;
        socket.send_to(datagram.data, datagram.from).await?;
    }
}

fn bind() -> DatagramSocket {
    DatagramSocket::bind("127.0.0.1:0").expect("a free port")
}

fn datagrams_come_back_as_they_were_sent(stage: &Stage) {
    run(stage, async || {
        let (server, mut client) = (bind(), bind());
        let to = server.local_addr();
        aio::spawn(echo_datagrams(server));
        for size in [0, 1, 64, 1472, 20_000] {
            let data = pattern(size);
            client.send_to(data.clone(), to).await?;
            let back = client.recv_from().await?;
            assert_eq!((back.from, back.truncated), (to, false));
            assert!(back.data[..] == data, "{} of {size} bytes", back.data.len());
        }
        assert!(client.try_recv_from().is_none());
        assert_eq!(DatagramSocket::bind("nonsense").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(DatagramSocket::bind("unix:/tmp/x").unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(DatagramSocket::bind(to).unwrap_err().kind(), ErrorKind::AddrInUse);
        Ok(())
    });
}

fn what_is_not_received_at_once_waits(stage: &Stage) {
    const DATAGRAMS: u8 = 120;
    run(stage, async || {
        let mut options = UdpOptions::default();
        options.receive_buffer = Some(1 << 20);
        let mut server = DatagramSocket::bind_with("127.0.0.1:0", &options)?;
        let mut client = bind();
        let mut numbers = Vec::new();
        // Two bursts are more than an inbox takes: the rest stays with the kernel, and each alone fits the simulator's.
        for burst in 0..DATAGRAMS / 20 {
            for number in burst * 20..(burst + 1) * 20 {
                client.send_to(vec![number; 40], server.local_addr()).await?;
            }
            // In a simulation of two workers a datagram may take a millisecond.
            aio::sleep(Duration::from_millis(30)).await;
            while burst % 2 == 1 && numbers.len() < usize::from(burst + 1) * 20 {
                let datagram = aio::timeout(Duration::from_secs(10), server.recv_from()).await;
                numbers.push(datagram.unwrap_or_else(|_| panic!("only {} came", numbers.len()))?.data[0]);
            }
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..DATAGRAMS).collect::<Vec<_>>(), "each comes once");
        Ok(())
    });
}

fn sends_wait_for_room(stage: &Stage) {
    run(stage, async || {
        let (mut client, sink) = (bind(), bind());
        let to = sink.local_addr();
        let mut taken = 0_u32;
        let refused = loop {
            match client.try_send_to(taken.to_be_bytes().to_vec(), to) {
                Ok(()) => taken += 1,
                Err(data) => break data,
            }
            assert!(taken < 100_000, "the queue has no bound");
        };
        assert_eq!(refused.len(), 4, "what is refused comes back");
        // Within one poll nothing leaves; afterwards there is room again.
        assert!(aio::timeout(Duration::from_secs(10), client.writable()).await.is_ok());
        for _ in 0..taken * 3 {
            client.send_to("more", to).await?;
        }
        let (_, sender) = client.split();
        while sender.queued() > 0 {
            aio::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    });
}

fn a_failed_datagram_is_told_and_the_socket_goes_on(stage: &Stage) {
    if stage.is_windows() || matches!(stage, Stage::Real(EngineKind::Kqueue)) {
        println!("skipped: errors of single peers are told on Linux alone");
        return;
    }
    run(stage, async || {
        let (server, client) = (bind(), bind());
        let to = server.local_addr();
        aio::spawn(echo_datagrams(server));
        let (mut receiver, mut sender) = client.split();
        // A port that was free a moment ago.
        let gone = bind();
        let nobody = gone.local_addr();
        drop(gone);
        aio::sleep(Duration::from_millis(20)).await;
        sender.send_to("?", nobody).await?;
        let (whom, error) = aio::timeout(Duration::from_secs(10), sender.failure()).await.expect("it is told")?;
        assert_eq!((whom, error.kind()), (Some(nobody), ErrorKind::ConnectionRefused));
        sender.send_to("!", to).await?;
        assert_eq!(receiver.recv_from().await?.data[..], *b"!");
        Ok(())
    });
}

fn a_deadline_ends_one_operation_only(stage: &Stage) {
    run(stage, async || {
        let (server, mut client) = (bind(), bind());
        let to = server.local_addr();
        aio::spawn(echo_datagrams(server));
        client.set_read_timeout(Some(Duration::from_millis(20)));
        for _ in 0..2 {
            let begin = aio::now();
            assert_eq!(client.recv_from().await.unwrap_err().kind(), ErrorKind::TimedOut);
            assert!(aio::now() - begin >= Duration::from_millis(20));
        }
        client.set_read_timeout(Some(Duration::from_secs(20)));
        client.set_write_timeout(Some(Duration::from_secs(20)));
        client.send_to("still there", to).await?;
        assert_eq!(client.recv_from().await?.data[..], *b"still there");
        Ok(())
    });
}

fn a_socket_that_is_dropped_gives_its_address_back(stage: &Stage) {
    let takes_at_once = !stage.is_simulated();
    run(stage, async move || {
        let (mut first, mut client) = (bind(), bind());
        let at = first.local_addr();
        // What the kernel takes at once leaves.
        first.send_to("last words", client.local_addr()).await?;
        drop(first);
        if takes_at_once {
            assert_eq!(client.recv_from().await?.data[..], *b"last words");
        }
        let end = aio::now() + Duration::from_secs(10);
        let mut again = loop {
            match DatagramSocket::bind(at) {
                Ok(socket) => break socket,
                Err(error) => assert!(error.kind() == ErrorKind::AddrInUse && aio::now() < end, "{error}"),
            }
            aio::sleep(Duration::from_millis(1)).await;
        };
        client.send_to("anew", at).await?;
        assert_eq!(again.recv_from().await?.data[..], *b"anew");
        // One that is dropped before the worker has seen it.
        drop(bind());
        Ok(())
    });
}

/// Every future is dropped at any await. Questions and answers go one at a time, so that the network loses none: each
/// arrives once, and in order.
fn no_datagram_is_lost_or_doubled_by_dropping_futures(stage: &Stage) {
    const QUESTIONS: u32 = 300;
    let seed = seed(stage);
    run(stage, async move || {
        let (mut server, mut client) = (bind(), bind());
        let (to, dice) = (server.local_addr(), Dice::new(seed));
        let (dropped, thrown) = (Rc::new(Cell::new(0)), dice.clone());
        let counted = Rc::clone(&dropped);
        macro_rules! again {
            ($dice:expr, $dropped:expr, $future:expr) => {
                loop {
                    match until_dropped(&$dice, $future).await {
                        Some(output) => break output,
                        // The worker has its turn, so that what is dropped is not polled to its end at once.
                        None => aio::yield_now().await,
                    }
                    $dropped.set($dropped.get() + 1);
                }
            };
        }
        // It lives until all answers have come, since what a simulated kernel does not take at once is lost with the socket.
        let serving = aio::spawn(async move {
            for number in 0..QUESTIONS {
                let question = again!(thrown, counted, server.recv_from()).expect("it receives");
                assert_eq!(question.data[..4], number.to_be_bytes(), "seed {seed}");
                let data = question.data.to_vec();
                again!(thrown, counted, server.writable()).expect("there is room");
                again!(thrown, counted, server.send_to(data.clone(), question.from)).expect("it takes data");
            }
            server
        });
        for number in 0..QUESTIONS {
            let question = [&number.to_be_bytes()[..], &pattern(dice.below(1000) as usize)].concat();
            again!(dice, dropped, client.send_to(question.clone(), to)).expect("it takes data");
            let answer = again!(dice, dropped, client.recv_from()).expect("it receives");
            assert!(answer.data[..] == question, "seed {seed}: question {number}");
        }
        let mut server = serving.await.expect("no panic");
        assert!(
            server.try_recv_from().is_none() && client.try_recv_from().is_none(),
            "seed {seed}: more than was sent"
        );
        assert!(dropped.get() > 100, "seed {seed}: only {} futures were dropped", dropped.get());
        Ok(())
    });
}

/// One that is larger than what is received whole says so.
#[test]
fn a_cut_datagram_says_so() {
    for kind in [EngineKind::Uring, EngineKind::Epoll, EngineKind::Kqueue, EngineKind::Iocp, EngineKind::Rio] {
        if Stage::real(kind).is_none() {
            continue;
        }
        let mut config = EngineConfig::default();
        config.datagram_bytes = 100;
        let run = async {
            let (mut server, mut client) = (bind(), bind());
            for size in [99, 100, 101, 5000] {
                client.send_to(pattern(size), server.local_addr()).await.expect("it takes data");
                let datagram = server.recv_from().await.expect("it arrives");
                assert_eq!((datagram.data.len(), datagram.truncated), (size.min(100), size > 100));
                assert!(datagram.data[..] == pattern(size)[..size.min(100)]);
            }
        };
        Server::new().engine(Some(kind)).engine_config(config).block_on(run).expect("an engine works");
    }
}

/// Tasks on two workers share the peers of one address, and a shutdown ends them.
#[test]
fn a_server_has_a_task_on_each_worker() {
    for kind in [EngineKind::Uring, EngineKind::Epoll] {
        if Stage::real(kind).is_none() {
            continue;
        }
        let server = Server::new().engine(Some(kind)).workers(2).udp_async("127.0.0.1:0", echo_datagrams);
        let server = server.start().expect("the server starts");
        let to = server.udp_addresses()[0];
        for number in 0..16_u8 {
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout can be set");
            socket.send_to(&[number; 9], to).expect("it is sent");
            let mut back = [0; 16];
            assert_eq!(receive(&socket, &mut back), (9, to));
            assert_eq!(back[..9], [number; 9]);
        }
        let handle = server.handle();
        handle.shutdown(Duration::ZERO);
        server.join().expect("it ends in order");
        assert_eq!((handle.stats().datagrams_received, handle.stats().datagrams_sent), (16, 16));
    }
}
