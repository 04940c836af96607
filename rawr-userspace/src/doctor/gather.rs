//! Reads the facts. Interfaces are asked for by netlink and ioctl, not in /sys, which may belong to
//! another network namespace.

use std::fs::read_to_string;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{FsType, statfs};

use super::facts::{Attached, Facts, Interface, Kind, Peer};
use super::{Options, ethtool};
use crate::dataplane::bpf::features;
use crate::io::netlink::requests::Requests;
use crate::topology::{Link, LinkKind, Topology};

const BPFFS: &str = "/sys/fs/bpf";
/// From `linux/magic.h`.
const BPF_FS_MAGIC: FsType = FsType(0xcafe_4a11);

pub(super) fn facts(options: &Options) -> Facts {
    let network = Network::read();
    let names = match options.interfaces.as_slice() {
        [] => network.carriers_of_frames(),
        names => names.to_vec(),
    };
    Facts {
        kernel_release: sysctl::<String>("kernel/osrelease").unwrap_or_default(),
        capabilities: capabilities(),
        bpffs: statfs(Path::new(BPFFS)).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC),
        jit: sysctl("net/core/bpf_jit_enable"),
        open_files: getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default(),
        open_files_ever: sysctl("fs/nr_open"),
        receive_buffer: sysctl("net/core/rmem_max"),
        memory: memory(),
        ephemeral_ports: ephemeral_ports(),
        reserved_ports: reserved_ports(),
        conntrack: sysctl("net/netfilter/nf_conntrack_count")
            .zip(sysctl("net/netfilter/nf_conntrack_max")),
        neighbours: network.neighbours().zip(sysctl("net/ipv4/neigh/default/gc_thresh3")),
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        addresses: network.addresses(options),
        dropping_chains: dropping_chains(),
        interfaces: names.iter().map(|name| network.interface(name)).collect(),
    }
}

pub(super) fn interface(name: &str) -> Interface {
    Network::read().interface(name)
}

/// What netlink tells of this namespace; empty if it does not.
#[derive(Default)]
struct Network {
    topology: Topology,
    messages: Vec<LinkMessage>,
}

impl Network {
    fn read() -> Self {
        let read = || {
            let mut requests = Requests::open()?;
            std::io::Result::Ok(Self { topology: requests.dump()?, messages: requests.links()? })
        };
        read().unwrap_or_else(|error| {
            log::warn!("cannot read the network's state by rtnetlink: {error}");
            Self::default()
        })
    }

    /// Names of the interfaces at the bottom that are up.
    fn carriers_of_frames(&self) -> Vec<String> {
        let bottom = |link: &&Link| match link.kind {
            LinkKind::Ethernet | LinkKind::Veth => link.up,
            LinkKind::Bridge
            | LinkKind::Vlan { .. }
            | LinkKind::Loopback
            | LinkKind::NotEthernet => false,
        };
        self.topology.links().filter(bottom).map(|link| link.name.clone()).collect()
    }

    fn neighbours(&self) -> Option<u64> {
        let ipv4 = self.topology.neighbours().filter(|entry| entry.key.ip.is_ipv4());
        (!self.messages.is_empty()).then(|| ipv4.count() as u64)
    }

    fn addresses(&self, options: &Options) -> Vec<IpAddr> {
        let wanted = |ip: &IpAddr| {
            let link_local = matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            let chosen = options.data_addresses.is_empty() || options.data_addresses.contains(ip);
            !ip.is_loopback() && !link_local && chosen
        };
        self.topology.addresses().map(|own| own.address.addr()).filter(wanted).collect()
    }

    fn interface(&self, name: &str) -> Interface {
        let Some(link) = self.topology.link_by_name(name) else {
            return Interface { name: name.to_owned(), ..Interface::default() };
        };
        let message = self.messages.iter().find(|it| it.header.index == link.ifindex);
        let attributes = message.map_or(&[][..], |message| &message.attributes);
        Interface {
            name: name.to_owned(),
            exists: true,
            kind: kind(&link.kind),
            up: link.up,
            mtu: link.mtu,
            driver: ethtool::driver(name).ok(),
            queues: ethtool::receive_queues(name).ok().or_else(|| {
                attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::NumRxQueues(queues) => Some(*queues),
                    _ => None,
                })
            }),
            features: ethtool::features(name).unwrap_or_default(),
            peer: self.peer(link, attributes),
            vlans: self.vlans_on(link.ifindex),
            attached: attached(attributes),
            xdp_features: features::of(link.ifindex).ok(),
        }
    }

    fn peer(&self, link: &Link, attributes: &[LinkAttribute]) -> Option<Peer> {
        let elsewhere = attributes.iter().any(|it| matches!(it, LinkAttribute::LinkNetNsId(_)));
        if link.kind != LinkKind::Veth || elsewhere {
            return None;
        }
        let ifindex = attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Link(ifindex) => Some(*ifindex),
            _ => None,
        })?;
        let name = self.topology.link(ifindex)?.name.clone();
        let features = ethtool::features(&name).unwrap_or_default();
        Some(Peer { name, features })
    }

    fn vlans_on(&self, ifindex: u32) -> Vec<String> {
        let on_top = |link: &&Link| matches!(link.kind, LinkKind::Vlan { parent, .. } if parent == Some(ifindex));
        self.topology.links().filter(on_top).map(|link| link.name.clone()).collect()
    }
}

fn kind(kind: &LinkKind) -> Kind {
    match kind {
        LinkKind::Ethernet => Kind::Ethernet,
        LinkKind::Veth => Kind::Veth,
        LinkKind::Bridge => Kind::Bridge,
        LinkKind::Vlan { .. } => Kind::Vlan,
        LinkKind::Loopback => Kind::Loopback,
        LinkKind::NotEthernet => Kind::NotEthernet,
    }
}

fn attached(attributes: &[LinkAttribute]) -> Option<Attached> {
    let id = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(xdp) => xdp.iter().find_map(|it| match it {
            LinkXdp::ProgId(id) if *id != 0 => Some(*id),
            _ => None,
        }),
        _ => None,
    })?;
    let program = aya::programs::loaded_programs().filter_map(Result::ok).find(|it| it.id() == id);
    let name = program.and_then(|program| program.name_as_str().map(str::to_owned));
    Some(Attached { id, name })
}

/// Reads a file below /proc/sys.
fn sysctl<T: FromStr>(name: &str) -> Option<T> {
    read_to_string(Path::new("/proc/sys").join(name)).ok()?.trim().parse().ok()
}

fn memory() -> Option<u64> {
    let info = read_to_string("/proc/meminfo").ok()?;
    let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

fn capabilities() -> Option<u64> {
    let status = read_to_string("/proc/thread-self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

fn ephemeral_ports() -> Option<(u16, u16)> {
    let range = sysctl::<String>("net/ipv4/ip_local_port_range")?;
    let (low, high) = range.split_once(char::is_whitespace)?;
    Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
}

fn reserved_ports() -> Vec<(u16, u16)> {
    let ranges = sysctl::<String>("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let range = |range: &str| {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
    };
    ranges.split(',').filter_map(range).collect()
}

/// Asks `nft`; `None` if it is not installed, or we may not.
fn dropping_chains() -> Option<Vec<String>> {
    let output = Command::new("nft").args(["--json", "list", "chains"]).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let chains: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let dropping = |item: &serde_json::Value| {
        let chain = item.get("chain")?;
        let text = |key: &str| chain.get(key).and_then(serde_json::Value::as_str);
        let drops = text("hook") == Some("input") && text("policy") == Some("drop");
        drops.then(|| Some(format!("{} {} {}", text("family")?, text("table")?, text("name")?)))?
    };
    Some(chains.get("nftables")?.as_array()?.iter().filter_map(dropping).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_that_is_not_there_is_nothing() {
        assert_eq!(sysctl::<u64>("net/no/such"), None);
        assert!(sysctl::<u64>("net/core/rmem_max").is_some());
        let (low, high) = ephemeral_ports().unwrap();
        assert!(low < high);
    }

    #[test]
    fn the_loopback_interface_is_known_for_what_it_is() {
        let lo = interface("lo");
        assert!(lo.exists && lo.kind == Kind::Loopback && lo.vlans.is_empty());
        assert!(!interface("no-such-device").exists);
    }
}
