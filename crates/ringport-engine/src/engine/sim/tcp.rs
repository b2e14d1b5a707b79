//! What a kernel does with connections: handshake, buffers, FIN and RST, as tcp(7) and close(2) describe them.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::network::{Action, Note, State};
use crate::engine::contract::Close;
use crate::id::{ConnId, Id, ListenerId};
use crate::options::SocketOption;
use crate::socket::{SockAddr, is_tcp};

/// Times that a SYN is sent before a connect fails.
const SYN_TRIES: u32 = 6;
/// Pause after the first SYN that found the backlog full; doubled each time.
const SYN_PAUSE: Duration = Duration::from_millis(100);
/// First port that is given to a socket that asks for none in particular.
pub(super) const FIRST_PORT: u16 = 20_000;

/// A listening socket.
pub(super) struct SimListener {
    pub(super) local: SockAddr,
    /// Connections that nobody accepted yet.
    pub(super) queue: VecDeque<Id>,
    pub(super) backlog_max: usize,
    /// What accepted sockets inherit.
    pub(super) options: Vec<SocketOption>,
    pub(super) owner: Option<(usize, ListenerId)>,
    pub(super) accepting: bool,
    /// A [`Note::Accept`] is on its way.
    pub(super) noted: bool,
}

/// One end of a connection, as its kernel sees it.
pub(super) struct SimSocket {
    pub(super) owner: Option<(usize, ConnId)>,
    /// Somebody can still use it: an engine, an [`Endpoint`] or a backlog. Else it only sends what is left.
    held: bool,
    peer: Option<Id>,
    pub(super) local: SockAddr,
    pub(super) remote: SockAddr,
    /// What was set on it.
    pub(super) options: Vec<SocketOption>,
    pub(super) outgoing: VecDeque<u8>,
    outgoing_max: usize,
    pub(super) incoming: VecDeque<u8>,
    incoming_max: usize,
    /// Bytes that were ever put into `outgoing`.
    written: u64,
    /// Bytes that were ever taken out of `incoming`.
    taken: u64,
    /// Where in what it sends its last urgent byte is.
    urgent: Option<u64>,
    /// Where in what it receives the last urgent byte is, as far as the peer has told.
    mark: Option<u64>,
    /// Urgent bytes stay in the stream (`SO_OOBINLINE`).
    pub(super) inline: bool,
    transmitting: bool,
    fin_wanted: bool,
    fin_sent: bool,
    pub(super) fin_received: bool,
    pub(super) error: Option<io::ErrorKind>,
    /// The owner wants to receive.
    pub(super) armed: bool,
    /// A [`Note::Receive`] or [`Note::Failed`] is on its way.
    pub(super) noted: bool,
    /// The owner has more to send and waits for room.
    pub(super) send_armed: bool,
}

impl SimSocket {
    /// Puts bytes into the send buffer, the last of which may be urgent. A Unix socket has nothing that is urgent.
    pub(super) fn write(&mut self, bytes: &[u8], urgent: bool) {
        self.outgoing.extend(bytes);
        self.written += bytes.len() as u64;
        if urgent && is_tcp(&self.local) {
            self.urgent = self.written.checked_sub(1);
        }
    }

    /// Whether the next byte to be received is the last urgent one.
    pub(super) fn is_at_mark(&self) -> bool {
        self.mark == Some(self.taken)
    }

    /// Bytes that one receive can take: it ends before an urgent byte (see tcp(7)).
    pub(super) fn receivable(&self) -> usize {
        let most = self.incoming.len();
        let before = self.mark.map_or(0, |mark| mark.saturating_sub(self.taken));
        if before == 0 { most } else { most.min(usize::try_from(before).unwrap_or(most)) }
    }
}

impl State {
    // Connecting.

    pub(super) fn bind(&mut self, address: &SockAddr) -> io::Result<SockAddr> {
        let local = match address.as_socket() {
            Some(ip) if ip.port() == 0 => {
                self.ports += 1;
                SockAddr::from(SocketAddr::new(ip.ip(), self.ports))
            }
            _ => address.clone(),
        };
        if self.listener_at(&local).is_some() { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(local) }
    }

    fn listener_at(&self, address: &SockAddr) -> Option<Id> {
        let ids: Vec<Id> = self.listeners.ids();
        ids.into_iter().find(|id| self.listeners.get(*id).is_some_and(|listener| listener.local == *address))
    }

    /// A socket that begins to connect to `to`, from `bind` if that is given.
    pub(super) fn open(&mut self, to: &SockAddr, bind: Option<SocketAddr>, options: Vec<SocketOption>) -> Id {
        self.ports = self.ports.checked_add(1).unwrap_or(FIRST_PORT);
        let local = match (to.as_socket(), bind) {
            (Some(_), Some(local)) if local.port() != 0 => SockAddr::from(local),
            (Some(ip), local) => {
                let ip = local.map_or(ip.ip(), |local| local.ip());
                SockAddr::from(SocketAddr::new(ip, self.ports))
            }
            (None, _) => to.clone(),
        };
        let client = self.socket(local, to.clone(), options);
        self.schedule(Action::Syn { client, tries: 0 });
        client
    }

    fn socket(&mut self, local: SockAddr, remote: SockAddr, options: Vec<SocketOption>) -> Id {
        let mut capacity = || (self.faults.buffer_max >> self.rng.below(4)).max(1);
        let (outgoing_max, incoming_max) = (capacity(), capacity());
        self.sockets.insert(SimSocket {
            owner: None,
            held: true,
            peer: None,
            local,
            remote,
            options,
            outgoing: VecDeque::new(),
            outgoing_max,
            incoming: VecDeque::new(),
            incoming_max,
            written: 0,
            taken: 0,
            urgent: None,
            mark: None,
            inline: false,
            transmitting: false,
            fin_wanted: false,
            fin_sent: false,
            fin_received: false,
            error: None,
            armed: false,
            noted: false,
            send_armed: false,
        })
    }

    pub(super) fn syn(&mut self, client: Id, tries: u32) {
        let Some(socket) = self.sockets.get(client) else { return };
        let (to, from, owner) = (socket.remote.clone(), socket.local.clone(), socket.owner);
        let Some(at) = self.listener_at(&to) else { return self.fail(client, io::ErrorKind::ConnectionRefused) };
        if self.rng.chance(self.faults.connect_refused) {
            return self.fail(client, io::ErrorKind::ConnectionRefused);
        }
        let listener = self.listeners.get(at).expect("it was just found");
        if listener.queue.len() >= listener.backlog_max {
            if tries + 1 == SYN_TRIES {
                return self.fail(client, io::ErrorKind::TimedOut);
            }
            return self.schedule_after(SYN_PAUSE * (1 << tries), Action::Syn { client, tries: tries + 1 });
        }
        let options = listener.options.clone();
        let server = self.socket(to, from, options);
        self.set_peer(server, client);
        self.set_peer(client, server);
        self.listeners.get_mut(at).expect("it was just found").queue.push_back(server);
        self.note_accept(at);
        if let Some((engine, conn)) = owner {
            self.schedule(Action::Tell(engine, Note::Connected(conn)));
        }
    }

    fn set_peer(&mut self, socket: Id, peer: Id) {
        if let Some(socket) = self.sockets.get_mut(socket) {
            socket.peer = Some(peer);
        }
    }

    /// Tells the owner of a listener that there is something to accept, if it wants to know.
    pub(super) fn note_accept(&mut self, listener: Id) {
        let Some(entry) = self.listeners.get_mut(listener) else { return };
        let Some((engine, id)) = entry.owner else { return };
        if entry.accepting && !entry.noted && !entry.queue.is_empty() {
            entry.noted = true;
            self.schedule(Action::Tell(engine, Note::Accept(id)));
        }
    }

    // Bytes.

    /// Room in the kernel's send buffer.
    pub(super) fn send_room(&self, socket: Id) -> usize {
        let Some(socket) = self.sockets.get(socket) else { return 0 };
        if socket.error.is_some() { 0 } else { socket.outgoing_max - socket.outgoing.len() }
    }

    /// Sees to it that what a socket has to send gets under way.
    pub(super) fn kick(&mut self, id: Id) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let something = !socket.outgoing.is_empty() || (socket.fin_wanted && !socket.fin_sent);
        if something && !socket.transmitting && socket.error.is_none() && socket.peer.is_some() {
            socket.transmitting = true;
            self.schedule(Action::Transmit(id));
        }
    }

    pub(super) fn transmit(&mut self, id: Id) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.transmitting = false;
        let (None, Some(peer)) = (socket.error, socket.peer) else { return };
        if socket.outgoing.is_empty() {
            return self.transmit_fin(id, peer);
        }
        let length = socket.outgoing.len();
        if self.rng.chance(self.faults.reset) {
            self.fail(peer, io::ErrorKind::ConnectionReset);
            return self.fail(id, io::ErrorKind::ConnectionReset);
        }
        let room = match self.sockets.get(peer) {
            // Nobody will ever read it: the peer's kernel answers with a reset and forgets the rest, see tcp(7).
            None | Some(SimSocket { held: false, .. }) => {
                self.sockets.remove(peer);
                return self.schedule(Action::Reset(id));
            }
            Some(socket) if socket.error.is_some() => return,
            Some(socket) => socket.incoming_max - socket.incoming.len(),
        };
        if room == 0 {
            // `take_incoming` of the peer goes on from here.
            return;
        }
        let count = self.some_of(length.min(room));
        self.note_down(count as u64);
        self.carry(id, peer, count);
        self.note_receive(peer);
        self.note_send(id);
        self.kick(id);
    }

    fn carry(&mut self, from: Id, to: Id, count: usize) {
        let Some(socket) = self.sockets.get_mut(from) else { return };
        let bytes: Vec<u8> = socket.outgoing.drain(..count).collect();
        let urgent = socket.urgent;
        if let Some(peer) = self.sockets.get_mut(to) {
            peer.incoming.extend(&bytes);
            // As on the wire, every segment tells where the last urgent byte is, also before that arrives (RFC 9293, 3.8.5).
            peer.mark = urgent;
        }
    }

    fn transmit_fin(&mut self, id: Id, peer: Id) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if !socket.fin_wanted || socket.fin_sent {
            return;
        }
        socket.fin_sent = true;
        if !socket.held {
            self.sockets.remove(id);
        }
        if let Some(peer_socket) = self.sockets.get_mut(peer) {
            peer_socket.fin_received = true;
            self.note_receive(peer);
        }
    }

    /// Takes received bytes out of the kernel and makes room for more.
    pub(super) fn take_incoming(&mut self, id: Id, count: usize) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        socket.incoming.drain(..count);
        socket.taken += count as u64;
        if let Some(peer) = socket.peer {
            self.kick(peer);
        }
    }

    /// Takes an urgent byte that comes next out of the stream, unless it is to stay there.
    pub(super) fn skip_urgent(&mut self, id: Id) {
        let skips = |socket: &SimSocket| !socket.inline && socket.is_at_mark() && !socket.incoming.is_empty();
        if self.sockets.get(id).is_some_and(skips) {
            self.take_incoming(id, 1);
        }
    }

    /// Tells the owner that there is something to receive, if it wants to know. A system that tells edges tells it in any
    /// case, and only once.
    pub(super) fn note_receive(&mut self, id: Id) {
        let edges = self.tells_edges();
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let Some((engine, conn)) = socket.owner else { return };
        let readable = !socket.incoming.is_empty() || socket.fin_received || socket.error.is_some();
        if socket.noted || !readable {
            return;
        }
        if socket.armed || edges {
            socket.noted = true;
            self.schedule(Action::Tell(engine, Note::Receive(conn)));
        } else if socket.error.is_some() {
            socket.noted = true;
            self.schedule(Action::Tell(engine, Note::Failed(conn)));
        }
    }

    /// Marks a receive as under way, so that nobody is told about it again.
    pub(super) fn expect_receive(&mut self, id: Id, expected: bool) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.noted = expected;
        }
    }

    /// From now on `conn` of `engine` owns the socket.
    pub(super) fn set_owner(&mut self, id: Id, engine: usize, conn: ConnId) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.owner = Some((engine, conn));
        }
    }

    /// Tells the owner that there is room to send, if it waits for that.
    pub(super) fn note_send(&mut self, id: Id) {
        let room = self.send_room(id);
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let Some((engine, conn)) = socket.owner else { return };
        if socket.send_armed && room > 0 {
            socket.send_armed = false;
            self.schedule(Action::Tell(engine, Note::Send(conn)));
        }
    }

    // Ending.

    /// Queues a FIN behind what was sent.
    pub(super) fn finish(&mut self, id: Id) {
        if let Some(socket) = self.sockets.get_mut(id) {
            socket.fin_wanted = true;
            self.kick(id);
        }
    }

    /// A connection fails: what it had to send stays, uncounted as delivered, and its owner learns about it.
    pub(super) fn fail(&mut self, id: Id, error: io::ErrorKind) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        if !socket.held {
            self.sockets.remove(id);
            return;
        }
        socket.error.get_or_insert(error);
        self.note_receive(id);
    }

    /// close(2): a reset if asked for or if something was left unread, else what was sent and a FIN.
    pub(super) fn release(&mut self, id: Id, how: Close) {
        let Some(socket) = self.sockets.get_mut(id) else { return };
        let lost = how == Close::Abort || !socket.incoming.is_empty();
        let over = socket.error.is_some() || socket.peer.is_none() || socket.fin_sent;
        let peer = socket.peer.filter(|_| socket.error.is_none());
        socket.held = false;
        socket.owner = None;
        if !lost && !over {
            return self.finish(id);
        }
        self.sockets.remove(id);
        if let (true, Some(peer)) = (lost, peer) {
            self.schedule(Action::Reset(peer));
        }
    }

    /// Closes a listening socket and resets what nobody accepted.
    pub(super) fn release_listener(&mut self, id: Id) {
        let Some(listener) = self.listeners.remove(id) else { return };
        for socket in listener.queue {
            self.release(socket, Close::Abort);
        }
    }
}
