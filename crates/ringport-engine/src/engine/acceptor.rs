//! A listening socket whose connections are accepted through a port, shared by the engines of Windows.
//!
//! Several `AcceptEx` are posted at a time, each with a socket of its own that is to become the connection. That socket
//! is bound to no port: whoever adopts it may be another worker, and a socket is bound for life.

use std::io;
use std::time::Instant;

use super::backoff::Backoff;
use super::contract::Want;
use super::port::{Load, Port, Record, Submitted};
use super::winsock::{self, Extensions};
use crate::id::ListenerId;
use crate::socket::Socket;

/// Accepts posted at a time. Further connections wait in the backlog, until one of these has been taken.
const POSTED: u32 = 16;

/// A listening socket.
pub(crate) struct Listener {
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
    cancelled: bool,
    backoff: Backoff,
    /// Connections that were gone when their accept was posted, since somebody asked.
    lost: u64,
}

/// What [`Listener::settle`] found to report.
pub(crate) enum Settled {
    /// Nothing.
    Quiet,
    /// Posting failed, and goes on after a pause.
    Failed(io::Error),
    /// The socket is closed, and nothing is under way any more.
    Closed,
}

/// What became of one accept.
pub(crate) enum Accepted {
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
    ///
    /// # Errors
    ///
    /// If it cannot be bound.
    pub(crate) fn new(socket: socket2::Socket, port: &Port, registered: bool) -> io::Result<Self> {
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
            cancelled: false,
            backoff: Backoff::default(),
            lost: 0,
        })
    }

    /// Starts or pauses accepting.
    pub(crate) fn want(&mut self, want: Want) {
        self.wanted = want == Want::On;
    }

    /// Stops for good.
    pub(crate) fn stop(&mut self) {
        self.closing = true;
    }

    /// End of the pause, if there is one.
    pub(crate) fn pause_end(&self) -> Option<Instant> {
        self.backoff.until()
    }

    /// Ends the pause if its time has come, and says so.
    pub(crate) fn end_pause(&mut self, now: Instant) -> bool {
        self.backoff.expire(now)
    }

    /// Connections that [`Listener::settle`] found gone before they could be accepted, since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Posts, cancels or closes, whatever is due.
    pub(crate) fn settle(&mut self, id: ListenerId, port: &mut Port, extensions: &Extensions, now: Instant) -> Settled {
        let wanted = self.wanted && !self.closing;
        let Some(socket) = &self.socket else { return Settled::Quiet };
        if wanted && !self.cancelled {
            return if self.backoff.until().is_some() { Settled::Quiet } else { self.post(id, port, extensions, now) };
        }
        if self.posted > 0 {
            if !self.cancelled {
                self.cancelled = true;
                winsock::cancel(socket);
            }
        } else if self.closing {
            self.socket = None;
            return Settled::Closed;
        }
        Settled::Quiet
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
    pub(crate) fn take(&mut self, record: Box<Record>, success: bool, now: Instant) -> Accepted {
        debug_assert!(self.posted > 0, "a packet of an accept that was not posted");
        self.posted = self.posted.saturating_sub(1);
        if self.posted == 0 {
            self.cancelled = false;
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
