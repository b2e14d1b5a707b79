//! 19,000 connections at once: against a server that can take them all, one that may not have so many descriptors, and
//! one that is told to refuse most. Each time a healthy peer goes on beside them.
//!
//! The crowd is a process of its own (`tests/tools/crowd.py`), since one process may not have descriptors for both ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::program::{LIMIT, Program, Server, check_echo, engines, probe};
use crate::system::{cpu, descriptors, resident_kib};

/// Connections of the crowd.
const CROWD: usize = 19_000;
/// What a server that is short of them may have: descriptors of one, connections of another.
const FEW: usize = 8_000;
/// What a server may have that takes everybody in.
const ENOUGH: usize = 19_900;
/// Longest that the healthy peer may wait for one answer. It shares two cores with the crowd and with other tests.
const SLOWEST: Duration = Duration::from_secs(5);

/// `ringport serve echo` with a limit on its descriptors, as far as the machine allows that many.
fn server(descriptors: usize, args: &[&str]) -> Server {
    let mut command = Command::new("sh");
    let line = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
    command.args(["-c", &line, env!("CARGO_BIN_EXE_ringport"), "serve", "echo", "--listen", "127.0.0.1:0"]);
    Server::start_command(command.args(["--idle-timeout", "0"]).args(args), 1)
}

/// The process with the other ends.
struct Crowd {
    program: Program,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Crowd {
    /// Lets everybody connect to `server`. `None` where this machine does not allow so many descriptors.
    fn connect(server: &Server) -> Option<Self> {
        let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tools/crowd.py");
        let (host, port) = (server.address().ip().to_string(), server.address().port().to_string());
        let mut command = Command::new("python3");
        command.args([tool, &host, &port, &CROWD.to_string()]).stdin(Stdio::piped());
        let mut program = Program::start(&mut command);
        let (stdin, stdout) = (program.stdin(), BufReader::new(program.stdout()));
        let mut crowd = Self { program, stdin, stdout };
        let answer = crowd.ask("wait 0");
        if answer.starts_with("skipped: ") {
            eprintln!("{answer}");
            return None;
        }
        Some(crowd)
    }

    fn ask(&mut self, line: &str) -> String {
        // Where it ended early, what it said is still there to be read.
        let _ = writeln!(self.stdin, "{line}");
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).expect("it answers");
        assert!(!answer.is_empty(), "the crowd ended: {}", self.program.errors());
        answer.trim_end().to_owned()
    }

    /// Waits until everybody is served or refused, at most so long, and says how many are served, refused and waiting.
    fn settle(&mut self, limit: Duration) -> (usize, usize, usize) {
        let answer = self.ask(&format!("wait {}", limit.as_secs_f64()));
        let count = |name| field(&answer, name) as usize;
        (count("served"), count("refused"), count("waiting"))
    }

    /// Everybody closes.
    fn go(self) {
        let Self { mut program, stdin, .. } = self;
        drop(stdin);
        assert_eq!(program.exit_code(), 0, "{}", program.errors());
    }
}

/// The number after `name=`.
fn field(answer: &str, name: &str) -> f64 {
    let value = answer.split(' ').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {answer:?}"))
}

/// What the server had before the crowd came.
struct Start {
    descriptors: usize,
    resident_kib: u64,
}

/// Waits until the server has as many descriptors as before the crowd.
fn back_to_the_start(engine: &str, server: &Server, start: &Start) {
    let end = Instant::now() + LIMIT;
    while descriptors(server.program.id()) > start.descriptors {
        let (now, before) = (descriptors(server.program.id()), start.descriptors);
        assert!(Instant::now() < end, "{engine}: {before} descriptors before, {now} are left");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `body` on each engine, with a server that a healthy peer uses all the time. That one must never fail. What
/// `body` returns the server must say in its last line, word by word.
fn beside_a_healthy_peer(limit: usize, args: &[&str], body: impl Fn(&str, &Server, &Start, Crowd) -> String) {
    for engine in engines() {
        let mut server = server(limit, &[args, &["--engine", engine]].concat());
        let idle = descriptors(server.program.id());
        let stop = Arc::new(AtomicBool::new(false));
        let healthy = probe(server.connect(), Arc::clone(&stop));
        // With the healthy peer.
        let start = Start { descriptors: idle + 1, resident_kib: resident_kib(server.program.id()) };
        let last = Crowd::connect(&server).map(|crowd| body(engine, &server, &start, crowd));
        stop.store(true, Ordering::Relaxed);
        let (messages, slowest) = healthy.join().expect("the healthy peer was served");
        assert!(messages > 10 && slowest < SLOWEST, "{engine}: {messages} messages, the slowest took {slowest:?}");
        eprintln!("{engine}: the healthy peer had {messages} messages, the slowest took {slowest:?}");
        assert_eq!(server.stop(), 0, "{engine}: {}", server.program.errors());
        let errors = server.program.errors();
        let last_line = errors.lines().last().unwrap_or_default();
        for words in last.unwrap_or_default().split_inclusive(' ') {
            assert!(last_line.contains(words), "{engine}: {words:?} is not in {last_line}");
        }
    }
}

#[test]
fn everybody_is_served_at_once() {
    beside_a_healthy_peer(ENOUGH, &[], |engine, server, start, mut crowd| {
        assert_eq!(crowd.settle(LIMIT), (CROWD, 0, 0), "{engine}");
        let (held, full) = (descriptors(server.program.id()), resident_kib(server.program.id()));
        assert!(held > CROWD, "{engine}: {held} descriptors for {CROWD} connections");
        check_echo(&mut server.connect(), b"there is room for one more");
        crowd.go();
        back_to_the_start(engine, server, start);
        let (before, after) = (start.resident_kib, resident_kib(server.program.id()));
        eprintln!("{engine}: {before} KiB before, {full} KiB with {CROWD} connections, {after} KiB afterwards");
        // Two KiB for each connection, where some hundred bytes are usual.
        assert!(full < before + 2 * CROWD as u64, "{engine}: {before} KiB before, {full} KiB with {CROWD} connections");
        " refused=0 accepts_failed=0 ".to_owned()
    });
}

#[test]
fn without_descriptors_most_wait_and_are_served_later() {
    beside_a_healthy_peer(FEW, &[], |engine, server, _, mut crowd| {
        let (served, refused, waiting) = crowd.settle(Duration::from_secs(3));
        assert!(served > FEW - 100 && served < FEW, "{engine}: {served} are served");
        assert_eq!((refused, served + waiting), (0, CROWD), "{engine}: nobody is turned away");

        let before = cpu(server.program.id());
        thread::sleep(Duration::from_secs(1));
        let used = cpu(server.program.id()) - before;
        // The healthy peer alone sends up to a thousand messages in this time.
        assert!(used < Duration::from_millis(300), "{engine}: {used:?} of processor time in a second of waiting");

        let leaving = 2_000;
        let answer = crowd.ask(&format!("leave {leaving}"));
        assert_eq!(field(&answer, "served") as usize, leaving, "{engine}: {answer}");
        assert!(field(&answer, "first") < 1.0, "{engine}: {answer}");
        crowd.go();
        // Those that connected in vain meanwhile are gone; a new one is served.
        check_echo(&mut server.connect(), b"room again");
        " refused=0 ".to_owned()
    });
}

#[test]
fn above_the_limit_of_connections_each_is_refused() {
    let limit = FEW.to_string();
    beside_a_healthy_peer(ENOUGH, &["--max-connections", &limit], |engine, server, start, mut crowd| {
        // The healthy peer is one of them.
        assert_eq!(crowd.settle(LIMIT), (FEW - 1, CROWD - FEW + 1, 0), "{engine}");
        crowd.go();
        back_to_the_start(engine, server, start);
        check_echo(&mut server.connect(), b"room again");
        format!(" refused={} accepts_failed=0 ", CROWD - FEW + 1)
    });
}
