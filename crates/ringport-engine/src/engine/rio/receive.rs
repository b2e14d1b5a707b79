//! Receiving: one request with memory under each connection that wants bytes.

use windows_sys::Win32::Networking::WinSock::RIORESULT;

use super::landing::SLICE_BYTES;
use super::queues::Direction;
use super::send::winsock_error;
use super::{RioEngine, State};
use crate::buffer::{Pool, SlotClass, SlotId};
use crate::engine::contract::Event;
use crate::engine::winsock::Started;
use crate::id::ConnId;

use super::books::SliceId;

/// Where a receive writes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A slot of the pool, which is delivered as it is.
    Slot(SlotId, SlotClass),
    /// A slice of the landing area, which is copied.
    Slice(SliceId),
}

/// The tag of receives. Sends have the numbers from 1 on.
pub(super) const RECEIVE: usize = 0;
/// Bits of a tag that say which request of a connection it is; the others are its slot.
pub(super) const TAG_BITS: u32 = 3;

impl RioEngine {
    pub(super) fn want_bytes(&mut self, id: ConnId, wanted: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::replace(&mut conn.wanted, wanted) == wanted || conn.given_up {
            return;
        }
        if wanted && conn.landed.is_some() {
            self.enqueue(id);
        } else if wanted {
            // At once, and not with the others in the next wait: from now on the connection learns of its end.
            self.post_receive(id);
        }
        // A failing connection waits only for who wants its bytes.
        self.settle(id);
    }

    /// Posts the receive of a connection, if that is due.
    pub(super) fn post_receive(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        let live = matches!(conn.state, State::Open | State::Failing);
        if !live || !conn.wanted || conn.eof || conn.receiving || conn.landed.is_some() {
            return;
        }
        let full = conn.full;
        let Some(requests) = conn.requests else { return };
        let Some(place) = self.choose_place(full) else {
            self.stats.starved += 1;
            self.starved.push(id);
            return;
        };
        let most = u32::try_from(self.config.bytes_per_turn.max(1)).unwrap_or(u32::MAX);
        let slice = match place {
            Place::Slot(slot, _) => {
                let (memory, bytes) = self.pool.slot_memory(slot);
                self.region.slice(memory, bytes.min(most))
            }
            Place::Slice(slice) => self.landing.slice(slice, SLICE_BYTES.min(most as usize)),
        };
        let tag = id.slot() << TAG_BITS | RECEIVE;
        self.stats.posts += 1;
        self.stats.commits += 1;
        // SAFETY: the slice was just taken, and is the connection's until the completion of this request was dequeued.
        // The state says that the socket is open, and the engine never leaves its thread.
        let started = unsafe { requests.post(&self.functions, Direction::Receive, &slice, 0, tag) };
        if let Started::Refused(error) = started {
            self.release(place);
            return self.end(id, error);
        }
        if let Some(conn) = self.conns.get_mut(id) {
            (conn.place, conn.room, conn.receiving) = (Some(place), slice.Length, true);
        }
    }

    /// Memory for a receive: a slot while half of them are left, a large one for who filled the last one, otherwise a
    /// slice. `None` when the system has no memory for more slices.
    fn choose_place(&mut self, full: bool) -> Option<Place> {
        let classes: &[SlotClass] = if full { &[SlotClass::Large, SlotClass::Small] } else { &[SlotClass::Small] };
        for class in classes {
            if is_plentiful(&self.pool, *class)
                && let Some(slot) = self.pool.lend(*class)
            {
                return Some(Place::Slot(slot, *class));
            }
        }
        self.landing.take().ok().map(Place::Slice)
    }

    /// Gives memory back into which nothing is written any more.
    pub(super) fn release(&mut self, place: Place) {
        match place {
            // SAFETY: lent in `choose_place`, and the system has let go of it: no request was posted, or its completion
            // was dequeued.
            Place::Slot(slot, _) => drop(unsafe { self.pool.reclaim(slot, 0) }),
            Place::Slice(slice) => self.landing.give_back(slice),
        }
    }

    /// A receive has ended.
    pub(super) fn on_receive(&mut self, id: ConnId, result: &RIORESULT) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        debug_assert!(conn.receiving, "a completion of a receive that was not posted");
        conn.receiving = false;
        if !matches!(conn.state, State::Open | State::Failing) {
            self.forget_received(id);
            self.settle(id);
            return None;
        }
        if result.Status != 0 {
            conn.eof = true;
            self.forget_received(id);
            self.fail(id, winsock_error(result.Status));
            return None;
        }
        conn.landed = Some(result.BytesTransferred.min(conn.room));
        if conn.wanted {
            return self.deliver(id);
        }
        self.settle(id);
        None
    }

    /// Drops what was received, or would have been.
    pub(super) fn forget_received(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.landed = None;
        if let Some(place) = conn.place.take() {
            self.release(place);
        }
    }

    /// Hands out what was received.
    pub(super) fn deliver(&mut self, id: ConnId) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        if !conn.wanted {
            return None;
        }
        let bytes = conn.landed.take()?;
        let place = conn.place.take()?;
        conn.full = bytes == conn.room;
        if bytes == 0 {
            conn.eof = true;
            let open = conn.state == State::Open;
            self.release(place);
            self.settle(id);
            // After a failure this is what is left of the connection, and not the peer's FIN.
            return open.then_some(Event::PeerClosed { conn: id });
        }
        self.soil(id);
        let buf = match place {
            Place::Slot(slot, class) => {
                // SAFETY: lent in `choose_place`; the completion that was dequeued says that so many bytes are there.
                let buf = unsafe { self.pool.reclaim(slot, bytes) };
                self.pool.relieve(buf, class)
            }
            Place::Slice(slice) => {
                // SAFETY: the completion of the only request on the slice was dequeued.
                let buf = self.pool.copy_in(unsafe { self.landing.bytes(slice, bytes as usize) });
                self.landing.give_back(slice);
                buf
            }
        };
        Some(Event::Received { conn: id, buf })
    }

    /// Lets those try again for which the system had no memory.
    pub(super) fn feed_starved(&mut self) {
        for id in std::mem::take(&mut self.starved) {
            self.soil(id);
        }
    }
}

/// Whether more than half of the slots are free: so many may lie under receives.
fn is_plentiful(pool: &Pool, class: SlotClass) -> bool {
    let config = pool.config();
    let all = match class {
        SlotClass::Small => config.small_slots,
        SlotClass::Large => config.large_slots,
    };
    pool.free(class) > all / 2
}
