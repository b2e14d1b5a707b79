//! The event-driven API: a [`Handler`] is called with what happens on its connections.

use std::any::Any;
use std::io;
use std::time::{Duration, Instant};

use ringport_engine::{Buf, Chunk, ConnInfo, OptionName, SocketOption, TcpInfo};

use crate::blocking::QueueFull;
use crate::session::{CloseReason, CloseReport, Ending, Pauses, Phase, SendOutcome, Session};
use crate::worker::{ConnectionId, Context, Facts, Parts, TimerId};

/// What another thread may send to a connection: see [`Remote::message`](crate::Remote::message).
pub type Message = Box<dyn Any + Send>;

/// The behaviour of the connections of one listener or client.
///
/// Every worker has a handler of its own, so that it needs no lock. Callbacks of one connection come in order:
/// [`open`](Self::open) first, [`close`](Self::close) last, each exactly once. No callback may block; none is called
/// from inside another. What a callback asks of its connection happens right after it returns, so that all it sends
/// leaves together; with more than 128 connections of a worker, [`data`](Self::data) of up to three others may come before that.
///
/// A callback that panics ends its own connection with [`CloseReason::Panic`]; the worker and all others go on.
#[expect(unused_variables, reason = "the names of the parameters are documentation")]
pub trait Handler: 'static {
    /// What the handler keeps for each connection.
    type State: Default + 'static;

    /// The connection is established.
    fn open(&mut self, conn: &mut Connection<'_, Self::State>) {}

    /// Bytes arrived, in the order in which they were sent, cut anywhere. What [`Connection::keep`] was given comes
    /// first.
    fn data(&mut self, conn: &mut Connection<'_, Self::State>, data: Buf);

    /// The peer sends no more. By default the connection is closed in order.
    fn peer_closed(&mut self, conn: &mut Connection<'_, Self::State>) {
        conn.close();
    }

    /// More than the high mark waits to be sent, and the kernel did not take it at once. Once for each time that
    /// happens; [`writable`](Self::writable) follows when the queue is low again, unless the connection closes before.
    fn full(&mut self, conn: &mut Connection<'_, Self::State>) {}

    /// What waits to be sent is down to the low mark again, after it was above the high mark. Also called, without
    /// [`full`](Self::full) before, when the kernel took at once what a callback queued beyond the high mark. And when a
    /// send may be tried again that was refused for want of memory ([`Refusal::ProcessLimit`](crate::Refusal::ProcessLimit)):
    /// some 10 ms later, or as soon after that as there is any.
    fn writable(&mut self, conn: &mut Connection<'_, Self::State>) {}

    /// The kernel has taken all that was queued before [`Connection::flush`] was called with this token.
    fn flushed(&mut self, conn: &mut Connection<'_, Self::State>, token: u64) {}

    /// A timer of this connection is due.
    fn timer(&mut self, conn: &mut Connection<'_, Self::State>, timer: TimerId, token: u64) {}

    /// Nothing was received for the interval of [`ConnectionOptions::heartbeat`](crate::ConnectionOptions::heartbeat): send
    /// something that the peer answers. Any byte that it sends then is a sign of life.
    fn heartbeat(&mut self, conn: &mut Connection<'_, Self::State>) {}

    /// Another thread sent a message, or a blocking job of this connection is done.
    fn message(&mut self, conn: &mut Connection<'_, Self::State>, message: Message) {}

    /// The connection is gone. Whatever is asked of it now is ignored.
    fn close(&mut self, conn: &mut Connection<'_, Self::State>, report: &CloseReport) {}

    /// A connect failed; no connection was opened and no other callback comes.
    fn connect_failed(&mut self, worker: &mut Context, error: &io::Error) {}

    /// Called once a tick interval, for background work of a worker.
    fn tick(&mut self, worker: &mut Context) {}
}

/// A connection, for the time of one callback.
pub struct Connection<'a, S> {
    pub(crate) context: &'a mut Context,
    pub(crate) facts: &'a mut dyn Facts,
    pub(crate) slot: usize,
    /// What the handler keeps for this connection.
    pub state: &'a mut S,
}

impl<S> Connection<'_, S> {
    /// The handle of this connection: small, `Copy`, never reused in this process.
    #[must_use]
    pub fn id(&self) -> ConnectionId {
        self.context.id_of(self.session().conn)
    }

    /// Queues `data` without copying it. It leaves after this callback (see [`Handler`]), together with all else it sends.
    ///
    /// Over the limit, or on a connection that is closing, the data comes back in the outcome.
    #[inline]
    pub fn send(&mut self, data: impl Into<Chunk>) -> SendOutcome {
        let Parts { session, options, account, .. } = self.context.parts(self.slot);
        session.send(data.into(), options, account)
    }

    /// Queues a copy of `data`. Small writes in a row are gathered into one piece.
    #[inline]
    pub fn write(&mut self, data: &[u8]) -> SendOutcome {
        let Parts { session, options, pool, account } = self.context.parts(self.slot);
        session.write(data, pool, options, account)
    }

    /// Closes in order: what is queued is sent, then a FIN, then the peer's FIN is awaited for at most
    /// [`ConnectionOptions::linger`](crate::ConnectionOptions::linger). What arrives meanwhile is discarded.
    pub fn close(&mut self) {
        let session = self.session_mut();
        let reason = if session.peer_closed { CloseReason::PeerClosed } else { CloseReason::Local };
        session.end(Ending::Graceful, reason);
    }

    /// Sends no more (a half-close): what is queued is sent, then a FIN. Receiving goes on until the peer closes too, and
    /// only then, or by [`close`](Self::close), does the connection end. Sending again is refused.
    pub fn finish(&mut self) {
        self.session_mut().finish();
    }

    /// Closes in order because the peer broke the protocol.
    pub fn close_for_protocol_error(&mut self) {
        self.session_mut().end(Ending::Graceful, CloseReason::Protocol);
    }

    /// Closes at once with a reset. What is queued is lost, and the report says how much that was.
    pub fn abort(&mut self) {
        self.session_mut().end(Ending::Abort, CloseReason::Local);
    }

    /// Leaves the rest of what [`Handler::data`] got, a partial frame, to be handed over again with the next bytes behind
    /// it. It takes the place of what was kept before; an empty rest keeps nothing.
    ///
    /// ```
    /// # use ringport::{Buf, Connection};
    /// /// Frames of one length byte and so many bytes.
    /// fn data(conn: &mut Connection<'_, ()>, mut data: Buf) {
    ///     while let Some(&length) = data.first() {
    ///         let Some(frame) = data.get(1..1 + usize::from(length)) else { break };
    ///         println!("{frame:?}");
    ///         data.advance(1 + usize::from(length));
    ///     }
    ///     conn.keep(data);
    /// }
    /// ```
    ///
    /// More than [`ConnectionOptions::frame_limit`](crate::ConnectionOptions::frame_limit) closes the connection. What is
    /// kept when the peer closes stays unseen: [`kept`](Self::kept) tells [`Handler::peer_closed`] of a frame cut short.
    pub fn keep(&mut self, rest: Buf) {
        let Parts { session, options, account, .. } = self.context.parts(self.slot);
        session.keep(rest, options, account);
    }

    /// Bytes that are kept for the next callback.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.session().kept()
    }

    /// Counts messages that the handler found in what it received, against
    /// [`ConnectionOptions::message_rate_max`](crate::ConnectionOptions::message_rate_max).
    pub fn count_messages(&mut self, count: u64) {
        let conn = self.session().conn;
        self.context.count_messages(conn, count);
    }

    /// Stops reading: soon the peer's window closes. What was already received still arrives.
    pub fn pause(&mut self) {
        self.session_mut().pauses.add(Pauses::USER);
    }

    /// Goes on reading after [`pause`](Self::pause).
    pub fn resume(&mut self) {
        self.session_mut().pauses.remove(Pauses::USER);
    }

    /// Calls [`Handler::flushed`] with `token` when the kernel has taken all that is queued now: in the order of the
    /// calls, and soon if nothing is queued. That the kernel took it does not mean that the peer has it:
    /// [`info`](Self::info) says how much of it is unacknowledged.
    ///
    /// `false` when the connection is closing, or when 1,024 flushes of it are under way; then no callback comes. If it
    /// closes in between, [`Handler::close`] comes instead, and its report says what the kernel took.
    pub fn flush(&mut self, token: u64) -> bool {
        self.session_mut().flush(token)
    }

    /// Bytes that wait to be taken by the kernel.
    #[must_use]
    pub fn queued(&self) -> u64 {
        self.session().queued()
    }

    /// Whether the connection is open and has not been asked to close.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let session = self.session();
        session.phase == Phase::Open && session.ending.is_none()
    }

    /// Calls [`Handler::timer`] with `token` once, after `delay`. It ends with the connection.
    pub fn set_timer(&mut self, delay: Duration, token: u64) -> TimerId {
        let conn = self.session().conn;
        self.context.set_timer(conn, delay, None, token)
    }

    /// Calls [`Handler::timer`] with `token` every `period`, without drift, until it is cancelled or the connection
    /// ends.
    pub fn set_interval(&mut self, period: Duration, token: u64) -> TimerId {
        let conn = self.session().conn;
        self.context.set_timer(conn, period, Some(period), token)
    }

    /// Cancels a timer. A timer that is gone is none: then nothing happens, and `false` says so.
    pub fn cancel_timer(&mut self, timer: TimerId) -> bool {
        self.context.cancel_timer(timer)
    }

    /// Runs `job`, which may block, on another thread, and hands its result to [`Handler::message`]: see
    /// [`Context::spawn_blocking`].
    ///
    /// # Errors
    ///
    /// Hands the job back when too many wait already.
    pub fn spawn_blocking<F, R>(&mut self, job: F) -> Result<(), QueueFull<F>>
    where
        F: FnOnce() -> R + Send + 'static,
        R: Send + 'static,
    {
        let id = self.id();
        self.context.spawn_blocking(id, job)
    }

    /// Addresses and the state of the kernel's send queue, by a system call.
    ///
    /// # Errors
    ///
    /// What the system answers; `NotFound` when the connection is gone.
    pub fn info(&self) -> io::Result<ConnInfo> {
        self.facts.info(self.session().conn)
    }

    /// An option of the socket.
    ///
    /// # Errors
    ///
    /// `Unsupported` where the system has no such option, `NotFound` when the connection is gone, and what getsockopt(2)
    /// answers.
    pub fn option(&self, name: OptionName) -> io::Result<SocketOption> {
        self.facts.option(self.session().conn, name)
    }

    /// Sets an option of the socket.
    ///
    /// # Errors
    ///
    /// As [`option`](Self::option), `InvalidInput` for what would block the worker, and what setsockopt(2) answers.
    pub fn set_option(&mut self, option: &SocketOption) -> io::Result<()> {
        let conn = self.session().conn;
        self.facts.set_option(conn, option)
    }

    /// The bytes of any option of the socket, by its numbers.
    ///
    /// # Errors
    ///
    /// As [`option`](Self::option); `Unsupported` in a simulation.
    pub fn raw_option(&self, level: i32, name: i32) -> io::Result<Vec<u8>> {
        match self.option(OptionName::Raw { level, name })? {
            SocketOption::Raw { value, .. } => Ok(value),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Sets any option of the socket by its numbers. Options whose value holds an address are refused.
    ///
    /// # Errors
    ///
    /// As [`set_option`](Self::set_option); `Unsupported` in a simulation.
    pub fn set_raw_option(&mut self, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
        self.set_option(&SocketOption::Raw { level, name, value: value.to_vec() })
    }

    /// What TCP knows of the connection: round-trip time, retransmits, congestion window and more.
    ///
    /// # Errors
    ///
    /// `NotFound` when the connection is gone, `Unsupported` but on Linux.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        self.facts.tcp_info(self.session().conn)
    }

    /// Queues one byte as urgent data (TCP's out-of-band byte), in order with all else that is sent.
    pub fn send_urgent(&mut self, byte: u8) -> SendOutcome {
        self.send(Chunk::urgent(byte))
    }

    /// Keeps urgent data in the stream, lets [`Handler::data`] end before it, and [`at_mark`](Self::at_mark) tell where that is.
    /// Best asked for in [`Handler::open`]; it makes each receive a little dearer.
    ///
    /// # Errors
    ///
    /// As [`set_option`](Self::set_option).
    pub fn watch_urgent(&mut self) -> io::Result<()> {
        let conn = self.session().conn;
        self.facts.watch_urgent(conn)
    }

    /// Whether the next byte is the one that was last sent as urgent. Asked in [`Handler::data`] it means the byte behind
    /// `data`.
    ///
    /// # Errors
    ///
    /// `NotFound` when the connection is gone, `Unsupported` for Unix sockets and on Windows.
    pub fn at_mark(&self) -> io::Result<bool> {
        self.facts.at_mark(self.session().conn)
    }

    /// The time of this turn of the worker. Virtual in a simulation.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.context.now()
    }

    /// The worker, to reach its other connections.
    pub fn worker(&mut self) -> &mut Context {
        self.context
    }

    fn session(&self) -> &Session {
        self.context.session(self.slot)
    }

    fn session_mut(&mut self) -> &mut Session {
        self.context.parts(self.slot).session
    }
}
