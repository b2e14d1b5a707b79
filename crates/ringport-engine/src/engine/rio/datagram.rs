//! Datagram sockets: as many receives posted as there is memory, and sends from where the data lies if that is registered.
//!
//! ```text
//!  receive:   RIOReceiveEx into the socket's block ──► completion ──► copied, event ──► the next RIOReceiveEx
//!  send:      RIOSendEx from the slot, or from a copy ──► completion
//! ```
//!
//! As with connections, everything is posted at the beginning of `wait`, all but the last deferred. While datagrams are not
//! wanted, what the posted receives bring is kept, and no more are posted; the rest waits in the system's buffer.
//!
//! **The socket is made anew.** Registered I/O works only with sockets that were created for it, and those refuse
//! much that others need (a mode that does not block, for one). So the address of the one that is bound goes over to a new
//! one, with its options; datagrams that arrive in between are lost.
//!
//! **Closing sends what is left first,** since requests cannot be told apart from then on: closing the socket ends them all,
//! whether the system has taken their datagrams or not.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use windows_sys::Win32::Networking::WinSock::{RIO_BUF, RIO_MSG_DEFER, RIORESULT, WSAEMSGSIZE};

use super::datagram_memory::{Block, SENDS, STAGE_BYTES, receives};
use super::queues::{Direction, Requests};
use super::send::winsock_error;
use super::{RioEngine, table};
use crate::buffer::{Buf, Chunk};
use crate::engine::contract::{Event, SendTo, Want};
use crate::engine::datagram_windows::{self as calls, Listed, Mailbox, Outlets};
use crate::engine::winsock::{self, Started};
use crate::id::UdpId;
use crate::socket::Socket;

#[cfg(test)]
#[path = "datagram_tests.rs"]
mod tests;

/// The bit of a tag that tells datagram sockets from connections.
pub(super) const DATAGRAM: usize = 1 << (usize::BITS - 1);
/// The bit that tells sends from receives, and the bits below it that say which one it is.
const SEND: usize = 1 << NUMBER_BITS;
const NUMBER_BITS: u32 = 8;

/// A datagram socket.
pub(super) struct Outlet {
    /// `None` once it is closed, until the last event is taken.
    socket: Option<socket2::Socket>,
    requests: Requests,
    block: Block,
    mail: Mailbox,
    /// Receives that are not posted, and sends that are not in flight.
    free_receives: Vec<u8>,
    free_sends: Vec<u8>,
    /// The sends in flight.
    letters: [Option<Letter>; SENDS],
    /// A send in flight uses the block's place for a datagram.
    staged: bool,
    /// Given up by its owner.
    closing: bool,
    /// In the list of those with something to post.
    dirty: bool,
    listed: Listed,
    /// Nothing is under way any more, the last event waits to be taken.
    gone: bool,
}

/// A datagram in flight.
struct Letter {
    to: SocketAddr,
    bytes: usize,
    place: Place,
}

/// What keeps the bytes of a datagram in flight where they are.
enum Place {
    /// It has none.
    Nowhere,
    /// The slot that it came in, or that it was copied to.
    Slot(#[expect(dead_code, reason = "only held")] Buf),
    /// The block.
    Stage,
}

/// A send that was prepared: its number, its bytes, and its address.
struct Prepared {
    number: u8,
    data: Option<RIO_BUF>,
    address: RIO_BUF,
}

/// Everything about datagrams.
pub(super) struct Datagrams {
    pub(super) outlets: Outlets<Outlet>,
    dirty: Vec<UdpId>,
    /// Sockets that have ended, which no completion says.
    farewells: VecDeque<UdpId>,
}

impl Datagrams {
    pub(super) fn new() -> Self {
        Self { outlets: Outlets::new(), dirty: Vec::new(), farewells: VecDeque::new() }
    }

    fn soil(&mut self, id: UdpId) {
        if let Some(outlet) = self.outlets.table.get_mut(id)
            && !std::mem::replace(&mut outlet.dirty, true)
        {
            self.dirty.push(id);
        }
    }

    /// Whether there is something to tell already.
    pub(super) fn has_leftovers(&self) -> bool {
        self.outlets.has_leftovers() || !self.farewells.is_empty()
    }

    /// Whether a request of any socket is under way.
    pub(super) fn is_busy(&self) -> bool {
        let ids = self.outlets.table.ids::<UdpId>().into_iter();
        ids.filter_map(|id| self.outlets.table.get(id)).any(|outlet| outlet.is_busy())
    }

    /// Closes every socket at once.
    pub(super) fn close_all(&mut self) {
        for id in self.outlets.table.ids::<UdpId>() {
            if let Some(outlet) = self.outlets.table.get_mut(id) {
                outlet.closing = true;
                outlet.close_socket();
            }
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
    fn depth(&self) -> u32 {
        (self.block.receives() + SENDS) as u32
    }

    fn is_receiving(&self) -> bool {
        self.free_receives.len() < self.block.receives()
    }

    fn is_sending(&self) -> bool {
        self.free_sends.len() < SENDS
    }

    fn is_busy(&self) -> bool {
        self.is_receiving() || self.is_sending()
    }

    /// Takes a send out of those in flight, and says to whom it was, and its size.
    fn end_letter(&mut self, number: u8) -> Option<(SocketAddr, usize)> {
        let letter = self.letters.get_mut(usize::from(number))?.take()?;
        self.free_sends.push(number);
        self.staged &= !matches!(letter.place, Place::Stage);
        Some((letter.to, letter.bytes))
    }

    /// Closes the socket, which ends everything that is under way.
    fn close_socket(&mut self) {
        if let Some(socket) = self.socket.take() {
            table::close(socket);
        }
    }
}

impl RioEngine {
    pub(super) fn take_outlet(&mut self, socket: Socket) -> io::Result<UdpId> {
        let socket = socket.into_system()?;
        calls::check_kind(&socket)?;
        let socket = calls::register(socket)?;
        calls::leave_out_unreachable_peers(&socket);
        let bytes_max = self.config.datagram_bytes.clamp(1, 65_535) as usize;
        let receives = receives(self.udp.outlets.table.len() + 1, bytes_max, self.config.datagram_slots);
        let block = Block::new(&self.functions, receives, bytes_max)?;
        let requests = match self.equip(&socket, receives as u32, SENDS as u32) {
            Ok(requests) => requests,
            Err(error) => {
                table::close(socket);
                return Err(error);
            }
        };
        let outlet = Outlet {
            socket: Some(socket),
            requests,
            block,
            mail: Mailbox::new(&self.config),
            free_receives: (0..receives).rev().map(|number| number as u8).collect(),
            free_sends: (0..SENDS).rev().map(|number| number as u8).collect(),
            letters: std::array::from_fn(|_| None),
            staged: false,
            closing: false,
            dirty: false,
            listed: Listed::default(),
            gone: false,
        };
        Ok(self.udp.outlets.table.insert(Box::new(outlet)))
    }

    pub(super) fn want_datagrams(&mut self, id: UdpId, want: Want) {
        let Some(outlet) = self.udp.outlets.open(id) else { return };
        outlet.mail.wanted = want == Want::On;
        self.udp.soil(id);
        self.udp.outlets.enqueue_news(id);
    }

    #[inline]
    pub(super) fn queue_datagram(&mut self, id: UdpId, to: SocketAddr, data: Chunk) -> SendTo {
        let Some(outlet) = self.udp.outlets.open(id) else { return SendTo::Closed(data) };
        let outcome = outlet.mail.push(to, data, &mut self.stats);
        self.udp.soil(id);
        outcome
    }

    pub(super) fn close_outlet(&mut self, id: UdpId) {
        let Some(outlet) = self.udp.outlets.open(id) else { return };
        outlet.closing = true;
        outlet.mail.forget_received();
        self.post_letters(id);
        self.settle_outlet(id);
    }

    /// Goes on with the end of a socket, as far as that goes now.
    fn settle_outlet(&mut self, id: UdpId) {
        let Some(outlet) = self.udp.outlets.table.get_mut(id).filter(|outlet| outlet.closing) else { return };
        let leaving = outlet.socket.is_some() && outlet.mail.waiting() > 0;
        if leaving || outlet.is_sending() {
            return;
        }
        outlet.close_socket();
        if !outlet.is_receiving() && !std::mem::replace(&mut outlet.gone, true) {
            self.budget.release(outlet.depth());
            self.udp.farewells.push_back(id);
        }
    }

    /// The last event of a socket. Its slot is free from here on.
    pub(super) fn next_udp_farewell(&mut self) -> Option<Event> {
        let id = self.udp.farewells.pop_front()?;
        let mut outlet = self.udp.outlets.table.remove(id)?;
        self.shrink();
        Some(Event::UdpClosed { udp: id, unsent: outlet.mail.give_up(&mut self.stats) })
    }

    /// Before the engine sleeps: posts what is due.
    pub(super) fn post_datagrams(&mut self) {
        for id in self.udp.outlets.end_stall() {
            self.udp.soil(id);
        }
        let mut dirty = std::mem::take(&mut self.udp.dirty);
        for id in dirty.drain(..) {
            if let Some(outlet) = self.udp.outlets.table.get_mut(id) {
                outlet.dirty = false;
                self.post_letters(id);
                self.post_landings(id);
                self.udp.outlets.enqueue_news(id);
                self.settle_outlet(id);
            }
        }
        // Nothing was put there meanwhile, so that the list keeps its room.
        self.udp.dirty = dirty;
    }

    /// Posts a receive for each that has ended. All but the last are deferred.
    fn post_landings(&mut self, id: UdpId) {
        let Self { udp, functions, stats, .. } = self;
        let mut deferred = false;
        loop {
            let Some(outlet) = udp.outlets.open(id) else { return };
            if !outlet.mail.wanted || outlet.listed.is_stalled() || outlet.socket.is_none() {
                return;
            }
            let Some(number) = outlet.free_receives.pop() else { return };
            let (data, address) = outlet.block.receive(number.into());
            let last = outlet.free_receives.is_empty();
            let flags = if last { 0 } else { RIO_MSG_DEFER };
            let tag = DATAGRAM | id.slot() << (NUMBER_BITS + 1) | usize::from(number);
            stats.posts += 1;
            stats.commits += u64::from(last);
            // SAFETY: both parts lie in the block, which is registered, and are those of this receive alone; its number is
            // free again when its completion was dequeued. The socket is open, and the engine never leaves its thread.
            let started =
                unsafe { outlet.requests.post_to(functions, Direction::Receive, Some(&data), &address, flags, tag) };
            if let Started::Refused(error) = started {
                outlet.free_receives.push(number);
                outlet.mail.note_failure(None, error, stats);
                if deferred {
                    stats.commits += 1;
                    outlet.requests.commit(functions, Direction::Receive);
                }
                return udp.outlets.stall(id);
            }
            deferred = !last;
        }
    }

    /// Posts as many sends of a socket as may be in flight. All but the last are deferred.
    fn post_letters(&mut self, id: UdpId) {
        let mut held: Option<Prepared> = None;
        let mut deferred = false;
        loop {
            let next = self.prepare_letter(id);
            let Self { udp, functions, stats, .. } = self;
            let Some(outlet) = udp.outlets.table.get_mut(id) else { return };
            if let Some(Prepared { number, data, address }) = held.take() {
                let flags = if next.is_some() { RIO_MSG_DEFER } else { 0 };
                let tag = DATAGRAM | SEND | id.slot() << (NUMBER_BITS + 1) | usize::from(number);
                stats.sends += 1;
                stats.commits += u64::from(flags == 0);
                // SAFETY: the data lies in a slot or in the block's place, which the letter keeps until the completion of
                // this request was dequeued, the address in the block, where it is this send's alone. The socket is
                // open, and the engine never leaves its thread.
                let started =
                    unsafe { outlet.requests.post_to(functions, Direction::Send, data.as_ref(), &address, flags, tag) };
                if let Started::Refused(error) = started {
                    if deferred && next.is_none() {
                        stats.commits += 1;
                        outlet.requests.commit(functions, Direction::Send);
                    }
                    if let Some((to, bytes)) = outlet.end_letter(number) {
                        outlet.mail.failed(to, bytes, error, stats);
                    }
                } else {
                    deferred = flags != 0;
                }
            }
            let Some(next) = next else { return };
            held = Some(next);
        }
    }

    /// Prepares the next send: copies what has to be copied, and notes it as in flight.
    fn prepare_letter(&mut self, id: UdpId) -> Option<Prepared> {
        let Self { udp, pool, region, stats, .. } = self;
        let outlet = udp.outlets.table.get_mut(id).filter(|outlet| outlet.socket.is_some())?;
        let (number, to, data) = loop {
            let number = *outlet.free_sends.last()?;
            let (to, data) = outlet.mail.take()?;
            if data.len() <= STAGE_BYTES {
                break (number, to, data);
            }
            outlet.mail.failed(to, data.len(), WSAEMSGSIZE, stats);
        };
        let bytes = data.as_slice();
        let length = bytes.len() as u32;
        let (place, part) = match data {
            _ if length == 0 => (Place::Nowhere, None),
            Chunk::Buf(buf) if buf.is_pooled() && region.contains(buf.as_ptr()) => {
                let part = region.slice(buf.as_ptr(), length);
                (Place::Slot(buf), Some(part))
            }
            data => {
                if let Some(mut copy) = pool.writable(data.len()) {
                    copy.append(data.as_slice());
                    let part = region.slice(copy.as_ptr(), length);
                    (Place::Slot(copy), Some(part))
                } else if outlet.staged {
                    // The completion of the one that is there brings it back here.
                    outlet.mail.put_back(to, data);
                    return None;
                } else {
                    outlet.staged = true;
                    // SAFETY: the place is in no use, as was just looked at.
                    (Place::Stage, unsafe { outlet.block.write_stage(data.as_slice()) })
                }
            }
        };
        outlet.free_sends.pop();
        outlet.letters[usize::from(number)] = Some(Letter { to, bytes: length as usize, place });
        // SAFETY: the number was free, so that no request uses its address.
        let address = unsafe { outlet.block.write_address(number.into(), &to.into()) };
        Some(Prepared { number, data: part, address })
    }

    /// A request of a datagram socket has ended.
    pub(super) fn on_datagram(&mut self, tag: usize, result: &RIORESULT) -> Option<Event> {
        let number = (tag & (SEND - 1)) as u8;
        // The slot is not reused before every completion of its socket was dequeued.
        let slot = ((tag & !DATAGRAM) >> (NUMBER_BITS + 1)) as u32;
        let (id, outlet) = self.udp.outlets.table.slot_mut::<UdpId>(slot)?;
        let error = if result.Status == 0 { 0 } else { winsock_error(result.Status) };
        if tag & SEND == 0 {
            outlet.free_receives.push(number);
            if !outlet.closing {
                self.landed(id, number, error, result.BytesTransferred as usize);
            }
        } else if let Some((to, bytes)) = outlet.end_letter(number) {
            match error {
                0 => outlet.mail.sent(bytes, &mut self.stats),
                error if winsock::is_cancelled(error) => outlet.mail.cancelled(bytes, &mut self.stats),
                error => outlet.mail.failed(to, bytes, error, &mut self.stats),
            }
        }
        self.udp.soil(id);
        self.settle_outlet(id);
        let event = self.udp.outlets.open(id)?.mail.next_event(id);
        self.udp.outlets.enqueue_news(id);
        event
    }

    /// Takes in what a receive brought.
    fn landed(&mut self, id: UdpId, number: u8, error: i32, bytes: usize) {
        let Self { udp, pool, stats, .. } = self;
        let Some(outlet) = udp.outlets.open(id) else { return };
        let truncated = calls::is_truncation(error);
        if error != 0 && !truncated {
            if !winsock::is_cancelled(error) {
                outlet.mail.note_failure(None, error, stats);
            }
            if !calls::is_about_another(error) {
                udp.outlets.stall(id);
            }
            return;
        }
        // What had to be cut has filled its room, whatever the system counts.
        let bytes = if truncated { outlet.block.room() } else { bytes };
        // SAFETY: the completion of the only request with this number was dequeued.
        let (data, from) = unsafe { outlet.block.received(number.into(), bytes) };
        if let Some(from) = calls::address_of(&from) {
            outlet.mail.deliver(from, pool.copy_in(data), truncated, stats);
        }
    }

    /// The next event of the sockets that have something to tell.
    pub(super) fn next_of_ready_outlets(&mut self) -> Option<Event> {
        while let Some(id) = self.udp.outlets.next_ready() {
            let Some(outlet) = self.udp.outlets.open(id) else { continue };
            let event = outlet.mail.next_event(id);
            if outlet.mail.has_news() {
                // The rest is told at once, too, not each in a turn of its own.
                self.udp.outlets.put_back(id);
            }
            self.udp.soil(id);
            if event.is_some() {
                return event;
            }
        }
        None
    }
}
