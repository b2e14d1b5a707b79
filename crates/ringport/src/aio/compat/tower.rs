//! tower services as the server of a listener.

use std::fmt::Display;
use std::future::poll_fn;
use std::io;

use tower_service::Service;

use crate::address::IntoAddress;
use crate::aio::Stream;
use crate::server::Server;

impl Server {
    /// Listens on `address` and calls a clone of `service` with each [`Stream`], once it is ready.
    pub fn listen_service<S>(self, address: impl IntoAddress, service: S) -> Self
    where
        S: Service<Stream, Response = (), Error: Display> + Clone + Send + Sync + 'static,
    {
        self.listen_async(address, async move |stream: Stream| {
            let mut service = service.clone();
            let failed = |error: S::Error| io::Error::other(error.to_string());
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(failed)?;
            service.call(stream).await.map_err(failed)
        })
    }
}
