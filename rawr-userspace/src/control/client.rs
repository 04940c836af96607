//! A client as its 5-tuple (RFC 8656 §2.2).

use std::net::SocketAddr;

/// Names a stream of a client or of a peer, or a client's DTLS association. Never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// The transport that a client speaks to the server over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Over {
    Udp,
    Dtls(ConnectionId),
    Tcp(ConnectionId),
    Tls(ConnectionId),
}

/// Where a client's messages come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    /// Address of ours.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub over: Over,
}

impl Client {
    /// A client over UDP.
    pub fn udp(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, over: Over::Udp }
    }

    /// The stream or association that it speaks over; `None` over UDP.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self.over {
            Over::Udp => None,
            Over::Dtls(connection) | Over::Tcp(connection) | Over::Tls(connection) => {
                Some(connection)
            }
        }
    }
}
