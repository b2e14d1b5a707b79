//! hyper on tokio: its scheduler for one thread, and hyper's own adapters for it.

#![forbid(unsafe_code)]

use std::sync::Arc;

use http_peers::{Settings, answer};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

async fn serve(settings: Arc<Settings>) -> std::io::Result<()> {
    let listener = TcpListener::bind(&settings.address).await?;
    println!("listening on {} with tokio", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let server = settings.http(TokioTimer::new());
        tokio::spawn(async move {
            // A connection that fails ends, and the others go on.
            let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
        });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let settings = Arc::new(Settings::from_arguments()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(settings))?;
    Ok(())
}
