//! Which engines are tested, and how a test runs on each.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use ringport_engine::engine::sim::{Faults, Network, SimEngine};
use ringport_engine::{Engine, EngineConfig, EngineKind, Features, RioCompletions, Selection};

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
    /// How rio learns of completions.
    fn completions() -> RioCompletions {
        RioCompletions::default()
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

/// Every engine under test besides the simulator, on the systems that have it: `MODULE: ENGINE, KIND, -MASKED…;` makes
/// a module of all the tests, and so does `MODULE: ENGINE, KIND, completions = HOW;`. What this machine refuses is skipped when it runs.
macro_rules! each_subject {
    ($make:ident) => {
        $make! {
            #[cfg(target_os = "linux")]
            epoll: ringport_engine::engine::readiness::ReadinessEngine, Epoll;
            // Ranges of files are read into slots.
            #[cfg(target_os = "linux")]
            epoll_plain: ringport_engine::engine::readiness::ReadinessEngine, Epoll, -sendfile;
            // One datagram a call.
            #[cfg(target_os = "linux")]
            epoll_single: ringport_engine::engine::readiness::ReadinessEngine, Epoll, -mmsg, -gso, -gro;
            // Many datagrams a call, none of them segmented.
            #[cfg(target_os = "linux")]
            epoll_no_segments: ringport_engine::engine::readiness::ReadinessEngine, Epoll, -gso, -gro;
            #[cfg(all(unix, not(target_os = "linux")))]
            kqueue: ringport_engine::engine::readiness::ReadinessEngine, Kqueue;
            #[cfg(target_os = "linux")]
            uring: ringport_engine::engine::uring::UringEngine, Uring;
            // One at a time is accepted and received.
            #[cfg(target_os = "linux")]
            uring_no_multishot: ringport_engine::engine::uring::UringEngine, Uring, -multishot_accept, -multishot_receive;
            // Datagrams are received by plain calls.
            #[cfg(target_os = "linux")]
            uring_polled_datagrams: ringport_engine::engine::uring::UringEngine, Uring, -multishot_recvmsg;
            // No plain calls.
            #[cfg(target_os = "linux")]
            uring_no_direct: ringport_engine::engine::uring::UringEngine, Uring, -direct_receive;
            // Large messages come by plain calls, without measuring first.
            #[cfg(target_os = "linux")]
            uring_not_measured: ringport_engine::engine::uring::UringEngine, Uring, -measured_receive;
            // The kernel does its work when it likes.
            #[cfg(target_os = "linux")]
            uring_no_defer: ringport_engine::engine::uring::UringEngine, Uring, -defer_taskrun, -no_iowait;
            // Nothing but single-shot operations.
            #[cfg(target_os = "linux")]
            uring_plain: ringport_engine::engine::uring::UringEngine, Uring,
                -multishot_accept, -multishot_receive, -direct_receive, -defer_taskrun, -no_iowait, -sendfile,
                -zero_copy, -multishot_recvmsg, -mmsg, -gso, -gro;
            // Whatever is larger than a small message is sent without a copy.
            #[cfg(target_os = "linux")]
            uring_zero_copy: ringport_engine::engine::uring::UringEngine, Uring, zero_copy_above = 500;
            #[cfg(windows)]
            iocp: ringport_engine::engine::iocp::IocpEngine, Iocp;
            // A packet for every operation.
            #[cfg(windows)]
            iocp_no_skip: ringport_engine::engine::iocp::IocpEngine, Iocp, -skip_on_success;
            // Over functions that stand in for the system's, once for each way to learn of completions.
            #[cfg(windows)]
            rio: ringport_engine::engine::rio::RioEngine, Rio;
            #[cfg(windows)]
            rio_port: ringport_engine::engine::rio::RioEngine, Rio, completions = Port;
            #[cfg(windows)]
            rio_event: ringport_engine::engine::rio::RioEngine, Rio, completions = Event;
            #[cfg(windows)]
            rio_polled: ringport_engine::engine::rio::RioEngine, Rio, completions = Polled;
        }
    };
}
pub(crate) use each_subject;

/// What a test needs to know about the engine it runs on.
#[derive(Clone)]
pub struct Setup {
    /// Decides about everything random, on real engines too.
    pub seed: u64,
    /// Path of the test, to run it in a process of its own.
    pub path: String,
    /// Which engine; `None` for the simulator.
    pub kind: Option<EngineKind>,
    /// Whether the engine is the simulator.
    pub sim: bool,
    /// What of the kernel may be used.
    pub features: Features,
    /// How rio learns of completions.
    pub completions: RioCompletions,
    /// From which size on it may send without a copy.
    pub zero_copy_above: Option<usize>,
}

impl Setup {
    /// The simulator with this seed, in no test in particular.
    pub fn simulated(seed: u64) -> Self {
        let (features, completions) = (Features::default(), RioCompletions::default());
        Self { seed, path: String::new(), kind: None, sim: true, features, completions, zero_copy_above: None }
    }

    /// Whether the engine is one of Windows. Says so, since what asks does without something then.
    pub fn is_windows(&self, what: &str) -> bool {
        let windows = matches!(self.kind, Some(EngineKind::Iocp | EngineKind::Rio));
        if windows {
            eprintln!("skipped: the engines of Windows have no {what}");
        }
        windows
    }

    /// A configuration with the features under test; on the simulator with a new network that never fails, only
    /// dawdles.
    pub fn config(&self) -> EngineConfig {
        self.config_with(Faults::drawn(self.seed).harmless())
    }

    /// The same with these faults.
    pub fn config_with(&self, faults: Faults) -> EngineConfig {
        let mut config = EngineConfig::default();
        config.features = self.features;
        config.rio_completions = self.completions;
        config.zero_copy_above = self.zero_copy_above;
        config.network = self.sim.then(|| Network::with_faults(self.seed, faults));
        config
    }
}

/// Runs `body` on the engine: once on a real one, with many seeds on the simulator.
pub fn run<S: Subject>(path: &str, body: fn(&Setup)) {
    let path = path.trim_start_matches("conformance::").to_owned();
    let mut setup = Setup {
        seed: 1,
        path,
        kind: S::KIND,
        sim: S::KIND.is_none(),
        features: S::features(),
        completions: S::completions(),
        zero_copy_above: S::zero_copy_above(),
    };
    if S::KIND == Some(EngineKind::Rio) {
        // With `RINGPORT_REAL_RIO` it runs over the functions of the system, where there are any.
        rio_standin::install();
    }
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
    let play = |seed| play(&Setup { seed, ..setup.clone() }, body);
    regressions(&setup.path, include_str!("seeds.txt")).into_iter().for_each(play);
    for seed in 0..seeds.unwrap_or(SEEDS) {
        play(seed);
        if seeds.is_none() && start.elapsed() > SEEDS_TIME {
            break;
        }
    }
}

/// Plays one seed. If it fails, says how to repeat that.
fn play(setup: &Setup, body: fn(&Setup)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| body(setup))) {
        let Setup { seed, path, .. } = setup;
        eprintln!("replay: RINGPORT_SEED={seed} cargo test -p ringport-engine --test conformance -- --exact {path}");
        eprintln!("keep: add `{path} {seed} # what it found` to crates/ringport-engine/tests/conformance/seeds.txt");
        resume_unwind(panic);
    }
}

/// The seeds that `text` lists for the test `path`.
pub fn regressions(path: &str, text: &str) -> Vec<u64> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let pairs = lines.filter(|line| !line.is_empty()).map(|line| {
        let (wanted, seed) = line.split_once(char::is_whitespace).unwrap_or_else(|| panic!("no seed in {line:?}"));
        (wanted, seed.trim().parse().unwrap_or_else(|_| panic!("{seed:?} is no seed")))
    });
    pairs.filter(|(wanted, _)| [path, "*"].contains(wanted)).map(|(_, seed)| seed).collect()
}

/// Why the engine cannot run here.
fn refusal(kind: EngineKind, config: &EngineConfig) -> Option<String> {
    let candidates = Selection::probe(config);
    match candidates.into_iter().find(|candidate| candidate.kind == kind) {
        None => Some(format!("{kind} is an engine of {}", kind.home())),
        Some(candidate) => candidate.verdict.err(),
    }
}

/// The number in an environment variable.
pub fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}

/// Runs `body` in a process of its own, because it counts or exhausts what all tests of this process share, and passes on
/// what that says: what it found, or why it could not run. On the simulator nothing is shared.
pub fn alone(setup: &Setup, body: impl FnOnce()) {
    if setup.sim || std::env::var("RINGPORT_ALONE").as_deref() == Ok(&setup.path) {
        return body();
    }
    let own = std::env::current_exe().expect("the test knows itself");
    let mut child = std::process::Command::new(own);
    child.args(["--exact", &setup.path, "--nocapture", "--test-threads=1"]).env("RINGPORT_ALONE", &setup.path);
    let output = child.output().expect("the test can be started again");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    eprint!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "alone, it failed");
}
