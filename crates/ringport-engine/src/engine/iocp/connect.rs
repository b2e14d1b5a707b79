//! Connecting: one operation with the address in memory of its own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{IocpEngine, Notice, State};
use crate::engine::contract::Event;
use crate::engine::port::{Load, Record, Submitted};
use crate::engine::winsock;
use crate::id::ConnId;
use crate::socket::{SockAddr, SocketOptions};

impl IocpEngine {
    pub(super) fn start_connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        let socket = options.open(to)?;
        let Some(any) = any_address(to) else { return self.connect_locally(socket, to) };
        // ConnectEx wants a bound socket. With this option, where there is one, the port is chosen only with the peer, so
        // that sockets with different peers can share it.
        if options.bind.is_none() {
            let _ = winsock::share_ports(&socket);
            socket.bind(&any)?;
        }
        let id = self.insert(socket, State::Connecting)?;
        let record = Record::new(id, Load::Connect(Box::new(to.clone())));
        let Self { conns, port, extensions, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Err(io::ErrorKind::NotFound.into()) };
        let Some(socket) = &conn.socket else { return Err(io::ErrorKind::NotFound.into()) };
        // SAFETY: one connect is started, on a socket that was attached to this port. The kernel reads the address in the
        // load's box. `skip` is what `skip_on_success` said of the socket.
        let submitted = unsafe {
            port.submit(record, conn.skip, |overlapped, load| match load {
                Load::Connect(address) => extensions.connect(socket, &raw const **address, overlapped),
                _ => unreachable!("the load is the one made above"),
            })
        };
        match submitted {
            Submitted::Pending => conn.connecting = true,
            Submitted::Done(_) => {
                if self.is_connected(id) {
                    self.notices.push_back(Notice::Connected(id));
                }
            }
            Submitted::Refused(_, error) => {
                conn.error = error;
                self.finalize(id);
            }
        }
        Ok(id)
    }

    /// A socket file. ConnectEx knows nothing of those; a connect is answered at once, since nothing travels.
    fn connect_locally(&mut self, socket: socket2::Socket, to: &SockAddr) -> io::Result<ConnId> {
        let outcome = socket.connect(to);
        let id = self.insert(socket, State::Connecting)?;
        match outcome {
            Ok(()) => self.notices.push_back(Notice::Connected(id)),
            Err(error) => {
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.error = error.raw_os_error().unwrap_or(winsock::NOT_CONNECTED);
                }
                self.finalize(id);
            }
        }
        Ok(id)
    }

    pub(super) fn on_connect(&mut self, record: &Record, success: bool) -> Option<Event> {
        let id = ConnId::from(record.id);
        let conn = self.conns.get_mut(id)?;
        conn.connecting = false;
        let socket = conn.socket.as_ref()?;
        if conn.state != State::Connecting {
            self.settle(id);
            return None;
        }
        if !success {
            conn.error = record.failure(socket);
            self.finalize(id);
            return None;
        }
        if self.is_connected(id) { self.say_connected(id) } else { None }
    }

    /// The peer has answered. Whether the connection still stands; if not, it is closed.
    fn is_connected(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let Some(socket) = &conn.socket else { return false };
        if let Err(error) = winsock::update_connected(socket) {
            conn.error = error.raw_os_error().unwrap_or(winsock::NOT_CONNECTED);
            self.finalize(id);
            return false;
        }
        true
    }

    /// The event of a connect that succeeded, unless it was closed in the meantime.
    pub(super) fn say_connected(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        if conn.state != State::Connecting {
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

/// The address of the same kind that stands for any; `None` for a socket file.
fn any_address(to: &SockAddr) -> Option<SockAddr> {
    match to.as_socket()? {
        SocketAddr::V4(_) => Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()),
        SocketAddr::V6(_) => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()),
    }
}
