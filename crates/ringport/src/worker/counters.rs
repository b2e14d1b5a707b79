//! Counters of a worker: one thread writes, anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread changes and others read. Nobody else writes, so that a load and a store do, and the line of the
/// cache need not be locked.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn add(&self, more: u64) {
        self.set(self.get().wrapping_add(more));
    }

    #[inline]
    pub(crate) fn subtract(&self, less: u64) {
        self.set(self.get().wrapping_sub(less));
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Counters of one worker or, added up, of a server.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct WorkerStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// Where a worker counts.
        #[derive(Default)]
        pub(crate) struct Counters {
            $(pub(super) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> WorkerStats {
                WorkerStats { $($name: self.$name.get(),)* }
            }
        }

        impl std::ops::AddAssign for WorkerStats {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    /// Connections now.
    connections,
    /// Connections accepted.
    accepted,
    /// Connections taken over from the worker that accepted them.
    taken_over,
    /// Connections refused because of a limit, whichever.
    refused,
    /// Those of them that were refused because their address has enough connections.
    refused_by_address,
    /// Those of them that were refused because too many came at a time.
    refused_by_rate,
    /// Accepts that failed, for want of descriptors or memory.
    accepts_failed,
    /// Connections opened by connecting.
    connected,
    /// Connections closed.
    closed,
    /// Receive events.
    receives,
    /// Bytes received.
    received_bytes,
    /// Bytes that the kernel took.
    sent_bytes,
    /// Sends that were taken whole before the call returned.
    sends_at_once,
    /// Times that reading of a connection was put to rest by a rate limit.
    throttled,
    /// Messages that a policy dropped because too much was queued.
    dropped_messages,
    /// Bytes of those.
    dropped_bytes,
    /// Bytes that count against the memory limit now: queued, kept, or copies that handlers hold.
    charged_bytes,
    /// Callbacks that panicked.
    panics,
    /// Turns of the loop.
    turns,
    /// Events of the engine.
    events,
    /// System calls for data.
    calls,
    /// Times that a receive found no buffer.
    starved,
    /// Received messages delivered as copies, because buffers ran low.
    copies,
    /// Datagrams received.
    datagrams_received,
    /// Datagrams that the kernel took.
    datagrams_sent,
    /// Datagrams that the kernel dropped because nobody read them in time, where the system says so.
    datagrams_dropped,
    /// Datagrams received without their end.
    datagrams_truncated,
    /// Datagrams not sent, and peers reported unreachable.
    datagrams_failed,
    /// Datagrams that a handler could not send because too many were waiting, or for want of memory.
    datagrams_refused,
    /// Peers of datagram sockets with a state, now.
    peers,
    /// Datagrams dropped because there were too many peers, in all or of their address.
    peers_refused,
    /// Datagrams dropped because their peer sent too many a second.
    datagrams_over_rate,
    /// Peers forgotten after their idle timeout.
    peers_expired,
}
