//! Running the binary, and what the tests need around it.

use std::cell::Cell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::system;

/// Longest time that anything single may take.
pub(crate) const LIMIT: Duration = system::LIMIT;

/// The binary under test.
pub(crate) fn ringport() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringport"));
    system::prepare(&mut command);
    command
}

/// Longest time that a program may run. Beyond, it is killed, so that whoever reads from it sees the end and fails.
const PROGRAM_LIMIT: Duration = Duration::from_secs(2 * LIMIT.as_secs());

/// A running program. Killed when dropped, and when its time is over.
pub(crate) struct Program {
    child: Arc<Mutex<Child>>,
    id: u32,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    /// Dropping it ends the thread that watches the time.
    _watch: mpsc::Sender<()>,
    errors: Arc<Mutex<String>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Program {
    /// Starts `command` and collects what it writes to standard error.
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child =
            system::start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).expect("the program starts");
        let errors = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(child.stderr.take().expect("standard error is piped"));
        let collected = Arc::clone(&errors);
        let reader = thread::spawn(move || {
            let mut line = String::new();
            while lines.read_line(&mut line).is_ok_and(|count| count > 0) {
                lock(&collected).push_str(&line);
                line.clear();
            }
        });
        let (id, stdin, stdout) = (child.id(), child.stdin.take(), child.stdout.take());
        let child = Arc::new(Mutex::new(child));
        let (watch, over) = mpsc::channel::<()>();
        let watched = Arc::clone(&child);
        thread::spawn(move || {
            if over.recv_timeout(PROGRAM_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("program {id} has run for {PROGRAM_LIMIT:?} and is killed");
                end(&watched);
            }
        });
        Self { child, id, stdin, stdout, _watch: watch, errors, reader: Some(reader) }
    }

    pub(crate) fn stdout(&mut self) -> ChildStdout {
        self.stdout.take().expect("standard output is piped and was not taken")
    }

    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.stdin.take().expect("standard input is piped and was not taken")
    }

    /// What it has written to standard error so far; all of it once it has ended.
    pub(crate) fn errors(&self) -> String {
        lock(&self.errors).clone()
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Asks it to end as a user does.
    pub(crate) fn interrupt(&self) {
        self.asked(system::interrupt(self.id));
    }

    /// Asks it to end as a service manager does.
    pub(crate) fn terminate(&self) {
        self.asked(system::terminate(self.id));
    }

    /// Asks it to end in one of the ways that the system has.
    pub(crate) fn request(&self, way: &str) {
        self.asked(system::request(self.id, way));
    }

    fn asked(&self, outcome: Result<(), String>) {
        outcome.unwrap_or_else(|error| panic!("the program has ended already: {error}: {}", self.errors()));
    }

    /// Waits for its end and returns its exit code.
    pub(crate) fn exit_code(&mut self) -> i32 {
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = lock(&self.child).try_wait().expect("it can be waited for") {
                break status;
            }
            assert!(Instant::now() < end, "it does not end: {}", self.errors());
            thread::sleep(Duration::from_millis(5));
        };
        if let Some(reader) = self.reader.take() {
            reader.join().expect("standard error was read");
        }
        status.code().unwrap_or_else(|| panic!("it was killed: {status}: {}", self.errors()))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        end(&self.child);
    }
}

/// Kills a program, which may have ended by itself.
fn end(child: &Mutex<Child>) {
    let mut child = lock(child);
    let _ = child.kill();
    let _ = child.wait();
}

/// What a test that failed left behind is still good for the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs a program to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    run_with_input(args, &[])
}

/// Runs a program on `input` to its end.
pub(crate) fn run_with_input(args: &[&str], input: &[u8]) -> Output {
    let mut program = Program::start(ringport().args(args).stdin(Stdio::piped()));
    let (mut stdin, mut stdout) = (program.stdin(), program.stdout());
    let input = input.to_vec();
    // A program that ends early does not read it all.
    let writer = thread::spawn(move || drop(stdin.write_all(&input)));
    let reader = thread::spawn(move || {
        let mut out = Vec::new();
        stdout.read_to_end(&mut out).expect("its output can be read");
        out
    });
    let code = program.exit_code();
    writer.join().expect("input was written");
    let stdout = reader.join().expect("output was read");
    let status = system::exit_status(code);
    Output { status, stdout, stderr: program.errors().into_bytes() }
}

thread_local! {
    /// What the servers of this test are written with: see [`with_api`].
    static API: Cell<&'static str> = const { Cell::new("handler") };
}

/// Runs a test with servers of this API.
pub(crate) fn with_api(api: &'static str, test: fn()) {
    API.set(api);
    test();
}

/// Makes two tests of each function: one for each API that a server can be written with.
macro_rules! both_apis {
    ($($name:ident),* $(,)?) => {
        $(mod $name {
            #[test]
            fn handler() {
                crate::program::with_api("handler", super::$name);
            }

            #[test]
            fn tasks() {
                crate::program::with_api("async", super::$name);
            }
        })*
    };
}
pub(crate) use both_apis;

/// A server under test.
pub(crate) struct Server {
    pub(crate) program: Program,
    /// What it said where it listens, line by line.
    pub(crate) lines: Vec<String>,
}

impl Server {
    /// Runs `ringport serve` with `args` on a free port of 127.0.0.1, unless they say where to listen, with the API of the
    /// test.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = ringport();
        command.arg("serve").args(args).args(["--api", API.get()]);
        let listeners = args.iter().filter(|arg| **arg == "--listen").count();
        if listeners == 0 {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        Self::start_command(&mut command, listeners.max(1))
    }

    /// Runs `command`, which is to announce so many listeners.
    pub(crate) fn start_command(command: &mut Command, listeners: usize) -> Self {
        let mut program = Program::start(command);
        let (tell, told) = mpsc::channel();
        let mut stdout = BufReader::new(program.stdout());
        thread::spawn(move || {
            for line in stdout.by_ref().lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let line = |_| match told.recv_timeout(LIMIT) {
            Ok(line) => line,
            Err(_) => panic!("it does not listen: {}", program.errors()),
        };
        let lines = (0..listeners).map(line).collect();
        Self { program, lines }
    }

    /// The address of its first listener.
    pub(crate) fn address(&self) -> SocketAddr {
        address_of(&self.lines[0])
    }

    pub(crate) fn connect(&self) -> TcpStream {
        connect(self.address())
    }

    /// Ends it as a service manager does and returns its exit code.
    pub(crate) fn stop(&mut self) -> i32 {
        self.program.terminate();
        self.program.exit_code()
    }
}

/// The address in a line such as `listening tcp 127.0.0.1:6628 engine=io_uring workers=2`.
pub(crate) fn address_of(line: &str) -> SocketAddr {
    line.split(' ').nth(2).and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"))
}

/// Connects, with limits on every later call.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&to, LIMIT).expect("the server accepts");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout can be set");
    stream.set_write_timeout(Some(LIMIT)).expect("a timeout can be set");
    stream
}

/// Sends `data` and expects it back.
pub(crate) fn check_echo(stream: &mut (impl Read + Write), data: &[u8]) {
    stream.write_all(data).expect("it takes data");
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back).expect("the data comes back");
    assert!(back == data, "the echo differs");
}

/// Runs an echo on `stream` until it is told to stop, and returns the number of messages and the slowest.
pub(crate) fn probe(mut stream: TcpStream, stop: Arc<AtomicBool>) -> thread::JoinHandle<(usize, Duration)> {
    thread::spawn(move || {
        let (mut messages, mut slowest) = (0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let started = Instant::now();
            check_echo(&mut stream, b"are you well?");
            slowest = slowest.max(started.elapsed());
            messages += 1;
            thread::sleep(Duration::from_millis(1));
        }
        (messages, slowest)
    })
}

/// Bytes in which every position can be told from its neighbours.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(7) ^ (at >> 16)) as u8).collect()
}

/// The engines that work on this machine.
pub(crate) fn engines() -> &'static [String] {
    static ENGINES: OnceLock<Vec<String>> = OnceLock::new();
    ENGINES.get_or_init(|| {
        let output = run(&["engines", "--json"]);
        let rows: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
        let rows = rows.as_array().expect("a list");
        let available = rows.iter().filter(|row| row["available"] == true);
        let names: Vec<String> = available.filter_map(|row| row["name"].as_str().map(str::to_owned)).collect();
        assert!(!names.is_empty(), "no engine works here");
        names
    })
}

/// A path in the folder for temporary files that no other test uses.
pub(crate) fn temporary(name: &str) -> String {
    format!("{}/ringport-{}-{name}", std::env::temp_dir().display(), std::process::id())
}
