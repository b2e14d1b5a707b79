//! [`Inbox`]: what arrived on a stream and was not taken yet.

use std::collections::VecDeque;
use std::hint::cold_path;

use ringport_engine::Buf;

/// Pieces that may lie in the inbox uncopied. Beyond, a piece that fits behind the last one is copied there, so that a
/// peer that sends byte by byte does not hold a buffer of the pool for each.
const PIECES: usize = 8;
/// Room for pieces that an emptied inbox keeps.
const KEPT_PIECES: usize = 16;

/// Received bytes in order. The first piece lies in the inbox itself: a task that keeps up costs no allocation.
#[derive(Default)]
pub(super) struct Inbox {
    front: Option<Buf>,
    #[expect(clippy::box_collection, reason = "most streams never have it, and every stream has an inbox")]
    rest: Option<Box<VecDeque<Buf>>>,
    bytes: u32,
}

impl Inbox {
    pub(super) fn bytes(&self) -> usize {
        self.bytes as usize
    }

    #[inline]
    pub(super) fn push(&mut self, buf: Buf) {
        self.bytes += buf.len() as u32;
        if self.front.is_none() {
            self.front = Some(buf);
            return;
        }
        cold_path();
        let rest = self.rest.get_or_insert_default();
        if rest.len() >= PIECES
            && let Some(last) = rest.back_mut().filter(|last| last.spare() >= buf.len())
        {
            last.append(&buf);
            return;
        }
        rest.push_back(buf);
    }

    /// Puts back what was not used of the first piece.
    pub(super) fn push_front(&mut self, buf: Buf) {
        if buf.is_empty() {
            return;
        }
        self.bytes += buf.len() as u32;
        if let Some(second) = self.front.replace(buf) {
            self.rest.get_or_insert_default().push_front(second);
        }
    }

    #[inline]
    pub(super) fn pop(&mut self) -> Option<Buf> {
        let buf = self.front.take()?;
        self.bytes -= buf.len() as u32;
        if let Some(rest) = &mut self.rest {
            cold_path();
            self.front = rest.pop_front();
            if rest.is_empty() && rest.capacity() > KEPT_PIECES {
                self.rest = None;
            }
        }
        Some(buf)
    }

    /// Moves bytes into `to`, as many as there are and fit.
    pub(super) fn read(&mut self, to: &mut [u8]) -> usize {
        let mut done = 0;
        while done < to.len()
            && let Some(mut buf) = self.pop()
        {
            let count = buf.len().min(to.len() - done);
            to[done..done + count].copy_from_slice(&buf[..count]);
            done += count;
            buf.advance(count);
            self.push_front(buf);
        }
        done
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_and_small_pieces_are_joined() {
        let mut inbox = Inbox::default();
        let mut whole = Vec::new();
        for number in 0..200_u8 {
            let mut piece = Buf::with_capacity(64);
            piece.append(&[number]);
            whole.push(number);
            inbox.push(piece);
        }
        assert!(inbox.rest.as_ref().is_some_and(|rest| rest.len() < 14), "the pieces are joined");
        let mut out = [0; 77];
        assert_eq!(inbox.read(&mut out), 77);
        let mut all = out.to_vec();
        while let Some(piece) = inbox.pop() {
            all.extend_from_slice(&piece);
        }
        assert_eq!((all, inbox.bytes()), (whole, 0));
    }
}
