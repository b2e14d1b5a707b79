//! Sending: what a callback asked for is posted at the beginning of the next wait, as one batch for each connection.
//!
//! Ranges of files are read into slots and sent from there. TransmitFile is not used: nothing says in which order it and the
//! requests in the queue of the same socket are carried out (Microsoft Learn, "RIOSend" and "TransmitFile function").

use std::net::Shutdown;

use windows_sys::Win32::Foundation::RtlNtStatusToDosError;
use windows_sys::Win32::Networking::WinSock::{RIO_BUF, RIO_MSG_DEFER, RIORESULT, WSAECONNABORTED, WSAEOPNOTSUPP};

use super::books::{Flight, Next, SENDS, SliceId};
use super::queues::Direction;
use super::receive::TAG_BITS;
use super::{RioEngine, State};
use crate::buffer::{Buf, Chunk, SendQueue};
use crate::engine::contract::{Event, SendProgress};
use crate::engine::winsock::{self, BYTES_PER_SEND, PIECES_PER_SEND, Started};
use crate::id::ConnId;

/// Memory that a copy is sent from.
#[derive(Debug)]
pub(super) enum Stage {
    /// A slot of the pool, which goes back when this is dropped.
    Slot(#[expect(dead_code, reason = "only held")] Buf),
    /// A slice of the landing area.
    Slice(SliceId),
}

const _: () = assert!(SENDS < 1 << TAG_BITS, "a tag has room for every send and the receive");

impl RioEngine {
    #[inline]
    pub(super) fn start_send(&mut self, id: ConnId, queue: &mut SendQueue) -> SendProgress {
        const NOTHING: SendProgress = SendProgress { bytes: 0, idle: false };
        let Some(conn) = self.conns.get_mut(id) else { return NOTHING };
        if conn.state != State::Open || conn.finishing || conn.flight.is_some() {
            return NOTHING;
        }
        if queue.is_empty() {
            return SendProgress { bytes: 0, idle: true };
        }
        let refused = match queue.load_front(&self.pool) {
            Err(error) => Some(error.raw_os_error().unwrap_or(winsock::FILE_ENDED)),
            // Registered I/O has no flag for it (Microsoft Learn, "RIOSend").
            Ok(()) if matches!(queue.front(), Some(Chunk::Urgent(_))) => Some(WSAEOPNOTSUPP),
            Ok(()) => None,
        };
        if let Some(error) = refused {
            self.end(id, error);
            return NOTHING;
        }
        conn.flight = Some(Box::new(Flight::take(queue, PIECES_PER_SEND)));
        self.soil(id);
        NOTHING
    }

    /// Posts as many sends of a connection as may be in flight. All but the last are deferred.
    pub(super) fn post_sends(&mut self, id: ConnId) {
        let mut held: Option<(RIO_BUF, usize)> = None;
        let mut deferred = false;
        loop {
            let next = self.prepare_send(id);
            let Some(conn) = self.conns.get(id) else { return };
            let Some(requests) = conn.requests else { return };
            if let Some((slice, tag)) = held.take() {
                let flags = if next.is_some() { RIO_MSG_DEFER } else { 0 };
                self.stats.sends += 1;
                self.stats.commits += u64::from(flags == 0);
                // SAFETY: the slice is part of a piece or of a stage that the flight keeps until the completion of this
                // request was dequeued. The socket is open, and the engine never leaves its thread.
                let started = unsafe { requests.post(&self.functions, Direction::Send, &slice, flags, tag) };
                if let Started::Refused(error) = started {
                    if deferred {
                        self.stats.commits += 1;
                        requests.commit(&self.functions, Direction::Send);
                    }
                    return self.not_posted(id, tag, next, error);
                }
                deferred = flags != 0;
            }
            let Some(next) = next else { return };
            held = Some(next);
        }
    }

    /// Takes note of sends that were prepared and not posted, and ends the connection.
    #[cold]
    fn not_posted(&mut self, id: ConnId, tag: usize, next: Option<(RIO_BUF, usize)>, error: i32) {
        for tag in std::iter::once(tag).chain(next.map(|(_, tag)| tag)) {
            self.end_send(id, tag, 0);
        }
        self.end(id, error);
    }

    /// Prepares the next send: copies what has to be copied, and notes it as in flight. Returns its bytes and its tag.
    fn prepare_send(&mut self, id: ConnId) -> Option<(RIO_BUF, usize)> {
        let Self { conns, pool, landing, region, stats, starved, .. } = self;
        let conn = conns.get_mut(id).filter(|conn| conn.state == State::Open)?;
        let flight = conn.flight.as_mut()?;
        // Only a lease is unique: `Bytes` of a slot may be on its way to others, too, and a slice has one request.
        let in_place =
            |piece: &Chunk| matches!(piece, Chunk::Buf(buf) if buf.is_pooled() && region.contains(buf.as_ptr()));
        let (slice, stage) = match flight.next(BYTES_PER_SEND, in_place)? {
            Next::InPlace(address, bytes) => (region.slice(address, bytes as u32), None),
            Next::Copied(bytes) => {
                let most = bytes.min(pool.config().large_slot_bytes as usize);
                if let Some(mut buf) = pool.writable(most) {
                    let copied = flight.copy(most, |data| buf.append(data));
                    (region.slice(buf.as_ptr(), copied as u32), Some(Stage::Slot(buf)))
                } else if let Ok(slice) = landing.take() {
                    let mut filled = 0;
                    flight.copy(most, |data| {
                        // SAFETY: the slice was just taken.
                        let count = unsafe { landing.fill(slice, filled, data) };
                        filled += count;
                        count
                    });
                    (landing.slice(slice, filled), Some(Stage::Slice(slice)))
                } else {
                    // What is in flight already brings it back here; otherwise it tries again soon.
                    if flight.in_flight() == 0 {
                        stats.starved += 1;
                        starved.push(id);
                    }
                    return None;
                }
            }
        };
        let number = flight.posted(slice.Length as usize, stage);
        Some((slice, id.slot() << TAG_BITS | (1 + number as usize)))
    }

    /// A send has ended.
    pub(super) fn on_send(&mut self, id: ConnId, tag: usize, result: &RIORESULT) -> Option<Event> {
        let (bytes, hole) = self.end_send(id, tag, result.BytesTransferred as usize)?;
        let conn = self.conns.get_mut(id)?;
        let open = conn.state == State::Open;
        let done = conn.flight.as_ref().is_some_and(|flight| flight.is_done());
        if done {
            conn.flight = None;
        }
        if open && result.Status != 0 {
            self.fail(id, winsock_error(result.Status));
        } else if open && hole {
            self.fail(id, WSAECONNABORTED);
        } else if open && done {
            if conn.finishing {
                self.send_fin(id);
            }
        } else if open {
            self.soil(id);
        } else {
            self.settle(id);
        }
        let conn = self.conns.get(id)?;
        if bytes == 0 || conn.given_up {
            return None;
        }
        // Also of a connection that is failing: the record is empty, and `send` says that it takes no more.
        Some(Event::Sent { conn: id, bytes, idle: done })
    }

    /// Notes the end of a send. Returns the bytes that count now, and whether some are missing before others.
    fn end_send(&mut self, id: ConnId, tag: usize, bytes: usize) -> Option<(usize, bool)> {
        let Self { conns, landing, .. } = self;
        let flight = conns.get_mut(id)?.flight.as_mut()?;
        let number = (tag & ((1 << TAG_BITS) - 1)) as u32 - 1;
        let progress = flight.ended(number, bytes, |stage| {
            if let Stage::Slice(slice) = stage {
                landing.give_back(slice);
            }
        });
        Some((progress.bytes, progress.hole))
    }

    pub(super) fn finish_sending(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.finishing, true) {
            return;
        }
        if conn.state == State::Open && conn.flight.is_none() {
            self.send_fin(id);
        }
    }

    /// Everything was taken: the FIN goes behind it.
    pub(super) fn send_fin(&mut self, id: ConnId) {
        if let Some(socket) = self.conns.get(id).and_then(|conn| conn.socket.as_ref()) {
            // A connection that is gone already says so elsewhere.
            let _ = socket.shutdown(Shutdown::Write);
        }
    }
}

/// The Winsock error of a completion. Its status is documented as no more than "the completion status": so both a status
/// of the kernel, which is negative when it speaks of an error, and an error number are understood.
pub(super) fn winsock_error(status: i32) -> i32 {
    if status >= 0 {
        return winsock::as_winsock_error(status);
    }
    // SAFETY: no memory is passed.
    winsock::as_winsock_error(unsafe { RtlNtStatusToDosError(status) } as i32)
}
