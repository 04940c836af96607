//! From rtnetlink messages to what the topology understands.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
    NeighbourState as Kernel,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::topology::next_hop::RouteAnswer;
use crate::topology::{
    Address, Event, Link, LinkKind, Mac, Neighbour, NeighbourKey, NeighbourState,
};

/// The event that a message of the kernel stands for; `None` if it is of no interest.
pub(super) fn event(message: RouteNetlinkMessage) -> Option<Event> {
    match message {
        RouteNetlinkMessage::NewLink(message) => link(&message).map(Event::Link),
        // A port that leaves its bridge is reported as a deleted link of the bridge family.
        RouteNetlinkMessage::DelLink(message) => (message.header.interface_family
            == AddressFamily::Unspec)
            .then_some(Event::LinkGone(message.header.index)),
        RouteNetlinkMessage::NewAddress(message) => {
            let address = address(&message)?;
            Some(match is_usable(&message) {
                true => Event::Address(address),
                false => Event::AddressGone(address),
            })
        }
        RouteNetlinkMessage::DelAddress(message) => address(&message).map(Event::AddressGone),
        RouteNetlinkMessage::NewNeighbour(message) => neighbour(&message).map(Event::Neighbour),
        RouteNetlinkMessage::DelNeighbour(message) => {
            neighbour_key(&message).map(Event::NeighbourGone)
        }
        RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message) => {
            Some(Event::Routes(destination(&message)))
        }
        RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => {
            Some(Event::Routes(None))
        }
        _ => None,
    }
}

/// What the kernel answered to RTM_GETROUTE; `None` if packets do not leave this host.
pub(super) fn route_answer(message: &RouteMessage) -> Option<RouteAnswer> {
    if message.header.kind != RouteType::Unicast {
        return None;
    }
    let mut answer = RouteAnswer { oif: 0, gateway: None, source: None, mtu: None };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(oif) => answer.oif = *oif,
            RouteAttribute::Gateway(gateway) => answer.gateway = ip(gateway),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => {
                answer.gateway = Some((*gateway).into())
            }
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => {
                answer.gateway = Some((*gateway).into());
            }
            RouteAttribute::PrefSource(source) => answer.source = ip(source),
            RouteAttribute::Metrics(metrics) => {
                answer.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (answer.oif != 0).then_some(answer)
}

/// The subnet that a route leads to.
fn destination(message: &RouteMessage) -> Option<IpNet> {
    let any = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    IpNet::new(address.unwrap_or(any), message.header.destination_prefix_length).ok()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    // Bridges report their ports once more under their own family, without most attributes; so do
    // wireless events.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        kind: LinkKind::Ethernet,
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        arp: !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
        master: None,
    };
    let (mut info, mut parent, mut elsewhere) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => link.mac = Mac::try_from(mac.as_slice()).ok(),
            LinkAttribute::Controller(master) => link.master = (*master != 0).then_some(*master),
            LinkAttribute::Link(ifindex) => parent = Some(*ifindex),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(found) => info = Some(found),
            _ => {}
        }
    }
    if link.mtu == 0 {
        return None;
    }
    link.kind = match message.header.link_layer_type {
        LinkLayerType::Ether => {
            let parent = parent.filter(|_| !elsewhere);
            info.map_or(LinkKind::Ethernet, |info| link_kind(info, parent))
        }
        LinkLayerType::Loopback => LinkKind::Loopback,
        _ => LinkKind::NotEthernet,
    };
    Some(link)
}

fn link_kind(info: &[LinkInfo], parent: Option<u32>) -> LinkKind {
    let kind = info.iter().find_map(|item| match item {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Veth) => LinkKind::Veth,
        Some(InfoKind::Bridge) => LinkKind::Bridge,
        Some(InfoKind::Vlan) => vlan(info, parent),
        _ => LinkKind::Ethernet,
    }
}

fn vlan(info: &[LinkInfo], parent: Option<u32>) -> LinkKind {
    let (mut tag, mut tpid) = (0, 0x8100);
    for item in info {
        let LinkInfo::Data(InfoData::Vlan(data)) = item else { continue };
        for item in data {
            match item {
                InfoVlan::Id(value) => tag = *value,
                InfoVlan::Protocol(value) => tpid = (*value).into(),
                _ => {}
            }
        }
    }
    LinkKind::Vlan { parent, id: tag, protocol: tpid }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On point-to-point links `Address` is the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let address = IpNet::new(local.or(address)?, message.header.prefix_len).ok()?;
    Some(Address { ifindex: message.header.index, address })
}

/// Whether duplicate address detection (RFC 4862 §5.4) has let the address through.
fn is_usable(message: &AddressMessage) -> bool {
    let header = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let flags = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(header);
    let tentative =
        flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    !tentative && !flags.contains(AddressFlags::Dadfailed)
}

fn neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let key = neighbour_key(message)?;
    let state = match message.header.state {
        Kernel::Reachable => NeighbourState::Reachable,
        Kernel::Stale | Kernel::Delay => NeighbourState::Stale,
        Kernel::Probe => NeighbourState::Probing,
        Kernel::Failed => NeighbourState::Failed,
        Kernel::Permanent | Kernel::Noarp => NeighbourState::Permanent,
        _ => NeighbourState::Resolving,
    };
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => Mac::try_from(mac.as_slice()).ok(),
        _ => None,
    });
    let valid = !matches!(state, NeighbourState::Resolving | NeighbourState::Failed);
    Some(Neighbour { key, mac: mac.filter(|_| valid), state })
}

/// `None` for bridges' forwarding tables and for addresses that are only proxied.
fn neighbour_key(message: &NeighbourMessage) -> Option<NeighbourKey> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some((*ip).into()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })?;
    match message.header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => {
            Some(NeighbourKey { ifindex: message.header.ifindex, ip })
        }
        _ => None,
    }
}
