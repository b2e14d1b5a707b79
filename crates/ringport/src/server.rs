//! [`Server`]: listeners with their handlers, and the workers that run them.

use std::future::Future;
use std::io;
use std::time::Duration;

use ringport_engine::{EngineConfig, EngineKind, ListenOptions, PoolConfig, UdpOptions};

use crate::address::{Address, IntoAddress};
use crate::aio::{self, DatagramSocket, Stream, serving_datagrams};
use crate::common::common_options;
use crate::datagram::{DatagramHandler, DatagramOptions};
use crate::error::{Error, Result};
use crate::handler::Handler;
use crate::plan::{DatagramSpec, Plan, Role, Running, ServiceSpec, Spread};
use crate::session::{ConnectionOptions, Rate};
use crate::worker::{DatagramFactory, datagram_factory, factory};

/// Builds and runs a server.
///
/// ```
/// use std::io::{Read, Write};
/// use std::time::Duration;
/// use ringport::{Address, Buf, Connection, Handler, Server};
///
/// struct Echo;
/// impl Handler for Echo {
///     type State = ();
///     fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
///         conn.send(data);
///     }
/// }
///
/// let server = Server::new().workers(2).listen("127.0.0.1:0", || Echo).start()?;
/// let Address::Ip(address) = server.addresses()[0] else { unreachable!("it listens on TCP") };
/// let mut peer = std::net::TcpStream::connect(address).unwrap();
/// peer.write_all(b"hello").unwrap();
/// let mut answer = [0; 5];
/// peer.read_exact(&mut answer).unwrap();
/// assert_eq!(&answer, b"hello");
/// drop(peer);
/// server.handle().shutdown(Duration::from_secs(1));
/// server.join()?;
/// # Ok::<(), ringport::Error>(())
/// ```
#[must_use = "a server does nothing until it is run"]
pub struct Server {
    plan: Plan,
    /// The first thing that was wrong with an option; reported when the server starts.
    error: Option<Error>,
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Server {
    /// A server without listeners: one worker, the best engine, every limit on.
    pub fn new() -> Self {
        Self { plan: Plan::new(false), error: None }
    }

    /// Listens on `address`; each worker gets a handler from `make`. May be called several times.
    pub fn listen<H: Handler>(self, address: impl IntoAddress, make: impl Fn() -> H + Send + Sync + 'static) -> Self {
        self.listen_with(address, ListenOptions::default(), ConnectionOptions::default(), make)
    }

    /// Listens on `address` with options of the socket and of its connections.
    pub fn listen_with<H: Handler>(
        mut self,
        address: impl IntoAddress,
        socket: ListenOptions,
        options: ConnectionOptions,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        match address.into_address() {
            Ok(address) => self.plan.services.push(ServiceSpec {
                factory: factory(make),
                options,
                role: Role::Listen(address, socket),
            }),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Serves datagrams on `address`, which may have the port of a listener; each worker gets a handler from `make`. May be
    /// called several times.
    pub fn udp<H: DatagramHandler>(
        self,
        address: impl IntoAddress,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        self.udp_with(address, DatagramOptions::default(), make)
    }

    /// Serves datagrams on `address` with options of the socket and its peers.
    pub fn udp_with<H: DatagramHandler>(
        self,
        address: impl IntoAddress,
        options: DatagramOptions,
        make: impl Fn() -> H + Send + Sync + 'static,
    ) -> Self {
        self.add_datagrams(address, options, datagram_factory(make))
    }

    /// Serves datagrams (UDP) on `address` with a task on each worker, which ends the socket of its worker when it ends.
    pub fn udp_async<F>(self, address: impl IntoAddress, serve: F) -> Self
    where
        F: AsyncFn(DatagramSocket) -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        self.udp_async_with(address, UdpOptions::default(), serve)
    }

    /// Serves datagrams with a task on each worker, with options of the socket.
    pub fn udp_async_with<F>(self, address: impl IntoAddress, socket: UdpOptions, serve: F) -> Self
    where
        F: AsyncFn(DatagramSocket) -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        // A task keeps what it wants to know of its peers itself.
        let mut options = DatagramOptions::default().peers(0, None);
        options.socket = socket;
        self.add_datagrams(address, options, serving_datagrams(serve))
    }

    fn add_datagrams(mut self, address: impl IntoAddress, options: DatagramOptions, factory: DatagramFactory) -> Self {
        let address = address.into_address().and_then(|address| match address {
            Address::Ip(address) => Ok(address),
            Address::Unix(path) => Err(Error::Address {
                text: format!("unix:{}", path.display()),
                why: "datagrams need an IP address".into(),
            }),
        });
        match address {
            Ok(address) => {
                self.plan.datagrams.push(DatagramSpec { factory, options, address });
            }
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Listens on `address` with a task for each connection: `serve` gets its [`Stream`]. May be called several times.
    ///
    /// ```no_run
    /// use ringport::{Server, Stream};
    ///
    /// Server::new()
    ///     .workers(2)
    ///     .listen_async("127.0.0.1:6628", async |mut stream: Stream| {
    ///         while let Some(data) = stream.recv().await? {
    ///             stream.send(data).await?;
    ///         }
    ///         Ok(())
    ///     })
    ///     .run()
    /// # ?; Ok::<(), ringport::Error>(())
    /// ```
    pub fn listen_async<F>(self, address: impl IntoAddress, serve: F) -> Self
    where
        F: AsyncFn(Stream) -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        let options = ConnectionOptions::default().rest_when_full(false);
        self.listen_async_with(address, ListenOptions::default(), options, serve)
    }

    /// As [`Self::listen_async`], with options of the socket and of its connections. A stream's inbox is bounded by itself,
    /// so that `rest_when_full` is of no use here, and the send limit is never exceeded: a send waits above the high mark.
    pub fn listen_async_with<F>(
        mut self,
        address: impl IntoAddress,
        socket: ListenOptions,
        options: ConnectionOptions,
        serve: F,
    ) -> Self
    where
        F: AsyncFn(Stream) -> io::Result<()> + Clone + Send + Sync + 'static,
    {
        match address.into_address() {
            Ok(address) => self.plan.services.push(ServiceSpec {
                factory: aio::serving(serve),
                options,
                role: Role::Listen(address, socket),
            }),
            Err(error) => {
                self.error.get_or_insert(error);
            }
        }
        self
    }

    /// Runs a task on each worker, from its start. It ends with the worker, if not before.
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

    /// Sets how connections are spread over workers.
    pub fn spread(mut self, spread: Spread) -> Self {
        self.plan.spread = spread;
        self
    }

    /// Sets the most connections at once; one more is accepted and closed, and counted as refused. 1,000,000 by default.
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.plan.max_connections = connections;
        self
    }

    /// Sets the most connections from one IP address at once; one more is accepted and closed, and counted as refused. Off
    /// by default. IPv6 addresses count by their first 64 bits, of which one peer usually has all. Unix sockets have none.
    pub fn max_connections_per_address(mut self, connections: Option<usize>) -> Self {
        self.plan.per_address_max = connections;
        self
    }

    /// Sets how many connections may come a second and at once, over all workers and listeners; one more is accepted and
    /// closed, and counted as refused. Off by default.
    pub fn accept_rate(mut self, rate: Option<Rate>) -> Self {
        self.plan.accept_rate = rate;
        self
    }

    /// Starts the workers on threads of their own and returns once all listen.
    ///
    /// # Errors
    ///
    /// If an address does not parse or cannot be listened on, an option makes no sense, or no engine works.
    pub fn start(self) -> Result<Running> {
        self.into_plan()?.prepare()?.start()
    }

    /// Drains the server when the process is asked to end, as [`ServerHandle::shutdown`](crate::ServerHandle::shutdown)
    /// does within this time: by SIGTERM, SIGINT or SIGHUP; on Windows by Ctrl-C and Ctrl-Break, and within 3 s when its
    /// console is closed or the machine shuts down. A second signal ends the process at once, with exit code 1. Only one
    /// server of a process can do so. Off by default.
    pub fn stop_on_signals(mut self, within: Duration) -> Self {
        self.plan.stop_on_signals = Some(within);
        self
    }

    /// Runs until the server is shut down: by [`ServerHandle::shutdown`](crate::ServerHandle::shutdown), which a handler can
    /// reach through [`Context`](crate::Context), by a signal if [`Server::stop_on_signals`] says so, or by an error. The
    /// first worker runs on the calling thread.
    ///
    /// # Errors
    ///
    /// As [`Server::start`], and if an engine fails.
    pub fn run(self) -> Result<()> {
        self.run_with(|_| Ok(()))
    }

    /// As [`Server::run`], and calls `ready` once all workers listen: to tell the addresses, or to keep the handle.
    ///
    /// # Errors
    ///
    /// As [`Server::run`], and what `ready` returns; the server ends then.
    pub fn run_with(self, ready: impl FnOnce(&Running) -> Result<()>) -> Result<()> {
        self.into_plan()?.prepare()?.run(ready)
    }

    /// Runs everything with `future` as a task of the first worker, on the calling thread. When it ends, so does the
    /// server: other tasks are dropped, and connections have 5 seconds to be closed in order.
    ///
    /// # Errors
    ///
    /// As [`Server::start`], and if an engine fails.
    ///
    /// # Panics
    ///
    /// If `future` does, or if the server was shut down before it ended.
    pub fn block_on<T: 'static>(mut self, future: impl Future<Output = T> + 'static) -> Result<T> {
        self.error.take().map_or(Ok(()), Err)?;
        let mut prepared = self.plan.prepare()?;
        let own = prepared.setups.remove(0);
        let others = prepared.start()?;
        let ended = own.run_main(future).map_err(|source| Error::System { what: "the engine failed", source })?;
        others.join()?;
        match ended {
            Ok(result) => Ok(result),
            Err(error) => match error.into_panic() {
                Some(payload) => std::panic::resume_unwind(payload),
                None => panic!("the server was shut down before the task of `block_on` had ended"),
            },
        }
    }

    pub(crate) fn into_plan(self) -> Result<Plan> {
        match self.error {
            Some(error) => Err(error),
            None if self.plan.services.is_empty() && self.plan.datagrams.is_empty() => Err(Error::Option {
                option: "listeners",
                value: "none".into(),
                why: "a server without a listener has nothing to do",
            }),
            None => Ok(self.plan),
        }
    }
}
