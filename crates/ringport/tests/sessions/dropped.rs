//! Cancel safety: futures are dropped at every await, and no byte, connection or descriptor is lost.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringport::aio::{self, Listener, Stream};
use ringport::{Address, Client, Server};

use crate::aio::{Done, echo};
use crate::stage::{Stage, each_engine, listen_on, pattern, stages};

stages! {
    no_byte_is_lost_or_doubled_by_dropping_futures,
    no_accepted_connection_disappears_by_dropping_futures,
    a_connect_that_is_dropped_leaves_nothing,
}

/// A small generator, so that a failing run can be repeated (xorshift, Marsaglia 2003).
#[derive(Clone)]
pub(crate) struct Dice(Rc<RefCell<u64>>);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Rc::new(RefCell::new(seed.wrapping_mul(2).wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    pub(crate) fn below(&self, bound: u64) -> u64 {
        let mut state = self.0.borrow_mut();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % bound
    }
}

/// Polls `future` until it is ready, or until the dice say that it is dropped where it waits.
pub(crate) async fn until_dropped<F: Future>(dice: &Dice, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if dice.below(2) == 0 => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Awaits `$future`, dropping it at any await and making it anew.
macro_rules! again {
    ($dice:expr, $future:expr) => {
        loop {
            if let Some(output) = until_dropped(&$dice, $future).await {
                break output;
            }
        }
    };
}

pub(crate) fn seed(stage: &Stage) -> u64 {
    match stage {
        Stage::Sim { seed, .. } => *seed,
        Stage::Real(kind) => 1000 + *kind as u64,
    }
}

/// Sends what arrives back, by whatever method the dice choose, each dropped again and again.
async fn dropping_echo(dice: Dice, mut stream: Stream) -> std::io::Result<()> {
    let mut exact = [0; 100];
    loop {
        match dice.below(3) {
            0 => match again!(dice, stream.recv())? {
                Some(data) => {
                    let data = data.to_vec();
                    again!(dice, stream.send(data.clone()))?;
                }
                None => break,
            },
            1 => match again!(dice, stream.read(&mut exact))? {
                0 => break,
                count => {
                    let (left, right) = exact[..count].split_at(count / 2);
                    again!(dice, stream.send_all([left.to_vec(), right.to_vec()]))?;
                }
            },
            _ => match again!(dice, stream.read_exact(&mut exact[..7])) {
                Ok(()) => {
                    again!(dice, stream.writable())?;
                    stream.send(exact[..7].to_vec()).await?;
                }
                // Too little is left: another method gets it, or the end.
                Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
                Err(error) => return Err(error),
            },
        }
        if dice.below(8) == 0 {
            again!(dice, stream.flush())?;
        }
    }
    again!(dice, stream.shutdown())
}

fn no_byte_is_lost_or_doubled_by_dropping_futures(stage: &Stage) {
    const CONNECTIONS: usize = 4;
    let (done, seed) = (Done::default(), seed(stage));
    let ended = done.clone();
    let server = Server::new()
        .listen_async(listen_on(stage), async move |stream: Stream| dropping_echo(Dice::new(seed), stream).await);
    let client = move |address: Address| {
        Client::new().task(async move || {
            let mut all = Vec::new();
            for number in 0..CONNECTIONS {
                let (to, ended) = (address.clone(), ended.clone());
                all.push(aio::spawn(async move {
                    let dice = Dice::new(seed * 100 + number as u64);
                    let data = pattern(60_000 + number);
                    let (mut reader, mut writer) = again!(dice, aio::connect(to.clone())).expect("it accepts").split();
                    let (sent, dropper) = (data.clone(), dice.clone());
                    aio::spawn(async move {
                        for piece in sent.chunks(1 + dropper.below(5_000) as usize) {
                            again!(dropper, writer.send(piece.to_vec())).expect("it takes data");
                        }
                        again!(dropper, writer.shutdown()).expect("it takes all");
                        // The writer lives until the answer has come.
                        writer.flush().await.expect("it has taken all");
                    });
                    let mut back = Vec::new();
                    while let Some(piece) = again!(dice, reader.recv()).expect("it answers") {
                        back.extend_from_slice(&piece);
                    }
                    assert!(back == data, "seed {seed}: {} of {} bytes", back.len(), data.len());
                    ended.one();
                }));
            }
            for task in all {
                task.await.expect("it ends well");
            }
            Ok(())
        })
    };
    stage.play(server, client, || done.count() == CONNECTIONS);
}

fn no_accepted_connection_disappears_by_dropping_futures(stage: &Stage) {
    const CONNECTIONS: usize = 60;
    let (done, seed) = (Done::default(), seed(stage));
    let ended = done.clone();
    let at = if stage.is_simulated() { "127.0.0.1:1001" } else { "127.0.0.1:0" };
    let server = Server::new().listen_async(listen_on(stage), async move |mut asked: Stream| {
        let mut listener = Listener::bind(at)?;
        asked.send(listener.address().to_string()).await?;
        asked.shutdown().await?;
        let dice = Dice::new(seed);
        for _ in 0..CONNECTIONS {
            aio::spawn(echo(again!(dice, listener.accept())?));
        }
        asked.recv().await.map(drop)
    });
    let client = move |address: Address| {
        Client::new().task(async move || {
            let mut asked = aio::connect(address.clone()).await?;
            let mut at = Vec::new();
            while let Some(piece) = asked.recv().await? {
                at.extend_from_slice(&piece);
            }
            let at = String::from_utf8_lossy(&at).into_owned();
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                streams.push(aio::connect(&at).await.expect("it accepts"));
            }
            for stream in &mut streams {
                stream.send("?").await?;
                stream.read_exact(&mut [0]).await.expect("each is served");
            }
            ended.one();
            Ok(())
        })
    };
    stage.play(server, client, || done.count() == 1);
}

fn a_connect_that_is_dropped_leaves_nothing(stage: &Stage) {
    let done = Done::default();
    let ended = done.clone();
    let server = Server::new().listen_async(listen_on(stage), echo);
    let client = move |address: Address| {
        let ended = ended.clone();
        Client::new().task(async move || {
            for number in 0..40 {
                let wait = Duration::from_millis(number % 3);
                let stream = aio::timeout(wait, aio::connect(address.clone())).await;
                drop(stream);
            }
            let mut stream = aio::connect(address.clone()).await?;
            stream.send("!").await?;
            stream.read_exact(&mut [0]).await.expect("it is served");
            stream.close().await.expect("it ends in order");
            ended.one();
            Ok(())
        })
    };
    // The client ends only when every connection of it has ended, and `play` waits for that.
    stage.play(server, client, || done.count() == 1);
}

/// Open descriptors of this process, where a file tells. Under Wine it would tell of the server of all its processes; there
/// the tests of the engines count handles.
fn descriptors() -> Option<usize> {
    if cfg!(windows) {
        return None;
    }
    std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count)
}

/// Runs this test in a process of its own, so that the descriptors of others are not counted. Says whether this is it.
fn is_alone(test: &str) -> bool {
    const ALONE: &str = "RINGPORT_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("this test is a file");
    let output = std::process::Command::new(program).args(["--exact", test, "--nocapture"]).env(ALONE, "1").output();
    let output = output.expect("it runs");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "alone, it failed:\n{text}");
    print!("{text}");
    false
}

/// Many futures dropped at random moments while connections come, go and carry data; then everything is back where it was.
/// `RINGPORT_DROPS` says how many.
#[test]
fn nothing_is_left_of_futures_dropped_under_load() {
    if !is_alone("dropped::nothing_is_left_of_futures_dropped_under_load") {
        return;
    }
    let drops: u64 = std::env::var("RINGPORT_DROPS").ok().and_then(|text| text.parse().ok()).unwrap_or(4_000);
    each_engine(|kind| {
        let server = Server::new().engine(Some(kind)).listen_async("127.0.0.1:0", echo).start().expect("it starts");
        let to = server.addresses()[0].clone();
        let before = descriptors();
        let (dropped, ledger) = Server::new()
            .engine(Some(kind))
            .block_on(async move {
                assert_eq!(aio::pool().stats().leased, 0);
                let outcome = drop_futures(to, drops).await;
                // Slots come back with the last connection, which closes in the background.
                let end = aio::now() + Duration::from_secs(10);
                while aio::pool().stats().leased != 0 && aio::now() < end {
                    aio::sleep(Duration::from_millis(5)).await;
                }
                assert_eq!(aio::pool().stats().leased, 0, "{kind}: slots are back");
                outcome
            })
            .expect("an engine works");
        assert!(dropped >= drops, "{kind}: {dropped}");
        println!("{kind}: {dropped} futures dropped, {ledger} bytes echoed");
        let handle = server.handle();
        let end = std::time::Instant::now() + Duration::from_secs(10);
        while handle.stats().connections > 0 && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let stats = handle.stats();
        assert_eq!((stats.connections, stats.accepted), (0, stats.closed), "{kind}: every connection has ended");
        assert_eq!(stats.panics, 0);
        assert_eq!(descriptors(), before, "{kind}: no descriptor is left");
        handle.shutdown(Duration::ZERO);
        server.join().expect("it ends");
    });
}

/// Runs connections side by side, each for some messages, until enough futures were dropped.
async fn drop_futures(to: Address, drops: u64) -> (u64, u64) {
    let (dropped, ledger) = (Rc::new(RefCell::new(0_u64)), Rc::new(RefCell::new(0_u64)));
    let mut tasks = Vec::new();
    for number in 0..16 {
        let (to, dropped, ledger) = (to.clone(), Rc::clone(&dropped), Rc::clone(&ledger));
        tasks.push(aio::spawn(async move {
            let dice = Dice::new(number);
            while *dropped.borrow() < drops {
                // A connection, cut off anywhere.
                let life = one_life(&dice, to.clone(), &dropped, &ledger);
                if dice.below(4) == 0 {
                    let cut = Duration::from_millis(dice.below(3));
                    if aio::timeout(cut, life).await.is_err() {
                        *dropped.borrow_mut() += 1;
                    }
                } else {
                    life.await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.expect("it ends well");
    }
    (dropped.take(), ledger.take())
}

async fn one_life(dice: &Dice, to: Address, dropped: &RefCell<u64>, ledger: &RefCell<u64>) {
    macro_rules! counted {
        ($future:expr) => {
            loop {
                match until_dropped(dice, $future).await {
                    Some(output) => break output,
                    None => *dropped.borrow_mut() += 1,
                }
            }
        };
    }
    let mut stream = counted!(aio::connect(to.clone())).expect("it accepts");
    for _ in 0..dice.below(20) {
        let size = 1 + dice.below(20_000) as usize;
        let message = pattern(size);
        counted!(stream.send(message.clone())).expect("it takes data");
        let mut back = vec![0; size];
        counted!(stream.read_exact(&mut back)).expect("it answers");
        assert!(back == message);
        *ledger.borrow_mut() += size as u64;
    }
    match dice.below(3) {
        0 => stream.abort(),
        1 => stream.close().await.expect("it ends in order"),
        _ => drop(stream),
    }
}
