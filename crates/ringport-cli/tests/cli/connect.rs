//! `ringport connect`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use socket2::SockRef;

use crate::program::{Program, Server, engines, pattern, ringport, run, run_with_input};
use crate::system::resident_kib;

#[test]
fn twenty_mebibytes_through_an_echo() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine]);
        let data = pattern(20 << 20);
        let output = run_with_input(&["connect", &server.address().to_string(), "--engine", engine], &data);
        assert_eq!(output.status.code(), Some(0), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == data, "{engine}: {} of {} bytes", output.stdout.len(), data.len());
        assert!(output.stderr.is_empty(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn memory_stays_bounded_when_nobody_reads() {
    for engine in engines() {
        let server = Server::start(&["echo", "--engine", engine]);
        let address = server.address().to_string();
        let mut program =
            Program::start(ringport().args(["connect", &address, "--engine", engine]).stdin(Stdio::piped()));
        let (mut stdin, mut stdout) = (program.stdin(), program.stdout());
        // What the system's own libraries take is not the program's: the first answer comes when it has them all.
        stdin.write_all(b"x").expect("it reads");
        stdout.read_exact(&mut [0; 1]).expect("an echo");
        let before = resident_kib(program.id());
        let data = pattern(40 << 20);
        let sent = data.clone();
        let writer = thread::spawn(move || stdin.write_all(&sent).expect("all is taken in the end"));
        thread::sleep(Duration::from_millis(500));
        let resident = resident_kib(program.id());
        println!("{engine}: {before} KiB, then {resident} KiB");
        assert!(resident < before + 24 * 1024, "{engine}: {before} KiB, then {resident} KiB");
        let mut back = Vec::new();
        stdout.read_to_end(&mut back).expect("its output");
        writer.join().expect("all was written");
        assert_eq!(program.exit_code(), 0, "{engine}: {}", program.errors());
        assert!(back == data, "{engine}: {} of {} bytes", back.len(), data.len());
    }
}

#[test]
fn lines_come_whole() {
    let server = Server::start(&["echo"]);
    let address = server.address().to_string();
    let output = run_with_input(&["connect", &address, "--protocol", "lines"], b"one\ntwo\nthree");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\ntwo\nthree\n");
}

#[test]
fn it_keeps_receiving_after_the_end_of_input() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let peer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("it connects");
        let mut got = Vec::new();
        stream.read_to_end(&mut got).expect("its input, then the half-close");
        thread::sleep(Duration::from_millis(100));
        stream.write_all(&pattern(500_000)).expect("it still reads");
        got
    });
    let output = run_with_input(&["connect", &address], b"question");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(peer.join().expect("the peer ends"), b"question");
    assert!(output.stdout == pattern(500_000), "{} bytes", output.stdout.len());
}

#[test]
fn it_ends_when_the_peer_does_even_while_input_stays_open() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let mut program = Program::start(ringport().args(["connect", &address]).stdin(Stdio::piped()));
    let open = program.stdin();
    let (mut stream, _) = listener.accept().expect("it connects");
    stream.write_all(b"bye").expect("it reads");
    drop(stream);
    let mut back = String::new();
    program.stdout().read_to_string(&mut back).expect("its output");
    assert_eq!((back.as_str(), program.exit_code()), ("bye", 0));
    drop(open);
}

#[test]
fn it_ends_when_nobody_reads_its_output_any_more() {
    let server = Server::start(&["generate"]);
    let address = server.address().to_string();
    let mut program = Program::start(ringport().args(["connect", &address]).stdin(Stdio::piped()));
    let open = program.stdin();
    let mut stdout = program.stdout();
    stdout.read_exact(&mut [0; 1000]).expect("some output");
    drop(stdout);
    assert_eq!(program.exit_code(), 0, "{}", program.errors());
    drop(open);
}

#[test]
fn refused_and_reset_exit_1_with_one_line() {
    for engine in engines() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let peer = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("it connects");
            stream.read_exact(&mut [0; 1]).expect("a byte");
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("closing resets");
        });
        let output = run_with_input(&["connect", &address, "--engine", engine], b"x");
        peer.join().expect("the peer ends");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{engine}: {errors}");
        assert!(errors.starts_with("ringport: ") && errors.contains(&address) && errors.contains("reset"), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{engine}: {errors}");

        // Nobody listens there any more.
        let output = run(&["connect", &address, "--engine", engine]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{engine}: {errors}");
        assert!(errors.starts_with(&format!("ringport: cannot connect to {address}")), "{engine}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{engine}: {errors}");
    }
}
