//! The options that a server and a client have in common.

/// Builder methods for a type with a field `plan`. A macro and not a struct of options, so that both have them as methods of
/// their own, with documentation where it is looked for.
macro_rules! common_options {
    () => {
        /// Sets the number of workers, each a thread with connections of its own. One by default.
        pub fn workers(mut self, workers: usize) -> Self {
            self.plan.workers = workers;
            self
        }

        /// Binds each worker to a core. Off by default; Linux only.
        pub fn pin(mut self, pin: bool) -> Self {
            self.plan.pin = pin;
            self
        }

        /// Uses this engine. By default the best one that works here is chosen.
        pub fn engine(mut self, engine: Option<EngineKind>) -> Self {
            self.plan.engine = engine;
            self
        }

        /// Sets how the engine is opened.
        pub fn engine_config(mut self, config: EngineConfig) -> Self {
            self.plan.config = config;
            self
        }

        /// Sets the buffers of each worker.
        pub fn pool(mut self, pool: PoolConfig) -> Self {
            self.plan.pool = pool;
            self
        }

        /// Sets the most bytes that may be queued, kept as partial frames or held as copies of received bytes, over all workers
        /// together: 1 GiB by default. Beyond it a send meets the [`OverLimit`](crate::OverLimit) policy of its connection, and
        /// connections that receive rest. The buffer pools, fixed memory of every worker, come on top, and so do up to 1 MiB that
        /// can always be queued beside copies: whoever holds them could not send them otherwise.
        pub fn memory_limit(mut self, bytes: u64) -> Self {
            self.plan.memory_limit = bytes;
            self
        }

        /// Sets the most threads for what blocks, over all workers together: 4 by default. They are started when
        /// [`Context::spawn_blocking`](crate::Context::spawn_blocking) needs them, and end when they are idle.
        pub fn blocking_threads(mut self, threads: usize) -> Self {
            self.plan.blocking_threads = threads;
            self
        }

        /// Calls [`Handler::tick`](crate::Handler::tick) on every worker at this interval. Off by default.
        pub fn tick(mut self, interval: Duration) -> Self {
            self.plan.tick = Some(interval);
            self
        }
    };
}
pub(crate) use common_options;
