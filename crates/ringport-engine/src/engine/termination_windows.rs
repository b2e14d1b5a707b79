//! Ctrl-C, Ctrl-Break, a console that is closed, and the end of a user's session or of the machine.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use windows_sys::Win32::System::Console::{
    CTRL_BREAK_EVENT, CTRL_C_EVENT, CTRL_CLOSE_EVENT, CTRL_LOGOFF_EVENT, CTRL_SHUTDOWN_EVENT, SetConsoleCtrlHandler,
};
use windows_sys::Win32::System::RemoteDesktop::ProcessIdToSessionId;
use windows_sys::Win32::System::Threading::GetCurrentProcessId;
use windows_sys::core::BOOL;

use super::contract::Waker;

/// What is left of the 5 s that Windows gives a program whose console is closed, or that a shutdown ends (Microsoft
/// Learn, "HandlerRoutine callback function"), when a second is kept for connections whose peers do not answer.
const LAST_SECONDS: Duration = Duration::from_secs(3);

static BELL: OnceLock<Waker> = OnceLock::new();
static REQUESTS: AtomicU32 = AtomicU32::new(0);
/// Milliseconds that the system gives, at most.
static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// Rings `waker` when the process is asked to end: by Ctrl-C, Ctrl-Break, the end of its console, of its user's session or
/// of the machine. [`asked_to_end`] tells whether it was. A second Ctrl-C or Ctrl-Break ends the process at once, with exit
/// code 1. Services hear of every user's logoff, and go on.
///
/// # Errors
///
/// `AlreadyExists` if that was asked for before in this process, and what SetConsoleCtrlHandler answers.
pub fn ring_when_asked_to_end(waker: Waker) -> io::Result<()> {
    if BELL.set(waker).is_err() {
        let why = "the signals that end this process belong to another server already";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    // SAFETY: the handler has the signature that is asked for and stays for the life of the process.
    match unsafe { SetConsoleCtrlHandler(Some(asked), 1) } {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The most time that the system gives, if the process was asked to end since [`ring_when_asked_to_end`];
/// `Duration::MAX` where it waits for ever.
#[must_use]
pub fn asked_to_end() -> Option<Duration> {
    if REQUESTS.load(Ordering::Acquire) == 0 {
        return None;
    }
    match LIMIT.load(Ordering::Acquire) {
        u64::MAX => Some(Duration::MAX),
        milliseconds => Some(Duration::from_millis(milliseconds)),
    }
}

/// Windows calls this in a thread of its own, so that nothing is forbidden here.
extern "system" fn asked(what: u32) -> BOOL {
    let last = match what {
        CTRL_C_EVENT | CTRL_BREAK_EVENT => false,
        CTRL_CLOSE_EVENT | CTRL_SHUTDOWN_EVENT => true,
        CTRL_LOGOFF_EVENT if !is_among_services() => true,
        // To a service the system's own handler does nothing then (Microsoft Learn, "HandlerRoutine callback function").
        _ => return 0,
    };
    if last {
        LIMIT.store(LAST_SECONDS.as_millis() as u64, Ordering::Release);
    }
    if REQUESTS.fetch_add(1, Ordering::AcqRel) > 0 && !last {
        eprintln!("ringport: ended by a second signal before the connections were drained");
        std::process::exit(1);
    }
    if let Some(bell) = BELL.get() {
        bell.wake();
    }
    if last {
        // Windows ends the program when this returns. It ends by itself as soon as it has drained.
        loop {
            std::thread::park();
        }
    }
    1
}

/// Whether this process lives where services do: in session 0, which has had no users since Windows Vista (Microsoft Learn,
/// "Service Changes for Windows Vista").
fn is_among_services() -> bool {
    let mut session = 0;
    // SAFETY: one number is written.
    let known = unsafe { ProcessIdToSessionId(GetCurrentProcessId(), &raw mut session) };
    known != 0 && session == 0
}
