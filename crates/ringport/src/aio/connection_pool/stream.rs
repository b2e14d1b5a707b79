//! What a pool asks of a stream.

use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::Waker;

use crate::aio::stream::Stream;

impl Stream {
    /// Whether the connection may be used for something new: open both ways, and nothing lies there unread.
    pub(super) fn is_clean(&self) -> bool {
        self.cell().is_clean()
    }

    /// Has `waker` woken by the next thing that happens on the reading side, or nobody.
    pub(super) fn watch(&self, waker: Option<Waker>) {
        self.cell().watch(waker);
    }

    /// The timeouts of one user are not those of the next.
    pub(super) fn reset_timeouts(&mut self) {
        self.set_read_timeout(None);
        self.set_write_timeout(None);
    }

    /// Drops it, as whoever owns it would, and waits until the connection is gone, in whatever way.
    pub(super) fn close_behind(self) -> impl Future<Output = ()> + 'static {
        let cell = Rc::clone(self.cell());
        drop(self);
        async move {
            // How it ended matters to nobody any more.
            let _ = poll_fn(|cx| cell.poll_closed(cx)).await;
        }
    }
}
