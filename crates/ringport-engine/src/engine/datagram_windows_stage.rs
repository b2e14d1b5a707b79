//! What the tests of both engines of Windows need to play with datagram sockets.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::engine::contract::{Engine, Event, Want};
use crate::id::UdpId;
use crate::socket::{Socket, UdpOptions};

/// A new socket that receives, and its address.
pub(crate) fn bind(engine: &mut impl Engine) -> (UdpId, SocketAddr) {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let socket = Socket::bind_udp(any, &UdpOptions::default(), None).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let id = engine.bind_udp(socket).unwrap();
    engine.receive_datagrams(id, Want::On);
    (id, address)
}

/// Events until `done`, or for `time`.
pub(crate) fn events(engine: &mut impl Engine, time: Duration, mut done: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let (end, mut events) = (Instant::now() + time, Vec::new());
    let mut over = false;
    while !over && Instant::now() < end {
        engine.wait(Some(end)).unwrap();
        while let Some(event) = engine.next() {
            over |= done(&event);
            events.push(event);
        }
    }
    events
}
