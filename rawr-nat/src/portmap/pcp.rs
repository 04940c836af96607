//! The Port Control Protocol (RFC 6887): MAP for a port, ANNOUNCE for nothing but the epoch.
//!
//! A request names the address that it comes from, and a gateway refuses one that comes from
//! another. With IPv6 a router is mostly asked at its link-local address, towards which hosts send from
//! their own: so the socket is bound to the address that is to be mapped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::Transport;
use super::exchange::{Refused, ask};
use super::gateway::source_towards;

const VERSION: u8 = 2;
const ANNOUNCE: u8 = 0;
const MAP: u8 = 1;
const RESPONSE: u8 = 0x80;
const HEADER_LEN: usize = 24;
const MAP_LEN: usize = 36;

/// What names a mapping to the gateway besides the client's address and port: whoever does not know it
/// changes nothing.
pub(super) type Nonce = [u8; 12];

/// A mapping to be made, renewed, or removed (with no lifetime).
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    pub(super) nonce: Nonce,
    /// The external address and port to have, if it may be; an unspecified address and port 0 stand for
    /// any.
    pub(super) suggested: SocketAddr,
    pub(super) seconds: u32,
}

/// What the gateway has made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) external: SocketAddr,
    pub(super) seconds: u32,
    pub(super) epoch: u32,
}

/// How long the gateway has had its state, in seconds.
pub(super) async fn announce(gateway: SocketAddr, patience: Duration) -> Result<u32, Refused> {
    let unreachable = || std::io::Error::from(std::io::ErrorKind::NetworkUnreachable);
    let client = source_towards(gateway).ok_or_else(unreachable)?;
    let read = |answer: &[u8]| read_header(answer, ANNOUNCE).map(|it| it.map(|(_, epoch)| epoch));
    ask(gateway, client, &header(ANNOUNCE, client, 0), patience, read).await
}

/// Has it done.
pub(super) async fn map(
    gateway: SocketAddr,
    map: &Map,
    patience: Duration,
) -> Result<Mapped, Refused> {
    ask(gateway, map.local.ip(), &map.encode(), patience, |answer| map.read(answer)).await
}

impl Map {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = header(MAP, self.local.ip(), self.seconds);
        bytes.extend_from_slice(&self.nonce);
        bytes.extend_from_slice(&[protocol(self.transport), 0, 0, 0]);
        bytes.extend_from_slice(&self.local.port().to_be_bytes());
        bytes.extend_from_slice(&self.suggested.port().to_be_bytes());
        bytes.extend_from_slice(&mapped(self.suggested.ip()).octets());
        bytes
    }

    fn read(&self, answer: &[u8]) -> Option<Result<Mapped, Refused>> {
        let (seconds, epoch) = match read_header(answer, MAP)? {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let body: &[u8; MAP_LEN] = answer.get(HEADER_LEN..)?.first_chunk()?;
        let half = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let is_ours = body[..12] == self.nonce
            && body[12] == protocol(self.transport)
            && half(16) == self.local.port();
        let ip: [u8; 16] = body[20..].try_into().ok()?;
        let external = SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), half(18));
        is_ours.then_some(Ok(Mapped { external, seconds, epoch }))
    }
}

fn header(opcode: u8, client: IpAddr, seconds: u32) -> Vec<u8> {
    let mut bytes = vec![VERSION, opcode, 0, 0];
    bytes.extend_from_slice(&seconds.to_be_bytes());
    bytes.extend_from_slice(&mapped(client).octets());
    bytes
}

/// Lifetime and epoch in seconds. `None` if it answers no question of this kind.
fn read_header(answer: &[u8], opcode: u8) -> Option<Result<(u32, u32), Refused>> {
    let [version, answered, ..] = *answer else { return None };
    if version != VERSION && answered & RESPONSE != 0 {
        // A router that speaks only NAT-PMP says so in its own words (RFC 6887 §9).
        return Some(Err(Refused::Version));
    }
    let header: &[u8; HEADER_LEN] = answer.first_chunk()?;
    if answered != opcode | RESPONSE {
        return None;
    }
    let word = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    Some(match header[3] {
        0 => Ok((word(4), word(8))),
        1 => Err(Refused::Version),
        code => Err(Refused::Code(meaning(code), code.into())),
    })
}

/// Addresses are IPv6 ones here (RFC 6887 §5).
fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// The address that stands for any (RFC 6887 §11.1): of IPv4 it is the one for which the gateway
/// translates.
pub(super) const fn any_like(local: IpAddr) -> IpAddr {
    match local {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

const fn protocol(transport: Transport) -> u8 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

/// The result codes of RFC 6887 §7.4.
const fn meaning(code: u8) -> &'static str {
    match code {
        2 => "not authorized",
        3 => "malformed request",
        4 => "unsupported opcode",
        5 => "unsupported option",
        6 => "malformed option",
        7 => "network failure",
        8 => "no resources",
        9 => "unsupported protocol",
        10 => "too many mappings of this host",
        11 => "cannot provide the external port",
        12 => "address mismatch: there is a NAT before the gateway",
        13 => "too many remote peers",
        _ => "unknown reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(local: &str, suggested: &str) -> Map {
        let (local, suggested) = (local.parse().unwrap(), suggested.parse().unwrap());
        Map { transport: Transport::Udp, local, nonce: [7; 12], suggested, seconds: 7_200 }
    }

    fn answer_to(map: &Map, external: SocketAddr) -> Vec<u8> {
        let mut answer = map.encode();
        answer[1] |= RESPONSE;
        answer[4..24].fill(0);
        (answer[7], answer[11]) = (60, 9);
        answer[42..44].copy_from_slice(&external.port().to_be_bytes());
        answer[44..].copy_from_slice(&mapped(external.ip()).octets());
        answer
    }

    #[test]
    fn asks_as_the_standard_says() {
        let request = example("192.0.2.9:5000", "0.0.0.0:5001").encode();
        assert_eq!(request.len(), 60);
        assert_eq!(request[..8], [2, 1, 0, 0, 0, 0, 0x1C, 0x20]);
        assert_eq!(request[18..24], [255, 255, 192, 0, 2, 9]);
        assert_eq!(request[24..36], [7; 12]);
        assert_eq!(request[36..44], [17, 0, 0, 0, 0x13, 0x88, 0x13, 0x89]);
        assert_eq!(request[44..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 0, 0, 0, 0]);
    }

    #[test]
    fn reads_what_was_made_of_it() {
        for (local, external) in
            [("192.0.2.9:5000", "203.0.113.1:6000"), ("[2001:db8::9]:5000", "[2001:db8::9]:5000")]
        {
            let map = example(local, external);
            let external = external.parse().unwrap();
            let answer = answer_to(&map, external);
            let mapped = map.read(&answer).unwrap().unwrap();
            assert_eq!(mapped, Mapped { external, seconds: 60, epoch: 9 });
            assert!(map.read(&answer[..59]).is_none(), "too short");
            assert!(map.read(&map.encode()).is_none(), "a question is no answer");
            for (at, what) in [(24, "nonce"), (36, "protocol"), (40, "port"), (1, "opcode")] {
                let mut other = answer.clone();
                other[at] ^= 2;
                assert!(map.read(&other).is_none(), "another {what}");
            }
            let mut refused = answer;
            refused[3] = 2;
            let error = map.read(&refused).unwrap().unwrap_err();
            assert_eq!(error.to_string(), "refused: not authorized (code 2)");
        }
    }

    #[test]
    fn knows_routers_that_speak_only_nat_pmp() {
        let answer = [0, 0x80, 0, 1, 0, 0, 0, 5];
        let map = example("192.0.2.9:5000", "0.0.0.0:5001");
        assert!(matches!(map.read(&answer), Some(Err(Refused::Version))));
        assert!(matches!(read_header(&answer, ANNOUNCE), Some(Err(Refused::Version))));
    }
}
