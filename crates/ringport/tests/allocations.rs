//! A message costs no allocation once things have warmed up, on either engine, whatever its size and depth.
//!
//! Every allocation of the process is counted, by every thread; the peer allocates nothing while it is measured.

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use ringport::{
    Address, Buf, Connection, ConnectionOptions, EngineConfig, EngineKind, Handler, ListenOptions, Selection, Server,
    Stream,
};
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

/// The same as a task.
async fn echo(mut stream: Stream) -> std::io::Result<()> {
    while let Some(data) = stream.recv().await? {
        stream.send(data).await?;
    }
    Ok(())
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

/// Deadlines that no run reaches. The default ones are looked at once a minute, and the list that they move to may grow then:
/// no cost of a message, but a very busy machine needs more than a minute for all of them.
fn options() -> ConnectionOptions {
    let hour = Some(Duration::from_secs(3600));
    ConnectionOptions::default().write_timeout(hour).idle_timeout(hour)
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
fn measure(kind: EngineKind, size: usize, listen: impl FnOnce(Server) -> Server) -> (usize, u64) {
    let server = listen(Server::new().engine(Some(kind))).start().expect("the server starts");
    let Address::Ip(to) = server.addresses()[0] else { unreachable!("it listens on TCP") };
    let mut peers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(to).expect("connects")).collect();
    let (out, mut back) = (vec![5; size], vec![0; size]);
    // One after another, so that what many at once need has to be there without them.
    for peer in peers.chunks_mut(1) {
        exchange(peer, &out, &mut back, 5);
    }
    let region = Region::new(ALLOCATOR);
    exchange(&mut peers, &out, &mut back, 200);
    let change = region.change();
    (change.allocations + change.reallocations, server.handle().stats().copies)
}

/// What an idle connection of a task costs, in bytes that are allocated and not freed, its share of every table included.
fn idle_bytes(kind: EngineKind) -> usize {
    // With those before them a power of two, so that no table has grown for more than there are.
    const CONNECTIONS: usize = 492;
    let server = Server::new().engine(Some(kind)).listen_async("127.0.0.1:0", echo).start().expect("it starts");
    let Address::Ip(to) = server.addresses()[0] else { unreachable!("it listens on TCP") };
    let connect = |count| (0..count).map(|_| TcpStream::connect(to).expect("connects")).collect::<Vec<_>>();
    let mut warm = connect(20);
    exchange(&mut warm, &[1], &mut [0], 3);
    let mut peers = Vec::with_capacity(CONNECTIONS);
    let region = Region::new(ALLOCATOR);
    peers.extend(connect(CONNECTIONS));
    exchange(&mut peers, &[1], &mut [0], 2);
    let change = region.change();
    // What grows is among them already, by as much as it has grown.
    (change.bytes_allocated - change.bytes_deallocated) / CONNECTIONS
}

fn check_idle_memory(kind: EngineKind) {
    let bytes = idle_bytes(kind);
    println!("{kind}: {bytes} bytes for an idle connection");
    assert!(bytes <= 768, "{kind}: {bytes} bytes");
}

/// Runs `body` in a process of its own whose harness has one thread for tests. With more, as by default, the harness notes
/// that a test has taken a minute, and what it allocates for that would be counted.
fn alone(test: &str, body: fn()) {
    if std::env::var("RINGPORT_ALONE").as_deref() == Ok(test) {
        return body();
    }
    let own = std::env::current_exe().expect("the test knows itself");
    let mut child = Command::new(own);
    child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env("RINGPORT_ALONE", test);
    let output = child.output().expect("the test can be started again");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    print!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "alone, it failed");
}

#[test]
fn a_message_costs_no_allocation_and_no_copy() {
    alone("a_message_costs_no_allocation_and_no_copy", check_every_engine);
}

fn check_every_engine() {
    for candidate in Selection::probe(&EngineConfig::default()) {
        let kind = candidate.kind;
        if let Err(reason) = candidate.verdict {
            println!("skipped: {kind}: {reason}");
            continue;
        }
        for size in [64, 1024, 16 * 1024] {
            let socket = ListenOptions::default;
            let handler = |server: Server| server.listen_with("127.0.0.1:0", socket(), options(), || Echo);
            assert_eq!(measure(kind, size, handler), (0, 0), "{kind}: echo of {size} bytes");
            let writer = |server: Server| server.listen_with("127.0.0.1:0", socket(), options(), || Writer);
            assert_eq!(measure(kind, size.min(1024), writer), (0, 0), "{kind}: writes of {size} bytes");
            let tasks = options().rest_when_full(false);
            let task = |server: Server| server.listen_async_with("127.0.0.1:0", socket(), tasks, echo);
            assert_eq!(measure(kind, size, task), (0, 0), "{kind}: echo of {size} bytes by tasks");
        }
        check_idle_memory(kind);
    }
}
