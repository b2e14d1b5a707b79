//! ringport: completion-based networking, on io_uring, epoll and kqueue behind one contract.
//!
//! ```no_run
//! use ringport::{Buf, Connection, Handler, Server};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     type State = ();
//!
//!     fn data(&mut self, conn: &mut Connection<'_, ()>, data: Buf) {
//!         conn.send(data);
//!     }
//! }
//!
//! fn main() -> ringport::Result<()> {
//!     Server::new().listen("127.0.0.1:6628", || Echo).run()
//! }
//! ```
//!
//! A [`Server`] has one or more workers, each a thread with an engine, a buffer pool, its connections and its timers; a
//! connection stays on its worker for life. A [`Handler`] is called with what happens; [`Connection`] is what it
//! acts on. Other threads reach a connection through [`Remote`]. [`serve`] and [`aio`] are the same with async/await. A [`Client`] opens connections with the same handlers,
//! a [`DatagramHandler`] serves UDP beside them, and a [`Simulation`] runs both in a simulated network, replayed from a seed.
#![forbid(unsafe_code)]

mod address;
pub mod aio;
mod blocking;
mod client;
mod common;
mod datagram;
mod error;
mod handler;
mod plan;
mod remote;
mod server;
mod session;
mod simulation;
pub mod sync;
mod worker;

pub use address::{Address, Destination, IntoAddress};
pub use aio::{Stream, block_on, serve};
pub use blocking::{JobPanicked, QueueFull};
pub use bytes::Bytes;
pub use client::Client;
pub use datagram::{Datagram, DatagramHandler, DatagramOptions, Datagrams};
pub use error::{Error, Result, is_transient};
pub use handler::{Connection, Handler, Message};
pub use plan::{Running, ServerHandle, Spread};
pub use remote::{Remote, RemoteError};
pub use ringport_engine::engine::contract::SPIN_MAX;
pub use ringport_engine::engine::{Candidate, SelectionError};
pub use ringport_engine::{
    Buf, Chunk, ConnInfo, EngineConfig, EngineKind, EngineStats, Features, FileRange, KeepAlive, ListenOptions,
    OptionName, Pool, PoolConfig, PoolStats, Selection, SocketOption, SocketOptions, TcpInfo, UdpOptions,
};
pub use server::Server;
pub use session::{
    CloseReason, CloseReport, ConnectionOptions, Heartbeat, MinimumRate, OverLimit, Rate, Refusal, SendOutcome,
};
pub use simulation::{Faults, Personality, Simulation};
pub use worker::{ConnectionId, Context, TimerId, WorkerStats};
