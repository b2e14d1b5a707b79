//! What the sends of a worker cost, all connections together.

/// Counted where a session queues or drops, which knows no other counters.
#[derive(Debug, Default)]
pub(crate) struct Account {
    /// Messages that a policy dropped.
    pub(crate) dropped_messages: u64,
    /// Their bytes.
    pub(crate) dropped_bytes: u64,
}
