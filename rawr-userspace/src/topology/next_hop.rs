//! From the kernel's answer about a route to a [`NextHop`]: which frame leaves by which interface.

use std::net::IpAddr;

use super::{LinkKind, NeighbourKey, NeighbourState, Topology};
use crate::dataplane::{NextHop, VlanTags};

/// The kernel's answer to "how would you send from this address of ours to that address?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// Interface that the packet leaves by.
    pub oif: u32,
    /// Router to hand it to; `None` if the destination is on the link. May be of the other address
    /// family (RFC 5549).
    pub gateway: Option<IpAddr>,
    /// Source address that the kernel prefers.
    pub source: Option<IpAddr>,
    /// MTU of the route or of the path, in bytes, where it differs from the link's.
    pub mtu: Option<u32>,
}

/// What came of resolving a [`RouteAnswer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    Resolved(NextHop),
    /// This neighbour's MAC address is not known: provoke its resolution.
    Unresolved(NeighbourKey),
    Unreachable(Unreachable),
}

/// Why the fast path cannot send there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    #[error("interface {0} does not exist (any more), or not in this network namespace")]
    NoLink(u32),
    #[error("interface {0} is down or has no carrier")]
    LinkDown(u32),
    #[error("interface {0} carries no Ethernet frames")]
    NotEthernet(u32),
    #[error("more than two VLAN tags on the way down from interface {0}")]
    TooManyTags(u32),
}

impl Resolution {
    pub fn next_hop(self) -> Option<NextHop> {
        match self {
            Self::Resolved(next_hop) => Some(next_hop),
            Self::Unresolved(_) | Self::Unreachable(_) => None,
        }
    }
}

impl RouteAnswer {
    /// The neighbour that packets to `remote` are handed to.
    pub fn neighbour(&self, remote: IpAddr) -> NeighbourKey {
        NeighbourKey { ifindex: self.oif, ip: self.gateway.unwrap_or(remote) }
    }
}

impl Topology {
    /// Resolves the kernel's answer about the route to `remote`.
    pub fn next_hop(&self, route: &RouteAnswer, remote: IpAddr) -> Resolution {
        let wire = match self.wire_below(route.oif) {
            Ok(wire) => wire,
            Err(why) => return Resolution::Unreachable(why),
        };
        let Some(src_mac) = self.link(route.oif).and_then(|link| link.mac) else {
            return Resolution::Unreachable(Unreachable::NotEthernet(route.oif));
        };
        let key = route.neighbour(remote);
        let usable = self.neighbour(key).filter(|entry| entry.state != NeighbourState::Failed);
        let Some(dst_mac) = usable.and_then(|entry| entry.mac) else {
            return Resolution::Unresolved(key);
        };
        let mtu = wire.mtu.min(route.mtu.unwrap_or(u32::MAX));
        Resolution::Resolved(NextHop {
            ifindex: wire.ifindex,
            src_mac,
            dst_mac,
            vlan: wire.vlan,
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            tx: wire.tx,
        })
    }

    /// How packets leave by the interface that has this address of ours, to a destination that is left
    /// open; `None` if it is no address of an interface that sends Ethernet frames.
    pub fn exit_of(&self, own: IpAddr) -> Option<NextHop> {
        let has = self.addresses().find(|it| it.address.addr() == own)?;
        let (wire, src_mac) = (self.wire_below(has.ifindex).ok()?, self.link(has.ifindex)?.mac?);
        Some(NextHop {
            ifindex: wire.ifindex,
            src_mac,
            dst_mac: [0; 6],
            vlan: wire.vlan,
            mtu: u16::try_from(wire.mtu).unwrap_or(u16::MAX),
            tx: wire.tx,
        })
    }

    /// Goes down from an interface through its VLANs to the one that sends frames.
    fn wire_below(&self, oif: u32) -> Result<Wire, Unreachable> {
        let mut wire = Wire { ifindex: oif, vlan: VlanTags::default(), mtu: u32::MAX, tx: true };
        loop {
            let link = self.link(wire.ifindex).ok_or(Unreachable::NoLink(wire.ifindex))?;
            if !link.up {
                return Err(Unreachable::LinkDown(link.ifindex));
            }
            wire.mtu = wire.mtu.min(link.mtu);
            match link.kind {
                LinkKind::Vlan { parent, id, protocol } => {
                    wire.vlan =
                        tagged(wire.vlan, (protocol, id)).ok_or(Unreachable::TooManyTags(oif))?;
                    wire.ifindex = parent.ok_or(Unreachable::NoLink(link.ifindex))?;
                }
                LinkKind::Ethernet | LinkKind::Bridge => return Ok(wire),
                LinkKind::Veth => return Ok(Wire { tx: false, ..wire }),
                LinkKind::Loopback | LinkKind::NotEthernet => {
                    return Err(Unreachable::NotEthernet(link.ifindex));
                }
            }
        }
    }
}

/// The interface that frames leave by, and what they carry there.
struct Wire {
    ifindex: u32,
    vlan: VlanTags,
    mtu: u32,
    tx: bool,
}

/// Puts one more tag around `inside`; `None` if there are two already.
fn tagged(inside: VlanTags, tag: (u16, u16)) -> Option<VlanTags> {
    match inside.0 {
        [first, None] => Some(VlanTags([Some(tag), first])),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::tests::{ethernet, neighbour};
    use crate::topology::{Address, Event, Link};

    const MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

    fn route(oif: u32) -> RouteAnswer {
        RouteAnswer { oif, gateway: None, source: None, mtu: None }
    }

    fn remote() -> IpAddr {
        "192.0.2.9".parse().unwrap()
    }

    fn vlan(ifindex: u32, parent: u32, id: u16, protocol: u16) -> Link {
        let kind = LinkKind::Vlan { parent: Some(parent), id, protocol };
        Link { kind, ..ethernet(ifindex, &format!("vlan{id}")) }
    }

    fn topology(links: impl IntoIterator<Item = Link>) -> Topology {
        let mut topology = Topology::default();
        for link in links {
            topology.apply(Event::Link(link));
        }
        topology
    }

    fn resolved(topology: &Topology, route: &RouteAnswer) -> NextHop {
        topology.next_hop(route, remote()).next_hop().unwrap()
    }

    #[test]
    fn an_own_address_tells_the_exit_of_its_interface() {
        let mut topology = topology([ethernet(2, "eth0"), vlan(3, 2, 7, 0x8100)]);
        let own: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(topology.exit_of(own), None);
        let address = "198.51.100.1/24".parse().unwrap();
        topology.apply(Event::Address(Address { ifindex: 3, address }));
        let exit = topology.exit_of(own).unwrap();
        assert_eq!((exit.ifindex, exit.mtu, exit.tx), (2, 1500, true));
        assert_eq!(exit.vlan, VlanTags([Some((0x8100, 7)), None]));
        assert_eq!(topology.exit_of(remote()), None, "another host of that subnet");
    }

    #[test]
    fn a_neighbour_on_the_link_is_its_own_next_hop() {
        let mut topology = topology([ethernet(2, "eth0")]);
        let key = NeighbourKey { ifindex: 2, ip: remote() };
        assert_eq!(topology.next_hop(&route(2), remote()), Resolution::Unresolved(key));
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.9", MAC)));
        assert_eq!(
            resolved(&topology, &route(2)),
            NextHop {
                ifindex: 2,
                src_mac: [2, 0, 0, 0, 0, 2],
                dst_mac: MAC,
                vlan: VlanTags::default(),
                mtu: 1500,
                tx: true,
            }
        );
    }

    #[test]
    fn a_gateway_of_the_other_family_is_a_next_hop_too() {
        let mut topology = topology([ethernet(2, "eth0")]);
        let via = RouteAnswer { gateway: Some("fe80::1".parse().unwrap()), ..route(2) };
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.9", [7; 6])));
        topology.apply(Event::Neighbour(neighbour(2, "fe80::1", MAC)));
        assert_eq!(resolved(&topology, &via).dst_mac, MAC);
    }

    #[test]
    fn qinq_sends_by_the_card_with_the_outer_tag_first() {
        let mut topology = topology([
            ethernet(2, "eth0"),
            Link { mtu: 1400, ..vlan(3, 2, 100, 0x88a8) },
            vlan(4, 3, 200, 0x8100),
        ]);
        topology.apply(Event::Neighbour(neighbour(4, "192.0.2.9", MAC)));
        let next_hop = resolved(&topology, &route(4));
        assert_eq!(next_hop.ifindex, 2);
        assert_eq!(next_hop.vlan, VlanTags([Some((0x88a8, 100)), Some((0x8100, 200))]));
        assert_eq!(next_hop.src_mac, [2, 0, 0, 0, 0, 4]);
        assert_eq!(next_hop.mtu, 1400);
    }

    #[test]
    fn a_single_tag_stands_first() {
        let mut topology = topology([ethernet(2, "eth0"), vlan(3, 2, 7, 0x8100)]);
        topology.apply(Event::Neighbour(neighbour(3, "192.0.2.9", MAC)));
        assert_eq!(resolved(&topology, &route(3)).vlan, VlanTags([Some((0x8100, 7)), None]));
    }

    #[test]
    fn three_tags_and_a_parent_elsewhere_are_refused() {
        let elsewhere = LinkKind::Vlan { parent: None, id: 5, protocol: 0x8100 };
        let topology = topology([
            ethernet(2, "eth0"),
            vlan(3, 2, 1, 0x8100),
            vlan(4, 3, 2, 0x8100),
            vlan(5, 4, 3, 0x8100),
            Link { kind: elsewhere, ..ethernet(6, "vlan5") },
        ]);
        let why = |oif| topology.next_hop(&route(oif), remote());
        assert_eq!(why(5), Resolution::Unreachable(Unreachable::TooManyTags(5)));
        assert_eq!(why(6), Resolution::Unreachable(Unreachable::NoLink(6)));
        assert_eq!(why(77), Resolution::Unreachable(Unreachable::NoLink(77)));
    }

    #[test]
    fn the_route_or_path_mtu_counts_where_it_is_smaller() {
        let mut topology = topology([ethernet(2, "eth0"), Link { mtu: 65536, ..ethernet(3, "x") }]);
        topology.apply(Event::Neighbour(neighbour(2, "192.0.2.9", MAC)));
        topology.apply(Event::Neighbour(neighbour(3, "192.0.2.9", MAC)));
        let with_mtu = |oif, mtu| resolved(&topology, &RouteAnswer { mtu, ..route(oif) }).mtu;
        assert_eq!(with_mtu(2, Some(1280)), 1280);
        assert_eq!(with_mtu(2, Some(9000)), 1500);
        assert_eq!(with_mtu(3, None), u16::MAX);
    }

    #[test]
    fn veth_must_not_use_tx_and_a_bridge_is_its_own_egress() {
        let mut topology = topology([
            Link { kind: LinkKind::Veth, ..ethernet(2, "veth0") },
            Link { kind: LinkKind::Bridge, ..ethernet(3, "br0") },
            vlan(4, 2, 9, 0x8100),
        ]);
        for ifindex in 2..=4 {
            topology.apply(Event::Neighbour(neighbour(ifindex, "192.0.2.9", MAC)));
        }
        assert!(!resolved(&topology, &route(2)).tx);
        assert!(!resolved(&topology, &route(4)).tx);
        let bridge = resolved(&topology, &route(3));
        assert!(bridge.tx && bridge.ifindex == 3);
    }

    #[test]
    fn a_link_that_is_down_anywhere_below_is_unreachable() {
        let mut topology = topology([ethernet(2, "eth0"), vlan(3, 2, 9, 0x8100)]);
        topology.apply(Event::Neighbour(neighbour(3, "192.0.2.9", MAC)));
        topology.apply(Event::Link(Link { up: false, ..ethernet(2, "eth0") }));
        assert_eq!(
            topology.next_hop(&route(3), remote()),
            Resolution::Unreachable(Unreachable::LinkDown(2))
        );
    }

    #[test]
    fn tunnels_and_loopback_are_not_for_frames() {
        let topology = topology([
            Link { kind: LinkKind::Loopback, ..ethernet(1, "lo") },
            Link { kind: LinkKind::NotEthernet, mac: None, ..ethernet(2, "wg0") },
        ]);
        for oif in [1, 2] {
            assert_eq!(
                topology.next_hop(&route(oif), remote()),
                Resolution::Unreachable(Unreachable::NotEthernet(oif))
            );
        }
    }
}
