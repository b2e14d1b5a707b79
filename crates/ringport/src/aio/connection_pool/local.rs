//! [`Local`]: the connections of a pool on one worker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Instant;

use super::bell::{Bell, Watch};
use super::books::{Books, Grant, IdleKey, Ticket};
use super::options::{ConnectionPoolOptions, ConnectionPoolStats};
use super::{PooledStream, Shared};
use crate::address::Address;
use crate::aio::runtime::{Interest, Runtime};
use crate::aio::stream::Stream;
use crate::aio::time::{Sleep, sleep_until, timeout};
use crate::aio::{listener, task, yield_now};

/// The part of a pool that lies on one worker.
pub(in crate::aio) struct Local {
    runtime: Rc<Runtime>,
    owner: Weak<Shared>,
    options: Arc<ConnectionPoolOptions>,
    bell: Arc<Bell>,
    inner: RefCell<Inner>,
}

struct Inner {
    books: Books<Address, Stream>,
    /// Who waits for which ticket.
    waiting: BTreeMap<Ticket, Interest>,
    /// Without the gauges, which are looked up.
    stats: ConnectionPoolStats,
    in_use: u64,
    /// The keeper runs.
    kept: bool,
}

impl Local {
    pub(super) fn new(runtime: &Rc<Runtime>, owner: &Arc<Shared>, bell: Arc<Bell>) -> Self {
        let inner = Inner {
            books: Books::new(owner.options.limits()),
            waiting: BTreeMap::new(),
            stats: ConnectionPoolStats::default(),
            in_use: 0,
            kept: false,
        };
        let (owner, options) = (Arc::downgrade(owner), Arc::clone(&owner.options));
        Self { runtime: Rc::clone(runtime), owner, options, bell, inner: RefCell::new(inner) }
    }

    pub(super) fn belongs_to(&self, shared: &Arc<Shared>) -> bool {
        std::ptr::eq(self.owner.as_ptr(), Arc::as_ptr(shared))
    }

    /// Whether nobody can ask any more.
    pub(super) fn is_orphan(&self) -> bool {
        self.owner.strong_count() == 0
    }

    pub(super) fn now(&self) -> Instant {
        self.runtime.now()
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut ConnectionPoolStats)) {
        let mut inner = self.inner.borrow_mut();
        count(&mut inner.stats);
        self.bell.publish(inner.stats());
    }

    /// Gets a connection, however long that takes.
    pub(super) async fn acquire(self: &Rc<Self>, to: &Address) -> io::Result<PooledStream> {
        let asking = self.ask(to)?;
        loop {
            match asking.granted().await? {
                Grant::Open => return self.open(to).await,
                Grant::Reuse(stream, since) => {
                    if let Some(stream) = self.examine(to, stream, since).await {
                        self.count(|stats| stats.reused += 1);
                        return Ok(stream);
                    }
                    self.ask_again(&asking);
                }
            }
        }
    }

    /// Asks the books.
    fn ask<'a>(self: &Rc<Self>, to: &'a Address) -> io::Result<Asking<'a>> {
        let mut inner = self.inner.borrow_mut();
        let ticket = inner.books.ask(to);
        let asking = Asking { local: Rc::clone(self), to, ticket };
        if inner.books.is_waiting(ticket) && inner.books.waiting_len() > self.options.max_waiting {
            inner.stats.refused_full += 1;
            drop(inner);
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many wait for a connection"));
        }
        drop(inner);
        self.follow_up();
        Ok(asking)
    }

    fn ask_again(self: &Rc<Self>, asking: &Asking<'_>) {
        self.inner.borrow_mut().books.ask_again(asking.ticket, asking.to);
        self.follow_up();
    }

    /// Opens a connection, for which there is a place.
    async fn open(self: &Rc<Self>, to: &Address) -> io::Result<PooledStream> {
        let place = Place::new(self, to);
        let stream = listener::start_connect(&self.runtime, to, self.options.socket.clone())?;
        let mut stream = place.occupy(stream, None);
        if let Err(error) = stream.connected().await {
            self.count(|stats| stats.refused_connect += 1);
            // There is nothing to be closed, and nothing was discarded.
            drop(stream.place.take());
            return Err(error);
        }
        self.count(|stats| stats.created += 1);
        Ok(stream)
    }

    /// Looks whether a connection that was idle can be used. If not it is closed.
    async fn examine(self: &Rc<Self>, to: &Address, stream: Stream, since: Instant) -> Option<PooledStream> {
        stream.watch(None);
        let mut stream = Place::new(self, to).occupy(stream, Some(since));
        // The worker may not have seen yet what the kernel has. After its next turn it has, and after the turn that
        // runs the tasks come behind the events.
        let turn = self.runtime.turns();
        while self.runtime.turns() == turn && stream.is_clean() {
            yield_now().await;
        }
        if !stream.is_clean() {
            self.count(|stats| stats.evicted_stale += 1);
            stream.discard();
            return None;
        }
        stream.idle_since = None;
        let idle = self.now().saturating_duration_since(since);
        if let Some(health) = self.options.check.as_ref().filter(|check| idle >= check.after) {
            let checked = timeout(health.within, health.check.run(stream.stream_mut())).await;
            if !matches!(checked, Ok(Ok(()))) || !stream.is_clean() {
                self.count(|stats| stats.evicted_unhealthy += 1);
                stream.discard();
                return None;
            }
            stream.reset_timeouts();
        }
        Some(stream)
    }

    /// What follows every change of the books: evicted connections are closed, and those who were granted something are woken.
    fn follow_up(self: &Rc<Self>) {
        loop {
            let evicted = self.inner.borrow_mut().books.next_evicted();
            let Some((to, stream)) = evicted else { break };
            self.count(|stats| stats.evicted_for_room += 1);
            Place::closing(self, &to).close(stream);
        }
        let mut inner = self.inner.borrow_mut();
        while let Some(ticket) = inner.books.next_granted() {
            if let Some(who) = inner.waiting.remove(&ticket) {
                self.runtime.notify(who);
            }
        }
        self.bell.publish(inner.stats());
        let begin = inner.needs_keeper() && !std::mem::replace(&mut inner.kept, true);
        drop(inner);
        if begin {
            task::spawn_background(&self.runtime, keep(Rc::clone(self)));
        }
    }

    /// Closes idle connections on which something happened or whose time is over. Says when the next one's time is over, or
    /// `None` if there is nothing to keep any more.
    fn sweep(self: &Rc<Self>) -> Option<Option<Instant>> {
        for key in self.bell.take_rung() {
            if self.inner.borrow().books.idle(key).is_some_and(|stream| !stream.is_clean()) {
                self.evict(key, |stats| stats.evicted_stale += 1);
            }
        }
        let closed = self.bell.is_closed();
        let now = self.now();
        let mut next = None;
        loop {
            let oldest = self.inner.borrow().books.oldest();
            let Some(key) = oldest else { break };
            if closed {
                self.evict(key, |_| ());
                continue;
            }
            let Some(limit) = self.options.idle_timeout else { break };
            if key.0 + limit > now {
                next = Some(key.0 + limit);
                break;
            }
            self.evict(key, |stats| stats.evicted_idle += 1);
        }
        if closed {
            let waiting = std::mem::take(&mut self.inner.borrow_mut().waiting);
            waiting.into_values().for_each(|who| self.runtime.notify(who));
        }
        let mut inner = self.inner.borrow_mut();
        inner.kept = inner.needs_keeper() && !closed;
        inner.kept.then_some(next)
    }

    fn evict(self: &Rc<Self>, key: IdleKey, count: impl FnOnce(&mut ConnectionPoolStats)) {
        let idle = self.inner.borrow_mut().books.discard(key);
        if let Some((to, stream)) = idle {
            self.count(count);
            Place::closing(self, &to).close(stream);
        }
    }

    /// The worker has ended, and all its connections.
    pub(in crate::aio) fn end(&self) {
        let mut books = Books::new(self.options.limits());
        std::mem::swap(&mut books, &mut self.inner.borrow_mut().books);
        drop(books);
    }
}

impl Inner {
    fn needs_keeper(&self) -> bool {
        self.books.idle_len() > 0 || self.books.waiting_len() > 0
    }

    fn stats(&self) -> ConnectionPoolStats {
        let mut stats = self.stats;
        stats.open = self.books.places() as u64;
        stats.idle = self.books.idle_len() as u64;
        stats.waiting = self.books.waiting_len() as u64;
        stats.in_use = self.in_use;
        stats
    }
}

/// Closes what is idle for too long or was closed by others, until nothing is idle and nobody waits.
async fn keep(local: Rc<Local>) {
    let mut alarm: Option<Sleep> = None;
    poll_fn(|cx| {
        local.bell.listen(cx.waker());
        loop {
            let Some(next) = local.sweep() else { return Poll::Ready(()) };
            if ready_after(&mut alarm, next, cx).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await;
}

/// Waits until `next`. An alarm that is set already may ring before: connections come and go, and setting a timer
/// anew for each of them would cost more than one that rings in vain.
fn ready_after(alarm: &mut Option<Sleep>, next: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(next) = next else {
        *alarm = None;
        return Poll::Pending;
    };
    let sleep = alarm.get_or_insert_with(|| sleep_until(next));
    if sleep.deadline() > next {
        sleep.reset(next);
    }
    let over = pin!(&mut *sleep).poll(cx);
    if over.is_ready() {
        *alarm = None;
    }
    over
}

impl Drop for Local {
    /// Keeps the counters, without the gauges of what is gone.
    fn drop(&mut self) {
        if let Some(shared) = self.owner.upgrade() {
            let mut workers = shared.workers();
            workers.bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            workers.past += self.inner.borrow().stats;
        }
    }
}

/// One who asks. Dropping it passes its turn on.
struct Asking<'a> {
    local: Rc<Local>,
    to: &'a Address,
    ticket: Ticket,
}

impl Asking<'_> {
    async fn granted(&self) -> io::Result<Grant<Stream>> {
        poll_fn(|cx| {
            let mut inner = self.local.inner.borrow_mut();
            if self.local.bell.is_closed() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the pool is closed")));
            }
            if let Some(grant) = inner.books.take(self.ticket) {
                return Poll::Ready(Ok(grant));
            }
            self.local.runtime.register(inner.waiting.entry(self.ticket).or_default(), cx);
            Poll::Pending
        })
        .await
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut inner = self.local.inner.borrow_mut();
        inner.waiting.remove(&self.ticket);
        let granted = inner.books.cancel(self.ticket);
        drop(inner);
        if let Some((stream, since)) = granted {
            Place::new(&self.local, self.to).occupy(stream, Some(since));
        }
        self.local.follow_up();
    }
}

/// The right to one connection, which the books count. Dropping it gives it up.
pub(super) struct Place {
    local: Rc<Local>,
    to: Address,
    /// Its connection was taken out of the idle ones to be closed.
    closing: bool,
    used: bool,
    given: bool,
}

impl Place {
    /// For a place that was granted.
    fn new(local: &Rc<Local>, to: &Address) -> Self {
        Self { local: Rc::clone(local), to: to.clone(), closing: false, used: false, given: false }
    }

    /// For a connection that was taken out to be closed.
    fn closing(local: &Rc<Local>, to: &Address) -> Self {
        let mut place = Self::new(local, to);
        place.closing = true;
        place
    }

    pub(super) fn local(&self) -> &Rc<Local> {
        &self.local
    }

    /// Puts a connection into it, for whoever asked.
    fn occupy(mut self, stream: Stream, idle_since: Option<Instant>) -> PooledStream {
        self.used = true;
        self.local.inner.borrow_mut().in_use += 1;
        self.local.count(|_| ());
        PooledStream { stream: Some(stream), place: Some(self), idle_since, reused: idle_since.is_some() }
    }

    fn leave(&mut self) {
        if std::mem::take(&mut self.used) {
            self.local.inner.borrow_mut().in_use -= 1;
            self.local.count(|_| ());
        }
    }

    /// Its connection will be closed, and was good for nothing.
    pub(super) fn will_close(&mut self) {
        self.closing = true;
        self.local.inner.borrow_mut().books.will_close();
    }

    /// Gives the connection back with its place, if others can use it; says whether they can.
    pub(super) fn give_back(mut self, mut stream: Stream, since: Instant) -> bool {
        if self.local.bell.is_closed() || !stream.is_clean() {
            self.local.count(|stats| stats.discarded += 1);
            self.close(stream);
            return false;
        }
        stream.reset_timeouts();
        self.leave();
        self.given = true;
        let local = &self.local;
        let mut inner = local.inner.borrow_mut();
        let key = inner.books.give_back(&self.to, stream, since);
        if let Some(stream) = inner.books.idle(key) {
            stream.watch(Some(Watch::waker(&local.bell, key)));
        }
        drop(inner);
        local.follow_up();
        true
    }

    /// Closes the connection in order, in the background. The place is free when it is gone.
    pub(super) fn close(mut self, stream: Stream) {
        self.leave();
        let closed = stream.close_behind();
        let runtime = Rc::clone(&self.local.runtime);
        task::spawn_background(&runtime, async move {
            closed.await;
            drop(self);
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
        if !self.given {
            self.local.inner.borrow_mut().books.release(&self.to, self.closing);
        }
        self.local.follow_up();
    }
}
