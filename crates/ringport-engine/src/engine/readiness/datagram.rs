//! Datagram sockets: a [`Port`] each, on the same ready list as connections and listeners.
//!
//! They are registered for writing only while the kernel takes no more. Every datagram that leaves makes room in the
//! socket's buffer, so that each send would be an edge otherwise, and each wait would end at once for nothing.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use mio::unix::SourceFd;

use super::ReadinessEngine;
use super::close::Farewell;
use super::wait::{Ready, Target, Turn};
use crate::buffer::{Chunk, Pool, SlotClass};
use crate::engine::contract::{EngineConfig, EngineStats, Event, SendTo, Waker, Want};
use crate::engine::datagram::{self, Batches, Found, Port};
use crate::engine::platform;
use crate::id::{Table, UdpId};
use crate::options::SocketRef;
use crate::socket::Socket;

/// Everything about datagrams. Holds no buffers until the first socket is bound.
pub(super) struct Datagrams {
    config: EngineConfig,
    /// `None` once the socket is closed, until its last event is delivered.
    ports: Table<Option<Box<Port>>>,
    memory: Option<(Pool, Box<Batches>)>,
    /// Ports with datagrams to send.
    flush: VecDeque<UdpId>,
    /// Ports that found no buffer.
    starved: Vec<UdpId>,
}

impl Datagrams {
    pub(super) fn new(config: &EngineConfig) -> Self {
        let config = config.clone();
        Self { config, ports: Table::new(), memory: None, flush: VecDeque::new(), starved: Vec::new() }
    }

    fn port(&mut self, id: UdpId) -> Option<&mut Port> {
        self.ports.get_mut(id)?.as_deref_mut()
    }

    /// The port in a slot, if the token is its own.
    pub(super) fn at(&mut self, slot: u32, token: mio::Token) -> Option<(UdpId, &mut Port)> {
        let (id, port) = self.ports.slot_mut::<UdpId>(slot)?;
        let port = port.as_deref_mut()?;
        (Target::Udp.token(id) == token).then_some((id, port))
    }

    /// The port leaves the ready list.
    pub(super) fn unqueue(&mut self, id: UdpId) {
        if let Some(port) = self.port(id) {
            port.queued = false;
        }
    }

    /// Bytes of received datagrams that are held outside of the slots.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.memory.as_ref().map_or(0, |(pool, _)| pool.copied_out_bytes())
    }

    pub(super) fn socket(&self, id: UdpId) -> io::Result<SocketRef<'_>> {
        let port = self.ports.get(id).and_then(Option::as_ref).ok_or(io::ErrorKind::NotFound)?;
        Ok(SocketRef((&port.socket).into()))
    }

    /// Whether a port waits for a buffer.
    pub(super) fn is_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    /// From now on a slot that another thread gives back rings `bell`. `false` if one has come back already.
    pub(super) fn begin_shortage(&self, bell: &Waker) -> bool {
        self.memory.as_ref().is_none_or(|(pool, _)| pool.begin_shortage(bell))
    }

    pub(super) fn end_shortage(&self) {
        if let Some((pool, _)) = &self.memory {
            pool.end_shortage();
        }
    }

    /// Notes that a port has something to send, and sends it if that is much.
    fn push(&mut self, id: UdpId, to: SocketAddr, data: Chunk, stats: &mut EngineStats) -> SendTo {
        let Some(port) = self.ports.get_mut(id).and_then(Option::as_deref_mut) else { return SendTo::Closed(data) };
        let outcome = port.push(to, data, stats);
        if !std::mem::replace(&mut port.flushing, true) {
            self.flush.push_back(id);
        }
        if port.has_batch()
            && let Some((_, batches)) = &mut self.memory
        {
            port.flush(batches, stats);
        }
        outcome
    }

    /// Sends what waits, before the engine sleeps.
    pub(super) fn flush(&mut self, registry: &mio::Registry, turn: &mut Turn, stats: &mut EngineStats) {
        let Some((_, batches)) = &mut self.memory else { return };
        // Those that are put there meanwhile have their turn next time.
        for _ in 0..self.flush.len() {
            let Some(id) = self.flush.pop_front() else { break };
            let Some(port) = self.ports.get_mut(id).and_then(Option::as_deref_mut) else { continue };
            port.flushing = false;
            port.flush(batches, stats);
            if port.blocked != port.watched && port.watch(registry, id).is_err() {
                port.blocked = false; // Nobody would say when there is room, so that the next turn tries again.
            }
            if port.unsent() > 0 && !port.blocked {
                port.flushing = true;
                self.flush.push_back(id);
            }
            if port.has_news() {
                turn.queue_port(id, port);
            }
        }
    }

    /// Whether something is left to send that nobody needs to be waited for.
    pub(super) fn has_leftovers(&self) -> bool {
        !self.flush.is_empty()
    }

    /// Lets starved ports try again if there is a buffer.
    pub(super) fn feed_starved(&mut self, turn: &mut Turn) {
        let Some((pool, _)) = self.memory.as_ref().filter(|_| !self.starved.is_empty()) else { return };
        pool.collect();
        if pool.free(SlotClass::Small) == 0 {
            return;
        }
        for id in std::mem::take(&mut self.starved) {
            if let Some(port) = self.port(id) {
                port.starved = false;
                turn.queue_port(id, port);
            }
        }
    }
}

impl Port {
    /// Has the kernel tell of room for as long as there is none.
    #[cold]
    fn watch(&mut self, registry: &mio::Registry, id: UdpId) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        let room = self.blocked.then_some(mio::Interest::WRITABLE);
        let interest = room.map_or(mio::Interest::READABLE, |room| room | mio::Interest::READABLE);
        registry.reregister(&mut SourceFd(&fd), Target::Udp.token(id), interest)?;
        self.watched = self.blocked;
        Ok(())
    }

    /// Takes over what the kernel reported, and says whether the port can go on now.
    pub(super) fn note(&mut self, event: &mio::event::Event, stats: &mut EngineStats) -> bool {
        if event.is_error() {
            self.collect_errors(stats);
        }
        self.readable |= event.is_readable() || event.is_error();
        let room = self.blocked && (event.is_writable() || event.is_error());
        self.blocked &= !room;
        room || (self.readable && self.wanted && !self.starved) || self.has_news()
    }
}

impl ReadinessEngine {
    pub(super) fn take_port(&mut self, socket: Socket) -> io::Result<UdpId> {
        let socket = socket.into_system()?;
        socket.set_nonblocking(true)?;
        platform::no_sigpipe(&socket)?;
        let udp = &mut self.udp;
        let port = Port::new(socket, &udp.config)?;
        udp.memory.get_or_insert_with(|| (datagram::pool(&udp.config), Batches::new()));
        let fd = port.socket.as_raw_fd();
        let id: UdpId = udp.ports.insert(Some(Box::new(port)));
        let token = Target::Udp.token(id);
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd), token, mio::Interest::READABLE) {
            self.udp.ports.remove(id);
            return Err(error);
        }
        Ok(id)
    }

    pub(super) fn want_datagrams(&mut self, id: UdpId, want: Want) {
        let Some(port) = self.udp.port(id) else { return };
        port.wanted = want == Want::On;
        if port.wanted && port.readable && !port.starved && self.turn.current != Some(Ready::Udp(id)) {
            self.turn.queue_port(id, port);
        }
    }

    pub(super) fn queue_datagram(&mut self, id: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        self.udp.push(id, to, data, &mut self.stats)
    }

    pub(super) fn close_port(&mut self, id: UdpId) {
        let Some(mut port) = self.udp.ports.get_mut(id).and_then(Option::take) else { return };
        if let Some((_, batches)) = &mut self.udp.memory {
            port.flush(batches, &mut self.stats);
        }
        let unsent = port.give_up(&mut self.stats);
        drop(port);
        self.note_freed_descriptor();
        self.turn.farewells.push_back(Farewell::Udp { id, unsent });
    }

    pub(super) fn port_closed(&mut self, id: UdpId, unsent: usize) -> Option<Event> {
        self.udp.ports.remove(id)?;
        Some(Event::UdpClosed { udp: id, unsent })
    }

    /// The next thing that a port has to say.
    #[inline]
    pub(super) fn next_datagram(&mut self, id: UdpId) -> Option<Event> {
        loop {
            let Datagrams { ports, memory, flush, starved, .. } = &mut self.udp;
            let port = ports.get_mut(id)?.as_deref_mut()?;
            let (pool, batches) = memory.as_mut()?;
            if let Some(event) = port.next_event(id) {
                return Some(event);
            }
            if port.unsent() > 0 && !port.blocked && !std::mem::replace(&mut port.flushing, true) {
                flush.push_back(id);
            }
            if !port.wanted || !port.readable || port.starved {
                return None;
            }
            if self.turn.used >= self.bytes_per_turn {
                self.turn.queue_port(id, port);
                return None;
            }
            match port.receive(pool, batches, &mut self.stats) {
                Found::Some(bytes) => self.turn.used += bytes,
                Found::NoBuffer => {
                    port.starved = true;
                    starved.push(id);
                }
                Found::Empty => {}
            }
            if !port.has_news() && port.readable && !port.starved {
                // Only errors came; whatever else is there is looked at in the next turn.
                self.turn.queue_port(id, port);
                return None;
            }
        }
    }
}
