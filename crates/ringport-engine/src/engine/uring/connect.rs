//! Connecting: one operation with the address in memory of its own.

use std::io;

use io_uring::opcode;

use super::ring::Completion;
use super::send::Flight;
use super::{Op, State, UringEngine};
use crate::engine::contract::Event;
use crate::id::ConnId;
use crate::socket::{SockAddr, SocketOptions};

impl UringEngine {
    pub(super) fn start_connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        let socket = options.open(to)?;
        let id = self.insert(socket, State::Connecting);
        let address = Box::new(to.clone());
        if let Some(conn) = self.conns.get_mut(id) {
            let entry = opcode::Connect::new(conn.target(), address.as_ptr().cast(), address.len()).build();
            conn.flight = Flight::Address(address);
            conn.arm(Op::Connect);
            // SAFETY: the address lies in a box that the connection keeps until the terminal completion.
            unsafe { self.ring.push(&entry.user_data(Op::Connect.tag(id))) };
        }
        Ok(id)
    }

    pub(super) fn on_connect(&mut self, completion: Completion) -> Option<Event> {
        let (id, conn) = self.conn_of(completion)?;
        conn.disarm(Op::Connect);
        conn.flight = Flight::None;
        if conn.state != State::Connecting {
            self.settle(id);
            return None;
        }
        if completion.result < 0 {
            conn.error = -completion.result;
            self.finalize(id);
            return None;
        }
        conn.state = State::Open;
        if conn.finishing {
            self.send_fin(id);
        }
        self.settle(id);
        Some(Event::Connected { conn: id })
    }
}
