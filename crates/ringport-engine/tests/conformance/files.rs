//! Ranges of files (F49): in order with all other data, from the kernel where it can.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::sync::Arc;

use ringport_engine::{Close, Engine, FileRange, Want};

use crate::subject::Setup;
use crate::world::{At, World, check_prefix};

/// A file of the test's own that is removed from its folder at once, and its content.
fn file<E: Engine>(world: &mut World<E>, length: usize) -> (Arc<File>, Vec<u8>) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("ringport-files-{}-{number}", std::process::id()));
    let data = world.dice.bytes(length);
    File::create(&path).and_then(|mut file| file.write_all(&data)).expect("the folder for temporary files takes it");
    let file = File::open(&path).expect("it is there");
    std::fs::remove_file(&path).expect("it is there");
    (Arc::new(file), data)
}

/// 64 MiB from a file, with other data before and behind.
pub fn a_large_file_arrives_between_other_chunks<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let length = world.scaled(64 << 20);
    let (file, data) = file(&mut world, length);
    let wanted = [b"before", &data[..], b"behind"].concat();
    drop(data);
    // Past the harness, which would keep the content once more.
    let log = world.server.log(server);
    log.outbox.push("before");
    log.outbox.push(FileRange::new(file, 0, length));
    log.outbox.push("behind");
    world.server.pump(server);
    let mut count = 0;
    world.until("it arrives", |world| {
        let received = std::mem::take(&mut world.client.log(client).received);
        assert!(wanted[count..].starts_with(&received), "wrong bytes after {count}");
        count += received.len();
        count == wanted.len()
    });
    world.finish();
}

/// Parts of one file at odd places, in odd order and from both sides.
pub fn ranges_and_offsets<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let length = world.scaled(300_000).max(16);
    let (file, data) = file(&mut world, length);
    let mut wanted = Vec::new();
    for _ in 0..12 {
        let from = world.dice.below(length);
        let count = 1 + world.dice.below(length - from);
        wanted.extend_from_slice(&data[from..from + count]);
        world.server.send(server, FileRange::new(Arc::clone(&file), from as u64, count));
        world.client.send(client, FileRange::new(Arc::clone(&file), from as u64, count));
    }
    // The last byte, and nothing at all.
    wanted.push(data[length - 1]);
    for (at, conn) in [(At::Server, server), (At::Client, client)] {
        world.at(at).send(conn, FileRange::new(Arc::clone(&file), 5, 0));
        world.at(at).send(conn, FileRange::new(Arc::clone(&file), length as u64 - 1, 1));
    }
    world.expect(At::Client, client, &wanted);
    world.expect(At::Server, server, &wanted);
    world.finish();
}

/// Files and memory in turn, queued before anything is sent.
pub fn many_files_in_one_queue<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let (file, data) = file(&mut world, 5_000);
    let mut wanted = Vec::new();
    for round in 0..40 {
        let (from, count) = (world.dice.below(4_000), 1 + world.dice.below(1_000));
        let log = world.server.log(server);
        log.outbox.push(FileRange::new(Arc::clone(&file), from as u64, count));
        wanted.extend_from_slice(&data[from..from + count]);
        for number in 0..round % 4 {
            let text = format!("{round}.{number};");
            wanted.extend_from_slice(text.as_bytes());
            log.outbox.push(text);
        }
    }
    world.server.log(server).wanted = wanted.clone();
    world.server.pump(server);
    world.expect(At::Client, client, &wanted);
    world.finish();
}

/// The peer resets in the middle: what it got is how the file begins, and the rest is accounted for.
pub fn a_disconnect_midway_gives_the_rest_back<E: Engine>(setup: &Setup) {
    for ours in [false, true] {
        let mut world = World::<E>::new(setup);
        let (server, client) = world.pair();
        world.client.engine.receive(client, Want::Paused);
        let length = world.scaled(16 << 20);
        let (file, data) = file(&mut world, length);
        world.server.send(server, FileRange::new(file, 0, length));
        world.settle();
        assert!(world.server.log(server).in_flight > 0, "the kernel took all of it");
        if ours {
            world.server.close(server, Close::Abort);
        } else {
            world.client.close(client, Close::Abort);
        }
        world.until_closed(At::Server, server);
        let log = world.server.log(server);
        let end = log.ended.as_ref().expect("it ended");
        assert_eq!(end.why.is_some(), !ours, "{:?}", end.why);
        // That they are the right ones the harness has checked.
        // Where files are read into slots the engine has taken one of them, and the rest was never out of the queue.
        assert!(!end.unsent.is_empty() || !log.outbox.is_empty(), "nothing came back");
        assert!(log.sent as usize + end.unsent.len() <= length);
        check_prefix(&world.client.log(client).received, &data);
        world.finish();
    }
}

/// A file that ends before its range does: the peer gets what there is, the connection closes and says why.
pub fn a_file_that_is_too_short_closes<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let length = world.scaled(200_000);
    let (file, data) = file(&mut world, length);
    world.server.send(server, "it begins:");
    world.server.send(server, FileRange::new(file, 0, length + 500));
    world.server.send(server, "never sent");
    let why = world.until_closed(At::Server, server);
    assert_eq!(why, Some(ErrorKind::UnexpectedEof));
    let wanted = [b"it begins:", &data[..]].concat();
    world.until("the end arrives", |world| world.client.log(client).peer_closed || world.client.is_closed(client));
    let received = &world.client.log(client).received;
    assert!(*received == wanted, "{} of {} bytes", received.len(), wanted.len());
    // Others are not concerned.
    let (server, client) = world.pair();
    world.client.send(client, "well");
    world.expect(At::Server, server, b"well");
    world.finish();
}

/// The FIN comes behind the last byte of the file.
pub fn a_fin_follows_a_file<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let (server, client) = world.pair();
    let length = world.scaled(3 << 20);
    let (file, data) = file(&mut world, length);
    world.server.send(server, FileRange::new(file, 0, length));
    world.until("the engine has it all", |world| world.server.log(server).outbox.is_empty());
    world.server.engine.shutdown_write(server);
    world.until("the FIN arrives", |world| world.client.log(client).peer_closed);
    assert!(world.client.log(client).received == data, "something is missing");
    world.finish();
}

/// While a file goes to one peer, another is answered in between.
pub fn a_large_file_starves_nobody<E: Engine>(setup: &Setup) {
    let mut world = World::<E>::new(setup);
    let pairs = world.pairs(2);
    let ((server, client), (other, asker)) = (pairs[0], pairs[1]);
    world.server.log(other).echo = true;
    let length = world.scaled(32 << 20);
    let (file, _) = file(&mut world, length);
    let log = world.server.log(server);
    log.outbox.push(FileRange::new(file, 0, length));
    world.server.pump(server);
    let mut count = 0;
    for round in 1..=10 {
        world.client.send(asker, "ping");
        world.until("the echo is on its way", |world| {
            count += std::mem::take(&mut world.client.log(client).received).len();
            world.server.log(other).sent == 4 * round
        });
        // Each turn moves a part of the file, and an echo takes some turns.
        let sent = world.server.log(server).sent as usize;
        assert!(setup.sim || round > 2 || sent < length, "echo {round} waited for the file");
    }
    world.until("the file arrives", |world| {
        count += std::mem::take(&mut world.client.log(client).received).len();
        count == length
    });
    world.finish();
}
