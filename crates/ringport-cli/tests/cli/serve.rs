//! What a server says and does with peers that behave.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::program::{LIMIT, Server, address_of, both_apis, check_echo, connect, engines, pattern};

both_apis! {
    echo_on_each_engine,
    several_listeners,
    a_port_in_use_is_refused,
    generate_counts_and_discard_swallows,
    what_is_over_the_limit_waits_and_loses_nothing,
    half_close_with_data_pending_both_ways,
    a_silent_connection_is_closed_at_the_idle_timeout,
    the_limit_of_connections_holds,
    refusals_are_told_by_their_reason_at_the_end,
    a_rate_of_received_bytes_slows_and_loses_nothing,
    the_least_loaded_worker_gets_the_connection,
}

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

fn several_listeners() {
    let mut server = Server::start(&["echo", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--workers", "2"]);
    assert!(server.lines[0].starts_with("listening tcp 127.0.0.1:"), "{:?}", server.lines);
    assert!(server.lines[1].starts_with("listening tcp [::1]:"), "{:?}", server.lines);
    check_echo(&mut connect(address_of(&server.lines[0])), b"four");
    check_echo(&mut connect(address_of(&server.lines[1])), b"six");
    assert_eq!(server.stop(), 0);
}

fn a_port_in_use_is_refused() {
    let server = Server::start(&["echo"]);
    let address = server.address().to_string();
    let second = crate::program::run(&["serve", "echo", "--listen", &address]);
    let errors = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&address), "{errors}");
    check_echo(&mut server.connect(), b"the first goes on");
}

fn generate_counts_and_discard_swallows() {
    for engine in engines() {
        for (limit, piece, zero_copy) in [
            ("10MiB", "64k", "0"),
            ("4k", "64k", "0"),
            ("10MiB", "1MiB", "0"),
            ("10MiB", "256", "0"),
            ("10MiB", "64k", "1"),
        ] {
            let options =
                ["generate", "--engine", engine, "--send-limit", limit, "--piece", piece, "--zero-copy", zero_copy];
            let mut server = Server::start(&options);
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

fn what_is_over_the_limit_waits_and_loses_nothing() {
    for engine in engines() {
        for (limit, policy) in
            [("1k", "refuse"), ("10k", "refuse"), ("100k", "refuse"), ("1k", "wait"), ("100k", "wait")]
        {
            let server = Server::start(&["echo", "--engine", engine, "--send-limit", limit, "--over-limit", policy]);
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
            assert!(back == data, "{engine}, {limit}, {policy}: {} of {} bytes", back.len(), data.len());
        }
    }
}

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

/// Whether the server answers on `stream`.
fn answers(stream: &mut TcpStream) -> bool {
    stream.write_all(b"?").is_ok() && stream.read_exact(&mut [0; 1]).is_ok()
}

fn refusals_are_told_by_their_reason_at_the_end() {
    for engine in engines() {
        for (option, reason) in [("--max-per-address", "refused_by_address=1"), ("--accept-rate", "refused_by_rate=1")]
        {
            let mut server = Server::start(&["echo", "--engine", engine, option, "2"]);
            let mut inside = [server.connect(), server.connect()];
            assert!(!answers(&mut server.connect()), "{engine} {option}: one too many");
            assert!(inside.iter_mut().all(answers), "{engine} {option}");
            drop(inside);
            assert_eq!(server.stop(), 0);
            let errors = server.program.errors();
            assert!(errors.contains("refused=1") && errors.contains(reason), "{engine}: {errors}");
        }
    }
}

fn a_rate_of_received_bytes_slows_and_loses_nothing() {
    for engine in engines() {
        let mut server = Server::start(&["discard", "--engine", engine, "--receive-rate", "20M"]);
        let started = Instant::now();
        let mut stream = server.connect();
        stream.write_all(&pattern(60 << 20)).expect("it takes everything");
        stream.shutdown(Shutdown::Write).expect("a half-close");
        assert_eq!(stream.read(&mut [0; 16]).expect("an end in order"), 0);
        assert!(started.elapsed() > Duration::from_millis(1500), "{engine}: {:?}", started.elapsed());
        assert_eq!(server.stop(), 0);
        assert!(server.program.errors().contains("received_bytes=62914560"), "{}", server.program.errors());
    }
}

fn the_least_loaded_worker_gets_the_connection() {
    let server = Server::start(&["echo", "--workers", "2", "--spread", "least-loaded"]);
    let mut streams: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for stream in &mut streams {
        check_echo(stream, b"whoever serves it");
    }
}
