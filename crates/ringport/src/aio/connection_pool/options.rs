//! What a pool may hold and for how long, and what it counts.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ringport_engine::SocketOptions;

use super::books::Limits;
use crate::aio::Stream;

/// Options of a [`ConnectionPool`](super::ConnectionPool). All numbers are those of one worker.
#[derive(Clone)]
#[non_exhaustive]
pub struct ConnectionPoolOptions {
    /// Most connections in all, idle, in use, being opened or being closed: 512.
    pub max_connections: usize,
    /// Most of them to one destination: 64.
    pub max_connections_per_destination: usize,
    /// Most calls of [`get`](super::ConnectionPool::get) that may wait for a connection: 4096. More are refused.
    pub max_waiting: usize,
    /// How long [`get`](super::ConnectionPool::get) may take, with waiting, checking and connecting: 30 s.
    pub acquire_timeout: Duration,
    /// A connection that was idle for so long is closed: 90 s. Without end if `None`.
    pub idle_timeout: Option<Duration>,
    /// Options of the sockets.
    pub socket: SocketOptions,
    pub(super) check: Option<HealthCheck>,
}

impl Default for ConnectionPoolOptions {
    fn default() -> Self {
        Self {
            max_connections: 512,
            max_connections_per_destination: 64,
            max_waiting: 4096,
            acquire_timeout: Duration::from_secs(30),
            idle_timeout: Some(Duration::from_secs(90)),
            socket: SocketOptions::default(),
            check: None,
        }
    }
}

impl ConnectionPoolOptions {
    /// Sets the most connections in all, at least one.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Sets the most connections to one destination, at least one.
    #[must_use]
    pub fn max_connections_per_destination(mut self, connections: usize) -> Self {
        self.max_connections_per_destination = connections.max(1);
        self
    }

    /// Sets how many may wait.
    #[must_use]
    pub fn max_waiting(mut self, waiting: usize) -> Self {
        self.max_waiting = waiting;
        self
    }

    /// Sets how long it may take to get a connection.
    #[must_use]
    pub fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Sets or removes the time after which an idle connection is closed.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets the options of the sockets.
    #[must_use]
    pub fn socket(mut self, options: SocketOptions) -> Self {
        self.socket = options;
        self
    }

    /// Has `check` ask a connection whether it still works before it is used again, if it was idle for `after` or longer: a ping
    /// and its answer, for example. A check that fails, takes longer than `within` or leaves bytes unread closes the
    /// connection, and another is taken or opened. Off by default.
    ///
    /// Bytes that came unasked, a FIN and errors are always noticed, also without this.
    #[must_use]
    pub fn health_check<F>(mut self, after: Duration, within: Duration, check: F) -> Self
    where
        F: AsyncFn(&mut Stream) -> io::Result<()> + Send + Sync + 'static,
    {
        self.check = Some(HealthCheck { after, within, check: Arc::new(check) });
        self
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { total: self.max_connections.max(1), per_destination: self.max_connections_per_destination.max(1) }
    }
}

impl fmt::Debug for ConnectionPoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionPoolOptions")
            .field("max_connections", &self.max_connections)
            .field("max_connections_per_destination", &self.max_connections_per_destination)
            .field("max_waiting", &self.max_waiting)
            .field("acquire_timeout", &self.acquire_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("socket", &self.socket)
            .field("health_check_after", &self.check.as_ref().map(|check| check.after))
            .finish()
    }
}

/// How a connection is asked whether it works.
#[derive(Clone)]
pub(super) struct HealthCheck {
    pub(super) after: Duration,
    pub(super) within: Duration,
    pub(super) check: Arc<dyn Check + Send + Sync>,
}

/// An async closure, without its type.
pub(super) trait Check {
    fn run<'a>(&'a self, stream: &'a mut Stream) -> Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;
}

impl<F: AsyncFn(&mut Stream) -> io::Result<()>> Check for F {
    fn run<'a>(&'a self, stream: &'a mut Stream) -> Pin<Box<dyn Future<Output = io::Result<()>> + 'a>> {
        Box::pin(self(stream))
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of a pool, of all workers together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct ConnectionPoolStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl std::ops::AddAssign for ConnectionPoolStats {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

stats! {
    /// Connections now: idle, in use, being opened or being closed.
    open,
    /// Those of them that nobody uses.
    idle,
    /// Those of them that somebody has got, or that are being checked for somebody.
    in_use,
    /// Calls of `get` that wait for one.
    waiting,
    /// Connections opened.
    created,
    /// Times that a connection was used again.
    reused,
    /// Idle connections closed after the idle timeout.
    evicted_idle,
    /// Idle connections closed to make room for another destination.
    evicted_for_room,
    /// Idle connections that were not used again because of a FIN, an error or bytes that nobody had asked for.
    evicted_stale,
    /// Connections that failed the health check.
    evicted_unhealthy,
    /// Connections closed because their exchange was not completed, or left bytes unread.
    discarded,
    /// Calls of `get` refused because too many wait.
    refused_full,
    /// Calls of `get` that took too long.
    refused_timeout,
    /// Calls of `get` whose connect failed.
    refused_connect,
}
