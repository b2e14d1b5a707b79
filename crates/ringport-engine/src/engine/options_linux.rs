//! Socket options as Linux has them: socket(7), tcp(7), ip(7).

use std::io;
use std::time::Duration;

use socket2::{Domain, Socket, TcpKeepalive};

use super::platform;
use crate::options::{KeepAlive, OptionName, SocketOption, TcpInfo};

pub(crate) fn with_probes(params: TcpKeepalive, probes: u32) -> TcpKeepalive {
    params.with_retries(probes)
}

/// The times of a socket whose keep-alive is on.
pub(crate) fn keep_alive(socket: &Socket) -> io::Result<KeepAlive> {
    let after = KeepAlive::after(socket.tcp_keepalive_time()?);
    Ok(after.interval(socket.tcp_keepalive_interval()?).probes(socket.tcp_keepalive_retries()?))
}

pub(crate) fn set(socket: &Socket, option: &SocketOption) -> io::Result<()> {
    match option {
        SocketOption::TypeOfService(tos) if is_ipv6(socket) => socket.set_tclass_v6((*tos).into()),
        SocketOption::TypeOfService(tos) => socket.set_tos_v4((*tos).into()),
        SocketOption::UserTimeout(timeout) => socket.set_tcp_user_timeout(*timeout),
        SocketOption::QuickAck(on) => socket.set_tcp_quickack(*on),
        SocketOption::CongestionControl(name) => socket.set_tcp_congestion(name.as_bytes()),
        SocketOption::MaxSegment(bytes) => socket.set_tcp_mss(*bytes),
        SocketOption::IncomingCpu(cpu) => socket.set_cpu_affinity(*cpu as usize),
        SocketOption::Mark(mark) => socket.set_mark(*mark),
        SocketOption::Raw { level, name, value } => platform::set_raw_option(socket, *level, *name, value),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

pub(crate) fn read(socket: &Socket, name: OptionName) -> io::Result<SocketOption> {
    Ok(match name {
        OptionName::TypeOfService if is_ipv6(socket) => SocketOption::TypeOfService(socket.tclass_v6()? as u8),
        OptionName::TypeOfService => SocketOption::TypeOfService(socket.tos_v4()? as u8),
        OptionName::UserTimeout => SocketOption::UserTimeout(socket.tcp_user_timeout()?.filter(|time| !time.is_zero())),
        OptionName::QuickAck => SocketOption::QuickAck(socket.tcp_quickack()?),
        OptionName::CongestionControl => {
            let name = socket.tcp_congestion()?;
            // The kernel pads the name with zeros.
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            SocketOption::CongestionControl(String::from_utf8_lossy(name).into_owned())
        }
        OptionName::MaxSegment => SocketOption::MaxSegment(socket.tcp_mss()?),
        OptionName::IncomingCpu => SocketOption::IncomingCpu(socket.cpu_affinity()? as u32),
        OptionName::Mark => SocketOption::Mark(socket.mark()?),
        OptionName::Raw { level, name } => {
            SocketOption::Raw { level, name, value: platform::raw_option(socket, level, name)? }
        }
        _ => return Err(io::ErrorKind::Unsupported.into()),
    })
}

fn is_ipv6(socket: &Socket) -> bool {
    socket.domain().is_ok_and(|domain| domain == Domain::IPV6)
}

/// `TCP_INFO`. The structure grew from kernel to kernel; its offsets are those of `struct tcp_info` in linux/tcp.h, and
/// what lies beyond the bytes that this kernel wrote is zero.
pub(crate) fn tcp_info(socket: &Socket) -> io::Result<TcpInfo> {
    let bytes = platform::raw_option(socket, libc::IPPROTO_TCP, libc::TCP_INFO)?;
    let word =
        |at: usize| bytes.get(at..at + 4).map_or(0, |part| u32::from_ne_bytes(part.try_into().unwrap_or([0; 4])));
    let long =
        |at: usize| bytes.get(at..at + 8).map_or(0, |part| u64::from_ne_bytes(part.try_into().unwrap_or([0; 8])));
    let micros = |at| Duration::from_micros(word(at).into());
    Ok(TcpInfo {
        send_segment: word(16),
        unacked_segments: word(24),
        lost_segments: word(32),
        round_trip: micros(68),
        round_trip_variation: micros(72),
        congestion_window: word(80),
        retransmits: word(100),
        acknowledged_bytes: long(120),
        received_bytes: long(128),
        round_trip_min: micros(148),
    })
}
