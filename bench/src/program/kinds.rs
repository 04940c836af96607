//! What packets the program is measured with: each kind is one row of [`KINDS`].

use std::net::SocketAddr;

use rawr_proto::{
    Attributes, IntegrityKey, Message, Method, Role, ServerId, SessionSecret, TransactionId,
};

use super::flows::{CONTROL_PORT, Family, Flow, Leg, Way};

/// One kind of packets.
pub(super) struct Kind {
    /// As it stands in the results, in a table of its own for each way to visit flows.
    pub(super) name: &'static str,
    pub(super) route: Route,
}

/// How packets of a kind come to the program again and again.
pub(super) enum Route {
    /// The program leaves this frame as it is and passes it up.
    PassedUp(fn() -> Vec<u8>),
    /// The program answers this request; then the frame is restored.
    Answered(fn() -> Vec<u8>),
    /// Between two legs: what leaves by one arrives on the other.
    RoundTrip([Leg; 2]),
    /// From the first leg to the second; then the frame is restored.
    OneWay([Leg; 2]),
    /// Round all flows of the table in random order, by legs that take turns.
    EachAnother([Leg; 2]),
}

use Route::{Answered, EachAnother, OneWay, PassedUp, RoundTrip};

const V4: Leg = Leg { family: Family::V4, way: Way::Transmit, channel: false };
const V6: Leg = Leg { family: Family::V6, way: Way::Transmit, channel: false };
/// The same legs of clients, over channels.
const C4: Leg = V4.over_channel();
const C6: Leg = V6.over_channel();

pub(super) const KINDS: &[Kind] = &[
    Kind { name: "IPv4 pair", route: RoundTrip([V4, V4]) },
    Kind { name: "IPv6 pair", route: RoundTrip([V6, V6]) },
    Kind { name: "IPv4 to IPv6", route: OneWay([V4, V6]) },
    Kind { name: "IPv6 to IPv4", route: OneWay([V6, V4]) },
    Kind { name: "IPv4 to IPv6 and back, per packet", route: RoundTrip([V4, V6]) },
    Kind { name: "IPv4 pair, redirected", route: RoundTrip([V4.by(Way::Redirect); 2]) },
    Kind { name: "IPv4 pair, VLAN tag put on", route: OneWay([V4.by(Way::Tagged), V4]) },
    Kind { name: "IPv4 pair, VLAN tag taken off", route: OneWay([V4, V4.by(Way::Tagged)]) },
    Kind { name: "IPv4 pair, rate limited", route: RoundTrip([V4.by(Way::Limited); 2]) },
    Kind { name: "ChannelData to UDP and back, per packet", route: RoundTrip([C4, V4]) },
    Kind { name: "ChannelData to UDP", route: OneWay([C4, V4]) },
    Kind { name: "UDP to ChannelData", route: OneWay([V4, C4]) },
    Kind { name: "ChannelData to ChannelData", route: RoundTrip([C4, C4]) },
    Kind { name: "IPv6 ChannelData to UDP and back, per packet", route: RoundTrip([C6, V6]) },
    Kind { name: "IPv6 ChannelData to ChannelData", route: RoundTrip([C6, C6]) },
    Kind { name: "IPv4 ChannelData to IPv6 UDP and back, per packet", route: RoundTrip([C4, V6]) },
    Kind { name: "IPv6 ChannelData to IPv4 UDP and back, per packet", route: RoundTrip([C6, V4]) },
    Kind { name: "ChannelData, IPv4 to IPv6 and back, per packet", route: RoundTrip([C4, C6]) },
    Kind { name: "UDP without a flow, passed up", route: PassedUp(no_flow) },
    Kind { name: "UDP to the STUN port without a flow, passed up", route: PassedUp(stray) },
    Kind { name: "ChannelData of no channel, passed up", route: PassedUp(no_channel) },
    Kind { name: "TCP, passed up", route: PassedUp(tcp) },
    Kind { name: "STUN Binding request, passed up", route: PassedUp(binding) },
    Kind { name: "STUN Binding request, answered", route: Answered(bare_binding) },
    Kind { name: "STUN Binding request with FINGERPRINT, answered", route: Answered(binding) },
    Kind { name: "RAWR Connect request, passed up", route: PassedUp(connect) },
    Kind { name: "IPv4 pair", route: EachAnother([V4, V4]) },
    Kind { name: "IPv6 pair", route: EachAnother([V6, V6]) },
    Kind { name: "IPv4 to IPv6 and back, per packet", route: EachAnother([V4, V6]) },
    Kind { name: "ChannelData to UDP and back, per packet", route: EachAnother([C4, V4]) },
    Kind { name: "ChannelData to ChannelData", route: EachAnother([C4, C4]) },
    Kind { name: "IPv6 ChannelData to UDP and back, per packet", route: EachAnother([C6, V6]) },
];

/// To a port that has been handed out, but from nobody whom it was for.
fn no_flow() -> Vec<u8> {
    let mut packet = Flow::at(0, Family::V4).packet();
    packet.src.set_port(9);
    packet.frame()
}

/// To the port that clients send ChannelData to, but none.
fn stray() -> Vec<u8> {
    control(&[0x5a + 0x80; 160])
}

/// From a client that has bound no such channel.
fn no_channel() -> Vec<u8> {
    control(&[[0x4a, 0xbc, 0, 156].as_slice(), &[0x5a; 156]].concat())
}

/// The first segments of what a router forwards most. What is not UDP is of no interest to the program,
/// which looks at no checksum of it.
fn tcp() -> Vec<u8> {
    let packet = Flow::at(0, Family::V4).packet();
    let mut frame = packet.frame();
    frame[packet.ip_offset() + 9] = 6;
    frame
}

fn binding() -> Vec<u8> {
    control(&Message::request(Method::Binding, TRANSACTION, Attributes::default()).encode(None))
}

/// Nothing but a STUN header (RFC 8489 §5).
fn bare_binding() -> Vec<u8> {
    control(&[[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42].as_slice(), &TRANSACTION.0].concat())
}

fn connect() -> Vec<u8> {
    let secret: SessionSecret = "07".repeat(32).parse().expect("64 hexadecimal digits");
    let key = secret.key();
    let attributes = Attributes {
        nonce: Some("0123456789abcdef0123456789abcdef".to_owned()),
        session: Some(key.id()),
        role: Some(Role::A),
        epoch: Some(1),
        hops: vec![ServerId([1; 8])],
        hop_limit: Some(8),
        lifetime: Some(60),
        ..Attributes::default()
    };
    let request = Message::request(Method::Connect, TRANSACTION, attributes);
    control(&request.encode(Some(&IntegrityKey::session(&key))))
}

const TRANSACTION: TransactionId = TransactionId(*b"0123456789ab");

/// A message to the relay.
fn control(message: &[u8]) -> Vec<u8> {
    let mut packet = Flow::at(0, Family::V4).packet();
    packet.dst = SocketAddr::new(packet.dst.ip(), CONTROL_PORT);
    packet.payload = message.to_vec();
    packet.frame()
}
