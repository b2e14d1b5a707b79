//! Sending from files: TransmitFile lets the system move the bytes, and none of them passes through this process.
//!
//! On the editions for workstations the system carries out two of these operations at a time, and all others wait until
//! one has ended (Microsoft Learn, "TransmitFile function"). Two peers that do not read would stop the files of all others,
//! for as long as they like. So there at most two are started by this process; whoever finds none free reads its file into
//! slots, as it would without TransmitFile. On the editions for servers there is no such limit.
//!
//! An operation sends at most [`BYTES_PER_SEND`], for the reasons that are given there, and is then an operation like that of
//! memory: a record owns the range, and with it the file, until the packet has come.

use std::io;
use std::os::windows::io::AsRawHandle;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use windows_sys::Win32::Foundation::HANDLE;
use windows_sys::Win32::Networking::WinSock::{LPFN_TRANSMITFILE, WSAEOPNOTSUPP, WSAID_TRANSMITFILE};
use windows_sys::Win32::System::IO::OVERLAPPED;
use windows_sys::Win32::System::SystemInformation::{
    OSVERSIONINFOEXW, VER_PRODUCT_TYPE, VerSetConditionMask, VerifyVersionInfoW,
};

use crate::buffer::FileRange;
use crate::engine::winsock::{self, BYTES_PER_SEND, Started};

/// Operations at a time on an edition for workstations.
pub(super) const ON_WORKSTATIONS: usize = 2;

/// Permits that are out, in the whole process.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// The function, which has to be asked for.
#[derive(Clone, Copy)]
pub(super) struct Transmitter(LPFN_TRANSMITFILE);

impl Transmitter {
    /// Loads it for TCP.
    ///
    /// # Errors
    ///
    /// If the provider has none.
    pub(super) fn load() -> io::Result<Self> {
        let socket = winsock::stream_socket(socket2::Domain::IPV4, false)?;
        // SAFETY: the identifier belongs to a function of exactly this type (mswsock.h).
        Ok(Self(unsafe { winsock::extension(&socket, &WSAID_TRANSMITFILE)? }))
    }

    /// Starts to send how `range` begins. If that is done at once, `sent` tells how much it was.
    ///
    /// # Safety
    ///
    /// `overlapped` stays valid and untouched, and the file open, until the operation has ended.
    pub(super) unsafe fn send(
        self,
        socket: &socket2::Socket,
        range: &FileRange,
        overlapped: *mut OVERLAPPED,
        sent: &mut usize,
    ) -> Started {
        let Some(transmit) = self.0 else { return Started::Refused(WSAEOPNOTSUPP) };
        let count = range.len().min(BYTES_PER_SEND) as u32;
        let (file, offset) = (range.file().as_raw_handle() as HANDLE, range.offset());
        // SAFETY: nothing is under way yet, so that the OVERLAPPED is this function's to write.
        unsafe {
            (*overlapped).Anonymous.Anonymous.Offset = offset as u32;
            (*overlapped).Anonymous.Anonymous.OffsetHigh = (offset >> 32) as u32;
        }
        // SAFETY: both handles are live, there is no other data, and the caller vouches for the rest.
        let done = unsafe { transmit(winsock::raw(socket), file, count, 0, overlapped, ptr::null(), 0) };
        let started = winsock::started(done != 0);
        if started == Started::Done {
            // SAFETY: the operation has ended, and left there how much it moved (see OVERLAPPED). Its packet, if there is
            // one, is taken on this thread, later.
            *sent = unsafe { (*overlapped).InternalHigh };
        }
        started
    }
}

/// The right to one operation, given back when it is dropped.
pub(super) struct Permit(());

impl Permit {
    /// One, unless as many are out as the system carries out at a time.
    pub(super) fn take() -> Option<Self> {
        let most = if is_workstation() { ON_WORKSTATIONS } else { usize::MAX };
        let one_more = |out: usize| (out < most).then_some(out + 1);
        UNDER_WAY.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok().map(|_| Self(()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether this is an edition for workstations. When in doubt, it is.
fn is_workstation() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let mut wanted = OSVERSIONINFOEXW {
            dwOSVersionInfoSize: size_of::<OSVERSIONINFOEXW>() as u32,
            wProductType: VER_NT_WORKSTATION,
            ..Default::default()
        };
        // SAFETY: the calls read one description, whose size is told, and compare its one field.
        let is = unsafe {
            let equal = VerSetConditionMask(0, VER_PRODUCT_TYPE, VER_EQUAL);
            VerifyVersionInfoW(&raw mut wanted, VER_PRODUCT_TYPE, equal)
        };
        // ERROR_OLD_WIN_VERSION means that it is not what was asked for; any other failure tells nothing.
        is != 0 || io::Error::last_os_error().raw_os_error() != Some(ERROR_OLD_WIN_VERSION)
    })
}

/// `ERROR_OLD_WIN_VERSION` of winerror.h, and two numbers of winnt.h.
const ERROR_OLD_WIN_VERSION: i32 = 1150;
const VER_NT_WORKSTATION: u8 = 1;
const VER_EQUAL: u8 = 1;
