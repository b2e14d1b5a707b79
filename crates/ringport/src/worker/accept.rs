//! New connections: accepted here or elsewhere, or made by connecting.

use std::rc::Rc;
use std::sync::Arc;

use ringport_engine::{ConnId, Engine, ListenerId, SockAddr, Socket, SocketOptions, Want};

use super::counters::Counters;
use super::gate::{Gate, Permit};
use super::{Listening, Ordering, Worker};
use crate::aio::ListenerCell;
use crate::remote::{Letter, Remote};
use crate::session::{Phase, Session};

/// How a worker shares what it accepts.
pub(crate) struct Share {
    /// Most connections of the whole server.
    pub(crate) max_connections: usize,
    /// Who may come in.
    pub(crate) gate: Arc<Gate>,
    /// If accepted connections go to the least loaded worker: everybody's counters.
    pub(crate) hand_over: Option<Arc<[Arc<Counters>]>>,
    /// Connections handed to each worker so far; what it has not taken over yet is on its way.
    pub(crate) handed: Vec<u64>,
}

impl<E: Engine> Worker<E> {
    /// Listens for connections of `service`. If it is the only one that does, it shares them if asked to.
    pub(crate) fn listen(&mut self, socket: Socket, service: u32, hand_over: bool) -> std::io::Result<()> {
        let id = self.engine.listen(socket)?;
        self.engine.accept(id, Want::On);
        self.listeners.push(Listening { id, service, hand_over, queue: None });
        Ok(())
    }

    /// Begins to connect for `service`.
    pub(super) fn connect(&mut self, to: &SockAddr, options: &SocketOptions, service: u32) {
        match self.engine.connect(to, options) {
            Ok(conn) => {
                self.insert_connecting(conn, service);
                self.deadline(conn);
            }
            Err(error) => self.services[service as usize].connect_failed(&mut self.context, None, &error),
        }
    }

    pub(super) fn accepted(&mut self, listener: ListenerId, socket: Socket) {
        let Some(listening) = self.listeners.iter().find(|listening| listening.id == listener) else { return };
        let (service, hand_over, queue) = (listening.service, listening.hand_over, listening.queue.clone());
        if self.drain.is_some() {
            return;
        }
        let Some(permit) = self.admit(&socket) else { return };
        if let Some(queue) = queue {
            self.accept_for(queue, listener, socket, permit);
            return;
        }
        let own = self.context.number();
        let target = if hand_over { self.least_loaded() } else { own };
        if target == own {
            self.adopt(socket, service, permit);
        } else if let Err(Letter::Adopt(socket, service, permit)) =
            self.context.remote.mailboxes[target].push(Letter::Adopt(socket, service, permit))
        {
            self.adopt(socket, service, permit);
        }
    }

    /// Opens a connection for the listener of a task, and pauses accepting when enough of them wait there.
    fn accept_for(&mut self, queue: Rc<ListenerCell>, listener: ListenerId, socket: Socket, permit: Option<Permit>) {
        if queue.is_gone() {
            self.context.global_live.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.context.aio().set_accepting(Some(Rc::clone(&queue)));
        self.adopt(socket, self.task_service, permit);
        self.context.aio().set_accepting(None);
        if queue.is_full() {
            self.engine.accept(listener, Want::Paused);
        }
    }

    pub(super) fn listener_closed(&mut self, listener: ListenerId) {
        for listening in self.listeners.extract_if(.., |listening| listening.id == listener) {
            if let Some(queue) = listening.queue {
                queue.closed(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, "the listener is closed"));
            }
        }
    }

    /// Looks whether one more connection may come in, and counts it; `None`, and counted, if it may not.
    fn admit(&mut self, socket: &Socket) -> Option<Option<Permit>> {
        let counters = &self.context.counters;
        let Ok(permit) = self.share.gate.admit(socket) else {
            counters.refused.add(1);
            counters.refused_by_address.add(1);
            return None;
        };
        let before = self.context.global_live.fetch_add(1, Ordering::Relaxed);
        let room = before < self.share.max_connections;
        // Asked last, so that those who are refused anyway take nothing away from others.
        if room && self.share.gate.is_in_time(self.context.now) {
            return Some(permit);
        }
        self.context.global_live.fetch_sub(1, Ordering::Relaxed);
        counters.refused.add(1);
        counters.refused_by_rate.add(u64::from(room));
        None
    }

    /// Makes an accepted connection one of this worker's.
    pub(super) fn adopt(&mut self, socket: Socket, service: u32, permit: Option<Permit>) {
        if self.drain.is_some() {
            self.context.global_live.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        match self.engine.adopt(socket) {
            Ok(conn) => {
                self.context.counters.accepted.add(1);
                self.insert(conn, service, Phase::Open);
                if let (Some(permit), Some(session)) = (permit, self.context.find(conn)) {
                    session.rare().permit = Some(permit);
                }
                self.opened(conn);
            }
            Err(error) => {
                self.context.global_live.fetch_sub(1, Ordering::Relaxed);
                self.context.counters.refused.add(1);
                tracing::warn!(%error, "a connection could not be registered and is closed");
            }
        }
    }

    /// Takes in a connection that has just begun to connect.
    pub(super) fn insert_connecting(&mut self, conn: ConnId, service: u32) {
        self.context.global_live.fetch_add(1, Ordering::Relaxed);
        self.insert(conn, service, Phase::Connecting);
    }

    fn insert(&mut self, conn: ConnId, service: u32, phase: Phase) {
        let state = self.services[service as usize].new_state();
        self.context.insert(Session::new(conn, service, state, phase, self.context.clock));
    }

    /// The worker with the fewest connections, counting those that are on their way to it.
    fn least_loaded(&mut self) -> usize {
        let Some(counters) = &self.share.hand_over else { return self.context.number() };
        let own = self.context.number();
        let load = |index: usize| {
            if index == own {
                return self.context.live as u64;
            }
            let stats = counters[index].read();
            stats.connections + self.share.handed[index].saturating_sub(stats.taken_over)
        };
        let target = (0..counters.len()).min_by_key(|&index| load(index)).unwrap_or(own);
        if target != own {
            self.share.handed[target] += 1;
        }
        target
    }
}

impl Share {
    /// Every worker keeps what it accepts.
    pub(crate) fn none(max_connections: usize, gate: Arc<Gate>) -> Self {
        Self { max_connections, gate, hand_over: None, handed: Vec::new() }
    }

    /// The accepting worker hands connections to the least loaded one.
    pub(crate) fn least_loaded(self, counters: Arc<[Arc<Counters>]>, remote: &Remote) -> Self {
        Self { hand_over: Some(counters), handed: vec![0; remote.mailboxes.len()], ..self }
    }
}
