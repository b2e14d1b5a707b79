//! What a server says and does with peers that behave.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::program::{LIMIT, Server, address_of, check_echo, connect, engines, pattern, temporary};

#[test]
fn echo_on_each_engine() {
    for engine in engines() {
        let mut server = Server::start(&["echo", "--engine", engine, "--workers", "2"]);
        let address = server.address();
        assert_ne!(address.port(), 0, "the real port");
        assert_eq!(server.lines[0], format!("listening tcp {address} engine={engine} workers=2"));
        for _ in 0..8 {
            let mut stream = server.connect();
            check_echo(&mut stream, b"hello");
            let data = pattern(1 << 20);
            let mut writer = stream.try_clone().expect("a second handle");
            let sent = data.clone();
            let sender = thread::spawn(move || {
                writer.write_all(&sent).expect("it takes data");
                writer.shutdown(Shutdown::Write).expect("a half-close");
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("it comes back, then the end");
            sender.join().expect("all was sent");
            assert!(back == data, "{engine}: {} of {} bytes", back.len(), data.len());
        }
        assert_eq!(server.stop(), 0, "{engine}: {}", server.program.errors());
        let errors = server.program.errors();
        assert!(errors.contains("engine chosen") && errors.contains("accepted=8"), "{engine}: {errors}");
    }
}

#[test]
fn several_listeners() {
    let path = temporary("several.sock");
    let unix = format!("unix:{path}");
    let engine = engines()[0].as_str();
    let mut server =
        Server::start(&["echo", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--listen", &unix, "--workers", "2"]);
    assert!(server.lines[0].starts_with("listening tcp 127.0.0.1:"), "{:?}", server.lines);
    assert!(server.lines[1].starts_with("listening tcp [::1]:"), "{:?}", server.lines);
    assert_eq!(server.lines[2], format!("listening unix {path} engine={engine} workers=2"));
    check_echo(&mut connect(address_of(&server.lines[0])), b"four");
    check_echo(&mut connect(address_of(&server.lines[1])), b"six");
    let mut local = UnixStream::connect(&path).expect("it listens on the file");
    local.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    check_echo(&mut local, b"file");
    drop(local);
    assert_eq!(server.stop(), 0);
    assert!(!Path::new(&path).exists(), "the socket file is gone");
}

#[test]
fn a_port_in_use_is_refused() {
    let server = Server::start(&["echo"]);
    let address = server.address().to_string();
    let second = crate::program::run(&["serve", "echo", "--listen", &address]);
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&address), "{errors}");
    check_echo(&mut server.connect(), b"the first goes on");
}

#[test]
fn generate_counts_and_discard_swallows() {
    for engine in engines() {
        for limit in ["10MiB", "4k"] {
            let mut server = Server::start(&["generate", "--engine", engine, "--send-limit", limit]);
            let mut stream = server.connect();
            let mut data = vec![0; 3 << 20];
            stream.read_exact(&mut data).expect("it sends without end");
            let wrong = data.iter().enumerate().position(|(at, byte)| *byte != at as u8);
            assert_eq!(wrong, None, "{engine}: byte number n is n % 256");
            drop(stream);
            assert_eq!(server.stop(), 0);
        }
        let mut server = Server::start(&["discard", "--engine", engine]);
        let mut stream = server.connect();
        stream.write_all(&pattern(3 << 20)).expect("it takes everything");
        stream.shutdown(Shutdown::Write).expect("a half-close");
        assert_eq!(stream.read(&mut [0; 16]).expect("an end in order"), 0);
        assert_eq!(server.stop(), 0);
        assert!(server.program.errors().contains("received_bytes=3145728"), "{}", server.program.errors());
    }
}

#[test]
fn a_refused_send_waits_and_loses_nothing() {
    for engine in engines() {
        for limit in ["1k", "10k", "100k"] {
            let server = Server::start(&["echo", "--engine", engine, "--send-limit", limit, "--over-limit", "refuse"]);
            let mut stream = server.connect();
            let data = pattern(8 << 20);
            let (sent, mut writer) = (data.clone(), stream.try_clone().expect("a second handle"));
            let sender = thread::spawn(move || {
                writer.write_all(&sent).expect("it takes data");
                writer.shutdown(Shutdown::Write).expect("a half-close");
            });
            thread::sleep(Duration::from_millis(100));
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("it comes back, then the end");
            sender.join().expect("all was sent");
            assert!(back == data, "{engine}, {limit}: {} of {} bytes", back.len(), data.len());
        }
    }
}

#[test]
fn half_close_with_data_pending_both_ways() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine]);
        let mut stream = server.connect();
        let data = pattern(6 << 20);
        let (sent, mut writer) = (data.clone(), stream.try_clone().expect("a second handle"));
        let sender = thread::spawn(move || {
            writer.write_all(&sent).expect("it takes data");
            writer.shutdown(Shutdown::Write).expect("a half-close");
        });
        // Both directions fill up, and the FIN comes behind data that the server has yet to read.
        thread::sleep(Duration::from_millis(200));
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("it comes back, then the end");
        sender.join().expect("all was sent");
        assert!(back == data, "{engine}: {} of {} bytes", back.len(), data.len());
    }
}

#[test]
fn a_silent_connection_is_closed_at_the_idle_timeout() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine, "--idle-timeout", "300ms"]);
        let (mut silent, mut busy) = (server.connect(), server.connect());
        let started = Instant::now();
        let watcher = thread::spawn(move || {
            let read = silent.read(&mut [0; 16]);
            (read.map_err(|error| error.kind()), started.elapsed())
        });
        while started.elapsed() < Duration::from_millis(900) {
            check_echo(&mut busy, b"still here");
            thread::sleep(Duration::from_millis(50));
        }
        let (read, after) = watcher.join().expect("it was watched");
        assert!(matches!(read, Ok(0) | Err(ErrorKind::ConnectionReset)), "{engine}: {read:?}");
        assert!(after >= Duration::from_millis(250), "{engine}: closed after {after:?}");
        assert!(after < Duration::from_millis(900), "{engine}: closed after {after:?}");
    }
}

#[test]
fn the_limit_of_connections_holds() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine, "--max-connections", "3"]);
        let mut streams: Vec<TcpStream> = (0..3).map(|_| server.connect()).collect();
        for stream in &mut streams {
            check_echo(stream, b"inside");
        }
        let mut fourth = server.connect();
        let read = fourth.read(&mut [0; 16]);
        assert!(matches!(&read, Ok(0)) || read.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        for stream in &mut streams {
            check_echo(stream, b"still inside");
        }
        drop(streams);
        // Room again, as soon as the server has seen them go.
        let end = Instant::now() + LIMIT;
        loop {
            let mut stream = server.connect();
            let mut back = [0; 1];
            if stream.write_all(b"?").is_ok() && stream.read_exact(&mut back).is_ok() {
                break;
            }
            assert!(Instant::now() < end, "{engine}: no room for another");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn the_least_loaded_worker_gets_the_connection() {
    let server = Server::start(&["echo", "--workers", "2", "--spread", "least-loaded"]);
    let mut streams: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut streams {
        check_echo(stream, b"whoever serves it");
    }
}

/// A server that may poll answers, and costs nothing once it has nothing to do.
#[test]
fn a_spinning_server_rests_when_idle() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine, "--spin", "200us"]);
        let mut stream = server.connect();
        for _ in 0..100 {
            check_echo(&mut stream, b"quick");
        }
        thread::sleep(Duration::from_millis(100));
        let before = server.program.cpu();
        thread::sleep(Duration::from_millis(500));
        let used = server.program.cpu() - before;
        assert!(used <= Duration::from_millis(50), "{engine}: {used:?} of processor time while idle");
        check_echo(&mut stream, b"still here");
    }
}
