//! Reaching connections from other threads.

use std::io::Read;
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringport::{Address, ConnectionId, EngineKind, Server};

use crate::stage::{Log, Player, What, each_engine};

/// A server whose connections tell their ids, and a peer connected to it.
fn server(kind: EngineKind, log: &Log) -> (ringport::Running, TcpStream, ConnectionId) {
    let (tell, ids) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let notes = log.clone();
    let player = Player::with(log, move |conn, what| match what {
        // Nobody listens any more when a second connection opens.
        What::Open => drop(tell.lock().expect("not poisoned").send(conn.id())),
        What::Message(message) => {
            let number = message.downcast::<u64>().expect("the test sends numbers");
            notes.see().notes.push(number.to_string());
        }
        What::PeerClosed => conn.close(),
        _ => {}
    });
    let running =
        Server::new().engine(Some(kind)).listen("127.0.0.1:0", player.make()).start().expect("the server starts");
    let Address::Ip(to) = running.addresses()[0] else { unreachable!("the test listens on TCP") };
    let peer = TcpStream::connect(to).expect("connects");
    peer.set_read_timeout(Some(Duration::from_secs(10))).expect("sets a timeout");
    let id = ids.recv_timeout(Duration::from_secs(10)).expect("the connection opens");
    (running, peer, id)
}

#[test]
fn many_threads_send_and_no_message_is_torn() {
    each_engine(|kind| {
        const THREADS: u8 = 4;
        const MESSAGES: usize = 2000;
        const LENGTH: usize = 37;
        let log = Log::default();
        let (running, mut peer, id) = server(kind, &log);
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let remote = running.handle().remote();
                std::thread::spawn(move || {
                    for _ in 0..MESSAGES {
                        let mut data = ringport::Bytes::from(vec![thread; LENGTH]);
                        // A full mailbox hands the message back.
                        while let Err(full) = remote.send(id, data) {
                            data = full.0;
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut all = vec![0; usize::from(THREADS) * MESSAGES * LENGTH];
        peer.read_exact(&mut all).expect("everything arrives");
        let mut counts = [0; THREADS as usize];
        for message in all.chunks(LENGTH) {
            assert!(message.iter().all(|byte| *byte == message[0]), "{kind}: a message was torn");
            counts[usize::from(message[0])] += 1;
        }
        assert_eq!(counts, [MESSAGES; THREADS as usize]);
        for thread in threads {
            thread.join().expect("the sender ends");
        }
    });
}

#[test]
fn messages_come_in_order_and_close_ends_the_connection() {
    each_engine(|kind| {
        let log = Log::default();
        let (running, mut peer, id) = server(kind, &log);
        let remote = running.handle().remote();
        for number in 0..100_u64 {
            remote.message(id, Box::new(number)).expect("there is room");
        }
        remote.close(id).expect("there is room");
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).expect("ends in order");
        drop(peer);
        let start = Instant::now();
        while !log.all_closed(1) {
            assert!(start.elapsed() < Duration::from_secs(10), "{kind}: closes");
            std::thread::sleep(Duration::from_millis(1));
        }
        let expected: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(log.see().notes, expected);
        // A stale id reaches nobody, and is no error: the connection may have gone at any moment.
        let (_, mut second, fresh) = (0, TcpStream::connect(peer_of(&running)).expect("connects"), ());
        let () = fresh;
        remote.send(id, &b"lost"[..]).expect("there is room");
        second.set_read_timeout(Some(Duration::from_millis(50))).expect("sets a timeout");
        assert!(second.read(&mut [0; 4]).is_err(), "{kind}: a stale id reached another connection");
        running.handle().shutdown(Duration::ZERO);
        running.join().expect("ends");
        assert!(remote.send(id, &b"late"[..]).is_err(), "{kind}: a worker that ended hands messages back");
    });
}

fn peer_of(running: &ringport::Running) -> std::net::SocketAddr {
    match &running.addresses()[0] {
        Address::Ip(address) => *address,
        Address::Unix(_) => unreachable!("the test listens on TCP"),
    }
}
