//! Routers that tell that a datagram has lived too short (ICMP Time Exceeded), from Linux's queue of
//! errors.

use std::io::{self, IoSliceMut};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::socket::sockopt::Ipv4RecvErr;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt};

/// ICMP's type of Time Exceeded (RFC 792).
const TIME_EXCEEDED: u8 = 11;

/// Has errors about a socket's datagrams put into its queue.
pub(super) fn listen(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, Ipv4RecvErr, &true)?)
}

/// The router that the next error is from, if it is one that is looked for.
pub(super) fn next(socket: &impl AsRawFd) -> Option<IpAddr> {
    let mut bytes = [0; 256];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags).ok()?;
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, Some(router))
            if error.ee_origin == libc::SO_EE_ORIGIN_ICMP && error.ee_type == TIME_EXCEEDED =>
        {
            Some(IpAddr::from(u32::from_be(router.sin_addr.s_addr).to_be_bytes()))
        }
        _ => None,
    })
}
