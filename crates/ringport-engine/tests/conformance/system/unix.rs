//! What the tests ask of a Unix system.

/// Why there are no socket files here, or no reason.
pub fn no_unix_sockets() -> Option<String> {
    None
}

/// Whether a reset is lost here if nobody waits for bytes when it comes.
pub fn loses_resets() -> bool {
    false
}

/// Open descriptors of this process, or 0 where the system does not list them.
pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Resident memory of this process in KiB, or 0 where the system does not tell by a file.
pub fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).map_or(0, |kib| kib.parse().expect("a number"))
}

/// Raises the limit of descriptors of this process, if need be.
///
/// # Errors
///
/// If it may not have so many.
pub fn allow_descriptors(count: usize) -> Result<(), String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.max(count as libc::rlim_t);
    // SAFETY: setrlimit(2) reads one rlimit.
    let answer = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    if answer == 0 { Ok(()) } else { Err(format!("{count} descriptors: {}", std::io::Error::last_os_error())) }
}

/// Lowers the limit of descriptors and opens files until none is left.
///
/// # Errors
///
/// On other systems: why that cannot be done.
#[expect(clippy::unnecessary_wraps, reason = "the twin for Windows can only fail")]
pub fn fill_descriptors() -> Result<Vec<std::fs::File>, &'static str> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.min(descriptors() as libc::rlim_t + 64);
    // SAFETY: setrlimit(2) reads one rlimit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    Ok(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect())
}

/// Level and number of `TCP_NODELAY`.
pub const NO_DELAY: (i32, i32) = (libc::IPPROTO_TCP, libc::TCP_NODELAY);

/// Whether options can be set by number.
pub const RAW_OPTIONS: bool = true;

/// Level and number of an option that holds an address.
#[cfg(target_os = "linux")]
pub const FILTER: Option<(i32, i32)> = Some((libc::SOL_SOCKET, libc::SO_ATTACH_FILTER));
/// None is known.
#[cfg(not(target_os = "linux"))]
pub const FILTER: Option<(i32, i32)> = None;
