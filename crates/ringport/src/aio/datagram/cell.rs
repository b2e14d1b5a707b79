//! [`DatagramCell`]: where a datagram socket of a task and its worker meet, as streams do in theirs.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use ringport_engine::{Chunk, UdpId, Want};

use crate::aio::runtime::{Interest, Request, Runtime};
use crate::datagram::Datagram;

/// Datagrams that lie in the inbox before receiving pauses. It goes on at half of them. Then the kernel keeps what its
/// buffer holds and drops the rest. An engine has 256 buffers for them by default, for all of its sockets.
const INBOX: usize = 32;

/// Datagrams that wait for the engine before sends wait. The engine has a queue of its own behind
/// ([`DATAGRAMS_QUEUED_MAX`](ringport_engine::engine::contract::DATAGRAMS_QUEUED_MAX)).
const OUTBOX: usize = 256;

/// Failures that are kept for whoever asks.
const FAILURES: usize = 16;

/// One datagram socket of a task.
pub(crate) struct DatagramCell {
    pub(super) runtime: Rc<Runtime>,
    id: Cell<Option<UdpId>>,
    /// The worker will look at it.
    touched: Cell<bool>,
    inner: RefCell<Inner>,
}

#[derive(Default)]
struct Inner {
    inbox: VecDeque<Datagram>,
    outbox: VecDeque<(SocketAddr, Chunk)>,
    /// Datagrams that the worker has and the engine has not.
    left: usize,
    failures: VecDeque<(Option<SocketAddr>, io::Error)>,
    reader: Interest,
    writer: Interest,
    watcher: Interest,
    paused: bool,
    /// Nobody holds the socket any more.
    gone: bool,
    end: Option<(io::ErrorKind, String)>,
}

/// What the worker has to do for it.
pub(crate) struct Todo {
    pub(crate) outbox: VecDeque<(SocketAddr, Chunk)>,
    /// If that is to change.
    pub(crate) want: Option<Want>,
    pub(crate) close: bool,
}

impl DatagramCell {
    pub(super) fn new(runtime: &Rc<Runtime>) -> Rc<Self> {
        let (id, touched) = (Cell::new(None), Cell::new(false));
        Rc::new(Self { runtime: Rc::clone(runtime), id, touched, inner: RefCell::default() })
    }

    // For the worker.

    /// The engine has the socket.
    pub(super) fn opened(&self, id: UdpId) {
        self.id.set(Some(id));
    }

    /// The socket, while the engine has it.
    pub(crate) fn id(&self) -> Option<UdpId> {
        self.id.get()
    }

    /// A datagram arrived. Returns who waits for it.
    #[inline]
    pub(super) fn receive(self: &Rc<Self>, datagram: Datagram) -> Interest {
        let mut inner = self.inner.borrow_mut();
        if inner.gone {
            return Interest::None;
        }
        inner.inbox.push_back(datagram);
        if inner.inbox.len() > INBOX && !inner.paused {
            self.touch();
        }
        inner.reader.take()
    }

    /// A datagram failed.
    pub(super) fn fail(&self, to: Option<SocketAddr>, error: &io::Error) {
        let mut inner = self.inner.borrow_mut();
        if inner.failures.len() == FAILURES {
            inner.failures.pop_front();
        }
        inner.failures.push_back((to, io::Error::new(error.kind(), error.to_string())));
        let who = inner.watcher.take();
        drop(inner);
        self.runtime.notify(who);
    }

    /// What was left for the worker since it last looked.
    pub(crate) fn take_todo(&self) -> Todo {
        self.touched.set(false);
        let mut inner = self.inner.borrow_mut();
        let (waiting, before) = (inner.inbox.len(), inner.paused);
        inner.paused = if before { waiting > INBOX / 2 } else { waiting > INBOX };
        let want = if inner.paused { Want::Paused } else { Want::On };
        let want = (inner.paused != before).then_some(want);
        Todo { outbox: std::mem::take(&mut inner.outbox), want, close: inner.gone }
    }

    /// So many datagrams wait for the engine.
    pub(crate) fn set_left(&self, left: usize) {
        let mut inner = self.inner.borrow_mut();
        inner.left = left;
        let who = if inner.has_room() { inner.writer.take() } else { Interest::None };
        drop(inner);
        self.runtime.notify(who);
    }

    /// The socket is gone, or never was there.
    pub(crate) fn end(&self, error: &io::Error) {
        self.id.set(None);
        let mut inner = self.inner.borrow_mut();
        inner.end.get_or_insert((error.kind(), error.to_string()));
        inner.outbox.clear();
        let waiting = [inner.reader.take(), inner.writer.take(), inner.watcher.take()];
        drop(inner);
        waiting.into_iter().for_each(|who| self.runtime.notify(who));
    }

    /// Whether nobody wants the socket, and nothing is to be sent on it.
    pub(crate) fn is_abandoned(&self) -> bool {
        let inner = self.inner.borrow();
        inner.gone && inner.outbox.is_empty()
    }

    // For the socket.

    pub(super) fn poll_recv(self: &Rc<Self>, cx: &Context<'_>) -> Poll<io::Result<Datagram>> {
        if let Some(datagram) = self.try_recv() {
            return Poll::Ready(Ok(datagram));
        }
        let mut inner = self.inner.borrow_mut();
        inner.check()?;
        self.runtime.register(&mut inner.reader, cx);
        Poll::Pending
    }

    pub(super) fn try_recv(self: &Rc<Self>) -> Option<Datagram> {
        let mut inner = self.inner.borrow_mut();
        let datagram = inner.inbox.pop_front()?;
        if inner.paused && inner.inbox.len() <= INBOX / 2 {
            self.touch();
        }
        Some(datagram)
    }

    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.borrow_mut();
        inner.check()?;
        if inner.has_room() {
            return Poll::Ready(Ok(()));
        }
        self.runtime.register(&mut inner.writer, cx);
        Poll::Pending
    }

    pub(super) fn poll_failure(&self, cx: &Context<'_>) -> Poll<io::Result<(Option<SocketAddr>, io::Error)>> {
        let mut inner = self.inner.borrow_mut();
        if let Some(failure) = inner.failures.pop_front() {
            return Poll::Ready(Ok(failure));
        }
        inner.check()?;
        self.runtime.register(&mut inner.watcher, cx);
        Poll::Pending
    }

    pub(super) fn has_room(&self) -> bool {
        let inner = self.inner.borrow();
        inner.check().is_ok() && inner.has_room()
    }

    /// Queues a datagram. The caller has seen that there is room.
    pub(super) fn push(self: &Rc<Self>, to: SocketAddr, data: Chunk) {
        self.inner.borrow_mut().outbox.push_back((to, data));
        self.touch();
    }

    pub(super) fn queued(&self) -> usize {
        self.inner.borrow().queued()
    }

    /// Nobody holds the socket any more.
    pub(super) fn give_up(self: &Rc<Self>) {
        let mut inner = self.inner.borrow_mut();
        inner.gone = true;
        let inbox = std::mem::take(&mut inner.inbox);
        drop(inner);
        drop(inbox);
        self.touch();
    }

    fn touch(self: &Rc<Self>) {
        if !self.touched.replace(true) {
            self.runtime.request(Request::Datagrams(Rc::clone(self)));
        }
    }
}

impl Inner {
    fn queued(&self) -> usize {
        self.left + self.outbox.len()
    }

    fn has_room(&self) -> bool {
        self.queued() < OUTBOX
    }

    fn check(&self) -> io::Result<()> {
        match &self.end {
            None => Ok(()),
            Some((kind, text)) => Err(io::Error::new(*kind, text.clone())),
        }
    }
}
