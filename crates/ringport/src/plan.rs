//! What a server and a client have in common: how workers are made, run and stopped.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use ringport_engine::engine::{UseEngine, pin_to_core, with_engine};
use ringport_engine::{
    Engine, EngineConfig, EngineKind, ListenOptions, PoolConfig, Selection, SockAddr, Socket, SocketOptions,
};

use crate::address::{Address, Destination};
use crate::aio::{self, JoinError};
use crate::blocking::Blocking;
use crate::datagram::DatagramOptions;
use crate::error::{Error, Result};
use crate::remote::Remote;
use crate::session::{ConnectionOptions, Rate};
use crate::worker::{Budget, Counters, DatagramFactory, Factory, Gate, Share, Worker, WorkerSetup, WorkerStats};

/// Most workers: one a core is the rule, and no machine that this runs on has more.
pub(crate) const WORKERS_MAX: usize = 1024;

/// How accepted connections are spread over workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Spread {
    /// Each worker has a listening socket of its own and the kernel spreads by a hash (`SO_REUSEPORT`, Linux). Costs
    /// nothing; uneven with few connections. Elsewhere, and for Unix sockets, connections are handed over.
    #[default]
    ReusePort,
    /// One worker accepts and hands each connection to the worker with the fewest.
    LeastLoaded,
}

/// One listener or one destination.
#[derive(Clone)]
pub(crate) struct ServiceSpec {
    pub(crate) factory: Factory,
    pub(crate) options: ConnectionOptions,
    pub(crate) role: Role,
}

/// One datagram socket, or one for each worker.
#[derive(Clone)]
pub(crate) struct DatagramSpec {
    pub(crate) factory: DatagramFactory,
    pub(crate) options: DatagramOptions,
    pub(crate) address: SocketAddr,
}

#[derive(Clone)]
pub(crate) enum Role {
    Listen(Address, ListenOptions),
    Connect {
        to: Destination,
        connections: usize,
        options: SocketOptions,
    },
    /// A task on each worker.
    Task,
}

/// Everything needed to start.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) engine: Option<EngineKind>,
    pub(crate) config: EngineConfig,
    pub(crate) pool: PoolConfig,
    pub(crate) workers: usize,
    pub(crate) pin: bool,
    pub(crate) spread: Spread,
    pub(crate) max_connections: usize,
    pub(crate) per_address_max: Option<usize>,
    pub(crate) accept_rate: Option<Rate>,
    pub(crate) memory_limit: u64,
    pub(crate) blocking_threads: usize,
    pub(crate) tick: Option<Duration>,
    /// Time to drain when the process is asked to end.
    pub(crate) stop_on_signals: Option<Duration>,
    pub(crate) services: Vec<ServiceSpec>,
    pub(crate) datagrams: Vec<DatagramSpec>,
    pub(crate) until_idle: bool,
}

impl Plan {
    pub(crate) fn new(until_idle: bool) -> Self {
        Self {
            engine: None,
            config: EngineConfig::default(),
            pool: PoolConfig::default(),
            workers: 1,
            pin: false,
            spread: Spread::default(),
            max_connections: 1_000_000,
            per_address_max: None,
            accept_rate: None,
            memory_limit: 1 << 30,
            blocking_threads: 4,
            tick: None,
            stop_on_signals: None,
            services: Vec::new(),
            datagrams: Vec::new(),
            until_idle,
        }
    }

    /// Binds every listener and makes the setup of every worker. Nothing runs yet.
    pub(crate) fn prepare(self) -> Result<Prepared> {
        if self.workers == 0 || self.workers > WORKERS_MAX {
            return Err(Error::Option {
                option: "workers",
                value: self.workers.to_string(),
                why: "at least 1 and at most 1024 are needed",
            });
        }
        let selection = match self.config.network {
            Some(_) => None,
            None => Some(Selection::choose(self.engine, &self.config)?),
        };
        let kind = selection.as_ref().map_or(EngineKind::Sim, |selection| selection.kind);
        let listeners = self.bind()?;
        let (mut sockets, mut addresses, mut files) = (Vec::new(), Vec::new(), Vec::new());
        for bound in listeners {
            sockets.push(bound.sockets);
            addresses.extend(bound.address);
            files.extend(bound.file);
        }
        let counters: Arc<[_]> = (0..self.workers).map(|_| Arc::new(Counters::default())).collect();
        let handle = ServerHandle { remote: Remote::new(self.workers), counters };
        let mut setups = self.setups(kind, sockets, &handle);
        let mut udp_addresses = Vec::new();
        for spec in &self.datagrams {
            let (address, sockets) = self.bind_datagrams(spec)?;
            udp_addresses.push(address);
            for (setup, socket) in setups.iter_mut().zip(sockets) {
                setup.datagrams.push((socket, spec.clone()));
            }
        }
        Ok(Prepared { kind, selection, setups, addresses, udp_addresses, files, handle })
    }

    /// One setup for each worker; each takes its share of the sockets and of the connections to make.
    fn setups(&self, kind: EngineKind, mut sockets: Vec<Vec<Socket>>, handle: &ServerHandle) -> Vec<Setup> {
        let global_live = Arc::new(AtomicUsize::new(0));
        let gate = Gate::new(self.per_address_max, self.accept_rate);
        // A simulation is one thread.
        let blocking = self.config.network.is_none().then(|| Blocking::new(self.blocking_threads));
        let budget = Budget::new(self.memory_limit, self.workers);
        // A service with one socket is listened on by the first worker alone.
        let single: Vec<bool> = sockets.iter().map(|sockets| self.workers > 1 && sockets.len() == 1).collect();
        let hand_over = single.contains(&true);
        let setup = |number: usize| {
            let mut listen = Vec::new();
            let mut connect = Vec::new();
            for (service, spec) in self.services.iter().enumerate() {
                match &spec.role {
                    Role::Listen(..) => {
                        listen.extend(sockets[service].pop().map(|socket| (socket, service as u32, single[service])));
                    }
                    Role::Task => {}
                    Role::Connect { to, connections, options } => {
                        let share = connections / self.workers + usize::from(number < connections % self.workers);
                        connect.push((to.clone(), share, options.clone(), service as u32));
                    }
                }
            }
            let mut share = Share::none(self.max_connections, Arc::clone(&gate));
            if hand_over {
                share = share.least_loaded(Arc::clone(&handle.counters), &handle.remote);
            }
            Setup {
                kind,
                config: self.config.clone(),
                pool: self.pool.clone(),
                pin: self.pin.then_some(number),
                listen,
                connect,
                datagrams: Vec::new(),
                worker: WorkerSetup {
                    number: number as u16,
                    services: self
                        .services
                        .iter()
                        .map(|spec| (Arc::clone(&spec.factory), spec.options.clone()))
                        .collect(),
                    remote: handle.remote.clone(),
                    counters: Arc::clone(&handle.counters[number]),
                    global_live: Arc::clone(&global_live),
                    budget: Arc::clone(&budget),
                    blocking: blocking.clone(),
                    share,
                    tick: self.tick,
                    stop_on_signals: self.stop_on_signals.filter(|_| number == 0),
                    until_idle: self.until_idle,
                },
            }
        };
        (0..self.workers).map(setup).collect()
    }

    fn bind(&self) -> Result<Vec<Bound>> {
        let bind = |spec: &ServiceSpec| match &spec.role {
            Role::Listen(address, options) => self.bind_one(address, options),
            Role::Connect { .. } | Role::Task => Ok(Bound { sockets: Vec::new(), address: None, file: None }),
        };
        self.services.iter().map(bind).collect()
    }

    fn bind_one(&self, address: &Address, options: &ListenOptions) -> Result<Bound> {
        let listen = |to: &SockAddr, options: &ListenOptions| {
            Socket::listen(to, options, self.config.network.as_ref())
                .map_err(|source| Error::Listen { address: address.to_string(), source })
        };
        let wrap = |source| Error::Listen { address: address.to_string(), source };
        let to = address.to_system().map_err(wrap)?;
        if let Address::Unix(path) = address {
            remove_stale_socket(path).map_err(wrap)?;
            let socket = listen(&to, options)?;
            return Ok(Bound { sockets: vec![socket], address: Some(address.clone()), file: Some(path.clone()) });
        }
        // The first bind is exclusive, so that a second server on the address is refused; where workers are to have a
        // socket each, it gives way to theirs.
        let first = listen(&to, options)?;
        let local = first.local_addr().map_err(wrap)?;
        let bound = Some(Address::from_system(&local));
        let each = self.workers > 1 && self.spread == Spread::ReusePort && ringport_engine::socket::REUSE_PORT_SPREADS;
        if !each || self.config.network.is_some() {
            return Ok(Bound { sockets: vec![first], address: bound, file: None });
        }
        drop(first);
        let mut shared = options.clone();
        shared.reuse_port = true;
        let sockets = (0..self.workers).map(|_| listen(&local, &shared)).collect::<Result<_>>()?;
        Ok(Bound { sockets, address: bound, file: None })
    }
}

impl Plan {
    /// Binds a datagram socket for each worker, or one for the first where the system does not spread.
    fn bind_datagrams(&self, spec: &DatagramSpec) -> Result<(SocketAddr, Vec<Socket>)> {
        let bind = |to: SocketAddr, reuse_port: bool| {
            let mut options = spec.options.socket.clone();
            options.reuse_port = reuse_port;
            let socket = Socket::bind_udp(to, &options, self.config.network.as_ref());
            let local = socket.and_then(|socket| Ok((socket.local_addr()?.as_socket().unwrap_or(to), socket)));
            local.map_err(|source| Error::Listen { address: spec.address.to_string(), source })
        };
        // Exclusive at first, so that a second server on the address is refused.
        let (local, first) = bind(spec.address, false)?;
        let each = self.workers > 1 && ringport_engine::socket::REUSE_PORT_SPREADS;
        if !each || self.config.network.is_some() {
            return Ok((local, vec![first]));
        }
        drop(first);
        let sockets = (0..self.workers).map(|_| Ok(bind(local, true)?.1)).collect::<Result<_>>()?;
        Ok((local, sockets))
    }
}

struct Bound {
    sockets: Vec<Socket>,
    address: Option<Address>,
    file: Option<PathBuf>,
}

/// A socket file that nobody listens on is left over from a server that was killed.
fn remove_stale_socket(path: &std::path::Path) -> io::Result<()> {
    let address = ringport_engine::socket::unix(path)?;
    match ringport_engine::socket::is_listening(&address) {
        Some(false) => std::fs::remove_file(path),
        _ => Ok(()),
    }
}

/// Ready to run.
pub(crate) struct Prepared {
    pub(crate) kind: EngineKind,
    pub(crate) selection: Option<Selection>,
    pub(crate) setups: Vec<Setup>,
    pub(crate) addresses: Vec<Address>,
    udp_addresses: Vec<SocketAddr>,
    files: Vec<PathBuf>,
    pub(crate) handle: ServerHandle,
}

impl Prepared {
    /// Starts a thread for each worker and returns when all have opened their engine.
    pub(crate) fn start(mut self) -> Result<Running> {
        let setups = std::mem::take(&mut self.setups);
        self.start_workers(setups)?.wait()
    }

    /// Runs the first worker on this thread, and starts a thread for each other one. `ready` is called when all have
    /// opened their engine; if it fails, all end.
    pub(crate) fn run(mut self, ready: impl FnOnce(&Running) -> Result<()>) -> Result<()> {
        let mut setups = std::mem::take(&mut self.setups);
        let first = setups.remove(0);
        let started = self.start_workers(setups)?;
        let (mut running, mut failed) = (None, None);
        let outcome = first.run(|opened| {
            let opened = opened.map_err(|source| Error::System { what: "cannot open the engine", source });
            let ready = opened.and_then(|()| started.wait()).and_then(|all| ready(running.insert(all)));
            ready.map_err(|error| {
                failed = Some(error);
                io::ErrorKind::Interrupted.into()
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if let (Err(_), Some(running)) = (&outcome, &running) {
            running.handle.shutdown(Duration::ZERO);
        }
        let others = running.map_or(Ok(()), Running::join);
        outcome.map_err(|source| Error::System { what: "an engine failed", source }).and(others)
    }

    fn start_workers(self, setups: Vec<Setup>) -> Result<Started> {
        if let Some(selection) = &self.selection {
            let passed_over = selection.passed_over();
            if passed_over.is_empty() {
                tracing::info!(engine = %selection.kind, "engine chosen");
            } else {
                tracing::warn!(engine = %selection.kind, passed_over = %passed_over.join("; "), "engine chosen; better ones are not available");
            }
        }
        let (report, ready) = mpsc::channel();
        let mut running = Running {
            kind: self.kind,
            selection: self.selection,
            addresses: self.addresses,
            udp_addresses: self.udp_addresses,
            files: self.files,
            handle: self.handle,
            threads: Vec::new(),
        };
        for setup in setups {
            let report = report.clone();
            let name = format!("ringport-{}", setup.worker.number);
            let body = move || {
                setup.run(|opened| {
                    // Nobody listens any more only when the start has failed already.
                    let _ = report.send(opened);
                    Ok(())
                })
            };
            let thread = std::thread::Builder::new().name(name).spawn(body);
            running
                .threads
                .push(thread.map_err(|source| Error::System { what: "cannot start a worker thread", source })?);
        }
        Ok(Started { running, ready })
    }
}

/// Workers that are opening their engines.
struct Started {
    running: Running,
    ready: mpsc::Receiver<io::Result<()>>,
}

impl Started {
    fn wait(self) -> Result<Running> {
        for _ in 0..self.running.threads.len() {
            let ended = |_| Err(io::Error::other("a worker ended before it was ready"));
            let opened = self.ready.recv().unwrap_or_else(ended);
            opened.map_err(|source| Error::System { what: "cannot open the engine", source })?;
        }
        Ok(self.running)
    }
}

/// A server or client that runs on threads of its own. Dropping it shuts it down at once.
#[derive(Debug)]
pub struct Running {
    kind: EngineKind,
    selection: Option<Selection>,
    addresses: Vec<Address>,
    udp_addresses: Vec<SocketAddr>,
    files: Vec<PathBuf>,
    handle: ServerHandle,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Running {
    /// The engine in use.
    #[must_use]
    pub fn engine(&self) -> EngineKind {
        self.kind
    }

    /// How the engine was chosen; `None` in a simulation.
    #[must_use]
    pub fn selection(&self) -> Option<&Selection> {
        self.selection.as_ref()
    }

    /// Where it listens, in the order of the calls of `listen`, with real port numbers.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where it serves datagrams, in the order of the calls of `udp`, with real port numbers.
    #[must_use]
    pub fn udp_addresses(&self) -> &[SocketAddr] {
        &self.udp_addresses
    }

    /// Number of workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.handle.counters.len()
    }

    /// A handle to stop it and to look at it, from any thread.
    #[must_use]
    pub fn handle(&self) -> ServerHandle {
        self.handle.clone()
    }

    /// Waits until every worker has ended.
    ///
    /// # Errors
    ///
    /// If an engine failed.
    pub fn join(mut self) -> Result<()> {
        self.join_threads()
    }

    fn join_threads(&mut self) -> Result<()> {
        let mut outcome = Ok(());
        for thread in self.threads.drain(..) {
            let result = thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker thread panicked")));
            outcome = outcome.and(result);
        }
        for file in self.files.drain(..) {
            // Somebody may have removed it already; nothing depends on it any more.
            let _ = std::fs::remove_file(file);
        }
        outcome.map_err(|source| Error::System { what: "an engine failed", source })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.threads.is_empty() || !self.files.is_empty() {
            self.handle.shutdown(Duration::ZERO);
            let _ = self.join_threads();
        }
    }
}

/// Stops a server and reads its counters, from any thread.
#[derive(Clone, Debug)]
pub struct ServerHandle {
    remote: Remote,
    counters: Arc<[Arc<Counters>]>,
}

impl ServerHandle {
    /// Shuts down in order: no new connections, those that are quiet are closed, and after `within` all are. A second
    /// later those whose peers do not answer are cut off. Returns at once; [`Running::join`] waits for the end.
    pub fn shutdown(&self, within: Duration) {
        self.remote.shut_down(within);
    }

    /// The way to its connections.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }

    /// Counters of all workers together.
    #[must_use]
    pub fn stats(&self) -> WorkerStats {
        let mut sum = WorkerStats::default();
        for counters in self.counters.iter() {
            sum += counters.read();
        }
        sum
    }

    /// Counters of each worker.
    #[must_use]
    pub fn worker_stats(&self) -> Vec<WorkerStats> {
        self.counters.iter().map(|counters| counters.read()).collect()
    }
}

impl std::fmt::Debug for Counters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.read().fmt(f)
    }
}

/// What one worker thread starts with.
pub(crate) struct Setup {
    kind: EngineKind,
    config: EngineConfig,
    pool: PoolConfig,
    pin: Option<usize>,
    /// Sockets, the services they belong to, and whether their connections are handed over.
    listen: Vec<(Socket, u32, bool)>,
    connect: Vec<(Destination, usize, SocketOptions, u32)>,
    datagrams: Vec<(Socket, DatagramSpec)>,
    worker: WorkerSetup,
}

impl Setup {
    /// Opens the engine on this thread, tells `opened` whether that worked, and unless that says no, runs to the end.
    pub(crate) fn run(self, opened: impl FnOnce(io::Result<()>) -> io::Result<()>) -> io::Result<()> {
        let kind = self.kind;
        with_engine(kind, Run { setup: self, opened })?
    }

    /// Opens the engine on this thread and runs `main`, and all else, until `main` has ended.
    pub(crate) fn run_main<T: 'static>(
        self,
        main: impl Future<Output = T> + 'static,
    ) -> io::Result<Result<T, JoinError>> {
        let kind = self.kind;
        with_engine(kind, RunMain { setup: self, main })?
    }

    /// Opens a worker without running it.
    pub(crate) fn open<E: Engine>(self) -> io::Result<Worker<E>> {
        if let Some(core) = self.pin {
            pin_to_core(core)?;
        }
        let mut worker = Worker::<E>::open(&self.config, self.pool, self.worker)?;
        for (socket, service, hand_over) in self.listen {
            worker.listen(socket, service, hand_over)?;
        }
        for (socket, spec) in self.datagrams {
            worker.serve_datagrams(socket, &spec.factory, &spec.options)?;
        }
        for (to, connections, options, service) in self.connect {
            worker.connect_to(to, connections, options, service);
        }
        worker.start();
        Ok(worker)
    }
}

/// Time for connections to end when the main task has.
const MAIN_ENDED: Duration = Duration::from_secs(5);

struct RunMain<F> {
    setup: Setup,
    main: F,
}

impl<T: 'static, F: Future<Output = T> + 'static> UseEngine for RunMain<F> {
    type Output = io::Result<Result<T, JoinError>>;

    fn run<E: Engine>(self) -> Self::Output {
        let mut worker = self.setup.open::<E>()?;
        let result = Rc::new(RefCell::new(None));
        let (place, remote) = (Rc::clone(&result), worker.context().remote());
        aio::start_main(worker.context().aio(), self.main, move |ended| {
            *place.borrow_mut() = Some(ended);
            remote.shut_down(MAIN_ENDED);
        });
        worker.run()?;
        drop(worker);
        let ended = result.borrow_mut().take();
        Ok(ended.unwrap_or(Err(JoinError::CANCELLED)))
    }
}

struct Run<F> {
    setup: Setup,
    opened: F,
}

impl<F: FnOnce(io::Result<()>) -> io::Result<()>> UseEngine for Run<F> {
    type Output = io::Result<()>;

    fn run<E: Engine>(self) -> io::Result<()> {
        match self.setup.open::<E>() {
            Ok(mut worker) => {
                (self.opened)(Ok(()))?;
                worker.run()
            }
            Err(error) => (self.opened)(Err(error)),
        }
    }
}
