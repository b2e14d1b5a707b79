//! What these tests ask of Windows. `unix.rs` is its twin.

use std::env::consts::EXE_SUFFIX;
use std::os::windows::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::Duration;

/// Whether a connection that was reset before it was accepted is accepted all the same.
pub(crate) const ACCEPTS_WHAT_WAS_RESET: bool = false;

/// Longest time that anything single may take. Under Wine a message costs ten times as much as on Linux.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// An engine that exists elsewhere only, and how the program says that.
pub(crate) const FOREIGN_ENGINE: (&str, &str) = ("epoll", "only on Linux");

/// CREATE_NO_WINDOW: a console of its own that nobody sees (Microsoft Learn: "Process Creation Flags").
const OWN_CONSOLE: u32 = 0x0800_0000;

/// Gives the program a console of its own, so that nobody else hears when it is asked to end.
pub(crate) fn prepare(command: &mut Command) {
    command.creation_flags(OWN_CONSOLE);
}

/// A status for what has ended with `code`.
pub(crate) fn exit_status(code: i32) -> ExitStatus {
    std::os::windows::process::ExitStatusExt::from_raw(code as u32)
}

/// As a user's Ctrl-C does.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn interrupt(id: u32) -> Result<(), String> {
    ask("ctrl-c", id).map(drop)
}

/// As a user's Ctrl-Break does, or Ctrl-C where there is no Ctrl-Break (Wine 8). What a service manager or a closed
/// window does cannot be sent from a program.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn terminate(id: u32) -> Result<(), String> {
    ask("ctrl-break", id).map(drop).or_else(|error| {
        eprintln!("skipped: Ctrl-Break: {error}; Ctrl-C is sent instead");
        interrupt(id)
    })
}

/// Resident memory in KiB.
pub(crate) fn resident_kib(id: u32) -> u64 {
    let answer = ask("memory", id).expect("the process lives");
    answer.trim().parse().expect("a number")
}

/// There is no limit on handles that would have to be raised.
pub(crate) fn raise_descriptors(_: usize) -> bool {
    true
}

/// Lets the tool of the engine's tests do what takes `unsafe`.
fn ask(what: &str, id: u32) -> Result<String, String> {
    let mut command = Command::new(tool());
    prepare(&mut command);
    let output = command.args([what, &id.to_string()]).output().expect("the tool runs");
    let [out, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    if output.status.success() { Ok(out) } else { Err(errors) }
}

/// The tool, which lies beside the program under test when the workspace was built, and else is built now.
fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        const BUILD: [&str; 6] = ["build", "--quiet", "--package", "ringport-engine", "--example", "process_tool"];
        let folder = Path::new(env!("CARGO_BIN_EXE_ringport")).parent().expect("a file lies in a folder");
        let path = folder.join("examples").join(format!("process_tool{EXE_SUFFIX}"));
        // A compiler of another system, which built all this for Windows, cannot be started here.
        if !path.exists() && env!("CARGO").ends_with(EXE_SUFFIX) {
            let built = Command::new(env!("CARGO")).args(BUILD).current_dir(env!("CARGO_MANIFEST_DIR")).status();
            assert!(built.is_ok_and(|status| status.success()), "the tool does not build");
        }
        assert!(path.exists(), "{} is missing: cargo {} --target …", path.display(), BUILD.join(" "));
        path
    })
}
