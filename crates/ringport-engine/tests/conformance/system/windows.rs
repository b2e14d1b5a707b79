//! What the tests ask of Windows. See `unix.rs` for its twin.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::os::windows::io::AsRawHandle;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};
use windows_sys::Win32::System::ProcessStatus::{K32GetProcessMemoryInfo, PROCESS_MEMORY_COUNTERS};
use windows_sys::Win32::System::Threading::{GetCurrentProcess, GetProcessHandleCount};

/// Why there are no socket files here, or no reason. Wine has none (WSAEAFNOSUPPORT).
pub fn no_unix_sockets() -> Option<String> {
    Socket::new(Domain::UNIX, Type::STREAM, None).err().map(|error| error.to_string())
}

/// Whether a reset is lost here if nobody waits for bytes when it comes: then the next receive finds a FIN instead. That
/// is a fault of Wine 8, found out with plain sockets. On a busy machine a reset may come after the look at it, so that
/// only several are telling; one that is lost is proof.
pub fn loses_resets() -> bool {
    (0..5).any(|_| loses_a_reset())
}

fn loses_a_reset() -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut near = TcpStream::connect(listener.local_addr().expect("an address")).expect("connects");
    let (far, _) = listener.accept().expect("accepts");
    SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("takes the option");
    drop(far);
    // Nothing else can tell that the reset is there.
    std::thread::sleep(Duration::from_millis(100));
    match near.read_exact(&mut [0]) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => true,
        Ok(()) => panic!("a byte that nobody sent"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
            false
        }
    }
}

/// Open handles of this process (Microsoft Learn: "GetProcessHandleCount function"). Wine 8 always answers 0, but
/// gives a new handle the lowest number that is free, which leaked ones push up.
pub fn descriptors() -> usize {
    let mut count = 0;
    // SAFETY: the pseudo-handle of this process is always valid, and one u32 is written.
    let answer = unsafe { GetProcessHandleCount(GetCurrentProcess(), &raw mut count) };
    assert_ne!(answer, 0, "{}", std::io::Error::last_os_error());
    match count {
        0 => std::fs::File::open("NUL").expect("it is always there").as_raw_handle() as usize / 4,
        count => count as usize,
    }
}

/// Resident memory of this process in KiB (Microsoft Learn: "GetProcessMemoryInfo function").
pub fn resident_kib() -> usize {
    let mut counters = PROCESS_MEMORY_COUNTERS::default();
    let bytes = size_of::<PROCESS_MEMORY_COUNTERS>() as u32;
    // SAFETY: the pseudo-handle of this process is always valid, and the structure is as long as is said.
    let answer = unsafe { K32GetProcessMemoryInfo(GetCurrentProcess(), &raw mut counters, bytes) };
    assert_ne!(answer, 0, "{}", std::io::Error::last_os_error());
    counters.WorkingSetSize / 1024
}

/// There is no limit that would have to be raised. Under Wine the descriptors of the system below are the limit, of
/// which Wine takes all that it may have.
///
/// # Errors
///
/// Never.
#[expect(clippy::unnecessary_wraps, reason = "the twin for Unix can fail")]
pub fn allow_descriptors(_: usize) -> Result<(), String> {
    Ok(())
}

/// A process may have 16 million handles, and no limit can be set below that ("Kernel Objects", Microsoft Learn).
///
/// # Errors
///
/// Always: why that cannot be done.
pub fn fill_descriptors() -> Result<Vec<std::fs::File>, &'static str> {
    Err("a process on Windows does not run out of handles")
}

/// Level and number of `TCP_NODELAY`.
pub const NO_DELAY: (i32, i32) = (6, 1);

/// Whether options can be set by number.
pub const RAW_OPTIONS: bool = false;

/// Level and number of an option that holds an address. None is known.
pub const FILTER: Option<(i32, i32)> = None;
