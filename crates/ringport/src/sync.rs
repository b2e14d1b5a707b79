//! Blocking streams, for small tools: `std::io::Read` and `Write` over the same engines.
//!
//! One worker of the process does the I/O; it starts with the first use and lives as long as the process.
//!
//! ```no_run
//! use std::io::{Read, Write};
//!
//! let mut stream = ringport::sync::Stream::connect("127.0.0.1:6628")?;
//! stream.write_all(b"hello")?;
//! stream.shutdown()?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! # Ok::<(), std::io::Error>(())
//! ```

use std::future::Future;
use std::io::{self, Read, Write};
use std::pin::{Pin, pin};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::address::{Address, IntoAddress};
use crate::aio::remote::{Hub, RemoteListener, RemoteStream};

/// Wakes a thread that is parked.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for `future` on this thread, which must be no worker's; `None` when `limit` is over.
fn wait<T>(future: impl Future<Output = T>, limit: Option<Duration>) -> Option<T> {
    let mut future: Pin<&mut dyn Future<Output = T>> = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let end = limit.map(|limit| Instant::now() + limit);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        match end.map(|end| end.saturating_duration_since(Instant::now())) {
            None => std::thread::park(),
            Some(left) if left.is_zero() => return None,
            Some(left) => std::thread::park_timeout(left),
        }
    }
}

fn within<T>(future: impl Future<Output = io::Result<T>>, limit: Option<Duration>) -> io::Result<T> {
    wait(future, limit).unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::TimedOut, "the time for it is over")))
}

/// The worker of the process.
fn hub() -> io::Result<&'static Hub> {
    static HUB: OnceLock<Result<Hub, String>> = OnceLock::new();
    let hub = HUB.get_or_init(|| Hub::start().map_err(|error| error.to_string()));
    hub.as_ref().map_err(|error| io::Error::other(error.clone()))
}

/// A connection whose calls block. Two threads may use it at once: `&Stream` reads and writes, too.
#[derive(Debug)]
pub struct Stream {
    stream: RemoteStream,
    read_timeout: Option<Duration>,
    write_timeout: Option<Duration>,
}

impl Stream {
    /// Connects.
    ///
    /// # Errors
    ///
    /// What the system answers; `InvalidInput` for text that is no address.
    pub fn connect(address: impl IntoAddress) -> io::Result<Self> {
        Self::new(within(hub()?.connect(address), None))
    }

    /// Connects within `limit`.
    ///
    /// # Errors
    ///
    /// As [`Self::connect`], and `TimedOut`.
    pub fn connect_timeout(address: impl IntoAddress, limit: Duration) -> io::Result<Self> {
        Self::new(within(hub()?.connect(address), Some(limit)))
    }

    fn new(stream: io::Result<RemoteStream>) -> io::Result<Self> {
        Ok(Self { stream: stream?, read_timeout: None, write_timeout: None })
    }

    /// Sets how long one read may wait. Without end by default.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
    }

    /// Sets how long one write may wait. Without end by default.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
    }

    /// Sends no more: a FIN follows what was written. Waits until the kernel has taken everything.
    ///
    /// # Errors
    ///
    /// What ended the connection before.
    pub fn shutdown(&self) -> io::Result<()> {
        within(self.stream.shutdown(), self.write_timeout)
    }

    /// The same connection for async code.
    #[must_use]
    pub fn into_remote(self) -> RemoteStream {
        self.stream
    }
}

impl From<RemoteStream> for Stream {
    fn from(stream: RemoteStream) -> Self {
        Self { stream, read_timeout: None, write_timeout: None }
    }
}

impl Read for &Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        within(std::future::poll_fn(|cx| self.stream.poll_read(cx, to)), self.read_timeout)
    }
}

impl Write for &Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(WRITE_MAX)];
        within(self.stream.send(data.to_vec()), self.write_timeout)?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        within(self.stream.flush(), self.write_timeout)
    }
}

/// Most bytes copied by one write.
const WRITE_MAX: usize = 64 * 1024;

impl Read for Stream {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        (&*self).read(to)
    }
}

impl Write for Stream {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        (&*self).write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self).flush()
    }
}

/// A listener whose calls block.
#[derive(Debug)]
pub struct Listener {
    listener: RemoteListener,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    ///
    /// What the system answers; `InvalidInput` for text that is no address.
    pub fn bind(address: impl IntoAddress) -> io::Result<Self> {
        Ok(Self { listener: within(hub()?.listen(address), None)? })
    }

    /// Where it listens, with the real port number.
    #[must_use]
    pub fn address(&self) -> &Address {
        self.listener.address()
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// When the listener is closed.
    pub fn accept(&self) -> io::Result<Stream> {
        within(self.listener.accept(), None).map(Stream::from)
    }
}
