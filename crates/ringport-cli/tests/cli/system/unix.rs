//! What these tests ask of a Unix system. `windows.rs` is its twin.

use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use std::{fs, io};

/// Whether a connection that was reset before it was accepted is accepted all the same.
pub(crate) const ACCEPTS_WHAT_WAS_RESET: bool = cfg!(target_os = "linux");

/// Longest time that anything single may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// An engine that exists elsewhere only, and how the program says that.
pub(crate) const FOREIGN_ENGINE: (&str, &str) = ("rio", "only on Windows");

/// Nothing has to be arranged for asking a program to end.
pub(crate) fn prepare(_: &mut Command) {}

/// Starts a program.
///
/// # Errors
///
/// If the system does not.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    command.spawn()
}

/// A status for what has ended with `code`.
pub(crate) fn exit_status(code: i32) -> ExitStatus {
    std::os::unix::process::ExitStatusExt::from_raw(code << 8)
}

/// Every way in which a program is asked to end, and whether the system ends it soon, whatever it does.
pub(crate) const REQUESTS: [(&str, bool); 2] = [("-INT", false), ("-TERM", false)];

/// Asks a program to end, in one of these ways.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn request(id: u32, way: &str) -> Result<(), String> {
    signal(id, way)
}

/// As a user's Ctrl-C does.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn interrupt(id: u32) -> Result<(), String> {
    signal(id, "-INT")
}

/// As a service manager does.
///
/// # Errors
///
/// If the program has ended already.
pub(crate) fn terminate(id: u32) -> Result<(), String> {
    signal(id, "-TERM")
}

fn signal(id: u32, name: &str) -> Result<(), String> {
    let status = Command::new("kill").args([name, &id.to_string()]).status().expect("kill runs");
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// Resident memory in KiB.
pub(crate) fn resident_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it has memory");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Open descriptors.
pub(crate) fn descriptors(id: u32) -> usize {
    fs::read_dir(format!("/proc/{id}/fd")).expect("the process lives").count()
}

/// Processor time so far.
pub(crate) fn cpu(id: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("the process lives");
    let (_, fields) = stat.rsplit_once(')').expect("the name is in parentheses");
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().expect("ticks")).sum();
    Duration::from_millis(ticks * 10)
}

/// Lets this process, and what it starts from now on, open so many files. Says whether that is allowed.
pub(crate) fn raise_descriptors(count: usize) -> bool {
    let raised = Command::new("prlimit")
        .args(["--pid", &std::process::id().to_string(), &format!("--nofile={count}:")])
        .status();
    raised.is_ok_and(|status| status.success())
}
