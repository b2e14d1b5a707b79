//! What sessions, workers and servers promise, on every engine of this machine and on the simulator.
//!
//! Each test is written once, against a [`Stage`](stage::Stage), and `stages!` runs it on all of them.

mod aio;
mod blocking;
mod closing;
mod connecting;
mod datagram_tasks;
mod datagrams;
mod deadlines;
mod dropped;
mod elsewhere;
mod finish;
mod flow;
mod framing;
mod ledger;
mod limits;
mod options;
mod pooled;
mod pressure;
mod real;
mod remote;
mod shutdown;
mod stage;
mod timers;
#[cfg(unix)]
mod unix;
mod warnings;
