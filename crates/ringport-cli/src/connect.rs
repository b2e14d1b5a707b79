//! `ringport connect`: standard input to the peer, the peer to standard output.
//!
//! Standard input and output may block, the worker may not, so each has a thread of its own:
//!
//! ```text
//! stdin ─► Reader ── message, for a credit ──► Pipe ──► peer
//! stdout ◄─ Writer ◄────── channel ─────────── Pipe ◄── peer
//!              └── "room again" message ──────► resumes
//! ```
//!
//! Both directions are bounded. The reader needs a credit for each piece, and gets it back when the connection has room
//! again. The pipe stops reading while much waits for the writer.

use std::io::{self, BufRead, Read, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use ringport::{
    Buf, Bytes, Client, CloseReason, CloseReport, Connection, ConnectionId, ConnectionOptions, Context, Handler,
    Message, Remote, SocketOptions,
};

use crate::Failure;
use crate::args::{Connect, Protocol};

/// Bytes read from standard input at a time.
const PIECE_BYTES: usize = 64 * 1024;
/// Pieces that may be between standard input and the connection's queue.
const CREDITS: usize = 4;
/// Above this many bytes on their way to standard output reading from the peer pauses, at or below a quarter it goes on.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Pause before a full mailbox is tried again.
const MAILBOX_PAUSE: Duration = Duration::from_millis(1);

/// What the threads tell the pipe.
enum Input {
    Piece(Bytes),
    /// Standard input has ended.
    End,
    /// Standard output has room again.
    Room,
    /// Standard output is gone.
    Deaf,
}

/// What the pipe and the writer share.
#[derive(Default)]
struct Output {
    /// Bytes on their way to standard output.
    waiting: AtomicUsize,
    /// The pipe waits to be told that there is room.
    paused: AtomicBool,
    /// The connection is gone.
    ended: AtomicBool,
}

/// Connects, pipes, and returns when the peer has closed.
pub(crate) fn run(options: &Connect) -> Result<ExitCode, Failure> {
    let (ends, end) = mpsc::channel();
    let (pieces, to_write) = mpsc::channel();
    let output = Arc::new(Output::default());
    let (opened, to_threads) = mpsc::channel();
    let parts = Mutex::new(Some((pieces, opened, ends)));
    let (to, shared, protocol) = (options.address.clone(), Arc::clone(&output), options.protocol);
    let make = move || {
        let taken = parts.lock().ok().and_then(|mut parts| parts.take());
        let (pieces, opened, ends) = taken.expect("a client with one worker makes one handler");
        Pipe { to: to.to_string(), pieces, opened, ends, output: Arc::clone(&shared), credits: None, owed: 0 }
    };
    let connection = ConnectionOptions::default().idle_timeout(None).rest_when_full(false);
    let client = Client::new()
        .engine(options.engine.kind())
        .connect_with(options.address.clone(), 1, SocketOptions::default(), connection, make)
        .start()?;
    let remote = client.handle().remote();
    let writer = to_threads.recv().ok().map(|(id, credits)| {
        let way = Way { remote, id, output };
        let reader = way.clone();
        thread::spawn(move || reader.read(protocol, &credits));
        thread::spawn(move || way.write(protocol, &to_write))
    });
    client.join()?;
    let written = writer.map_or(Ok(()), |writer| writer.join().unwrap_or_else(|_| Err(io::Error::other("panicked"))));
    end.recv().unwrap_or_else(|_| Err("the connection ended without a word".to_owned()))?;
    match written {
        // Whoever read our output has what it wanted.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The connection's side, on the worker.
struct Pipe {
    to: String,
    pieces: mpsc::Sender<Bytes>,
    opened: mpsc::Sender<(ConnectionId, mpsc::Receiver<()>)>,
    ends: mpsc::Sender<Result<(), String>>,
    output: Arc<Output>,
    credits: Option<mpsc::Sender<()>>,
    /// Credits held back until the connection is writable again.
    owed: usize,
}

impl Pipe {
    fn give_credits(&self, count: usize) {
        for _ in 0..count {
            if let Some(credits) = &self.credits {
                // The reader may have ended with its input.
                let _ = credits.send(());
            }
        }
    }

    fn end(&self, outcome: Result<(), String>) {
        // There is one end, and `run` waits for it.
        let _ = self.ends.send(outcome);
    }
}

impl Handler for Pipe {
    type State = ();

    fn open(&mut self, conn: &mut Connection<'_, ()>) {
        let (credits, for_reader) = mpsc::channel();
        self.credits = Some(credits);
        self.give_credits(CREDITS);
        let _ = self.opened.send((conn.id(), for_reader));
    }

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        let count = data.len();
        let waiting = self.output.waiting.fetch_add(count, Ordering::SeqCst) + count;
        if self.pieces.send(data.into_bytes()).is_err() {
            return; // Standard output is gone; the writer has said so.
        }
        if waiting > OUTPUT_BYTES_MAX && !self.output.paused.swap(true, Ordering::SeqCst) {
            conn.pause();
            // The writer may have emptied the channel before it could see the flag.
            if self.output.waiting.load(Ordering::SeqCst) <= OUTPUT_BYTES_MAX / 4
                && self.output.paused.swap(false, Ordering::SeqCst)
            {
                conn.resume();
            }
        }
    }

    fn writable(&mut self, _: &mut Connection<'_, ()>) {
        let owed = std::mem::take(&mut self.owed);
        self.give_credits(owed);
    }

    fn message(&mut self, conn: &mut Connection<'_, ()>, message: Message) {
        match message.downcast().map(|input| *input) {
            Ok(Input::Piece(piece)) => {
                conn.send(piece);
                if conn.queued() > ConnectionOptions::default().high_mark {
                    self.owed += 1;
                } else {
                    self.give_credits(1);
                }
            }
            Ok(Input::End) => conn.finish(),
            // If it was paused again since, another message follows.
            Ok(Input::Room) if !self.output.paused.load(Ordering::SeqCst) => conn.resume(),
            Ok(Input::Room) => {}
            Ok(Input::Deaf) => conn.abort(),
            Err(_) => {}
        }
    }

    fn close(&mut self, _: &mut Connection<'_, ()>, report: &CloseReport) {
        let to = &self.to;
        let lost = report.unacked.filter(|lost| *lost > 0);
        let lost = lost
            .map_or(String::new(), |lost| format!("; {lost} of {} bytes sent were not acknowledged", report.accepted));
        self.end(match (&report.error, report.reason) {
            (None, CloseReason::PeerClosed | CloseReason::Local) => Ok(()),
            (Some(error), reason) => Err(format!("the connection to {to} ended ({reason}): {error}{lost}")),
            (None, reason) => Err(format!("the connection to {to} ended: {reason}{lost}")),
        });
    }

    fn connect_failed(&mut self, _: &mut Context, error: &io::Error) {
        self.end(Err(format!("cannot connect to {}: {error}", self.to)));
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.output.ended.store(true, Ordering::SeqCst);
    }
}

/// The way to the pipe, for the threads.
#[derive(Clone)]
struct Way {
    remote: Remote,
    id: ConnectionId,
    output: Arc<Output>,
}

impl Way {
    /// Reads standard input to its end.
    fn read(&self, protocol: Protocol, credits: &mpsc::Receiver<()>) {
        let mut stdin = io::stdin().lock();
        // Without a credit any more the connection has ended.
        while credits.recv().is_ok() {
            match read_piece(&mut stdin, protocol) {
                Ok(piece) if piece.is_empty() => return self.tell(Input::End),
                Ok(piece) => self.tell(Input::Piece(piece.into())),
                Err(error) => {
                    tracing::error!(%error, "cannot read standard input; taken as its end");
                    return self.tell(Input::End);
                }
            }
        }
    }

    /// Writes what the peer sends.
    fn write(&self, protocol: Protocol, pieces: &mpsc::Receiver<Bytes>) -> io::Result<()> {
        let mut out = LineBuffer { out: io::stdout().lock(), partial: Vec::new() };
        let outcome = loop {
            let Ok(piece) = pieces.recv() else { break out.finish() };
            let written = match protocol {
                Protocol::Raw => out.out.write_all(&piece).and_then(|()| out.out.flush()),
                Protocol::Lines => out.write(&piece),
            };
            if let Err(error) = written {
                break Err(error);
            }
            let waiting = self.output.waiting.fetch_sub(piece.len(), Ordering::SeqCst) - piece.len();
            if waiting <= OUTPUT_BYTES_MAX / 4 && self.output.paused.swap(false, Ordering::SeqCst) {
                self.tell(Input::Room);
            }
        };
        if outcome.is_err() {
            self.tell(Input::Deaf);
        }
        outcome
    }

    /// Puts a message into the worker's mailbox. When the worker has ended it is of no use any more.
    fn tell(&self, input: Input) {
        let mut message: Message = Box::new(input);
        while let Err(back) = self.remote.message(self.id, message) {
            if self.output.ended.load(Ordering::SeqCst) {
                return;
            }
            message = back.0;
            thread::sleep(MAILBOX_PAUSE);
        }
    }
}

/// Reads what there is, up to one piece or one line. Empty at the end of input.
fn read_piece(stdin: &mut io::StdinLock<'_>, protocol: Protocol) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    if protocol == Protocol::Lines {
        stdin.take(PIECE_BYTES as u64).read_until(b'\n', &mut piece)?;
        return Ok(piece);
    }
    piece.resize(PIECE_BYTES, 0);
    loop {
        match stdin.read(&mut piece) {
            Ok(count) => {
                piece.truncate(count);
                return Ok(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes whole lines, and what is too long for one in parts.
struct LineBuffer<W> {
    out: W,
    partial: Vec<u8>,
}

impl<W: Write> LineBuffer<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        let whole = data.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole > 0 {
            self.out.write_all(&self.partial)?;
            self.partial.clear();
            self.out.write_all(&data[..whole])?;
        }
        self.partial.extend_from_slice(&data[whole..]);
        if self.partial.len() > PIECE_BYTES {
            self.out.write_all(&self.partial)?;
            self.partial.clear();
        }
        self.out.flush()
    }

    /// The last line may lack its end.
    fn finish(&mut self) -> io::Result<()> {
        if !self.partial.is_empty() {
            self.out.write_all(&self.partial)?;
            self.out.write_all(b"\n")?;
        }
        self.out.flush()
    }
}
