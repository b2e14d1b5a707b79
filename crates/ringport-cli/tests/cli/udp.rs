//! Datagrams: `serve --udp`, `connect --udp` and `bench --udp`.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::program::{LIMIT, Server, address_of, check_echo, connect, engines, ringport, run, run_with_input};

fn serve(service: &str, engine: &str, api: &str) -> (Server, SocketAddr) {
    let arguments = ["serve", service, "--udp", "127.0.0.1:0", "--engine", engine, "--api", api];
    let server = Server::start_command(ringport().args(arguments), 1);
    let address = address_of(&server.lines[0]);
    assert_eq!(server.lines[0], format!("listening udp {address} engine={engine} workers=1"));
    (server, address)
}

/// Receives a datagram. A signal ends a wait that has a limit (signal(7)), which the standard library does not hide.
fn receive(socket: &UdpSocket, data: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    loop {
        match socket.recv_from(data) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    socket
}

#[test]
fn echo_generate_and_discard() {
    serve_everything("handler");
}

#[test]
fn echo_generate_and_discard_by_tasks() {
    serve_everything("async");
}

fn serve_everything(api: &str) {
    for engine in engines() {
        let (mut server, address) = serve("echo", engine, api);
        let peer = socket();
        let mut answer = vec![0; 70_000];
        for size in [0, 1, 64, 1472, 65_507] {
            let data: Vec<u8> = (0..size).map(|at: u32| (at * 7) as u8).collect();
            peer.send_to(&data, address).expect("it is sent");
            let (length, from) = receive(&peer, &mut answer).expect("it comes back");
            assert_eq!((from, &answer[..length]), (address, &data[..]), "{engine}");
        }
        assert_eq!(server.stop(), 0);
        let errors = server.program.errors();
        assert!(errors.contains("datagrams_received=5 datagrams_sent=5"), "{engine}: {errors}");
        assert!(!errors.contains("WARN"), "that it was told to stop is nothing to warn of: {errors}");

        let (mut server, address) = serve("generate", engine, api);
        peer.send_to(b"go", address).expect("it is sent");
        for _ in 0..16 {
            let (length, _) = receive(&peer, &mut answer).expect("one of many");
            assert!(length == 1024 && answer[..length].iter().enumerate().all(|(at, byte)| *byte == at as u8));
        }
        assert_eq!(server.stop(), 0);

        let (mut server, address) = serve("discard", engine, api);
        peer.send_to(b"nothing", address).expect("it is sent");
        peer.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        assert!(receive(&peer, &mut answer).is_err(), "nothing comes back");
        peer.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
        assert_eq!(server.stop(), 0);
        assert!(server.program.errors().contains("datagrams_received=1"), "{}", server.program.errors());
    }
}

#[test]
fn streams_and_datagrams_beside_each_other() {
    let mut server = Server::start_command(
        ringport().args(["serve", "echo", "--listen", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--workers", "2"]),
        2,
    );
    check_echo(&mut connect(address_of(&server.lines[0])), b"stream");
    let peer = socket();
    peer.send_to(b"datagram", address_of(&server.lines[1])).expect("it is sent");
    let mut answer = [0; 16];
    assert_eq!(receive(&peer, &mut answer).expect("it comes back").0, 8);
    assert_eq!(server.stop(), 0);
}

#[test]
fn lines_go_and_come_as_datagrams() {
    for engine in engines() {
        let (_server, address) = serve("echo", engine, "handler");
        let args = ["connect", "--udp", &address.to_string(), "--engine", engine];
        let output = run_with_input(&args, b"one\ntwo\nthree");
        assert_eq!(output.status.code(), Some(0), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
        let mut back: Vec<&str> = std::str::from_utf8(&output.stdout).expect("text").split_inclusive('\n').collect();
        back.sort_unstable();
        // What had no end of line may have been followed by another.
        assert_eq!(back.concat().len(), "one\ntwo\nthree".len(), "{back:?}");
    }
}

#[test]
fn nobody_at_the_other_end() {
    if engines().iter().any(|name| name == "iocp") {
        return println!("skipped: the engines of Windows have no word of unreachable peers");
    }
    let gone = socket().local_addr().expect("it is bound").to_string();
    let output = run_with_input(&["connect", "--udp", &gone], b"hello\n");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains(&gone) && errors.contains("refused"), "{errors}");
}

/// A number in the last line of a server.
fn count(errors: &str, name: &str) -> u64 {
    let number = errors.split(&format!(" {name}=")).nth(1).and_then(|rest| rest.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no {name} in {errors}"))
}

/// A peer that asks again and again until `stop`, but at least so many times, and again when there was no answer: datagrams
/// may be lost. Returns how long it had to wait for an answer at most.
fn healthy(address: SocketAddr, stop: Arc<AtomicBool>) -> thread::JoinHandle<Duration> {
    const LEAST: u64 = 20;
    thread::spawn(move || {
        let peer = socket();
        peer.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout can be set");
        let (mut answered, mut slowest) = (0_u64, Duration::ZERO);
        while answered < LEAST || !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            let question = answered.to_be_bytes();
            let mut answer = [0; 16];
            loop {
                peer.send_to(&question, address).expect("it is sent");
                // An answer to an earlier question may still come.
                match receive(&peer, &mut answer) {
                    Ok((length, from)) if from == address && answer[..length] == question => break,
                    _ => assert!(started.elapsed() < LIMIT, "the server no longer answers"),
                }
            }
            answered += 1;
            slowest = slowest.max(started.elapsed());
            thread::sleep(Duration::from_millis(1));
        }
        slowest
    })
}

/// Lets bad peers do what they do while a healthy one is served. Returns the last line of the server.
fn attack(engine: &str, more: &[&str], attack: impl Fn(SocketAddr)) -> String {
    let args = [&["serve", "echo", "--udp", "127.0.0.1:0", "--engine", engine], more].concat();
    let mut server = Server::start_command(ringport().args(args), 1);
    let address = address_of(&server.lines[0]);
    let stop = Arc::new(AtomicBool::new(false));
    let probe = healthy(address, Arc::clone(&stop));
    attack(address);
    stop.store(true, Ordering::Relaxed);
    let slowest = probe.join().expect("the healthy peer was served");
    assert!(slowest < Duration::from_secs(1), "{engine}: slowest {slowest:?}");
    assert_eq!(server.stop(), 0, "{engine}: {}", server.program.errors());
    server.program.errors()
}

#[test]
fn empty_and_huge_datagrams_disturb_nobody() {
    for engine in engines() {
        let errors = attack(engine, &[], |address| {
            let peer = socket();
            peer.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout can be set");
            let huge = vec![7; 65_507];
            let mut answer = vec![0; 65_536];
            for _ in 0..100 {
                peer.send_to(&[], address).expect("it is sent");
                peer.send_to(&huge, address).expect("it is sent");
                for _ in 0..2 {
                    // Whatever comes back is one of the two, whole.
                    if let Ok((length, _)) = receive(&peer, &mut answer) {
                        assert!([0, huge.len()].contains(&length) && answer[..length] == huge[..length], "{length}");
                    }
                }
            }
        });
        assert!(count(&errors, "datagrams_received") > 100, "{engine}: {errors}");
        assert_eq!(count(&errors, "datagrams_truncated"), 0, "{engine}: {errors}");
    }
}

#[test]
fn a_flood_does_not_end_the_service() {
    for engine in engines() {
        for more in [&[][..], &["--udp-rate", "2000"]] {
            // Several peers that read no answer, whose kernel drops them.
            let errors = attack(engine, more, |address| {
                let peers: Vec<UdpSocket> = (0..4).map(|_| socket()).collect();
                for number in 0..20_000_usize {
                    // What the own kernel has no room for is part of the flood.
                    let _ = peers[number % peers.len()].send_to(&[0x5a; 1000][..1 + number % 1000], address);
                }
            });
            let (received, over) = (count(&errors, "datagrams_received"), count(&errors, "datagrams_over_rate"));
            assert!(received > 1000, "{engine}: {errors}");
            assert!(more.is_empty() && over == 0 || over < received, "{engine}: {errors}");
        }
    }
}

#[test]
fn a_peer_over_its_rate_is_cut_short() {
    for engine in engines() {
        // What even a machine that is busy with other tests exceeds.
        let errors = attack(engine, &["--udp-rate", "100"], |address| {
            let greedy = socket();
            greedy.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
            let (end, mut answer) = (Instant::now() + LIMIT, [0; 16]);
            // As many as fit every buffer, and again when all are back, until some are not.
            loop {
                for _ in 0..32 {
                    greedy.send_to(b"more", address).expect("it is sent");
                }
                if (0..32).any(|_| receive(&greedy, &mut answer).is_err()) {
                    break;
                }
                assert!(Instant::now() < end, "{engine}: the limit is never reached");
            }
        });
        assert!(count(&errors, "datagrams_over_rate") > 0, "{engine}: {errors}");
    }
}

#[test]
fn peers_that_are_gone_disturb_nobody() {
    for engine in engines() {
        let errors = attack(engine, &[], |address| {
            for round in 0..300 {
                // The answers find nobody, and the server's system is told so (ICMP port unreachable).
                let peer = socket();
                for _ in 0..1 + round % 3 {
                    peer.send_to(b"and away", address).expect("it is sent");
                }
            }
        });
        // Whether an error arrives depends on who is faster, the answer or the close; some of 300 do on Linux.
        assert!(cfg!(not(target_os = "linux")) || count(&errors, "datagrams_failed") > 0, "{engine}: {errors}");
    }
}

fn bench(args: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["bench", "--udp", "--json", "-"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {errors}"));
    (output.status.code(), json["results"][0].clone())
}

#[test]
fn every_datagram_is_accounted_for() {
    for engine in engines() {
        let load = ["--engine", engine, "--connections", "7", "--iterations", "5003"];
        for more in [["--pipeline", "1"], ["--pipeline", "8"], ["--size", "16..3000"], ["--api", "async"]] {
            let (code, result) = bench(&[&load[..], &more].concat());
            assert_eq!(code, Some(0), "{engine}: {result}");
            assert_eq!((&result["sent"], &result["returned"]), (&Value::from(5003), &Value::from(5003)), "{result}");
            assert_eq!(result["lost"], 0);
            assert!(result["returned_per_second"].as_f64() > Some(0.0) && result["engine"] == engine.as_str());
        }
    }
}

/// A server that echoes, but for each tenth datagram, with which it does something else.
fn liar(lie: impl Fn(&UdpSocket, &mut [u8], SocketAddr) + Send + 'static) -> String {
    let server = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let address = server.local_addr().expect("it is bound").to_string();
    thread::spawn(move || {
        let mut data = [0; 2048];
        let mut number = 0;
        while let Ok((length, from)) = receive(&server, &mut data) {
            number += 1;
            if number % 10 == 0 {
                lie(&server, &mut data[..length], from);
            } else if server.send_to(&data[..length], from).is_err() {
                return;
            }
        }
    });
    address
}

#[test]
fn lies_are_found_out() {
    let load = ["--connections", "2", "--iterations", "100", "--timeout", "200ms", "--pipeline", "4"];
    let ask = |address: &str| bench(&[&[address], &load[..]].concat());

    let (code, result) = ask(&liar(|_, _, _| {}));
    assert_eq!((code, &result["lost"], &result["returned"]), (Some(1), &Value::from(10), &Value::from(90)), "{result}");

    let (code, result) = ask(&liar(|server, data, from| {
        data[40] ^= 1;
        drop(server.send_to(data, from));
    }));
    assert_eq!(
        (code, &result["corrupted"], &result["lost"]),
        (Some(1), &Value::from(10), &Value::from(10)),
        "{result}"
    );

    let (code, result) = ask(&liar(|server, data, from| {
        drop(server.send_to(data, from));
        drop(server.send_to(data, from));
    }));
    assert_eq!((code, &result["lost"]), (Some(1), &Value::from(0)), "{result}");
    // The second answer to the very last datagram may come too late to be counted.
    assert!(matches!(result["duplicated"].as_u64(), Some(9 | 10)), "{result}");
}

#[test]
fn sizes_that_no_datagram_has_are_refused() {
    for size in ["1", "65508"] {
        let output = run(&["bench", "--udp", "--size", size]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("16 to 65507"));
    }
}
