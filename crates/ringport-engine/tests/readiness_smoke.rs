//! The readiness engine against plain sockets of the standard library.

#![cfg(unix)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ringport_engine::engine::readiness::ReadinessEngine;
use ringport_engine::socket::{ip, unix};
use ringport_engine::{
    Chunk, Close, ConnId, Engine, EngineConfig, Event, ListenOptions, ListenerId, Pool, PoolConfig, SendQueue, Socket,
    SocketOptions, Want,
};

const PATIENCE: Duration = Duration::from_secs(10);
/// Set for the copy of this program that runs out of descriptors.
const FEW_DESCRIPTORS: &str = "RINGPORT_TEST_FEW_DESCRIPTORS";

struct Bench {
    engine: ReadinessEngine,
    pool: Pool,
}

impl Bench {
    fn new() -> Self {
        Self::with(PoolConfig::default(), EngineConfig::default())
    }

    fn with(pool: PoolConfig, config: EngineConfig) -> Self {
        let pool = Pool::new(pool);
        Self { engine: ReadinessEngine::open(&config, pool.clone()).unwrap(), pool }
    }

    fn listen(&mut self) -> (ListenerId, SocketAddr) {
        let any = ip(SocketAddr::from(([127, 0, 0, 1], 0)));
        let socket = Socket::listen(&any, &ListenOptions::default(), None).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let listener = self.engine.listen(socket).unwrap();
        self.engine.accept(listener, Want::On);
        (listener, address)
    }

    /// A connection of the engine and its peer, not yet receiving.
    fn pair(&mut self) -> (ConnId, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let conn = self.engine.adopt(listener.accept().unwrap().0.into()).unwrap();
        (conn, peer)
    }

    /// The next event, in this turn or a later one.
    fn event(&mut self) -> Event {
        self.event_within(PATIENCE).expect("an event in time")
    }

    fn event_within(&mut self, time: Duration) -> Option<Event> {
        let deadline = Instant::now() + time;
        loop {
            if let Some(event) = self.engine.next() {
                return Some(event);
            }
            if Instant::now() >= deadline {
                return None;
            }
            self.engine.wait(Some(deadline)).unwrap();
        }
    }

    fn silent(&mut self) {
        let event = self.event_within(Duration::from_millis(50));
        assert!(event.is_none(), "unexpected {event:?}");
    }

    fn expect_accept(&mut self) -> Socket {
        match self.event() {
            Event::Accepted { socket, .. } => socket,
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    fn expect_closed(&mut self, id: ConnId) -> (Option<io::Error>, usize, Option<u64>) {
        match self.event() {
            Event::Closed { conn, why, unsent, unacked } if conn == id => (why, bytes_of(&unsent), unacked),
            other => panic!("expected the end of {id}, got {other:?}"),
        }
    }

    fn expect_bytes(&mut self, id: ConnId, expected: &[u8]) {
        let mut got = Vec::new();
        while got.len() < expected.len() {
            match self.event() {
                Event::Received { conn, buf } if conn == id && !buf.is_empty() => got.extend_from_slice(&buf),
                other => panic!("expected bytes, got {other:?}"),
            }
        }
        assert!(got == expected, "the bytes differ");
    }

    fn expect_peer_closed(&mut self, id: ConnId) {
        match self.event() {
            Event::PeerClosed { conn } if conn == id => {}
            other => panic!("expected a FIN, got {other:?}"),
        }
    }

    /// Echoes until the peer closes; reading pauses while a send is in flight. Returns the sends that had to wait.
    fn echo_to_end(&mut self, id: ConnId) -> usize {
        let (mut queue, mut waited, mut fin) = (SendQueue::new(), 0, false);
        self.engine.receive(id, Want::On);
        loop {
            match self.event() {
                Event::Received { buf, .. } => {
                    queue.push(buf);
                    if !self.engine.send(id, &mut queue).idle {
                        waited += 1;
                        self.engine.receive(id, Want::Paused);
                    }
                }
                Event::Sent { idle: true, .. } => {
                    if self.engine.send(id, &mut queue).idle {
                        self.engine.receive(id, Want::On);
                    }
                }
                Event::Sent { .. } => {}
                Event::PeerClosed { .. } => {
                    fin = true;
                    self.engine.close(id, Close::Plain);
                }
                Event::Closed { why, unsent, .. } => {
                    assert!(fin && why.is_none() && unsent.is_empty());
                    return waited;
                }
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

#[test]
fn echo_small_and_large() {
    let mut bench = Bench::new();
    let (listener, address) = bench.listen();
    for bytes in [1, 64, 16_384, 65_536, 65_537, 3_000_000] {
        let peer = TcpStream::connect(address).unwrap();
        let socket = bench.expect_accept();
        assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(peer.local_addr().unwrap()));
        let conn = bench.engine.adopt(socket).unwrap();
        let peer = exchange(peer.try_clone().unwrap(), peer, pattern(bytes));
        bench.echo_to_end(conn);
        peer.join().unwrap();
    }
    bench.engine.unlisten(listener);
    assert!(matches!(bench.event(), Event::ListenerClosed { listener: closed } if closed == listener));
    assert!(TcpStream::connect(address).is_err());
    let stats = bench.pool.stats();
    assert_eq!((stats.free, stats.copies), (stats.slots, 0));
    assert!(bench.engine.stats().calls > 0 && bench.engine.stats().events > 0);
}

#[test]
fn a_mebibyte_both_ways_through_tiny_buffers() {
    let mut bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let accepted = socket2::Socket::from(listener.accept().unwrap().0);
    accepted.set_send_buffer_size(4096).unwrap();
    socket2::SockRef::from(&peer).set_recv_buffer_size(16_384).unwrap();
    let conn = bench.engine.adopt(accepted.into()).unwrap();
    let peer = exchange(peer.try_clone().unwrap(), peer, pattern(1 << 20));
    assert!(bench.echo_to_end(conn) > 0, "with 4 KiB some sends must wait");
    peer.join().unwrap();
}

/// Several hundred pieces, which is more than one record holds. Counted to the byte, and the FIN comes last.
#[test]
fn a_long_queue_goes_out_in_order_and_then_the_fin() {
    let mut bench = Bench::new();
    let (conn, mut peer) = bench.pair();
    let data = pattern(12 << 20);
    let mut queue = SendQueue::new();
    for piece in data.chunks(9_999) {
        queue.push(piece.to_vec());
    }
    let first = bench.engine.send(conn, &mut queue);
    assert!(!first.idle && !queue.is_empty());
    let before = queue.bytes();
    let refused = bench.engine.send(conn, &mut queue);
    assert_eq!((refused.bytes, refused.idle, queue.bytes()), (0, false, before), "one send in flight (law 4)");

    let reader = thread::spawn(move || {
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        (got, peer)
    });
    let (mut taken, mut finished) = (first.bytes, false);
    while taken < data.len() {
        let Event::Sent { bytes, idle, .. } = bench.event() else { panic!("only Sent is expected") };
        taken += bytes;
        if idle && !queue.is_empty() {
            taken += bench.engine.send(conn, &mut queue).bytes;
        }
        if queue.is_empty() && !finished {
            finished = true;
            bench.engine.shutdown_write(conn);
        }
    }
    assert_eq!(taken, data.len());
    let (got, _peer) = reader.join().unwrap();
    assert!(got == data);
    // The last acknowledgement may come after the last byte was read.
    let end = Instant::now() + PATIENCE;
    while bench.engine.info(conn).unwrap().unacked.is_some_and(|bytes| bytes > 0) {
        assert!(Instant::now() < end, "what was read was never acknowledged");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn pause_and_resume_lose_nothing() {
    let mut bench = Bench::new();
    let (conn, mut peer) = bench.pair();
    peer.write_all(b"before").unwrap();
    bench.silent();
    bench.engine.receive(conn, Want::On);
    bench.expect_bytes(conn, b"before");
    bench.engine.receive(conn, Want::Paused);
    peer.write_all(b"while").unwrap();
    bench.silent();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.silent();
    bench.engine.receive(conn, Want::On);
    bench.expect_bytes(conn, b"while");
    bench.expect_peer_closed(conn);
    bench.silent();
}

/// With two large slots the pool is always low: bytes arrive as copies, and whoever keeps them starves nobody.
#[test]
fn two_slots_are_enough_for_everybody() {
    let pool = PoolConfig::default().small_slots(4).large_slots(2).slot_bytes(64, 4096);
    let mut bench = Bench::with(pool, EngineConfig::default());
    let pairs: Vec<_> = (0..8).map(|_| bench.pair()).collect();
    let data = pattern(20_000);
    for (conn, peer) in &pairs {
        bench.engine.receive(*conn, Want::On);
        (&*peer).write_all(&data).unwrap();
    }
    let mut kept = Vec::new();
    let mut got = vec![Vec::new(); pairs.len()];
    while got.iter().any(|bytes| bytes.len() < data.len()) {
        let Event::Received { conn, buf } = bench.event() else { panic!("only bytes are expected") };
        got[conn.slot()].extend_from_slice(&buf);
        kept.push(buf);
    }
    assert!(got.iter().all(|bytes| *bytes == data));
    assert!(bench.pool.stats().copies > 0);
}

#[test]
fn a_reset_delivers_what_came_before_and_then_its_reason() {
    let mut bench = Bench::new();
    let (conn, mut peer) = bench.pair();
    bench.engine.receive(conn, Want::On);
    bench.silent();
    peer.write_all(b"last words").unwrap();
    reset(peer);
    bench.expect_bytes(conn, b"last words");
    let (why, unsent, _) = bench.expect_closed(conn);
    assert_eq!((why.unwrap().kind(), unsent), (io::ErrorKind::ConnectionReset, 0));
    bench.silent();
    assert_eq!(bench.engine.info(conn).unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
fn a_reset_gives_back_what_was_not_sent() {
    let mut bench = Bench::new();
    let (conn, peer) = bench.pair();
    let mut queue = SendQueue::new();
    for _ in 0..10 {
        queue.push(vec![7; 1 << 20]);
    }
    let progress = bench.engine.send(conn, &mut queue);
    assert!(!progress.idle && queue.is_empty());
    reset(peer);
    let mut taken = progress.bytes;
    let unsent = loop {
        match bench.event() {
            Event::Sent { bytes, .. } => taken += bytes,
            Event::Closed { why, unsent, unacked, .. } => {
                assert!(why.is_some());
                assert!(unacked.is_none_or(|bytes| bytes > 0));
                break bytes_of(&unsent);
            }
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(taken + unsent, 10 << 20);
    assert!(!bench.engine.send(conn, &mut queue).idle, "a stale id sends nothing");
}

/// After a FIN a receive call reports that FIN for ever; a reset that follows must be seen all the same.
#[test]
fn a_reset_after_a_fin_ends_the_connection() {
    let mut bench = Bench::new();
    let (conn, peer) = bench.pair();
    bench.engine.receive(conn, Want::On);
    peer.shutdown(Shutdown::Write).unwrap();
    bench.expect_peer_closed(conn);
    let mut queue = SendQueue::new();
    queue.push("unread");
    assert!(bench.engine.send(conn, &mut queue).idle);
    reset(peer);
    assert!(bench.expect_closed(conn).0.is_some());
}

/// A send that fails reports nothing itself: the bytes before the failure and then its reason follow.
#[test]
fn a_send_to_a_gone_peer_ends_the_connection() {
    let mut bench = Bench::new();
    let (conn, mut peer) = bench.pair();
    bench.engine.receive(conn, Want::On);
    bench.silent();
    peer.write_all(b"farewell").unwrap();
    reset(peer);
    thread::sleep(Duration::from_millis(20));
    let mut queue = SendQueue::new();
    queue.push("hello");
    let progress = bench.engine.send(conn, &mut queue);
    assert_eq!((progress.bytes, progress.idle, queue.bytes()), (0, false, 5));
    bench.expect_bytes(conn, b"farewell");
    let (why, unsent, _) = bench.expect_closed(conn);
    assert!(why.is_some() && unsent == 0);
}

#[test]
fn half_close_lets_the_answer_out() {
    let mut bench = Bench::new();
    let (conn, mut peer) = bench.pair();
    bench.engine.receive(conn, Want::On);
    peer.write_all(b"question").unwrap();
    peer.shutdown(Shutdown::Write).unwrap();
    bench.expect_bytes(conn, b"question");
    bench.expect_peer_closed(conn);
    let mut queue = SendQueue::new();
    queue.push("an ");
    queue.push("answer");
    assert!(bench.engine.send(conn, &mut queue).idle);
    bench.engine.shutdown_write(conn);
    let mut answer = String::new();
    peer.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "an answer");
    queue.push("too late");
    assert!(!bench.engine.send(conn, &mut queue).idle);
    bench.engine.close(conn, Close::Plain);
    let (why, unsent, unacked) = bench.expect_closed(conn);
    assert!(why.is_none() && unsent == 0 && unacked.is_none_or(|bytes| bytes == 0));
}

/// Urgent data ends a receive early, and what follows it makes no new edge.
#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "kqueue does not tell of urgent data")]
fn bytes_behind_urgent_data_are_received() {
    let mut bench = Bench::new();
    let (conn, peer) = bench.pair();
    let peer = socket2::Socket::from(peer);
    peer.send(b"abc").unwrap();
    peer.send_out_of_band(b"!").unwrap();
    peer.send(b"def").unwrap();
    thread::sleep(Duration::from_millis(20));
    bench.engine.receive(conn, Want::On);
    bench.expect_bytes(conn, b"abcdef");
}

#[test]
fn connect_refused_and_connected() {
    let mut bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let conn = bench.engine.connect(&ip(address), &SocketOptions::default()).unwrap();
    let mut queue = SendQueue::new();
    queue.push("early");
    assert!(!bench.engine.send(conn, &mut queue).idle && queue.bytes() == 5, "not before it is connected");
    bench.engine.receive(conn, Want::On);
    assert!(matches!(bench.event(), Event::Connected { conn: other } if other == conn));
    assert!(bench.engine.send(conn, &mut queue).idle);
    bench.engine.shutdown_write(conn);
    let mut peer = listener.accept().unwrap().0;
    let mut got = String::new();
    peer.read_to_string(&mut got).unwrap();
    assert_eq!(got, "early");
    assert_eq!(bench.engine.info(conn).unwrap().peer.as_socket(), Some(address));
    drop((peer, listener));
    bench.expect_peer_closed(conn);

    let refused = bench.engine.connect(&ip(address), &SocketOptions::default()).unwrap();
    queue.push("never");
    assert!(!bench.engine.send(refused, &mut queue).idle);
    let (why, unsent, unacked) = bench.expect_closed(refused);
    assert_eq!((why.unwrap().kind(), unsent, unacked), (io::ErrorKind::ConnectionRefused, 0, Some(0)));
}

#[test]
fn a_closed_slot_is_reused_under_a_new_generation() {
    let mut bench = Bench::new();
    let (first, mut peer) = bench.pair();
    bench.engine.receive(first, Want::On);
    peer.write_all(b"unread").unwrap();
    bench.engine.wait(Some(Instant::now() + PATIENCE)).unwrap();
    bench.engine.close(first, Close::Abort);
    bench.engine.close(first, Close::Plain);
    let (second, _other) = bench.pair();
    assert_ne!(first.slot(), second.slot(), "not before Closed was delivered");
    assert!(bench.expect_closed(first).0.is_none());
    assert_eq!(peer.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);

    let (third, mut peer) = bench.pair();
    assert_eq!(third.slot(), first.slot());
    assert_ne!(third, first);
    bench.engine.close(first, Close::Abort);
    bench.engine.receive(first, Want::On);
    peer.write_all(b"alive").unwrap();
    bench.engine.receive(third, Want::On);
    bench.expect_bytes(third, b"alive");
    bench.silent();
}

/// A connection with a lot to say gets its share of a turn and no more (law 10).
#[test]
fn a_turn_is_bounded() {
    let mut config = EngineConfig::default();
    config.bytes_per_turn = 8192;
    config.events_per_turn = 3;
    let mut bench = Bench::with(PoolConfig::default().slot_bytes(64, 4096), config);
    let (busy, mut peer) = bench.pair();
    let (quiet, mut other) = bench.pair();
    let data = pattern(40_000);
    peer.write_all(&data).unwrap();
    other.write_all(b"me too").unwrap();
    thread::sleep(Duration::from_millis(20));
    bench.engine.receive(busy, Want::On);
    bench.engine.receive(quiet, Want::On);
    let (mut got, mut before_quiet) = (Vec::new(), None);
    while got.len() < data.len() {
        let start = Instant::now();
        bench.engine.wait(Some(start + Duration::from_millis(500))).unwrap();
        assert!(start.elapsed() < Duration::from_millis(400), "leftovers keep wait awake");
        let mut events = 0;
        while let Some(event) = bench.engine.next() {
            events += 1;
            match event {
                Event::Received { conn, buf } if conn == busy => got.extend_from_slice(&buf),
                Event::Received { .. } => before_quiet = Some(got.len()),
                other => panic!("unexpected {other:?}"),
            }
        }
        assert!(events <= 3);
    }
    assert!(got == data);
    assert!(before_quiet.is_some_and(|bytes| bytes <= 8192), "{before_quiet:?}");
}

#[test]
fn a_waker_rings_from_a_thread_and_outlives_the_engine() {
    let mut bench = Bench::new();
    let waker = bench.engine.waker();
    let ringer = waker.clone();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        ringer.wake();
        ringer.wake();
    });
    assert!(matches!(bench.event(), Event::Woken));
    thread.join().unwrap();
    while bench.event_within(Duration::from_millis(20)).is_some() {}
    waker.wake();
    assert!(matches!(bench.event(), Event::Woken));

    let (conn, mut peer) = bench.pair();
    bench.engine.receive(conn, Want::On);
    peer.write_all(b"kept").unwrap();
    let Event::Received { buf, .. } = bench.event() else { panic!("expected bytes") };
    drop(bench);
    waker.wake();
    assert_eq!(&buf[..], b"kept");
    assert_eq!(peer.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_deadline_is_met_without_spinning() {
    let mut bench = Bench::new();
    let start = Instant::now();
    bench.silent();
    assert!(start.elapsed() >= Duration::from_millis(50));
    assert!(bench.engine.stats().waits <= 5);
}

#[test]
fn unix_sockets() {
    let path = std::env::temp_dir().join(format!("ringport-readiness-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let address = unix(&path).unwrap();
    let mut bench = Bench::new();
    let listener = bench.engine.listen(Socket::listen(&address, &ListenOptions::default(), None).unwrap()).unwrap();
    bench.engine.accept(listener, Want::On);
    let conn = bench.engine.connect(&address, &SocketOptions::default()).unwrap();
    let (mut accepted, mut connected) = (None, false);
    while accepted.is_none() || !connected {
        match bench.event() {
            Event::Accepted { socket, .. } => accepted = Some(socket),
            Event::Connected { conn: other } => connected = other == conn,
            other => panic!("unexpected {other:?}"),
        }
    }
    let far = bench.engine.adopt(accepted.unwrap()).unwrap();
    let mut queue = SendQueue::new();
    queue.push("over a file");
    assert!(bench.engine.send(conn, &mut queue).idle);
    bench.engine.receive(far, Want::On);
    bench.expect_bytes(far, b"over a file");
    bench.engine.close(far, Close::Plain);
    bench.engine.close(conn, Close::Plain);
    bench.expect_closed(far);
    bench.expect_closed(conn);

    let peer = UnixStream::connect(&path).unwrap();
    let socket = bench.expect_accept();
    let conn = bench.engine.adopt(socket).unwrap();
    let peer = exchange(peer.try_clone().unwrap(), peer, pattern(2 << 20));
    bench.echo_to_end(conn);
    peer.join().unwrap();
    std::fs::remove_file(&path).unwrap();
    let gone = bench.engine.connect(&address, &SocketOptions::default()).unwrap();
    assert_eq!(bench.expect_closed(gone).0.unwrap().kind(), io::ErrorKind::NotFound);
}

/// Runs out of descriptors in a process of its own: accepting backs off, others go on, and a descriptor that the engine
/// closes is used at once.
#[test]
fn out_of_descriptors() {
    if std::env::var_os(FEW_DESCRIPTORS).is_some() {
        return with_few_descriptors();
    }
    let script = "ulimit -n 24 && exec \"$0\" --exact out_of_descriptors --nocapture --test-threads 1";
    let program = std::env::current_exe().unwrap();
    let output = Command::new("sh").args(["-c", script]).arg(program).env(FEW_DESCRIPTORS, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

fn with_few_descriptors() {
    let mut bench = Bench::new();
    let (_, address) = bench.listen();
    let (mut peers, mut conns) = (Vec::new(), Vec::new());
    // Two peers for each accepted connection, so that the kernel's queue is not empty when the descriptors run out.
    let failure = loop {
        peers.extend(TcpStream::connect(address));
        peers.extend(TcpStream::connect(address));
        match bench.event() {
            Event::Accepted { socket, .. } => conns.push(bench.engine.adopt(socket).unwrap()),
            Event::AcceptFailed { error, .. } => break error,
            other => panic!("unexpected {other:?}"),
        }
    };
    assert_eq!(failure.raw_os_error(), Some(libc::EMFILE));
    assert_eq!(bench.engine.stats().accepts_failed, 1);

    // Live connections go on while the listener rests, and it tries again only a few times.
    bench.engine.receive(conns[0], Want::On);
    peers[0].write_all(b"still here").unwrap();
    let (start, mut failures, mut bytes) = (Instant::now(), 0, 0);
    while let Some(left) = Duration::from_millis(100).checked_sub(start.elapsed()) {
        match bench.event_within(left) {
            Some(Event::AcceptFailed { .. }) => failures += 1,
            Some(Event::Received { buf, .. }) => bytes += buf.len(),
            Some(other) => panic!("unexpected {other:?}"),
            None => {}
        }
    }
    assert_eq!(bytes, 10);
    assert!((1..=4).contains(&failures), "{failures} failures");

    let closing = Instant::now();
    bench.engine.close(conns[0], Close::Plain);
    bench.expect_closed(conns[0]);
    bench.expect_accept();
    assert!(closing.elapsed() < Duration::from_millis(30), "a freed descriptor is used at once");
}

fn bytes_of(pieces: &[Chunk]) -> usize {
    pieces.iter().map(Chunk::len).sum()
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn reset(peer: TcpStream) {
    socket2::Socket::from(peer).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Writes `data` and a FIN from one thread while another reads it back to the end.
fn exchange<S>(mut writer: S, mut reader: S, data: Vec<u8>) -> JoinHandle<()>
where
    S: Read + Write + Send + Into<socket2::Socket> + 'static,
{
    thread::spawn(move || {
        let sent = data.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.into().shutdown(Shutdown::Write).unwrap();
        });
        // A late reader fills every buffer on the way, so that sends have to wait.
        thread::sleep(Duration::from_millis(20));
        let mut echoed = Vec::new();
        reader.read_to_end(&mut echoed).unwrap();
        writing.join().unwrap();
        assert!(echoed == data, "the echo differs: {} of {} bytes", echoed.len(), data.len());
    })
}
