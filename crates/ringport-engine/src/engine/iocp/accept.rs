//! Listeners. What can be said without a connection, `engine/acceptor.rs` says for both engines of Windows.

use std::io;

use super::IocpEngine;
use crate::engine::contract::{Event, Want};
use crate::engine::port::Record;
use crate::id::ListenerId;
use crate::socket::Socket;

impl IocpEngine {
    pub(super) fn start_listening(&mut self, socket: Socket) -> io::Result<ListenerId> {
        self.listeners.listen(socket, &self.port)
    }

    pub(super) fn want_accepts(&mut self, id: ListenerId, want: Want) {
        self.listeners.want(id, want, &mut self.port, &self.extensions, self.now);
    }

    pub(super) fn stop_listening(&mut self, id: ListenerId) {
        self.listeners.stop(id, &mut self.port, &self.extensions, self.now);
    }

    pub(super) fn on_accept(&mut self, record: Box<Record>, success: bool) -> Option<Event> {
        self.listeners.on_accept(record, success, &mut self.port, &self.extensions, self.now)
    }
}
