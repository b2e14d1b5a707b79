//! Checks of one file at a time.

use super::mask::is_word;
use super::{File, Finding, Repository};

/// The crate that may contain `unsafe`.
const ENGINE_CRATE: &str = "crates/ringport-engine/";
/// It plays a part of the system in tests, memory and all, and no program contains it (see `layout.rs`).
const STANDIN_CRATE: &str = "crates/rio-standin/";
/// Where the platform is chosen.
const PLATFORM_FILES: [&str; 3] = [
    "crates/ringport-engine/src/engine/mod.rs",
    "crates/ringport-engine/src/engine/platform.rs",
    "crates/rio-standin/src/lib.rs",
];
/// Where the program does what differs between Unix and the rest (signals); it may ask for no more than that.
const PROGRAM_PLATFORM_FILE: &str = "crates/ringport-cli/src/platform.rs";
/// What a `cfg` must not ask elsewhere.
const FAMILIES: [&str; 2] = ["unix", "windows"];
const SYSTEMS: [&str; 4] = ["target_os", "target_vendor", "target_family", "target_env"];
/// Lines of a source file, exclusive.
const LINES_MAX: usize = 700;
/// Source files that may be longer.
const LONG_FILES: [&str; 0] = [];

pub(super) fn unsafe_only_in_the_engine_crate(repository: &Repository) -> Vec<Finding> {
    let files = repository.rust().filter(|(path, _)| !may_be_unsafe(path));
    let findings = files.flat_map(|(path, file)| {
        words(&file.code, "unsafe").map(move |offset| {
            Finding::at(path, file, offset, "`unsafe` belongs in crates/ringport-engine and nowhere else")
        })
    });
    findings.collect()
}

fn may_be_unsafe(path: &str) -> bool {
    path.starts_with(ENGINE_CRATE) || path.starts_with(STANDIN_CRATE)
}

pub(super) fn unsafe_forbidden_elsewhere(repository: &Repository) -> Vec<Finding> {
    let is_root = |path: &str| {
        let folder = path.strip_suffix("src/lib.rs").or_else(|| path.strip_suffix("src/main.rs"));
        let folder = folder.or_else(|| path.rsplit_once("src/bin/").map(|(folder, _)| folder));
        folder.is_some_and(|folder| repository.files.contains_key(&format!("{folder}Cargo.toml")))
    };
    let roots = repository.rust().filter(|(path, _)| !may_be_unsafe(path) && is_root(path));
    let bad = roots.filter(|(_, file)| !file.code.contains("#![forbid(unsafe_code)]"));
    bad.map(|(path, _)| Finding::new(path, 1, "this crate root lacks `#![forbid(unsafe_code)]`")).collect()
}

pub(super) fn platforms_chosen_in_one_place(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, file) in repository.rust().filter(|(path, _)| !may_choose_platform(path)) {
        let asked = |predicate: &str| {
            let families = if path == PROGRAM_PLATFORM_FILE { &[][..] } else { &FAMILIES[..] };
            SYSTEMS.iter().chain(families).find(|name| words(predicate, name).next().is_some()).copied()
        };
        for offset in configurations(&file.code) {
            if let Some(name) = asked(parenthesised(&file.code[offset..])) {
                let message = format!("`cfg` on `{name}` belongs in {} or platform.rs beside it", PLATFORM_FILES[0]);
                findings.push(Finding::at(path, file, offset, message));
            }
        }
    }
    findings
}

fn may_choose_platform(path: &str) -> bool {
    let mut folders = path.split('/').rev().skip(1);
    PLATFORM_FILES.contains(&path)
        || path.rsplit('/').next() == Some("build.rs")
        || folders.any(|folder| folder == "tests" || folder == "examples")
}

/// Where the brackets of `cfg(…)`, `cfg!(…)`, `cfg_attr(…)` and the like begin.
fn configurations(code: &str) -> impl Iterator<Item = usize> {
    let names = ["cfg", "cfg_attr", "cfg_select"].into_iter();
    let ends = names.flat_map(move |name| words(code, name).map(move |offset| offset + name.len()));
    ends.filter_map(|end| {
        let bracket = code[end..].trim_start_matches(['!', ' ', '\n']);
        bracket.starts_with(['(', '{']).then(|| code.len() - bracket.len())
    })
}

/// From the bracket at the beginning to its partner.
fn parenthesised(code: &str) -> &str {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate() {
        match byte {
            b'(' | b'{' => depth += 1,
            b')' | b'}' if depth == 1 => return &code[..offset],
            b')' | b'}' => depth -= 1,
            _ => {}
        }
    }
    code
}

pub(super) fn nothing_left_to_do(repository: &Repository) -> Vec<Finding> {
    // Put together here, so that this file does not contain them.
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let macros = ["todo", "unimplemented", "dbg"];
    let mut findings = Vec::new();
    for (path, file) in &repository.files {
        for note in notes {
            let message = format!("`{note}`: do it, or open an issue");
            findings.extend(words(&file.text, note).map(|offset| Finding::at(path, file, offset, message.clone())));
        }
        for name in macros {
            let calls = words(&file.code, name).filter(|offset| file.code[offset + name.len()..].starts_with('!'));
            let message = format!("`{name}!` is for the workbench");
            findings.extend(calls.map(|offset| Finding::at(path, file, offset, message.clone())));
        }
    }
    findings
}

pub(super) fn files_are_short(repository: &Repository) -> Vec<Finding> {
    let is_source = |path: &str| [".rs", ".py", ".sh", ".ci/run"].iter().any(|end| path.ends_with(end));
    let files = repository.files.iter().filter(|(path, _)| is_source(path) && !LONG_FILES.contains(&path.as_str()));
    let counted = files.map(|(path, file)| (path, file.text.lines().count()));
    let long = counted.filter(|(_, lines)| *lines >= LINES_MAX);
    long.map(|(path, lines)| {
        Finding::new(path, lines, format!("{lines} lines; {LINES_MAX} are too many for one file: split it"))
    })
    .collect()
}

pub(super) fn ignored_tests_say_why(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, file) in repository.rust() {
        let unexplained = words(&file.code, "ignore")
            .filter(|offset| is_attribute(&file.code[..*offset]) && !has_reason(file, offset + "ignore".len()));
        let message = "an ignored test says why: #[ignore = \"…\"]";
        findings.extend(unexplained.map(|offset| Finding::at(path, file, offset, message)));
    }
    findings
}

/// Whether what follows `before` is an attribute, or the second half of a `cfg_attr`.
fn is_attribute(before: &str) -> bool {
    let line = before.rsplit('\n').next().unwrap_or(before).trim();
    line.ends_with("#[") || (line.contains("cfg_attr(") && line.ends_with(','))
}

/// Whether `= "…"` with something in it stands at `offset`.
fn has_reason(file: &File, offset: usize) -> bool {
    let reason = file.text[offset..].trim_start().strip_prefix('=').map(str::trim_start);
    let reason = reason.and_then(|reason| reason.strip_prefix('"'));
    reason.is_some_and(|reason| !reason.starts_with('"'))
}

/// Where `word` stands by itself.
fn words(text: &str, word: &str) -> impl Iterator<Item = usize> {
    text.match_indices(word).map(|(offset, _)| offset).filter(move |offset| {
        let bytes = text.as_bytes();
        let before = offset.checked_sub(1).is_some_and(|before| is_word(bytes[before]));
        let after = bytes.get(offset + word.len()).is_some_and(|after| is_word(*after));
        !before && !after
    })
}
