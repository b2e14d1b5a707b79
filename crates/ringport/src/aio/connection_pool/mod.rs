//! [`ConnectionPool`]: connections that are used again.
//!
//! The **books** (`books.rs`) say who may have which connection. The **local** part (`local.rs`), one on each worker that uses the
//! pool, does what the books say: it opens, closes and watches connections, and keeps them where they are, on their
//! worker. What other threads and connections have to say comes by the **bell** (`bell.rs`).

mod bell;
mod books;
mod local;
mod options;
mod stream;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::bell::Bell;
pub(super) use self::local::Local;
use self::local::Place;
pub use self::options::{ConnectionPoolOptions, ConnectionPoolStats};
use super::runtime::Runtime;
use super::stream::Stream;
use super::time::timeout;
use crate::address::IntoAddress;

/// Connections to other servers, kept for the next one who needs them.
///
/// ```no_run
/// use ringport::aio::{ConnectionPool, ConnectionPoolOptions};
///
/// async fn ask(pool: &ConnectionPool, question: &'static [u8]) -> std::io::Result<Vec<u8>> {
///     let mut connection = pool.get("127.0.0.1:6628").await?;
///     connection.send(question).await?;
///     let mut answer = vec![0; question.len()];
///     connection.read_exact(&mut answer).await?;
///     // The answer is whole: others may use the connection. Without this it is closed.
///     connection.complete();
///     Ok(answer)
/// }
///
/// # fn main() -> ringport::Result<()> {
/// let pool = ConnectionPool::new(ConnectionPoolOptions::default().max_connections_per_destination(8));
/// ringport::block_on(async move { ask(&pool, b"ping").await.map(drop) })?.ok();
/// # Ok(())
/// # }
/// ```
///
/// A pool may be cloned and sent anywhere. Each worker that uses it has connections of its own, and the limits hold for
/// each worker.
///
/// **Who waits is served in order,** whatever the destination. One is passed over only while its own destination has all the
/// connections that it may have. One that gives up hands its turn on. Where the limit of the whole pool is what is
/// missing, the connection that was idle for longest is closed. A connection counts until it is really gone.
///
/// **Nobody gets a connection that is not clean.** Idle connections are watched: one with a FIN, an error or bytes that nobody
/// asked for is closed at once. Before one is used again all that had reached this machine by then is looked at.
///
/// **An idle pool does nothing.** The worker's timer for the oldest idle connection is all there is.
///
/// Dropping the last clone closes what is idle; what is in use goes on, and is closed instead of coming back.
/// [`Client::run`](crate::Client::run) waits for idle connections as for all others: let the task own the pool, or close it.
#[derive(Clone)]
pub struct ConnectionPool {
    shared: Arc<Shared>,
}

/// What all clones have in common.
struct Shared {
    options: Arc<ConnectionPoolOptions>,
    workers: Mutex<Workers>,
}

#[derive(Default)]
struct Workers {
    bells: Vec<Arc<Bell>>,
    /// Counters of workers that have ended.
    past: ConnectionPoolStats,
    closed: bool,
}

impl Shared {
    fn workers(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ConnectionPool {
    fn default() -> Self {
        Self::new(ConnectionPoolOptions::default())
    }
}

impl ConnectionPool {
    /// A pool without connections.
    #[must_use]
    pub fn new(options: ConnectionPoolOptions) -> Self {
        Self { shared: Arc::new(Shared { options: Arc::new(options), workers: Mutex::default() }) }
    }

    /// A connection to `to`: one that is idle, or a new one, as soon as the limits allow it.
    ///
    /// # Errors
    ///
    /// What the connect failed with; others who wait are not told. `TimedOut` after the acquire timeout, `QuotaExceeded` if too
    /// many wait, `InvalidInput` for text that is no address, `ConnectionAborted` if the pool is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing: its turn passes to the next, an idle connection that it had got stays idle, and one that is
    /// being opened or checked is closed.
    ///
    /// # Panics
    ///
    /// Outside of a worker's thread.
    pub async fn get(&self, to: impl IntoAddress) -> io::Result<PooledStream> {
        let to = to.into_address().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let local = self.local();
        match timeout(self.shared.options.acquire_timeout, local.acquire(&to)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                local.count(|stats| stats.refused_timeout += 1);
                Err(io::Error::new(io::ErrorKind::TimedOut, "no connection within the acquire timeout"))
            }
        }
    }

    /// Closes what is idle, on all workers. Whoever waits, and whoever asks from now on, gets an error. What is in use goes
    /// on, and is closed instead of coming back.
    pub fn close(&self) {
        let mut workers = self.shared.workers();
        workers.closed = true;
        workers.bells.iter().for_each(|bell| bell.close());
    }

    /// Counters, of all workers together.
    #[must_use]
    pub fn stats(&self) -> ConnectionPoolStats {
        let workers = self.shared.workers();
        let mut stats = workers.past;
        workers.bells.iter().for_each(|bell| stats += bell.stats());
        stats
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &ConnectionPoolOptions {
        &self.shared.options
    }

    /// The part of this pool that lies on this worker.
    fn local(&self) -> Rc<Local> {
        let runtime = Runtime::current("ConnectionPool::get");
        let mut pools = runtime.pools.borrow_mut();
        if let Some(local) = pools.iter().find(|local| local.belongs_to(&self.shared)) {
            return Rc::clone(local);
        }
        pools.retain(|local| !local.is_orphan());
        let bell = Arc::new(Bell::default());
        let mut workers = self.shared.workers();
        if workers.closed {
            bell.close();
        }
        workers.bells.push(Arc::clone(&bell));
        let local = Rc::new(Local::new(&runtime, &self.shared, bell));
        pools.push(Rc::clone(&local));
        local
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.workers().bells.iter().for_each(|bell| bell.close());
    }
}

impl fmt::Debug for ConnectionPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPool").field("options", &self.shared.options).field("stats", &self.stats()).finish()
    }
}

/// A connection out of a [`ConnectionPool`]. It is a [`Stream`], and goes back with [`Self::complete`].
///
/// Dropping it without that closes the connection in order, in the background, since nobody knows what of the exchange is
/// still to come. Its place in the pool is free when the connection is gone.
pub struct PooledStream {
    /// Taken out where it leaves.
    stream: Option<Stream>,
    place: Option<Place>,
    /// Since when it was idle, while nothing was done with it yet: it can go back as it is.
    idle_since: Option<Instant>,
    reused: bool,
}

impl PooledStream {
    /// The exchange is complete: the whole answer was read, and the next user may begin. Bytes that were sent and are still
    /// queued leave all the same. If the connection is not clean, because bytes lie unread, or one of the two sides has closed,
    /// it is closed instead; the answer says whether it is kept.
    pub fn complete(mut self) -> bool {
        let (Some(stream), Some(place)) = (self.stream.take(), self.place.take()) else { return false };
        let now = place.local().now();
        place.give_back(stream, now)
    }

    /// Takes the connection out of the pool for good. It no longer counts.
    #[must_use]
    pub fn detach(mut self) -> Stream {
        let stream = self.stream.take();
        drop(self);
        stream.expect("only what consumes it takes the stream")
    }

    /// Whether somebody has used the connection before.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    fn stream(&self) -> &Stream {
        self.stream.as_ref().expect("only what consumes it takes the stream")
    }

    fn stream_mut(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("only what consumes it takes the stream")
    }

    /// Closes it, so that another one can take its place.
    fn discard(mut self) {
        if let (Some(stream), Some(mut place)) = (self.stream.take(), self.place.take()) {
            place.will_close();
            place.close(stream);
        }
    }
}

impl Deref for PooledStream {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        self.stream()
    }
}

impl DerefMut for PooledStream {
    fn deref_mut(&mut self) -> &mut Stream {
        self.stream_mut()
    }
}

impl Drop for PooledStream {
    fn drop(&mut self) {
        let (Some(stream), Some(place)) = (self.stream.take(), self.place.take()) else { return };
        if let Some(since) = self.idle_since {
            place.give_back(stream, since);
        } else {
            place.local().count(|stats| stats.discarded += 1);
            place.close(stream);
        }
    }
}

impl fmt::Debug for PooledStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledStream").field("stream", &self.stream).field("reused", &self.reused).finish()
    }
}
