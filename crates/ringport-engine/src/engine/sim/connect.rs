//! Connections that begin: connected here, or accepted and taken in.

use std::io;

use super::network::Held;
use super::{Conn, ConnState, SimEngine, check_simulated};
use crate::engine::contract::Event;
use crate::id::ConnId;
use crate::socket::{SockAddr, Socket, SocketOptions, is_tcp};

impl SimEngine {
    pub(super) fn begin_connecting(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        let bind = options.bind;
        let options: Vec<_> = options.options(is_tcp(to)).collect();
        options.iter().try_for_each(check_simulated)?;
        let mut state = self.network.lock();
        let socket = state.open(to, bind, options);
        let id = self.conns.insert(Conn::new(socket, ConnState::Connecting));
        state.set_owner(socket, self.number, id);
        Ok(id)
    }

    pub(super) fn take_in(&mut self, socket: Socket) -> io::Result<ConnId> {
        let Held::Stream(socket) = self.hold(socket)? else { return Err(io::ErrorKind::InvalidInput.into()) };
        let id = self.conns.insert(Conn::new(socket, ConnState::Open));
        let mut state = self.network.lock();
        state.set_owner(socket, self.number, id);
        // It may have failed while nobody owned it.
        state.note_receive(socket);
        Ok(id)
    }

    pub(super) fn connected(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id).filter(|conn| conn.state == ConnState::Connecting)?;
        let mut state = self.network.lock();
        if state.sockets.get(conn.socket).is_none_or(|socket| socket.error.is_some()) {
            // The note about the failure is under way.
            return None;
        }
        conn.state = ConnState::Open;
        if conn.finishing {
            state.finish(conn.socket);
        }
        state.note_receive(conn.socket);
        Some(Event::Connected { conn: id })
    }
}
