//! A server without descriptors: it waits without spinning, and serves again when some come back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::program::{LIMIT, Server, check_echo, engines};
use crate::system::cpu;

#[test]
fn out_of_descriptors() {
    for engine in engines() {
        let mut command = Command::new("sh");
        let line = "ulimit -n 200 && exec \"$0\" \"$@\"";
        command.args(["-c", line, env!("CARGO_BIN_EXE_ringport"), "serve", "echo", "--listen", "127.0.0.1:0"]);
        let mut server = Server::start_command(command.args(["--engine", engine]), 1);
        let mut streams: Vec<TcpStream> = (0..400).map(|_| server.connect()).collect();
        for stream in &mut streams {
            stream.write_all(b"x").expect("the kernel takes it");
        }
        let (mut served, mut waiting) = sort(streams);
        assert!(served.len() > 100 && served.len() < 200, "{engine}: {} served", served.len());

        let before = cpu(server.program.id());
        thread::sleep(Duration::from_secs(1));
        let used = cpu(server.program.id()) - before;
        assert!(used < Duration::from_millis(200), "{engine}: {used:?} of processor time in a second of waiting");
        check_echo(&mut served[0], b"those inside go on");

        // As many leave as there is room for; the same number of those waiting gets in.
        let room = served.len() - 10;
        served.truncate(10);
        let freed = Instant::now();
        for stream in waiting.iter_mut().take(room) {
            stream.read_exact(&mut [0; 1]).expect("it is served now");
        }
        assert!(freed.elapsed() < Duration::from_secs(1), "{engine}: served again after {:?}", freed.elapsed());
        drop((served, waiting));
        assert_eq!(server.stop(), 0, "{engine}: {}", server.program.errors());
    }
}

/// Those that get their byte back, and those that do not.
fn sort(streams: Vec<TcpStream>) -> (Vec<TcpStream>, Vec<TcpStream>) {
    thread::sleep(Duration::from_millis(500));
    let (mut served, mut waiting) = (Vec::new(), Vec::new());
    for mut stream in streams {
        stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout can be set");
        let came = stream.read(&mut [0; 1]).is_ok_and(|count| count == 1);
        stream.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
        if came { served.push(stream) } else { waiting.push(stream) }
    }
    (served, waiting)
}
