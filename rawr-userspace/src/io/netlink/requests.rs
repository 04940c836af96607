//! Questions to the kernel's routing tables, and requests to its neighbour tables.
//!
//! The kernel answers rtnetlink requests within the system call that sends them, so a question costs
//! some microseconds and needs no asynchrony.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, neighbour, route};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};

use super::decode;
use crate::topology::next_hop::RouteAnswer;
use crate::topology::watch::Pair;
use crate::topology::{NeighbourKey, Topology};

/// Longer than any dump message of the kernel.
const BUFFER: usize = 64 * 1024;

/// The discard service (RFC 863): nobody listens, and the address is resolved all the same.
const DISCARD_PORT: u16 = 9;

/// A socket for requests.
pub struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// Opens the socket, in the network namespace that the calling thread is in.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket2::SockRef::from(&socket).set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Reads links, addresses and neighbours.
    pub fn dump(&mut self) -> io::Result<Topology> {
        let mut topology = Topology::default();
        for question in [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        ] {
            self.exchange(question, NLM_F_DUMP, |message| {
                if let Some(event) = decode::event(message) {
                    topology.apply(event);
                }
            })?;
        }
        Ok(topology)
    }

    /// Reads the links as the kernel tells of them.
    pub(crate) fn links(&mut self) -> io::Result<Vec<LinkMessage>> {
        let mut links = Vec::new();
        let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.exchange(question, NLM_F_DUMP, |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                links.push(link);
            }
        })?;
        Ok(links)
    }

    /// Asks how UDP datagrams from `pair.local` to `pair.remote` leave; policy rules apply. `None`
    /// if they do not: no route, or not to another host. `oif` is needed for link-local addresses.
    pub fn route(&mut self, pair: Pair, oif: Option<u32>) -> io::Result<Option<RouteAnswer>> {
        let mut question = RouteMessage::default();
        let bits = if pair.remote.is_ipv4() { 32 } else { 128 };
        question.header.address_family = family(pair.remote);
        question.header.destination_prefix_length = bits;
        question.attributes.push(RouteAttribute::Destination(pair.remote.into()));
        question.attributes.push(RouteAttribute::IpProto(libc::IPPROTO_UDP as u8));
        if !pair.local.is_unspecified() {
            question.header.source_prefix_length = bits;
            question.attributes.push(RouteAttribute::Source(route::RouteAddress::from(pair.local)));
        }
        question.attributes.extend(oif.map(RouteAttribute::Oif));
        let mut answer = None;
        let asked = self.exchange(RouteNetlinkMessage::GetRoute(question), 0, |message| {
            if let RouteNetlinkMessage::NewRoute(message) = message {
                answer = decode::route_answer(&message);
            }
        });
        match asked {
            Ok(()) => Ok(answer),
            Err(error) if is_about_the_network(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the kernel resolve a neighbour, as if a packet were to be sent to it. Without the
    /// privilege to ask for that, such a packet is sent.
    pub fn provoke(&mut self, key: NeighbourKey) -> io::Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE;
        match self.set_neighbour(key, NeighbourState::None, NeighbourFlags::Use, flags) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => send_to_discard(key),
            result => result,
        }
    }

    /// Makes the kernel ask a neighbour at once whether it still has the MAC address that we know.
    /// If it does not answer, the entry fails after some seconds.
    pub fn verify(&mut self, key: NeighbourKey) -> io::Result<()> {
        match self.set_neighbour(key, NeighbourState::Probe, NeighbourFlags::empty(), NLM_F_ACK) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => send_to_discard(key),
            result => result,
        }
    }

    /// Removes a neighbour's entry.
    pub fn forget(&mut self, key: NeighbourKey) -> io::Result<()> {
        let message = neighbour_message(key, NeighbourState::None, NeighbourFlags::empty());
        self.exchange(RouteNetlinkMessage::DelNeighbour(message), NLM_F_ACK, |_| {})
    }

    fn set_neighbour(
        &mut self,
        key: NeighbourKey,
        state: NeighbourState,
        neighbour_flags: NeighbourFlags,
        flags: u16,
    ) -> io::Result<()> {
        let message = neighbour_message(key, state, neighbour_flags);
        self.exchange(RouteNetlinkMessage::NewNeighbour(message), flags, |_| {})
    }

    /// Sends a request and hands each message of the answer to `on_message`.
    fn exchange(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
        mut on_message: impl FnMut(RouteNetlinkMessage),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(question));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            if let Some(result) = self.read_answer(flags, &mut on_message) {
                return result;
            }
        }
    }

    /// Reads the datagram in the buffer. `Some` once the answer is complete.
    fn read_answer(
        &self,
        flags: u16,
        on_message: &mut impl FnMut(RouteNetlinkMessage),
    ) -> Option<io::Result<()>> {
        let mut rest = self.buffer.as_slice();
        while let Ok(frame) = NetlinkBuffer::new_checked(rest) {
            let length = frame.length() as usize;
            let (this, sequence) = (&rest[..length], frame.sequence_number());
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if sequence != self.sequence {
                continue;
            }
            let several = frame.flags() & NLM_F_MULTIPART != 0;
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(this).map(|it| it.payload) {
                Ok(NetlinkPayload::InnerMessage(message)) => on_message(message),
                Ok(NetlinkPayload::Done(_)) => return Some(Ok(())),
                Ok(NetlinkPayload::Error(error)) if error.code.is_none() => return Some(Ok(())),
                Ok(NetlinkPayload::Error(error)) => return Some(Err(error.to_io())),
                Ok(_) => {}
                Err(error) if several => log::debug!("rtnetlink: skipped a message: {error}"),
                Err(error) => return Some(Err(io::Error::other(error))),
            }
            if !several && flags & NLM_F_ACK == 0 {
                return Some(Ok(()));
            }
        }
        None
    }
}

fn neighbour_message(
    key: NeighbourKey,
    state: NeighbourState,
    flags: NeighbourFlags,
) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header = neighbour::NeighbourHeader {
        family: family(key.ip),
        ifindex: key.ifindex,
        state,
        flags,
        ..Default::default()
    };
    message.attributes.push(NeighbourAttribute::Destination(match key.ip {
        IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
        IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
    }));
    message
}

/// Whether an error tells of routes rather than of our asking.
fn is_about_the_network(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::ENETDOWN
                | libc::ENODEV
                | libc::EACCES
                | libc::EINVAL
        )
    )
}

fn send_to_discard(key: NeighbourKey) -> io::Result<()> {
    let (any, to) = match key.ip {
        IpAddr::V4(ip) => (Ipv4Addr::UNSPECIFIED.into(), SocketAddr::from((ip, DISCARD_PORT))),
        IpAddr::V6(ip) => {
            let to = SocketAddrV6::new(ip, DISCARD_PORT, 0, key.ifindex);
            (IpAddr::from(Ipv6Addr::UNSPECIFIED), to.into())
        }
    };
    UdpSocket::bind((any, 0))?.send_to(&[], to).map(|_| ())
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
