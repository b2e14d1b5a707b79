//! [`DatagramSocket`]: datagrams (UDP) for tasks.

mod cell;
mod service;

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringport_engine::{Chunk, Socket, UdpOptions};

pub(crate) use self::cell::DatagramCell;
pub(crate) use self::service::{receiving, serving};
use super::runtime::{Request, Runtime};
use super::time::timeout;
use crate::address::{Address, IntoAddress};
use crate::datagram::Datagram;

/// Whoever holds one of these keeps the socket open.
struct Handle {
    cell: Rc<DatagramCell>,
    local: SocketAddr,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.cell.give_up();
    }
}

/// The receiving half of a [`DatagramSocket`].
pub struct DatagramReceiver {
    handle: Rc<Handle>,
    timeout: Option<Duration>,
}

/// The sending half of a [`DatagramSocket`].
pub struct DatagramSender {
    handle: Rc<Handle>,
    timeout: Option<Duration>,
}

/// A datagram socket, owned by a task. It stays on its worker.
///
/// ```
/// use ringport::aio::{self, DatagramSocket};
///
/// # fn main() -> ringport::Result<()> {
/// ringport::block_on(async {
///     let (mut server, mut client) = (DatagramSocket::bind("127.0.0.1:0")?, DatagramSocket::bind("127.0.0.1:0")?);
///     let to = server.local_addr();
///     let serving = aio::spawn(async move {
///         let question = server.recv_from().await?;
///         server.send_to(question.data, question.from).await
///     });
///     client.send_to("hello", to).await?;
///     let answer = client.recv_from().await?;
///     assert_eq!((&answer.data[..], answer.from, answer.truncated), (&b"hello"[..], to, false));
///     serving.await?
/// })?
/// # .or_else(|error: std::io::Error| match error.kind() {
/// #     std::io::ErrorKind::Unsupported => Ok(()),
/// #     _ => panic!("{error}"),
/// # })
/// # }
/// ```
///
/// A received datagram comes in a buffer of the worker, and can be sent from there without a copy. What a task sends leaves
/// when it waits next, many datagrams at a time. UDP promises nothing: datagrams get lost, come twice or in another order.
///
/// Dropping it (with [`Self::split`], both halves) closes the socket; what the kernel does not take at once is lost then.
///
/// # Errors
///
/// An engine without datagrams is found out with the first operation that waits: `Unsupported`.
pub struct DatagramSocket {
    receiver: DatagramReceiver,
    sender: DatagramSender,
}

impl DatagramReceiver {
    /// The next datagram, whole unless it says that it is truncated, and who sent it.
    ///
    /// # Errors
    ///
    /// What ended the socket, after all that had arrived was handed out; `TimedOut` after the read timeout. A datagram that
    /// could not be sent or delivered is no error here, see [`DatagramSender::failure`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing: the next call gets the datagram.
    pub async fn recv_from(&mut self) -> io::Result<Datagram> {
        let cell = &self.handle.cell;
        within(self.timeout, "no datagram within the read timeout", poll_fn(|cx| cell.poll_recv(cx))).await
    }

    /// The next datagram, if one has arrived.
    pub fn try_recv_from(&mut self) -> Option<Datagram> {
        self.handle.cell.try_recv()
    }

    /// Sets how long [`Self::recv_from`] may wait. Without end by default.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Where the socket is bound, with the real port number.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.handle.local
    }
}

impl DatagramSender {
    /// Queues one datagram, without copying it, once there is room in the queue. That it was queued does not mean that it
    /// arrives, nor even that it can be sent: see [`Self::failure`].
    ///
    /// # Errors
    ///
    /// What ended the socket; `TimedOut` when the queue stayed full for the write timeout.
    ///
    /// # Cancel safety
    ///
    /// All or nothing: if it is dropped before it is ready, the datagram was not and will not be sent.
    pub async fn send_to(&mut self, data: impl Into<Chunk>, to: SocketAddr) -> io::Result<()> {
        let data = data.into();
        self.writable().await?;
        self.handle.cell.push(to, data);
        Ok(())
    }

    /// Queues one datagram if there is room.
    ///
    /// # Errors
    ///
    /// Hands the data back if there is none, or if the socket has ended.
    pub fn try_send_to<C: Into<Chunk>>(&mut self, data: C, to: SocketAddr) -> Result<(), Chunk> {
        let data = data.into();
        if !self.handle.cell.has_room() {
            return Err(data);
        }
        self.handle.cell.push(to, data);
        Ok(())
    }

    /// Waits until there is room in the queue, so that the next send does not wait.
    ///
    /// # Errors
    ///
    /// As [`Self::send_to`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn writable(&mut self) -> io::Result<()> {
        let cell = &self.handle.cell;
        within(self.timeout, "no room within the write timeout", poll_fn(|cx| cell.poll_room(cx))).await
    }

    /// Waits until a datagram could not be sent, or its peer was reported unreachable (`ConnectionRefused`: nobody has
    /// the port), and tells to whom it was, where the system says so. The socket goes on. The latest 16 are kept.
    ///
    /// # Errors
    ///
    /// What ended the socket.
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn failure(&mut self) -> io::Result<(Option<SocketAddr>, io::Error)> {
        poll_fn(|cx| self.handle.cell.poll_failure(cx)).await
    }

    /// Sets how long a send may wait for room. Without end by default.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Datagrams that wait for the engine to take them.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.handle.cell.queued()
    }

    /// Where the socket is bound, with the real port number.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.handle.local
    }
}

impl DatagramSocket {
    /// Binds to `address`, with the default options of the socket. Port 0 picks a free one.
    ///
    /// # Errors
    ///
    /// What the system answers; `InvalidInput` for what is no IP address.
    ///
    /// # Panics
    ///
    /// Outside of a worker's thread.
    pub fn bind(address: impl IntoAddress) -> io::Result<Self> {
        Self::bind_with(address, &UdpOptions::default())
    }

    /// Binds to `address`. For the same address on several workers set [`UdpOptions::reuse_port`], or let
    /// [`Server::udp_async`](crate::Server::udp_async) do that.
    ///
    /// # Errors
    ///
    /// As [`Self::bind`].
    ///
    /// # Panics
    ///
    /// Outside of a worker's thread.
    pub fn bind_with(address: impl IntoAddress, options: &UdpOptions) -> io::Result<Self> {
        let runtime = Runtime::current("DatagramSocket::bind");
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        let Address::Ip(address) = address.into_address().map_err(invalid)? else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "datagrams need an IP address"));
        };
        let socket = Socket::bind_udp(address, options, runtime.network.as_ref())?;
        let local = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::InvalidInput)?;
        let cell = DatagramCell::new(&runtime);
        runtime.request(Request::BindDatagrams { cell: Rc::clone(&cell), socket });
        Ok(Self::new(cell, local))
    }

    fn new(cell: Rc<DatagramCell>, local: SocketAddr) -> Self {
        let handle = Rc::new(Handle { cell, local });
        let receiver = DatagramReceiver { handle: Rc::clone(&handle), timeout: None };
        Self { receiver, sender: DatagramSender { handle, timeout: None } }
    }

    /// As [`DatagramReceiver::recv_from`].
    ///
    /// # Errors
    ///
    /// As [`DatagramReceiver::recv_from`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn recv_from(&mut self) -> io::Result<Datagram> {
        self.receiver.recv_from().await
    }

    /// As [`DatagramReceiver::try_recv_from`].
    pub fn try_recv_from(&mut self) -> Option<Datagram> {
        self.receiver.try_recv_from()
    }

    /// As [`DatagramSender::send_to`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send_to`].
    ///
    /// # Cancel safety
    ///
    /// All or nothing.
    pub async fn send_to(&mut self, data: impl Into<Chunk>, to: SocketAddr) -> io::Result<()> {
        self.sender.send_to(data, to).await
    }

    /// As [`DatagramSender::try_send_to`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::try_send_to`].
    pub fn try_send_to<C: Into<Chunk>>(&mut self, data: C, to: SocketAddr) -> Result<(), Chunk> {
        self.sender.try_send_to(data, to)
    }

    /// As [`DatagramSender::writable`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::send_to`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it changes nothing.
    pub async fn writable(&mut self) -> io::Result<()> {
        self.sender.writable().await
    }

    /// As [`DatagramSender::failure`].
    ///
    /// # Errors
    ///
    /// As [`DatagramSender::failure`].
    ///
    /// # Cancel safety
    ///
    /// Dropping it loses nothing.
    pub async fn failure(&mut self) -> io::Result<(Option<SocketAddr>, io::Error)> {
        self.sender.failure().await
    }

    /// As [`DatagramReceiver::set_read_timeout`].
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.receiver.set_read_timeout(timeout);
    }

    /// As [`DatagramSender::set_write_timeout`].
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.sender.set_write_timeout(timeout);
    }

    /// Where the socket is bound, with the real port number.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.sender.local_addr()
    }

    /// The two halves, for two tasks of this worker, or to wait for both at the same time.
    #[must_use]
    pub fn split(self) -> (DatagramReceiver, DatagramSender) {
        (self.receiver, self.sender)
    }
}

/// Gives `future` at most `limit`, if there is one.
async fn within<T>(
    limit: Option<Duration>,
    late: &'static str,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match limit {
        None => future.await,
        Some(limit) => match timeout(limit, future).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, late)),
        },
    }
}

impl fmt::Debug for DatagramSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSocket").field("local", &self.local_addr()).finish()
    }
}

impl fmt::Debug for DatagramReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramReceiver").field("local", &self.local_addr()).finish()
    }
}

impl fmt::Debug for DatagramSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatagramSender").field("local", &self.local_addr()).finish()
    }
}
