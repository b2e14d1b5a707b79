//! Datagram sockets: handlers, peers with a state, limits, and streams beside them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ringport::{
    Buf, Connection, Datagram, DatagramHandler, DatagramOptions, Datagrams, EngineKind, Handler, OptionName, Rate,
    Refusal, SendOutcome, Server, ServerHandle, Simulation, SocketOption, WorkerStats,
};

use crate::stage::{LIMIT, Stage, stages};

stages!(
    every_datagram_is_answered_with_its_peers_count,
    silent_peers_are_forgotten,
    one_peer_too_many_is_dropped,
    a_full_queue_refuses_and_says_when_there_is_room,
    a_panic_costs_its_datagram_alone,
    an_unreachable_peer_is_told,
    one_peer_of_an_address_too_many_is_dropped,
    a_peer_over_its_rate_loses_what_is_too_much,
    the_memory_limit_holds_for_datagrams,
    handlers_set_options_of_their_socket,
);

/// What a test's handlers saw.
#[derive(Default, Debug)]
struct Seen {
    received: Vec<(SocketAddr, Vec<u8>)>,
    expired: BTreeMap<SocketAddr, usize>,
    failed: Vec<Option<SocketAddr>>,
    writable: usize,
    refused: usize,
}

type Log = Arc<Mutex<Seen>>;

fn see(log: &Log) -> MutexGuard<'_, Seen> {
    log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Answers each datagram with the number of those that came from the same peer.
struct Counting(Log);

impl DatagramHandler for Counting {
    type Peer = u32;

    fn datagram(&mut self, socket: &mut Datagrams<'_>, peer: &mut u32, datagram: Datagram) {
        assert!(*datagram.data != *b"panic", "the test asked for it");
        assert!(!datagram.truncated);
        *peer += 1;
        let answer = [&peer.to_be_bytes()[..], &datagram.data].concat();
        see(&self.0).received.push((datagram.from, datagram.data.to_vec()));
        assert!(socket.send_to(datagram.from, answer).is_queued());
    }

    fn expired(&mut self, _: &mut Datagrams<'_>, address: SocketAddr, _: u32) {
        *see(&self.0).expired.entry(address).or_default() += 1;
    }
}

type Act = Arc<dyn Fn(&mut Datagrams<'_>, Option<Datagram>) + Send + Sync>;

/// Logs everything, and acts when it is opened and when a datagram comes.
#[derive(Clone)]
struct Asker {
    log: Log,
    act: Act,
}

impl DatagramHandler for Asker {
    type Peer = ();

    fn open(&mut self, socket: &mut Datagrams<'_>) {
        (self.act)(socket, None);
    }

    fn datagram(&mut self, socket: &mut Datagrams<'_>, _: &mut (), datagram: Datagram) {
        see(&self.log).received.push((datagram.from, datagram.data.to_vec()));
        (self.act)(socket, Some(datagram));
    }

    fn failed(&mut self, _: &mut Datagrams<'_>, to: Option<SocketAddr>, _: &std::io::Error) {
        see(&self.log).failed.push(to);
    }

    fn writable(&mut self, _: &mut Datagrams<'_>) {
        see(&self.log).writable += 1;
    }
}

fn asker(log: &Log, act: impl Fn(&mut Datagrams<'_>, Option<Datagram>) + Send + Sync + 'static) -> Asker {
    Asker { log: log.clone(), act: Arc::new(act) }
}

/// Plays a server and askers until `done`, then ends all in order. Returns the server's counters.
fn play(
    stage: &Stage,
    server: impl FnOnce(&str) -> Server,
    askers: impl FnOnce(SocketAddr) -> Server,
    done: impl Fn(&ServerHandle) -> bool,
) -> WorkerStats {
    match stage {
        Stage::Real(kind) => {
            let server = server("127.0.0.1:0").engine(Some(*kind)).start().expect("the server starts");
            let askers = askers(server.udp_addresses()[0]).engine(Some(*kind)).start().expect("the askers start");
            let (handle, end) = (server.handle(), Instant::now() + LIMIT);
            while !done(&handle) {
                assert!(Instant::now() < end, "{kind}: nothing more happens: {:?}", handle.stats());
                std::thread::sleep(Duration::from_millis(1));
            }
            askers.handle().shutdown(Duration::ZERO);
            askers.join().expect("the askers end in order");
            handle.shutdown(Duration::ZERO);
            server.join().expect("the server ends in order");
            handle.stats()
        }
        Stage::Sim { seed, faults } => {
            let mut faults = faults.clone();
            faults.buffer_max = 1 << 20;
            let mut simulation = Simulation::new(*seed, faults);
            let handle = simulation.serve(server("127.0.0.1:1000")).expect("the server starts");
            let address = "127.0.0.1:1000".parse().expect("an address");
            let other = simulation.serve(askers(address)).expect("the askers start");
            let finished =
                simulation.run_until(|| done(&handle)).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(finished, "seed {seed}: all ended before the test was done");
            other.shutdown(Duration::ZERO);
            handle.shutdown(Duration::ZERO);
            let ended = simulation.run_until(|| false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert!(!ended);
            handle.stats()
        }
    }
}

fn ask(socket: &mut Datagrams<'_>, to: SocketAddr, data: impl Into<ringport::Chunk>) {
    assert!(socket.send_to(to, data).is_queued());
}

fn every_datagram_is_answered_with_its_peers_count(stage: &Stage) {
    let (log, answers) = (Log::default(), Log::default());
    let (served, asked) = (log.clone(), answers.clone());
    let stats = play(
        stage,
        |at| Server::new().udp(at, move || Counting(served.clone())),
        |to| {
            let asker = asker(&asked, move |socket, datagram| {
                // Each answer is followed by the next question, up to twenty.
                let number = datagram.map_or(0, |datagram| datagram.data[3]);
                if number < 20 {
                    ask(socket, to, vec![number; 64]);
                }
            });
            let other = asker.clone();
            Server::new().udp("127.0.0.1:0", move || asker.clone()).udp("127.0.0.1:0", move || other.clone())
        },
        |_| see(&answers).received.len() >= 40,
    );
    let answers = see(&answers);
    let mut counts: Vec<u8> = answers.received.iter().map(|(_, data)| data[3]).collect();
    counts.sort_unstable();
    let wanted: Vec<u8> = (1..=20).flat_map(|number| [number; 2]).collect();
    assert_eq!(counts, wanted, "each peer has a count of its own");
    assert!(answers.received.iter().all(|(_, data)| data[4..] == vec![data[3] - 1; 64]));
    assert_eq!((stats.datagrams_received, stats.datagrams_sent, stats.peers), (40, 40, 2));
    assert_eq!((stats.datagrams_failed, stats.datagrams_dropped, stats.peers_refused), (0, 0, 0));
}

fn silent_peers_are_forgotten(stage: &Stage) {
    let (log, answers) = (Log::default(), Log::default());
    let (served, asked) = (log.clone(), answers.clone());
    let options = DatagramOptions::default().peers(100, Some(Duration::from_millis(60)));
    let stats = play(
        stage,
        |at| Server::new().udp_with(at, options, move || Counting(served.clone())),
        |to| {
            let asker = asker(&asked, move |socket, datagram| {
                if datagram.is_none() {
                    ask(socket, to, "once");
                }
            });
            Server::new().udp("127.0.0.1:0", move || asker.clone())
        },
        |handle| handle.stats().peers_expired == 1 && see(&answers).received.len() == 1,
    );
    let log = see(&log);
    assert_eq!(log.expired.len(), 1);
    assert!(log.expired.contains_key(&log.received[0].0), "the peer that sent");
    assert_eq!((stats.peers, stats.peers_expired), (0, 1));
}

fn one_peer_too_many_is_dropped(stage: &Stage) {
    let (log, answers) = (Log::default(), Log::default());
    let (served, asked) = (log.clone(), answers.clone());
    let options = DatagramOptions::default().peers(2, None);
    let stats = play(
        stage,
        |at| Server::new().udp_with(at, options, move || Counting(served.clone())),
        |to| {
            let asker = asker(&asked, move |socket, datagram| {
                if datagram.is_none() {
                    ask(socket, to, "hello");
                }
            });
            (0..5).fold(Server::new(), |server, _| {
                let asker = asker.clone();
                server.udp("127.0.0.1:0", move || asker.clone())
            })
        },
        |handle| handle.stats().peers_refused == 3 && see(&answers).received.len() == 2,
    );
    assert_eq!((stats.peers, stats.datagrams_received, stats.datagrams_sent), (2, 5, 2));
}

fn a_full_queue_refuses_and_says_when_there_is_room(stage: &Stage) {
    let (log, asked) = (Log::default(), Log::default());
    let (served, refusing) = (log.clone(), asked.clone());
    let options = DatagramOptions::default().queue_max(8);
    play(
        stage,
        |at| Server::new().udp(at, move || Counting(served.clone())),
        |to| {
            let log = refusing.clone();
            let asker = asker(&refusing, move |socket, datagram| {
                if datagram.is_some() {
                    return;
                }
                for number in 0..20_u8 {
                    match socket.send_to(to, vec![number]) {
                        SendOutcome::Queued => {}
                        SendOutcome::Refused { data, .. } => {
                            assert_eq!(data.as_slice(), [number]);
                            see(&log).refused += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
            Server::new().udp_with("127.0.0.1:0", options, move || asker.clone())
        },
        |_| see(&log).received.len() == 8 && see(&asked).writable > 0,
    );
    let asked = see(&asked);
    assert_eq!((asked.refused, asked.writable), (12, 1));
}

fn a_panic_costs_its_datagram_alone(stage: &Stage) {
    let (log, answers) = (Log::default(), Log::default());
    let (served, asked) = (log.clone(), answers.clone());
    let stats = play(
        stage,
        |at| Server::new().udp(at, move || Counting(served.clone())),
        |to| {
            let asker = asker(&asked, move |socket, datagram| {
                if datagram.is_none() {
                    for text in ["one", "panic", "two", "panic", "three"] {
                        ask(socket, to, text);
                    }
                }
            });
            Server::new().udp("127.0.0.1:0", move || asker.clone())
        },
        |handle| handle.stats().panics == 2 && see(&answers).received.len() == 3,
    );
    assert_eq!(stats.datagrams_received, 5);
}

fn an_unreachable_peer_is_told(stage: &Stage) {
    if stage.is_windows() || matches!(stage, Stage::Real(EngineKind::Kqueue)) {
        println!("skipped: errors of single peers are told on Linux alone");
        return;
    }
    let (log, asked) = (Log::default(), Log::default());
    let (served, told) = (log.clone(), asked.clone());
    // A port that was free a moment ago.
    let gone = match stage {
        Stage::Real(_) => {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.local_addr().expect("it is bound")
        }
        Stage::Sim { .. } => "127.0.0.1:9".parse().expect("an address"),
    };
    play(
        stage,
        |at| Server::new().udp(at, move || Counting(served.clone())),
        |to| {
            let asker = asker(&told, move |socket, datagram| {
                if datagram.is_none() {
                    ask(socket, gone, "nobody");
                    ask(socket, to, "somebody");
                }
            });
            Server::new().udp("127.0.0.1:0", move || asker.clone())
        },
        |_| !see(&asked).failed.is_empty() && see(&asked).received.len() == 1,
    );
    assert!(see(&asked).failed.iter().all(|to| *to == Some(gone)));
}

/// Whether what is bound to a second address of this machine sends from there. Not every system has one, and Wine binds to
/// it but sends from the first.
fn has_two_addresses() -> bool {
    let near = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let to = near.local_addr().expect("it is bound");
    near.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    let Ok(far) = UdpSocket::bind("127.0.0.2:0") else { return false };
    far.send_to(b"?", to).is_ok() && receive(&near, &mut [0; 8]).1.ip() == std::net::Ipv4Addr::new(127, 0, 0, 2)
}

/// Two addresses with three peers each, of which two may come in.
fn one_peer_of_an_address_too_many_is_dropped(stage: &Stage) {
    if matches!(stage, Stage::Real(_)) && !has_two_addresses() {
        println!("skipped: this system does not send from 127.0.0.2");
        return;
    }
    let (log, answers) = (Log::default(), Log::default());
    let (served, asked) = (log.clone(), answers.clone());
    let options = DatagramOptions::default().peers(100, Some(Duration::from_millis(80))).peers_per_address_max(Some(2));
    let stats = play(
        stage,
        |at| Server::new().udp_with(at, options, move || Counting(served.clone())),
        |to| {
            let asker = asker(&asked, move |socket, datagram| {
                if datagram.is_none() {
                    ask(socket, to, "hello");
                }
            });
            let from = ["127.0.0.1:0", "127.0.0.2:0"];
            let mut from: Vec<&str> = from.iter().flat_map(|at| [*at; 3]).collect();
            if matches!(stage, Stage::Sim { .. }) {
                from = vec!["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.2:1", "127.0.0.2:2", "127.0.0.2:3"];
            }
            from.into_iter().fold(Server::new(), |server, at| {
                let asker = asker.clone();
                server.udp(at, move || asker.clone())
            })
        },
        |handle| handle.stats().peers_expired == 4 && see(&answers).received.len() == 4,
    );
    let mut served: Vec<_> = see(&log).received.iter().map(|(from, _)| from.ip().to_string()).collect();
    served.sort_unstable();
    assert_eq!(served, ["127.0.0.1", "127.0.0.1", "127.0.0.2", "127.0.0.2"]);
    assert_eq!((stats.peers_refused, stats.datagrams_received, stats.peers), (2, 6, 0));
}

/// One peer sends a burst beyond its rate; another is served all the same, and so is the first one later.
fn a_peer_over_its_rate_loses_what_is_too_much(stage: &Stage) {
    let (log, greedy, modest) = (Log::default(), Log::default(), Log::default());
    let (served, bursting, waiting) = (log.clone(), greedy.clone(), modest.clone());
    let options = DatagramOptions::default().rate_max(Some(Rate::new(1, 100)));
    let stats = play(
        stage,
        |at| Server::new().udp_with(at, options, move || Counting(served.clone())),
        |to| {
            let burst = asker(&bursting, move |socket, datagram| {
                // The answers carry a count in big endian; each is followed by the next question, and then by a burst.
                let count = datagram.map_or(0, |answer| u32::from_be_bytes([0, 0, answer.data[2], answer.data[3]]));
                let questions = if count == 100 { 50 } else { u32::from(count < 100) };
                (0..questions).for_each(|_| ask(socket, to, "more"));
            });
            let patient = asker(&waiting, move |socket, datagram| {
                if datagram.is_none_or(|answer| answer.data[3] < 5) {
                    ask(socket, to, "please");
                }
            });
            Server::new().udp("127.0.0.1:0", move || burst.clone()).udp("127.0.0.1:0", move || patient.clone())
        },
        |handle| handle.stats().datagrams_over_rate >= 10 && see(&modest).received.len() == 5,
    );
    // One more may pass for each second that the test takes.
    let passed = see(&log).received.len() as u64;
    assert!((105..145).contains(&passed), "{passed} passed");
    assert_eq!(passed + stats.datagrams_over_rate, stats.datagrams_received, "{stats:?}");
    assert!(see(&greedy).received.len() >= 100);
}

/// Answers are refused beyond the memory limit, its handler is told when there is memory again, and goes on.
fn the_memory_limit_holds_for_datagrams(stage: &Stage) {
    let (log, asked) = (Log::default(), Log::default());
    let (sender, reader) = (log.clone(), asked.clone());
    let stats = play(
        stage,
        |at| {
            let notes = sender.clone();
            let many = asker(&sender, move |socket, datagram| {
                let Some(datagram) = datagram else { return };
                for _ in 0..40 {
                    match socket.send_to(datagram.from, vec![9; 1000]) {
                        SendOutcome::Queued => {}
                        SendOutcome::Refused { data, why, .. } => {
                            assert_eq!((data.len(), why), (1000, Refusal::ProcessLimit));
                            see(&notes).refused += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
            Server::new().memory_limit(16_000).udp(at, move || many.clone())
        },
        |to| {
            let reader = asker(&reader, move |socket, datagram| {
                if datagram.is_none() {
                    ask(socket, to, "many, please");
                }
            });
            Server::new().udp("127.0.0.1:0", move || reader.clone())
        },
        |_| see(&log).writable > 0 && see(&log).refused + see(&asked).received.len() == 40,
    );
    let refused = see(&log).refused;
    // The limit is taken in blocks, so that up to a quarter of it may be out of reach.
    assert!((24..=28).contains(&refused), "{refused} were refused");
    assert_eq!((stats.datagrams_refused, stats.datagrams_sent), (refused as u64, 40 - refused as u64));
    assert_eq!((stats.sent_bytes, stats.charged_bytes), (1000 * stats.datagrams_sent, 0));
    assert_eq!(see(&log).writable, 1);
}

fn handlers_set_options_of_their_socket(stage: &Stage) {
    let (log, asked) = (Log::default(), Log::default());
    let (served, reader) = (log.clone(), asked.clone());
    let first = SocketOption::TypeOfService(0x10);
    let options = DatagramOptions::default().option(first.clone());
    play(
        stage,
        |at| Server::new().udp(at, move || Counting(served.clone())),
        |to| {
            let reader = asker(&reader, move |socket, datagram| {
                if datagram.is_none() {
                    let second = SocketOption::TypeOfService(0x08);
                    assert_eq!(socket.option(OptionName::TypeOfService).expect("it is read"), first);
                    socket.set_option(&second).expect("it is set");
                    assert_eq!(socket.option(OptionName::TypeOfService).expect("it is read"), second);
                    let refused = socket.set_option(&SocketOption::NoDelay(true)).expect_err("TCP alone has it");
                    assert_eq!(refused.kind(), std::io::ErrorKind::Unsupported);
                    ask(socket, to, "done");
                }
            });
            Server::new().udp_with("127.0.0.1:0", options, move || reader.clone())
        },
        |_| see(&asked).received.len() == 1,
    );
}

/// Sends back what arrives on a connection.
struct Echo;

impl Handler for Echo {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        conn.send(data);
    }
}

/// Receives a datagram. A call that is interrupted is made again: with a timeout the system does not do that itself
/// (signal(7)), and the kernel may interrupt a thread to tidy up a ring that it has closed.
pub(crate) fn receive(socket: &UdpSocket, to: &mut [u8]) -> (usize, SocketAddr) {
    loop {
        match socket.recv_from(to) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            outcome => return outcome.expect("an answer"),
        }
    }
}

/// TCP and UDP on one port in one server, with two workers that share the peers.
#[test]
fn streams_and_datagrams_on_one_port() {
    for kind in [EngineKind::Uring, EngineKind::Epoll] {
        if Stage::real(kind).is_none() {
            continue;
        }
        let log = Log::default();
        let start = || {
            let free = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
            let served = log.clone();
            let server = Server::new().engine(Some(kind)).workers(2).listen(free, || Echo);
            server.udp(free, move || Counting(served.clone())).start()
        };
        // The port may be another program's on TCP; then the next one.
        let server = (0..20).find_map(|_| start().ok()).expect("a port that is free for both");
        let address = server.udp_addresses()[0];
        assert_eq!(server.addresses()[0].to_string(), address.to_string());
        let mut stream = TcpStream::connect(address).expect("it connects");
        stream.write_all(b"stream").expect("it takes data");
        let mut back = [0; 6];
        stream.read_exact(&mut back).expect("it comes back");
        assert_eq!(&back, b"stream");
        for number in 0..16_u8 {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
            socket.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
            for count in 1..=3 {
                socket.send_to(&[number], address).expect("it is sent");
                let mut answer = [0; 16];
                let (length, from) = receive(&socket, &mut answer);
                assert_eq!((&answer[..length], from), (&[0, 0, 0, count, number][..], address));
            }
        }
        let second = Server::new().engine(Some(kind)).udp(address, || Counting(Log::default())).start();
        let error = second.expect_err("the address is taken").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("choose another port"), "{error}");
        drop(stream);
        let handle = server.handle();
        handle.shutdown(Duration::from_secs(1));
        server.join().expect("it ends in order");
        assert_eq!((handle.stats().datagrams_received, handle.stats().peers), (48, 16));
    }
}
