//! What a user is warned of.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringport::aio::{DatagramSocket, Listener, sleep};
use ringport::{Client, Faults, Server, Simulation};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

/// Counts the warnings of this thread.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// How many warnings a server causes that is shut down after a second.
fn warnings_of(server: Server) -> usize {
    let warnings = Warnings::default();
    tracing::subscriber::with_default(warnings.clone(), || {
        let mut simulation = Simulation::new(1, Faults::none());
        let handle = simulation.serve(server).expect("it starts");
        let client = Client::new().task(async move || {
            sleep(Duration::from_secs(1)).await;
            handle.shutdown(Duration::ZERO);
            Ok(())
        });
        simulation.connect(client).expect("it starts");
        assert!(!simulation.run_until(|| false).expect("nothing fails"), "all has ended");
    });
    warnings.0.load(Ordering::SeqCst)
}

#[test]
fn tasks_that_end_with_their_worker_are_nothing_to_warn_of() {
    let server = Server::new()
        .task(async || {
            let mut listener = Listener::bind("127.0.0.1:1000")?;
            loop {
                listener.accept().await?;
            }
        })
        .udp_async("127.0.0.1:1001", async |mut socket: DatagramSocket| {
            loop {
                socket.recv_from().await?;
            }
        });
    assert_eq!(warnings_of(server), 0);
}

#[test]
fn tasks_that_fail_before_are_warned_of() {
    let server = Server::new()
        .task(async || Err(io::Error::other("the first")))
        .udp_async("127.0.0.1:1001", async |_: DatagramSocket| Err(io::Error::other("the second")));
    assert_eq!(warnings_of(server), 2);
}
