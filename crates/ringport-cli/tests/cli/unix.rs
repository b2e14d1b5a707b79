//! What only Unix has: socket files.

use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::program::{LIMIT, Server, address_of, check_echo, connect, engines, run_with_input, temporary};

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
