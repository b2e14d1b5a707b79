//! Tests of the buffers. They also run under Miri, which sees what the `unsafe` in them really touches:
//! `cargo +nightly miri test -p ringport-engine --lib buffer`.

use std::collections::VecDeque;
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

/// Eight small slots of 64 bytes and four large ones of 256; low at one free slot of each.
fn small_pool() -> Pool {
    Pool::new(PoolConfig::default().small_slots(8).large_slots(4).slot_bytes(64, 256))
}

/// A lease with `data` in it.
fn filled(pool: &Pool, class: SlotClass, data: &[u8]) -> Buf {
    let mut buf = pool.lease(class).expect("a free slot");
    assert_eq!(buf.append(data), data.len());
    buf
}

/// Address of the first byte of the slot.
fn address(buf: &mut Buf) -> usize {
    buf.raw_memory().0.addr()
}

fn content(queue: &SendQueue) -> Vec<u8> {
    queue.iter().flat_map(|piece| piece.as_slice().to_vec()).collect()
}

#[test]
fn sizes_out_of_range_are_brought_into_it() {
    let pool = Pool::new(PoolConfig::default().small_slots(0).large_slots(0).slot_bytes(1, 100));
    let config = pool.config();
    assert_eq!((config.small_slots, config.large_slots), (4, 2));
    assert_eq!((config.small_slot_bytes, config.large_slot_bytes), (64, 128));
    assert_eq!(pool.stats().free, 6);
}

#[test]
fn slots_are_aligned_apart_and_zeroed() {
    let pool = small_pool();
    let mut all: Vec<_> = std::iter::from_fn(|| pool.lease(SlotClass::Small)).collect();
    assert_eq!(all.len(), 8);
    all.extend(std::iter::from_fn(|| pool.lease(SlotClass::Large)));
    assert_eq!(all.len(), 12);
    let mut ranges: Vec<_> = all.iter_mut().map(|buf| (address(buf), buf.spare())).collect();
    ranges.sort_unstable();
    assert!(ranges[0].0.is_multiple_of(4096), "the region begins with a page");
    assert!(ranges.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "slots overlap: {ranges:?}");
    for (number, buf) in all.iter_mut().enumerate() {
        let size = buf.spare();
        buf.set_filled(size as u32);
        assert!(buf.iter().all(|byte| *byte == 0));
        buf.fill(number as u8);
    }
    for (number, buf) in all.iter().enumerate() {
        assert!(buf.iter().all(|byte| *byte == number as u8), "slot {number} was overwritten");
    }
}

#[test]
fn the_slot_used_last_is_used_next() {
    let pool = small_pool();
    let mut first = pool.lease(SlotClass::Small).unwrap();
    let mut second = pool.lease(SlotClass::Small).unwrap();
    let (one, two) = (address(&mut first), address(&mut second));
    drop(first);
    drop(second);
    assert_eq!(address(&mut pool.lease(SlotClass::Small).unwrap()), two);
    let mut again = pool.lease(SlotClass::Small).unwrap();
    assert_eq!(address(&mut again), two, "it came back on top");
    assert_eq!(address(&mut pool.lease(SlotClass::Small).unwrap()), one);
}

#[test]
fn a_lent_slot_is_neither_free_nor_leased_until_it_is_reclaimed() {
    let pool = small_pool();
    let slot = pool.lend(SlotClass::Small).unwrap();
    let stats = pool.stats();
    assert_eq!((stats.slots, stats.free, stats.lent, stats.leased), (12, 11, 1, 0));
    let (memory, bytes) = pool.slot_memory(slot);
    assert_eq!(bytes, 64);
    // SAFETY: the slot is lent to this test, which plays the kernel, and has that many bytes.
    unsafe { std::ptr::copy_nonoverlapping(b"kernel".as_ptr(), memory, 6) };
    // SAFETY: lent above, once, and not touched any more.
    let buf = unsafe { pool.reclaim(slot, 6) };
    assert_eq!(&buf[..], b"kernel");
    let stats = pool.stats();
    assert_eq!((stats.free, stats.lent, stats.leased), (11, 0, 1));
    drop(buf);
    assert_eq!(pool.stats().free, 12);
}

#[test]
fn lending_stops_when_nothing_is_free() {
    let pool = small_pool();
    let lent: Vec<_> = std::iter::from_fn(|| pool.lend(SlotClass::Large)).collect();
    assert_eq!(lent.len(), 4);
    assert!(pool.lease(SlotClass::Large).is_none());
    assert!(!pool.is_low(SlotClass::Large), "what the kernel holds is there for receiving");
    for slot in lent {
        // SAFETY: lent above, once.
        drop(unsafe { pool.reclaim(slot, 0) });
    }
    assert_eq!(pool.stats().free, 12);
}

#[test]
fn a_buffer_appends_advances_and_truncates() {
    let pool = small_pool();
    let mut buf = pool.lease(SlotClass::Small).unwrap();
    assert!(buf.is_empty() && buf.is_pooled());
    assert_eq!((buf.append(b"hello "), buf.append(b"world"), buf.spare()), (6, 5, 53));
    buf.advance(6);
    assert_eq!(&buf[..], b"world");
    buf[0] = b'W';
    buf.truncate(100);
    assert_eq!(&buf[..], b"World");
    buf.truncate(2);
    assert_eq!((&buf[..], buf.spare()), (&b"Wo"[..], 56));
    assert_eq!(buf.append(&[b'x'; 100]), 56, "as much as fits");
    assert_eq!((buf.len(), buf.spare(), buf.append(b"y")), (58, 0, 0));
    buf.advance(58);
    assert!(buf.is_empty());
}

#[test]
#[should_panic(expected = "cannot advance")]
fn advancing_past_the_end_is_a_mistake() {
    filled(&small_pool(), SlotClass::Small, b"abc").advance(4);
}

#[test]
fn a_copy_lives_outside_every_pool() {
    let mut copy = Buf::copied(b"abc");
    assert!(!copy.is_pooled());
    assert_eq!((copy.spare(), copy.append(b"d")), (0, 0));
    copy.advance(1);
    copy[0] = b'B';
    copy.truncate(1);
    assert_eq!(copy.into_bytes(), Bytes::from_static(b"B"));
    assert!(Buf::copied(b"").is_empty());
}

#[test]
fn bytes_dropped_on_another_thread_come_home() {
    let pool = small_pool();
    let mut buf = filled(&pool, SlotClass::Small, b"a traveller");
    buf.advance(2);
    let bytes = buf.into_bytes();
    let part = bytes.slice(2..5);
    assert_eq!(pool.stats().leased, 1);
    thread::spawn(move || assert_eq!(&bytes[..], b"traveller")).join().unwrap();
    assert_eq!(pool.stats().leased, 1, "a clone is still there");
    thread::spawn(move || assert_eq!(&part[..], b"ave")).join().unwrap();
    assert_eq!(pool.stats().leased, 0);
}

#[test]
fn bytes_outlive_the_pool_and_every_other_lease() {
    let pool = small_pool();
    let bytes = filled(&pool, SlotClass::Large, b"last").into_bytes();
    drop(pool);
    thread::spawn(move || assert_eq!(&bytes[..], b"last")).join().unwrap();
}

#[test]
fn a_buffer_outlives_its_pool() {
    let pool = small_pool();
    let mut buf = filled(&pool, SlotClass::Small, b"ab");
    let copy = pool.clone();
    drop(pool);
    assert_eq!(copy.stats().leased, 1, "a clone is the same pool");
    drop(copy);
    assert_eq!(buf.append(b"c"), 1);
    assert_eq!(&buf[..], b"abc");
    assert_eq!(buf.into_bytes(), Bytes::from_static(b"abc"));
}

#[test]
fn threads_and_the_pool_pass_slots_around() {
    let pool = small_pool();
    let rounds = if cfg!(miri) { 20 } else { 5_000 };
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Bytes>(4);
    let sum = thread::spawn(move || receiver.iter().map(|bytes| bytes.len()).sum::<usize>());
    for round in 0..rounds {
        let buf = loop {
            match pool.lease(SlotClass::Small) {
                Some(mut buf) => break (buf.append(&[round as u8; 10]), buf).1,
                None => thread::yield_now(),
            }
        };
        sender.send(buf.into_bytes()).unwrap();
    }
    drop(sender);
    assert_eq!(sum.join().unwrap(), 10 * rounds);
    assert_eq!(pool.stats().free, 12);
}

#[test]
fn the_last_slots_are_kept_for_receiving() {
    let pool = small_pool();
    let mut held: Vec<_> = std::iter::from_fn(|| pool.writable(64)).collect();
    assert_eq!(held.len(), 7, "one of eight is kept");
    assert!(pool.lease(SlotClass::Small).is_some(), "receiving may have it");
    held.extend(std::iter::from_fn(|| pool.writable(65)));
    assert_eq!(held.len(), 7 + 3);
    assert!(held[7..].iter().all(|buf| buf.spare() == 256));
    assert!(pool.writable(257).is_none(), "larger than any slot");
    held.remove(0);
    assert!(pool.writable(1).is_some());
}

#[test]
fn below_the_low_mark_received_bytes_are_copied() {
    let pool = small_pool();
    let plenty = pool.relieve(filled(&pool, SlotClass::Small, b"in place"), SlotClass::Small);
    assert!(plenty.is_pooled());
    let _held: Vec<_> = std::iter::from_fn(|| pool.writable(64)).collect();
    let relieved = pool.relieve(filled(&pool, SlotClass::Small, b"copied"), SlotClass::Small);
    assert!(!relieved.is_pooled());
    assert_eq!(&relieved[..], b"copied");
    let stats = pool.stats();
    assert_eq!((stats.copies, pool.copies()), (1, 1));
    assert!(pool.lease(SlotClass::Small).is_some(), "its slot is free again");
}

#[test]
fn slots_that_other_threads_gave_back_end_the_shortage() {
    let pool = small_pool();
    let abroad: Vec<_> = std::iter::from_fn(|| pool.writable(64)).map(Buf::into_bytes).collect();
    assert!(pool.is_low(SlotClass::Small));
    thread::spawn(move || drop(abroad)).join().unwrap();
    assert!(!pool.is_low(SlotClass::Small));
    assert!(pool.writable(64).is_some());
    let buf = pool.relieve(filled(&pool, SlotClass::Small, b"in place"), SlotClass::Small);
    assert!(buf.is_pooled());
}

#[test]
fn every_kind_of_chunk_says_the_same() {
    let pool = small_pool();
    let chunks: [Chunk; 7] = [
        filled(&pool, SlotClass::Small, b"data").into(),
        Bytes::from_static(b"data").into(),
        b"data".to_vec().into(),
        String::from("data").into(),
        b"data".as_slice().into(),
        b"data".into(),
        "data".into(),
    ];
    for mut chunk in chunks {
        assert_eq!((chunk.as_slice(), chunk.len(), chunk.is_empty()), (&b"data"[..], 4, false));
        chunk.advance(1);
        assert_eq!(chunk.into_bytes(), Bytes::from_static(b"ata"));
    }
    assert_eq!(pool.stats().leased, 0);
}

#[test]
fn small_writes_become_one_piece() {
    let pool = small_pool();
    let mut queue = SendQueue::new();
    for _ in 0..16 {
        queue.write(b"abcd", &pool);
    }
    assert_eq!((queue.pieces(), queue.bytes(), pool.stats().leased), (1, 64, 1));
    queue.write(b"efgh", &pool);
    assert_eq!((queue.pieces(), queue.bytes(), pool.stats().leased), (2, 68, 2));
    queue.push(&b"static"[..]);
    queue.write(b"ij", &pool);
    assert_eq!(queue.pieces(), 4, "nothing is appended to what is shared");
    queue.write(b"", &pool);
    queue.push(Vec::new());
    assert_eq!(queue.pieces(), 4, "empty pieces are dropped");
    assert_eq!(content(&queue), [b"abcd".repeat(16), b"efghstaticij".to_vec()].concat());
    queue.clear();
    assert_eq!((queue.bytes(), queue.is_empty(), pool.stats().leased), (0, true, 0));
}

#[test]
fn a_write_that_straddles_a_slot_is_split() {
    let pool = small_pool();
    let mut queue = SendQueue::new();
    queue.write(&[1; 60], &pool);
    queue.write(&[2; 10], &pool);
    let lengths: Vec<_> = queue.iter().map(Chunk::len).collect();
    assert_eq!(lengths, [64, 6]);
    queue.write(&[3; 1000], &pool);
    assert_eq!(queue.pieces(), 3, "the rest of the second slot, then memory of its own");
    assert_eq!(queue.bytes(), 1070);
    assert_eq!(content(&queue), [vec![1; 60], vec![2; 10], vec![3; 1000]].concat());
}

#[test]
fn writes_go_on_without_slots() {
    let pool = small_pool();
    let _held: Vec<_> = std::iter::from_fn(|| pool.writable(1)).collect();
    let mut queue = SendQueue::new();
    queue.write(b"no slot", &pool);
    queue.write(b" needed", &pool);
    assert_eq!(content(&queue), b"no slot needed");
    assert!(queue.iter().all(|piece| matches!(piece, Chunk::Buf(buf) if !buf.is_pooled())));
}

#[test]
fn a_burst_does_not_keep_its_room() {
    let mut queue = SendQueue::new();
    for _ in 0..100 {
        queue.push(&b"x"[..]);
    }
    assert_eq!(queue.pieces(), 100);
    queue.consume(100);
    assert!(queue.is_empty() && queue.pop().is_none() && queue.front().is_none());
    queue.push(&b"y"[..]);
    assert_eq!(content(&queue), b"y");
}

#[test]
#[should_panic(expected = "no more than was queued")]
fn consuming_more_than_is_queued_is_a_mistake() {
    let mut queue = SendQueue::new();
    queue.push(&b"abc"[..]);
    queue.consume(4);
}

#[derive(Clone, Debug)]
enum Step {
    PushBytes(Vec<u8>),
    PushSlot(Vec<u8>),
    PushFront(Vec<u8>),
    Write(Vec<u8>),
    Consume(usize),
    Pop,
    /// Takes the first piece, consumes a part of it and puts it back, as a short send does.
    PartOfFirst(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let data = || proptest::collection::vec(any::<u8>(), 0..100);
    prop_oneof![
        1 => data().prop_map(Step::PushBytes),
        1 => data().prop_map(Step::PushSlot),
        1 => data().prop_map(Step::PushFront),
        3 => data().prop_map(Step::Write),
        2 => any::<usize>().prop_map(Step::Consume),
        1 => Just(Step::Pop),
        1 => any::<usize>().prop_map(Step::PartOfFirst),
    ]
}

fn apply(step: Step, queue: &mut SendQueue, model: &mut VecDeque<u8>, pool: &Pool) -> Result<(), TestCaseError> {
    match step {
        Step::PushBytes(data) => {
            model.extend(&data);
            queue.push(data);
        }
        Step::PushSlot(data) => {
            if let Some(mut buf) = pool.writable(data.len()) {
                buf.append(&data);
                model.extend(&data);
                queue.push(buf);
            }
        }
        Step::PushFront(data) => {
            data.iter().rev().for_each(|byte| model.push_front(*byte));
            queue.push_front(data.into());
        }
        Step::Write(data) => {
            model.extend(&data);
            queue.write(&data, pool);
        }
        Step::Consume(count) => {
            let count = count % (model.len() + 1);
            model.drain(..count);
            queue.consume(count);
        }
        Step::Pop => {
            let piece = queue.pop();
            prop_assert_eq!(piece.is_some(), !model.is_empty());
            if let Some(piece) = piece {
                let expected: Vec<_> = model.drain(..piece.len()).collect();
                prop_assert_eq!(piece.as_slice(), expected);
            }
        }
        Step::PartOfFirst(count) => {
            if let Some(mut piece) = queue.pop() {
                let count = count % (piece.len() + 1);
                piece.advance(count);
                model.drain(..count);
                queue.push_front(piece);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 6 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Whatever is pushed, written, popped, consumed and put back: the queue is the same bytes as a plain one.
    #[test]
    fn a_send_queue_is_byte_exact(steps in proptest::collection::vec(step(), 1..60)) {
        let pool = small_pool();
        let (mut queue, mut model) = (SendQueue::new(), VecDeque::new());
        for step in steps {
            apply(step, &mut queue, &mut model, &pool)?;
            prop_assert_eq!(queue.bytes(), model.len() as u64);
            prop_assert_eq!(queue.is_empty(), model.is_empty());
            prop_assert_eq!(queue.pieces(), queue.iter().count());
            prop_assert!(queue.iter().all(|piece| !piece.is_empty()));
            prop_assert!(model == content(&queue), "the bytes differ");
        }
        drop(queue);
        prop_assert_eq!(pool.stats().leased, 0, "every slot came back");
    }
}

#[test]
fn a_buffer_of_its_own_is_filled_up_to_its_capacity() {
    let mut buf = Buf::with_capacity(5);
    assert!(buf.is_empty() && !buf.is_pooled());
    assert_eq!((buf.append(b"abc"), buf.append(b"defg"), buf.spare()), (3, 2, 0));
    assert_eq!(&buf[..], b"abcde");
    assert_eq!(&buf.into_bytes()[..], b"abcde");
}

#[test]
fn copies_are_counted_as_long_as_somebody_holds_them() {
    let pool = small_pool();
    let slots: Vec<Buf> = (0..7).map(|_| filled(&pool, SlotClass::Small, b"held")).collect();
    let mut copy = pool.relieve(filled(&pool, SlotClass::Small, b"copied"), SlotClass::Small);
    assert_eq!((copy.is_pooled(), pool.copied_out_bytes()), (false, 6));
    copy.advance(2);
    copy[0] = b'P';
    let bytes = copy.into_bytes();
    assert_eq!((&bytes[..], pool.copied_out_bytes()), (&b"Pied"[..], 6));
    thread::spawn(move || drop(bytes)).join().expect("the other thread ends");
    assert_eq!(pool.copied_out_bytes(), 0);
    drop(pool.relieve(filled(&pool, SlotClass::Small, b"again"), SlotClass::Small));
    assert_eq!(pool.copied_out_bytes(), 0);
    drop(slots);
}

/// Every connection's queue has a chunk in it.
#[test]
fn a_chunk_is_small() {
    assert!(size_of::<Chunk>() <= 40 && size_of::<Option<Chunk>>() <= 40, "{}", size_of::<Chunk>());
}

/// A file of the test's own, removed from the folder at once.
fn file_with(name: &str, data: &[u8]) -> std::fs::File {
    let path = std::env::temp_dir().join(format!("ringport-buffer-{}-{name}", std::process::id()));
    std::fs::write(&path, data).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

#[test]
#[cfg_attr(miri, ignore = "Miri keeps tests away from the folder of temporary files")]
fn a_file_range_is_read_piece_by_piece() {
    let pool = small_pool();
    let data: Vec<u8> = (0..1000_u32).map(|at| at as u8).collect();
    let mut queue = SendQueue::new();
    queue.push(FileRange::new(file_with("pieces", &data), 100, 700));
    queue.push(&b"behind"[..]);
    queue.push_front(Chunk::from("before"));
    queue.load_front(&pool).unwrap();
    assert_eq!((queue.pieces(), queue.bytes()), (3, 712), "what is no file stays as it is");
    assert!(queue.pop().is_some());
    let mut read = Vec::new();
    while !queue.is_empty() {
        let before = queue.bytes();
        queue.load_front(&pool).unwrap();
        assert_eq!(queue.bytes(), before);
        read.extend_from_slice(queue.pop().unwrap().as_slice());
    }
    assert_eq!(read, [&data[100..800], b"behind"].concat());
    assert_eq!(pool.stats().leased, 0);
}

#[test]
#[cfg_attr(miri, ignore = "Miri keeps tests away from the folder of temporary files")]
fn a_file_that_is_too_short_is_an_error_and_stays_queued() {
    let pool = small_pool();
    let mut queue = SendQueue::new();
    queue.push(FileRange::new(file_with("short", b"0123456789"), 4, 20));
    queue.load_front(&pool).unwrap();
    assert_eq!(queue.pop().unwrap().as_slice(), b"456789");
    assert_eq!(queue.load_front(&pool).unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!((queue.pieces(), queue.bytes(), pool.stats().leased), (1, 14, 0));
}
