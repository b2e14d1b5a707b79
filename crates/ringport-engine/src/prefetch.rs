//! Telling the processor what will be needed soon.
//!
//! With hundreds of connections the memory of one has left the near caches when its next message comes, and each line of it
//! that is missing costs as much as a hundred instructions. An engine that has a batch of completions knows whose turn
//! comes next, so that this memory can be on its way while the messages before are worked off.

/// Connections above which looking ahead pays. With what the kernel has of it a connection is about 8 KiB, so that as many
/// stay in a near cache of 1 MiB by themselves.
pub const NEAR_CONNECTIONS: usize = 128;

/// Bytes of a cache line.
const LINE_BYTES: usize = 64;
/// Bytes that are fetched of one value. More at a time would only wait for each other.
const FETCHED_MAX: usize = 1024;

/// Has the processor fetch what `value` consists of, up to 1 KiB, without waiting for it. Nothing else happens, and on
/// processors other than x86-64 nothing at all.
#[inline]
pub fn prefetch<T: ?Sized>(value: &T) {
    let first = std::ptr::from_ref(value).cast::<u8>();
    for offset in (0..size_of_val(value).min(FETCHED_MAX)).step_by(LINE_BYTES) {
        fetch_line(first.wrapping_add(offset));
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn fetch_line(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: the instruction reads nothing that a program could see, and ignores addresses that are not mapped.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
}

#[cfg(not(all(target_arch = "x86_64", not(miri))))]
#[inline]
fn fetch_line(_: *const u8) {}
