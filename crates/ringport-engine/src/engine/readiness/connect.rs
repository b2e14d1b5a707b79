//! Connecting.
//!
//! The answer to a connect is a writable edge; whether it is a yes, the socket itself says: it has no error and it has a
//! peer. Both are asked, since an edge may be spurious and an error is told only once.

use std::io;

use super::{Conn, ReadinessEngine};
use crate::engine::contract::Event;
use crate::engine::platform;
use crate::id::ConnId;
use crate::socket::{SockAddr, SocketOptions};

impl ReadinessEngine {
    pub(super) fn begin_connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        let socket = options.open(to)?;
        socket.set_nonblocking(true)?;
        platform::no_sigpipe(&socket)?;
        // Registered after the call: a socket that is not even connecting would report that it is hung up.
        let outcome = socket.connect(to);
        let mut conn = Conn::new(socket);
        conn.connecting = true;
        conn.asks_for_room = true;
        let answered = match outcome {
            Ok(()) => true,
            Err(error) if is_in_progress(&error) => false,
            // A Unix socket whose listener is full answers EAGAIN, and nothing tells when it may be tried again.
            Err(error) => {
                conn.failure = Some(error);
                true
            }
        };
        conn.writable = answered;
        conn.deferred = answered && options.fast_open;
        let id = self.register(conn)?;
        if answered {
            self.queue(id);
        }
        Ok(id)
    }

    /// Looks whether the connect was answered.
    #[cold]
    pub(super) fn finish_connect(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        if let Some(error) = conn.failure.take() {
            return self.remove(id, error);
        }
        if !std::mem::take(&mut conn.writable) {
            return None;
        }
        let socket = conn.socket.as_ref()?;
        let outcome = match socket.take_error() {
            Ok(None) => socket.peer_addr(),
            Ok(Some(error)) | Err(error) => Err(error),
        };
        match outcome {
            // A connect that waits for the first data has no peer yet, and counts as connected, so that there is some.
            outcome if outcome.is_ok() || (conn.deferred && is_unconnected(&outcome)) => {
                conn.connecting = false;
                conn.finish_if_idle();
                Some(Event::Connected { conn: id })
            }
            outcome if is_unconnected(&outcome) => None,
            Err(error) if is_in_progress(&error) => None,
            Err(error) => self.remove(id, error),
            Ok(_) => None,
        }
    }
}

fn is_unconnected(outcome: &io::Result<SockAddr>) -> bool {
    outcome.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotConnected)
}

/// Whether the connect goes on. A signal does not stop it either, see connect(2).
fn is_in_progress(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EINTR))
}
