//! Datagrams: `serve --udp`, `connect --udp` and `bench --udp`.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::program::{LIMIT, Server, address_of, check_echo, connect, engines, ringport, run, run_with_input};

/// The engines of this machine that have datagrams.
fn datagram_engines() -> impl Iterator<Item = &'static String> {
    let (without, with): (Vec<_>, Vec<_>) = engines().iter().partition(|name| *name == "rio");
    without.iter().for_each(|name| println!("skipped: {name} has no datagrams"));
    with.into_iter()
}

fn serve(service: &str, engine: &str, api: &str) -> (Server, SocketAddr) {
    let arguments = ["serve", service, "--udp", "127.0.0.1:0", "--engine", engine, "--api", api];
    let server = Server::start_command(ringport().args(arguments), 1);
    let address = address_of(&server.lines[0]);
    assert_eq!(server.lines[0], format!("listening udp {address} engine={engine} workers=1"));
    (server, address)
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
    for engine in datagram_engines() {
        let (mut server, address) = serve("echo", engine, api);
        let peer = socket();
        let mut answer = vec![0; 70_000];
        for size in [0, 1, 64, 1472, 65_507] {
            let data: Vec<u8> = (0..size).map(|at: u32| (at * 7) as u8).collect();
            peer.send_to(&data, address).expect("it is sent");
            let (length, from) = peer.recv_from(&mut answer).expect("it comes back");
            assert_eq!((from, &answer[..length]), (address, &data[..]), "{engine}");
        }
        assert_eq!(server.stop(), 0);
        let errors = server.program.errors();
        assert!(errors.contains("datagrams_received=5 datagrams_sent=5"), "{engine}: {errors}");

        let (mut server, address) = serve("generate", engine, api);
        peer.send_to(b"go", address).expect("it is sent");
        for _ in 0..16 {
            let length = peer.recv(&mut answer).expect("one of many");
            assert!(length == 1024 && answer[..length].iter().enumerate().all(|(at, byte)| *byte == at as u8));
        }
        assert_eq!(server.stop(), 0);

        let (mut server, address) = serve("discard", engine, api);
        peer.send_to(b"nothing", address).expect("it is sent");
        peer.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout can be set");
        assert!(peer.recv(&mut answer).is_err(), "nothing comes back");
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
    assert_eq!(peer.recv(&mut answer).expect("it comes back"), 8);
    assert_eq!(server.stop(), 0);
}

#[test]
fn lines_go_and_come_as_datagrams() {
    for engine in datagram_engines() {
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

fn bench(args: &[&str]) -> (Option<i32>, Value) {
    let output = run(&[&["bench", "--udp", "--json", "-"], args].concat());
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let json: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {errors}"));
    (output.status.code(), json["results"][0].clone())
}

#[test]
fn every_datagram_is_accounted_for() {
    for engine in datagram_engines() {
        let load = ["--engine", engine, "--connections", "7", "--iterations", "5003"];
        for more in [["--pipeline", "1"], ["--pipeline", "8"], ["--size", "16..3000"]] {
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
        while let Ok((length, from)) = server.recv_from(&mut data) {
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
