//! What sessions, workers and servers promise, on every engine of this machine and on the simulator.
//!
//! Each test is written once, against a [`Stage`](stage::Stage), and `stages!` runs it on all of them.

mod closing;
mod finish;
mod flow;
mod ledger;
mod limits;
mod options;
mod real;
mod remote;
mod shutdown;
mod stage;
mod timers;
