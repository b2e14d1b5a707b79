//! async/await over the same core: streams, listeners, tasks and time on a worker.
//!
//! ```no_run
//! use ringport::aio::Stream;
//!
//! fn main() -> ringport::Result<()> {
//!     ringport::serve("127.0.0.1:6628", async |mut stream: Stream| {
//!         while let Some(data) = stream.recv().await? {
//!             stream.send(data).await?;
//!         }
//!         Ok(())
//!     })
//! }
//! ```
//!
//! # The model
//!
//! ```text
//!             Event ─► Worker ─► inbox ─┐            the fast path: the event polls the task
//!                        ▲              ▼            that waits for it, in place, without a
//!   kernel               │            poll ◄──────── queue and without a wake-up
//!                        │              │
//!             Engine ◄─ settle ◄─── outbox, finish, close …     left by the poll, carried out after it
//!
//!   a wake of the same worker ───► ready list ─► polled within the budget of this turn or the next
//!   a wake of another thread ────► woken list ─► (one letter in the mailbox ends the worker's sleep)
//! ```
//!
//! A task is a future in a slot of its worker; it stays there for life and ends with it. The worker polls a task when an
//! event comes that the task waits for, when it was woken, and at its start. A task may own several streams and spawn
//! others. Its wakers are `Send + Sync`, and harmless when the task has ended.
//!
//! **Futures own nothing that the kernel works on.** What arrives lies in the inbox of its stream, what is sent in the queue
//! of its connection. So any future may be dropped at any moment, in a [`timeout`] or in a `select!`, and nothing is lost;
//! each method says what is then true. The inbox is bounded (64 KiB): beyond, reading pauses, and so at last does the peer.
//! `send` waits while more than the high mark is queued.
//!
//! **A stream that is dropped closes in order,** in the background. A task that panics ends itself: its connections are
//! aborted, and all others go on.
//!
//! Streams stay on their worker. Other threads and other runtimes get at one through a
//! [`RemoteStream`](remote::RemoteStream), which is `Send`.

mod bridge;
mod cell;
pub mod compat;
mod connection_pool;
mod datagram;
mod inbox;
mod listener;
pub mod remote;
mod runtime;
mod service;
mod stream;
mod task;
mod time;

use std::future::{Future, poll_fn};
use std::io;
use std::task::Poll;

pub use connection_pool::{ConnectionPool, ConnectionPoolOptions, ConnectionPoolStats, PooledStream};
pub use datagram::{DatagramReceiver, DatagramSender, DatagramSocket};
pub use listener::{Listener, connect, connect_with};
pub use stream::{OwnedReader, OwnedWriter, RecvFuture, SendFuture, Stream};
pub use task::{JoinError, JoinHandle};
pub use time::{Elapsed, Interval, Sleep, interval, now, sleep, sleep_until, timeout};

pub(crate) use cell::{StreamCell, Todo};
pub(crate) use datagram::{DatagramCell, receiving, serving as serving_datagrams};
pub(crate) use listener::ListenerCell;
pub(crate) use runtime::{Request, Runtime};
pub(crate) use service::{Streams, running, serving};
pub(crate) use time::SleepTimer;

use crate::address::IntoAddress;
use crate::error::Result;
use crate::server::Server;

/// Serves `address` with a task for each connection, on one worker on this thread, until it is shut down. More is set with
/// [`Server::listen_async`].
///
/// # Errors
///
/// As [`Server::run`].
pub fn serve<F>(address: impl IntoAddress, serve: F) -> Result<()>
where
    F: AsyncFn(Stream) -> io::Result<()> + Clone + Send + Sync + 'static,
{
    Server::new().listen_async(address, serve).run()
}

/// Runs `future` to its end on a worker on this thread, then ends what it spawned. More is set with
/// [`Server::block_on`].
///
/// # Errors
///
/// If no engine works, or the engine fails.
///
/// # Panics
///
/// If `future` does.
pub fn block_on<T: 'static>(future: impl Future<Output = T> + 'static) -> Result<T> {
    Server::new().block_on(future)
}

/// Runs `future` as a task of its own on this worker. It ends with the worker, if not before.
///
/// # Panics
///
/// Outside of a worker's thread.
pub fn spawn<T: 'static>(future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
    task::spawn_on(&Runtime::current("spawn"), future)
}

/// The buffers of this worker, to fill one that is sent without a copy.
///
/// # Panics
///
/// Outside of a worker's thread.
#[must_use]
pub fn pool() -> ringport_engine::Pool {
    Runtime::current("pool").pool.clone()
}

/// Lets all else that is ready have its turn, I/O included.
///
/// # Cancel safety
///
/// Dropping it changes nothing.
pub async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs `future` on `runtime` as the one that ends everything else.
pub(crate) fn start_main<T: 'static>(
    runtime: &std::rc::Rc<Runtime>,
    future: impl Future<Output = T> + 'static,
    done: impl FnOnce(std::result::Result<T, JoinError>) + 'static,
) {
    let main = task::spawn_on(runtime, future);
    let ending = std::rc::Rc::clone(runtime);
    runtime.start(Box::pin(async move {
        let result = main.await;
        done(result);
        ending.cancel_all();
    }));
}
