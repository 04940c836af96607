//! A network of namespaces: hosts, switches and the wires between them.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread::available_parallelism;

use anyhow::{Context, Result, anyhow};

use crate::netns::{self, Netns};

/// The bridge inside a switch's namespace.
const BRIDGE: &str = "br0";
/// Set in the environment to keep the logs of a lab.
pub const KEEP: &str = "RAWR_KEEP_LOGS";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

/// A subnet that has both families, so that every network here can be used with either.
#[derive(Clone, Copy, Debug)]
pub struct Subnet {
    ipv4: [u8; 3],
    ipv6: [u16; 4],
}

impl Subnet {
    /// The /24 and the /64 that begin thus.
    pub const fn new(ipv4: [u8; 3], ipv6: [u16; 4]) -> Self {
        Self { ipv4, ipv6 }
    }

    /// Address of its host `number`.
    pub fn address(&self, family: Family, number: u8) -> IpAddr {
        let ([a, b, c], [s, t, u, v]) = (self.ipv4, self.ipv6);
        match family {
            Family::Ipv4 => Ipv4Addr::new(a, b, c, number).into(),
            Family::Ipv6 => Ipv6Addr::new(s, t, u, v, 0, 0, 0, number.into()).into(),
        }
    }

    pub fn socket(&self, family: Family, number: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(family, number), port)
    }

    /// The subnet itself, as `address/length`.
    pub fn cidr(&self, family: Family) -> String {
        let length = if family == Family::Ipv4 { 24 } else { 64 };
        format!("{}/{length}", self.address(family, 0))
    }

    fn assign(&self, interface: &str, number: u8) -> String {
        format!(
            "ip addr add {}/24 dev {interface}\nip addr add {}/64 dev {interface} nodad\n",
            self.address(Family::Ipv4, number),
            self.address(Family::Ipv6, number)
        )
    }
}

/// Where a wire ends: host, name of the interface, number in the subnet.
pub type End<'a> = (&'a str, &'a str, u8);

/// A network under construction and in use. Dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    label: String,
    directory: PathBuf,
    hosts: BTreeMap<String, Rc<Netns>>,
}

impl Lab {
    /// An empty lab. What earlier processes left behind when they were killed is removed first.
    pub fn new(label: &str) -> Result<Self> {
        netns::sweep();
        let name = format!("rawr-{}-{label}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("{} cannot be made", directory.display()))?;
        Ok(Self { label: label.to_owned(), directory, hosts: BTreeMap::new() })
    }

    /// Where its processes keep logs, sockets and state. Removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Adds hosts.
    pub fn hosts(&mut self, names: &[&str]) -> Result<()> {
        for name in names {
            let namespace = Netns::new(&format!("{}-{name}", self.label))?;
            self.hosts.insert((*name).to_owned(), Rc::new(namespace));
        }
        Ok(())
    }

    /// Adds a switch: an Ethernet segment to which any number of hosts can be plugged.
    pub fn switch(&mut self, name: &str) -> Result<()> {
        self.hosts(&[name])?;
        let switch = self.at(name)?;
        switch.set("net/ipv6/conf/default/disable_ipv6", "1")?;
        switch.sh(&format!(
            "ip link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\nip link set {BRIDGE} up"
        ))?;
        Ok(())
    }

    /// The namespace of a host.
    pub fn at(&self, name: &str) -> Result<Rc<Netns>> {
        self.hosts.get(name).cloned().ok_or_else(|| anyhow!("this lab has no host {name}"))
    }

    /// Names and namespaces of all hosts and switches.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Netns)> {
        self.hosts.iter().map(|(name, host)| (name.as_str(), &**host))
    }

    /// Joins two hosts by a wire that is a subnet of its own.
    pub fn wire(&self, subnet: &Subnet, left: End<'_>, right: End<'_>) -> Result<()> {
        self.veth(left.0, left.1, right.0, right.1)?;
        for (host, interface, number) in [left, right] {
            self.at(host)?.sh(&subnet.assign(interface, number))?;
        }
        Ok(())
    }

    /// Plugs a host to a switch.
    pub fn plug(&self, subnet: &Subnet, switch: &str, end: End<'_>) -> Result<()> {
        let (host, interface, number) = end;
        let port = format!("{host}-{interface}");
        self.veth(host, interface, switch, &port)?;
        self.at(switch)?.sh(&format!("ip link set {port} master {BRIDGE}"))?;
        self.at(host)?.sh(&subnet.assign(interface, number))?;
        Ok(())
    }

    /// Makes the host `gateway` of a subnet the next hop of everything else from `host`.
    pub fn default_route(&self, host: &str, subnet: &Subnet, gateway: u8) -> Result<()> {
        let [ipv4, ipv6] = [Family::Ipv4, Family::Ipv6].map(|each| subnet.address(each, gateway));
        self.at(host)?.sh(&format!(
            "ip -4 route add default via {ipv4}\nip -6 route add default via {ipv6}"
        ))?;
        Ok(())
    }

    /// Makes the host number `gateway` of `subnet` the next hop from `host` to another subnet.
    pub fn route(&self, host: &str, to: &Subnet, subnet: &Subnet, gateway: u8) -> Result<()> {
        for family in [Family::Ipv4, Family::Ipv6] {
            self.at(host)?.sh(&format!(
                "ip route replace {} via {}",
                to.cidr(family),
                subnet.address(family, gateway)
            ))?;
        }
        Ok(())
    }

    /// A pair of interfaces, up, on which sockets compute checksums themselves (an XDP program
    /// sees what they send) and frames that an XDP program sends arrive: the receiving end needs its
    /// NAPI, which GRO starts, and the sending one is told so only if that happens while it is up.
    fn veth(&self, left: &str, left_if: &str, right: &str, right_if: &str) -> Result<()> {
        let queues = available_parallelism()?;
        let queues = format!("numtxqueues {queues} numrxqueues {queues}");
        let right_name = self.at(right)?.name().to_owned();
        self.at(left)?.sh(&format!(
            "ip link add {left_if} {queues} type veth peer name {right_if} {queues} netns {right_name}"
        ))?;
        for (host, interface) in [(left, left_if), (right, right_if)] {
            self.at(host)?.sh(&format!(
                "ip link set {interface} up\nethtool -K {interface} tx off gro on >/dev/null"
            ))?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::env::var_os(KEEP).is_none() {
            // Left over files disturb nobody.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Family, Subnet};

    #[test]
    fn numbers_become_addresses() {
        let subnet = Subnet::new([10, 0, 1], [0xfd00, 1, 0, 0]);
        assert_eq!(subnet.address(Family::Ipv4, 2).to_string(), "10.0.1.2");
        assert_eq!(subnet.address(Family::Ipv6, 2).to_string(), "fd00:1::2");
        assert_eq!(subnet.cidr(Family::Ipv6), "fd00:1::/64");
    }
}
