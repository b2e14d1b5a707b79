//! A message costs no allocation once things have warmed up, on either engine, whatever its size and depth.
//!
//! Every allocation of the process is counted, by every thread; the peer allocates nothing while it is measured.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;

use ringport::{Address, Buf, Connection, EngineConfig, EngineKind, Handler, Selection, Server};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

struct Echo;

impl Handler for Echo {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        conn.send(data);
    }
}

/// Answers with several small writes, which are gathered.
struct Writer;

impl Handler for Writer {
    type State = ();

    fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
        for piece in data.chunks(16) {
            conn.write(piece);
        }
    }
}

fn exchange(peers: &mut [TcpStream], out: &[u8], back: &mut [u8], rounds: usize) {
    for _ in 0..rounds {
        for peer in peers.iter_mut() {
            peer.write_all(out).expect("sends");
        }
        for peer in peers.iter_mut() {
            peer.read_exact(back).expect("answers");
        }
    }
}

/// Allocations during 200 rounds, and the copies that the pool made.
fn measure<H: Handler>(kind: EngineKind, size: usize, make: fn() -> H) -> (usize, u64) {
    let server = Server::new().engine(Some(kind)).listen("127.0.0.1:0", make).start().expect("the server starts");
    let Address::Ip(to) = server.addresses()[0] else { unreachable!("it listens on TCP") };
    let mut peers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(to).expect("connects")).collect();
    let (out, mut back) = (vec![5; size], vec![0; size]);
    exchange(&mut peers, &out, &mut back, 100);
    let region = Region::new(ALLOCATOR);
    exchange(&mut peers, &out, &mut back, 200);
    let change = region.change();
    (change.allocations + change.reallocations, server.handle().stats().copies)
}

#[test]
fn a_message_costs_no_allocation_and_no_copy() {
    for candidate in Selection::probe(&EngineConfig::default()) {
        let kind = candidate.kind;
        if let Err(reason) = candidate.verdict {
            println!("skipped: {kind}: {reason}");
            continue;
        }
        for size in [64, 1024, 16 * 1024] {
            assert_eq!(measure(kind, size, || Echo), (0, 0), "{kind}: echo of {size} bytes");
            assert_eq!(measure(kind, size.min(1024), || Writer), (0, 0), "{kind}: writes of {size} bytes");
        }
    }
}
