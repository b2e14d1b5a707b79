//! An HTTP/1 server by hyper: `cargo run --release --features hyper --example http -- 127.0.0.1:8080`.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use ringport::aio::compat::hyper::TaskTimer;
use ringport::{Bytes, Server, Stream};

/// `GET /` greets, `POST /echo` answers with what it got.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => (StatusCode::OK, Bytes::from_static(b"hello from ringport\n")),
        (&Method::POST, "/echo") => match request.into_body().collect().await {
            Ok(body) => (StatusCode::OK, body.to_bytes()),
            Err(_) => (StatusCode::BAD_REQUEST, Bytes::new()),
        },
        _ => (StatusCode::NOT_FOUND, Bytes::from_static(b"nothing is here\n")),
    };
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    Ok(response)
}

async fn serve(stream: Stream) -> io::Result<()> {
    let mut server = http1::Builder::new();
    server.timer(TaskTimer).header_read_timeout(Duration::from_secs(10));
    server.serve_connection(stream, service_fn(answer)).await.map_err(io::Error::other)
}

fn main() -> ringport::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    let server = Server::new().listen_async(&address, serve).start()?;
    println!("http on {} with {}", server.addresses()[0], server.engine());
    server.join()
}
