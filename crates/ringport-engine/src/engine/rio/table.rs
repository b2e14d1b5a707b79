//! The functions of Registered I/O: where they come from.
//!
//! No library exports them. They are asked for with one `WSAIoctl` (`SIO_GET_MULTIPLE_EXTENSION_FUNCTION_POINTER` with
//! `WSAID_MULTIPLE_RIO`, see Microsoft Learn, "RIO_EXTENSION_FUNCTION_TABLE structure"). Tests on systems without
//! Registered I/O bring functions of their own: a [`Provider`].

use std::io;
use std::os::windows::io::AsRawSocket;
use std::ptr;
use std::sync::OnceLock;

pub use windows_sys::Win32::Networking::WinSock::RIO_EXTENSION_FUNCTION_TABLE;
use windows_sys::Win32::Networking::WinSock::{
    LPFN_RIOCLOSECOMPLETIONQUEUE, LPFN_RIOCREATECOMPLETIONQUEUE, LPFN_RIOCREATEREQUESTQUEUE, LPFN_RIODEQUEUECOMPLETION,
    LPFN_RIODEREGISTERBUFFER, LPFN_RIONOTIFY, LPFN_RIORECEIVE, LPFN_RIORECEIVEEX, LPFN_RIOREGISTERBUFFER,
    LPFN_RIORESIZECOMPLETIONQUEUE, LPFN_RIOSEND, LPFN_RIOSENDEX, SIO_GET_MULTIPLE_EXTENSION_FUNCTION_POINTER, SOCKET,
    SOCKET_ERROR, WSAEOPNOTSUPP, WSAGetLastError, WSAID_MULTIPLE_RIO, WSAIoctl,
};
use windows_sys::core::GUID;

use crate::engine::winsock;

/// Functions in place of the system's, for tests.
#[derive(Clone, Copy)]
pub struct Provider {
    /// The functions.
    pub table: RIO_EXTENSION_FUNCTION_TABLE,
    /// Told of each socket that is created for Registered I/O.
    pub created: fn(usize),
    /// Told of each socket with a request queue, right before it is closed.
    pub closing: fn(usize),
}

static PROVIDER: OnceLock<Provider> = OnceLock::new();

/// Lets every engine that is opened from now on use other functions than the system's. The first call counts.
///
/// # Safety
///
/// The functions do what those of Registered I/O are documented to do, above all with the memory they are given.
pub unsafe fn use_provider(provider: Provider) {
    PROVIDER.get_or_init(|| provider);
}

/// A socket was created for Registered I/O.
pub(in crate::engine) fn note_created(socket: &socket2::Socket) {
    if let Some(provider) = PROVIDER.get() {
        (provider.created)(socket.as_raw_socket() as usize);
    }
}

/// Closes a socket that may have a request queue.
pub(super) fn close(socket: socket2::Socket) {
    if let Some(provider) = PROVIDER.get() {
        (provider.closing)(socket.as_raw_socket() as usize);
    }
    drop(socket);
}

/// The twelve functions that the engine calls. The other one resizes a request queue.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    pub(super) receive: Function<LPFN_RIORECEIVE>,
    pub(super) send: Function<LPFN_RIOSEND>,
    pub(super) receive_from: Function<LPFN_RIORECEIVEEX>,
    pub(super) send_to: Function<LPFN_RIOSENDEX>,
    pub(super) close_completion_queue: Function<LPFN_RIOCLOSECOMPLETIONQUEUE>,
    pub(super) create_completion_queue: Function<LPFN_RIOCREATECOMPLETIONQUEUE>,
    pub(super) create_request_queue: Function<LPFN_RIOCREATEREQUESTQUEUE>,
    pub(super) dequeue_completion: Function<LPFN_RIODEQUEUECOMPLETION>,
    pub(super) deregister_buffer: Function<LPFN_RIODEREGISTERBUFFER>,
    pub(super) notify: Function<LPFN_RIONOTIFY>,
    pub(super) register_buffer: Function<LPFN_RIOREGISTERBUFFER>,
    pub(super) resize_completion_queue: Function<LPFN_RIORESIZECOMPLETIONQUEUE>,
}

/// What is in an optional pointer to a function.
type Function<F> = <F as Pointer>::Function;

/// An optional pointer to a function.
pub(super) trait Pointer {
    /// The pointer.
    type Function: Copy;
}

impl<F: Copy> Pointer for Option<F> {
    type Function = F;
}

impl Functions {
    /// Asks for them.
    ///
    /// # Errors
    ///
    /// `WSAEOPNOTSUPP` (10045) or `WSAEINVAL` (10022) on a system without Registered I/O.
    pub(super) fn load() -> io::Result<Self> {
        let table = match PROVIDER.get() {
            Some(provider) => provider.table,
            None => ask()?,
        };
        Self::of(&table).ok_or_else(|| io::Error::from_raw_os_error(WSAEOPNOTSUPP))
    }

    fn of(table: &RIO_EXTENSION_FUNCTION_TABLE) -> Option<Self> {
        Some(Self {
            receive: table.RIOReceive?,
            send: table.RIOSend?,
            receive_from: table.RIOReceiveEx?,
            send_to: table.RIOSendEx?,
            close_completion_queue: table.RIOCloseCompletionQueue?,
            create_completion_queue: table.RIOCreateCompletionQueue?,
            create_request_queue: table.RIOCreateRequestQueue?,
            dequeue_completion: table.RIODequeueCompletion?,
            deregister_buffer: table.RIODeregisterBuffer?,
            notify: table.RIONotify?,
            register_buffer: table.RIORegisterBuffer?,
            resize_completion_queue: table.RIOResizeCompletionQueue?,
        })
    }
}

fn ask() -> io::Result<RIO_EXTENSION_FUNCTION_TABLE> {
    let socket = winsock::stream_socket(socket2::Domain::IPV4, true)?;
    let size = size_of::<RIO_EXTENSION_FUNCTION_TABLE>() as u32;
    let mut table = RIO_EXTENSION_FUNCTION_TABLE { cbSize: size, ..Default::default() };
    let mut written = 0;
    // SAFETY: the request reads one identifier and writes one table, whose size is said.
    let answer = unsafe {
        WSAIoctl(
            socket.as_raw_socket() as SOCKET,
            SIO_GET_MULTIPLE_EXTENSION_FUNCTION_POINTER,
            ptr::from_ref(&WSAID_MULTIPLE_RIO).cast(),
            size_of::<GUID>() as u32,
            (&raw mut table).cast(),
            size,
            &raw mut written,
            ptr::null_mut(),
            None,
        )
    };
    if answer == SOCKET_ERROR {
        // SAFETY: no memory is passed.
        return Err(io::Error::from_raw_os_error(unsafe { WSAGetLastError() }));
    }
    Ok(table)
}
