//! `ringport engines`.

use std::process::ExitCode;

use ringport::{EngineConfig, EngineKind, Selection};
use serde::Serialize;

use crate::Failure;
use crate::args::Engines;

/// An engine as this machine knows it.
#[derive(Serialize)]
struct Row {
    name: &'static str,
    available: bool,
    /// `--engine auto` would choose it.
    auto: bool,
    /// What the probe found, or why the engine cannot be used and what to do.
    detail: String,
}

/// Prints what every engine's probe found.
pub(crate) fn run(options: &Engines) -> Result<ExitCode, Failure> {
    let rows = rows();
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("  {:<10} {:<12} detail", "engine", "status");
    for row in &rows {
        let mark = if row.auto { '*' } else { ' ' };
        let status = if row.available { "available" } else { "unavailable" };
        println!("{mark} {:<10} {status:<12} {}", row.name, row.detail);
    }
    println!();
    println!("* is what --engine auto chooses.");
    Ok(ExitCode::SUCCESS)
}

fn rows() -> Vec<Row> {
    let candidates = Selection::probe(&EngineConfig::default());
    let auto = candidates.iter().find(|candidate| candidate.verdict.is_ok()).map(|candidate| candidate.kind);
    let row = |kind: EngineKind| {
        let verdict = candidates.iter().find(|candidate| candidate.kind == kind).map(|found| found.verdict.clone());
        let (available, detail) = match verdict {
            Some(Ok(found)) => (true, found),
            Some(Err(reason)) => (false, reason),
            None => (false, format!("exists only {}; use --engine auto", home(kind))),
        };
        Row { name: kind.name(), available, auto: auto == Some(kind), detail }
    };
    EngineKind::ALL.into_iter().map(row).collect()
}

/// Where an engine can be found, as the end of a sentence.
pub(crate) fn home(kind: EngineKind) -> String {
    match kind {
        EngineKind::Sim => "in tests: it moves no real bytes".to_owned(),
        kind => format!("on {}", kind.home()),
    }
}
