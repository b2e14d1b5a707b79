//! What both servers have in common, so that they differ in the runtime alone.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::rt::Timer;
use hyper::server::conn::http1;
use hyper::{Request, Response};
use ringport::Bytes;

/// The plaintext that is served.
const BODY: &[u8] = b"Hello, World!";

/// How a server is started.
pub struct Settings {
    /// Where to listen.
    pub address: String,
    /// Which of ringport's engines, if not the best one.
    pub engine: Option<String>,
    header_timeout: Option<Duration>,
}

impl Settings {
    /// From the program's arguments.
    ///
    /// # Errors
    ///
    /// The usage, if they make no sense.
    pub fn from_arguments() -> Result<Self, String> {
        let mut arguments = std::env::args().skip(1);
        let usage = || "usage: ADDRESS [SECONDS for the head of a request, 0 for no limit] [ENGINE]".to_owned();
        let address = arguments.next().ok_or_else(usage)?;
        let seconds = arguments.next().map(|seconds| seconds.parse::<u64>().map_err(|_| usage())).transpose()?;
        let header_timeout = seconds.filter(|seconds| *seconds > 0).map(Duration::from_secs);
        Ok(Self { address, engine: arguments.next(), header_timeout })
    }

    /// hyper's settings for each connection.
    #[must_use]
    pub fn http(&self, timer: impl Timer + Send + Sync + 'static) -> http1::Builder {
        let mut builder = http1::Builder::new();
        if let Some(timeout) = self.header_timeout {
            builder.timer(timer).header_read_timeout(timeout);
        } else {
            builder.header_read_timeout(None);
        }
        builder
    }
}

/// Answers everything with the plaintext.
///
/// # Errors
///
/// None.
pub async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::new(Bytes::from_static(BODY)));
    let headers = response.headers_mut();
    headers.insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain"));
    Ok(response)
}
