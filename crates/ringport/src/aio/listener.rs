//! [`Listener`] and [`connect`]: streams made by a task.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use ringport_engine::{ListenOptions, ListenerId, Socket, SocketOptions};

use super::cell::StreamCell;
use super::runtime::{Interest, Request, Runtime};
use super::stream::Stream;
use crate::address::{Address, IntoAddress};
use crate::session::ConnectionOptions;

/// Accepted streams that may wait for [`Listener::accept`]. Then accepting pauses, and goes on at half of them.
const BACKLOG: usize = 128;

/// Where a listener and its worker meet.
pub(crate) struct ListenerCell {
    runtime: Rc<Runtime>,
    id: Cell<Option<ListenerId>>,
    gone: Cell<bool>,
    inner: RefCell<Queue>,
}

struct Queue {
    streams: VecDeque<Stream>,
    waiting: Interest,
    paused: bool,
    error: Option<io::Error>,
}

impl ListenerCell {
    /// The engine listens. `false` if the listener was dropped meanwhile.
    pub(crate) fn opened(&self, id: ListenerId) -> bool {
        self.id.set(Some(id));
        !self.gone.get()
    }

    /// Whether nobody wants it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// It listens no more.
    pub(crate) fn closed(&self, error: io::Error) {
        let mut inner = self.inner.borrow_mut();
        inner.error.get_or_insert(error);
        let waiting = inner.waiting.take();
        drop(inner);
        self.runtime.notify(waiting);
    }

    /// A connection was accepted. Returns who waits for it.
    pub(super) fn push(&self, stream: Stream) -> Interest {
        let mut inner = self.inner.borrow_mut();
        inner.streams.push_back(stream);
        inner.waiting.take()
    }

    /// Whether the engine is to stop accepting for now.
    pub(crate) fn is_full(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.paused |= inner.streams.len() >= BACKLOG;
        inner.paused
    }
}

/// Listens on an address and hands out what it accepts, on the worker of the task that made it. Dropping it stops that
/// and closes what was accepted and not handed out.
pub struct Listener {
    cell: Rc<ListenerCell>,
    address: Address,
}

impl Listener {
    /// Listens on `address`, with the default options of the socket. The kernel takes connections from now on.
    ///
    /// # Errors
    ///
    /// What the system answers; `InvalidInput` for text that is no address.
    ///
    /// # Panics
    ///
    /// Outside of a worker's thread.
    pub fn bind(address: impl IntoAddress) -> io::Result<Self> {
        Self::bind_with(address, &ListenOptions::default())
    }

    /// Listens on `address`. For the same address on several workers set
    /// [`ListenOptions::reuse_port`](crate::ListenOptions).
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    ///
    /// # Panics
    ///
    /// Outside of a worker's thread.
    pub fn bind_with(address: impl IntoAddress, options: &ListenOptions) -> io::Result<Self> {
        let runtime = Runtime::current("Listener::bind");
        let to = address.into_address().map_err(invalid)?.to_system()?;
        let socket = Socket::listen(&to, options, runtime.network.as_ref())?;
        let address = Address::from_system(&socket.local_addr()?);
        let queue = Queue { streams: VecDeque::new(), waiting: Interest::None, paused: false, error: None };
        let (id, gone) = (Cell::new(None), Cell::new(false));
        let cell = Rc::new(ListenerCell { runtime, id, gone, inner: RefCell::new(queue) });
        cell.runtime.request(Request::Listen { listener: Rc::clone(&cell), socket });
        Ok(Self { cell, address })
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
    /// When the listener is closed, by a shutdown or because the engine refused it. An accept that fails is no error: it is
    /// tried again after a pause.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses no connection: what is accepted waits for the next call.
    pub async fn accept(&mut self) -> io::Result<Stream> {
        poll_fn(|cx| {
            let cell = &self.cell;
            let mut inner = cell.inner.borrow_mut();
            if let Some(stream) = inner.streams.pop_front() {
                if inner.paused && inner.streams.len() <= BACKLOG / 2 {
                    inner.paused = false;
                    cell.id.get().into_iter().for_each(|id| cell.runtime.request(Request::AcceptMore(id)));
                }
                return Poll::Ready(Ok(stream));
            }
            if let Some(error) = &inner.error {
                return Poll::Ready(Err(io::Error::new(error.kind(), error.to_string())));
            }
            cell.runtime.register(&mut inner.waiting, cx);
            Poll::Pending
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.cell.gone.set(true);
        if let Some(id) = self.cell.id.get() {
            self.cell.runtime.request(Request::Unlisten(id));
        }
        // Each stream closes as it is dropped, which may look at this listener's runtime but never at its queue.
        let streams = std::mem::take(&mut self.cell.inner.borrow_mut().streams);
        drop(streams);
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("address", &self.address).finish()
    }
}

/// Connects to `address`, on the worker of this task.
///
/// # Errors
///
/// What the system answers, for example `ConnectionRefused`; `InvalidInput` for text that is no address.
///
/// # Cancel safety
///
/// When it is dropped the connect is cancelled; a connection that was just established is closed.
///
/// # Panics
///
/// Outside of a worker's thread.
pub async fn connect(address: impl IntoAddress) -> io::Result<Stream> {
    connect_with(address, SocketOptions::default()).await
}

/// Connects with options of the socket.
///
/// # Errors
///
/// As [`connect`].
///
/// # Cancel safety
///
/// As [`connect`].
///
/// # Panics
///
/// Outside of a worker's thread.
pub async fn connect_with(address: impl IntoAddress, options: SocketOptions) -> io::Result<Stream> {
    let runtime = Runtime::current("connect");
    let stream = start_connect(&runtime, &address.into_address().map_err(invalid)?, options)?;
    stream.connected().await?;
    Ok(stream)
}

/// A stream that begins to connect.
pub(super) fn start_connect(runtime: &Rc<Runtime>, to: &Address, options: SocketOptions) -> io::Result<Stream> {
    let to = to.to_system()?;
    if runtime.is_closed() {
        return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the worker has ended"));
    }
    let cell = StreamCell::new(Rc::clone(runtime), false, &ConnectionOptions::default());
    let stream = Stream::new(Rc::clone(&cell));
    runtime.request(Request::Connect { stream: cell, whither: Box::new((to, options)) });
    Ok(stream)
}

fn invalid(error: crate::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
