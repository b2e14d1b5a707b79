//! `ringport serve`.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use ringport::{ConnectionOptions, EngineConfig, ListenOptions, OverLimit, Running, Server, ServerHandle, Spread};

use crate::Failure;
use crate::args::{OverLimitName, Serve, ServiceName, SpreadName};
use crate::files::{Files, Folder};
use crate::services::{Discard, Echo, Generate};

/// Above this many waiting bytes a connection is full, unless the send limit is small.
const HIGH_MARK: u64 = 256 << 10;

/// Serves until a signal, then drains.
pub(crate) fn run(options: Serve) -> Result<ExitCode, Failure> {
    let drain = options.drain;
    let running = server(options)?.start()?;
    let handle = running.handle();
    stop_on_signals(handle.clone(), drain)?;
    announce(&running)?;
    let outcome = running.join();
    report(&handle);
    outcome?;
    Ok(ExitCode::SUCCESS)
}

fn server(options: Serve) -> Result<Server, Failure> {
    let folder = folder(&options)?;
    let limit = options.send_limit;
    let high_mark = HIGH_MARK.min(limit / 2);
    let over_limit = match options.over_limit {
        OverLimitName::Refuse => OverLimit::Refuse,
        OverLimitName::Disconnect => OverLimit::Disconnect,
    };
    let connections = ConnectionOptions::default()
        .send_limit(limit, over_limit)
        .marks(high_mark / 4, high_mark)
        .idle_timeout(options.idle_timeout.0);
    let mut config = EngineConfig::default();
    config.spin = Some(options.spin);
    let server = Server::new()
        .engine_config(config)
        .workers(options.workers)
        .engine(options.engine.kind())
        .max_connections(options.max_connections)
        .pin(options.pin)
        .spread(match options.spread {
            SpreadName::ReusePort => Spread::ReusePort,
            SpreadName::LeastLoaded => Spread::LeastLoaded,
        });
    let refused_above = (over_limit == OverLimit::Refuse).then_some(limit);
    Ok(options.listen.into_iter().fold(server, |server, address| {
        let (sockets, connections) = (ListenOptions::default(), connections.clone());
        if let Some(folder) = folder.clone() {
            let make = move || Files::new(folder.clone(), limit, high_mark);
            return server.listen_with(address, sockets, connections, make);
        }
        match options.service {
            ServiceName::Echo => server.listen_with(address, sockets, connections, move || Echo { refused_above }),
            // A folder is required for it, and without one this is never reached.
            ServiceName::Discard | ServiceName::Files => server.listen_with(address, sockets, connections, || Discard),
            ServiceName::Generate => {
                server.listen_with(address, sockets, connections, move || Generate::new(limit, high_mark))
            }
        }
    }))
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

/// The first signal drains, the second ends the process.
fn stop_on_signals(handle: ServerHandle, drain: std::time::Duration) -> Result<(), Failure> {
    let asked = AtomicBool::new(false);
    ctrlc::set_handler(move || {
        if asked.swap(true, Ordering::Relaxed) {
            eprintln!("ringport: ended by a second signal before the connections were drained");
            std::process::exit(1);
        }
        tracing::info!(within = ?drain, "draining");
        handle.shutdown(drain);
    })?;
    Ok(())
}

/// One line for each listener, which a script may wait for.
fn announce(running: &Running) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for address in running.addresses() {
        let (protocol, engine, workers) = (address.protocol(), running.engine(), running.workers());
        writeln!(out, "listening {protocol} {address} engine={engine} workers={workers}")?;
    }
    out.flush()?;
    Ok(())
}

fn report(handle: &ServerHandle) {
    let stats = handle.stats();
    tracing::info!(
        accepted = stats.accepted,
        closed = stats.closed,
        refused = stats.refused,
        accepts_failed = stats.accepts_failed,
        received_bytes = stats.received_bytes,
        sent_bytes = stats.sent_bytes,
        events = stats.events,
        system_calls = stats.calls,
        starved = stats.starved,
        copies = stats.copies,
        "ended"
    );
}
