//! Ending a server: everything in flight arrives, and the process exits.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::program::{Server, both_apis, check_echo, engines, pattern};
use crate::system::{REQUESTS, raise_descriptors};

both_apis! {
    a_thousand_connections_lose_nothing,
    unread_input_does_not_destroy_what_was_echoed,
    a_second_signal_ends_at_once,
}

fn a_thousand_connections_lose_nothing() {
    const CONNECTIONS: usize = 1000;
    const BYTES: usize = 10_000;
    if !raise_descriptors(4096) {
        eprintln!("skipped: this process may not open {CONNECTIONS} connections");
        return;
    }
    for engine in engines() {
        let mut server = Server::start(&["echo", "--engine", engine, "--workers", "2"]);
        let mut streams: Vec<TcpStream> = (0..CONNECTIONS).map(|_| server.connect()).collect();
        for stream in &mut streams {
            check_echo(stream, b"up");
        }
        let data = pattern(BYTES + CONNECTIONS);
        for (number, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&data[number..][..BYTES]).expect("it takes data");
        }
        server.program.terminate();
        let started = Instant::now();
        for (number, mut stream) in streams.into_iter().enumerate() {
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("an end in order");
            assert!(back == data[number..][..BYTES], "{engine}: connection {number}: {} bytes", back.len());
        }
        assert_eq!(server.program.exit_code(), 0, "{engine}: {}", server.program.errors());
        assert!(started.elapsed() < Duration::from_secs(10), "{engine}: {:?}", started.elapsed());
        assert!(TcpStream::connect(server.address()).is_err(), "nobody listens any more");
    }
}

fn unread_input_does_not_destroy_what_was_echoed() {
    for engine in engines() {
        let mut server = Server::start(&["echo", "--engine", engine, "--drain", "0"]);
        let mut stream = server.connect();
        check_echo(&mut stream, b"up");
        // More than the server takes while nobody reads: it rests, and the remainder lies unread in the kernel.
        let data = pattern(32 << 20);
        let (sent, mut writer) = (data.clone(), stream.try_clone().expect("a second handle"));
        let sender = thread::spawn(move || {
            // The server ends before it has taken everything.
            let _ = writer.write_all(&sent);
        });
        thread::sleep(Duration::from_millis(300));
        server.program.terminate();
        thread::sleep(Duration::from_millis(200));
        let mut back = Vec::new();
        let mut piece = vec![0; 64 * 1024];
        loop {
            match stream.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => back.extend_from_slice(&piece[..count]),
                Err(error) => panic!("{engine}: after {} bytes: {error}", back.len()),
            }
        }
        assert!(data.starts_with(&back), "{engine}: what arrived is what was sent");
        drop(stream);
        assert_eq!(server.program.exit_code(), 0, "{engine}: {}", server.program.errors());
        sender.join().expect("the sender ends");
        let errors = server.program.errors();
        let sent = errors.split("sent_bytes=").nth(1).and_then(|rest| rest.split_whitespace().next());
        let sent: usize = sent.and_then(|sent| sent.parse().ok()).unwrap_or_else(|| panic!("no count in {errors}"));
        assert!(back.len() > 200_000, "{engine}: {} bytes", back.len());
        assert_eq!(back.len() + 2, sent, "{engine}: all that the kernel took arrived");
    }
}

/// Whatever asks the server to end, it has the time to drain that there is.
#[test]
fn every_request_to_end_is_a_drain() {
    const BYTES: usize = 200_000;
    // Longer than the system lets live what it ends at once.
    const HELD: Duration = Duration::from_secs(1);
    for engine in engines() {
        let drain = |way: &str| {
            let mut server = Server::start(&["echo", "--engine", engine, "--drain", "60s"]);
            let mut stream = server.connect();
            check_echo(&mut stream, b"up");
            let data = pattern(BYTES);
            stream.write_all(&data).expect("it takes data");
            server.program.request(way);
            let mut back = Vec::new();
            stream.read_to_end(&mut back).expect("an end in order");
            assert!(back == data, "{engine}, {way}: {} bytes", back.len());
            thread::sleep(HELD);
            drop(stream);
            assert_eq!(server.program.exit_code(), 0, "{engine}, {way}: {}", server.program.errors());
            assert!(server.program.errors().contains("draining"), "{engine}, {way}: {}", server.program.errors());
        };
        thread::scope(|scope| {
            for (way, _) in REQUESTS {
                scope.spawn(move || drain(way));
            }
        });
    }
}

/// When the system is about to end the server, it drains no longer than that.
#[test]
fn a_drain_ends_before_the_system_ends_the_program() {
    let engine = &engines()[0];
    let end = |way: &str| {
        let mut server = Server::start(&["echo", "--engine", engine, "--drain", "60s"]);
        let mut stream = server.connect();
        check_echo(&mut stream, b"up");
        server.program.request(way);
        // This peer never answers the FIN.
        assert_eq!(stream.read(&mut [0; 16]).expect("the server closes its side"), 0, "{way}");
        assert_eq!(server.program.exit_code(), 0, "{way}: {}", server.program.errors());
    };
    let last = REQUESTS.into_iter().filter(|(_, last)| *last);
    if last.clone().next().is_none() {
        println!("skipped: this system waits as long as the program likes");
    }
    thread::scope(|scope| last.for_each(|(way, _)| drop(scope.spawn(move || end(way)))));
}

fn a_second_signal_ends_at_once() {
    let mut server = Server::start(&["echo", "--drain", "60s"]);
    let mut stream = server.connect();
    check_echo(&mut stream, b"up");
    server.program.interrupt();
    // This peer never answers the FIN, so that the server lingers.
    assert_eq!(stream.read(&mut [0; 16]).expect("the server closes its side"), 0);
    let started = Instant::now();
    server.program.terminate();
    assert_eq!(server.program.exit_code(), 1);
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(server.program.errors().contains("second signal"), "{}", server.program.errors());
}
