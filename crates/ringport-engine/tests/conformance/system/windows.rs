//! What the tests ask of Windows. See `unix.rs` for its twin.

use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};

/// Whether engines serve socket files here: AcceptEx and ConnectEx are for TCP, and Wine has no AF_UNIX at all.
pub const HAS_UNIX_SOCKETS: bool = false;

/// Open handles of this process (Microsoft Learn: "GetProcessHandleCount function").
pub fn descriptors() -> usize {
    let mut count = 0;
    // SAFETY: the pseudo-handle of this process is always valid, and one u32 is written.
    let answer = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
    assert_ne!(answer, 0, "{}", std::io::Error::last_os_error());
    count as usize
}

/// A process may have 16 million handles, and no limit can be set below that ("Kernel Objects", Microsoft Learn).
///
/// # Errors
///
/// Always: why that cannot be done.
pub fn fill_descriptors() -> Result<Vec<std::fs::File>, &'static str> {
    Err("a process on Windows does not run out of handles")
}

/// Lets `rio` run over functions that stand in for those of the system, and are strict about their rules.
pub fn stand_in_for_rio() {
    let (created, closing) = (rio_standin::created, rio_standin::closing);
    let provider = ringport_engine::engine::rio::Provider { table: rio_standin::functions(), created, closing };
    // SAFETY: the functions do what the documentation says, over overlapped sockets.
    unsafe { ringport_engine::engine::rio::use_provider(provider) };
}
