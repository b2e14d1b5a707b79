//! SIGTERM, SIGINT and SIGHUP.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::contract::Waker;
use super::platform::set_errno;

/// What the handler rings. Never dropped, because a signal may come at any time.
static BELL: OnceLock<Waker> = OnceLock::new();
static SIGNALS: AtomicU32 = AtomicU32::new(0);

const SECOND: &[u8] = b"ringport: ended by a second signal before the connections were drained\n";

/// Rings `waker` when the process is asked to end: by SIGTERM, SIGINT or SIGHUP. [`asked_to_end`] tells whether it was. A
/// second such signal ends the process at once, with exit code 1.
///
/// No thread is needed for it: a process with one worker stays a process with one thread, and its system calls need not
/// count the users of each descriptor.
///
/// # Errors
///
/// `AlreadyExists` if that was asked for before in this process, and what sigaction(2) answers.
pub fn ring_when_asked_to_end(waker: Waker) -> io::Result<()> {
    if BELL.set(waker).is_err() {
        let why = "the signals that end this process belong to another server already";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
    }
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: an all-zero action is valid: no handler, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = asked as extern "C" fn(libc::c_int) as usize;
        action.sa_flags = libc::SA_RESTART;
        // SAFETY: the action is readable, its handler has the signature that goes without SA_SIGINFO and does only what
        // signal-safety(7) allows, and nothing is asked back.
        if unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The most time that the system gives, if the process was asked to end since [`ring_when_asked_to_end`];
/// `Duration::MAX` where, as here, it waits for ever.
#[must_use]
pub fn asked_to_end() -> Option<Duration> {
    if SIGNALS.load(Ordering::Acquire) > 0 { Some(Duration::MAX) } else { None }
}

/// Only what signal-safety(7) allows: atomics, write(2) (or kevent(2), a system call as well) and _exit(2). The bell was
/// hung up before the handler was installed, so that looking for it never waits.
extern "C" fn asked(_: libc::c_int) {
    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    if SIGNALS.fetch_add(1, Ordering::AcqRel) > 0 {
        // SAFETY: the bytes are readable. Whether they could be written makes no difference.
        let _ = unsafe { libc::write(libc::STDERR_FILENO, SECOND.as_ptr().cast(), SECOND.len()) };
        // SAFETY: it ends the process without running anything else.
        unsafe { libc::_exit(1) };
    }
    if let Some(bell) = BELL.get() {
        bell.wake();
    }
    set_errno(errno);
}
