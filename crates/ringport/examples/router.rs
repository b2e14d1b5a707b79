//! An axum router: `cargo run --release --features hyper --example router -- 127.0.0.1:8080`.

use std::io;

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::service::TowerToHyperService;
use ringport::aio::compat::hyper::TaskTimer;
use ringport::{Server, Stream};

fn router() -> Router {
    Router::new()
        .route("/", get(async || "hello from ringport\n"))
        .route("/greet/{name}", get(async |Path(name): Path<String>| format!("hello, {name}\n")))
        .route("/echo", post(async |body: String| body))
}

fn main() -> ringport::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let router = router();
    let serve = async move |stream: Stream| {
        let service = TowerToHyperService::new(router.clone());
        let server = http1::Builder::new().timer(TaskTimer).serve_connection(stream, service);
        server.await.map_err(io::Error::other)
    };
    let server = Server::new().workers(2).listen_async(&address, serve).start()?;
    println!("router on {} with {}", server.addresses()[0], server.engine());
    server.join()
}
