//! Partial frames, kept by the handler and handed over again.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringport::{Buf, Client, CloseReason, Connection, ConnectionOptions, Handler, ListenOptions, PoolConfig, Server};

use crate::stage::{Log, Player, Stage, What, listen_on, pattern, stages};

stages!(
    frames_are_whole_at_every_split,
    frames_are_whole_byte_by_byte,
    a_frame_larger_than_every_buffer_is_whole,
    a_frame_that_never_ends_closes_its_connection,
);

/// What the framing server saw.
#[derive(Default)]
struct Seen {
    frames: Vec<Vec<u8>>,
    /// Bytes that were kept when the peer closed.
    cut_short: Vec<usize>,
    reasons: Vec<CloseReason>,
}

/// Splits what it receives into frames of two length bytes and so many bytes, and keeps the rest.
#[derive(Clone, Default)]
struct Framer(Arc<Mutex<Seen>>);

impl Framer {
    fn see(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().expect("no test panicked")
    }
}

impl Handler for Framer {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, mut data: Buf) {
        while let Some((head, rest)) = data.split_first_chunk::<2>() {
            let Some(frame) = rest.get(..usize::from(u16::from_be_bytes(*head))) else { break };
            self.see().frames.push(frame.to_vec());
            let length = 2 + frame.len();
            data.advance(length);
        }
        conn.keep(data);
    }

    fn peer_closed(&mut self, conn: &mut Connection<'_, ()>) {
        self.see().cut_short.push(conn.kept());
        conn.close();
    }

    fn close(&mut self, _: &mut Connection<'_, ()>, report: &ringport::CloseReport) {
        self.see().reasons.push(report.reason);
    }
}

fn frame(body: &[u8]) -> Vec<u8> {
    let mut frame = (body.len() as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(body);
    frame
}

/// Three frames, one of them empty, then a frame that is cut short.
fn stream() -> Vec<u8> {
    let mut stream = [frame(b"one"), frame(b""), frame(&pattern(30))].concat();
    stream.extend_from_slice(&[0, 9, 1, 2]);
    stream
}

fn check(seen: &Seen, streams: usize) {
    assert_eq!(seen.cut_short, vec![4; streams], "what was kept at the end is known");
    let mut frames = seen.frames.clone();
    frames.sort();
    let mut expected = [vec![b"one".to_vec(); streams], vec![Vec::new(); streams], vec![pattern(30); streams]].concat();
    expected.sort();
    assert_eq!(frames, expected);
}

fn frames_are_whole_at_every_split(stage: &Stage) {
    let (framer, client) = (Framer::default(), Log::default());
    let (stream, next) = (stream(), Arc::new(Mutex::new(0)));
    let connections = stream.len() + 1;
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => {
            let mut split = next.lock().expect("no test panicked");
            conn.state.number = *split;
            *split += 1;
            conn.write(&stream[..conn.state.number]);
            conn.set_timer(Duration::from_millis(20), 0);
        }
        What::Timer(_) => {
            conn.write(&stream[conn.state.number..]);
            conn.close();
        }
        _ => {}
    });
    let (server, done) = (framer.clone(), framer.clone());
    stage.play(
        Server::new().listen(listen_on(stage), move || server.clone()),
        |to| Client::new().connect(to, connections, sender.make()),
        || client.all_closed(connections) && done.see().reasons.len() == connections,
    );
    check(&framer.see(), connections);
}

fn frames_are_whole_byte_by_byte(stage: &Stage) {
    let (framer, client) = (Framer::default(), Log::default());
    let stream = stream();
    let sender = Player::with(&client, move |conn, what| match what {
        What::Open => drop(conn.set_interval(Duration::from_millis(1), 0)),
        What::Timer(_) => match stream.get(conn.state.number) {
            Some(byte) => {
                conn.write(&[*byte]);
                conn.state.number += 1;
            }
            None => conn.close(),
        },
        _ => {}
    });
    let (server, done) = (framer.clone(), framer.clone());
    stage.play(
        Server::new().listen(listen_on(stage), move || server.clone()),
        |to| Client::new().connect(to, 1, sender.make()),
        || client.all_closed(1) && done.see().reasons.len() == 1,
    );
    check(&framer.see(), 1);
}

fn a_frame_larger_than_every_buffer_is_whole(stage: &Stage) {
    // Kept frames must not hold the pool dry either: more connections than slots.
    const CONNECTIONS: usize = 30;
    let (framer, client) = (Framer::default(), Log::default());
    let body = pattern(60_000);
    let data = frame(&body);
    let sender = Player::with(&client, move |conn, what| {
        if let What::Open = what {
            conn.send(data.clone());
            conn.close();
        }
    });
    let pool = PoolConfig::default().small_slots(8).large_slots(4).slot_bytes(512, 4096);
    let (server, done) = (framer.clone(), framer.clone());
    stage.play(
        Server::new().pool(pool).listen(listen_on(stage), move || server.clone()),
        |to| Client::new().connect(to, CONNECTIONS, sender.make()),
        || client.all_closed(CONNECTIONS) && done.see().reasons.len() == CONNECTIONS,
    );
    let seen = framer.see();
    assert_eq!(seen.frames.len(), CONNECTIONS);
    assert!(seen.frames.iter().all(|frame| *frame == body));
    assert_eq!(seen.cut_short, [0; CONNECTIONS]);
}

fn a_frame_that_never_ends_closes_its_connection(stage: &Stage) {
    let (framer, client) = (Framer::default(), Log::default());
    let sender = Player::with(&client, |conn, what| match what {
        What::Open => {
            conn.write(&frame(b"fine"));
            conn.write(&[0xff, 0xff]);
            conn.set_interval(Duration::from_millis(1), 0);
        }
        What::Timer(_) => drop(conn.write(&[0; 500])),
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let options = ConnectionOptions::default().frame_limit(10_000);
    let (server, done) = (framer.clone(), framer.clone());
    stage.play(
        Server::new().listen_with(listen_on(stage), ListenOptions::default(), options, move || server.clone()),
        |to| Client::new().connect(to, 1, sender.make()),
        || client.all_closed(1) && done.see().reasons.len() == 1,
    );
    assert_eq!(framer.see().reasons, [CloseReason::FrameLimit]);
    assert_eq!(framer.see().frames, [b"fine".to_vec()]);
}
