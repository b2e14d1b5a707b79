//! Checks of how the parts stand to each other.

use std::collections::BTreeSet;

use super::{Finding, Repository};

/// Each floor and what it may see. Nobody else of the workspace.
const FLOORS: [(&str, &[&str]); 3] =
    [("ringport-engine", &[]), ("ringport", &["ringport-engine"]), ("ringport-cli", &["ringport"])];

/// Crates for tests alone: every floor may have them as development dependencies, and nobody otherwise.
const TEST_CRATES: [&str; 1] = ["rio-standin"];
/// The exception: tests start this program, so that what stands in for the system has to be in it. It is an optional
/// dependency of a program that has no default features.
const PROGRAM: &str = "ringport-cli";

const ENGINES: &str = "crates/ringport-engine/src/engine/";
/// The engines of this version.
const ENGINE_FOLDERS: [&str; 5] = ["uring", "readiness", "iocp", "rio", "sim"];
/// What every engine consists of. It may have further files of its own.
const TWINS: [&str; 7] = ["mod.rs", "accept.rs", "connect.rs", "receive.rs", "send.rs", "close.rs", "wait.rs"];

/// How lines of the README begin that say how to test and how to run.
const README_COMMANDS: [&str; 2] = ["cargo test --workspace", "cargo run "];

pub(super) fn floors_see_only_lower_floors(repository: &Repository) -> Vec<Finding> {
    let manifests = || repository.files.iter().filter(|(path, _)| is_manifest(path));
    let members: BTreeSet<_> = manifests().filter_map(|(_, file)| package_name(&file.text)).collect();
    let mut findings = Vec::new();
    for (path, file) in manifests() {
        let name = package_name(&file.text);
        let floor = FLOORS.iter().find(|(floor, _)| name == Some(floor));
        for (line, table, dependency) in dependencies(&file.text) {
            if TEST_CRATES.contains(&dependency) {
                let asked_for = is_optional(&file.text, line) && !has_default_features(&file.text);
                let allowed = table.contains("dev-dependencies") || name == Some(PROGRAM) && asked_for;
                if !allowed {
                    let message = format!("`{dependency}` is for tests: it may only be a development dependency");
                    findings.push(Finding::new(path, line, message));
                }
            } else if let Some((floor, allowed)) = floor
                && members.contains(dependency)
                && !allowed.contains(&dependency)
            {
                let message =
                    format!("`{floor}` must not depend on `{dependency}`: a floor sees only the next lower one");
                findings.push(Finding::new(path, line, message));
            }
        }
    }
    findings
}

fn is_manifest(path: &str) -> bool {
    path == "Cargo.toml" || path.ends_with("/Cargo.toml")
}

/// The lines of a manifest that are not blank or comment, with their number and their table.
fn entries(manifest: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    let mut table = "";
    manifest.lines().enumerate().filter_map(move |(index, line)| {
        let line = line.trim();
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_end_matches(']');
        }
        (!line.is_empty() && !line.starts_with('#')).then_some((index + 1, table, line))
    })
}

fn package_name(manifest: &str) -> Option<&str> {
    let names = entries(manifest).filter(|(_, table, _)| *table == "package").filter_map(|(_, _, line)| {
        let value = line.strip_prefix("name")?.trim_start().strip_prefix('=')?;
        Some(value.trim().trim_matches('"'))
    });
    names.into_iter().next()
}

/// Whether the dependency that stands alone in this line has to be asked for.
fn is_optional(manifest: &str, line: usize) -> bool {
    entries(manifest).any(|(number, _, entry)| number == line && entry.contains("optional = true"))
}

/// Whether a manifest asks for anything by default.
fn has_default_features(manifest: &str) -> bool {
    entries(manifest).any(|(_, table, line)| table == "features" && line.starts_with("default"))
}

/// Everything that a manifest depends on, for building, testing or using it, on any platform: line, table, and real name.
fn dependencies(manifest: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    entries(manifest).filter_map(|(number, table, line)| {
        if let Some((_, name)) = table.rsplit_once("dependencies.") {
            // A table of its own: its header says the name, or a `package` key in it.
            let name = if line.starts_with('[') { Some(name) } else { renamed(line) };
            return name.map(|name| (number, table, name));
        }
        if !table.ends_with("dependencies") || table.starts_with("workspace") || line.starts_with('[') {
            return None;
        }
        let key = line.split(['=', '.', ' ']).next().unwrap_or(line).trim_matches('"');
        Some((number, table, renamed(line).unwrap_or(key)))
    })
}

/// The value of `package = "…"` in a line.
fn renamed(line: &str) -> Option<&str> {
    let value = line.split_once("package")?.1.trim_start().strip_prefix('=')?.trim_start();
    value.strip_prefix('"')?.split('"').next()
}

pub(super) fn engines_are_twins(repository: &Repository) -> Vec<Finding> {
    let inside = repository.files.keys().filter_map(|path| path.strip_prefix(ENGINES)?.split_once('/'));
    let folders: BTreeSet<_> = inside.map(|(folder, _)| folder).chain(ENGINE_FOLDERS).collect();
    let mut findings = Vec::new();
    for folder in folders {
        for twin in TWINS {
            let path = format!("{ENGINES}{folder}/{twin}");
            if !repository.files.contains_key(&path) {
                findings.push(Finding::new(&path, 1, "missing: engines are read side by side, file by file"));
            }
        }
    }
    findings
}

pub(super) fn readme_has_the_commands(repository: &Repository) -> Vec<Finding> {
    let Some(readme) = repository.files.get("README.md") else {
        return vec![Finding::new("README.md", 1, "missing")];
    };
    let missing = README_COMMANDS.iter().filter(|command| !readme.text.lines().any(|line| line.starts_with(**command)));
    missing.map(|command| Finding::new("README.md", 1, format!("no line begins with `{command}`"))).collect()
}
