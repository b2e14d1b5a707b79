//! What the methods of a stream do on its cell.

use std::hint::cold_path;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use ringport_engine::{Buf, Chunk, ConnInfo};

use super::{INBOX_BYTES, Inner, READ_EXACT_MAX, State, StreamCell};
use crate::aio::runtime::Interest;
use crate::session::CloseReason;
use crate::worker::ConnectionId;

/// Most bytes copied by one call of `poll_write`. More at a time would pass the limits by.
const WRITE_MAX: usize = 64 * 1024;

impl StreamCell {
    pub(in crate::aio) fn poll_connected(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        match inner.state {
            State::Connecting => {
                self.runtime.register(&mut inner.writer, cx);
                Poll::Pending
            }
            State::Closed => Poll::Ready(Err(inner.error())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// A new operation begins: its deadline counts from now.
    pub(in crate::aio) fn begin_read(&self) {
        if let Some(extra) = &mut self.inner.borrow_mut().extra {
            cold_path();
            (extra.read.since, extra.read.expired) = (None, false);
        }
    }

    /// As [`Self::begin_read`], for sending.
    pub(in crate::aio) fn begin_write(&self) {
        if let Some(extra) = &mut self.inner.borrow_mut().extra {
            cold_path();
            (extra.write.since, extra.write.expired) = (None, false);
        }
    }

    #[inline]
    pub(in crate::aio) fn poll_recv(self: &Rc<Self>, cx: &Context<'_>) -> Poll<io::Result<Option<Buf>>> {
        let mut inner = self.inner.borrow_mut();
        if let Some(buf) = inner.inbox.pop() {
            self.after_read(&mut inner);
            return Poll::Ready(Ok(Some(buf)));
        }
        ready!(self.poll_input(&mut inner, cx))?;
        Poll::Ready(Ok(None))
    }

    pub(in crate::aio) fn poll_read(self: &Rc<Self>, cx: &Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        if to.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if inner.inbox.bytes() == 0 {
            ready!(self.poll_input(&mut inner, cx))?;
            return Poll::Ready(Ok(0));
        }
        let count = inner.inbox.read(to);
        self.after_read(&mut inner);
        Poll::Ready(Ok(count))
    }

    /// Lends the first piece that arrived to `take`, which says how much of it it used; 0 at the peer's FIN.
    pub(in crate::aio) fn poll_lend(
        self: &Rc<Self>,
        cx: &Context<'_>,
        take: impl FnOnce(&[u8]) -> usize,
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        let Some(mut buf) = inner.inbox.pop() else {
            ready!(self.poll_input(&mut inner, cx))?;
            return Poll::Ready(Ok(0));
        };
        let used = take(&buf).min(buf.len());
        buf.advance(used);
        inner.inbox.push_front(buf);
        self.after_read(&mut inner);
        Poll::Ready(Ok(used))
    }

    /// All of `to` or nothing: until there is enough, the bytes stay in the inbox, which grows for it.
    pub(in crate::aio) fn poll_read_exact(self: &Rc<Self>, cx: &Context<'_>, to: &mut [u8]) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        if inner.inbox.bytes() >= to.len() {
            inner.inbox.read(to);
            inner.inbox_max = INBOX_BYTES as u32;
            self.after_read(&mut inner);
            return Poll::Ready(Ok(()));
        }
        if to.len() > READ_EXACT_MAX {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 1 GiB in one read")));
        }
        let wanted = to.len() as u32;
        if inner.inbox_max < wanted {
            inner.inbox_max = wanted;
            self.runtime.touch(self);
        }
        ready!(self.poll_input(&mut inner, cx))?;
        Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Gives up the room that a read of many bytes had asked for.
    pub(in crate::aio) fn end_read_exact(&self) {
        self.inner.borrow_mut().inbox_max = INBOX_BYTES as u32;
    }

    /// Waits for more than there is: ready at the end of the stream, or with what ended it.
    fn poll_input(self: &Rc<Self>, inner: &mut Inner, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if inner.peer_finished {
            cold_path();
            return Poll::Ready(Ok(()));
        }
        if matches!(inner.state, State::Closing | State::Closed) {
            cold_path();
            return Poll::Ready(Err(inner.error()));
        }
        if let Some(extra) = &mut inner.extra {
            cold_path();
            if std::mem::take(&mut extra.read.expired) {
                extra.read.since = None;
                return Poll::Ready(Err(timed_out("nothing arrived within the read timeout")));
            }
            if extra.read.wait(self.runtime.now()) {
                self.runtime.touch(self);
            }
        }
        self.runtime.register(&mut inner.reader, cx);
        Poll::Pending
    }

    #[inline]
    fn after_read(self: &Rc<Self>, inner: &mut Inner) {
        if inner.paused && inner.inbox.bytes() <= inner.inbox_max as usize / 2 {
            cold_path();
            self.runtime.touch(self);
        }
        if let Some(extra) = &mut inner.extra {
            cold_path();
            extra.read.since = None;
        }
    }

    /// Waits until the queue has room, or nothing can be sent any more.
    #[inline]
    pub(in crate::aio) fn poll_room(self: &Rc<Self>, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll_room_of(&mut self.inner.borrow_mut(), cx)
    }

    #[inline]
    fn poll_room_of(self: &Rc<Self>, inner: &mut Inner, cx: &Context<'_>) -> Poll<io::Result<()>> {
        inner.check_open()?;
        if inner.has_room() {
            if let Some(extra) = &mut inner.extra {
                cold_path();
                extra.write.since = None;
            }
            return Poll::Ready(Ok(()));
        }
        inner.wants_room = true;
        self.poll_writer(inner, cx)
    }

    /// Waits until no more than the high mark is queued, whether or not more can be sent.
    #[cfg(feature = "hyper")]
    pub(in crate::aio) fn poll_below_mark(self: &Rc<Self>, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        if inner.has_room() {
            return Poll::Ready(Ok(()));
        }
        if matches!(inner.state, State::Closing | State::Closed) {
            return Poll::Ready(Err(inner.error()));
        }
        inner.wants_room = true;
        self.poll_writer(&mut inner, cx)
    }

    fn poll_writer(self: &Rc<Self>, inner: &mut Inner, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if let Some(extra) = &mut inner.extra {
            if std::mem::take(&mut extra.write.expired) {
                extra.write.since = None;
                return Poll::Ready(Err(timed_out("the peer did not take enough within the write timeout")));
            }
            if extra.write.wait(self.runtime.now()) {
                self.runtime.touch(self);
            }
        }
        self.runtime.register(&mut inner.writer, cx);
        Poll::Pending
    }

    /// Queues a piece. The caller has waited for room.
    pub(in crate::aio) fn push(self: &Rc<Self>, piece: Chunk) -> io::Result<()> {
        self.push_to(&mut self.inner.borrow_mut(), piece)
    }

    /// Queues the piece that is in `data` once there is room for it. Until then it stays there.
    #[inline]
    pub(in crate::aio) fn poll_send(
        self: &Rc<Self>,
        cx: &Context<'_>,
        data: &mut Option<Chunk>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        ready!(self.poll_room_of(&mut inner, cx))?;
        Poll::Ready(match data.take() {
            Some(piece) => self.push_to(&mut inner, piece),
            None => Ok(()),
        })
    }

    #[inline]
    fn push_to(self: &Rc<Self>, inner: &mut Inner, piece: Chunk) -> io::Result<()> {
        if piece.len() > inner.message_max as usize {
            cold_path();
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is larger than the send limit"));
        }
        inner.unflushed = true;
        inner.outbox.get_or_insert_with(|| self.runtime.take_queue()).push(piece);
        self.runtime.touch(self);
        Ok(())
    }

    /// Queues a piece if there is room for it.
    pub(in crate::aio) fn try_push(self: &Rc<Self>, piece: Chunk) -> Result<(), Chunk> {
        let mut inner = self.inner.borrow_mut();
        if inner.check_open().is_err() || !inner.has_room() || piece.len() > inner.message_max as usize {
            return Err(piece);
        }
        inner.unflushed = true;
        inner.outbox.get_or_insert_with(|| self.runtime.take_queue()).push(piece);
        self.runtime.touch(self);
        Ok(())
    }

    /// Queues a copy of `pieces`, as far as [`WRITE_MAX`] allows, once there is room. Small ones in a row become one piece.
    pub(in crate::aio) fn poll_write<'a>(
        self: &Rc<Self>,
        cx: &Context<'_>,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.inner.borrow_mut();
        ready!(self.poll_room_of(&mut inner, cx))?;
        inner.unflushed = true;
        let outbox = inner.outbox.get_or_insert_with(|| self.runtime.take_queue());
        let mut left = WRITE_MAX;
        for piece in pieces {
            let piece = &piece[..piece.len().min(left)];
            outbox.write(piece, &self.runtime.pool);
            left -= piece.len();
        }
        self.runtime.touch(self);
        Poll::Ready(Ok(WRITE_MAX - left))
    }

    /// Asks for a flush and returns its number.
    pub(in crate::aio) fn ask_flush(self: &Rc<Self>) -> u32 {
        let mut inner = self.inner.borrow_mut();
        inner.flush.asked = inner.flush.asked.wrapping_add(1);
        self.runtime.touch(self);
        inner.flush.asked
    }

    /// Waits until the kernel has taken everything; ready at once if nothing was sent since that was so. Those who poll
    /// by hand ask again and again, and must not be woken for it.
    pub(in crate::aio) fn poll_flush(self: &Rc<Self>, cx: &Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let polled = self.inner.borrow().extra.as_ref().and_then(|extra| extra.polled_flush);
            if let Some(number) = polled {
                let flushed = ready!(self.poll_flushed(number, cx));
                self.inner.borrow_mut().extra.get_or_insert_default().polled_flush = None;
                flushed?;
            }
            if !std::mem::take(&mut self.inner.borrow_mut().unflushed) {
                return Poll::Ready(Ok(()));
            }
            let number = self.ask_flush();
            self.inner.borrow_mut().extra.get_or_insert_default().polled_flush = Some(number);
        }
    }

    /// Waits for the flush with this number.
    pub(in crate::aio) fn poll_flushed(self: &Rc<Self>, number: u32, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        if (inner.flush.done.wrapping_sub(number) as i32) >= 0 {
            if let Some(extra) = &mut inner.extra {
                cold_path();
                extra.write.since = None;
            }
            return Poll::Ready(Ok(()));
        }
        if matches!(inner.state, State::Closing | State::Closed) {
            return Poll::Ready(Err(inner.error()));
        }
        inner.wants_room = false;
        self.poll_writer(&mut inner, cx)
    }

    /// Whether a FIN was asked for already.
    pub(in crate::aio) fn ask_finish(self: &Rc<Self>) {
        self.inner.borrow_mut().finish = true;
        self.runtime.touch(self);
    }

    pub(in crate::aio) fn ask_abort(self: &Rc<Self>, reason: CloseReason) {
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Open | State::Connecting) {
            inner.abort = Some(reason);
            inner.state = State::Closing;
            self.runtime.touch(self);
        }
    }

    /// The reading half is gone: what lies in the inbox and what still comes is discarded.
    pub(in crate::aio) fn drop_reader(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        inner.reader_gone = true;
        inner.reader = Interest::None;
        inner.inbox.clear();
        self.runtime.touch(self);
    }

    /// The writing half is gone: a FIN follows what is queued.
    pub(in crate::aio) fn drop_writer(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        (inner.writer_gone, inner.finish) = (true, true);
        inner.writer = Interest::None;
        self.runtime.touch(self);
    }

    /// Whether nobody holds the stream any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        let inner = self.inner.borrow();
        inner.reader_gone && inner.writer_gone
    }

    pub(in crate::aio) fn poll_closed(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        if inner.state == State::Closed {
            let in_order = inner.end().is_some_and(|end| end.in_order);
            return Poll::Ready(if in_order { Ok(()) } else { Err(inner.error()) });
        }
        self.runtime.register(&mut inner.extra.get_or_insert_default().closing, cx);
        Poll::Pending
    }

    pub(in crate::aio) fn ask_info(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        let extra = inner.extra.get_or_insert_default();
        (extra.info_wanted, extra.info) = (true, None);
        self.runtime.touch(self);
    }

    pub(in crate::aio) fn poll_info(&self, cx: &Context<'_>) -> Poll<io::Result<ConnInfo>> {
        let mut inner = self.inner.borrow_mut();
        if let Some(info) = inner.extra.as_mut().and_then(|extra| extra.info.take()) {
            return Poll::Ready(info);
        }
        if inner.state == State::Closed {
            return Poll::Ready(Err(inner.error()));
        }
        self.runtime.register(&mut inner.extra.get_or_insert_default().asking, cx);
        Poll::Pending
    }

    pub(in crate::aio) fn set_timeouts(&self, read: Option<Option<Duration>>, write: Option<Option<Duration>>) {
        let mut inner = self.inner.borrow_mut();
        let extra = inner.extra.get_or_insert_default();
        if let Some(timeout) = read {
            extra.read.timeout = timeout;
        }
        if let Some(timeout) = write {
            extra.write.timeout = timeout;
        }
    }

    /// Bytes that the kernel has not taken yet, as far as known here.
    pub(in crate::aio) fn queued(&self) -> u64 {
        let inner = self.inner.borrow();
        inner.queued()
    }

    pub(in crate::aio) fn is_open(&self) -> bool {
        let inner = self.inner.borrow();
        inner.state == State::Open && !inner.peer_finished
    }

    /// Whether the connection may be used for something new: open both ways, and nothing lies there unread.
    pub(in crate::aio) fn is_clean(&self) -> bool {
        let inner = self.inner.borrow();
        inner.state == State::Open && !inner.peer_finished && !inner.finish && inner.inbox.bytes() == 0
    }

    /// Has `waker` woken by the next thing that happens on the reading side, or nobody.
    pub(in crate::aio) fn watch(&self, waker: Option<Waker>) {
        self.inner.borrow_mut().reader = waker.map_or(Interest::None, |waker| Interest::Waker(Box::new(waker)));
    }

    pub(in crate::aio) fn id(&self) -> Option<ConnectionId> {
        self.conn.get().map(|conn| ConnectionId { worker: self.runtime.number, conn })
    }
}

fn timed_out(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, text)
}
