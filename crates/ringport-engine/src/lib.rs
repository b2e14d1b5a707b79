//! The engines of ringport: one safe contract over io_uring, epoll, kqueue, I/O completion ports, Registered I/O and a
//! deterministic simulator.
//!
//! This is the only crate of ringport that contains `unsafe`. Most programs use the crate `ringport`, which adds
//! sessions, workers, timers and servers on top of it.
//!
//! Start with [`engine::contract`]: it says what an engine is and which laws it obeys. [`buffer`] holds the memory that
//! the kernel may see.

pub mod buffer;
pub mod engine;
mod id;
mod options;
mod prefetch;
pub mod socket;

pub use buffer::{Buf, Chunk, FileRange, Pool, PoolConfig, PoolStats, SendQueue};
pub use engine::contract::{
    Close, ConnInfo, Engine, EngineConfig, EngineStats, Event, Features, RioCompletions, SendProgress, SendTo,
    Upcoming, Usual, Waker, Want,
};
pub use engine::{EngineKind, Selection};
pub use id::{ConnId, ListenerId, UdpId};
pub use options::{KeepAlive, OptionName, SocketOption, SocketRef, TcpInfo};
pub use prefetch::{NEAR_CONNECTIONS, prefetch};
pub use socket::{ListenOptions, SockAddr, Socket, SocketOptions, UdpOptions};
