//! Streams for other threads and other runtimes: tokio, smol, or plain threads.
//!
//! A [`Hub`] is one or more workers that do the I/O. Its [`RemoteStream`]s and [`RemoteListener`]s are `Send + Sync` and
//! wait with the wakers of whoever polls them. A message costs what crossing threads costs: a lock, one allocation for
//! received bytes (none is copied), and a doorbell while the worker sleeps.

use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;

use super::bridge::{Answer, Bridge, Command};
use super::{Listener, OwnedReader, OwnedWriter, Stream, spawn};
use crate::address::{Address, IntoAddress};
use crate::error::Result;
use crate::plan::Running;
use crate::remote::Remote;
use crate::server::Server;

/// A stream that any thread may use. Several may, at the same time.
///
/// Dropping it closes the connection in order, as with a [`Stream`].
pub struct RemoteStream {
    bridge: Arc<Bridge>,
    peer: Option<Address>,
}

impl Stream {
    /// Makes this a stream that any thread may use. The worker goes on doing its I/O.
    #[must_use]
    pub fn into_remote(self) -> RemoteStream {
        let bridge = Arc::new(Bridge::default());
        let (reader, writer) = self.split();
        let inward = spawn(inward(reader, Arc::clone(&bridge)));
        let outward_bridge = Arc::clone(&bridge);
        spawn(async move {
            outward(writer, outward_bridge).await;
            // Nothing can be sent any more, and nobody listens: the connection ends with its reader.
            inward.abort();
        });
        RemoteStream { bridge, peer: None }
    }
}

/// Says at its end, however it comes, that nothing more moves.
struct Pump(Arc<Bridge>);

impl Drop for Pump {
    fn drop(&mut self) {
        let error = io::Error::new(io::ErrorKind::ConnectionAborted, "the connection or its worker has ended");
        self.0.end_output(&error);
        self.0.end_input(Err(error));
    }
}

async fn inward(mut reader: OwnedReader, bridge: Arc<Bridge>) {
    while poll_fn(|cx| bridge.poll_inbox_room(cx)).await {
        match reader.recv().await {
            Ok(Some(data)) => bridge.deliver(data.into_bytes()),
            Ok(None) => return bridge.end_input(Ok(())),
            Err(error) => return bridge.end_input(Err(error)),
        }
    }
}

async fn outward(mut writer: OwnedWriter, bridge: Arc<Bridge>) {
    let pump = Pump(bridge);
    let bridge = &pump.0;
    let mut finished = false;
    loop {
        let outcome = match poll_fn(|cx| bridge.poll_command(cx, finished)).await {
            Command::Send(data) => unless_aborted(bridge, writer.send(data)).await,
            Command::Finish => {
                finished = true;
                writer.finish();
                Ok(())
            }
            Command::Flush(number) => {
                let flushed = unless_aborted(bridge, writer.flush()).await;
                if flushed.is_ok() {
                    bridge.flushed(number);
                }
                flushed
            }
            Command::Abort => return writer.abort(),
            Command::End => return,
        };
        if let Err(error) = outcome {
            bridge.end_output(&error);
            // What arrived before the end may still be read. Now only the end is left to be told of.
            poll_fn(|cx| bridge.poll_command(cx, finished)).await;
            return;
        }
    }
}

/// Awaits `future`, but stops when everything is to end at once.
async fn unless_aborted(bridge: &Bridge, future: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut future = pin!(future);
    poll_fn(|cx| if bridge.is_aborted(cx) { Poll::Ready(Ok(())) } else { future.as_mut().poll(cx) }).await
}

impl RemoteStream {
    /// The next bytes that arrived; `None` at the peer's FIN.
    ///
    /// # Errors
    ///
    /// What ended the connection, after all that arrived before was handed out.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn recv(&self) -> io::Result<Option<Bytes>> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Queues `data`, once less than 256 KiB wait for the worker.
    ///
    /// # Errors
    ///
    /// What ended the connection; `BrokenPipe` after [`Self::shutdown`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing: if it is dropped before it is ready, nothing of `data` was or will be sent.
    pub async fn send(&self, data: impl Into<Bytes>) -> io::Result<()> {
        let mut data = Some(data.into());
        poll_fn(|cx| self.poll_send(cx, &mut data)).await
    }

    /// Waits until the kernel has taken everything that was sent.
    ///
    /// # Errors
    ///
    /// What ended the connection before.
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn flush(&self) -> io::Result<()> {
        let number = self.bridge.ask_flush();
        poll_fn(|cx| self.bridge.poll_flushed(number, cx)).await
    }

    /// Sends no more: a FIN follows what is queued. Waits until the kernel has taken everything.
    ///
    /// # Errors
    ///
    /// As [`Self::flush`].
    ///
    /// # Cancel safety
    ///
    /// From its first poll on, the FIN follows even if the future is dropped.
    pub async fn shutdown(&self) -> io::Result<()> {
        self.bridge.finish();
        self.flush().await
    }

    /// Closes at once with a reset. What is queued is lost.
    pub fn abort(self) {
        self.bridge.abort();
    }

    /// As [`Self::recv`], for those who write futures by hand.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.bridge.poll_recv(cx)
    }

    /// As [`Self::send`], for those who write futures by hand. Takes the data out when it is queued.
    pub fn poll_send(&self, cx: &mut Context<'_>, data: &mut Option<Bytes>) -> Poll<io::Result<()>> {
        self.bridge.poll_send(cx, data)
    }

    /// Moves bytes that arrived into `to` and says how many; 0 at the peer's FIN. For those who write futures by hand.
    pub fn poll_read(&self, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
        if to.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let Some(mut data) = ready!(self.bridge.poll_recv(cx))? else { return Poll::Ready(Ok(0)) };
        let count = data.len().min(to.len());
        to[..count].copy_from_slice(&data.split_to(count));
        if !data.is_empty() {
            self.bridge.put_back(data);
        }
        Poll::Ready(Ok(count))
    }

    /// The peer's address, where it is known.
    #[must_use]
    pub fn peer_addr(&self) -> Option<&Address> {
        self.peer.as_ref()
    }
}

impl Drop for RemoteStream {
    fn drop(&mut self) {
        self.bridge.abandon();
    }
}

impl fmt::Debug for RemoteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

/// Workers that do the I/O of other threads and runtimes. Dropping it ends them, and their connections with them.
#[derive(Debug)]
pub struct Hub {
    running: Running,
}

/// Time for connections to end when their hub is closed.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

impl Hub {
    /// One worker with the best engine.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn start() -> Result<Self> {
        Self::with(Server::new())
    }

    /// The workers of `server`, which may have listeners of its own.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn with(server: Server) -> Result<Self> {
        // A server without a listener needs something to do.
        Ok(Self { running: server.task(async || Ok(())).start()? })
    }

    /// The workers.
    #[must_use]
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Connects, on the worker with the fewest connections.
    ///
    /// # Errors
    ///
    /// As [`connect`](super::connect).
    ///
    /// # Cancel safety
    ///
    /// When it is dropped the connection, if it comes about, is closed.
    pub async fn connect(&self, address: impl IntoAddress) -> io::Result<RemoteStream> {
        let address = address.into_address().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let to = address.clone();
        let connected = self.run(move || async move { super::connect(to).await.map(Stream::into_remote) }).await?;
        connected.map(|mut stream| {
            stream.peer = Some(address);
            stream
        })
    }

    /// Listens on `address`, on the worker with the fewest connections.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`].
    ///
    /// # Cancel safety
    ///
    /// When it is dropped the listener, if it comes about, is closed.
    pub async fn listen(&self, address: impl IntoAddress) -> io::Result<RemoteListener> {
        let address = address.into_address().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        self.run(move || async move { Listener::bind(address).map(RemoteListener::new) }).await?
    }

    /// Runs a task on the worker with the fewest connections, and waits for what it returns.
    ///
    /// # Errors
    ///
    /// If the worker's mailbox is full, or it ends before the task does.
    ///
    /// # Cancel safety
    ///
    /// When it is dropped the task goes on, and what it returns is dropped.
    pub async fn run<T, F>(&self, task: impl FnOnce() -> F + Send + 'static) -> io::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (answer, answering) = Answer::new();
        let start = Box::new(move || {
            spawn(async move { answering.give(task().await) });
        });
        self.start_on(start)?;
        let ended = || io::Error::new(io::ErrorKind::ConnectionAborted, "the worker or the task has ended");
        poll_fn(|cx| answer.poll(cx)).await.ok_or_else(ended)
    }

    fn start_on(&self, start: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        let handle = self.running.handle();
        let stats = handle.worker_stats();
        let worker = (0..stats.len()).min_by_key(|&worker| stats[worker].connections).unwrap_or(0);
        let remote: Remote = handle.remote();
        remote.start(worker, start).map_err(|_| io::Error::new(io::ErrorKind::WouldBlock, "the mailbox is full"))
    }

    /// Ends the workers in order: connections have 5 seconds to deliver what was sent.
    ///
    /// # Errors
    ///
    /// If an engine failed.
    pub fn close(self) -> Result<()> {
        self.running.handle().shutdown(CLOSE_WITHIN);
        self.running.join()
    }
}

#[derive(Default)]
struct Accepted {
    streams: VecDeque<RemoteStream>,
    end: Option<(io::ErrorKind, String)>,
    waiting: Vec<Waker>,
    /// The task that accepts, while there is no room or until nobody wants more.
    accepting: Option<Waker>,
    abandoned: bool,
}

type Shared = Arc<Mutex<Accepted>>;

/// Accepted streams that may wait for [`RemoteListener::accept`].
const BACKLOG: usize = 64;

fn lock(shared: &Shared) -> MutexGuard<'_, Accepted> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A listener that any thread may use. Dropping it closes it.
pub struct RemoteListener {
    shared: Shared,
    address: Address,
}

impl RemoteListener {
    fn new(listener: Listener) -> Self {
        let (address, shared) = (listener.address().clone(), Shared::default());
        let own = Arc::clone(&shared);
        let accepting = spawn(accept_for(listener, Arc::clone(&own)));
        spawn(async move {
            // Nobody may want more while the listener waits for a connection.
            poll_fn(|cx| {
                let mut state = lock(&own);
                if state.abandoned {
                    return Poll::Ready(());
                }
                state.accepting = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            accepting.abort();
        });
        Self { shared, address }
    }

    /// Where it listens, with the real port number.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a connection.
    ///
    /// # Errors
    ///
    /// When the listener is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no connection.
    pub async fn accept(&self) -> io::Result<RemoteStream> {
        poll_fn(|cx| {
            let mut state = lock(&self.shared);
            if let Some(stream) = state.streams.pop_front() {
                return Poll::Ready(Ok(stream));
            }
            if let Some((kind, text)) = &state.end {
                return Poll::Ready(Err(io::Error::new(*kind, text.clone())));
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

/// Accepts until nobody wants more. While enough wait it looks again every now and then.
async fn accept_for(mut listener: Listener, shared: Shared) {
    loop {
        while lock(&shared).streams.len() >= BACKLOG {
            super::sleep(Duration::from_millis(5)).await;
        }
        let accepted = match listener.accept().await {
            Ok(stream) => {
                let peer = stream.peer_addr().await.ok();
                let mut stream = stream.into_remote();
                stream.peer = peer;
                Ok(stream)
            }
            Err(error) => Err((error.kind(), error.to_string())),
        };
        let ended = accepted.is_err();
        let mut state = lock(&shared);
        match accepted {
            Ok(stream) => state.streams.push_back(stream),
            Err(error) => state.end = Some(error),
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(Waker::wake);
        if ended {
            return;
        }
    }
}

impl Drop for RemoteListener {
    fn drop(&mut self) {
        let mut state = lock(&self.shared);
        state.abandoned = true;
        let accepting = state.accepting.take();
        let streams = std::mem::take(&mut state.streams);
        drop(state);
        accepting.into_iter().for_each(Waker::wake);
        drop(streams);
    }
}

impl fmt::Debug for RemoteListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteListener").field("address", &self.address).finish_non_exhaustive()
    }
}
