//! [`Stream`] and its halves.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use ringport_engine::{Buf, Chunk, ConnInfo};

use super::cell::StreamCell;
use crate::address::Address;
use crate::session::CloseReason;
use crate::worker::ConnectionId;

/// The receiving half of a stream. Dropping it discards what lies there and what still comes.
pub struct OwnedReader {
    cell: Rc<StreamCell>,
    /// Part of a whole stream again: dropping this half means nothing.
    whole: bool,
}

/// The sending half of a stream. Dropping it sends a FIN behind what is queued.
pub struct OwnedWriter {
    cell: Rc<StreamCell>,
    whole: bool,
}

/// A connection, owned by a task. It stays on its worker.
///
/// Dropping it closes the connection in order, in the background: what was sent is delivered, then a FIN. If the task
/// panicked the connection is aborted instead.
pub struct Stream {
    /// One pointer, since every task of a connection holds a stream. Only [`Stream::split`] takes it away.
    cell: Option<Rc<StreamCell>>,
}

impl OwnedReader {
    /// The next bytes that arrived, in the buffer in which the kernel left them. `None` at the peer's FIN.
    ///
    /// # Errors
    ///
    /// What ended the connection, after all that arrived before was handed out; `TimedOut` after the read timeout, and the
    /// stream can still be used then.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing: the next call gets the bytes.
    #[inline]
    pub fn recv(&mut self) -> RecvFuture<'_> {
        self.cell.begin_read();
        RecvFuture { cell: &self.cell }
    }

    /// Moves bytes that arrived into `to` and says how many; 0 at the peer's FIN.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        read(&self.cell, to).await
    }

    /// Fills `to`.
    ///
    /// # Errors
    ///
    /// As [`Self::recv`], and `UnexpectedEof` if the peer closes before; what it sent stays to be received.
    ///
    /// # Cancel safety
    ///
    /// It takes all bytes or none: until there are enough they stay where they are, and dropping it loses nothing.
    pub async fn read_exact(&mut self, to: &mut [u8]) -> io::Result<()> {
        read_exact(&self.cell, to).await
    }

    /// Sets how long one receiving operation may wait. Without end by default.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.cell.set_timeouts(Some(timeout), None);
    }

    /// As [`Self::recv`], for those who write futures by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Buf>>> {
        self.cell.poll_recv(cx)
    }

    /// As [`Self::read`], for those who write futures by hand.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        self.cell.poll_read(cx, to)
    }

    /// Whether `other` is the other half of the same stream.
    #[must_use]
    pub fn is_pair_of(&self, other: &OwnedWriter) -> bool {
        Rc::ptr_eq(&self.cell, &other.cell)
    }

    /// Joins the halves of one stream again.
    ///
    /// # Errors
    ///
    /// Hands both back if they are of different streams.
    pub fn unsplit(mut self, mut writer: OwnedWriter) -> Result<Stream, (Self, OwnedWriter)> {
        if !self.is_pair_of(&writer) {
            return Err((self, writer));
        }
        let cell = Rc::clone(&self.cell);
        (self.whole, writer.whole) = (true, true);
        Ok(Stream { cell: Some(cell) })
    }
}

/// A read of many bytes is over, however it ended: the inbox has its usual size again.
struct ReadRoom<'a>(&'a StreamCell);

impl Drop for ReadRoom<'_> {
    fn drop(&mut self) {
        self.0.end_read_exact();
    }
}

impl OwnedWriter {
    /// Queues `data` without copying it, once less than the high mark is queued. It leaves when the task waits next,
    /// together with all else that it has sent until then.
    ///
    /// # Errors
    ///
    /// What ended the connection; `BrokenPipe` after [`Self::shutdown`]; `TimedOut` when the queue stayed full for the
    /// write timeout; `InvalidInput` for a message larger than the send limit under a policy that drops messages.
    ///
    /// # Cancel safety
    ///
    /// All or nothing: if it is dropped before it is ready, nothing of `data` was or will be sent. To keep the data in that
    /// case wait for [`Self::writable`] first.
    #[inline]
    pub fn send(&mut self, data: impl Into<Chunk>) -> SendFuture<'_> {
        self.cell.begin_write();
        SendFuture { cell: &self.cell, data: Some(data.into()) }
    }

    /// Queues all `pieces`, one behind the other, once less than the high mark is queued.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing: if it is dropped before it is ready, none of the pieces was or will be sent.
    pub async fn send_all<C: Into<Chunk>>(&mut self, pieces: impl IntoIterator<Item = C>) -> io::Result<()> {
        send_all(&self.cell, pieces).await
    }

    /// Queues `data` if less than the high mark is queued.
    ///
    /// # Errors
    ///
    /// Hands the data back if more is queued, or if nothing can be sent any more.
    pub fn try_send<C: Into<Chunk>>(&mut self, data: C) -> Result<(), Chunk> {
        self.cell.try_push(data.into())
    }

    /// Waits until less than the high mark is queued, so that the next send does not wait.
    ///
    /// # Errors
    ///
    /// As [`Self::send`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    #[inline]
    pub async fn writable(&mut self) -> io::Result<()> {
        writable(&self.cell).await
    }

    /// Waits until the kernel has taken everything that was sent. That is not yet the peer.
    ///
    /// # Errors
    ///
    /// What ended the connection before; `TimedOut` after the write timeout.
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing: what was sent leaves all the same.
    pub async fn flush(&mut self) -> io::Result<()> {
        flush(&self.cell).await
    }

    /// Sends no more: a FIN follows what is queued (a half-close). Waits until the kernel has taken everything. Receiving
    /// goes on.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`].
    ///
    /// # Cancel safety
    ///
    /// From its first poll on, the FIN follows even if the future is dropped.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.cell.ask_finish();
        self.flush().await
    }

    /// Has a FIN follow what is queued, without waiting for it.
    pub(super) fn finish(&self) {
        self.cell.ask_finish();
    }

    /// Closes the whole connection at once with a reset. What is queued is lost.
    pub fn abort(self) {
        self.cell.ask_abort(CloseReason::Local);
    }

    /// Sets how long one sending operation may wait for the peer. Without end by default.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.cell.set_timeouts(None, Some(timeout));
    }

    /// Bytes that wait for the kernel, as far as is known between two turns.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.cell.queued()
    }

    /// As [`Self::send`] of a copy, for those who write futures by hand: all of `data` is queued, or it waits.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.cell.poll_write(cx, [data])
    }

    /// As [`Self::poll_write`] of several buffers, one behind the other, as far as there is room.
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.cell.poll_write(cx, pieces.iter().map(|piece| &**piece))
    }

    /// As [`Self::flush`], for those who write futures by hand.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.poll_flush(cx)
    }

    /// As [`Self::shutdown`], for those who write futures by hand.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell.ask_finish();
        self.cell.poll_flush(cx)
    }

    /// As [`Self::send`], for those who write futures by hand. Takes the data out when it is queued.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Option<Chunk>) -> Poll<io::Result<()>> {
        self.cell.poll_send(cx, data)
    }
}

async fn read(cell: &Rc<StreamCell>, to: &mut [u8]) -> io::Result<usize> {
    cell.begin_read();
    poll_fn(|cx| cell.poll_read(cx, to)).await
}

async fn read_exact(cell: &Rc<StreamCell>, to: &mut [u8]) -> io::Result<()> {
    cell.begin_read();
    let _room = ReadRoom(cell);
    poll_fn(|cx| cell.poll_read_exact(cx, to)).await
}

async fn writable(cell: &Rc<StreamCell>) -> io::Result<()> {
    cell.begin_write();
    poll_fn(|cx| cell.poll_room(cx)).await
}

async fn send_all<C: Into<Chunk>>(cell: &Rc<StreamCell>, pieces: impl IntoIterator<Item = C>) -> io::Result<()> {
    writable(cell).await?;
    pieces.into_iter().try_for_each(|piece| cell.push(piece.into()))
}

async fn flush(cell: &Rc<StreamCell>) -> io::Result<()> {
    cell.begin_write();
    let number = cell.ask_flush();
    poll_fn(|cx| cell.poll_flushed(number, cx)).await
}

impl Stream {
    pub(super) fn new(cell: Rc<StreamCell>) -> Self {
        Self { cell: Some(cell) }
    }

    pub(super) fn cell(&self) -> &Rc<StreamCell> {
        self.cell.as_ref().expect("only `split` takes the cell, and the stream with it")
    }

    /// The connection is established, or never will be.
    pub(super) async fn connected(&self) -> io::Result<()> {
        poll_fn(|cx| self.cell().poll_connected(cx)).await
    }

    /// As [`OwnedReader::recv`]: the next bytes, `None` at the peer's FIN.
    ///
    /// # Errors
    ///
    /// As [`OwnedReader::recv`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    #[inline]
    pub fn recv(&mut self) -> RecvFuture<'_> {
        let cell = self.cell();
        cell.begin_read();
        RecvFuture { cell }
    }

    /// As [`OwnedReader::read`].
    ///
    /// # Errors
    ///
    /// As [`OwnedReader::recv`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        read(self.cell(), to).await
    }

    /// As [`OwnedReader::read_exact`].
    ///
    /// # Errors
    ///
    /// As [`OwnedReader::read_exact`].
    ///
    /// # Cancel safety
    ///
    /// It takes all bytes or none.
    pub async fn read_exact(&mut self, to: &mut [u8]) -> io::Result<()> {
        read_exact(self.cell(), to).await
    }

    /// As [`OwnedWriter::send`].
    ///
    /// # Errors
    ///
    /// As [`OwnedWriter::send`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing.
    #[inline]
    pub fn send(&mut self, data: impl Into<Chunk>) -> SendFuture<'_> {
        let cell = self.cell();
        cell.begin_write();
        SendFuture { cell, data: Some(data.into()) }
    }

    /// As [`OwnedWriter::send_all`].
    ///
    /// # Errors
    ///
    /// As [`OwnedWriter::send`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing.
    pub async fn send_all<C: Into<Chunk>>(&mut self, pieces: impl IntoIterator<Item = C>) -> io::Result<()> {
        send_all(self.cell(), pieces).await
    }

    /// As [`OwnedWriter::writable`].
    ///
    /// # Errors
    ///
    /// As [`OwnedWriter::send`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn writable(&mut self) -> io::Result<()> {
        writable(self.cell()).await
    }

    /// As [`OwnedWriter::flush`].
    ///
    /// # Errors
    ///
    /// As [`OwnedWriter::flush`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn flush(&mut self) -> io::Result<()> {
        flush(self.cell()).await
    }

    /// As [`OwnedWriter::shutdown`].
    ///
    /// # Errors
    ///
    /// As [`OwnedWriter::flush`].
    ///
    /// # Cancel safety
    ///
    /// From its first poll on, the FIN follows even if the future is dropped.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.cell().ask_finish();
        flush(self.cell()).await
    }

    /// As [`Self::recv`], for those who write futures by hand.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Buf>>> {
        self.cell().poll_recv(cx)
    }

    /// As [`Self::read`], for those who write futures by hand.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        self.cell().poll_read(cx, to)
    }

    /// Lends the first piece that arrived to `take`, which says how many of its bytes it has used. 0 at the peer's FIN.
    pub fn poll_lend(&mut self, cx: &mut Context<'_>, take: impl FnOnce(&[u8]) -> usize) -> Poll<io::Result<usize>> {
        self.cell().poll_lend(cx, take)
    }

    /// As [`OwnedWriter::poll_write`].
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.cell().poll_write(cx, [data])
    }

    /// As [`OwnedWriter::poll_write_vectored`].
    pub fn poll_write_vectored(&mut self, cx: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.cell().poll_write(cx, pieces.iter().map(|piece| &**piece))
    }

    /// As [`OwnedWriter::poll_send`].
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &mut Option<Chunk>) -> Poll<io::Result<()>> {
        self.cell().poll_send(cx, data)
    }

    /// As [`Self::flush`], for those who write futures by hand.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell().poll_flush(cx)
    }

    /// Waits until no more than the high mark is queued.
    #[cfg(feature = "hyper")]
    pub(super) fn poll_below_mark(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell().poll_below_mark(cx)
    }

    /// As [`Self::shutdown`], for those who write futures by hand.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cell().ask_finish();
        self.cell().poll_flush(cx)
    }

    /// Closes in order and waits for the end: everything sent was delivered and the peer has closed, too.
    ///
    /// # Errors
    ///
    /// What went wrong: the peer reset, or did not close within the linger time.
    ///
    /// # Cancel safety
    ///
    /// If it is dropped the connection closes in order all the same.
    pub async fn close(self) -> io::Result<()> {
        let cell = Rc::clone(self.cell());
        drop(self);
        poll_fn(|cx| cell.poll_closed(cx)).await
    }

    /// Closes at once with a reset. What is queued is lost.
    pub fn abort(self) {
        self.cell().ask_abort(CloseReason::Local);
    }

    /// The two halves, for two tasks of this worker.
    #[must_use]
    pub fn split(mut self) -> (OwnedReader, OwnedWriter) {
        let cell = Rc::clone(self.cell());
        self.cell = None;
        (OwnedReader { cell: Rc::clone(&cell), whole: false }, OwnedWriter { cell, whole: false })
    }

    /// As [`OwnedReader::set_read_timeout`].
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.cell().set_timeouts(Some(timeout), None);
    }

    /// As [`OwnedWriter::set_write_timeout`].
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.cell().set_timeouts(None, Some(timeout));
    }

    /// Addresses and the state of the kernel's send queue, by a system call.
    ///
    /// # Errors
    ///
    /// What the system answers; what ended the connection when it is gone.
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn info(&self) -> io::Result<ConnInfo> {
        self.cell().ask_info();
        poll_fn(|cx| self.cell().poll_info(cx)).await
    }

    /// The peer's address.
    ///
    /// # Errors
    ///
    /// As [`Self::info`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn peer_addr(&self) -> io::Result<Address> {
        Ok(Address::from_system(&self.info().await?.peer))
    }

    /// This side's address.
    ///
    /// # Errors
    ///
    /// As [`Self::info`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn local_addr(&self) -> io::Result<Address> {
        Ok(Address::from_system(&self.info().await?.local))
    }

    /// Whether the connection can still be used: nobody has closed it, as far as is known.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.cell().is_open()
    }

    /// The handle of the connection; `None` when it is gone. A [`Remote`](crate::Remote) reaches it by that.
    #[must_use]
    pub fn id(&self) -> Option<ConnectionId> {
        self.cell().id()
    }

    /// Bytes that wait for the kernel, as far as is known between two turns.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.cell().queued()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell.drop_reader();
            drop_writer(&cell);
        }
    }
}

/// The future of [`Stream::recv`]. Small, since every idle connection has one.
#[must_use = "a future does nothing unless it is awaited"]
pub struct RecvFuture<'a> {
    cell: &'a Rc<StreamCell>,
}

impl Future for RecvFuture<'_> {
    type Output = io::Result<Option<Buf>>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.cell.poll_recv(cx)
    }
}

/// The future of [`Stream::send`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct SendFuture<'a> {
    cell: &'a Rc<StreamCell>,
    /// What is still to be queued.
    data: Option<Chunk>,
}

impl Future for SendFuture<'_> {
    type Output = io::Result<()>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.cell.poll_send(cx, &mut self.data)
    }
}

impl Drop for OwnedReader {
    fn drop(&mut self) {
        if !self.whole {
            self.cell.drop_reader();
        }
    }
}

impl Drop for OwnedWriter {
    fn drop(&mut self) {
        if !self.whole {
            drop_writer(&self.cell);
        }
    }
}

/// Ends in order, unless the task panicked.
fn drop_writer(cell: &Rc<StreamCell>) {
    if cell.runtime.is_burying() {
        cell.ask_abort(CloseReason::Panic);
    }
    cell.drop_writer();
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id()).field("open", &self.is_open()).finish()
    }
}

impl fmt::Debug for OwnedReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedReader").field("id", &self.cell.id()).finish()
    }
}

impl fmt::Debug for OwnedWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedWriter").field("id", &self.cell.id()).finish()
    }
}
