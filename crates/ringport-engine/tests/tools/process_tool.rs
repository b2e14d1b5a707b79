//! What a test wants of another process and only `unsafe` calls give on Windows:
//!
//! ```text
//! process_tool ctrl-c PID       as if Ctrl-C was pressed in the console of the process
//! process_tool ctrl-break PID   the same with Ctrl-Break
//! process_tool memory PID       its resident memory in KiB
//! ```
//!
//! It is a program of its own because a process has one console, and a test runner is not to leave its own.

#[cfg(windows)]
use windows::run;

#[cfg(not(windows))]
fn run(_: &str, _: u32) -> std::io::Result<()> {
    Err(std::io::Error::other("there are kill(1) and /proc here"))
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (what, process) = (arguments.next(), arguments.next().and_then(|id| id.parse().ok()));
    let (Some(what), Some(process)) = (what, process) else {
        eprintln!("usage: process_tool ctrl-c|ctrl-break|memory PID");
        return std::process::ExitCode::from(2);
    };
    match run(&what, process) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("process_tool: {what} {process}: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

#[cfg(windows)]
mod windows {
    use std::io;

    use windows_sys::Win32::Foundation::CloseHandle;
    use windows_sys::Win32::System::Console::{
        AttachConsole, CTRL_BREAK_EVENT, CTRL_C_EVENT, FreeConsole, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler,
    };
    use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
    use windows_sys::Win32::System::Threading::{OpenProcess, PROCESS_QUERY_INFORMATION, PROCESS_VM_READ};
    use windows_sys::core::BOOL;

    pub(crate) fn run(what: &str, process: u32) -> io::Result<()> {
        match what {
            "ctrl-c" => send(process, CTRL_C_EVENT),
            "ctrl-break" => send(process, CTRL_BREAK_EVENT),
            "memory" => memory(process).map(|kib| println!("{kib}")),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn check(answer: BOOL) -> io::Result<()> {
        if answer == 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Sends to everybody in the console of the process: Ctrl-C cannot be sent to a group of processes, see Microsoft
    /// Learn, "GenerateConsoleCtrlEvent function".
    fn send(process: u32, event: u32) -> io::Result<()> {
        // SAFETY: none of these takes memory, and the handler lives as long as the program. A console of our own that is
        // missing is no failure.
        unsafe {
            FreeConsole();
            check(AttachConsole(process))?;
            check(SetConsoleCtrlHandler(Some(ignore), 1))?;
            check(GenerateConsoleCtrlEvent(event, 0))
        }
    }

    /// This program is in that console, too, and is not to be ended by what it sends.
    extern "system" fn ignore(_: u32) -> BOOL {
        1
    }

    fn memory(process: u32) -> io::Result<usize> {
        // SAFETY: no memory is passed.
        let handle = unsafe { OpenProcess(PROCESS_QUERY_INFORMATION | PROCESS_VM_READ, 0, process) };
        if handle.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut counters = PROCESS_MEMORY_COUNTERS::default();
        let bytes = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
        // SAFETY: the handle was opened above, and the structure is as long as is said.
        let answer = check(unsafe { K32GetProcessMemoryInfo(handle, &raw mut counters, bytes) });
        // SAFETY: it is closed once.
        unsafe { CloseHandle(handle) };
        answer.map(|()| counters.WorkingSetSize / 1024)
    }
}
