//! A registration as it outlives a restart.

use std::net::SocketAddr;

use rawr_proto::BridgeName;

/// What is kept of a registration where names are to survive a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRecord {
    pub name: BridgeName,
    /// The holder's X25519 key.
    pub public: [u8; 32],
    /// Whose credentials it has shown, if any.
    pub user: Option<String>,
    /// Address of ours that it registered at.
    pub local: SocketAddr,
    /// Where it registered from.
    pub remote: SocketAddr,
    /// Whether that was over UDP; a stream does not survive.
    pub over_udp: bool,
    /// Which run of the holder registered it.
    pub epoch: u64,
    /// Milliseconds since 1970.
    pub expires: u64,
}
