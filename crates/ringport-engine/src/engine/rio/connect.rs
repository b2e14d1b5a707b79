//! Connecting: `ConnectEx` on a socket that was created for Registered I/O. It gets its request queue when it stands.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use super::books::SENDS;
use super::queues::RECEIVES;
use super::{Conn, RioEngine, State};
use crate::engine::contract::Event;
use crate::engine::port::{Load, Record, Submitted};
use crate::engine::winsock;
use crate::id::ConnId;
use crate::socket::{SockAddr, SocketOptions};

impl RioEngine {
    pub(super) fn start_connect(&mut self, to: &SockAddr, options: &SocketOptions) -> io::Result<ConnId> {
        let Some(any) = any_address(to) else {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "Registered I/O is for TCP"));
        };
        let socket = winsock::stream_socket(to.domain(), true)?;
        options.apply(&socket, true)?;
        // ConnectEx wants a bound socket. With this option, where there is one, the port is chosen only with the peer, so
        // that sockets with different peers can share it.
        match options.bind {
            Some(local) => socket.bind(&local.into())?,
            None => {
                let _ = winsock::share_ports(&socket);
                socket.bind(&any)?;
            }
        }
        self.port.attach(&socket)?;
        let id = self.conns.insert(Conn::new(socket, State::Connecting));
        let record = Record::new(id, Load::Connect(Box::new(to.clone())));
        let Self { conns, port, extensions, .. } = self;
        let Some(conn) = conns.get_mut(id) else { return Err(io::ErrorKind::NotFound.into()) };
        let Some(socket) = &conn.socket else { return Err(io::ErrorKind::NotFound.into()) };
        // SAFETY: one connect is started, on a socket that was attached to this port. The kernel reads the address in the
        // load's box. No packet is skipped: `skip_on_success` was never asked of the socket.
        let submitted = unsafe {
            port.submit(record, false, |overlapped, load| match load {
                Load::Connect(address) => extensions.connect(socket, &raw const **address, overlapped),
                _ => unreachable!("the load is the one made above"),
            })
        };
        match submitted {
            Submitted::Pending | Submitted::Done(_) => conn.connecting = true,
            Submitted::Refused(_, error) => self.end(id, error),
        }
        Ok(id)
    }

    pub(super) fn on_connect(&mut self, record: &Record, success: bool) -> Option<Event> {
        let id = ConnId::from(record.id);
        let conn = self.conns.get_mut(id)?;
        conn.connecting = false;
        if conn.state != State::Connecting {
            self.settle(id);
            return None;
        }
        let socket = conn.socket.take()?;
        let outcome = if success {
            winsock::update_connected(&socket).and_then(|()| self.equip(&socket, RECEIVES, SENDS))
        } else {
            Err(io::Error::from_raw_os_error(record.failure(&socket)))
        };
        let conn = self.conns.get_mut(id)?;
        conn.socket = Some(socket);
        match outcome {
            Ok(requests) => {
                conn.requests = Some(requests);
                conn.state = State::Open;
                if conn.finishing && conn.flight.is_none() {
                    self.send_fin(id);
                }
                self.soil(id);
                Some(Event::Connected { conn: id })
            }
            Err(error) => {
                self.end(id, error.raw_os_error().unwrap_or(winsock::NOT_CONNECTED));
                None
            }
        }
    }
}

/// The address of the same kind that stands for any; `None` for a socket file.
fn any_address(to: &SockAddr) -> Option<SockAddr> {
    match to.as_socket()? {
        SocketAddr::V4(_) => Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()),
        SocketAddr::V6(_) => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()),
    }
}
