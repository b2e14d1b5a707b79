//! [`SendQueue`]: what waits to be sent on one connection, in order.
//!
//! Almost every connection has nothing or one piece queued, so the first piece lies in the queue itself and costs no
//! allocation; only bursts reach the growable part.

use std::collections::VecDeque;
use std::io;

use super::{Buf, Chunk, Pool};

/// Room that an emptied queue keeps for the next burst, in pieces.
const KEPT_PIECES: usize = 16;

/// Pieces to send, first in first out.
///
/// The queue never holds memory that the kernel sees: [`Engine::send`](crate::Engine::send) moves pieces out of it
/// into a record of the engine's.
#[derive(Debug, Default)]
pub struct SendQueue {
    front: Option<Chunk>,
    /// Boxed, since most queues never have it and every connection has a queue.
    #[expect(clippy::box_collection, reason = "16 bytes a connection")]
    rest: Option<Box<VecDeque<Chunk>>>,
    bytes: u64,
}

impl SendQueue {
    /// An empty queue. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { front: None, rest: None, bytes: 0 }
    }

    /// Bytes in the queue.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of pieces in the queue.
    #[must_use]
    pub fn pieces(&self) -> usize {
        usize::from(self.front.is_some()) + self.rest.as_ref().map_or(0, |rest| rest.len())
    }

    /// Whether nothing is queued.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.front.is_none()
    }

    /// Appends a piece without copying it. An empty piece is dropped.
    #[inline]
    pub fn push(&mut self, piece: impl Into<Chunk>) {
        self.push_chunk(piece.into());
    }

    /// Not inlined, since a piece that is handed over by its address is moved once and not at every step.
    #[inline(never)]
    fn push_chunk(&mut self, piece: Chunk) {
        let bytes = piece.len();
        if bytes == 0 {
            return;
        }
        self.bytes += bytes as u64;
        if self.front.is_none() {
            self.front = Some(piece);
        } else {
            self.rest.get_or_insert_default().push_back(piece);
        }
    }

    /// Puts a piece back in front of all others.
    pub fn push_front(&mut self, piece: Chunk) {
        if piece.is_empty() {
            return;
        }
        self.bytes += piece.len() as u64;
        if let Some(second) = self.front.replace(piece) {
            self.rest.get_or_insert_default().push_front(second);
        }
    }

    /// Appends a copy of `data`: behind the last piece if that has room, else in a slot of `pool`, else in memory of
    /// its own. Small writes in a row thus become one piece and one system call.
    pub fn write(&mut self, data: &[u8], pool: &Pool) {
        let mut left = data;
        if let Some(Chunk::Buf(last)) = self.rest.as_mut().and_then(|rest| rest.back_mut()).or(self.front.as_mut()) {
            let count = last.append(left);
            self.bytes += count as u64;
            left = &left[count..];
        }
        if left.is_empty() {
            return;
        }
        let piece = match pool.writable(left.len()) {
            Some(mut buf) => {
                buf.append(left);
                buf
            }
            None => Buf::copied(left),
        };
        self.push(piece);
    }

    /// Takes the first piece.
    #[inline]
    pub fn pop(&mut self) -> Option<Chunk> {
        let piece = self.front.take()?;
        self.bytes -= piece.len() as u64;
        if let Some(rest) = &mut self.rest {
            self.front = rest.pop_front();
            if rest.is_empty() && rest.capacity() > KEPT_PIECES {
                self.rest = None;
            }
        }
        Some(piece)
    }

    /// The first piece.
    #[must_use]
    #[inline]
    pub fn front(&self) -> Option<&Chunk> {
        self.front.as_ref()
    }

    /// The bytes of the first piece, if it is the only one and lies in memory: what most sends are.
    #[allow(dead_code, reason = "the engines of Windows send in their own way")]
    #[inline]
    pub(crate) fn only(&self) -> Option<&[u8]> {
        if self.rest.as_ref().is_some_and(|rest| !rest.is_empty()) {
            return None;
        }
        match &self.front {
            Some(Chunk::Buf(buf)) => Some(buf),
            Some(Chunk::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// Takes the only piece if it is as [`Self::only`] has it.
    #[allow(dead_code, reason = "only io_uring sends later what it takes")]
    #[inline]
    pub(crate) fn take_only(&mut self) -> Option<Chunk> {
        self.only()?;
        self.bytes = 0;
        self.front.take()
    }

    /// Drops the only piece.
    #[allow(dead_code, reason = "the engines of Windows send in their own way")]
    #[inline]
    pub(crate) fn drop_only(&mut self) {
        debug_assert!(self.pieces() == 1);
        self.bytes = 0;
        if !matches!(self.front, Some(Chunk::Buf(_))) {
            self.front = None;
        } else if let Some(Chunk::Buf(buf)) = self.front.take() {
            drop(buf); // Here and not in the common code of all kinds.
        }
    }

    /// The pieces in order.
    pub fn iter(&self) -> impl Iterator<Item = &Chunk> {
        self.front.iter().chain(self.rest.iter().flat_map(|rest| rest.iter()))
    }

    /// Drops the first `count` bytes: pieces that were sent wholly are gone, one sent in part is shortened.
    ///
    /// # Panics
    ///
    /// If fewer bytes are queued.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        let mut left = count;
        while left > 0 {
            let front = self.front.as_mut().expect("consumed no more than was queued");
            let length = front.len();
            if left < length {
                front.advance(left);
                self.bytes -= left as u64;
                return;
            }
            left -= length;
            self.pop();
        }
    }

    /// If the first piece is a file range, reads how it begins into a slot of `pool` (or, without one, into memory of its
    /// own) and puts that in front: for a system that cannot send from a file by itself.
    ///
    /// # Errors
    ///
    /// As [`FileRange::read`](super::FileRange::read). The queue is as before then.
    pub fn load_front(&mut self, pool: &Pool) -> io::Result<()> {
        let Some(Chunk::File(range)) = &mut self.front else { return Ok(()) };
        let most = range.len().min(pool.config().large_slot_bytes as usize);
        let mut buf = pool.writable(most).unwrap_or_else(|| Buf::copied(&vec![0; most]));
        buf.set_filled(most as u32);
        let count = range.read(&mut buf)?;
        buf.truncate(count);
        range.advance(count);
        self.bytes -= count as u64;
        if range.is_empty() {
            let rest = self.rest.as_mut().and_then(|rest| rest.pop_front());
            self.front = rest;
        }
        self.push_front(buf.into());
        Ok(())
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}
