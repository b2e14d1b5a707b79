//! Listening sockets.
//!
//! A listener on the ready list accepts one connection for each event, until the kernel has no more, the turn's share
//! is used up, or the system is out of something. In the last case it *rests*: the edge is used up, so nothing but its
//! [`Backoff`], or a descriptor that this engine closes, brings it back.

use std::io;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;

use super::ReadinessEngine;
use super::wait::{Ready, Target};
use crate::engine::backoff::Backoff;
use crate::engine::contract::{Event, Want};
use crate::engine::platform;
use crate::id::ListenerId;
use crate::socket::Socket;

/// Connections that one listener accepts before the other sockets have their turn.
const ACCEPTS_PER_TURN: usize = 64;

/// A listening socket.
pub(super) struct Listener {
    /// `None` once closed, until [`Event::ListenerClosed`] is delivered.
    pub(super) socket: Option<socket2::Socket>,
    pub(super) accepting: bool,
    /// There may be something to accept.
    pub(super) readable: bool,
    /// Waits for the end of its pause, in [`ReadinessEngine::resting`].
    pub(super) resting: bool,
    /// In the ready list.
    pub(super) queued: bool,
    pub(super) backoff: Backoff,
}

impl Listener {
    /// Whether an accept call is due.
    pub(super) fn may_accept(&self) -> bool {
        self.accepting && self.readable && !self.resting
    }
}

impl ReadinessEngine {
    pub(super) fn take_listener(&mut self, socket: socket2::Socket) -> io::Result<ListenerId> {
        socket.set_nonblocking(true)?;
        let fd = socket.as_raw_fd();
        let id: ListenerId = self.listeners.insert(Listener {
            socket: Some(socket),
            accepting: false,
            readable: false,
            resting: false,
            queued: false,
            backoff: Backoff::default(),
        });
        let token = Target::Listener.token(id);
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd), token, mio::Interest::READABLE) {
            self.listeners.remove(id);
            return Err(error);
        }
        Ok(id)
    }

    pub(super) fn set_accepting(&mut self, id: ListenerId, want: Want) {
        let Some(listener) = self.listeners.get_mut(id).filter(|listener| listener.socket.is_some()) else { return };
        listener.accepting = want == Want::On;
        if listener.may_accept() && self.turn.current != Some(Ready::Listener(id)) {
            self.turn.queue_listener(id, listener);
        }
    }

    /// Accepts one connection.
    pub(super) fn accept_next(&mut self, id: ListenerId) -> Option<Event> {
        loop {
            let listener = self.listeners.get_mut(id)?;
            let socket = listener.socket.as_ref()?;
            if !listener.may_accept() {
                return None;
            }
            if self.turn.used >= ACCEPTS_PER_TURN {
                self.turn.queue_listener(id, listener);
                return None;
            }
            self.turn.used += 1;
            match platform::accept(socket) {
                Ok(socket) => {
                    listener.backoff.succeed();
                    return Some(Event::Accepted { listener: id, socket: Socket::from(socket) });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    listener.readable = false;
                    listener.backoff.succeed();
                    return None;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_lost_connection(&error) => self.stats.accepts_failed += 1,
                Err(error) => {
                    self.stats.accepts_failed += 1;
                    listener.resting = true;
                    listener.backoff.fail(self.now);
                    self.resting.push(id);
                    return Some(Event::AcceptFailed { listener: id, error });
                }
            }
        }
    }
}

/// Whether only the connection that would have been accepted failed: it was reset, a firewall forbade it, or an error of
/// the network was pending on it (accept(2) lists these). Everything else would come again at once.
fn is_lost_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::ECONNRESET
                | libc::EPERM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        )
    )
}
