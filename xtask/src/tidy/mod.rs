//! The rules that hold the design together, checked by machine.
//!
//! Each check looks at a [`Repository`], which is no more than paths and texts, so that the tests give it small
//! repositories of their own: every check is shown to pass on good ones and to fail on bad ones.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

mod layout;
mod mask;
mod sources;
#[cfg(test)]
mod tests;

/// Folders that hold nothing of ours.
const SKIPPED_FOLDERS: [&str; 4] = ["target", ".git", "bench-out", "node_modules"];
/// What is read: sources, scripts, manifests and documents.
const EXTENSIONS: [&str; 6] = ["rs", "toml", "md", "py", "sh", "yml"];
/// Scripts without an extension.
const SCRIPTS: [&str; 1] = [".ci/run"];

/// The files to look at.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    /// By path from the root, with `/` between the parts.
    pub(crate) files: BTreeMap<String, File>,
}

/// One file.
#[derive(Debug)]
pub(crate) struct File {
    text: String,
    /// The text with comments and literals blanked, for Rust; line for line and byte for byte in the same places.
    code: String,
}

impl File {
    fn new(path: &str, text: String) -> Self {
        let code = if path.ends_with(".rs") { mask::mask(&text) } else { String::new() };
        Self { text, code }
    }
}

impl Repository {
    /// Reads everything below `root`.
    pub(crate) fn load(root: &Path) -> io::Result<Self> {
        let mut repository = Self::default();
        repository.load_folder(root, "")?;
        Ok(repository)
    }

    fn load_folder(&mut self, folder: &Path, prefix: &str) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            let kind = entry.file_type()?;
            if kind.is_dir() && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                self.load_folder(&entry.path(), &format!("{path}/"))?;
            } else if kind.is_file() && is_ours(&path) {
                let text = String::from_utf8_lossy(&fs::read(entry.path())?).into_owned();
                self.files.insert(path.clone(), File::new(&path, text));
            }
        }
        Ok(())
    }

    /// The Rust files.
    fn rust(&self) -> impl Iterator<Item = (&str, &File)> {
        self.files.iter().map(|(path, file)| (path.as_str(), file)).filter(|(path, _)| path.ends_with(".rs"))
    }
}

fn is_ours(path: &str) -> bool {
    SCRIPTS.contains(&path) || path.rsplit_once('.').is_some_and(|(_, extension)| EXTENSIONS.contains(&extension))
}

/// Something that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    path: String,
    /// Counted from 1.
    line: usize,
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }

    /// A finding at a byte of a file.
    fn at(path: &str, file: &File, offset: usize, message: impl Into<String>) -> Self {
        let line = file.text.as_bytes()[..offset].iter().filter(|byte| **byte == b'\n').count() + 1;
        Self::new(path, line, message)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Runs every check.
pub(crate) fn check(repository: &Repository) -> Vec<Finding> {
    let checks: [fn(&Repository) -> Vec<Finding>; 9] = [
        sources::unsafe_only_in_the_engine_crate,
        sources::unsafe_forbidden_elsewhere,
        sources::platforms_chosen_in_one_place,
        sources::nothing_left_to_do,
        sources::files_are_short,
        sources::ignored_tests_say_why,
        layout::floors_see_only_lower_floors,
        layout::engines_are_twins,
        layout::readme_has_the_commands,
    ];
    let mut findings: Vec<_> = checks.iter().flat_map(|check| check(repository)).collect();
    findings.sort_by(|a, b| (&a.path, a.line).cmp(&(&b.path, b.line)));
    findings
}
