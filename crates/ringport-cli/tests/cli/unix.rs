//! What only Unix has: socket files.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::program::{LIMIT, Server, address_of, check_echo, connect, engines, run_with_input, temporary};
use crate::system::cpu;

#[test]
fn a_socket_file_beside_a_port() {
    let path = temporary("several.sock");
    let unix = format!("unix:{path}");
    let engine = engines()[0].as_str();
    let mut server = Server::start(&["echo", "--listen", "127.0.0.1:0", "--listen", &unix, "--workers", "2"]);
    assert_eq!(server.lines[1], format!("listening unix {path} engine={engine} workers=2"));
    check_echo(&mut connect(address_of(&server.lines[0])), b"four");
    let mut local = UnixStream::connect(&path).expect("it listens on the file");
    local.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    check_echo(&mut local, b"file");
    let output = run_with_input(&["connect", &unix], b"through the file");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"through the file"[..]));
    drop(local);
    assert_eq!(server.stop(), 0);
    assert!(!Path::new(&path).exists(), "the socket file is gone");
}

/// A server that may poll answers, and costs nothing once it has nothing to do.
#[test]
fn a_spinning_server_rests_when_idle() {
    for (engine, spin) in engines().iter().flat_map(|engine| [(engine, "200us"), (engine, "auto")]) {
        let server = Server::start(&["echo", "--engine", engine, "--spin", spin]);
        let mut stream = server.connect();
        for _ in 0..1_000 {
            check_echo(&mut stream, b"quick");
        }
        thread::sleep(Duration::from_millis(100));
        let before = cpu(server.program.id());
        thread::sleep(Duration::from_millis(500));
        let used = cpu(server.program.id()) - before;
        assert!(used <= Duration::from_millis(50), "{engine}, {spin}: {used:?} of processor time while idle");
        check_echo(&mut stream, b"still here");
    }
}
