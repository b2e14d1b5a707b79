//! Datagram sockets: a few receives with memory under each, and plain calls to send.
//!
//! ```text
//!  receive:   WSARecvFrom into a leased slot ──► done at once, or ──packet──► event ──► (handler) ──► the next WSARecvFrom
//!  send:      WSASendTo that does not block ──► done, or, when the system has no room, one more as an operation
//! ```
//!
//! A receive of nothing, as connections wait with, would destroy a datagram. So each socket has memory under it, a few
//! slots; when those of the pool run low, one buffer of its own, out of which what comes is copied. So no socket waits for
//! memory that another holds, however many there are.
//!
//! **Sends do not need an operation each.** The system takes a datagram at once or, rarely, has no room; then one operation
//! waits for room, and its packet says that sending goes on.

use std::io;
use std::net::SocketAddr;

use super::close::Busy;
use super::{IocpEngine, Notice};
use crate::buffer::{Buf, Chunk, Pool, SlotClass};
use crate::engine::contract::{EngineStats, Event, SendTo, Want};
use crate::engine::datagram_windows::{
    self as calls, BYTES_MIN, Landing, Listed, Mailbox, Outlets, Parcel, RETRIES_MAX, SLOT_BYTES,
};
use crate::engine::port::{Load, Port, Record, Submitted};
use crate::engine::winsock;
use crate::id::{Id, UdpId};
use crate::socket::Socket;

#[cfg(test)]
#[path = "datagram_tests.rs"]
mod tests;

/// Receives of one socket that are under way at most. With many sockets there are fewer, so that together they hold half of
/// the slots.
const RECEIVES_MAX: u32 = 4;
/// Records of receives that are kept for reuse.
const SPARE_RECORDS: usize = 64;
/// Datagrams that wait to be sent before they are, without waiting for the end of the turn.
const BATCH: usize = 256;

/// A datagram socket.
pub(super) struct Outlet {
    /// `None` once it is closed, until the last event is taken.
    socket: Option<socket2::Socket>,
    mail: Mailbox,
    /// Memory of its own, while it is not under a receive.
    own: Option<Buf>,
    /// Receives that have not come back.
    receives: u32,
    /// A send that has not come back: the system has no room for more.
    sending: bool,
    /// An operation that succeeds at once queues no packet.
    skip: bool,
    /// Given up by its owner.
    closing: bool,
    /// The operations were asked to end.
    cancelled: bool,
    /// In the list of those to be flushed.
    flushing: bool,
    listed: Listed,
}

/// Everything about datagrams. Holds no buffers until the first socket is bound.
pub(super) struct Datagrams {
    pub(super) outlets: Outlets<Outlet>,
    pool: Option<Pool>,
    #[expect(clippy::vec_box, reason = "the kernel knows a record by its address")]
    spare: Vec<Box<Record>>,
    /// The socket that is being served, and what it got in this go.
    current: Option<UdpId>,
    current_bytes: usize,
    flush: Vec<UdpId>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self {
            outlets: Outlets::new(),
            pool: None,
            spare: Vec::new(),
            current: None,
            current_bytes: 0,
            flush: Vec::new(),
        }
    }

    /// Bytes of received datagrams that are held outside of the slots.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.pool.as_ref().map_or(0, Pool::copied_out_bytes)
    }

    /// Asks every operation to end.
    pub(super) fn cancel_all(&self) {
        for id in self.outlets.table.ids::<UdpId>() {
            if let Some(socket) = self.outlets.table.get(id).and_then(|outlet| outlet.socket.as_ref()) {
                winsock::cancel(socket);
            }
        }
    }

    /// The socket of one that has something under way.
    pub(super) fn busy_socket(&self, id: UdpId) -> Option<&socket2::Socket> {
        self.outlets.table.get(id).filter(|outlet| outlet.is_busy())?.socket.as_ref()
    }

    fn keep(&mut self, record: Box<Record>) {
        if self.spare.len() < SPARE_RECORDS {
            self.spare.push(record);
        }
    }
}

impl calls::Outlet for Outlet {
    fn socket(&self) -> Option<&socket2::Socket> {
        self.socket.as_ref()
    }

    fn is_closing(&self) -> bool {
        self.closing
    }

    fn has_news(&self) -> bool {
        self.mail.has_news()
    }

    fn listed(&mut self) -> &mut Listed {
        &mut self.listed
    }
}

impl Outlet {
    /// Whether an operation has not come back.
    fn is_busy(&self) -> bool {
        self.receives > 0 || self.sending
    }

    /// Memory for the next receive; `None` when those under way have to do.
    fn choose_memory(&mut self, pool: &Pool, stats: &mut EngineStats) -> Option<Buf> {
        if !pool.is_low(SlotClass::Small)
            && let Some(buf) = pool.lease(SlotClass::Small)
        {
            return Some(buf);
        }
        if self.receives > 0 {
            return None;
        }
        stats.starved += 1;
        Some(self.own.take().unwrap_or_else(|| Buf::with_capacity(SLOT_BYTES as usize)))
    }

    /// Takes in what a receive brought. Says what it counts in the budget of a turn.
    #[inline]
    fn landed(
        &mut self,
        landing: &mut Landing,
        bytes: u32,
        truncated: bool,
        pool: &Pool,
        stats: &mut EngineStats,
    ) -> usize {
        let Some(mut buf) = landing.buf.take() else { return 0 };
        buf.set_filled(bytes.min(SLOT_BYTES));
        let count = buf.len().max(BYTES_MIN);
        let buf = if buf.is_pooled() {
            pool.relieve(buf, SlotClass::Small)
        } else {
            let copy = pool.copied_into(SlotClass::Small, &buf);
            self.own = Some(buf);
            copy
        };
        if let Some(from) = landing.from() {
            self.mail.deliver(from, buf, truncated, stats);
        }
        count
    }

    /// Takes memory of its own back from a receive that brought nothing; a slot goes back to the pool.
    fn retrieve(&mut self, landing: &mut Landing) {
        self.own = landing.buf.take().filter(|buf| !buf.is_pooled()).or_else(|| self.own.take());
    }

    /// Hands the system what it takes at once.
    fn flush(&mut self, id: UdpId, port: &mut Port, stats: &mut EngineStats) {
        let mut retries = 0;
        while !self.sending
            && let Some(socket) = &self.socket
            && let Some((to, data)) = self.mail.take()
        {
            let answer = loop {
                stats.sends += 1;
                match calls::send_to(socket, to, data.as_slice()) {
                    Err(error) if calls::is_about_another(error) && retries < RETRIES_MAX => {
                        retries += 1;
                        self.mail.note_failure(None, error, stats);
                    }
                    answer => break answer,
                }
            };
            match answer {
                Ok(()) => self.mail.sent(data.len(), stats),
                Err(error) if winsock::would_block(error) => self.send_later(id, to, data, port, stats),
                Err(error) => self.mail.failed(to, data.len(), error, stats),
            }
        }
    }

    /// The system has no room: an operation waits for it.
    #[cold]
    fn send_later(&mut self, id: UdpId, to: SocketAddr, data: Chunk, port: &mut Port, stats: &mut EngineStats) {
        let bytes = data.len();
        let Some(socket) = &self.socket else { return self.mail.cancelled(bytes, stats) };
        let record = Record::new(id, Load::Parcel(Parcel::new(to, data)));
        stats.sends += 1;
        // SAFETY: one send is started, on a socket that was attached to this port. Address and data lie in the load's box, or
        // are owned by it at an address that does not change. `skip` is what `skip_on_success` said.
        let submitted = unsafe {
            port.submit(record, self.skip, |overlapped, load| match load {
                Load::Parcel(parcel) => calls::start_send_to(socket, parcel, overlapped),
                _ => unreachable!("the load is the one made above"),
            })
        };
        match submitted {
            Submitted::Pending => self.sending = true,
            Submitted::Done(_) => self.mail.sent(bytes, stats),
            Submitted::Refused(_, error) => self.mail.failed(to, bytes, error, stats),
        }
    }
}

impl IocpEngine {
    pub(super) fn take_outlet(&mut self, socket: Socket) -> io::Result<UdpId> {
        let socket = socket.into_system()?;
        calls::check_kind(&socket)?;
        socket.set_nonblocking(true)?;
        self.port.attach(&socket)?;
        calls::leave_out_unreachable_peers(&socket);
        let skip = self.config.features.skip_on_success && winsock::skip_on_success(&socket);
        self.udp.pool.get_or_insert_with(|| calls::pool(&self.config));
        let outlet = Outlet {
            socket: Some(socket),
            mail: Mailbox::new(&self.config),
            own: None,
            receives: 0,
            sending: false,
            skip,
            closing: false,
            cancelled: false,
            flushing: false,
            listed: Listed::default(),
        };
        Ok(self.udp.outlets.table.insert(Box::new(outlet)))
    }

    pub(super) fn want_datagrams(&mut self, id: UdpId, want: Want) {
        let Some(outlet) = self.udp.outlets.open(id) else { return };
        outlet.mail.wanted = want == Want::On;
        self.post_receives(id);
        self.udp.outlets.enqueue_news(id);
    }

    #[inline]
    pub(super) fn queue_datagram(&mut self, id: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        let Some(outlet) = self.udp.outlets.open(id) else {
            return SendTo::Closed(data);
        };
        let outcome = outlet.mail.push(to, data, &mut self.stats);
        if outlet.mail.waiting() >= BATCH {
            outlet.flush(id, &mut self.port, &mut self.stats);
        }
        if !std::mem::replace(&mut outlet.flushing, true) {
            self.udp.flush.push(id);
        }
        outcome
    }

    pub(super) fn close_outlet(&mut self, id: UdpId) {
        let Some(outlet) = self.udp.outlets.open(id) else { return };
        outlet.flush(id, &mut self.port, &mut self.stats);
        outlet.closing = true;
        outlet.mail.forget_received();
        self.wind_down_outlet(id);
    }

    /// Cancels what is under way, or closes the socket when nothing is.
    fn wind_down_outlet(&mut self, id: UdpId) {
        let Some(outlet) = self.udp.outlets.table.get_mut(id) else { return };
        if outlet.is_busy() {
            if let (Some(socket), false) = (&outlet.socket, std::mem::replace(&mut outlet.cancelled, true)) {
                winsock::cancel(socket);
                self.cancelled.note(Busy::Datagrams(id));
            }
        } else if outlet.socket.take().is_some() {
            self.notices.push_back(Notice::UdpClosed(id));
        }
    }

    /// The last event of a socket. Its slot is free from here on.
    pub(super) fn say_udp_closed(&mut self, id: UdpId) -> Option<Event> {
        let mut outlet = self.udp.outlets.table.remove(id)?;
        Some(Event::UdpClosed { udp: id, unsent: outlet.mail.give_up(&mut self.stats) })
    }

    /// Before the engine sleeps: has the last one wait again, tries again what did not work, and sends what waits.
    pub(super) fn serve_datagrams(&mut self) {
        for id in self.udp.current.take().into_iter().chain(self.udp.outlets.end_stall()) {
            self.post_receives(id);
            self.udp.outlets.enqueue_news(id);
        }
        let mut flush = std::mem::take(&mut self.udp.flush);
        for id in flush.drain(..) {
            self.flush_outlet(id);
        }
        // Nothing was put there meanwhile, so that the list keeps its room.
        self.udp.flush = flush;
    }

    fn flush_outlet(&mut self, id: UdpId) {
        let Some(outlet) = self.udp.outlets.open(id) else { return };
        outlet.flushing = false;
        if let Some(outlet) = self.udp.outlets.table.get_mut(id) {
            outlet.flush(id, &mut self.port, &mut self.stats);
        }
        self.udp.outlets.enqueue_news(id);
    }

    /// The next event of the socket that is being served.
    #[inline]
    pub(super) fn next_of_current_outlet(&mut self) -> Option<Event> {
        let event = self.serve_outlet(self.udp.current?);
        if event.is_none() {
            self.udp.current = None;
        }
        event
    }

    /// The next event of the sockets in the list.
    pub(super) fn next_of_ready_outlets(&mut self) -> Option<Event> {
        while let Some(id) = self.udp.outlets.next_ready() {
            (self.udp.current, self.udp.current_bytes) = (Some(id), 0);
            if let Some(event) = self.next_of_current_outlet() {
                return Some(event);
            }
        }
        None
    }

    /// The next event of a socket, as long as its share of the turn lasts.
    fn serve_outlet(&mut self, id: UdpId) -> Option<Event> {
        loop {
            let outlet = self.udp.outlets.open(id)?;
            if let Some(event) = outlet.mail.next_event(id) {
                return Some(event);
            }
            if self.udp.current_bytes >= self.config.bytes_per_turn.max(1) {
                self.udp.outlets.enqueue(id);
                return None;
            }
            self.post_receives(id);
            if !self.udp.outlets.open(id)?.mail.has_news() {
                return None;
            }
        }
    }

    /// Starts as many receives as may be under way. What they bring at once waits in the mailbox, a few at a time.
    fn post_receives(&mut self, id: UdpId) {
        let Self { udp, port, stats, .. } = self;
        let sockets = udp.outlets.table.len() as u32;
        let Some(pool) = udp.pool.clone() else { return };
        let depth = (pool.config().small_slots / 2 / sockets.max(1)).clamp(1, RECEIVES_MAX);
        let mut failures = 0;
        loop {
            let Some(outlet) = udp.outlets.open(id) else { return };
            let waits =
                !outlet.mail.wanted || outlet.listed.is_stalled() || outlet.mail.untold() >= RECEIVES_MAX as usize;
            if waits || outlet.receives >= depth {
                return;
            }
            let Some(buf) = outlet.choose_memory(&pool, stats) else { return };
            let mut record = udp.spare.pop().unwrap_or_else(|| Record::new(NOBODY, Load::Datagram(Landing::new())));
            record.id = id.into();
            if let Load::Datagram(landing) = &mut record.load {
                landing.buf = Some(buf);
            }
            let Some(socket) = &outlet.socket else { return };
            let mut bytes = 0;
            stats.receives += 1;
            // SAFETY: one receive is started, on a socket that was attached to this port. The address lies in the load's box,
            // the datagram's memory is leased by it. `skip` is what `skip_on_success` said of the socket.
            let submitted = unsafe {
                port.submit(record, outlet.skip, |overlapped, load| match load {
                    Load::Datagram(landing) => calls::receive_from(socket, landing, overlapped, &mut bytes),
                    _ => unreachable!("only records of datagrams are kept"),
                })
            };
            match submitted {
                Submitted::Pending => outlet.receives += 1,
                Submitted::Done(mut record) => {
                    if let Load::Datagram(landing) = &mut record.load {
                        udp.current_bytes += outlet.landed(landing, bytes, false, &pool, stats);
                    }
                    udp.keep(record);
                }
                Submitted::Refused(mut record, error) => {
                    if let Load::Datagram(landing) = &mut record.load {
                        outlet.retrieve(landing);
                    }
                    outlet.mail.note_failure(None, error, stats);
                    failures += 1;
                    udp.keep(record);
                    if !calls::is_about_another(error) || failures >= RETRIES_MAX {
                        udp.outlets.stall(id);
                    }
                }
            }
        }
    }

    /// A receive has ended.
    pub(super) fn on_datagram(&mut self, mut record: Box<Record>, bytes: u32, success: bool) -> Option<Event> {
        let id = UdpId::from(record.id);
        let Self { udp, stats, .. } = self;
        let outlet = udp.outlets.table.get_mut(id)?;
        outlet.receives -= 1;
        let failure = match &outlet.socket {
            Some(socket) if !success => Some(record.failure(socket)),
            _ => None,
        };
        let closing = outlet.closing;
        let (mut counted, mut stalls) = (0, false);
        if let (Load::Datagram(landing), Some(pool)) = (&mut record.load, &udp.pool) {
            match failure {
                _ if closing => landing.buf = None,
                None => counted = outlet.landed(landing, bytes, false, pool, stats),
                Some(error) if calls::is_truncation(error) => {
                    counted = outlet.landed(landing, SLOT_BYTES, true, pool, stats);
                }
                Some(error) => {
                    outlet.retrieve(landing);
                    if !winsock::is_cancelled(error) {
                        outlet.mail.note_failure(None, error, stats);
                        stalls = !calls::is_about_another(error);
                    }
                }
            }
        }
        udp.keep(record);
        if stalls {
            udp.outlets.stall(id);
        }
        if closing {
            self.wind_down_outlet(id);
            return None;
        }
        self.go_on_with(id, counted)
    }

    /// The send that waited for room has ended.
    pub(super) fn on_parcel(&mut self, record: &Record, success: bool) -> Option<Event> {
        let id = UdpId::from(record.id);
        let Load::Parcel(parcel) = &record.load else { return None };
        let outlet = self.udp.outlets.table.get_mut(id)?;
        outlet.sending = false;
        match &outlet.socket {
            Some(socket) if !success => match record.failure(socket) {
                error if winsock::is_cancelled(error) => outlet.mail.cancelled(parcel.bytes(), &mut self.stats),
                error => outlet.mail.failed(parcel.to, parcel.bytes(), error, &mut self.stats),
            },
            _ => outlet.mail.sent(parcel.bytes(), &mut self.stats),
        }
        if outlet.closing {
            self.wind_down_outlet(id);
            return None;
        }
        self.flush_outlet(id);
        self.go_on_with(id, 0)
    }

    /// The next event of a socket to which something happened. It is served next, unless another is.
    fn go_on_with(&mut self, id: UdpId, counted: usize) -> Option<Event> {
        let event = self.udp.outlets.open(id)?.mail.next_event(id);
        match self.udp.current {
            None => (self.udp.current, self.udp.current_bytes) = (Some(id), counted),
            Some(current) if current == id => self.udp.current_bytes += counted,
            Some(_) => self.udp.outlets.enqueue(id),
        }
        event
    }
}

/// Whose a record is that nobody uses.
const NOBODY: Id = Id { slot: 0, generation: 0 };
