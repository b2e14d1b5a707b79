//! What these tests ask of Windows. `unix.rs` is its twin.

use std::env::consts::EXE_SUFFIX;
use std::io::{BufRead, BufReader};
use std::os::windows::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use std::{io, thread};

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

/// Starts a program. Under Wine that fails at times while the machine is busy, with ERROR_INTERNAL_ERROR, because the new
/// process did not get as far as to say that it is there; it is tried again then.
///
/// # Errors
///
/// If the system does not.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    const INTERNAL_ERROR: i32 = 1359;
    for _ in 0..4 {
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(INTERNAL_ERROR) => thread::sleep(Duration::from_millis(100)),
            outcome => return outcome,
        }
    }
    command.spawn()
}

/// A status for what has ended with `code`.
pub(crate) fn exit_status(code: i32) -> ExitStatus {
    std::os::windows::process::ExitStatusExt::from_raw(code as u32)
}

/// Every way in which a program is asked to end, and whether the system ends it soon, whatever it does.
pub(crate) const REQUESTS: [(&str, bool); 5] =
    [("ctrl-c", false), ("ctrl-break", false), ("close", true), ("logoff", true), ("shutdown", true)];

/// Asks a program to end, in one of these ways. The last three end it, as the system does: at once when its handler returns,
/// and after 5 s in any case.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn request(id: u32, way: &str) -> Result<(), String> {
    let mut command = Command::new(tool());
    prepare(&mut command);
    let mut tool = start(piped(command.args([way, &id.to_string()]))).expect("the tool runs");
    let told = tool.stdout.take().is_some_and(|out| BufReader::new(out).lines().next().is_some());
    if told {
        // It stays to see what becomes of the program.
        thread::spawn(move || tool.wait());
        return Ok(());
    }
    let output = tool.wait_with_output().expect("the tool ends");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

/// As a user's Ctrl-C does.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn interrupt(id: u32) -> Result<(), String> {
    ask("ctrl-c", id).map(drop)
}

/// As a user's Ctrl-Break does.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn terminate(id: u32) -> Result<(), String> {
    ask("ctrl-break", id).map(drop)
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

fn piped(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped())
}

/// Lets the tool of the engine's tests do what takes `unsafe`.
fn ask(what: &str, id: u32) -> Result<String, String> {
    let mut command = Command::new(tool());
    prepare(&mut command);
    let tool = start(piped(command.args([what, &id.to_string()]))).expect("the tool runs");
    let output = tool.wait_with_output().expect("the tool ends");
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
