//! A chat room: `cargo run --release --example chat -- 127.0.0.1:6629`, then `nc 127.0.0.1 6629` a few times.
//!
//! The first line that somebody sends is their name. Each later line goes to all others. One worker: no lock is needed.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;

use ringport::Bytes;
use ringport::aio::{self, Listener, OwnedReader, OwnedWriter, Stream};

/// A name or a message longer than this is an error, not a reason to fill memory.
const LINE_MAX: usize = 1024;

/// The writing halves of all who are there, by number.
type Room = Rc<RefCell<BTreeMap<u64, OwnedWriter>>>;

/// Lines of one guest, cut out of what arrives.
struct Lines {
    reader: OwnedReader,
    pending: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()));
            }
            if self.pending.len() > LINE_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
            }
            match self.reader.recv().await? {
                Some(data) => self.pending.extend_from_slice(&data),
                None => return Ok(None),
            }
        }
    }
}

/// Sends to all but one. Who does not read fast enough misses it: nobody waits for a guest.
fn tell(room: &Room, except: u64, text: String) {
    let text = Bytes::from(text);
    for (_, writer) in room.borrow_mut().iter_mut().filter(|(number, _)| **number != except) {
        let _ = writer.try_send(text.clone());
    }
}

async fn guest(room: Room, number: u64, stream: Stream) -> io::Result<()> {
    let (reader, writer) = stream.split();
    let mut lines = Lines { reader, pending: Vec::new() };
    let Some(name) = lines.next().await? else { return Ok(()) };
    room.borrow_mut().insert(number, writer);
    tell(&room, number, format!("* {name} is here\n"));
    let outcome = loop {
        match lines.next().await {
            Ok(Some(line)) => tell(&room, number, format!("{name}: {line}\n")),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    room.borrow_mut().remove(&number);
    tell(&room, number, format!("* {name} has left\n"));
    outcome
}

async fn serve(address: String) -> io::Result<()> {
    let mut listener = Listener::bind(&address)?;
    println!("chat on {}", listener.address());
    let room = Room::default();
    for number in 0.. {
        let (room, stream) = (Rc::clone(&room), listener.accept().await?);
        aio::spawn(async move {
            if let Err(error) = guest(room, number, stream).await {
                eprintln!("guest {number}: {error}");
            }
        });
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:6629".to_owned());
    Ok(ringport::block_on(serve(address))??)
}
