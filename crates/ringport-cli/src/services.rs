//! What `ringport serve` can do with a connection.

use std::collections::VecDeque;
use std::iter::repeat_n;
use std::sync::LazyLock;

use ringport::{Buf, Bytes, Connection, Datagram, DatagramHandler, Datagrams, Handler, SendOutcome};

/// Sends back what it receives.
///
/// With `--over-limit refuse` what does not fit is held, and nothing more is read until it is queued: the echo loses no
/// byte under either policy.
pub(crate) struct Echo {
    /// The send limit in bytes, if sends beyond it are refused; `None` if they end the connection.
    pub(crate) refused_above: Option<u64>,
}

/// What refused sends left to do. Bounded by what was received before the pause took effect.
#[derive(Default)]
pub(crate) struct Held {
    pieces: VecDeque<Bytes>,
    peer_closed: bool,
}

type EchoConnection<'a> = Connection<'a, Option<Box<Held>>>;

impl Handler for Echo {
    type State = Option<Box<Held>>;

    #[inline]
    fn data(&mut self, conn: &mut EchoConnection<'_>, data: Buf) {
        if let Some(held) = conn.state {
            held.pieces.push_back(data.into_bytes());
            return;
        }
        if let (SendOutcome::Refused { data, .. }, Some(limit)) = (conn.send(data), self.refused_above) {
            conn.state.get_or_insert_default().pieces.push_back(data.into_bytes());
            conn.pause();
            go_on(conn, limit);
        }
    }

    fn writable(&mut self, conn: &mut EchoConnection<'_>) {
        if let Some(limit) = self.refused_above {
            go_on(conn, limit);
        }
    }

    fn peer_closed(&mut self, conn: &mut EchoConnection<'_>) {
        match conn.state {
            Some(held) => held.peer_closed = true,
            None => conn.close(),
        }
    }
}

/// Most bytes of what is held that are sent at once, so that they find room even where memory is scarce.
const PART: usize = 16 << 10;

/// Queues as much of what is held as the limits allow. Where something is left the queue is filled up to the limit,
/// which is above the high mark, or there is no memory: in both cases `writable` is called for the rest.
fn go_on(conn: &mut EchoConnection<'_>, limit: u64) {
    let Some(mut held) = conn.state.take() else { return };
    while let Some(piece) = held.pieces.front_mut() {
        let room = usize::try_from(limit.saturating_sub(conn.queued())).unwrap_or(usize::MAX);
        if room == 0 {
            *conn.state = Some(held);
            return;
        }
        let part = piece.split_to(piece.len().min(room).min(PART));
        if piece.is_empty() {
            held.pieces.pop_front();
        }
        if let SendOutcome::Refused { data, .. } = conn.send(part) {
            // While it is closing this is for nothing, and goes with the connection.
            held.pieces.push_front(data.into_bytes());
            *conn.state = Some(held);
            return;
        }
    }
    conn.resume();
    if held.peer_closed {
        conn.close();
    }
}

/// Drops what it receives.
pub(crate) struct Discard;

impl Handler for Discard {
    type State = ();

    #[inline]
    fn data(&mut self, _: &mut Connection<'_, ()>, _: Buf) {}
}

/// Sends without end: byte number `n` of a connection is `n % 256`, so that a client can check what it gets.
#[derive(Clone, Copy)]
pub(crate) struct Generate {
    /// Up to where the queue is filled, in bytes.
    high_mark: u64,
    /// A multiple of 256, so that each piece continues the last.
    piece_bytes: usize,
    /// Pieces queued at a time.
    pieces: usize,
}

/// The longest piece of the stream. It begins where a cache line does: what `malloc` hands out for so many bytes lies 16
/// bytes behind one, and on a processor that copies by `rep movsb` the kernel's copy then takes 6 % longer.
pub(crate) static PIECE: LazyLock<&[u8]> = LazyLock::new(|| {
    let bytes = PIECE_BYTES_MAX as usize;
    let memory = Vec::leak(vec![0; bytes + CACHE_LINE]);
    let start = memory.as_ptr().align_offset(CACHE_LINE).min(CACHE_LINE);
    let piece = &mut memory[start..start + bytes];
    (0..=u8::MAX).cycle().zip(piece.iter_mut()).for_each(|(number, byte)| *byte = number);
    piece
});
const CACHE_LINE: usize = 64;
/// Shortest and longest piece that may be asked for.
pub(crate) const PIECE_BYTES_MIN: u64 = 256;
pub(crate) const PIECE_BYTES_MAX: u64 = 1 << 20;
/// Most pieces queued at a time. They leave in one system call, and the larger that is the less a byte costs: with pieces of
/// 1 MiB, 5 % less than one by one.
const PIECES_MAX: u64 = 4;

impl Generate {
    /// For connections with a send limit of at least 1 KiB and a high mark of at most half of it. A piece has at most a
    /// quarter of the limit, so that two fit behind what is below the mark.
    pub(crate) fn new(send_limit: u64, high_mark: u64, piece_bytes: u64) -> Self {
        let bytes = (send_limit / 4).min(piece_bytes).clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX);
        let pieces = ((send_limit - high_mark) / bytes).min(PIECES_MAX);
        Self { high_mark, piece_bytes: bytes as usize & !255, pieces: pieces as usize }
    }

    /// What is queued at a time.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = &'static [u8]> + use<> {
        repeat_n(&PIECE[..self.piece_bytes], self.pieces)
    }

    /// Fills the queue above the high mark, so that `writable` is called when it is low again.
    fn fill(&self, conn: &mut Connection<'_, ()>) {
        while conn.queued() <= self.high_mark && self.pieces().all(|piece| conn.send(piece).is_queued()) {}
    }
}

impl Handler for Generate {
    type State = ();

    fn open(&mut self, conn: &mut Connection<'_, ()>) {
        self.fill(conn);
    }

    fn data(&mut self, _: &mut Connection<'_, ()>, _: Buf) {}

    fn writable(&mut self, conn: &mut Connection<'_, ()>) {
        self.fill(conn);
    }

    /// A peer that has closed only its own direction still reads.
    fn peer_closed(&mut self, _: &mut Connection<'_, ()>) {}
}

/// What `ringport serve --udp` does with datagrams: sends each back, or drops it.
pub(crate) struct EchoDatagrams;

impl DatagramHandler for EchoDatagrams {
    type Peer = ();

    #[inline]
    fn datagram(&mut self, socket: &mut Datagrams<'_>, (): &mut (), datagram: Datagram) {
        if !datagram.truncated {
            // A full queue means that the network is slower than the peers: what does not fit is lost, and counted.
            let _ = socket.send_to(datagram.from, datagram.data);
        }
    }
}

/// Drops datagrams.
pub(crate) struct DiscardDatagrams;

impl DatagramHandler for DiscardDatagrams {
    type Peer = ();

    #[inline]
    fn datagram(&mut self, _: &mut Datagrams<'_>, (): &mut (), _: Datagram) {}
}

/// Datagrams that one asks for, and their bytes.
pub(crate) const GENERATED: usize = 16;
pub(crate) const GENERATED_BYTES: usize = 1024;

/// Answers a datagram with some of 1 KiB, which carry the bytes 0 to 255 over and over. Only a peer that asks gets any, so
/// that a forged address is not flooded for long.
pub(crate) struct GenerateDatagrams;

impl DatagramHandler for GenerateDatagrams {
    type Peer = ();

    fn datagram(&mut self, socket: &mut Datagrams<'_>, (): &mut (), datagram: Datagram) {
        for _ in 0..GENERATED {
            let _ = socket.send_to(datagram.from, &PIECE[..GENERATED_BYTES]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use ringport::{Client, ConnectionOptions, Faults, ListenOptions, OverLimit, Server, Simulation, SocketOptions};

    use super::*;

    /// Sends everything, half-closes, and keeps what comes back.
    #[derive(Clone)]
    struct Asker {
        data: Bytes,
        back: Arc<Mutex<(Vec<u8>, bool)>>,
    }

    impl Handler for Asker {
        type State = ();

        fn open(&mut self, conn: &mut Connection<'_, ()>) {
            conn.send(self.data.clone());
            conn.finish();
        }

        fn data(&mut self, _: &mut Connection<'_, ()>, data: Buf) {
            self.back.lock().expect("no test panicked").0.extend_from_slice(&data);
        }

        fn close(&mut self, _: &mut Connection<'_, ()>, _: &ringport::CloseReport) {
            self.back.lock().expect("no test panicked").1 = true;
        }
    }

    /// What is queued at a time fits behind what may be queued before: a stream does not break its own limit.
    #[test]
    fn a_stream_stays_within_the_send_limit() {
        for limit in [1 << 10, 1500, 4 << 10, 1 << 20, 10 << 20, 1 << 30] {
            for piece in [PIECE_BYTES_MIN, 64 << 10, PIECE_BYTES_MAX] {
                let high_mark = (256 << 10).min(limit / 2);
                let at_a_time: Vec<_> = Generate::new(limit, high_mark, piece).pieces().collect();
                let bytes: usize = at_a_time.iter().map(|piece| piece.len()).sum();
                assert!(high_mark + bytes as u64 <= limit, "{limit}, {piece}: {bytes}");
                assert!((2..=PIECES_MAX as usize).contains(&at_a_time.len()), "{limit}, {piece}: {}", at_a_time.len());
                assert!(at_a_time.iter().all(|piece| !piece.is_empty() && piece.len().is_multiple_of(256)));
            }
        }
    }

    /// The FIN may come while something is held: that must not cut the echo short.
    #[test]
    fn an_echo_that_holds_back_is_whole() {
        const LIMIT: u64 = 1000;
        for seed in 0..100 {
            let faults = Faults::drawn(seed).harmless();
            let mut simulation = Simulation::new(seed, faults);
            let options =
                ConnectionOptions::default().idle_timeout(None).linger(std::time::Duration::from_secs(36_000));
            let limited = options.clone().send_limit(LIMIT, OverLimit::Refuse).marks(LIMIT / 8, LIMIT / 2);
            let server = Server::new()
                .listen_with("127.0.0.1:1", ListenOptions::default(), limited, || Echo { refused_above: Some(LIMIT) });
            simulation.serve(server).expect("it listens");
            let data: Bytes = (0..20_000_u32).map(|at| (at * 31 + (at >> 8)) as u8).collect::<Vec<_>>().into();
            let asker = Asker { data: data.clone(), back: Arc::default() };
            let (back, make) = (Arc::clone(&asker.back), move || asker.clone());
            let options = options.rest_when_full(false);
            let client = Client::new().connect_with("127.0.0.1:1", 1, SocketOptions::default(), options, make);
            simulation.connect(client).expect("it connects");
            let closed = || back.lock().expect("no test panicked").1;
            simulation.run_until(closed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let back = back.lock().expect("no test panicked");
            assert!(back.0 == data, "seed {seed}: {} of {} bytes", back.0.len(), data.len());
        }
    }
}
