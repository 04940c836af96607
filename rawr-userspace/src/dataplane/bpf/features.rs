//! What an interface's driver can do with XDP, by the generic netlink family `netdev` (Linux 6.3).

use std::io;
use std::time::Duration;

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;
use rtnetlink::packet_core::{NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer, NlasIterator};

/// nlmsghdr and genlmsghdr.
const HEADERS: usize = 20;

/// The controller that knows the families' numbers.
const CONTROLLER: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

const DEVICE_GET: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
const DEVICE_XDP_FEATURES: u16 = 3;

/// Can run XDP programs in the driver.
pub(crate) const BASIC: u64 = 1 << 0;
/// Frames can be redirected to the interface.
pub(crate) const NDO_XMIT: u64 = 1 << 2;

/// Bits of `enum netdev_xdp_act`. Fails on kernels that do not tell.
pub(crate) fn of(ifindex: u32) -> io::Result<u64> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket2::SockRef::from(&socket).set_read_timeout(Some(Duration::from_secs(2)))?;
    let family = ask(&socket, CONTROLLER, GET_FAMILY, FAMILY_NAME, b"netdev\0")?;
    let family = attribute(&family, FAMILY_ID)?;
    let ifindex = ifindex.to_ne_bytes();
    let device = ask(&socket, u16::from_ne_bytes(family), DEVICE_GET, DEVICE_IFINDEX, &ifindex)?;
    Ok(u64::from_ne_bytes(attribute(&device, DEVICE_XDP_FEATURES)?))
}

/// Sends a request with one attribute; returns the answer's attributes.
fn ask(socket: &Socket, family: u16, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let length = HEADERS + 4 + value.len().next_multiple_of(4);
    let mut request = Vec::with_capacity(length);
    request.extend((length as u32).to_ne_bytes());
    request.extend(family.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([command, 1, 0, 0]);
    request.extend((4 + value.len() as u16).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend(value);
    request.resize(length, 0);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let frame = NetlinkBuffer::new_checked(&answer).map_err(io::Error::other)?;
    if frame.message_type() == NLMSG_ERROR {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(answer.get(HEADERS..).unwrap_or_default().to_vec())
}

fn attribute<const N: usize>(attributes: &[u8], kind: u16) -> io::Result<[u8; N]> {
    NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == kind)
        .and_then(|attribute| attribute.value().try_into().ok())
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}
