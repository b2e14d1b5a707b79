//! Winsock calls, shared by the engines of Windows.
//!
//! Every function reads the error of its call at once, as the number that `WSAGetLastError` gives: whatever is called in
//! between may set another one. Those that start an overlapped operation return a [`Started`] and do not look at the
//! operation again; that is for the [`Port`](super::port::Port) to do.

use std::io;
use std::mem::size_of;
use std::os::windows::io::AsRawSocket;
use std::ptr;
use std::time::Duration;

use windows_sys::Win32::Foundation::{
    ERROR_CONNECTION_ABORTED, ERROR_CONNECTION_REFUSED, ERROR_HOST_UNREACHABLE, ERROR_IO_PENDING,
    ERROR_NETNAME_DELETED, ERROR_NETWORK_UNREACHABLE, ERROR_OPERATION_ABORTED, ERROR_PORT_UNREACHABLE,
    ERROR_SEM_TIMEOUT, HANDLE,
};
use windows_sys::Win32::Networking::WinSock::{
    LPFN_ACCEPTEX, LPFN_CONNECTEX, MSG_OOB, SIO_GET_EXTENSION_FUNCTION_POINTER, SO_EXCLUSIVEADDRUSE, SO_PROTOCOL_INFOW,
    SO_REUSE_UNICASTPORT, SO_UPDATE_ACCEPT_CONTEXT, SO_UPDATE_CONNECT_CONTEXT, SOCKADDR_STORAGE, SOCKET, SOCKET_ERROR,
    SOL_SOCKET, WSABUF, WSAECONNABORTED, WSAECONNREFUSED, WSAECONNRESET, WSAEHOSTUNREACH, WSAENETUNREACH, WSAENOTCONN,
    WSAEOPNOTSUPP, WSAETIMEDOUT, WSAEWOULDBLOCK, WSAGetLastError, WSAGetOverlappedResult, WSAID_ACCEPTEX,
    WSAID_CONNECTEX, WSAIoctl, WSAPROTOCOL_INFOW, WSARecv, WSASend, XP1_IFS_HANDLES, getsockopt, recv, setsockopt,
};
use windows_sys::Win32::Storage::FileSystem::SetFileCompletionNotificationModes;
use windows_sys::Win32::System::IO::{CancelIoEx, OVERLAPPED};
use windows_sys::Win32::System::WindowsProgramming::{
    FILE_SKIP_COMPLETION_PORT_ON_SUCCESS, FILE_SKIP_SET_EVENT_ON_HANDLE,
};
use windows_sys::core::GUID;

use crate::buffer::{Buf, Chunk};

/// Most pieces of one vectored send. Windows takes more; beyond some tens there is nothing to gain.
pub(crate) const PIECES_PER_SEND: usize = 64;

/// Most bytes of one send operation. The system locks the memory of a send that waits, and reports nothing before all of
/// it is taken: pieces of this size keep both in bounds, and let a slow peer be told from one that has stopped.
pub(crate) const BYTES_PER_SEND: usize = 256 * 1024;

/// Bytes that `AcceptEx` wants for each of the two addresses: 16 more than the largest (see its documentation).
const ACCEPT_ADDRESS_BYTES: usize = size_of::<SOCKADDR_STORAGE>() + 16;

/// What `AcceptEx` writes: no data, two addresses.
pub(crate) type AcceptBuffer = [u8; 2 * ACCEPT_ADDRESS_BYTES];

/// How a call that starts an operation was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Started {
    /// It is done already.
    Done,
    /// It goes on.
    Pending,
    /// It was refused, with this error; nothing was started.
    Refused(i32),
}

/// Functions that have to be asked for (`SIO_GET_EXTENSION_FUNCTION_POINTER`).
#[derive(Clone, Copy)]
pub(crate) struct Extensions {
    accept: LPFN_ACCEPTEX,
    connect: LPFN_CONNECTEX,
}

impl Extensions {
    /// Loads them for TCP.
    ///
    /// # Errors
    ///
    /// If the provider has none.
    pub(crate) fn load() -> io::Result<Self> {
        let socket = stream_socket(socket2::Domain::IPV4, false)?;
        // SAFETY: the identifiers belong to functions of exactly these types (mswsock.h).
        unsafe {
            Ok(Self { accept: extension(&socket, &WSAID_ACCEPTEX)?, connect: extension(&socket, &WSAID_CONNECTEX)? })
        }
    }

    /// Starts to accept from `listener` into the new socket `into`, without waiting for data of the peer: a silent one
    /// would hold the operation for ever.
    ///
    /// # Safety
    ///
    /// `buffer` and `overlapped` stay valid and untouched until the operation has ended.
    pub(crate) unsafe fn accept(
        &self,
        listener: &socket2::Socket,
        into: &socket2::Socket,
        buffer: *mut AcceptBuffer,
        overlapped: *mut OVERLAPPED,
    ) -> Started {
        let Some(accept) = self.accept else { return Started::Refused(WSAEOPNOTSUPP) };
        let (room, mut received) = (ACCEPT_ADDRESS_BYTES as u32, 0);
        // SAFETY: the buffer has room for two addresses and no data; the caller vouches for how long it lives.
        let done =
            unsafe { accept(raw(listener), raw(into), buffer.cast(), 0, room, room, &raw mut received, overlapped) };
        started(done != 0)
    }

    /// Starts to connect `socket`, which is bound.
    ///
    /// # Safety
    ///
    /// `address` and `overlapped` stay valid and untouched until the operation has ended.
    pub(crate) unsafe fn connect(
        &self,
        socket: &socket2::Socket,
        address: *const socket2::SockAddr,
        overlapped: *mut OVERLAPPED,
    ) -> Started {
        let Some(connect) = self.connect else { return Started::Refused(WSAEOPNOTSUPP) };
        // SAFETY: the caller says that the address is valid.
        let (name, length) = unsafe { ((*address).as_ptr(), (*address).len()) };
        let (mut sent, nothing) = (0, ptr::null());
        // SAFETY: the address is `length` bytes long; nothing is to be sent with the connect.
        let done = unsafe { connect(raw(socket), name.cast(), length, nothing, 0, &raw mut sent, overlapped) };
        started(done != 0)
    }
}

#[cfg(test)]
impl Extensions {
    /// The same with another `AcceptEx`.
    pub(crate) fn with_accept(self, accept: LPFN_ACCEPTEX) -> Self {
        Self { accept, ..self }
    }

    /// The same with another `ConnectEx`.
    pub(crate) fn with_connect(self, connect: LPFN_CONNECTEX) -> Self {
        Self { connect, ..self }
    }
}

/// A new socket for overlapped operations, that child processes do not inherit; for Registered I/O, too, if that is asked
/// for.
pub(crate) fn stream_socket(domain: socket2::Domain, registered: bool) -> io::Result<socket2::Socket> {
    let kind = socket2::Type::STREAM.no_inherit();
    let kind = if registered { kind.registered_io() } else { kind };
    let tcp = domain == socket2::Domain::IPV4 || domain == socket2::Domain::IPV6;
    let socket = socket2::Socket::new_raw(domain, kind, tcp.then_some(socket2::Protocol::TCP))?;
    if registered {
        super::rio::note_created(&socket);
    }
    Ok(socket)
}

/// Makes a socket from `AcceptEx` a full one, with the options of its listener: without this it has neither addresses
/// nor shutdown (see `SO_UPDATE_ACCEPT_CONTEXT`).
pub(crate) fn update_accepted(socket: &socket2::Socket, listener: &socket2::Socket) -> io::Result<()> {
    let listener = raw(listener);
    // SAFETY: the option reads one SOCKET.
    unsafe { set_option(socket, SO_UPDATE_ACCEPT_CONTEXT, ptr::from_ref(&listener).cast(), size_of::<SOCKET>()) }
}

/// The same for a socket that `ConnectEx` has connected.
pub(crate) fn update_connected(socket: &socket2::Socket) -> io::Result<()> {
    // SAFETY: the option reads nothing.
    unsafe { set_option(socket, SO_UPDATE_CONNECT_CONTEXT, ptr::null(), 0) }
}

/// Keeps every other socket from binding to the same address, also one with `SO_REUSEADDR`.
pub(crate) fn use_address_exclusively(socket: &socket2::Socket) -> io::Result<()> {
    let yes: i32 = 1;
    // SAFETY: the option reads one BOOL.
    unsafe { set_option(socket, SO_EXCLUSIVEADDRUSE, ptr::from_ref(&yes).cast(), size_of::<i32>()) }
}

/// Lets the system choose the port of a bound socket as late as that of one that just connects
/// (`SO_REUSE_UNICASTPORT`, Windows 10).
pub(crate) fn share_ports(socket: &socket2::Socket) -> io::Result<()> {
    let yes: i32 = 1;
    // SAFETY: the option reads one DWORD.
    unsafe { set_option(socket, SO_REUSE_UNICASTPORT, ptr::from_ref(&yes).cast(), size_of::<i32>()) }
}

/// Asks that operations which succeed at once queue no packet. Whether that can be relied upon: a layered provider
/// without real handles may queue one all the same (see `SetFileCompletionNotificationModes`), and then it is not asked.
pub(crate) fn skip_on_success(socket: &socket2::Socket) -> bool {
    // SAFETY: an all-zero description is a valid value of it.
    let mut protocol: WSAPROTOCOL_INFOW = unsafe { std::mem::zeroed() };
    let mut length = size_of::<WSAPROTOCOL_INFOW>() as i32;
    // SAFETY: the option writes one description, for which there is room.
    let answer =
        unsafe { getsockopt(raw(socket), SOL_SOCKET, SO_PROTOCOL_INFOW, (&raw mut protocol).cast(), &raw mut length) };
    if answer == SOCKET_ERROR || protocol.dwServiceFlags1 & XP1_IFS_HANDLES == 0 {
        return false;
    }
    let modes = (FILE_SKIP_COMPLETION_PORT_ON_SUCCESS | FILE_SKIP_SET_EVENT_ON_HANDLE) as u8;
    // SAFETY: the handle is that of a live socket.
    unsafe { SetFileCompletionNotificationModes(handle(socket), modes) != 0 }
}

/// Starts to receive nothing: the operation ends when there is something to receive.
///
/// # Safety
///
/// `overlapped` stays valid and untouched until the operation has ended.
pub(crate) unsafe fn await_readable(socket: &socket2::Socket, overlapped: *mut OVERLAPPED) -> Started {
    let nothing = WSABUF { len: 0, buf: ptr::null_mut() };
    let (mut received, mut flags) = (0, 0);
    // SAFETY: the buffer is empty, and its description is read before the call returns (see WSARecv).
    let answer =
        unsafe { WSARecv(raw(socket), &raw const nothing, 1, &raw mut received, &raw mut flags, overlapped, None) };
    started(answer == 0)
}

/// Starts to send the front of `pieces`, as far as one operation goes. If that is done at once, `sent` tells how much it
/// was.
///
/// # Safety
///
/// `overlapped`, and the bytes of the pieces, stay valid and untouched until the operation has ended.
pub(crate) unsafe fn send<'a>(
    socket: &socket2::Socket,
    pieces: impl Iterator<Item = &'a Chunk>,
    overlapped: *mut OVERLAPPED,
    sent: &mut usize,
) -> Started {
    let mut slices = [WSABUF { len: 0, buf: ptr::null_mut() }; PIECES_PER_SEND];
    let (mut count, mut left, mut flags) = (0, BYTES_PER_SEND, 0);
    // A range of a file has no bytes in memory; what stands before it goes first.
    for (piece, slice) in pieces.take_while(|piece| !matches!(piece, Chunk::File(_))).zip(&mut slices) {
        // It comes alone.
        if matches!(piece, Chunk::Urgent(_)) {
            flags = MSG_OOB as u32;
        }
        let data = piece.as_slice();
        let length = data.len().min(left);
        *slice = WSABUF { len: length as u32, buf: data.as_ptr().cast_mut() };
        (count, left) = (count + 1, left - length);
        if left == 0 {
            break;
        }
    }
    let mut taken = 0;
    // SAFETY: the descriptions are read before the call returns (see WSASend); the caller vouches for the bytes.
    let answer = unsafe { WSASend(raw(socket), slices.as_ptr(), count, &raw mut taken, flags, overlapped, None) };
    *sent = taken as usize;
    started(answer == 0)
}

/// The error number of a file that ended before its range did (`ERROR_HANDLE_EOF`).
pub(crate) const FILE_ENDED: i32 = 38;

/// What an error number says.
pub(crate) fn error(number: i32) -> io::Error {
    match number {
        FILE_ENDED => {
            io::Error::new(io::ErrorKind::UnexpectedEof, "the file ended before the range that was to be sent")
        }
        _ => io::Error::from_raw_os_error(number),
    }
}

/// Receives at most `most` bytes once into an empty buffer, from a socket that does not block.
///
/// # Errors
///
/// The error number; see [`would_block`].
pub(crate) fn receive(socket: &socket2::Socket, buf: &mut Buf, most: usize) -> Result<usize, i32> {
    let (address, size) = buf.raw_memory();
    let size = i32::try_from(size.min(most)).unwrap_or(i32::MAX);
    // SAFETY: the slot is leased by `buf`, writable and at least `size` bytes long, and the call returns before it is used.
    let count = unsafe { recv(raw(socket), address, size, 0) };
    let bytes = u32::try_from(count).map_err(|_| last_error())?;
    buf.set_filled(bytes);
    Ok(bytes as usize)
}

/// After how long what was cancelled and has not ended is cancelled again. [`cancel`] marks what it finds, and an operation
/// between two of its steps can be passed over: Wine 8 does so with one that was just told to try again, and then it
/// goes on for as long as its peer likes.
pub(crate) const CANCEL_AGAIN: Duration = Duration::from_millis(20);

#[cfg(test)]
thread_local! {
    /// How many of the next cancellations of this thread find nothing.
    pub(crate) static PASSES_OVER: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Asks every operation of the socket to end. Each still ends with a packet of its own, cancelled or not: that nothing was
/// found to cancel does not mean that none is coming. One that was passed over goes on, see [`CANCEL_AGAIN`].
pub(crate) fn cancel(socket: &socket2::Socket) {
    #[cfg(test)]
    if PASSES_OVER.replace(PASSES_OVER.get().saturating_sub(1)) > 0 {
        return;
    }
    // SAFETY: the handle is that of a live socket, and no operation is named.
    unsafe { CancelIoEx(handle(socket), ptr::null()) };
}

/// The error of an operation that has ended without success.
///
/// # Safety
///
/// `overlapped` belongs to an operation of `socket` whose packet was taken.
pub(crate) unsafe fn failure_of(socket: &socket2::Socket, overlapped: *const OVERLAPPED) -> i32 {
    let (mut bytes, mut flags) = (0, 0);
    // SAFETY: the operation has ended, so that the call only translates what it left behind.
    let done = unsafe { WSAGetOverlappedResult(raw(socket), overlapped, &raw mut bytes, 0, &raw mut flags) };
    if done != 0 { ERROR_OPERATION_ABORTED as i32 } else { last_error() }
}

/// Whether an accept failed because its connection was gone before, so that the next may be well. Wine says that by
/// WSAENOTCONN, too.
pub(crate) fn is_lost_connection(error: i32) -> bool {
    matches!(error, WSAECONNRESET | WSAECONNABORTED | WSAETIMEDOUT | WSAENOTCONN)
}

/// Whether a plain receive found nothing.
pub(crate) fn would_block(error: i32) -> bool {
    error == WSAEWOULDBLOCK
}

/// The error of a connection that is gone without saying why.
pub(crate) const NOT_CONNECTED: i32 = WSAENOTCONN;

/// Whether an operation was cancelled.
pub(crate) fn is_cancelled(error: i32) -> bool {
    error == ERROR_OPERATION_ABORTED as i32
}

/// What the answer of a call that starts an operation means.
pub(super) fn started(done: bool) -> Started {
    if done {
        return Started::Done;
    }
    match last_error() {
        error if error == ERROR_IO_PENDING as i32 => Started::Pending,
        error => Started::Refused(error),
    }
}

/// The error of the call just made. A few operations answer with a number of the file system instead of Winsock's.
pub(super) fn last_error() -> i32 {
    // SAFETY: the call has no argument.
    as_winsock_error(unsafe { WSAGetLastError() })
}

/// Winsock's number for an error that may be one of the file system.
pub(crate) fn as_winsock_error(error: i32) -> i32 {
    match error as u32 {
        ERROR_NETNAME_DELETED => WSAECONNRESET,
        ERROR_CONNECTION_ABORTED => WSAECONNABORTED,
        ERROR_CONNECTION_REFUSED | ERROR_PORT_UNREACHABLE => WSAECONNREFUSED,
        ERROR_HOST_UNREACHABLE => WSAEHOSTUNREACH,
        ERROR_NETWORK_UNREACHABLE => WSAENETUNREACH,
        ERROR_SEM_TIMEOUT => WSAETIMEDOUT,
        _ => error,
    }
}

/// The system's number of a socket.
pub(super) fn raw(socket: &socket2::Socket) -> SOCKET {
    socket.as_raw_socket() as SOCKET
}

/// Sockets of the system's own providers are handles.
pub(crate) fn handle(socket: &socket2::Socket) -> HANDLE {
    socket.as_raw_socket() as HANDLE
}

/// # Safety
///
/// `value` is what the option reads, and `length` bytes long.
unsafe fn set_option(socket: &socket2::Socket, name: i32, value: *const u8, length: usize) -> io::Result<()> {
    // SAFETY: the caller vouches for the value.
    let answer = unsafe { setsockopt(raw(socket), SOL_SOCKET, name, value, length as i32) };
    if answer == SOCKET_ERROR { Err(io::Error::from_raw_os_error(last_error())) } else { Ok(()) }
}

/// Asks the provider of `socket` for a function.
///
/// # Safety
///
/// `F` is an optional pointer to a function of the type that `identifier` stands for.
pub(crate) unsafe fn extension<F>(socket: &socket2::Socket, identifier: &GUID) -> io::Result<F> {
    let mut function = std::mem::MaybeUninit::<F>::zeroed();
    let mut written = 0;
    // SAFETY: the request reads one identifier and writes one pointer.
    let answer = unsafe {
        WSAIoctl(
            raw(socket),
            SIO_GET_EXTENSION_FUNCTION_POINTER,
            ptr::from_ref(identifier).cast(),
            size_of::<GUID>() as u32,
            function.as_mut_ptr().cast(),
            size_of::<F>() as u32,
            &raw mut written,
            ptr::null_mut(),
            None,
        )
    };
    if answer == SOCKET_ERROR {
        return Err(io::Error::from_raw_os_error(last_error()));
    }
    // SAFETY: no pointer (all zero) is a valid value, and so is what the provider wrote, as the caller says.
    Ok(unsafe { function.assume_init() })
}

/// Why nobody can tell here where urgent data is. Elsewhere `SIOCATMARK` says that it comes next; in Winsock it says that
/// none is still to come (Microsoft Learn, "ioctlsocket function"), which is also so when there never was any.
pub(crate) fn no_mark() -> io::Error {
    let why = "Winsock tells whether urgent data is still to come, and not whether it comes next";
    io::Error::new(io::ErrorKind::Unsupported, why)
}
