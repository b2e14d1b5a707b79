//! Listeners. What can be said without a connection, `engine/acceptor.rs` says for both engines of Windows; here it
//! accepts into sockets that were created for Registered I/O.

use std::io;
use std::time::Instant;

use super::{Farewell, RioEngine};
use crate::engine::acceptor::{Accepted, Listener, Settled};
use crate::engine::contract::{Event, Want};
use crate::engine::port::Record;
use crate::id::ListenerId;
use crate::socket::Socket;

impl RioEngine {
    pub(super) fn start_listening(&mut self, socket: Socket) -> io::Result<ListenerId> {
        let listener = Listener::new(socket.into_system()?, &self.port, true)?;
        Ok(self.listeners.insert(listener))
    }

    pub(super) fn want_accepts(&mut self, id: ListenerId, want: Want) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.want(want);
            self.settle_listener(id);
        }
    }

    pub(super) fn stop_listening(&mut self, id: ListenerId) {
        if let Some(listener) = self.listeners.get_mut(id) {
            listener.stop();
            self.settle_listener(id);
        }
    }

    fn settle_listener(&mut self, id: ListenerId) {
        let Some(listener) = self.listeners.get_mut(id) else { return };
        match listener.settle(id, &mut self.port, &self.extensions, self.now) {
            Settled::Quiet => {}
            Settled::Failed(error) => {
                self.stats.accepts_failed += 1;
                self.farewells.push_back(Farewell::AcceptFailed(id, error));
            }
            Settled::Closed => self.farewells.push_back(Farewell::Listener(id)),
        }
    }

    pub(super) fn on_accept(&mut self, record: Box<Record>, success: bool) -> Option<Event> {
        let id = ListenerId::from(record.id);
        let event = match self.listeners.get_mut(id)?.take(record, success, self.now) {
            Accepted::Connection(socket) => Some(Event::Accepted { listener: id, socket }),
            Accepted::Cancelled => None,
            Accepted::Lost | Accepted::Failed(None) => {
                self.stats.accepts_failed += 1;
                None
            }
            Accepted::Failed(Some(error)) => {
                self.stats.accepts_failed += 1;
                Some(Event::AcceptFailed { listener: id, error })
            }
        };
        self.settle_listener(id);
        event
    }

    /// Tries again where the pause is over. Returns the end of the next pause.
    pub(super) fn resume_listeners(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let mut next = None;
        for id in self.listeners.ids::<ListenerId>() {
            let Some(listener) = self.listeners.get_mut(id) else { continue };
            if listener.end_pause(now) {
                self.now = now;
                self.settle_listener(id);
            }
            let until = self.listeners.get(id).and_then(Listener::pause_end);
            next = next.into_iter().chain(until).min();
        }
        next
    }
}
