//! Sending: one operation at a time for each connection, whose record owns the pieces.

use super::transmit::Permit;
use super::{IocpEngine, State};
use crate::buffer::{Chunk, SendQueue};
use crate::engine::contract::{Event, SendProgress};
use crate::engine::port::{Load, Record, Submitted};
use crate::engine::winsock::{self, BYTES_PER_SEND, PIECES_PER_SEND};
use crate::id::{ConnId, Id};

/// Records that are kept for reuse.
pub(super) const SPARE_SENDS: usize = 64;

/// Records for as many sends as are kept, so that a send which is pending for once costs no allocation: 10 KiB.
#[expect(clippy::vec_box, reason = "the kernel knows a record by its address")]
pub(super) fn first_records() -> Vec<Box<Record>> {
    let nobody = Id { slot: 0, generation: 0 };
    (0..SPARE_SENDS).map(|_| Record::new(nobody, Load::Send(Box::default()))).collect()
}

/// How a record was sent.
enum Progress {
    /// All of it, at once.
    Done(Box<Record>),
    /// The operation goes on.
    Pending,
    /// The connection has failed.
    Failed,
}

impl IocpEngine {
    #[inline]
    pub(super) fn start_send(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        let mut bytes = 0;
        let Some(conn) = self.conns.get(id) else { return SendProgress { bytes, idle: false } };
        if conn.state != State::Open || conn.finishing || conn.sending {
            return SendProgress { bytes, idle: false };
        }
        while !queue.is_empty() {
            if !self.permits(id, queue)
                && let Err(error) = queue.load_front(&self.pool)
            {
                self.fail(id, error.raw_os_error().unwrap_or(winsock::FILE_ENDED));
                return SendProgress { bytes, idle: false };
            }
            let mut record = self.spare_sends.pop().unwrap_or_else(|| Record::new(id, Load::Send(Box::default())));
            record.id = id.into();
            load(&mut record, queue);
            match self.post_send(id, record, &mut bytes) {
                Progress::Done(record) => self.keep_send(record),
                Progress::Pending | Progress::Failed => return SendProgress { bytes, idle: false },
            }
        }
        SendProgress { bytes, idle: true }
    }

    /// Whether the file in front of `queue` can be sent by the system itself.
    fn permits(&mut self, id: ConnId, queue: &SendQueue) -> bool {
        if self.transmitter.is_none() || !matches!(queue.front(), Some(Chunk::File(_))) {
            return false;
        }
        let Some(conn) = self.conns.get_mut(id) else { return false };
        conn.transmit = Permit::take();
        conn.transmit.is_some()
    }

    /// Reads how the file in front of a record begins, unless the system sends from it.
    ///
    /// # Errors
    ///
    /// The error number.
    fn read_ahead(&self, record: &mut Record, transmits: bool) -> Result<(), i32> {
        let Load::Send(pieces) = &mut record.load else { return Ok(()) };
        if transmits {
            return Ok(());
        }
        pieces.load_front(&self.pool).map_err(|error| error.raw_os_error().unwrap_or(winsock::FILE_ENDED))
    }

    /// Sends a record as far as that goes at once, and adds what the kernel took to `bytes`.
    fn post_send(&mut self, id: ConnId, mut record: Box<Record>, bytes: &mut usize) -> Progress {
        debug_assert!(self.conns.get(id).is_some_and(|conn| !conn.sending));
        loop {
            let transmitter =
                self.transmitter.filter(|_| self.conns.get(id).is_some_and(|conn| conn.transmit.is_some()));
            if let Err(error) = self.read_ahead(&mut record, transmitter.is_some()) {
                self.keep_unsent(id, record.load);
                self.fail(id, error);
                return Progress::Failed;
            }
            let Some(conn) = self.conns.get_mut(id) else { return Progress::Failed };
            let Some(socket) = &conn.socket else { return Progress::Failed };
            let mut sent = 0;
            self.stats.sends += 1;
            self.stats.transmits += u64::from(transmitter.is_some());
            // SAFETY: one send is started, on a socket that was attached to this port. The pieces lie in the load's box,
            // and their bytes neither move nor change, and their files stay open, while nobody has the record. `skip` is
            // what `skip_on_success` said.
            let submitted = unsafe {
                self.port.submit(record, conn.skip, |overlapped, load| match load {
                    Load::Send(pieces) => match (transmitter, pieces.front()) {
                        (Some(transmitter), Some(Chunk::File(range))) => {
                            transmitter.send(socket, range, overlapped, &mut sent)
                        }
                        _ => winsock::send(socket, pieces.iter(), overlapped, &mut sent),
                    },
                    _ => unreachable!("only records of sends come here"),
                })
            };
            match submitted {
                Submitted::Pending => {
                    conn.sending = true;
                    return Progress::Pending;
                }
                Submitted::Done(done) => {
                    record = done;
                    *bytes += sent;
                    if consume(&mut record, sent) {
                        conn.transmit = None;
                        return Progress::Done(record);
                    }
                    if sent == 0 {
                        // The file has ended, and reading it says so.
                        conn.transmit = None;
                    }
                }
                // Not every file can be sent from, but every file can be read; and if the connection is at fault, the next send
                // says so.
                Submitted::Refused(refused, _) if conn.transmit.take().is_some() => record = refused,
                Submitted::Refused(refused, error) => {
                    self.keep_unsent(id, refused.load);
                    self.fail(id, error);
                    return Progress::Failed;
                }
            }
        }
    }

    pub(super) fn on_send(&mut self, mut record: Box<Record>, bytes: u32, success: bool) -> Option<Event> {
        let id = ConnId::from(record.id);
        let conn = self.conns.get_mut(id)?;
        conn.sending = false;
        let mut bytes = bytes as usize;
        let mut idle = consume(&mut record, bytes);
        let (state, finishing) = (conn.state, conn.finishing);
        // The file has ended when nothing is sent, and reading it says so.
        if idle || !success || bytes == 0 || state != State::Open {
            conn.transmit = None;
        }
        let failure = match &conn.socket {
            Some(socket) if !success => record.failure(socket),
            _ => 0,
        };
        if idle {
            self.keep_send(record);
        } else if success && state == State::Open {
            idle = match self.post_send(id, record, &mut bytes) {
                Progress::Done(record) => {
                    self.keep_send(record);
                    true
                }
                Progress::Pending | Progress::Failed => false,
            };
        } else if let Load::Send(pieces) = record.load {
            conn.unsent = Some(pieces);
        }
        if idle && finishing && state == State::Open {
            self.send_fin(id);
        }
        if failure != 0 && state == State::Open {
            self.fail(id, failure);
        } else if state != State::Open {
            self.settle(id);
        }
        let told = bytes > 0 && state != State::Closing;
        told.then_some(Event::Sent { conn: id, bytes, idle })
    }

    /// What a record still has to send comes back with the end of its connection.
    fn keep_unsent(&mut self, id: ConnId, load: Load) {
        if let (Some(conn), Load::Send(pieces)) = (self.conns.get_mut(id), load) {
            conn.unsent = Some(pieces);
        }
    }

    fn keep_send(&mut self, record: Box<Record>) {
        if self.spare_sends.len() < SPARE_SENDS {
            self.spare_sends.push(record);
        }
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.finishing, true) {
            return;
        }
        if conn.state == State::Open && !conn.sending {
            self.send_fin(id);
        }
    }

    /// Everything was handed to the kernel: the FIN goes behind it.
    pub(super) fn send_fin(&mut self, id: ConnId) {
        if let Some(socket) = self.conns.get(id).and_then(|conn| conn.socket.as_ref()) {
            // A connection that is gone already says so elsewhere.
            let _ = socket.shutdown(std::net::Shutdown::Write);
        }
    }
}

/// Moves the front of `queue` into a record, as much as one operation sends. A range of a file comes alone.
#[inline]
fn load(record: &mut Record, queue: &mut SendQueue) {
    let Load::Send(pieces) = &mut record.load else { return };
    debug_assert!(pieces.is_empty());
    for _ in 0..PIECES_PER_SEND {
        if pieces.bytes() >= BYTES_PER_SEND as u64 {
            return;
        }
        let alone = queue.front().is_some_and(Chunk::is_alone);
        if alone && !pieces.is_empty() {
            return;
        }
        let Some(piece) = queue.pop() else { return };
        pieces.push(piece);
        if alone {
            return;
        }
    }
}

/// Drops the bytes that were sent. Whether nothing is left.
#[inline]
fn consume(record: &mut Record, bytes: usize) -> bool {
    let Load::Send(pieces) = &mut record.load else { return true };
    pieces.consume(bytes.min(usize::try_from(pieces.bytes()).unwrap_or(usize::MAX)));
    pieces.is_empty()
}
