//! The engine against sockets of the standard library. The laws are tested by the conformance suite on every engine; here
//! stands what is special to this one: modes, starving, masks, cancellation and what the kernel holds at the end.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Conn, UringEngine};
use crate::buffer::{Buf, Pool, PoolConfig, SendQueue};
use crate::engine::contract::{Close, Engine, EngineConfig, Event, Features, Want};
use crate::id::{ConnId, ListenerId};
use crate::socket::{ListenOptions, Socket, SocketOptions};

const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Session {
    queue: SendQueue,
    busy: bool,
    ended: bool,
    received: u64,
}

/// An engine with a listener, driven as an echo server.
struct Server {
    engine: UringEngine,
    listener: ListenerId,
    address: SocketAddr,
    sessions: HashMap<ConnId, Session>,
    closed: Vec<(ConnId, Option<i32>, usize)>,
}

impl Server {
    fn new(features: Features, pool: PoolConfig) -> Self {
        let config = EngineConfig { features, ..EngineConfig::default() };
        Self::with(&config, pool)
    }

    fn with(config: &EngineConfig, pool: PoolConfig) -> Self {
        let mut engine = UringEngine::open(config, Pool::new(pool)).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let socket = Socket::listen(&any.into(), &ListenOptions::default(), None).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = engine.listen(socket).unwrap();
        engine.accept(listener, Want::On);
        Self { engine, listener, address, sessions: HashMap::new(), closed: Vec::new() }
    }

    /// One turn. Events that the echo has no use for are returned.
    fn turn(&mut self) -> Vec<Event> {
        self.engine.wait(Some(Instant::now() + Duration::from_millis(50))).unwrap();
        let mut others = Vec::new();
        while let Some(event) = self.engine.next() {
            match event {
                Event::Accepted { socket, .. } => {
                    let conn = self.engine.adopt(socket).unwrap();
                    self.engine.receive(conn, Want::On);
                    assert!(self.sessions.insert(conn, Session::default()).is_none(), "an id was used twice");
                }
                Event::Received { conn, buf } => {
                    assert!(!buf.is_empty());
                    let session = self.sessions.get_mut(&conn).expect("no event after Closed");
                    session.received += buf.len() as u64;
                    session.queue.push(buf);
                    self.pump(conn);
                }
                Event::Sent { conn, idle, .. } => {
                    self.sessions.get_mut(&conn).expect("no event after Closed").busy = !idle;
                    self.pump(conn);
                }
                Event::PeerClosed { conn } => {
                    self.sessions.get_mut(&conn).expect("no event after Closed").ended = true;
                    self.pump(conn);
                }
                Event::Closed { conn, why, unsent, .. } => {
                    self.sessions.remove(&conn).expect("Closed comes once");
                    let unsent = unsent.iter().map(crate::Chunk::len).sum();
                    self.closed.push((conn, why.and_then(|why| why.raw_os_error()), unsent));
                }
                other => others.push(other),
            }
        }
        others
    }

    fn pump(&mut self, conn: ConnId) {
        let Some(session) = self.sessions.get_mut(&conn) else { return };
        if !session.busy && !session.queue.is_empty() {
            session.busy = !self.engine.send(conn, &mut session.queue).idle;
        }
        if session.ended && !session.busy && session.queue.is_empty() {
            self.engine.close(conn, Close::Plain);
        }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            self.turn();
        }
    }

    fn accept_one(&mut self) -> (TcpStream, ConnId) {
        let before: Vec<ConnId> = self.sessions.keys().copied().collect();
        let peer = TcpStream::connect(self.address).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        self.until("a connection", |server| server.sessions.len() > before.len());
        let conn = *self.sessions.keys().find(|id| !before.contains(id)).unwrap();
        (peer, conn)
    }
}

/// Byte `index` of a stream that no shift and no swap leaves as it is.
fn pattern(index: u64) -> u8 {
    (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

/// Sends messages of the given sizes, several deep, and checks that each byte comes back in its place.
fn check_echo(address: SocketAddr, sizes: Vec<usize>) {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let total: usize = sizes.iter().sum();
    let mut writer = stream.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut sent = 0;
        for size in sizes {
            let message: Vec<u8> = (sent..sent + size as u64).map(pattern).collect();
            writer.write_all(&message).unwrap();
            sent += size as u64;
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    (&stream).take(total as u64 + 1).read_to_end(&mut got).unwrap();
    sender.join().unwrap();
    assert_eq!(got.len(), total);
    let wrong = got.iter().enumerate().position(|(index, byte)| *byte != pattern(index as u64));
    assert_eq!(wrong, None, "first wrong byte");
}

fn ping_pong(stream: &mut TcpStream, size: usize, times: usize) {
    let (message, mut reply) = (vec![7; size], vec![0; size]);
    for _ in 0..times {
        stream.write_all(&message).unwrap();
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(message, reply);
    }
}

pub(super) fn all_masks() -> Vec<Features> {
    // What measuring decides depends on the machine; without it the mode follows the sizes alone.
    let all = Features { measured_receive: false, ..Features::default() };
    vec![
        all,
        Features { multishot_accept: false, ..all },
        Features { multishot_receive: false, ..all },
        Features { direct_receive: false, ..all },
        Features { multishot_receive: false, direct_receive: false, ..all },
        Features { defer_taskrun: false, ..all },
        Features::default(),
        Features { no_iowait: false, ..all },
        Features {
            multishot_accept: false,
            multishot_receive: false,
            direct_receive: false,
            measured_receive: false,
            defer_taskrun: false,
            no_iowait: false,
            ..all
        },
    ]
}

fn check_mixed_sizes(mut server: Server) -> Server {
    let address = server.address;
    let clients: Vec<_> = (0..4_usize)
        .map(|number| {
            let mut sizes = vec![1, 64, 100 + number, 4096, 1 << 20];
            sizes.extend(std::iter::repeat_n(16 * 1024 + number, 40));
            sizes.extend(std::iter::repeat_n(33, 300));
            sizes.extend([70_000, 3, 200_000, 5]);
            thread::spawn(move || check_echo(address, sizes))
        })
        .collect();
    server.until("the echoes", |server| server.closed.len() == 4);
    for client in clients {
        client.join().unwrap();
    }
    assert!(server.closed.iter().all(|(_, why, unsent)| why.is_none() && *unsent == 0));
    server
}

#[test]
fn every_mask_and_way_of_sending_echoes_each_byte() {
    for features in all_masks() {
        for send_at_once in [false, true] {
            let mut server = Server::new(features, PoolConfig::default());
            server.engine.send_at_once = send_at_once;
            let server = check_mixed_sizes(server);
            let changes = server.engine.stats().mode_changes;
            let fixed = !features.measured_receive;
            assert!(!fixed || (changes > 0) == (features.multishot_receive && features.direct_receive), "{features:?}");
        }
    }
}

#[test]
fn a_dry_pool_starves_nobody_for_ever() {
    for features in [Features::default(), Features { direct_receive: false, ..Features::default() }] {
        let pool = PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(256, 1024);
        let mut server = Server::new(features, pool);
        let address = server.address;
        let clients: Vec<_> = (0..40)
            .map(|number| thread::spawn(move || check_echo(address, vec![1 + number, 5_000, 40, 60_000])))
            .collect();
        server.until("the echoes", |server| server.closed.len() == 40);
        for client in clients {
            client.join().unwrap();
        }
        let (stats, pool) = (server.engine.stats(), server.engine.pool.stats());
        assert!(stats.starved > 0, "the test did not starve anybody: {stats:?}");
        assert_eq!(pool.leased, 0);
    }
}

#[test]
fn small_budgets_still_deliver_everything() {
    let config = EngineConfig { events_per_turn: 1, bytes_per_turn: 1, ..EngineConfig::default() };
    check_mixed_sizes(Server::with(&config, PoolConfig::default().slot_bytes(512, 4096)));
}

#[test]
fn the_mode_follows_the_sizes_both_ways() {
    let features = Features { measured_receive: false, ..Features::default() };
    let mut server = Server::new(features, PoolConfig::default());
    let address = server.address;
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        for _ in 0..3 {
            ping_pong(&mut stream, 20_000, 20);
            ping_pong(&mut stream, 10, 200);
        }
    });
    server.until("the end", |server| server.closed.len() == 1);
    client.join().unwrap();
    assert_eq!(server.engine.stats().mode_changes, 6);
}

#[test]
fn a_paused_connection_receives_nothing_and_loses_nothing() {
    for features in all_masks() {
        let mut server = Server::new(features, PoolConfig::default());
        let (mut peer, conn) = server.accept_one();
        for round in 0..6 {
            // Small, then large: the pauses fall into both modes.
            let size = if round % 2 == 0 { 10 } else { 30_000 };
            server.engine.receive(conn, Want::Paused);
            server.turn();
            let before = server.sessions[&conn].received;
            peer.write_all(&vec![1; size]).unwrap();
            server.turn();
            server.turn();
            assert_eq!(server.sessions[&conn].received, before);
            server.engine.receive(conn, Want::On);
            server.until("the bytes", |server| server.sessions[&conn].received == before + size as u64);
            server.until("the echo", |server| !server.sessions[&conn].busy);
            peer.read_exact(&mut vec![0; size]).unwrap();
        }
        // A wish changed several times in one turn.
        for _ in 0..3 {
            server.engine.receive(conn, Want::Paused);
            server.engine.receive(conn, Want::On);
        }
        peer.write_all(b"again").unwrap();
        server.until("the last bytes", |server| server.sessions[&conn].received == 3 * 30_010 + 5);
    }
}

#[test]
fn closing_with_a_receive_armed_leaves_the_next_connection_alone() {
    for features in all_masks() {
        let mut server = Server::new(features, PoolConfig::default());
        for _ in 0..20 {
            let (mut peer, conn) = server.accept_one();
            server.engine.close(conn, Close::Plain);
            server.engine.close(conn, Close::Abort);
            server.engine.receive(conn, Want::On);
            // These bytes belong to the closed connection and must vanish with it.
            let _ = peer.write_all(b"stale");
            server.until("Closed", |server| !server.sessions.contains_key(&conn));
            let (mut next, _) = server.accept_one();
            next.write_all(b"fresh").unwrap();
            next.shutdown(Shutdown::Write).unwrap();
            let count = server.closed.len();
            server.until("the echo", |server| server.closed.len() > count);
            let mut got = Vec::new();
            next.read_to_end(&mut got).unwrap();
            assert_eq!(got, b"fresh");
            assert_eq!(peer.read(&mut [0; 8]).unwrap_or(0), 0);
        }
    }
}

#[test]
fn a_reset_closes_with_its_error_after_the_bytes() {
    for features in all_masks() {
        let mut server = Server::new(features, PoolConfig::default());
        let (mut peer, conn) = server.accept_one();
        peer.write_all(b"last words").unwrap();
        server.until("the bytes", |server| server.sessions[&conn].received == 10);
        server.until("the echo", |server| !server.sessions[&conn].busy);
        let mut echo = [0; 10];
        peer.read_exact(&mut echo).unwrap();
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        server.until("Closed", |server| server.closed.len() == 1);
        assert_eq!(server.closed[0].1, Some(libc::ECONNRESET), "{features:?}");
    }
}

#[test]
fn a_send_that_never_finishes_comes_back_with_closed() {
    for send_at_once in [false, true] {
        let mut server = Server::new(Features::default(), PoolConfig::default());
        server.engine.send_at_once = send_at_once;
        let (mut peer, conn) = server.accept_one();
        let mut queue = SendQueue::new();
        (0..100).for_each(|_| queue.push(vec![9; 1 << 20]));
        let (mut taken, mut sent) = (0, 0);
        let before = queue.bytes();
        let progress = server.engine.send(conn, &mut queue);
        taken += before - queue.bytes();
        sent += progress.bytes as u64;
        assert!(!progress.idle);
        // While one is in flight, another takes nothing.
        assert_eq!(server.engine.send(conn, &mut queue).bytes, 0);
        assert_eq!(taken, before - queue.bytes());
        server.engine.wait(Some(Instant::now() + Duration::from_millis(100))).unwrap();
        while let Some(event) = server.engine.next() {
            if let Event::Sent { bytes, .. } = event {
                sent += bytes as u64;
            }
        }
        assert!(sent > 0);
        server.engine.close(conn, Close::Abort);
        server.until("Closed", |server| server.closed.len() == 1);
        assert!(server.closed[0].2 as u64 <= taken - sent);
        let mut got = Vec::new();
        let _ = peer.read_to_end(&mut got);
        assert!(got.len() as u64 <= taken - server.closed[0].2 as u64);
    }
}

#[test]
fn a_half_closed_connection_still_sends() {
    let mut server = Server::new(Features::default(), PoolConfig::default());
    let (mut peer, conn) = server.accept_one();
    let mut queue = SendQueue::new();
    queue.push(vec![3; 3 << 20]);
    let _ = server.engine.send(conn, &mut queue);
    server.engine.shutdown_write(conn);
    assert!(!server.engine.send(conn, &mut queue).idle);
    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert_eq!(got.len(), 3 << 20);
        peer.write_all(b"thanks").unwrap();
        drop(peer);
    });
    server.until("the answer", |server| server.sessions.get(&conn).is_some_and(|session| session.received == 6));
    reader.join().unwrap();
    server.until("Closed", |server| {
        server.engine.close(conn, Close::Plain);
        server.closed.len() == 1
    });
    assert_eq!(server.closed[0].1, None);
}

#[test]
fn connects_succeed_fail_and_are_given_up() {
    let mut server = Server::new(Features::default(), PoolConfig::default());
    let target = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = SocketOptions::default();
    let conn = server.engine.connect(&target.local_addr().unwrap().into(), &options).unwrap();
    server.sessions.insert(conn, Session::default());
    server.engine.receive(conn, Want::On);
    // The connect leaves with the next turn.
    let mut connected = server.turn().iter().any(|event| matches!(event, Event::Connected { .. }));
    let (mut peer, _) = target.accept().unwrap();
    peer.write_all(b"hello").unwrap();
    while server.sessions[&conn].received < 5 {
        connected |= server.turn().iter().any(|event| matches!(event, Event::Connected { conn: id } if *id == conn));
    }
    assert!(connected);
    assert_eq!(server.engine.info(conn).unwrap().peer.as_socket(), Some(target.local_addr().unwrap()));

    let nobody = target.local_addr().unwrap();
    drop(target);
    let refused = server.engine.connect(&nobody.into(), &options).unwrap();
    server.sessions.insert(refused, Session::default());
    server.until("the refusal", |server| server.closed.len() == 1);
    assert_eq!(server.closed[0].1, Some(libc::ECONNREFUSED));

    let given_up = server.engine.connect(&SocketAddr::from(([10, 255, 255, 1], 9)).into(), &options).unwrap();
    server.sessions.insert(given_up, Session::default());
    server.engine.close(given_up, Close::Plain);
    server.until("the end", |server| server.closed.len() == 2);
    assert_eq!(server.closed[1].0, given_up);
    assert!(server.engine.info(given_up).is_err());
}

#[test]
fn a_waker_ends_the_wait_again_and_again() {
    let mut server = Server::new(Features::default(), PoolConfig::default());
    let waker = server.engine.waker();
    for _ in 0..3 {
        let waker = waker.clone();
        let other = thread::spawn(move || waker.wake());
        server.engine.wait(Some(Instant::now() + PATIENCE)).unwrap();
        other.join().unwrap();
        let mut woken = 0;
        while let Some(event) = server.engine.next() {
            woken += u32::from(matches!(event, Event::Woken));
        }
        assert_eq!(woken, 1);
    }
    drop(server);
    waker.wake();
}

#[test]
fn an_engine_dropped_in_the_middle_gives_every_slot_back() {
    for features in all_masks() {
        let mut server = Server::new(features, PoolConfig::default());
        let pool = (*server.engine.pool).clone();
        let (mut peer, conn) = server.accept_one();
        let mut kept: Option<Buf> = None;
        peer.write_all(b"kept").unwrap();
        while kept.is_none() {
            server.engine.wait(None).unwrap();
            while let Some(event) = server.engine.next() {
                if let Event::Received { buf, .. } = event {
                    kept = Some(buf);
                }
            }
        }
        let mut queue = SendQueue::new();
        queue.push(vec![1; 64 << 20]);
        let _ = server.engine.send(conn, &mut queue);
        let _ = server.engine.connect(&SocketAddr::from(([10, 255, 255, 1], 9)).into(), &SocketOptions::default());
        server.engine.wait(Some(Instant::now())).unwrap();
        let start = Instant::now();
        drop(server);
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!((pool.stats().leased, pool.stats().lent), (1, 0));
        drop(pool);
        assert_eq!(&*kept.unwrap(), b"kept");
        let mut rest = Vec::new();
        let _ = peer.read_to_end(&mut rest);
    }
}

#[test]
fn a_forgotten_engine_harms_nobody() {
    let mut server = Server::new(Features::default(), PoolConfig::default());
    let (mut peer, _) = server.accept_one();
    server.turn();
    let _forgotten = std::mem::ManuallyDrop::new(server.engine);
    // The kernel still receives into the lent slots.
    peer.write_all(&[5; 10_000]).unwrap();
    thread::sleep(Duration::from_millis(10));
}

#[test]
fn a_listener_pauses_and_closes() {
    for multishot_accept in [true, false] {
        let mut server = Server::new(Features { multishot_accept, ..Features::default() }, PoolConfig::default());
        let _peer = server.accept_one();
        server.engine.accept(server.listener, Want::Paused);
        server.turn();
        let waiting = TcpStream::connect(server.address).unwrap();
        server.turn();
        server.turn();
        assert_eq!(server.sessions.len(), 1);
        server.engine.accept(server.listener, Want::On);
        server.until("the one that waited", |server| server.sessions.len() == 2);
        server.engine.unlisten(server.listener);
        let mut gone = false;
        while !gone {
            gone = server.turn().iter().any(|event| matches!(event, Event::ListenerClosed { .. }));
        }
        assert!(TcpStream::connect(server.address).is_err());
        drop(waiting);
    }
}

/// Runs one test of this module in a process of its own, where it may change limits.
fn alone(test: &str) -> bool {
    if std::env::var_os("RINGPORT_ALONE").is_some() {
        return false;
    }
    let name = format!("engine::uring::tests::{test}");
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name, "--nocapture", "--test-threads=1"])
        .env("RINGPORT_ALONE", "1")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
    true
}

#[test]
fn out_of_descriptors_means_a_pause_and_then_service() {
    if alone("out_of_descriptors_means_a_pause_and_then_service") {
        return;
    }
    // An accept keeps the limit of the moment it was armed, so that lowering it later would not be felt.
    limit_descriptors(64);
    for multishot_accept in [true, false] {
        let mut server = Server::new(Features { multishot_accept, ..Features::default() }, PoolConfig::default());
        let (mut first, conn) = server.accept_one();
        let mut ballast: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
        ballast.truncate(ballast.len() - 2);
        let peers = [TcpStream::connect(server.address).unwrap(), TcpStream::connect(server.address).unwrap()];
        assert!(peers[0].try_clone().is_err(), "there must be no descriptor left");
        let start = Instant::now();
        let mut reported = 0;
        while start.elapsed() < Duration::from_millis(300) {
            let events = server.turn();
            reported += events.iter().filter(|event| matches!(event, Event::AcceptFailed { .. })).count();
            if reported > 0 {
                ping_pong_with(&mut server, &mut first, conn);
            }
        }
        assert!(reported > 0);
        let failures = server.engine.stats().accepts_failed;
        assert!((1..12).contains(&failures), "{failures} failures in 300 ms");
        drop(ballast);
        server.until("service again", |server| server.sessions.len() == 3);
        drop(peers);
    }
}

fn limit_descriptors(count: u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the limit lives through both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit), 0);
        limit.rlim_cur = count;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit), 0);
    }
}

/// One echo on a connection that lives while others cannot be accepted.
fn ping_pong_with(server: &mut Server, peer: &mut TcpStream, conn: ConnId) {
    let before = server.sessions[&conn].received;
    peer.write_all(b"!").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while server.sessions[&conn].received == before {
        assert!(Instant::now() < deadline);
        server.turn();
    }
}

/// The result of a send without a copy is not its end: the slot stays on loan until the notification, which is what the
/// `Sent` comes with. A send that fails keeps to the same order.
#[test]
fn a_piece_on_loan_waits_for_its_notification() {
    for broken in [false, true] {
        let config = EngineConfig { zero_copy_above: Some(1), ..EngineConfig::default() };
        let mut server = Server::with(&config, PoolConfig::default());
        let (peer, conn) = server.accept_one();
        let engine = &mut server.engine;
        engine.receive(conn, Want::Paused);
        engine.wait(Some(Instant::now())).unwrap();
        while engine.next().is_some() {}
        if broken {
            socket2::SockRef::from(engine.conns.get(conn).unwrap().fd.as_ref().unwrap())
                .shutdown(Shutdown::Write)
                .unwrap();
        }
        let mut buf = engine.pool.writable(10_000).unwrap();
        buf.append(&[7; 10_000]);
        let mut queue = SendQueue::new();
        queue.push(buf);
        assert!(!engine.send(conn, &mut queue).idle);
        let (mut sent, mut completions) = (0, Vec::new());
        let deadline = Instant::now() + PATIENCE;
        while engine.loans.len() > 0 {
            assert!(Instant::now() < deadline && sent == 0, "{completions:?}");
            assert_eq!(engine.pool.stats().leased, 1, "given back while the kernel reads it: {completions:?}");
            engine.ring.enter(super::ring::Block::AtMost(Duration::from_millis(50))).unwrap();
            while let Some(completion) = engine.ring.pop() {
                if completion.tag >> 60 == super::Op::SendZc as u64 {
                    completions.push((completion.result, completion.more()));
                }
                if let Some(Event::Sent { bytes, idle, .. }) = engine.translate(completion) {
                    assert!(idle);
                    sent += bytes;
                }
            }
        }
        assert_eq!(sent, if broken { 0 } else { 10_000 });
        assert!(broken || completions.len() == 2, "a result and a notification: {completions:?}");
        assert!(completions.iter().rev().skip(1).all(|(_, more)| *more), "{completions:?}");
        drop(peer);
        server.until("the end", |server| {
            server.engine.close(conn, Close::Abort);
            server.closed.len() == 1
        });
        assert_eq!(server.engine.pool.stats().leased, 0);
    }
}

#[test]
fn a_connection_is_small() {
    assert!(size_of::<Conn>() <= 96, "{} bytes", size_of::<Conn>());
}
