//! Which engines are tested, and how a test runs on each.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use ringport_engine::engine::readiness::ReadinessEngine;
use ringport_engine::engine::sim::{Faults, Network, SimEngine};
use ringport_engine::engine::uring::UringEngine;
use ringport_engine::{Engine, EngineConfig, EngineKind, Features, Selection};

/// Seeds of each test on the simulator, unless `RINGPORT_SEEDS` says otherwise.
const SEEDS: u64 = 200;
/// A test on the simulator starts no further seed after this time, unless `RINGPORT_SEEDS` asks for a number.
const SEEDS_TIME: Duration = Duration::from_millis(600);

/// An engine in one configuration.
pub trait Subject {
    /// The engine.
    type Engine: Engine;
    /// Its name; `None` for the simulator, which needs no probe.
    const KIND: Option<EngineKind>;
    /// What of the kernel it may use.
    fn features() -> Features {
        Features::default()
    }
    /// From which size on it sends without a copy.
    fn zero_copy_above() -> Option<usize> {
        None
    }
}

/// The simulator.
pub struct Sim;

impl Subject for Sim {
    type Engine = SimEngine;
    const KIND: Option<EngineKind> = None;
}

macro_rules! subject {
    ($(#[$doc:meta])* $name:ident, $engine:ty, $kind:ident $(, $masked:ident)*) => {
        $(#[$doc])*
        pub struct $name;

        impl Subject for $name {
            type Engine = $engine;
            const KIND: Option<EngineKind> = Some(EngineKind::$kind);
            #[allow(unused_mut, reason = "not every subject masks something")]
            fn features() -> Features {
                let mut features = Features::default();
                $(features.$masked = false;)*
                features
            }
        }
    };
}

subject!(/** epoll. */ Epoll, ReadinessEngine, Epoll);
subject!(/** epoll that reads files itself. */ EpollPlain, ReadinessEngine, Epoll, sendfile);
subject!(/** io_uring with all it has. */ Uring, UringEngine, Uring);
subject!(/** io_uring that accepts and receives one at a time. */
    UringNoMultishot, UringEngine, Uring, multishot_accept, multishot_receive);
subject!(/** io_uring without plain calls. */ UringNoDirect, UringEngine, Uring, direct_receive);
subject!(/** io_uring that receives large messages by plain calls without measuring first. */
    UringNotMeasured, UringEngine, Uring, measured_receive);
subject!(/** io_uring that runs its work when it likes. */ UringNoDefer, UringEngine, Uring, defer_taskrun, no_iowait);
subject!(/** io_uring with nothing but single-shot operations. */
    UringPlain, UringEngine, Uring, multishot_accept, multishot_receive, direct_receive, defer_taskrun, no_iowait,
    sendfile, zero_copy);

/// io_uring that sends without a copy whatever is larger than a small message.
pub struct UringZeroCopy;

impl Subject for UringZeroCopy {
    type Engine = UringEngine;
    const KIND: Option<EngineKind> = Some(EngineKind::Uring);
    fn zero_copy_above() -> Option<usize> {
        Some(500)
    }
}

/// What a test needs to know about the engine it runs on.
#[derive(Clone)]
pub struct Setup {
    /// Decides about everything random, on real engines too.
    pub seed: u64,
    /// Path of the test, to run it in a process of its own.
    pub path: String,
    /// Whether the engine is the simulator.
    pub sim: bool,
    /// What of the kernel may be used.
    pub features: Features,
    /// From which size on it may send without a copy.
    pub zero_copy_above: Option<usize>,
}

impl Setup {
    /// A configuration with the features under test; on the simulator with a new network that never fails, only
    /// dawdles.
    pub fn config(&self) -> EngineConfig {
        self.config_with(Faults::drawn(self.seed).harmless())
    }

    /// The same with these faults.
    pub fn config_with(&self, faults: Faults) -> EngineConfig {
        let mut config = EngineConfig::default();
        config.features = self.features;
        config.zero_copy_above = self.zero_copy_above;
        config.network = self.sim.then(|| Network::with_faults(self.seed, faults));
        config
    }
}

/// Runs `body` on the engine: once on a real one, with many seeds on the simulator.
pub fn run<S: Subject>(path: &str, body: fn(&Setup)) {
    let path = path.trim_start_matches("conformance::").to_owned();
    let (sim, features, zero_copy_above) = (S::KIND.is_none(), S::features(), S::zero_copy_above());
    let mut setup = Setup { seed: 1, path, sim, features, zero_copy_above };
    if let Some(kind) = S::KIND {
        return match refusal(kind, &setup.config()) {
            Some(reason) => eprintln!("skipped: {reason}"),
            None => body(&setup),
        };
    }
    if let Some(seed) = number("RINGPORT_SEED") {
        setup.seed = seed;
        return body(&setup);
    }
    let (seeds, start) = (number("RINGPORT_SEEDS"), Instant::now());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        setup.seed = seed;
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(&setup))) {
            let path = &setup.path;
            eprintln!(
                "replay: RINGPORT_SEED={seed} cargo test -p ringport-engine --test conformance -- --exact {path}"
            );
            resume_unwind(panic);
        }
        if seeds.is_none() && start.elapsed() > SEEDS_TIME {
            break;
        }
    }
}

/// Why the engine cannot run here.
fn refusal(kind: EngineKind, config: &EngineConfig) -> Option<String> {
    let candidates = Selection::probe(config);
    match candidates.into_iter().find(|candidate| candidate.kind == kind) {
        None => Some(format!("{kind} is an engine of {}", kind.home())),
        Some(candidate) => candidate.verdict.err(),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// Runs `body` in a process of its own, because it counts or exhausts what all tests of this process share. On the
/// simulator nothing is shared.
pub fn alone(setup: &Setup, body: impl FnOnce()) {
    if setup.sim || std::env::var("RINGPORT_ALONE").as_deref() == Ok(&setup.path) {
        return body();
    }
    let own = std::env::current_exe().expect("the test knows itself");
    let mut child = std::process::Command::new(own);
    child.args(["--exact", &setup.path, "--nocapture", "--test-threads=1"]).env("RINGPORT_ALONE", &setup.path);
    let output = child.output().expect("the test can be started again");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success() && text.contains("1 passed"), "alone, it failed:\n{text}");
}

/// Open descriptors of this process, or 0 where the system does not list them.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Lowers the limit of descriptors and opens files until none is left.
pub fn fill_descriptors() -> Vec<std::fs::File> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.min(descriptors() as libc::rlim_t + 64);
    // SAFETY: setrlimit(2) reads one rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect()
}
