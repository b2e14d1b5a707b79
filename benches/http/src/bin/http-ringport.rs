//! hyper on ringport: one worker, on the program's own thread.

#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use http_peers::{Settings, answer};
use hyper::service::service_fn;
use ringport::aio::compat::hyper::TaskTimer;
use ringport::{Address, EngineKind, Server, Stream};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = Arc::new(Settings::from_arguments()?);
    let engine = settings.engine.as_deref().map(str::parse::<EngineKind>).transpose()?;
    let address: Address = settings.address.parse()?;
    let serve = async move |stream: Stream| {
        let server = settings.http(TaskTimer);
        server.serve_connection(stream, service_fn(answer)).await.map_err(io::Error::other)
    };
    // On this thread, as tokio's: the C library locks less in a process with one thread.
    Server::new().engine(engine).listen_async(address, serve).run_with(|running| {
        println!("listening on {} with {}", running.addresses()[0], running.engine());
        Ok(())
    })?;
    Ok(())
}
