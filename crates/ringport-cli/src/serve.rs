//! `ringport serve`.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::LazyLock;

use ringport::{
    Address, ConnectionOptions, DatagramOptions, EngineConfig, Error, ListenOptions, OverLimit, Rate, Running, Server,
    ServerHandle, Spread, Stream,
};

use crate::Failure;
use crate::args::{Api, OverLimitName, Serve, ServiceName, SpreadName};
use crate::files::{Files, Folder};
use crate::services::{Discard, DiscardDatagrams, Echo, EchoDatagrams, Generate, GenerateDatagrams, PIECE};
use crate::tasks;

/// Above this many waiting bytes a connection is full, unless the send limit is small.
const HIGH_MARK: u64 = 256 << 10;

/// Where it listens if nothing is said.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6628);

/// Serves until a signal, then drains.
pub(crate) fn run(options: Serve) -> Result<ExitCode, Failure> {
    let drain = options.drain;
    let mut handle = None;
    let outcome = server(options)?.stop_on_signals(drain).run_with(|running| {
        handle = Some(running.handle());
        announce(running)
    });
    if let Some(handle) = handle {
        report(&handle);
    }
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn server(options: Serve) -> Result<Server, Failure> {
    let folder = folder(&options)?;
    let limit = options.send_limit;
    let high_mark = HIGH_MARK.min(limit / 2);
    let over_limit = match options.over_limit {
        OverLimitName::Disconnect => OverLimit::Disconnect,
        OverLimitName::Wait => OverLimit::Wait,
        OverLimitName::Refuse => OverLimit::Refuse,
        OverLimitName::DropOldest => OverLimit::DropOldest,
        OverLimitName::DropNewest => OverLimit::DropNewest,
    };
    let connections = ConnectionOptions::default()
        .send_limit(limit, over_limit)
        .marks(high_mark / 4, high_mark)
        .idle_timeout(options.idle_timeout.0)
        .read_timeout(options.read_timeout.0)
        .write_timeout(options.write_timeout.0)
        .lifetime(options.lifetime.0)
        .receive_rate_max(rate(options.receive_rate));
    let mut config = EngineConfig::default();
    config.spin = options.spin.0;
    config.zero_copy_above = usize::try_from(options.zero_copy).ok().filter(|bytes| *bytes > 0);
    config.share_bytes = Some(options.share);
    let server = Server::new()
        .engine_config(config)
        .workers(options.workers)
        .engine(options.engine.kind())
        .max_connections(options.max_connections)
        .max_connections_per_address((options.max_per_address > 0).then_some(options.max_per_address))
        .accept_rate(rate(options.accept_rate))
        .memory_limit(options.memory_limit)
        .pin(options.pin)
        .spread(match options.spread {
            SpreadName::ReusePort => Spread::ReusePort,
            SpreadName::LeastLoaded => Spread::LeastLoaded,
        });
    let generate = Generate::new(limit, high_mark, options.piece);
    if options.service == ServiceName::Generate {
        // Filled now: otherwise the first peer would have to wait for that.
        LazyLock::force(&PIECE);
    }
    let refused_above = (over_limit == OverLimit::Refuse).then_some(limit);
    let server = serve_datagrams(server, &options);
    // With datagrams alone there is no listener but those that were asked for.
    let default = if options.udp.is_empty() { vec![DEFAULT_ADDRESS.into()] } else { Vec::new() };
    let listen = if options.listen.is_empty() { default } else { options.listen };
    Ok(listen.into_iter().fold(server, |server, address| {
        let (sockets, connections) = (ListenOptions::default(), connections.clone());
        if let Some(folder) = folder.clone() {
            let make = move || Files::new(folder.clone(), limit, high_mark);
            return server.listen_with(address, sockets, connections, make);
        }
        match (options.service, options.api) {
            (ServiceName::Echo, Api::Handler) => {
                server.listen_with(address, sockets, connections, move || Echo { refused_above })
            }
            // A folder is required for files, and without one this is never reached.
            (ServiceName::Discard | ServiceName::Files, Api::Handler) => {
                server.listen_with(address, sockets, connections, || Discard)
            }
            (ServiceName::Generate, Api::Handler) => {
                server.listen_with(address, sockets, connections, move || generate)
            }
            // A stream's inbox is bounded by itself.
            (service, Api::Async) => {
                listen_async(server, address, connections.rest_when_full(false), service, generate)
            }
        }
    }))
}

/// Serves datagrams wherever that was asked for.
fn serve_datagrams(server: Server, options: &Serve) -> Server {
    options.udp.iter().fold(server, |server, address| {
        let sockets = DatagramOptions::default().rate_max(rate(options.udp_rate));
        match (options.service, options.api) {
            (ServiceName::Echo, Api::Handler) => server.udp_with(*address, sockets, || EchoDatagrams),
            // Files have no datagrams, see `Serve::contradiction`.
            (ServiceName::Discard | ServiceName::Files, Api::Handler) => {
                server.udp_with(*address, sockets, || DiscardDatagrams)
            }
            (ServiceName::Generate, Api::Handler) => server.udp_with(*address, sockets, || GenerateDatagrams),
            (ServiceName::Echo, Api::Async) => server.udp_async(*address, tasks::echo_datagrams),
            (ServiceName::Discard | ServiceName::Files, Api::Async) => {
                server.udp_async(*address, tasks::discard_datagrams)
            }
            (ServiceName::Generate, Api::Async) => server.udp_async(*address, tasks::generate_datagrams),
        }
    })
}

/// The folder that is to be served; a service that serves none has none.
fn folder(options: &Serve) -> Result<Option<Folder>, Failure> {
    match (&options.folder, options.service) {
        (Some(path), ServiceName::Files) => {
            let opened = Folder::open(path);
            Ok(Some(opened.map_err(|error| Failure(format!("cannot serve {}: {error}", path.display())))?))
        }
        _ => Ok(None),
    }
}

fn listen_async(
    server: Server,
    address: Address,
    connections: ConnectionOptions,
    service: ServiceName,
    like: Generate,
) -> Server {
    let sockets = ListenOptions::default();
    match service {
        ServiceName::Echo => server.listen_async_with(address, sockets, connections, tasks::echo),
        // Files are never served by tasks, see `Serve::contradiction`.
        ServiceName::Discard | ServiceName::Files => {
            server.listen_async_with(address, sockets, connections, tasks::discard)
        }
        ServiceName::Generate => {
            let generate = async move |stream: Stream| tasks::generate(stream, &like).await;
            server.listen_async_with(address, sockets, connections, generate)
        }
    }
}

/// So many a second, and as many at once; none if that is 0.
fn rate(per_second: u64) -> Option<Rate> {
    (per_second > 0).then(|| Rate::new(per_second, per_second))
}

/// One line for each listener, which a script may wait for.
fn announce(running: &Running) -> ringport::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut lines = running.addresses().iter().map(|address| {
        let (protocol, engine, workers) = (address.protocol(), running.engine(), running.workers());
        writeln!(out, "listening {protocol} {address} engine={engine} workers={workers}")
    });
    let mut written = lines.try_for_each(|line| line);
    for address in running.udp_addresses() {
        let (engine, workers) = (running.engine(), running.workers());
        written = written.and_then(|()| writeln!(out, "listening udp {address} engine={engine} workers={workers}"));
    }
    let written = written.and_then(|()| out.flush());
    written.map_err(|source| Error::System { what: "cannot write to standard output", source })
}

fn report(handle: &ServerHandle) {
    let stats = handle.stats();
    tracing::info!(
        accepted = stats.accepted,
        closed = stats.closed,
        refused = stats.refused,
        refused_by_address = stats.refused_by_address,
        refused_by_rate = stats.refused_by_rate,
        throttled = stats.throttled,
        accepts_failed = stats.accepts_failed,
        dropped_messages = stats.dropped_messages,
        dropped_bytes = stats.dropped_bytes,
        received_bytes = stats.received_bytes,
        sent_bytes = stats.sent_bytes,
        events = stats.events,
        system_calls = stats.calls,
        starved = stats.starved,
        copies = stats.copies,
        datagrams_received = stats.datagrams_received,
        datagrams_sent = stats.datagrams_sent,
        datagrams_dropped = stats.datagrams_dropped,
        datagrams_refused = stats.datagrams_refused,
        datagrams_truncated = stats.datagrams_truncated,
        datagrams_failed = stats.datagrams_failed,
        datagrams_over_rate = stats.datagrams_over_rate,
        "ended"
    );
}
