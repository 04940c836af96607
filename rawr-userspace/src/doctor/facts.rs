//! What the doctor looks at. `None` stands for what could not be read.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// As `uname -r` prints it.
    pub kernel_release: String,
    /// Effective capabilities of this process, one bit each.
    pub capabilities: Option<u64>,
    /// Whether a BPF file system is mounted on /sys/fs/bpf.
    pub bpffs: bool,
    /// net.core.bpf_jit_enable.
    pub jit: Option<u64>,
    /// Most file descriptors: now, and the limit that the process may raise it to.
    pub open_files: (u64, u64),
    /// fs.nr_open: what CAP_SYS_RESOURCE may raise the limit to.
    pub open_files_ever: Option<u64>,
    /// net.core.rmem_max, in bytes.
    pub receive_buffer: Option<u64>,
    /// Memory of the whole machine, in bytes.
    pub memory: Option<u64>,
    /// net.ipv4.ip_local_port_range.
    pub ephemeral_ports: Option<(u16, u16)>,
    /// net.ipv4.ip_local_reserved_ports, as ranges.
    pub reserved_ports: Vec<(u16, u16)>,
    /// Connections tracked by netfilter, and the most that may be.
    pub conntrack: Option<(u64, u64)>,
    /// IPv4 neighbours, and net.ipv4.neigh.default.gc_thresh3.
    pub neighbours: Option<(u64, u64)>,
    /// CPUs that this process may run on.
    pub cpus: usize,
    /// Own addresses that peers can send to.
    pub addresses: Vec<IpAddr>,
    /// nftables chains of the input hook that drop by default; `None` if not readable.
    pub dropping_chains: Option<Vec<String>>,
    pub interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Interface {
    pub name: String,
    /// Everything else means nothing if it does not exist.
    pub exists: bool,
    pub kind: Kind,
    pub up: bool,
    pub mtu: u32,
    /// As ethtool names it.
    pub driver: Option<String>,
    /// Receive queues in use.
    pub queues: Option<u32>,
    /// ethtool's features by name, and whether they are on.
    pub features: BTreeMap<String, bool>,
    /// The other end of a veth pair, if it lies in this network namespace.
    pub peer: Option<Peer>,
    /// VLAN interfaces on top.
    pub vlans: Vec<String>,
    pub attached: Option<Attached>,
    /// What the driver can do, as bits of the kernel's `netdev` family ([`xdp`]).
    pub xdp_features: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    #[default]
    Ethernet,
    Veth,
    Bridge,
    Vlan,
    Loopback,
    NotEthernet,
}

/// The other end of a veth pair.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    pub name: String,
    pub features: BTreeMap<String, bool>,
}

/// An XDP program on an interface.
#[derive(Clone, Debug, Serialize)]
pub struct Attached {
    pub id: u32,
    /// Readable with privilege only.
    pub name: Option<String>,
}

/// Bits of [`Facts::capabilities`] (`linux/capability.h`).
pub mod capability {
    pub const NET_ADMIN: u64 = 1 << 12;
    pub const NET_RAW: u64 = 1 << 13;
    pub const SYS_ADMIN: u64 = 1 << 21;
    pub const SYS_RESOURCE: u64 = 1 << 24;
    pub const PERFMON: u64 = 1 << 38;
    pub const BPF: u64 = 1 << 39;
}
