//! Receiving, in the two ways that [`super`] shows, and the change between them.
//!
//! A change of mode cancels the operation of the old one and waits for its terminal completion. Everything that the old
//! operation received comes with or before that, so that no byte is overtaken. The new operation then finds what has
//! arrived in between: a multishot receive tries at once, and an edge-triggered poll reports a readable socket when it
//! is armed.
//!
//! After a short receive in direct mode nothing is left, and whatever comes next is a new edge. There is one exception:
//! the FIN may have come with the same edge as the last bytes. The poll says so (`EPOLLRDHUP`), and then receiving goes on
//! to the end of stream.

use std::hint::cold_path;
use std::os::fd::AsFd;

use io_uring::opcode;

use super::adapt::{Chooser, Way};
use super::ring::{BUFFER_GROUP, BufferRing, Completion};
use super::{Conn, Mode, Op, State, UringEngine};
use crate::buffer::{Buf, SlotClass};
use crate::engine::contract::Event;
use crate::engine::direct::{self, Received};
use crate::id::ConnId;

/// Large receives in a row before a connection counts as one with large messages. One alone may be a single large
/// request.
const LARGE_IN_A_ROW: u8 = 2;
/// Small receives in a row before it no longer does. A change costs about as much as ten messages, so this keeps its share
/// under a fifth even for a connection that changes all the time.
const SMALL_IN_A_ROW: u8 = 64;
/// What counts as large and small where slots are at least twice as large. In between nothing changes.
pub(super) const LARGE_BYTES: u32 = 8 * 1024;
pub(super) const SMALL_BYTES: u32 = 2 * 1024;

const HANGUP: i32 = libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR;

impl Conn {
    /// Whether a plain receive may be made: it is wanted, may find something, and overtakes no armed operation.
    #[inline]
    fn may_receive(&self) -> bool {
        let turn = match self.state {
            State::Open => self.mode != Mode::Multishot && !self.is_armed(Op::Receive),
            State::Failing => self.armed == 0,
            _ => false,
        };
        turn && self.wanted && self.readable && !self.eof
    }

    /// Notes the size of a receive: some in a row change what kind of connection this is, and then it says so.
    #[inline]
    fn classify(&mut self, bytes: usize, limits: (u32, u32)) -> bool {
        let (small, large) = (bytes < limits.0 as usize, bytes >= limits.1 as usize);
        let (speaks, against, needed) =
            if self.large { (small, large, SMALL_IN_A_ROW) } else { (large, small, LARGE_IN_A_ROW) };
        // The last piece of a large message may have any size between.
        self.streak = if against { 0 } else { self.streak + u8::from(speaks) };
        let changed = self.streak >= needed;
        if changed {
            self.streak = 0;
            self.large = !self.large;
        }
        changed
    }
}

impl UringEngine {
    /// Arms the operation of the mode, cancels that of the other or of a paused connection. For open connections.
    pub(super) fn settle_receive(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if conn.eof {
            return;
        }
        if !conn.wanted {
            return self.cancel(id, Op::Receive.bit());
        }
        match conn.mode {
            Mode::Multishot if conn.is_armed(Op::Poll) => self.cancel(id, Op::Poll.bit()),
            Mode::Multishot => {
                if !conn.is_armed(Op::Receive) && !conn.starved {
                    self.arm_receive(id);
                }
            }
            Mode::Direct | Mode::OneShot if conn.is_armed(Op::Receive) => self.cancel(id, Op::Receive.bit()),
            Mode::Direct | Mode::OneShot => {
                let readable = conn.readable;
                if !conn.is_armed(Op::Poll) && (conn.mode == Mode::Direct || !readable) {
                    self.arm_poll(id);
                }
                if readable && self.current != Some(id) {
                    self.enqueue(id);
                }
            }
        }
    }

    fn arm_receive(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.arm(Op::Receive);
        let entry = opcode::RecvMulti::new(conn.target(), BUFFER_GROUP).build().user_data(Op::Receive.tag(id));
        // SAFETY: the kernel receives into lent slots, which the engine keeps until every receive has ended.
        unsafe { self.ring.push(&entry) };
    }

    fn arm_poll(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.arm(Op::Poll);
        let multishot = conn.mode == Mode::Direct;
        let events = libc::EPOLLIN | libc::EPOLLRDHUP | if multishot { libc::EPOLLET } else { 0 };
        let entry = opcode::PollAdd::new(conn.target(), events as u32).multi(multishot).build();
        // SAFETY: a poll refers to no memory.
        unsafe { self.ring.push(&entry.user_data(Op::Poll.tag(id))) };
    }

    #[inline]
    pub(super) fn on_receive(&mut self, completion: Completion) -> Option<Event> {
        let Some((id, conn)) = self.conn_of(completion) else {
            drop(self.filled(completion));
            return None;
        };
        let ended = !completion.more();
        if ended {
            conn.disarm(Op::Receive);
        }
        if completion.result <= 0 {
            drop(self.filled(completion));
            self.receive_ended(id, completion.result);
            return self.report_eof(id, completion.result);
        }
        let received = self.on_bytes(completion).or_else(|| self.on_other_bytes(completion));
        if ended {
            self.settle(id);
        }
        received.map(|(conn, buf)| Event::Received { conn, buf })
    }

    /// A multishot receive has brought something. `None` if it takes more to deliver that, and nothing has happened then.
    #[inline]
    pub(super) fn on_bytes(&mut self, completion: Completion) -> Option<(ConnId, Buf)> {
        let (id, conn) = self.conn_of(completion)?;
        if conn.state == State::Closing || self.pool.is_low(SlotClass::Small) || self.buffers.is_none() {
            cold_path();
            return None;
        }
        let buffer = completion.buffer()?;
        self.note_bytes(id, completion);
        // Only now, so that it is made where it is needed: each move of what was just written stalls the processor.
        // SAFETY: the completion was just taken from the ring, and names the buffer.
        let take = |buffers: &mut BufferRing| unsafe { buffers.take(&self.pool, buffer, completion.result as u32) };
        self.buffers.as_mut().map(take).map(|buf| (id, buf))
    }

    /// Slots are low, so that the bytes are copied out of theirs, or nobody wants them any more.
    #[cold]
    fn on_other_bytes(&mut self, completion: Completion) -> Option<(ConnId, Buf)> {
        let buf = self.filled(completion)?;
        let (id, conn) = self.conn_of(completion)?;
        let closing = conn.state == State::Closing;
        self.note_bytes(id, completion);
        if closing { None } else { Some((id, self.pool.relieve(buf, SlotClass::Small))) }
    }

    /// Counts received bytes for the share of their connection and the choice of its mode.
    #[inline]
    fn note_bytes(&mut self, id: ConnId, completion: Completion) {
        let bytes = completion.result as usize;
        if self.adapt(id, bytes) {
            cold_path();
            self.settle(id);
        }
        if self.run != Some(id) {
            (self.run, self.run_bytes) = (Some(id), 0);
        }
        self.run_bytes += bytes;
    }

    /// Takes the slot that a completion fills back from the kernel.
    #[inline]
    fn filled(&mut self, completion: Completion) -> Option<Buf> {
        let buffer = completion.buffer()?;
        let buffers = self.buffers.as_mut()?;
        // SAFETY: the completion was just taken from the ring, and names a buffer.
        Some(unsafe { buffers.take(&self.pool, buffer, completion.result.max(0) as u32) })
    }

    /// The multishot receive ended without bytes.
    #[cold]
    fn receive_ended(&mut self, id: ConnId, result: i32) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        match -result {
            0 => conn.eof = true,
            libc::ENOBUFS => {
                self.stats.starved += 1;
                // One that wants something else by now is not waiting for a slot.
                if conn.state == State::Open && conn.mode == Mode::Multishot && conn.wanted && !conn.starved {
                    conn.starved = true;
                    self.starved.push(id);
                }
            }
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            error => {
                conn.eof = true;
                return self.fail(id, error);
            }
        }
        self.settle(id);
    }

    #[inline]
    fn report_eof(&self, id: ConnId, result: i32) -> Option<Event> {
        let open = self.conns.get(id).is_some_and(|conn| conn.state == State::Open);
        (result == 0 && open).then_some(Event::PeerClosed { conn: id })
    }

    pub(super) fn on_poll(&mut self, completion: Completion) -> Option<Event> {
        let (id, conn) = self.conn_of(completion)?;
        if !completion.more() {
            conn.disarm(Op::Poll);
        }
        if completion.result > 0 {
            conn.readable = true;
            conn.hangup |= completion.result & HANGUP != 0;
        } else if !matches!(-completion.result, 0 | libc::ECANCELED | libc::EINTR | libc::EAGAIN) {
            // Without a poll the connection would wait for ever.
            self.fail(id, -completion.result);
            return None;
        }
        // One that waits for its turn, or for a slot, is not overtaken by itself.
        let waits = conn.queued || conn.starved;
        let event = if waits { None } else { self.start_direct(id) };
        if !completion.more() {
            self.settle(id);
        }
        event
    }

    /// The first plain receive of a connection in this turn.
    #[inline]
    fn start_direct(&mut self, id: ConnId) -> Option<Event> {
        self.current_bytes = 0;
        self.go_on(id)
    }

    /// One plain receive of no more than `share` bytes, if it may be made.
    #[inline]
    fn receive_direct(&mut self, id: ConnId, share: usize) -> Option<Event> {
        let conn = self.conns.get_mut(id)?;
        if !conn.may_receive() {
            return None;
        }
        let fd = conn.fd.as_ref()?.as_fd();
        match direct::receive(fd, &self.pool, share, conn.urgent, &mut self.stats.calls) {
            Received::Data { buf, more, failed } => {
                self.current_bytes += buf.len();
                if more || conn.hangup || conn.state == State::Failing {
                    self.current = Some(id);
                } else {
                    conn.readable = false;
                    if conn.mode == Mode::OneShot {
                        self.settle(id);
                    }
                }
                if self.adapt(id, buf.len()) {
                    self.settle(id);
                }
                if let Some(error) = failed {
                    self.fail(id, error.raw_os_error().unwrap_or(libc::EIO));
                }
                Some(Event::Received { conn: id, buf })
            }
            Received::NoBuffer => {
                self.stats.starved += 1;
                if !conn.starved {
                    conn.starved = true;
                    self.starved_direct.push_back(id);
                }
                None
            }
            Received::Empty => {
                conn.readable = false;
                conn.hangup = false;
                conn.eof |= conn.state == State::Failing;
                self.settle(id);
                None
            }
            Received::Fin => {
                conn.eof = true;
                let event = self.report_eof(id, 0);
                self.settle(id);
                event
            }
            Received::Failed(error) => {
                conn.eof = true;
                self.fail(id, error.raw_os_error().unwrap_or(libc::EIO));
                None
            }
        }
    }

    /// Notes a receive, and changes the mode if what was seen so far asks for another. Says whether it did; then what is
    /// armed has to be settled.
    #[inline]
    fn adapt(&mut self, id: ConnId, bytes: usize) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        // A small message of a connection that has only such, which is received as these are.
        if bytes < self.small_bytes as usize && !conn.large && conn.mode == Mode::Multishot {
            conn.streak = 0;
            if let Some(chooser) = &mut self.chooser {
                chooser.received(bytes, false);
            }
            return false;
        }
        self.adapt_to(id, bytes)
    }

    #[inline(never)]
    fn adapt_to(&mut self, id: ConnId, bytes: usize) -> bool {
        if !self.adaptive {
            return false;
        }
        let Some(conn) = self.conns.get_mut(id) else { return false };
        let changed = conn.classify(bytes, (self.small_bytes, self.large_bytes));
        let mode = match (conn.large, &mut self.chooser) {
            (large, Some(chooser)) => {
                if changed {
                    chooser.count(large);
                }
                chooser.received(bytes, large);
                if large && chooser.way() == Way::Direct { Mode::Direct } else { Mode::Multishot }
            }
            (true, None) => Mode::Direct,
            (false, None) => Mode::Multishot,
        };
        if conn.mode == mode || conn.state != State::Open || conn.urgent {
            return false;
        }
        conn.mode = mode;
        if conn.large
            && let Some(chooser) = &mut self.chooser
        {
            chooser.count_changed_over();
        }
        if mode == Mode::Multishot {
            // The receive that is armed then finds whatever is there.
            conn.readable = false;
            conn.hangup = false;
        }
        self.stats.mode_changes += 1;
        true
    }

    /// From now on each receive is a plain call that ends at the mark, and is made when its event is asked for: a receive
    /// that the kernel makes by itself would be past the mark before anybody looks. The poll is set anew each time, since a
    /// receive that ends at the mark leaves bytes behind, which make no new edge.
    pub(super) fn watch_mark(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.urgent = true;
        if std::mem::replace(&mut conn.mode, Mode::OneShot) == Mode::Direct {
            self.cancel(id, Op::Poll.bit());
        }
        self.settle(id);
    }

    /// Receives from a connection that was readable beyond its last receive, unless it has had its share.
    #[inline]
    pub(super) fn go_on(&mut self, id: ConnId) -> Option<Event> {
        let Some(share) = direct::share_left(self.bytes_per_turn, self.current_bytes) else {
            self.enqueue(id);
            return None;
        };
        self.receive_direct(id, share)
    }

    /// Puts a connection behind the others; it goes on in the next turn.
    pub(super) fn enqueue(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(id)
            && !conn.queued
            && !conn.starved
        {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Goes on with a connection that waited in the list.
    pub(super) fn resume(&mut self, id: ConnId) -> Option<Event> {
        self.conns.get_mut(id)?.queued = false;
        self.start_direct(id)
    }

    /// Lends the slots that came back, and lets starved connections go on.
    #[inline]
    pub(super) fn feed_starved(&mut self) {
        self.pool.collect();
        if let Some(buffers) = self.buffers.as_mut() {
            let many = self.starved.has_shares() && self.chooser.as_ref().is_some_and(Chooser::shares);
            buffers.refill(&self.pool, many);
            if !self.starved.is_empty() {
                cold_path();
                let admitted = self.starved.admit(buffers.lent(), buffers.large_turn().filter(|_| many));
                self.feed_multishot(admitted);
            }
        }
        if !self.starved_direct.is_empty() {
            cold_path();
            self.feed_direct();
        }
    }

    /// Whether a starved connection could go on that does not yet. Then the engine looks for completions and does not sleep.
    #[inline]
    pub(super) fn holds_back(&self) -> bool {
        !self.starved.is_empty() && self.buffers.as_ref().is_some_and(|buffers| buffers.lent() > 0)
    }

    #[cold]
    fn feed_multishot(&mut self, admitted: u32) {
        let mut left = admitted;
        while left > 0
            && let Some(id) = self.starved.pop()
        {
            left -= u32::from(self.feed(id));
        }
    }

    #[cold]
    fn feed_direct(&mut self) {
        let mut left = self.pool.free(SlotClass::Large);
        while left > 0
            && let Some(id) = self.starved_direct.pop_front()
        {
            left -= u32::from(self.feed(id));
        }
    }

    /// Lets a connection go on, and says whether it will take a slot. One that no longer wants one takes none, and nobody
    /// would wake the next.
    fn feed(&mut self, id: ConnId) -> bool {
        let Some(conn) = self.conns.get_mut(id) else { return false };
        conn.starved = false;
        let takes = conn.wanted && !conn.eof && matches!(conn.state, State::Open | State::Failing);
        self.settle(id);
        takes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    use super::super::adapt::FIRST_LOOK_BYTES;
    use super::*;
    use crate::buffer::{Pool, PoolConfig};
    use crate::engine::contract::{Engine, EngineConfig, Want};
    use crate::socket::Socket;

    const MESSAGE: [u8; 16 * 1024] = [7; 16 * 1024];

    /// Sends one message to each connection and receives all of them.
    fn exchange(engine: &mut UringEngine, peers: &mut [UnixStream]) -> usize {
        let total = peers.len() * MESSAGE.len();
        for peer in peers {
            peer.write_all(&MESSAGE).unwrap();
        }
        let (mut received, deadline) = (0, Instant::now() + Duration::from_secs(20));
        while received < total {
            assert!(Instant::now() < deadline, "{received} of {total} bytes arrived");
            engine.wait(Some(deadline)).unwrap();
            while let Some(event) = engine.next() {
                match event {
                    Event::Received { buf, .. } => received += buf.len(),
                    other => panic!("{other:?}"),
                }
            }
        }
        total
    }

    const SHARE: usize = EngineConfig::SHARE_BYTES as usize;
    /// So many that they have shares.
    const BUSY_PEERS: usize = 400;

    /// What serving many peers showed.
    struct Served {
        /// Most bytes of others that came while one waited.
        longest: usize,
        /// How many messages came soon after the one before, as in a share.
        in_a_row: usize,
        messages: usize,
    }

    /// Serves connections that always have a message waiting: more than the ring takes.
    fn serve_busy_peers(share: Option<u64>) -> Served {
        const TOTAL: usize = 400 << 20;
        let config = EngineConfig { share_bytes: share, ..EngineConfig::default() };
        let mut engine = UringEngine::open(&config, Pool::new(PoolConfig::default())).unwrap();
        let mut peers = HashMap::new();
        for _ in 0..BUSY_PEERS {
            let (mut peer, ours) = UnixStream::pair().unwrap();
            let conn = engine.adopt(Socket::from(socket2::Socket::from(ours))).unwrap();
            engine.receive(conn, Want::On);
            peer.write_all(&MESSAGE).unwrap();
            peers.insert(conn, (peer, 0, 0));
        }
        let (mut total, deadline) = (0, Instant::now() + Duration::from_secs(60));
        let mut served = Served { longest: 0, in_a_row: 0, messages: TOTAL / MESSAGE.len() };
        while total < TOTAL {
            assert!(Instant::now() < deadline, "{total} of {TOTAL} bytes arrived");
            engine.wait(Some(deadline)).unwrap();
            while let Some(event) = engine.next() {
                let Event::Received { conn, buf } = event else { panic!("{event:?}") };
                let (peer, received, last) = peers.get_mut(&conn).unwrap();
                let before = *received / MESSAGE.len();
                *received += buf.len();
                total += buf.len();
                if *received / MESSAGE.len() > before {
                    let waited = total - std::mem::replace(last, total);
                    served.longest = served.longest.max(waited);
                    served.in_a_row += usize::from(waited < BUSY_PEERS * MESSAGE.len() / 2);
                    drop(buf);
                    peer.write_all(&MESSAGE).unwrap();
                }
            }
        }
        assert!(engine.chooser.as_ref().is_some_and(Chooser::shares), "so many are to have shares");
        served
    }

    #[test]
    fn shares_in_a_row_keep_nobody_from_his_turn() {
        let Served { longest, in_a_row, messages } = serve_busy_peers(Some(EngineConfig::SHARE_BYTES));
        assert!(in_a_row > messages / 2, "only {in_a_row} of {messages} came soon after another");
        let bound = (BUSY_PEERS + BUSY_PEERS / 2) * SHARE;
        assert!(longest < bound, "somebody waited while {longest} bytes of others came, which is more than {bound}");
    }

    #[test]
    fn who_wants_no_shares_is_served_message_by_message() {
        let Served { longest, in_a_row, messages } = serve_busy_peers(None);
        assert!(in_a_row < messages / 4, "{in_a_row} of {messages} came soon after another");
        let bound = 4 * BUSY_PEERS * MESSAGE.len();
        assert!(longest < bound, "somebody waited while {longest} bytes of others came, which is more than {bound}");
        assert!(bound < BUSY_PEERS * SHARE, "this bound tells it from shares");
    }

    #[test]
    fn settling_lasts_as_long_as_connections_change_over() {
        const PEERS: usize = 256;
        let mut engine = UringEngine::open(&EngineConfig::default(), Pool::new(PoolConfig::default())).unwrap();
        let mut peers = Vec::new();
        for _ in 0..PEERS {
            let (peer, ours) = UnixStream::pair().unwrap();
            let conn = engine.adopt(Socket::from(socket2::Socket::from(ours))).unwrap();
            engine.receive(conn, Want::On);
            peers.push(peer);
        }
        let way = |engine: &UringEngine| engine.chooser.as_ref().map(Chooser::way);
        // A few at a time, so that phases end where they should and not with a turn of megabytes.
        let (mut by_direct, mut by_other) = (0, 0);
        let before = PEERS * FIRST_LOOK_BYTES as usize;
        for group in (0..PEERS).step_by(32).cycle() {
            match way(&engine) {
                Some(Way::Direct) => by_direct += exchange(&mut engine, &mut peers[group..group + 32]),
                _ if by_direct > 0 => break,
                _ => by_other += exchange(&mut engine, &mut peers[group..group + 32]),
            }
            assert!(by_direct + by_other < before + (192 << 20), "the other way is looked at, and only for a while");
        }
        // Two windows of 8 MiB, 2 MiB between them, and before them 5 MiB in which all change over: a quarter more than each
        // needs for a message. It would be 16 MiB if that were not noticed.
        assert!(by_direct < 30 << 20, "{by_direct} bytes, after {by_other}");
        assert!(by_direct > 18 << 20, "{by_direct} bytes, after {by_other}");
        assert!(engine.stats().mode_changes >= PEERS as u64);
    }
}
