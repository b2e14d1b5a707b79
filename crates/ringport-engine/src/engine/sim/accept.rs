//! Listening and accepting.

use std::io;

use super::network::{Action, Held, Note};
use super::{Listener, SimEngine};
use crate::engine::backoff::Backoff;
use crate::engine::contract::{ACCEPT_BACKOFF_MIN, Close, Event, Want};
use crate::id::ListenerId;
use crate::socket::{Repr, Socket};

impl SimEngine {
    pub(super) fn begin_listening(&mut self, socket: Socket) -> io::Result<ListenerId> {
        let Held::Listener(socket) = self.hold(socket)? else { return Err(io::ErrorKind::InvalidInput.into()) };
        let id = self.listeners.insert(Listener { socket, backoff: Backoff::default(), closing: false });
        if let Some(entry) = self.network.lock().listeners.get_mut(socket) {
            entry.owner = Some((self.number, id));
        }
        Ok(id)
    }

    /// Takes a simulated socket over from whoever had it.
    pub(super) fn hold(&self, socket: Socket) -> io::Result<Held> {
        match socket.0 {
            Repr::Simulated(endpoint) => endpoint.take(&self.network),
            Repr::System(_) => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "the simulator cannot use a socket of the system"))
            }
        }
    }

    pub(super) fn set_accepting(&mut self, listener: ListenerId, want: Want) {
        let Some(entry) = self.listeners.get(listener).filter(|entry| !entry.closing) else { return };
        let mut state = self.network.lock();
        if let Some(socket) = state.listeners.get_mut(entry.socket) {
            socket.accepting = want == Want::On;
        }
        state.note_accept(entry.socket);
    }

    pub(super) fn stop_listening(&mut self, listener: ListenerId) {
        let Some(entry) = self.listeners.get_mut(listener).filter(|entry| !entry.closing) else { return };
        entry.closing = true;
        let mut state = self.network.lock();
        state.release_listener(entry.socket);
        state.schedule(Action::Tell(self.number, Note::ListenerClosed(listener)));
    }

    pub(super) fn listener_closed(&mut self, listener: ListenerId) -> Option<Event> {
        self.listeners.remove(listener)?;
        Some(Event::ListenerClosed { listener })
    }

    /// The pause after a failed accept is over.
    pub(super) fn accept_again(&mut self, listener: ListenerId) -> Option<Event> {
        let entry = self.listeners.get_mut(listener)?;
        let now = { self.network.lock().instant() };
        entry.backoff.expire(now);
        self.accept_one(listener)
    }

    /// Accepts one connection and comes back for the others.
    pub(super) fn accept_one(&mut self, listener: ListenerId) -> Option<Event> {
        let entry = self.listeners.get_mut(listener).filter(|entry| !entry.closing)?;
        let mut state = self.network.lock();
        let socket = state.listeners.get_mut(entry.socket)?;
        socket.noted = false;
        if entry.backoff.until().is_some() || !socket.accepting || socket.queue.is_empty() {
            return None;
        }
        self.stats.calls += 1;
        if state.exhausted() {
            let now = state.instant();
            entry.backoff.fail(now);
            let pause = entry.backoff.until().map_or(ACCEPT_BACKOFF_MIN, |until| until - now);
            state.schedule_after(pause, Action::Tell(self.number, Note::AcceptAgain(listener)));
            self.stats.accepts_failed += 1;
            return Some(Event::AcceptFailed { listener, error: io::Error::other("out of descriptors (simulated)") });
        }
        entry.backoff.succeed();
        let accepted = state.listeners.get_mut(entry.socket)?.queue.pop_front()?;
        state.note_accept(entry.socket);
        if state.resets_before_accept() {
            state.release(accepted, Close::Abort);
            self.stats.accepts_failed += 1;
            return None;
        }
        let endpoint = self.network.endpoint(&state, accepted)?;
        Some(Event::Accepted { listener, socket: Socket(Repr::Simulated(endpoint)) })
    }
}
