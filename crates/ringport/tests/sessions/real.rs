//! What only a real system shows: addresses, several workers, pinning.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringport::{Address, Buf, Connection, EngineKind, Error, Handler, Server, Spread};

use crate::stage::{Log, Player, each_engine};

pub(crate) fn ip(address: &Address) -> std::net::SocketAddr {
    match address {
        Address::Ip(address) => *address,
        Address::Unix(path) => panic!("{} is no IP address", path.display()),
    }
}

fn echo_once(peer: &mut (impl Read + Write), text: &[u8]) -> Vec<u8> {
    peer.write_all(text).expect("sends");
    let mut answer = vec![0; text.len()];
    peer.read_exact(&mut answer).expect("answers");
    answer
}

/// Answers with a name and the addresses of the connection.
pub(crate) struct Named(pub(crate) &'static str);

impl Handler for Named {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, _: Buf) {
        let info = conn.info().expect("a live connection has addresses");
        let text = match (info.peer.as_socket(), info.local.as_socket()) {
            (Some(peer), Some(local)) => format!("{} {peer} {local}", self.0),
            _ => self.0.to_owned(),
        };
        conn.send(text);
        conn.close();
    }
}

pub(crate) fn ask(peer: &mut (impl Read + Write)) -> String {
    peer.write_all(b"?").expect("sends");
    let mut answer = String::new();
    peer.read_to_string(&mut answer).expect("answers and closes");
    answer
}

#[test]
fn several_listeners_have_their_own_handlers() {
    each_engine(|kind| {
        let server = Server::new()
            .engine(Some(kind))
            .workers(2)
            .listen("127.0.0.1:0", || Named("four"))
            .listen("[::1]:0", || Named("six"))
            .start()
            .expect("the server starts");
        for (index, name) in ["four", "six"].into_iter().enumerate() {
            let to = ip(&server.addresses()[index]);
            let mut peer = TcpStream::connect(to).expect("connects");
            let own = peer.local_addr().expect("has an address");
            assert_eq!(ask(&mut peer), format!("{name} {own} {to}"));
        }
        server.handle().shutdown(Duration::from_secs(1));
        server.join().expect("ends");
    });
}

#[test]
fn a_used_address_is_refused_and_names_itself() {
    each_engine(|kind| {
        let log = Log::default();
        for workers in [1, 2] {
            let first = Server::new()
                .engine(Some(kind))
                .workers(workers)
                .listen("127.0.0.1:0", Player::echo(&log).make())
                .start()
                .expect("the server starts");
            let second = Server::new()
                .engine(Some(kind))
                .workers(workers)
                .listen(first.addresses()[0].clone(), Player::echo(&log).make())
                .start();
            let error = second.expect_err("the address is used");
            assert!(matches!(error, Error::Listen { .. }) && error.is_transient(), "{error}");
            assert!(error.to_string().contains(&first.addresses()[0].to_string()), "{error}");
        }
    });
}

#[test]
fn connections_are_spread_over_workers() {
    each_engine(|kind| {
        for (spread, tolerance) in [(Spread::LeastLoaded, 0.10), (Spread::ReusePort, 0.60)] {
            let log = Log::default();
            let server = Server::new()
                .engine(Some(kind))
                .workers(4)
                .spread(spread)
                .listen("127.0.0.1:0", Player::echo(&log).make())
                .start()
                .expect("the server starts");
            let to = ip(&server.addresses()[0]);
            let mut peers: Vec<_> = (0..400).map(|_| TcpStream::connect(to).expect("connects")).collect();
            for peer in &mut peers {
                assert_eq!(echo_once(peer, b"hello"), b"hello");
            }
            for (number, worker) in server.handle().worker_stats().iter().enumerate() {
                let share = worker.connections as f64 / 100.0;
                assert!((share - 1.0).abs() <= tolerance, "{kind} {spread:?}: worker {number} has {worker:?}");
            }
        }
    });
}

#[test]
fn what_came_meanwhile_is_taken_with_few_waits() {
    each_engine(|kind| {
        let log = Log::default();
        // The first byte of a message says how long its callback blocks the loop, in hundredths of a second.
        let slow = Player::with(&log, |conn, what| {
            if let crate::stage::What::Data(data) = what {
                let data = data.take().expect("there is data");
                std::thread::sleep(Duration::from_millis(u64::from(data[0]) * 10));
                conn.send(data);
            }
        });
        let server =
            Server::new().engine(Some(kind)).listen("127.0.0.1:0", slow.make()).start().expect("the server starts");
        let to = ip(&server.addresses()[0]);
        let mut peers: Vec<_> = (0..300).map(|_| TcpStream::connect(to).expect("connects")).collect();
        for peer in &mut peers {
            assert_eq!(echo_once(peer, &[0; 64]), [0; 64]);
        }
        let before = server.handle().stats();
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&[if number == 0 { 50 } else { 0 }; 64]).expect("sends");
        }
        for peer in &mut peers {
            peer.read_exact(&mut [0; 64]).expect("answers");
        }
        // The counters are published at the end of a turn, which may come a moment after the last answer.
        std::thread::sleep(Duration::from_millis(50));
        let after = server.handle().stats();
        let (events, turns) = (after.events - before.events, after.turns - before.turns);
        assert!(events >= 300 && events > 10 * turns, "{kind}: {events} events in {turns} turns");
        // Plain calls send at once; on io_uring small messages are entries of the next enter, on rio requests of the next
        // wait.
        let later = matches!(kind, EngineKind::Uring | EngineKind::Rio);
        assert!(later || after.sends_at_once >= 600, "{kind}: {after:?}");
        // With half of the slots under receives, rio copies what the others get.
        assert!(kind == EngineKind::Rio || after.copies == 0, "{kind}: {after:?}");
    });
}

/// Tells on which cores its worker may run.
struct Cores(Arc<Mutex<Vec<String>>>);

impl Handler for Cores {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        let status = std::fs::read_to_string("/proc/thread-self/status").expect("Linux tells");
        let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap_or_default();
        self.0.lock().expect("not poisoned").push(format!("{} {line}", conn.worker().number()));
        conn.send(data);
    }
}

#[test]
fn workers_are_pinned_when_asked() {
    // Under Wine the file exists, and tells of one of Wine's own threads.
    if cfg!(windows) || !std::path::Path::new("/proc/thread-self/status").exists() {
        println!("skipped: only Linux tells in a file where a thread may run");
        return;
    }
    each_engine(|kind| {
        let cores = Arc::new(Mutex::new(Vec::new()));
        let shared = cores.clone();
        let server = Server::new()
            .engine(Some(kind))
            .workers(2)
            .pin(true)
            .spread(Spread::LeastLoaded)
            .listen("127.0.0.1:0", move || Cores(shared.clone()))
            .start()
            .expect("the server starts");
        let to = ip(&server.addresses()[0]);
        let mut peers: Vec<_> = (0..4).map(|_| TcpStream::connect(to).expect("connects")).collect();
        for peer in &mut peers {
            echo_once(peer, b"?");
        }
        let seen = cores.lock().expect("not poisoned").clone();
        for line in &seen {
            let list = line.rsplit(':').next().unwrap_or_default().trim();
            assert!(list.parse::<u32>().is_ok(), "{kind}: one core a worker: {line}");
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let different: std::collections::BTreeSet<_> = seen.iter().map(|line| line.rsplit(':').next()).collect();
        assert_eq!(different.len(), cores.min(2), "{kind}: {seen:?}");
    });
}

#[test]
fn one_worker_runs_on_the_calling_thread() {
    each_engine(|kind| {
        struct Stopper(std::thread::ThreadId);
        impl Handler for Stopper {
            type State = ();
            fn data(&mut self, conn: &mut Connection<'_, ()>, _: Buf) {
                assert_eq!(std::thread::current().id(), self.0, "the worker is the caller");
                conn.send("stopped");
                conn.worker().shut_down(Duration::from_millis(500));
            }
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound").port();
        let to = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        let peer = std::thread::spawn(move || {
            let start = Instant::now();
            let mut peer = loop {
                match TcpStream::connect(to) {
                    Ok(peer) => break peer,
                    Err(error) => assert!(start.elapsed() < Duration::from_secs(10), "{error}"),
                }
            };
            ask(&mut peer)
        });
        let caller = std::thread::current().id();
        Server::new().engine(Some(kind)).listen(to, move || Stopper(caller)).run().expect("runs and ends");
        assert_eq!(peer.join().expect("the peer ends"), "stopped");
    });
}

#[test]
fn a_million_inline_completions_leave_the_stack_flat() {
    // Every send completes at once and each makes the connection writable again: if completions were recursed into,
    // the 2 MiB stack of the worker would overflow. That holds for 20,000, too, at 100 bytes each; where a call takes 100 µs
    // (Wine), these have to do.
    const ENOUGH: u64 = 20_000;
    each_engine(|kind| {
        struct Pump(Instant);
        impl Handler for Pump {
            type State = u64;
            fn open(&mut self, conn: &mut Connection<'_, u64>) {
                self.writable(conn);
            }
            fn data(&mut self, _: &mut Connection<'_, u64>, _: Buf) {}
            fn writable(&mut self, conn: &mut Connection<'_, u64>) {
                *conn.state += 1;
                let slow = *conn.state > ENOUGH && self.0.elapsed() > Duration::from_secs(5);
                if *conn.state > 1_000_000 || slow {
                    conn.close();
                } else {
                    conn.write(b"x");
                }
            }
        }
        let options = ringport::ConnectionOptions::default().marks(0, 0);
        let start = Instant::now();
        let server = Server::new()
            .engine(Some(kind))
            .listen_with("127.0.0.1:0", ringport::ListenOptions::default(), options, move || Pump(start))
            .start()
            .expect("the server starts");
        let mut peer = TcpStream::connect(ip(&server.addresses()[0])).expect("connects");
        let count = std::io::copy(&mut peer, &mut std::io::sink()).expect("reads all");
        assert!(count == 1_000_000 || count >= ENOUGH && start.elapsed() > Duration::from_secs(5), "{kind}: {count}");
    });
}
