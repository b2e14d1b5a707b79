//! Checks of this repository that no other tool makes: `cargo xtask tidy`.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

mod tidy;

const USAGE: &str = "usage: cargo xtask tidy [DIRECTORY]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => tidy(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))),
        ["tidy", directory] => tidy(Path::new(directory)),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Prints every finding below `root`, and fails if there is one.
fn tidy(root: &Path) -> ExitCode {
    let repository = match tidy::Repository::load(root) {
        Ok(repository) => repository,
        Err(error) => {
            eprintln!("tidy: cannot read {}: {error}", root.display());
            return ExitCode::FAILURE;
        }
    };
    let findings = tidy::check(&repository);
    for finding in &findings {
        println!("{finding}");
    }
    let files = repository.files.len();
    if findings.is_empty() {
        println!("tidy: {files} files, nothing to say");
        return ExitCode::SUCCESS;
    }
    println!("tidy: {files} files, {} findings", findings.len());
    ExitCode::FAILURE
}
