//! [`Client`]: connections to somewhere, run by the same handlers and workers as a server's.

use std::io;
use std::time::Duration;

use ringport_engine::{EngineConfig, EngineKind, PoolConfig, SocketOptions};

use crate::address::IntoAddress;
use crate::aio;
use crate::common::common_options;
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::plan::{Plan, Role, Running, ServiceSpec};
use crate::session::ConnectionOptions;
use crate::worker::factory;

/// Opens connections and runs until the last of them has ended.
#[must_use = "a client does nothing until it is started"]
pub struct Client {
    plan: Plan,
    error: Option<Error>,
}

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client without connections: one worker, the best engine.
    pub fn new() -> Self {
        Self { plan: Plan::new(true), error: None }
    }

    /// Opens `connections` connections to `address`, spread evenly over the workers. May be called several times.
    ///
    /// A host name is looked up when the client runs, on a thread of its own. If it has several addresses, or several are
    /// given (`Vec<SocketAddr>`), each connection goes to the one that answers first: they are tried in turn, 250 ms apart or
    /// as soon as one fails, alternating between IPv6 and IPv4 (RFC 8305). Only when all have failed is
    /// [`Handler::connect_failed`] called, with the last error.
    pub fn connect<H: Handler>(
        self,
        address: impl IntoAddress,
        connections: usize,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        let options = ConnectionOptions::default().rest_when_full(false);
        self.connect_with(address, connections, SocketOptions::default(), options, make)
    }

    /// Opens connections with options.
    pub fn connect_with<H: Handler>(
        mut self,
        address: impl IntoAddress,
        connections: usize,
        socket: SocketOptions,
        options: ConnectionOptions,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        match address.into_destination() {
            Ok(to) => self.plan.services.push(ServiceSpec {
                factory: factory(make),
                options,
                role: Role::Connect { to, connections, options: socket },
            }),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Runs a task on each worker, which may [`connect`](crate::aio::connect). The client ends when its tasks have ended
    /// and their connections, too.
    pub fn task<F>(mut self, task: F) -> Self
    where
        F: AsyncFn() -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        self.plan.services.push(ServiceSpec {
            factory: aio::running(task),
            options: ConnectionOptions::default(),
            role: Role::Task,
        });
        self
    }

    common_options!();

    /// Starts the workers on threads of their own; they begin to connect.
    ///
    /// # Errors
    ///
    /// If an address does not parse, an option makes no sense, or no engine works. A connect that fails is no error
    /// here: [`Handler::connect_failed`] hears of it.
    pub fn start(self) -> Result<Running> {
        self.into_plan()?.prepare()?.start()
    }

    /// Runs until the last connection has ended.
    ///
    /// # Errors
    ///
    /// As [`Client::start`], and if an engine fails.
    pub fn run(self) -> Result<()> {
        self.start()?.join()
    }

    pub(crate) fn into_plan(self) -> Result<Plan> {
        self.error.map_or(Ok(self.plan), Err)
    }
}
