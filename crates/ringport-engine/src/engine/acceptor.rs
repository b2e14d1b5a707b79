//! A listening socket whose connections are accepted through a port, shared by the engines of Windows.
//!
//! Several `AcceptEx` are posted at a time, each with a socket of its own that is to become the connection. That socket
//! is bound to no port: whoever adopts it may be another worker, and a socket is bound for life.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use super::backoff::Backoff;
use super::contract::{Event, Want};
use super::port::{Load, Port, Record, Submitted};
use super::winsock::{self, CANCEL_AGAIN, Extensions};
use crate::id::{ListenerId, Table};
use crate::socket::Socket;

/// Accepts posted at a time. Further connections wait in the backlog, until one of these has been taken.
const POSTED: u32 = 16;

/// The listeners of an engine, and what there is to say of them.
pub(crate) struct Listeners {
    table: Table<Listener>,
    /// Connections are accepted into sockets for Registered I/O.
    registered: bool,
    /// One of them may wait for a moment to come, so that there is something to look for.
    waits: bool,
    /// Accepts that failed, lost connections included.
    failed: u64,
    reports: VecDeque<Report>,
}

/// What is said at the next opportunity.
enum Report {
    Failed(ListenerId, io::Error),
    Closed(ListenerId),
}

impl Listeners {
    /// None yet.
    pub(crate) fn new(registered: bool) -> Self {
        Self { table: Table::new(), registered, waits: false, failed: 0, reports: VecDeque::new() }
    }

    /// Takes a listening socket and binds it to `port`.
    ///
    /// # Errors
    ///
    /// If it cannot be bound.
    pub(crate) fn listen(&mut self, socket: Socket, port: &Port) -> io::Result<ListenerId> {
        let listener = Listener::new(socket.into_system()?, port, self.registered)?;
        Ok(self.table.insert(listener))
    }

    /// Starts or pauses accepting.
    pub(crate) fn want(&mut self, id: ListenerId, want: Want, port: &mut Port, extensions: &Extensions, now: Instant) {
        if let Some(listener) = self.table.get_mut(id) {
            listener.wanted = want == Want::On;
            self.settle(id, port, extensions, now);
        }
    }

    /// Stops one for good.
    pub(crate) fn stop(&mut self, id: ListenerId, port: &mut Port, extensions: &Extensions, now: Instant) {
        if let Some(listener) = self.table.get_mut(id) {
            listener.closing = true;
            self.settle(id, port, extensions, now);
        }
    }

    /// Stops all for good.
    pub(crate) fn stop_all(&mut self, port: &mut Port, extensions: &Extensions, now: Instant) {
        for id in self.table.ids() {
            self.stop(id, port, extensions, now);
        }
    }

    /// Takes the packet of an accept.
    pub(crate) fn on_accept(
        &mut self,
        record: Box<Record>,
        success: bool,
        port: &mut Port,
        extensions: &Extensions,
        now: Instant,
    ) -> Option<Event> {
        let id = ListenerId::from(record.id);
        let event = match self.table.get_mut(id)?.take(record, success, now) {
            Accepted::Connection(socket) => Some(Event::Accepted { listener: id, socket }),
            Accepted::Cancelled => None,
            Accepted::Lost | Accepted::Failed(None) => {
                self.failed += 1;
                None
            }
            Accepted::Failed(Some(error)) => {
                self.failed += 1;
                Some(Event::AcceptFailed { listener: id, error })
            }
        };
        self.settle(id, port, extensions, now);
        event
    }

    /// Tries again where the pause is over, and cancels again what has not ended. Returns when the next is due.
    pub(crate) fn resume(&mut self, port: &mut Port, extensions: &Extensions) -> Option<Instant> {
        if !std::mem::take(&mut self.waits) {
            return None;
        }
        let now = Instant::now();
        let mut next = None;
        for id in self.table.ids::<ListenerId>() {
            let Some(listener) = self.table.get_mut(id) else { continue };
            if listener.backoff.expire(now) {
                self.settle(id, port, extensions, now);
            }
            let until = self.table.get_mut(id).and_then(|listener| {
                listener.cancel_again(now);
                listener.waits_until()
            });
            next = next.into_iter().chain(until).min();
        }
        self.waits = next.is_some();
        next
    }

    /// Whether there is something to say.
    #[inline]
    pub(crate) fn has_reports(&self) -> bool {
        !self.reports.is_empty()
    }

    /// What is to be said next.
    pub(crate) fn next_report(&mut self) -> Option<Event> {
        match self.reports.pop_front()? {
            Report::Failed(id, error) => Some(Event::AcceptFailed { listener: id, error }),
            Report::Closed(id) => self.table.remove(id).map(|_| Event::ListenerClosed { listener: id }),
        }
    }

    /// Accepts that failed so far, connections that were gone before included.
    pub(crate) fn failed(&self) -> u64 {
        self.failed
    }

    fn settle(&mut self, id: ListenerId, port: &mut Port, extensions: &Extensions, now: Instant) {
        let Some(listener) = self.table.get_mut(id) else { return };
        let settled = listener.settle(id, port, extensions, now);
        self.failed += std::mem::take(&mut listener.lost);
        self.waits |= listener.waits_until().is_some();
        match settled {
            Settled::Quiet => {}
            Settled::Failed(error) => {
                self.failed += 1;
                self.reports.push_back(Report::Failed(id, error));
            }
            Settled::Closed => self.reports.push_back(Report::Closed(id)),
        }
    }
}

/// A listening socket.
struct Listener {
    /// `None` once closed, until the last event is delivered.
    socket: Option<socket2::Socket>,
    domain: socket2::Domain,
    /// Connections are accepted into sockets for Registered I/O.
    registered: bool,
    /// Connections send small segments at once.
    no_delay: bool,
    wanted: bool,
    closing: bool,
    /// Accepts whose packet has not come.
    posted: u32,
    /// They were cancelled, and are to be cancelled again at this time.
    cancelled: Option<Instant>,
    backoff: Backoff,
    /// Connections that were gone when their accept was posted, since somebody asked.
    lost: u64,
}

/// What [`Listener::settle`] found to report.
enum Settled {
    /// Nothing.
    Quiet,
    /// Posting failed, and goes on after a pause.
    Failed(io::Error),
    /// The socket is closed, and nothing is under way any more.
    Closed,
}

/// What became of one accept.
enum Accepted {
    /// A connection, on a socket that belongs to no port.
    Connection(Socket),
    /// Its connection was gone before.
    Lost,
    /// It was cancelled.
    Cancelled,
    /// It failed, and accepting goes on after a pause. No error if one was reported for this pause before.
    Failed(Option<io::Error>),
}

impl Listener {
    /// Takes a listening socket and binds it to `port`.
    fn new(socket: socket2::Socket, port: &Port, registered: bool) -> io::Result<Self> {
        let domain = socket.local_addr()?.domain();
        let no_delay = domain != socket2::Domain::UNIX && socket.tcp_nodelay().unwrap_or(false);
        port.attach(&socket)?;
        Ok(Self {
            socket: Some(socket),
            domain,
            registered,
            no_delay,
            wanted: false,
            closing: false,
            posted: 0,
            cancelled: None,
            backoff: Backoff::default(),
            lost: 0,
        })
    }

    /// Posts, cancels or closes, whatever is due.
    fn settle(&mut self, id: ListenerId, port: &mut Port, extensions: &Extensions, now: Instant) -> Settled {
        let wanted = self.wanted && !self.closing;
        let Some(socket) = &self.socket else { return Settled::Quiet };
        if wanted && self.cancelled.is_none() {
            return if self.backoff.until().is_some() { Settled::Quiet } else { self.post(id, port, extensions, now) };
        }
        if self.posted > 0 {
            if self.cancelled.is_none() {
                self.cancelled = Some(now + CANCEL_AGAIN);
                winsock::cancel(socket);
            }
        } else if self.closing {
            self.socket = None;
            return Settled::Closed;
        }
        Settled::Quiet
    }

    /// Cancels what has not ended by now, see [`CANCEL_AGAIN`].
    fn cancel_again(&mut self, now: Instant) {
        if let (Some(socket), Some(at)) = (&self.socket, self.cancelled)
            && at <= now
        {
            self.cancelled = Some(now + CANCEL_AGAIN);
            winsock::cancel(socket);
        }
    }

    /// When there is something to do without an event.
    fn waits_until(&self) -> Option<Instant> {
        self.backoff.until().into_iter().chain(self.cancelled).min()
    }

    fn post(&mut self, id: ListenerId, port: &mut Port, extensions: &Extensions, now: Instant) -> Settled {
        // A refusal may be about one lost connection; but there is an end to trying again at once.
        for _ in 0..2 * POSTED {
            if self.posted == POSTED {
                return Settled::Quiet;
            }
            match self.post_one(id, port, extensions) {
                Ok(()) => self.posted += 1,
                Err(error) if error.raw_os_error().is_some_and(winsock::is_lost_connection) => self.lost += 1,
                Err(error) => {
                    self.backoff.fail(now);
                    return Settled::Failed(error);
                }
            }
        }
        if self.posted == 0 {
            self.backoff.fail(now);
        }
        Settled::Quiet
    }

    fn post_one(&self, id: ListenerId, port: &mut Port, extensions: &Extensions) -> io::Result<()> {
        let listener = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let into = winsock::stream_socket(self.domain, self.registered)?;
        let record = Record::new(id, Load::Accept(Box::new((into, [0; _]))));
        // SAFETY: one accept is started, on a socket that was attached to a port of this engine. The kernel writes to the
        // addresses in the load's box. No packet is skipped: `skip_on_success` was never asked of the listener.
        let submitted = unsafe {
            port.submit(record, false, |overlapped, load| match load {
                Load::Accept(accept) => extensions.accept(listener, &accept.0, &raw mut accept.1, overlapped),
                _ => unreachable!("the load is the one made above"),
            })
        };
        match submitted {
            Submitted::Refused(_, error) => Err(io::Error::from_raw_os_error(error)),
            Submitted::Pending | Submitted::Done(_) => Ok(()),
        }
    }

    /// Takes the packet of an accept. [`Listener::settle`] is due afterwards.
    #[expect(clippy::boxed_local, reason = "records come in boxes")]
    fn take(&mut self, record: Box<Record>, success: bool, now: Instant) -> Accepted {
        debug_assert!(self.posted > 0, "a packet of an accept that was not posted");
        self.posted = self.posted.saturating_sub(1);
        if self.posted == 0 {
            self.cancelled = None;
        }
        let Some(listener) = &self.socket else { return Accepted::Cancelled };
        if !success {
            let error = record.failure(listener);
            return self.failed(error, now);
        }
        let Load::Accept(accept) = record.load else { return Accepted::Cancelled };
        let (socket, _) = *accept;
        // It fails when the peer has gone in the meantime.
        if winsock::update_accepted(&socket, listener).is_err() {
            return Accepted::Lost;
        }
        if self.no_delay {
            // Inherited on most systems; if the connection is gone, its first operation says so.
            let _ = socket.set_tcp_nodelay(true);
        }
        self.backoff.succeed();
        Accepted::Connection(Socket::from(socket))
    }

    fn failed(&mut self, error: i32, now: Instant) -> Accepted {
        if winsock::is_cancelled(error) {
            return Accepted::Cancelled;
        }
        if winsock::is_lost_connection(error) {
            return Accepted::Lost;
        }
        if self.backoff.until().is_some() {
            return Accepted::Failed(None);
        }
        self.backoff.fail(now);
        Accepted::Failed(Some(io::Error::from_raw_os_error(error)))
    }
}
