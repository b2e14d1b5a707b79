//! Which engine to use, found out by trying.

use std::fmt;
use std::io;
use std::str::FromStr;

use super::contract::EngineConfig;
use super::platform;

/// The name of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EngineKind {
    /// Linux io_uring.
    Uring,
    /// Linux epoll.
    Epoll,
    /// kqueue of macOS and the BSDs.
    Kqueue,
    /// I/O completion ports of Windows.
    Iocp,
    /// Registered I/O of Windows.
    Rio,
    /// The deterministic simulator. Never chosen automatically.
    Sim,
}

impl EngineKind {
    /// Every name, in the order of `ringport engines`.
    pub const ALL: [Self; 6] = [Self::Uring, Self::Epoll, Self::Kqueue, Self::Iocp, Self::Rio, Self::Sim];

    /// The name on the command line and in logs.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uring => "io_uring",
            Self::Epoll => "epoll",
            Self::Kqueue => "kqueue",
            Self::Iocp => "iocp",
            Self::Rio => "rio",
            Self::Sim => "sim",
        }
    }

    /// Where the engine exists at all, for messages.
    #[must_use]
    pub const fn home(self) -> &'static str {
        match self {
            Self::Uring | Self::Epoll => "Linux",
            Self::Kqueue => "macOS and the BSDs",
            Self::Iocp | Self::Rio => "Windows",
            Self::Sim => "tests: it moves no real bytes",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = SelectionError;

    fn from_str(name: &str) -> Result<Self, SelectionError> {
        let same = |kind: &Self| kind.name() == name || (name == "uring" && *kind == Self::Uring);
        Self::ALL.into_iter().find(same).ok_or_else(|| SelectionError::Unknown { name: name.to_owned() })
    }
}

/// An engine of this platform and whether it works here.
#[derive(Debug)]
#[non_exhaustive]
pub struct Candidate {
    /// Which.
    pub kind: EngineKind,
    /// `Ok` with what the probe found, or why the engine cannot be used and what to do about it.
    pub verdict: Result<String, String>,
}

impl Candidate {
    pub(crate) fn new(kind: EngineKind, verdict: Result<String, String>) -> Self {
        Self { kind, verdict }
    }
}

/// The engine chosen, and why not the others.
#[derive(Debug)]
#[non_exhaustive]
pub struct Selection {
    /// The engine to use.
    pub kind: EngineKind,
    /// Every engine of this platform in the order of preference, with the outcome of its probe.
    pub candidates: Vec<Candidate>,
}

impl Selection {
    /// Probes every engine of this platform with a real operation.
    #[must_use]
    pub fn probe(config: &EngineConfig) -> Vec<Candidate> {
        platform::candidates(config)
    }

    /// Chooses an engine: the first that works, or the one named.
    ///
    /// # Errors
    ///
    /// If the named one, or none at all, can be used here. The error says why and what to do.
    pub fn choose(wanted: Option<EngineKind>, config: &EngineConfig) -> Result<Self, SelectionError> {
        if wanted == Some(EngineKind::Sim) {
            return Err(SelectionError::Elsewhere { kind: EngineKind::Sim });
        }
        let candidates = Self::probe(config);
        let kind = match wanted {
            None => candidates.iter().find(|candidate| candidate.verdict.is_ok()).map(|candidate| candidate.kind),
            Some(kind) => match candidates.iter().find(|candidate| candidate.kind == kind) {
                None => return Err(SelectionError::Elsewhere { kind }),
                Some(Candidate { verdict: Err(reason), .. }) => {
                    return Err(SelectionError::Refused { kind, reason: reason.clone() });
                }
                Some(_) => Some(kind),
            },
        };
        match kind {
            Some(kind) => Ok(Self { kind, candidates }),
            None => Err(SelectionError::None { refusals: refusals(&candidates) }),
        }
    }

    /// Why engines preferred to the chosen one were passed over, one `name: reason` for each.
    #[must_use]
    pub fn passed_over(&self) -> Vec<String> {
        let before = self.candidates.iter().take_while(|candidate| candidate.kind != self.kind);
        before
            .filter_map(|candidate| Some(format!("{}: {}", candidate.kind, candidate.verdict.as_ref().err()?)))
            .collect()
    }
}

fn refusals(candidates: &[Candidate]) -> String {
    let lines: Vec<String> =
        candidates.iter().filter_map(|c| Some(format!("{}: {}", c.kind, c.verdict.as_ref().err()?))).collect();
    if lines.is_empty() { "there is none for this platform in this version".to_owned() } else { lines.join("; ") }
}

/// Why no engine could be chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SelectionError {
    /// No engine has this name.
    Unknown {
        /// The name.
        name: String,
    },
    /// The engine belongs to another platform.
    Elsewhere {
        /// Which.
        kind: EngineKind,
    },
    /// The engine exists here, but its probe failed.
    Refused {
        /// Which.
        kind: EngineKind,
        /// Why, and what to do.
        reason: String,
    },
    /// None of the platform's engines works.
    None {
        /// Every engine with its reason.
        refusals: String,
    },
}

impl fmt::Display for SelectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name } => {
                let names = EngineKind::ALL.map(EngineKind::name).join(", ");
                write!(f, "no engine is called {name:?}; the engines are auto, {names}")
            }
            Self::Elsewhere { kind } => write!(
                f,
                "engine {kind} is not available: it exists only on {}; use --engine auto, or see `ringport engines`",
                kind.home()
            ),
            Self::Refused { kind, reason } => write!(f, "engine {kind} is not available: {reason}"),
            Self::None { refusals } => write!(f, "no engine is available: {refusals}"),
        }
    }
}

impl std::error::Error for SelectionError {}

impl From<SelectionError> for io::Error {
    fn from(error: SelectionError) -> Self {
        Self::new(io::ErrorKind::Unsupported, error)
    }
}
