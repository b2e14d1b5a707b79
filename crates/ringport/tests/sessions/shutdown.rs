//! Shutting down in order.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use ringport::{Address, CloseReason, Server};

use crate::stage::{LIMIT, Log, Player, each_engine};

fn tcp(server: &ringport::Running) -> std::net::SocketAddr {
    match &server.addresses()[0] {
        Address::Ip(address) => *address,
        Address::Unix(_) => unreachable!("the test listens on TCP"),
    }
}

#[test]
fn a_thousand_live_connections_are_drained_and_nothing_is_lost() {
    each_engine(|kind| {
        let log = Log::default();
        let server = Server::new()
            .engine(Some(kind))
            .workers(2)
            .listen("127.0.0.1:0", Player::echo(&log).make())
            .start()
            .expect("the server starts");
        let to = tcp(&server);
        let mut peers: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(to).expect("connects")).collect();
        // Each has sent something that the server may not have seen yet when the shutdown begins.
        for (number, peer) in peers.iter_mut().enumerate() {
            peer.write_all(&(number as u32).to_le_bytes()).expect("sends");
        }
        let start = Instant::now();
        while server.handle().stats().accepted < 1000 {
            assert!(start.elapsed() < LIMIT, "accepts all");
            std::thread::sleep(Duration::from_millis(1));
        }
        server.handle().shutdown(LIMIT);
        for (number, mut peer) in peers.into_iter().enumerate() {
            let mut answer = Vec::new();
            peer.set_read_timeout(Some(LIMIT)).expect("sets a timeout");
            peer.read_to_end(&mut answer).expect("ends in order");
            assert_eq!(answer, (number as u32).to_le_bytes(), "{kind}: the answer of connection {number}");
        }
        server.join().expect("ends");
        assert!(TcpStream::connect(to).is_err(), "{kind}: nobody listens any more");
        let reasons = log.reasons();
        assert_eq!(reasons.len(), 1000);
        assert!(reasons.iter().all(|reason| *reason == CloseReason::Shutdown), "{kind}");
    });
}

#[test]
fn a_deadline_cuts_off_peers_that_do_not_end() {
    each_engine(|kind| {
        let log = Log::default();
        let server = Server::new()
            .engine(Some(kind))
            .listen("127.0.0.1:0", Player::echo(&log).make())
            .start()
            .expect("the server starts");
        // It talks without a pause, and never closes.
        let mut chatty = TcpStream::connect(tcp(&server)).expect("connects");
        let mut reader = chatty.try_clone().expect("clones");
        let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
        let writing = std::thread::spawn(move || while chatty.write_all(&[1; 1000]).is_ok() {});
        std::thread::sleep(Duration::from_millis(100));
        let start = Instant::now();
        server.handle().shutdown(Duration::from_millis(300));
        server.join().expect("ends");
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(5), "{kind}: took {took:?}");
        writing.join().expect("the writer ends");
        let _ = reading.join().expect("the reader ends");
        assert_eq!(log.reasons(), [CloseReason::Shutdown], "{kind}");
    });
}

#[test]
fn dropping_a_running_server_stops_it() {
    each_engine(|kind| {
        let server = Server::new()
            .engine(Some(kind))
            .listen("127.0.0.1:0", Player::echo(&Log::default()).make())
            .start()
            .expect("the server starts");
        let to = tcp(&server);
        let _peer = TcpStream::connect(to).expect("connects");
        drop(server);
        drop(TcpListener::bind(to).expect("the port is free again"));
    });
}
