//! [`StreamCell`]: where a stream and its worker meet.
//!
//! The stream's methods read the inbox and leave what they want; the worker fills the inbox and carries out what was
//! left, right after the poll. Neither ever waits for the other, and no future owns anything that the kernel works on.
//!
//! ```text
//!   worker ── receive() ──► inbox ──► recv, read, read_exact
//!   worker ◄─ hand_over() ─ outbox, finish, close, abort, pause ◄── send, shutdown, drop
//! ```

mod deadline;
mod operations;

use std::cell::{Cell, RefCell};
use std::hint::cold_path;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringport_engine::{Buf, ConnId, ConnInfo, SendQueue};

use self::deadline::Deadline;
use super::inbox::Inbox;
use super::runtime::{Interest, Runtime};
use super::task::TaskId;
use crate::session::{CloseReason, CloseReport, ConnectionOptions, Ending, Pauses, Phase, Session};
use crate::worker::Account;

/// Bytes in the inbox above which reading pauses. At half of them it goes on.
pub(super) const INBOX_BYTES: usize = 64 * 1024;

/// Most bytes of one exact read, all of which may lie in the inbox at once.
const READ_EXACT_MAX: usize = 1 << 30;

/// The token of the session's flush that tells when more of a large send fits.
const MORE: u64 = u64::MAX;
/// The tokens of the session's timers.
const READ: u64 = 1;
const WRITE: u64 = 2;

/// One stream.
pub(crate) struct StreamCell {
    pub(super) runtime: Rc<Runtime>,
    pub(crate) conn: Cell<Option<ConnId>>,
    pub(super) touched: Cell<Touched>,
    inner: RefCell<Inner>,
}

/// Whether the worker is to look at a stream, and how it gets to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touched {
    No,
    /// It is in the list of those that were touched.
    Listed,
    /// Not yet, and no list is needed: the worker has the stream at hand and looks itself.
    AtHand,
    /// As [`Self::AtHand`], and there is something to carry out.
    Wanted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Open,
    /// The session closes in order, or soon will: nothing more is sent, and what arrives is discarded.
    Closing,
    Closed,
}

struct Inner {
    inbox: Inbox,
    /// Above this many bytes in the inbox reading pauses.
    inbox_max: u32,
    /// What `send` took and the session has not got yet.
    /// Only between a poll and what follows it, or while it waits for the limit: idle streams have none.
    outbox: Option<Box<SendQueue>>,
    /// What the session had queued when it was last looked at.
    session_queued: u64,
    high_mark: u32,
    /// Longest piece that can be sent: the send limit under a policy that drops whole messages, else no limit.
    message_max: u32,
    reader: Interest,
    writer: Interest,
    /// The writer waits for room, and not for a flush.
    wants_room: bool,
    state: State,
    peer_finished: bool,
    paused: bool,
    reader_gone: bool,
    writer_gone: bool,
    finish: bool,
    /// Something was sent since the last flush that was polled for.
    unflushed: bool,
    abort: Option<CloseReason>,
    /// A flush of the session will tell when more of the outbox fits. Until then there is room for no more.
    continuing: bool,
    flush: Flush,
    extra: Option<Box<Extra>>,
}

/// Flushes, by number: those asked for, the one under way, and those done.
#[derive(Default)]
struct Flush {
    asked: u32,
    under_way: bool,
    done: u32,
}

/// How a connection ended.
struct End {
    in_order: bool,
    kind: io::ErrorKind,
    text: String,
}

/// What most streams do without.
#[derive(Default)]
struct Extra {
    end: Option<End>,
    read: Deadline,
    write: Deadline,
    /// The flush that somebody polls for, by hand.
    polled_flush: Option<u32>,
    info_wanted: bool,
    info: Option<io::Result<ConnInfo>>,
    asking: Interest,
    closing: Interest,
}

/// What is left for the worker after [`StreamCell::hand_over`]. Mostly nothing, so that it is made only if there is some.
#[derive(Default)]
pub(crate) struct Todo {
    /// Timers of the session to set.
    pub(crate) timers: [Option<(Duration, u64)>; 2],
    /// The addresses are asked for.
    pub(crate) info: bool,
}

impl StreamCell {
    pub(super) fn new(runtime: Rc<Runtime>, open: bool, options: &ConnectionOptions) -> Rc<Self> {
        let small = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        let message_max = if options.over_limit.drops() { small(options.send_limit) } else { u32::MAX };
        let inner = Inner {
            inbox: Inbox::default(),
            inbox_max: INBOX_BYTES as u32,
            outbox: None,
            session_queued: 0,
            high_mark: small(options.high_mark),
            message_max,
            reader: Interest::None,
            writer: Interest::None,
            wants_room: false,
            state: if open { State::Open } else { State::Connecting },
            peer_finished: false,
            paused: false,
            reader_gone: false,
            writer_gone: false,
            finish: false,
            unflushed: false,
            abort: None,
            continuing: false,
            flush: Flush::default(),
            extra: None,
        };
        let (conn, touched) = (Cell::new(None), Cell::new(Touched::No));
        Rc::new(Self { runtime, conn, touched, inner: RefCell::new(inner) })
    }

    // For the worker.

    /// The task that waits for bytes by itself.
    #[inline]
    pub(super) fn reading_task(&self) -> Option<TaskId> {
        match self.inner.try_borrow().ok()?.reader {
            Interest::Task(task) => Some(task),
            _ => None,
        }
    }

    /// Bytes arrived. Returns who waits for them.
    #[inline]
    pub(crate) fn receive(self: &Rc<Self>, buf: Buf) -> Interest {
        let mut inner = self.inner.borrow_mut();
        if inner.reader_gone {
            cold_path();
            return Interest::None;
        }
        inner.inbox.push(buf);
        if inner.inbox.bytes() > inner.inbox_max as usize && !inner.paused {
            cold_path();
            self.runtime.touch(self);
        }
        inner.reader.take()
    }

    /// The peer sends no more.
    pub(crate) fn peer_finished(&self) -> Interest {
        let mut inner = self.inner.borrow_mut();
        inner.peer_finished = true;
        inner.reader.take()
    }

    /// A connect succeeded.
    pub(crate) fn connected(&self) -> Interest {
        let mut inner = self.inner.borrow_mut();
        inner.state = State::Open;
        inner.writer.take()
    }

    /// The queue of the session is low again.
    pub(crate) fn writable(self: &Rc<Self>, queued: u64) -> Interest {
        let mut inner = self.inner.borrow_mut();
        inner.session_queued = queued;
        inner.writer.take()
    }

    /// A flush of the session is done.
    pub(crate) fn flushed(self: &Rc<Self>, token: u64, queued: u64) -> Interest {
        let mut inner = self.inner.borrow_mut();
        inner.session_queued = queued;
        self.runtime.touch(self);
        if token == MORE {
            // What waits goes on first; then the writer is told, if there is room.
            inner.continuing = false;
            return Interest::None;
        }
        inner.flush.under_way = false;
        inner.flush.done = token as u32;
        inner.writer.take()
    }

    /// A deadline may be over.
    pub(crate) fn timer(self: &Rc<Self>, token: u64) -> Interest {
        let now = self.runtime.now();
        let mut inner = self.inner.borrow_mut();
        let Some(extra) = &mut inner.extra else { return Interest::None };
        let deadline = match token {
            READ => &mut extra.read,
            WRITE => &mut extra.write,
            _ => return Interest::None,
        };
        deadline.due(now);
        let (expired, again) = (deadline.expired, deadline.to_arm.is_some());
        if again {
            self.runtime.touch(self);
        }
        match (expired, token) {
            (false, _) => Interest::None,
            (true, READ) => inner.reader.take(),
            (true, _) => inner.writer.take(),
        }
    }

    /// The session closes in order: nothing more is sent, and what arrives from now on is discarded.
    pub(super) fn closing(&self) {
        let mut inner = self.inner.borrow_mut();
        if matches!(inner.state, State::Open) {
            inner.state = State::Closing;
        }
        let waiting = [inner.reader.take(), inner.writer.take()];
        drop(inner);
        waiting.into_iter().for_each(|who| self.runtime.notify(who));
    }

    /// The connection is gone.
    pub(crate) fn closed(&self, report: &CloseReport) {
        use CloseReason as Reason;
        let in_order = matches!(report.reason, Reason::PeerClosed | Reason::Local | Reason::Shutdown);
        let kind = match (&report.error, report.reason) {
            (Some(error), _) => error.kind(),
            (None, Reason::Reset) => io::ErrorKind::ConnectionReset,
            (None, Reason::Idle | Reason::LingerTimeout) => io::ErrorKind::TimedOut,
            (None, _) => io::ErrorKind::ConnectionAborted,
        };
        let text = match &report.error {
            Some(error) => format!("the connection is gone ({}): {error}", report.reason),
            None => format!("the connection is gone ({})", report.reason),
        };
        self.ended(End { in_order: in_order && report.error.is_none(), kind, text });
    }

    /// It could not be connected.
    pub(crate) fn failed(&self, error: &io::Error) {
        self.ended(End { in_order: false, kind: error.kind(), text: error.to_string() });
    }

    /// The worker is gone.
    pub(super) fn lost(&self) {
        self.conn.set(None);
        let text = "the worker of this connection has ended".to_owned();
        self.ended(End { in_order: false, kind: io::ErrorKind::ConnectionAborted, text });
    }

    fn ended(&self, end: End) {
        let mut inner = self.inner.borrow_mut();
        inner.state = State::Closed;
        inner.outbox = None;
        let extra = inner.extra.get_or_insert_default();
        extra.end = Some(end);
        let (asking, closing) = (extra.asking.take(), extra.closing.take());
        let waiting = [inner.reader.take(), inner.writer.take(), asking, closing];
        drop(inner);
        waiting.into_iter().for_each(|who| self.runtime.notify(who));
    }

    /// Carries out on the session what the stream wants.
    #[inline]
    pub(crate) fn hand_over(
        &self,
        session: &mut Session,
        options: &ConnectionOptions,
        account: &mut Account,
    ) -> Option<Todo> {
        let mut inner = self.inner.borrow_mut();
        if inner.is_plain() && session.phase == Phase::Open && !session.pauses.any() {
            // What nearly every poll leaves: something to send, which fits.
            let mut outbox = inner.outbox.take();
            if outbox.as_mut().is_none_or(|outbox| session.take_all(outbox, options, account)) {
                inner.session_queued = session.queued();
                outbox.into_iter().for_each(|empty| self.runtime.give_queue(empty));
                return None;
            }
            inner.outbox = outbox;
        }
        cold_path();
        drop(inner);
        self.hand_over_more(session, options, account)
    }

    #[inline(never)]
    fn hand_over_more(
        &self,
        session: &mut Session,
        options: &ConnectionOptions,
        account: &mut Account,
    ) -> Option<Todo> {
        let mut inner = self.inner.borrow_mut();
        let mut todo = None;
        let abandoned = inner.reader_gone && inner.writer_gone;
        if let Some(reason) = inner.abort.take() {
            inner.outbox = None;
            session.end(Ending::Abort, reason);
            return None;
        }
        if session.phase == Phase::Connecting {
            if abandoned {
                session.end(Ending::Abort, CloseReason::Local);
            }
            return None;
        }
        if let Some(mut outbox) = inner.outbox.take() {
            move_pieces(&mut outbox, session, options, account);
            if outbox.is_empty() {
                self.runtime.give_queue(outbox);
            } else {
                inner.outbox = Some(outbox);
            }
        }
        if inner.outbox.is_none() {
            inner.after_outbox(session);
            if abandoned {
                let reason = if session.peer_closed { CloseReason::PeerClosed } else { CloseReason::Local };
                session.end(Ending::Graceful, reason);
                return None;
            }
        } else if !inner.continuing {
            inner.continuing = session.flush(MORE);
        }
        let (bytes, max) = (inner.inbox.bytes(), inner.inbox_max as usize);
        inner.paused = if inner.paused { bytes > max / 2 } else { bytes > max };
        if inner.paused {
            session.pauses.add(Pauses::USER);
        } else {
            session.pauses.remove(Pauses::USER);
        }
        inner.session_queued = session.queued();
        if let Some(extra) = &mut inner.extra
            && extra.has_wishes()
        {
            let todo = todo.get_or_insert_with(Todo::default);
            todo.info = std::mem::take(&mut extra.info_wanted);
            let arm = |deadline: &mut Deadline, token| deadline.to_arm.take().map(|delay| (delay, token));
            todo.timers[0] = arm(&mut extra.read, READ);
            todo.timers[1] = arm(&mut extra.write, WRITE);
        }
        let room = inner.wants_room && inner.has_room();
        inner.wants_room &= !room;
        let waiting = if room { inner.writer.take() } else { Interest::None };
        drop(inner);
        self.runtime.notify(waiting);
        todo
    }

    /// The answer to a question for addresses.
    pub(crate) fn informed(&self, info: io::Result<ConnInfo>) {
        let mut inner = self.inner.borrow_mut();
        let Some(extra) = &mut inner.extra else { return };
        extra.info = Some(info);
        let asking = extra.asking.take();
        drop(inner);
        self.runtime.notify(asking);
    }
}

/// Moves pieces to the session while the limits allow. One that is too large goes in parts.
#[inline]
fn move_pieces(from: &mut SendQueue, session: &mut Session, options: &ConnectionOptions, account: &mut Account) {
    if session.take_all(from, options, account) {
        return;
    }
    if !session.is_sendable() {
        from.clear();
    }
    while let Some(mut piece) = from.pop() {
        if options.over_limit.drops() {
            // What does not fit is dropped and counted, as the policy wants it.
            session.send(piece, options, account);
            continue;
        }
        let room = usize::try_from(options.send_limit.max(1).saturating_sub(session.queued())).unwrap_or(usize::MAX);
        if room > 0 && piece.len() > room {
            let mut rest = piece.into_bytes();
            piece = rest.split_to(room).into();
            from.push_front(rest.into());
        }
        if let Err(piece) = session.offer(piece, options, account) {
            if session.queued() > 0 {
                from.push_front(piece);
                return;
            }
            // The memory of the process is used up, but these bytes are here already, and a connection that sends nothing
            // while its reading rests would never learn that its peer is gone, and would never free any.
            session.send_anyway(piece, options, account);
        }
    }
}

impl Extra {
    /// Whether the worker has something to do for it.
    fn has_wishes(&self) -> bool {
        self.info_wanted || self.read.to_arm.is_some() || self.write.to_arm.is_some()
    }
}

impl Inner {
    /// Whether the worker has nothing to look at but the outbox.
    #[inline]
    fn is_plain(&self) -> bool {
        let ending = self.reader_gone | self.writer_gone | self.finish | self.abort.is_some();
        let waiting = self.paused | self.continuing | self.wants_room | (self.flush.asked != self.flush.done);
        let full = self.inbox.bytes() > self.inbox_max as usize;
        !(ending | waiting | full | self.extra.is_some())
    }

    #[inline]
    fn queued(&self) -> u64 {
        self.session_queued + self.outbox.as_ref().map_or(0, |outbox| outbox.bytes())
    }

    #[inline]
    fn has_room(&self) -> bool {
        !self.continuing && self.queued() <= self.high_mark.into()
    }

    #[inline]
    fn check_open(&self) -> io::Result<()> {
        if matches!(self.state, State::Open) && !self.finish {
            return Ok(());
        }
        cold_path();
        match self.state {
            State::Open => Err(io::Error::new(io::ErrorKind::BrokenPipe, "this side has said that it sends no more")),
            _ => Err(self.error()),
        }
    }

    fn end(&self) -> Option<&End> {
        self.extra.as_ref().and_then(|extra| extra.end.as_ref())
    }

    fn error(&self) -> io::Error {
        match self.end() {
            Some(end) => io::Error::new(end.kind, end.text.clone()),
            None => io::Error::new(io::ErrorKind::ConnectionAborted, "the connection is being closed"),
        }
    }

    /// What was to follow the last piece.
    fn after_outbox(&mut self, session: &mut Session) {
        if self.finish {
            session.finish();
        }
        if !self.flush.under_way && self.flush.asked != self.flush.done && session.flush(self.flush.asked.into()) {
            self.flush.under_way = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the task's future and waker, the session and the engine's record: 1 KiB in all are allowed.
    #[test]
    fn a_stream_is_small() {
        assert!(size_of::<StreamCell>() <= 176, "{}", size_of::<StreamCell>());
    }
}
