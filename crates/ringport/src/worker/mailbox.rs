//! tmp
use crossbeam_queue::ArrayQueue;
pub(crate) struct Mailbox<T> {
    q: ArrayQueue<T>,
}
impl<T> Mailbox<T> {
    pub(crate) fn new(n: usize) -> Self {
        Self { q: ArrayQueue::new(n) }
    }
    pub(crate) fn bind(&self, _: impl Fn() + Send + Sync + 'static) {}
    pub(crate) fn push(&self, t: T) -> Result<(), T> {
        self.q.push(t)
    }
    pub(crate) fn pop(&self) -> Option<T> {
        self.q.pop()
    }
    pub(crate) fn prepare_sleep(&self) -> bool {
        self.q.is_empty()
    }
    pub(crate) fn awake(&self) {}
    pub(crate) fn close(&self) {}
    pub(crate) fn is_closed(&self) -> bool {
        false
    }
}
