//! The kernel's table of connections, of the network namespace that the thread is in.

use std::io::{self, Read as _, Write as _};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

/// How long the kernel may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Offset of the error number in an acknowledgement: behind the header of a netlink message.
const ERROR_AT: usize = 16;

/// Empties it: each connection that goes on is a new one, and is translated anew.
pub fn flush() -> io::Result<()> {
    let netlink = Domain::from(libc::AF_NETLINK);
    let mut socket =
        Socket::new(netlink, Type::RAW, Some(Protocol::from(libc::NETLINK_NETFILTER)))?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.write_all(&request())?;
    let mut answer = [0; 256];
    let length = socket.read(&mut answer)?;
    let error = answer[..length].get(ERROR_AT..).and_then(|rest| rest.first_chunk::<4>());
    match error.map(|bytes| i32::from_ne_bytes(*bytes)) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// `IPCTNL_MSG_CT_DELETE` that names no connection, so all of them (linux/netfilter/nfnetlink_conntrack.h).
fn request() -> Vec<u8> {
    const DELETE: u16 = 2;
    const SUBSYSTEM: u16 = 1;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::new();
    message.extend(20_u32.to_ne_bytes());
    message.extend(((SUBSYSTEM << 8) | DELETE).to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Number of the message, and of the port: the kernel gives one.
    message.extend([0; 8]);
    // All families, version 0, no resource.
    message.extend([0; 4]);
    message
}
