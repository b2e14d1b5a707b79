//! What a test wants of another process and only `unsafe` calls give on Windows:
//!
//! ```text
//! process_tool ctrl-c PID       as if Ctrl-C was pressed in the console of the process
//! process_tool ctrl-break PID   the same with Ctrl-Break
//! process_tool close PID        as if that console was closed
//! process_tool logoff PID       as if its user logged off
//! process_tool shutdown PID     as if the machine was shut down
//! process_tool memory PID       its resident memory in KiB
//! ```
//!
//! It is a program of its own because a process has one console, and a test runner is not to leave its own. The last three
//! do what the system does: as soon as the process has been told, they write a line, and whatever has not ended by itself
//! when its handler returns, or 5 s later, is terminated.

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
        eprintln!("usage: process_tool ctrl-c|ctrl-break|close|logoff|shutdown|memory PID");
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
    use std::ffi::c_void;
    use std::io;
    use std::mem::transmute;
    use std::ptr;

    use windows_sys::Win32::Foundation::{CloseHandle, HANDLE, STATUS_CONTROL_C_EXIT};
    use windows_sys::Win32::System::Console::{
        AttachConsole, CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT,
        FreeConsole, GenerateConsoleCtrlEvent, SetConsoleCtrlHandler,
    };
    use windows_sys::Win32::System::LibraryLoader::{GetModuleHandleW, GetProcAddress};
    use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
    use windows_sys::Win32::System::Threading::{
        CreateRemoteThread, LPTHREAD_START_ROUTINE, OpenProcess, PROCESS_ACCESS_RIGHTS, PROCESS_CREATE_THREAD,
        PROCESS_QUERY_INFORMATION, PROCESS_SYNCHRONIZE, PROCESS_TERMINATE, PROCESS_VM_OPERATION, PROCESS_VM_READ,
        PROCESS_VM_WRITE, TerminateProcess, WaitForSingleObject,
    };
    use windows_sys::core::{BOOL, s, w};

    /// How long Windows waits for the handler of a process when its console is closed, in milliseconds (Microsoft Learn,
    /// "HandlerRoutine callback function").
    const PATIENCE: u32 = 5000;
    /// The thread of a handler also ends when its process does, which may still be about to.
    const EXITING: u32 = 300;

    pub(crate) fn run(what: &str, process: u32) -> io::Result<()> {
        match what {
            "ctrl-c" => send(process, CTRL_C_EVENT),
            // Wine 8 refuses to send it.
            "ctrl-break" => send(process, CTRL_BREAK_EVENT).or_else(|_| tell(process, CTRL_BREAK_EVENT).map(drop)),
            "close" => end(process, CTRL_CLOSE_EVENT),
            "logoff" => end(process, CTRL_LOGOFF_EVENT),
            "shutdown" => end(process, CTRL_SHUTDOWN_EVENT),
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

    /// A handle, closed when it is dropped.
    struct Owned(HANDLE);

    impl Owned {
        fn new(handle: HANDLE) -> io::Result<Self> {
            if handle.is_null() { Err(io::Error::last_os_error()) } else { Ok(Self(handle)) }
        }

        fn open(process: u32, rights: PROCESS_ACCESS_RIGHTS) -> io::Result<Self> {
            // SAFETY: no memory is passed.
            Self::new(unsafe { OpenProcess(rights, 0, process) })
        }

        /// Whether it is signalled within this time.
        fn wait(&self, milliseconds: u32) -> bool {
            // SAFETY: the handle is open.
            unsafe { WaitForSingleObject(self.0, milliseconds) == 0 }
        }
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: the handle was opened by whoever made this, and is closed once.
            unsafe { CloseHandle(self.0) };
        }
    }

    /// Tells a process of an event as the system does: by a thread in it that begins at `CtrlRoutine` and is passed the
    /// event. That routine calls the handlers. Windows and Wine both export it; the system's libraries lie at the same
    /// address in every process of the same kind. Returns the process and the thread.
    fn tell(process: u32, event: u32) -> io::Result<(Owned, Owned)> {
        let memory = PROCESS_VM_OPERATION | PROCESS_VM_READ | PROCESS_VM_WRITE;
        let rights =
            memory | PROCESS_CREATE_THREAD | PROCESS_QUERY_INFORMATION | PROCESS_SYNCHRONIZE | PROCESS_TERMINATE;
        let process = Owned::open(process, rights)?;
        // SAFETY: both names end with a zero, and the library is part of every process, so that it stays.
        let routine = unsafe { GetProcAddress(GetModuleHandleW(w!("kernelbase.dll")), s!("CtrlRoutine")) };
        let routine = routine.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: it takes one argument the size of a pointer and returns a number, as the start of a thread does.
        let routine: LPTHREAD_START_ROUTINE = Some(unsafe {
            transmute::<unsafe extern "system" fn() -> isize, unsafe extern "system" fn(*mut c_void) -> u32>(routine)
        });
        let argument = ptr::without_provenance::<c_void>(event as usize);
        // SAFETY: the process is open with the rights for it, and the routine takes the argument for a number.
        let thread = unsafe { CreateRemoteThread(process.0, ptr::null(), 0, routine, argument, 0, ptr::null_mut()) };
        Ok((process, Owned::new(thread)?))
    }

    /// Tells a process of an event after which Windows ends it.
    fn end(process: u32, event: u32) -> io::Result<()> {
        let (process, handlers) = tell(process, event)?;
        println!("told");
        handlers.wait(PATIENCE);
        if !process.wait(EXITING) {
            // SAFETY: the process is open with the right to do that. It may have ended right now.
            unsafe { TerminateProcess(process.0, STATUS_CONTROL_C_EXIT as u32) };
        }
        Ok(())
    }

    fn memory(process: u32) -> io::Result<usize> {
        let process = Owned::open(process, PROCESS_QUERY_INFORMATION | PROCESS_VM_READ)?;
        let mut counters = PROCESS_MEMORY_COUNTERS::default();
        let bytes = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
        // SAFETY: the handle was opened above, and the structure is as long as is said.
        check(unsafe { K32GetProcessMemoryInfo(process.0, &raw mut counters, bytes) })?;
        Ok(counters.WorkingSetSize / 1024)
    }
}
