//! ICMP errors that come back for datagrams of data ports.
//!
//! The kernel keeps them in a queue of the socket (`IP_RECVERR`), with the address that the datagram
//! had been sent to. Only errors that RFC 8656 §11.5 lets a TURN server pass on are told.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg};
use tokio::sync::mpsc;

use super::Tally;
use super::port::Port;

/// Errors of one port that are read in one go.
const TURN: usize = 64;

/// An ICMP error for a datagram that a data port has sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathError {
    /// The data port.
    pub local: SocketAddr,
    /// Where the datagram was sent to.
    pub to: SocketAddr,
    /// Of ICMP for IPv4, of ICMPv6 for IPv6.
    pub kind: u8,
    pub code: u8,
    /// The MTU where the datagram was too big, in bytes of layer 3; else 0 (RFC 8656 §18.13).
    pub data: u32,
}

/// Hands the errors that wait at `port` to control, as far as there is room.
pub(super) fn report(port: &Port, to_control: &mpsc::Sender<PathError>, tally: &Tally) {
    for _ in 0..TURN {
        let (found, to) = match next(port) {
            Ok(Some(error)) => error,
            Ok(None) => return,
            Err(error) => {
                log::debug!("errors of {}: {error}", port.local);
                return;
            }
        };
        let Some(error) = translate(port.local, to, &found) else { continue };
        let counter = match to_control.try_send(error) {
            Ok(()) => &tally.path_errors,
            Err(_) => &tally.control_overrun,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// The next error in the queue, with the destination of its datagram.
fn next(port: &Port) -> io::Result<Option<(libc::sock_extended_err, SocketAddr)>> {
    let mut space = cmsg_space!([u8; 128]);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    loop {
        // The datagram that failed would come as payload; nobody needs it.
        let received =
            recvmsg::<SockaddrStorage>(port.socket.as_raw_fd(), &mut [], Some(&mut space), flags);
        let message = match received {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        let to = message.address.as_ref().and_then(socket_address);
        let found = message.cmsgs()?.find_map(|cmsg| match cmsg {
            ControlMessageOwned::Ipv4RecvErr(error, _)
            | ControlMessageOwned::Ipv6RecvErr(error, _) => Some(error),
            _ => None,
        });
        if let (Some(found), Some(to)) = (found, to) {
            return Ok(Some((found, to)));
        }
    }
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from((v4.ip(), v4.port())));
    let v6 = || address.as_sockaddr_in6().map(|v6| SocketAddr::from((v6.ip(), v6.port())));
    v4.or_else(v6)
}

/// What control is told of an error; `None` for those that nobody passes on. A datagram that was too
/// big for the first link never left: control is told what a router would have said.
fn translate(
    local: SocketAddr,
    to: SocketAddr,
    error: &libc::sock_extended_err,
) -> Option<PathError> {
    let is_v4 = matches!(local.ip(), IpAddr::V4(_));
    let (kind, code) = match error.ee_origin {
        libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6 => (error.ee_type, error.ee_code),
        libc::SO_EE_ORIGIN_LOCAL if error.ee_errno == libc::EMSGSIZE as u32 => {
            if is_v4 {
                (3, 4)
            } else {
                (2, 0)
            }
        }
        _ => return None,
    };
    let too_big = match (is_v4, kind) {
        // Destination unreachable, time exceeded.
        (true, 3) => code == 4,
        (true, 11) => false,
        // Destination unreachable, packet too big, time exceeded.
        (false, 2) => true,
        (false, 1 | 3) => false,
        _ => return None,
    };
    Some(PathError { local, to, kind, code, data: if too_big { error.ee_info } else { 0 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "192.0.2.1:50000";
    const V6: &str = "[2001:db8::1]:50000";

    fn translated(local: &str, origin: u8, kind: u8, code: u8) -> Option<(u8, u8, u32)> {
        let error = libc::sock_extended_err {
            ee_errno: libc::EMSGSIZE as u32,
            ee_origin: origin,
            ee_type: kind,
            ee_code: code,
            ee_pad: 0,
            ee_info: 1400,
            ee_data: 0,
        };
        let local = local.parse().unwrap();
        translate(local, local, &error).map(|error| (error.kind, error.code, error.data))
    }

    #[test]
    fn only_the_kinds_of_the_rfc_are_passed_on() {
        let icmp = libc::SO_EE_ORIGIN_ICMP;
        let passed = |kind| translated(V4, icmp, kind, 0).is_some();
        assert_eq!((0..=40).filter(|kind| passed(*kind)).collect::<Vec<_>>(), [3, 11]);
        let icmp6 = libc::SO_EE_ORIGIN_ICMP6;
        let passed = |kind| translated(V6, icmp6, kind, 0).is_some();
        assert_eq!((0..=160).filter(|kind| passed(*kind)).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn the_mtu_is_told_where_there_is_one() {
        let icmp = libc::SO_EE_ORIGIN_ICMP;
        assert_eq!(translated(V4, icmp, 3, 4), Some((3, 4, 1400)));
        assert_eq!(translated(V4, icmp, 3, 3), Some((3, 3, 0)));
        assert_eq!(translated(V6, libc::SO_EE_ORIGIN_ICMP6, 2, 0), Some((2, 0, 1400)));
        assert_eq!(translated(V4, libc::SO_EE_ORIGIN_LOCAL, 0, 0), Some((3, 4, 1400)));
        assert_eq!(translated(V6, libc::SO_EE_ORIGIN_LOCAL, 0, 0), Some((2, 0, 1400)));
        assert_eq!(translated(V4, libc::SO_EE_ORIGIN_TIMESTAMPING, 0, 0), None);
    }
}
