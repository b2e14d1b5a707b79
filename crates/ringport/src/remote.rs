//! Reaching a connection from other threads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ringport_engine::{ConnId, Socket};

use crate::handler::Message;
use crate::worker::{ConnectionId, Mailbox, Permit, Resolved};

/// Messages that fit into a worker's mailbox. Beyond, senders get theirs back.
const MAILBOX_CAPACITY: usize = 4096;

/// A way from any thread to the connections of a server or client. Cheap to clone.
///
/// What is sent goes into the mailbox of the connection's worker. If that worker sleeps, one doorbell wakes it,
/// however many messages follow; if it is awake there is no system call at all.
#[derive(Clone)]
pub struct Remote {
    pub(crate) mailboxes: Arc<[Arc<Mailbox<Letter>>]>,
    /// Milliseconds within which to finish, or [`NEVER`].
    stop_within: Arc<AtomicU64>,
}

/// Nobody asked to finish.
const NEVER: u64 = u64::MAX;

/// What a worker finds in its mailbox.
pub(crate) enum Letter {
    Send(ConnId, Bytes),
    Message(ConnId, Message),
    Close(ConnId),
    Abort(ConnId),
    /// A task was woken; which one is in a list of its own.
    Wake,
    /// Starts something on the worker's thread.
    Start(Box<dyn FnOnce() + Send>),
    /// A connection that another worker accepted, for the service with this number.
    Adopt(Socket, u32, Option<Permit>),
    /// A host name was looked up.
    Resolved(Box<Resolved>),
}

/// The mailbox was full or its worker gone. The message is handed back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteError<T>(pub T);

impl<T> fmt::Display for RemoteError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the worker's mailbox is full, or the worker has ended; try again later or drop the message")
    }
}

impl<T: fmt::Debug> std::error::Error for RemoteError<T> {}

impl Remote {
    /// For `workers` workers that do not run yet.
    pub(crate) fn new(workers: usize) -> Self {
        let mailboxes = (0..workers).map(|_| Arc::new(Mailbox::new(MAILBOX_CAPACITY))).collect();
        Self { mailboxes, stop_within: Arc::new(AtomicU64::new(NEVER)) }
    }

    /// Sends `data` on a connection, after all that was sent through this mailbox before. On a connection that is
    /// gone it is dropped.
    ///
    /// # Errors
    ///
    /// When the mailbox is full or the worker has ended; the data comes back.
    pub fn send(&self, to: ConnectionId, data: impl Into<Bytes>) -> Result<(), RemoteError<Bytes>> {
        self.post(to, Letter::Send(to.conn, data.into())).map_err(|letter| match letter {
            Letter::Send(_, data) => RemoteError(data),
            _ => unreachable!("the letter that was posted comes back"),
        })
    }

    /// Calls [`Handler::message`](crate::Handler::message) on a connection. If the connection is gone the message is dropped.
    ///
    /// # Errors
    ///
    /// When the mailbox is full or the worker has ended; the message comes back.
    pub fn message(&self, to: ConnectionId, message: Message) -> Result<(), RemoteError<Message>> {
        self.post(to, Letter::Message(to.conn, message)).map_err(|letter| match letter {
            Letter::Message(_, message) => RemoteError(message),
            _ => unreachable!("the letter that was posted comes back"),
        })
    }

    /// Closes a connection in order.
    ///
    /// # Errors
    ///
    /// When the mailbox is full or the worker has ended.
    pub fn close(&self, id: ConnectionId) -> Result<(), RemoteError<()>> {
        self.post(id, Letter::Close(id.conn)).map_err(|_| RemoteError(()))
    }

    /// Aborts a connection.
    ///
    /// # Errors
    ///
    /// When the mailbox is full or the worker has ended.
    pub fn abort(&self, id: ConnectionId) -> Result<(), RemoteError<()>> {
        self.post(id, Letter::Abort(id.conn)).map_err(|_| RemoteError(()))
    }

    /// Has `start` called on the thread of a worker.
    pub(crate) fn start(&self, worker: usize, start: Box<dyn FnOnce() + Send>) -> Result<(), RemoteError<()>> {
        let mailbox = self.mailboxes.get(worker).ok_or(RemoteError(()))?;
        mailbox.push(Letter::Start(start)).map_err(|_| RemoteError(()))
    }

    /// Tells every worker to finish. Not by a letter: a shutdown must not depend on room in a mailbox.
    pub(crate) fn shut_down(&self, within: Duration) {
        let milliseconds = u64::try_from(within.as_millis()).unwrap_or(u64::MAX).min(NEVER - 1);
        self.stop_within.fetch_min(milliseconds, Ordering::Release);
        for mailbox in self.mailboxes.iter() {
            mailbox.wake();
        }
    }

    /// The time within which to finish, once somebody asked for it.
    pub(crate) fn stop_within(&self) -> Option<Duration> {
        let milliseconds = self.stop_within.load(Ordering::Acquire);
        if milliseconds == NEVER { None } else { Some(Duration::from_millis(milliseconds)) }
    }

    fn post(&self, to: ConnectionId, letter: Letter) -> Result<(), Letter> {
        match self.mailboxes.get(to.worker()) {
            Some(mailbox) => mailbox.push(letter),
            None => Err(letter),
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("workers", &self.mailboxes.len()).finish()
    }
}
