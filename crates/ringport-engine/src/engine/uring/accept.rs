//! Listeners: one armed accept each, and the pause when descriptors or memory run out.
//!
//! A multishot accept that fails ends, and arming it again at once fails again at once, millions of times a second.
//! So exhaustion means a pause ([`Backoff`]), which ends early when one of this engine's own connections closes.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Instant;

use io_uring::opcode;
use io_uring::types::Fd;

use super::ring::Completion;
use super::{Farewell, Op, UringEngine};
use crate::engine::backoff::Backoff;
use crate::engine::contract::{Event, Want};
use crate::id::ListenerId;
use crate::socket::Socket;

/// A listening socket.
pub(super) struct Listener {
    socket: Option<socket2::Socket>,
    wanted: bool,
    closing: bool,
    pub(super) armed: bool,
    cancelled: bool,
    backoff: Backoff,
}

impl UringEngine {
    pub(super) fn start_listening(&mut self, socket: Socket) -> io::Result<ListenerId> {
        let socket = socket.into_system()?;
        socket.set_nonblocking(false)?;
        Ok(self.listeners.insert(Listener {
            socket: Some(socket),
            wanted: false,
            closing: false,
            armed: false,
            cancelled: false,
            backoff: Backoff::default(),
        }))
    }

    pub(super) fn want_accepts(&mut self, id: ListenerId, want: Want) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.wanted = want == Want::On;
            self.settle_listener(id);
        }
    }

    pub(super) fn stop_listening(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.closing = true;
            self.settle_listener(id);
        }
    }

    /// Arms, cancels or closes, whatever is due.
    fn settle_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let wanted = listener.wanted && !listener.closing;
        if listener.armed {
            if !wanted && !listener.cancelled {
                listener.cancelled = true;
                self.cancel_tag(Op::Accept.tag(id));
            }
        } else if listener.closing {
            if listener.socket.take().is_some() {
                self.farewells.push_back(Farewell::Listener(id));
            }
        } else if wanted && listener.backoff.until().is_none() {
            self.arm_accept(id);
        }
    }

    fn arm_accept(&mut self, id: ListenerId) {
        let multishot = self.config.features.multishot_accept;
        let Some(listener) = self.listeners.get_mut(id) else { return };
        let Some(socket) = &listener.socket else { return };
        let fd = Fd(socket.as_raw_fd());
        listener.armed = true;
        listener.cancelled = false;
        let entry = if multishot {
            opcode::AcceptMulti::new(fd).flags(libc::SOCK_CLOEXEC).build()
        } else {
            let nowhere = std::ptr::null_mut();
            opcode::Accept::new(fd, nowhere, nowhere.cast()).flags(libc::SOCK_CLOEXEC).build()
        };
        // SAFETY: an accept without room for an address refers to no memory.
        unsafe { self.ring.push(&entry.user_data(Op::Accept.tag(id))) };
    }

    pub(super) fn on_accept(&mut self, completion: Completion) -> Option<Event> {
        let accepted = (completion.result >= 0).then(|| {
            // SAFETY: the kernel has just opened this descriptor for us, and nobody else knows of it.
            socket2::Socket::from(unsafe { OwnedFd::from_raw_fd(completion.result) })
        });
        let (id, listener) = self.listeners.slot_mut::<ListenerId>(completion.tag as u32)?;
        if completion.tag != Op::Accept.tag(id) {
            return None;
        }
        if !completion.more() {
            listener.armed = false;
        }
        let event = match accepted {
            Some(socket) => {
                listener.backoff.succeed();
                Some(Event::Accepted { listener: id, socket: socket.into() })
            }
            None => self.accept_failed(id, -completion.result),
        };
        if !completion.more() {
            self.settle_listener(id);
        }
        event
    }

    #[cold]
    fn accept_failed(&mut self, id: ListenerId, error: i32) -> Option<Event> {
        if matches!(error, libc::ECANCELED | libc::EINTR | libc::EAGAIN) {
            return None;
        }
        self.stats.accepts_failed += 1;
        // Errors of the one connection that was about to be accepted, see accept(2): the next may be well.
        if matches!(
            error,
            libc::ECONNABORTED
                | libc::EPROTO
                | libc::EPERM
                | libc::ENETDOWN
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN
                | libc::ENONET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
        ) {
            return None;
        }
        let listener = self.listeners.get_mut(id)?;
        listener.backoff.fail(self.now);
        self.backed_off = true;
        Some(Event::AcceptFailed { listener: id, error: io::Error::from_raw_os_error(error) })
    }

    /// Tries again where the pause is over, or where a descriptor has become free. Returns the end of the next pause.
    pub(super) fn resume_listeners(&mut self) -> Option<Instant> {
        let freed = std::mem::take(&mut self.descriptor_freed);
        if !self.backed_off {
            return None;
        }
        let now = Instant::now();
        let mut next = None;
        for id in self.listeners.ids::<ListenerId>() {
            let Some(listener) = self.listeners.get_mut(id) else { continue };
            let Some(until) = listener.backoff.until() else { continue };
            if listener.backoff.expire(if freed { until } else { now }) {
                self.settle_listener(id);
            } else {
                next = Some(next.map_or(until, |earliest: Instant| earliest.min(until)));
            }
        }
        self.backed_off = next.is_some();
        next
    }
}
