//! Socket options that every system has, and raw ones where there are descriptors. What is Linux's own is refused.

use std::io;
use std::time::Duration;

use socket2::{Socket, TcpKeepalive};

use super::platform;
use crate::options::{KeepAlive, OptionName, SocketOption, TcpInfo};

/// The number of probes is the system's.
pub(crate) fn with_probes(params: TcpKeepalive, _: u32) -> TcpKeepalive {
    params
}

/// The times cannot be read everywhere; zero says so.
#[expect(clippy::unnecessary_wraps, reason = "the twin for Linux can fail")]
pub(crate) fn keep_alive(_: &Socket) -> io::Result<KeepAlive> {
    Ok(KeepAlive::after(Duration::ZERO))
}

pub(crate) fn set(socket: &Socket, option: &SocketOption) -> io::Result<()> {
    match option {
        SocketOption::TypeOfService(tos) => socket.set_tos_v4((*tos).into()),
        SocketOption::Raw { level, name, value } => platform::set_raw_option(socket, *level, *name, value),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

pub(crate) fn read(socket: &Socket, name: OptionName) -> io::Result<SocketOption> {
    match name {
        OptionName::TypeOfService => Ok(SocketOption::TypeOfService(socket.tos_v4()? as u8)),
        OptionName::Raw { level, name } => {
            Ok(SocketOption::Raw { level, name, value: platform::raw_option(socket, level, name)? })
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Read on Linux alone. Other systems have something alike (Windows `SIO_TCP_INFO`, since version 10 1703) with other numbers
/// under these names, and none was there to compare them with.
pub(crate) fn tcp_info(_: &Socket) -> io::Result<TcpInfo> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "what TCP knows of a connection is read on Linux alone"))
}
