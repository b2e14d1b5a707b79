//! [`Simulation`]: servers and clients in a simulated network, on one thread, replayed from a seed.

use std::io;
use std::time::Duration;

pub use ringport_engine::engine::sim::{Faults, Personality};
use ringport_engine::engine::sim::{Network, SimEngine};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::plan::{Plan, ServerHandle};
use crate::server::Server;
use crate::worker::Worker;

/// Turns without any progress after which a simulation counts as stuck.
const STUCK_TURNS: u32 = 100_000;

/// A simulated network with servers and clients on it. Everything runs on the calling thread, in virtual time, and
/// the same seed gives the same run: a handler can be tested against partial receives, resets and lost connections
/// without a real socket.
///
/// Give each server and client one worker; with more, connections are handed over between them as on a real machine.
pub struct Simulation {
    network: Network,
    workers: Vec<Worker<SimEngine>>,
}

impl Simulation {
    /// A network that behaves as `faults` say, drawn from `seed`.
    #[must_use]
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self { network: Network::with_faults(seed, faults), workers: Vec::new() }
    }

    /// Adds a server.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn serve(&mut self, server: Server) -> Result<ServerHandle> {
        self.add(server.into_plan()?)
    }

    /// Adds a client. Its servers should be there already.
    ///
    /// # Errors
    ///
    /// As [`Client::start`].
    pub fn connect(&mut self, client: Client) -> Result<ServerHandle> {
        self.add(client.into_plan()?)
    }

    fn add(&mut self, mut plan: Plan) -> Result<ServerHandle> {
        plan.config.network = Some(self.network.clone());
        let prepared = plan.prepare()?;
        for setup in prepared.setups {
            let worker = setup.open().map_err(|source| Error::System { what: "cannot open the simulator", source })?;
            self.workers.push(worker);
        }
        Ok(prepared.handle)
    }

    /// Runs until `done` says so or every worker has ended. Returns whether `done` did.
    ///
    /// # Errors
    ///
    /// If nothing can happen any more and `done` still says no: the simulation is stuck.
    pub fn run_until(&mut self, mut done: impl FnMut() -> bool) -> Result<bool> {
        let mut idle = 0;
        loop {
            if done() {
                return Ok(true);
            }
            if self.workers.iter().all(Worker::is_finished) {
                return Ok(false);
            }
            if self.step()? {
                idle = 0;
            } else {
                idle += 1;
                if idle > STUCK_TURNS {
                    let source = io::Error::other("nothing happens any more");
                    return Err(Error::System { what: "the simulation is stuck", source });
                }
            }
        }
    }

    /// Lets every worker do what it can, then moves the clock if none could. Returns whether anything happened.
    ///
    /// # Errors
    ///
    /// If an engine fails.
    pub fn step(&mut self) -> Result<bool> {
        let before = self.events();
        for worker in &mut self.workers {
            if !worker.is_finished() {
                let now = worker.context().now();
                worker.turn(Some(now)).map_err(failed)?;
            }
        }
        if self.events() != before {
            return Ok(true);
        }
        let timer = self.workers.iter().filter_map(Worker::next_deadline).min();
        let Some(now) = self.workers.first().map(|worker| worker.context().now()) else { return Ok(false) };
        let until = timer.unwrap_or(now + Duration::from_millis(1)).min(now + Duration::from_millis(1));
        if let Some(worker) = self.workers.iter_mut().find(|worker| !worker.is_finished()) {
            worker.turn(Some(until)).map_err(failed)?;
        }
        Ok(timer.is_some() || self.events() != before)
    }

    /// A number that stands for everything that happened: equal for equal runs.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.network.trace()
    }

    fn events(&self) -> u64 {
        self.workers.iter().map(Worker::events).sum()
    }
}

fn failed(source: io::Error) -> Error {
    Error::System { what: "the simulator failed", source }
}
