//! `ringport connect --udp`: each line of standard input is a datagram, and what the peer sends is written out.
//!
//! A thread reads standard input and hands lines over; the handler takes them at each tick. After the end of input the
//! program ends when nothing came back for a second: datagrams have no end of their own.

use std::io::{self, BufRead, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use ringport::{Address, Datagram, DatagramHandler, Datagrams, Server};

use crate::Failure;
use crate::args::Connect;

/// How often input is looked for.
const TICK: Duration = Duration::from_millis(2);
/// Silence after the end of input that ends the program.
const SILENCE: Duration = Duration::from_secs(1);
/// The longest line that fits a datagram (see udp(7)); longer ones are cut into several.
const LINE_BYTES_MAX: u64 = 65_507;
/// Lines on their way from standard input.
const LINES: usize = 64;
/// Datagrams that may wait to be sent before more lines are taken.
const QUEUED_MAX: usize = 64;

/// Sends lines and prints answers until both have ended.
pub(crate) fn run(options: &Connect) -> Result<ExitCode, Failure> {
    let Address::Ip(to) = options.address else { return Err(Failure("datagrams need an IP address".to_owned())) };
    let (lines, input) = mpsc::sync_channel(LINES);
    let (ends, end) = mpsc::channel();
    let parts = Mutex::new(Some((input, ends)));
    let make = move || {
        let taken = parts.lock().ok().and_then(|mut parts| parts.take());
        let (input, ends) = taken.expect("a server with one worker makes one handler");
        Pipe { to, input, ends, ended: false, active_at: Instant::now() }
    };
    let own = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let running = Server::new().engine(options.engine.kind()).tick(TICK).udp(own, make).start()?;
    thread::spawn(move || read(&lines));
    let outcome = end.recv().unwrap_or_else(|_| Err("the worker ended without a word".to_owned()));
    running.handle().shutdown(Duration::ZERO);
    running.join()?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// Reads standard input line by line.
fn read(lines: &mpsc::SyncSender<Vec<u8>>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut line = Vec::new();
        let read = stdin.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        match read {
            // The handler takes the closed channel for the end of input.
            Ok(0) => return,
            Ok(_) if lines.send(line).is_err() => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::error!(%error, "cannot read standard input; taken as its end");
                return;
            }
        }
    }
}

struct Pipe {
    to: SocketAddr,
    input: mpsc::Receiver<Vec<u8>>,
    ends: mpsc::Sender<Result<(), String>>,
    /// Input has ended.
    ended: bool,
    /// When something last moved.
    active_at: Instant,
}

impl Pipe {
    fn end(&self, outcome: Result<(), String>) {
        // Only the first counts; `run` waits for it.
        let _ = self.ends.send(outcome);
    }
}

impl DatagramHandler for Pipe {
    type Peer = ();

    fn datagram(&mut self, socket: &mut Datagrams<'_>, (): &mut (), datagram: Datagram) {
        if datagram.from != self.to {
            return; // Anybody can send to an open socket.
        }
        self.active_at = socket.now();
        let mut out = io::stdout().lock();
        match out.write_all(&datagram.data).and_then(|()| out.flush()) {
            Ok(()) => {}
            // Whoever read our output has what it wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.end(Ok(())),
            Err(error) => self.end(Err(format!("cannot write to standard output: {error}"))),
        }
    }

    fn failed(&mut self, _: &mut Datagrams<'_>, to: Option<SocketAddr>, error: &io::Error) {
        if to.is_none_or(|to| to == self.to) {
            self.end(Err(format!("a datagram to {} failed: {error}", self.to)));
        }
    }

    fn tick(&mut self, socket: &mut Datagrams<'_>) {
        while !self.ended && socket.queued() < QUEUED_MAX {
            match self.input.try_recv() {
                Ok(line) => {
                    self.active_at = socket.now();
                    let _ = socket.send_to(self.to, line);
                }
                Err(mpsc::TryRecvError::Empty) => return,
                Err(mpsc::TryRecvError::Disconnected) => {
                    self.ended = true;
                    self.active_at = socket.now();
                }
            }
        }
        if self.ended && socket.now().saturating_duration_since(self.active_at) > SILENCE {
            self.end(Ok(()));
        }
    }
}
