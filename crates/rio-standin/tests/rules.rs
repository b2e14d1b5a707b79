//! Each rule of the model is kept, and each breach is found.

use proptest::prelude::*;
use rio_standin::rules::{
    ALREADY, Answer, COMMIT_ONLY, DEFER, DONT_NOTIFY, Direction, INVALID, InUse, No, Notification, Post, Rules, Slice,
    WAITALL,
};

/// A completion queue, a request queue of two receives and two sends, and a buffer of 100 bytes.
struct Stage {
    rules: Rules,
    completions: isize,
    queue: isize,
    buffer: isize,
}

impl Stage {
    fn new() -> Self {
        Self::with(Some(Notification::Port { overlapped: 8 }))
    }

    fn with(notification: Option<Notification>) -> Self {
        let mut rules = Rules::new();
        let completions = rules.create_completion_queue(4, notification).unwrap();
        let queue = rules.create_request_queue(7, true, 2, 2, (1, 1), completions, completions, 70).unwrap();
        let buffer = rules.register(100).unwrap();
        Self { rules, completions, queue, buffer }
    }

    fn send(&mut self, offset: u32, length: u32, flags: u32) -> Answer<Vec<u64>> {
        self.post(Direction::Send, offset, length, flags)
    }

    fn post(&mut self, direction: Direction, offset: u32, length: u32, flags: u32) -> Answer<Vec<u64>> {
        let data = Some(Slice { buffer: self.buffer, offset, length });
        let post = Post { data, count: 1, flags, context: u64::from(offset), ..Post::default() };
        let started = self.rules.post(self.queue, direction, post)?;
        Ok(started.into_iter().map(|started| started.request).collect())
    }
}

#[track_caller]
fn breaks<T: std::fmt::Debug>(answer: Answer<T>, about: &str) {
    match answer {
        Err(No::Breach(message)) => assert!(message.contains(about), "{message:?} is not about {about:?}"),
        other => panic!("{other:?} is no breach"),
    }
}

#[test]
fn a_request_has_exactly_one_buffer() {
    let mut stage = Stage::new();
    let data = Some(Slice { buffer: stage.buffer, offset: 0, length: 1 });
    for post in [Post { data, count: 2, ..Post::default() }, Post { data, ..Post::default() }, Post::default()] {
        breaks(stage.rules.post(stage.queue, Direction::Send, post), "not exactly 1");
    }
    let Stage { rules, completions, .. } = &mut stage;
    breaks(rules.create_request_queue(8, true, 1, 1, (1, 2), *completions, *completions, 0), "data buffers");
}

#[test]
fn a_slice_lies_inside_its_buffer() {
    let mut stage = Stage::new();
    assert!(stage.send(99, 1, 0).is_ok());
    for (offset, length) in [(0, 101), (100, 1), (u32::MAX, u32::MAX), (0, 0)] {
        breaks(stage.send(offset, length, 0), "inside its buffer");
    }
    stage.buffer += 1;
    breaks(stage.send(0, 1, 0), "unknown buffer");
}

#[test]
fn slices_in_flight_never_overlap() {
    let mut stage = Stage::new();
    let first = stage.post(Direction::Receive, 10, 10, 0).unwrap();
    for (offset, length) in [(10, 10), (0, 11), (19, 5), (12, 2), (0, 100)] {
        breaks(stage.send(offset, length, 0), "overlap");
    }
    assert!(stage.send(0, 10, 0).is_ok() && stage.send(20, 10, 0).is_ok());
    // Completed is not enough: the slice is the system's until the completion was dequeued.
    stage.rules.complete(first[0], 0, 10).unwrap();
    breaks(stage.post(Direction::Receive, 15, 1, 0), "overlap");
    assert_eq!(stage.rules.dequeue(stage.completions, 1).unwrap().len(), 1);
    assert!(stage.post(Direction::Receive, 15, 1, 0).is_ok());
}

#[test]
fn request_queues_are_charged_to_the_completion_queue() {
    let mut stage = Stage::new();
    let (cq, queue) = (stage.completions, stage.queue);
    let rules = &mut stage.rules;
    breaks(rules.create_request_queue(8, true, 1, 0, (1, 1), cq, cq, 0), "resize it first");
    rules.resize_completion_queue(cq, 5).unwrap();
    assert!(rules.create_request_queue(8, true, 1, 0, (1, 1), cq, cq, 0).is_ok());
    breaks(rules.resize_request_queue(queue, 3, 2), "resize it first");
    assert_eq!(rules.resize_completion_queue(cq, 4), Err(No::Error(INVALID)), "shrinking below use");
    rules.resize_request_queue(queue, 1, 2).unwrap();
    rules.resize_completion_queue(cq, 4).unwrap();
    breaks(rules.create_request_queue(9, true, 1, 1, (1, 1), cq + 1, cq + 1, 0), "unknown completion queue");
}

#[test]
fn a_closed_socket_is_charged_until_its_last_completion() {
    let mut stage = Stage::new();
    let request = stage.send(0, 1, 0).unwrap()[0];
    let cq = stage.completions;
    assert!(stage.rules.socket_closed(stage.queue).is_empty());
    breaks(stage.send(5, 1, 0), "socket is closed");
    breaks(stage.rules.create_request_queue(8, true, 1, 0, (1, 1), cq, cq, 0), "resize it first");
    stage.rules.complete(request, 995, 0).unwrap();
    breaks(stage.rules.create_request_queue(8, true, 1, 0, (1, 1), cq, cq, 0), "resize it first");
    let completion = stage.rules.dequeue(cq, 10).unwrap()[0];
    assert_eq!((completion.status, completion.socket_context, completion.request_context), (995, 70, 0));
    assert!(stage.rules.create_request_queue(8, true, 2, 2, (1, 1), cq, cq, 0).is_ok());
}

#[test]
fn quota_comes_back_only_with_the_completion() {
    let mut stage = Stage::new();
    let first = stage.send(0, 1, 0).unwrap()[0];
    // A deferred request counts, too.
    assert!(stage.send(1, 1, DEFER).unwrap().is_empty());
    breaks(stage.send(2, 1, 0), "overflows");
    stage.rules.complete(first, 0, 1).unwrap();
    breaks(stage.send(2, 1, 0), "overflows");
    stage.rules.dequeue(stage.completions, 1).unwrap();
    assert_eq!(stage.send(2, 1, 0).unwrap().len(), 2, "the deferred one starts, too");
    assert_eq!(stage.rules.resize_request_queue(stage.queue, 2, 1), Err(No::Error(INVALID)));
}

#[test]
fn deferred_requests_wait_for_one_of_their_kind_or_a_commit() {
    let mut stage = Stage::new();
    assert!(stage.send(0, 1, DEFER).unwrap().is_empty());
    assert_eq!(stage.post(Direction::Receive, 1, 1, WAITALL).unwrap().len(), 1, "a receive starts receives");
    let commit = Post { flags: COMMIT_ONLY, ..Post::default() };
    assert_eq!(stage.rules.post(stage.queue, Direction::Send, commit).unwrap().len(), 1);
    assert!(stage.rules.post(stage.queue, Direction::Send, commit).unwrap().is_empty());
}

#[test]
fn a_commit_has_no_other_argument() {
    let mut stage = Stage::new();
    let data = Some(Slice { buffer: stage.buffer, offset: 0, length: 1 });
    let commit = Post { flags: COMMIT_ONLY, ..Post::default() };
    let wrong = [
        Post { data, ..commit },
        Post { count: 1, ..commit },
        Post { context: 1, ..commit },
        Post { flags: COMMIT_ONLY | DEFER, ..commit },
    ];
    for post in wrong {
        breaks(stage.rules.post(stage.queue, Direction::Send, post), "commit has other arguments");
    }
    breaks(stage.send(0, 1, WAITALL), "flags");
    breaks(stage.send(0, 1, 16), "flags");
}

#[test]
fn a_notice_comes_once() {
    let mut stage = Stage::new();
    let cq = stage.completions;
    assert_eq!(stage.rules.notify(cq), Ok(false));
    assert_eq!(stage.rules.notify(cq), Err(No::Error(ALREADY)));
    let first = stage.send(0, 1, 0).unwrap()[0];
    let second = stage.send(1, 1, 0).unwrap()[0];
    assert_eq!(stage.rules.complete(first, 0, 1), Ok(Some(cq)));
    assert_eq!(stage.rules.complete(second, 0, 1), Ok(None), "one notice, one call");
    assert_eq!(stage.rules.notify(cq), Ok(true), "at once, as there is something");
    stage.rules.dequeue(cq, 10).unwrap();
    assert_eq!(stage.rules.notify(cq), Ok(false));
}

#[test]
fn entries_that_do_not_notify_count_as_none() {
    let mut stage = Stage::new();
    let cq = stage.completions;
    let silent = stage.send(0, 1, DONT_NOTIFY).unwrap()[0];
    let loud = stage.send(1, 1, 0).unwrap()[0];
    stage.rules.complete(silent, 0, 1).unwrap();
    assert_eq!(stage.rules.notify(cq), Ok(false), "not for a silent entry alone");
    assert_eq!(stage.rules.complete(loud, 0, 1), Ok(Some(cq)));
    let mut stage = Stage::with(None);
    assert_eq!(stage.rules.notify(stage.completions), Err(No::Error(INVALID)), "there is no way to notify");
}

#[test]
fn each_completion_queue_has_an_overlapped_of_its_own() {
    let mut stage = Stage::new();
    let port = |overlapped| Some(Notification::Port { overlapped });
    breaks(stage.rules.create_completion_queue(1, port(8)), "share one OVERLAPPED");
    breaks(stage.rules.create_completion_queue(1, port(0)), "no OVERLAPPED");
    assert!(stage.rules.create_completion_queue(1, port(16)).is_ok());
    stage.rules.close_completion_queue(stage.completions).unwrap();
    assert!(stage.rules.create_completion_queue(1, port(8)).is_ok());
}

#[test]
fn a_closed_completion_queue_drops_what_comes_later() {
    let mut stage = Stage::new();
    let request = stage.send(0, 1, 0).unwrap()[0];
    stage.rules.close_completion_queue(stage.completions).unwrap();
    assert_eq!(stage.rules.complete(request, 0, 1), Ok(None));
    assert!(stage.rules.deregister(stage.buffer).is_ok(), "nobody uses it any more");
    breaks(stage.rules.dequeue(stage.completions, 1), "unknown completion queue");
    breaks(stage.rules.notify(stage.completions), "unknown completion queue");
    breaks(stage.rules.close_completion_queue(stage.completions), "unknown completion queue");
}

#[test]
fn datagrams_have_rules_of_their_own() {
    let mut stage = Stage::new();
    let Stage { rules, completions, .. } = &mut stage;
    rules.resize_completion_queue(*completions, 20).unwrap();
    let queue = rules.create_request_queue(8, true, 4, 4, (1, 1), *completions, *completions, 0).unwrap();
    rules.is_for_datagrams(queue);
    let slice = |offset, length| Slice { buffer: stage.buffer, offset, length };
    let (data, address, short) = (Some(slice(0, 10)), [slice(20, 28)], [slice(20, 16)]);
    let whole = Post { data, count: 1, addresses: &address, ..Post::default() };
    let mut post = |direction, post| stage.rules.post(queue, direction, post);
    breaks(post(Direction::Send, Post { count: 0, ..whole }), "data buffers");
    breaks(post(Direction::Send, Post { count: 2, ..whole }), "data buffers");
    breaks(post(Direction::Receive, Post { data: None, ..whole }), "data buffers");
    breaks(post(Direction::Receive, Post { flags: WAITALL, ..whole }), "buffer is full");
    breaks(post(Direction::Send, Post { addresses: &[], ..whole }), "to nobody");
    breaks(post(Direction::Receive, Post { addresses: &short, ..whole }), "SOCKADDR_INET");
    let empty = Post { data: None, count: 0, ..whole };
    let started = post(Direction::Send, empty).unwrap()[0];
    assert_eq!((started.data, started.address), (None, Some(address[0])));
    breaks(post(Direction::Receive, whole), "overlap");
    stage.rules.complete(started.request, 0, 0).unwrap();
    stage.rules.dequeue(stage.completions, 1).unwrap();
    assert_eq!(stage.rules.post(queue, Direction::Receive, whole).unwrap()[0].data, data);
    breaks(stage.post(Direction::Send, 90, 0, 0), "inside its buffer");
}

#[test]
fn a_buffer_in_use_stays_registered() {
    let mut stage = Stage::new();
    let request = stage.send(0, 1, 0).unwrap()[0];
    breaks(stage.rules.deregister(stage.buffer), "while a request uses it");
    stage.rules.complete(request, 0, 1).unwrap();
    breaks(stage.rules.deregister(stage.buffer), "while a request uses it");
    stage.rules.dequeue(stage.completions, 1).unwrap();
    stage.rules.deregister(stage.buffer).unwrap();
    breaks(stage.rules.deregister(stage.buffer), "unknown buffer");
    assert_eq!(stage.rules.register(0), Err(No::Error(INVALID)));
}

#[test]
fn a_socket_is_created_for_it_and_has_one_request_queue() {
    let mut stage = Stage::new();
    let cq = stage.completions;
    stage.rules.resize_completion_queue(cq, 20).unwrap();
    breaks(stage.rules.create_request_queue(8, false, 1, 1, (1, 1), cq, cq, 0), "created for Registered I/O");
    breaks(stage.rules.create_request_queue(7, true, 1, 1, (1, 1), cq, cq, 0), "request queue already");
    assert_eq!(stage.rules.create_request_queue(8, true, 0, 0, (1, 1), cq, cq, 0), Err(No::Error(INVALID)));
    // The number of a closed socket may come again.
    stage.rules.socket_closed(stage.queue);
    assert!(stage.rules.create_request_queue(7, true, 1, 1, (1, 1), cq, cq, 0).is_ok());
}

#[test]
fn sizes_have_bounds() {
    let mut rules = Rules::new();
    for size in [0, 0x0800_0001] {
        assert_eq!(rules.create_completion_queue(size, None), Err(No::Error(INVALID)));
    }
    let cq = rules.create_completion_queue(0x0800_0000, None).unwrap();
    assert_eq!(rules.resize_completion_queue(cq, 0), Err(No::Error(INVALID)));
    breaks(rules.dequeue(cq, 0), "without room");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Who keeps the rules is never refused, and in the end nothing is left.
    #[test]
    fn keeping_the_rules_leaves_nothing_behind(steps in proptest::collection::vec((0..6_u8, any::<u32>()), 0..200)) {
        let mut stage = Stage::new();
        let (mut started, mut used, mut posts) = (Vec::new(), 0, 0);
        for (step, pick) in steps {
            match step {
                0..=2 if used < 2 => {
                    let flags = if step == 2 { DEFER } else { 0 };
                    posts += 1;
                    started.extend(stage.send(posts % 100, 1, flags).unwrap());
                    used += 1;
                }
                3 | 4 if !started.is_empty() => {
                    let request = started.swap_remove(pick as usize % started.len());
                    stage.rules.complete(request, 0, 1).unwrap();
                }
                _ => {
                    used -= stage.rules.dequeue(stage.completions, 1 + pick as usize % 3).unwrap().len();
                }
            }
        }
        started.extend(stage.rules.socket_closed(stage.queue));
        for request in started {
            stage.rules.complete(request, 995, 0).unwrap();
        }
        stage.rules.dequeue(stage.completions, 100).unwrap();
        stage.rules.deregister(stage.buffer).unwrap();
        prop_assert_eq!(stage.rules.in_use(), InUse { completion_queues: 1, ..InUse::default() });
    }
}
