//! The deterministic simulator.

use std::io;

use crate::socket::SockAddr;

/// A simulated network: addresses, connections, a clock and a seed, shared by the engines opened on it.
#[derive(Clone, Debug)]
pub struct Network {}

impl Network {
    /// Listens.
    pub(crate) fn listen(&self, _: &SockAddr, _: u32) -> io::Result<Endpoint> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// One end of a simulated socket that belongs to no engine.
#[derive(Debug)]
pub(crate) struct Endpoint {}

impl Endpoint {
    pub(crate) fn local_addr(&self) -> SockAddr {
        SockAddr::from(std::net::SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SockAddr> {
        Err(io::ErrorKind::NotConnected.into())
    }
}
