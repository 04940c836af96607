//! The NAT Port Mapping Protocol (RFC 6886), which PCP has replaced, and many routers have.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::Transport;
use super::exchange::{Refused, ask};

const VERSION: u8 = 0;
const RESPONSE: u8 = 0x80;
const EXTERNAL: u8 = 0;

/// The gateway's address on the other side, and how long it has had its state, in seconds. It is asked
/// from `source`.
pub(super) async fn external(
    gateway: SocketAddr,
    source: IpAddr,
    patience: Duration,
) -> Result<(Ipv4Addr, u32), Refused> {
    ask(gateway, source, &[VERSION, EXTERNAL], patience, read_external).await
}

/// A mapping to be made, renewed, or removed (with no lifetime).
#[derive(Clone, Copy, Debug)]
pub(super) struct Map {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    /// The external port to have, if it may be; 0 to remove a mapping.
    pub(super) suggested: u16,
    pub(super) seconds: u32,
}

/// What the gateway has made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    pub(super) port: u16,
    pub(super) seconds: u32,
    pub(super) epoch: u32,
}

/// Has it done. The gateway maps to the address that it is asked from.
pub(super) async fn map(
    gateway: SocketAddr,
    map: &Map,
    patience: Duration,
) -> Result<Mapped, Refused> {
    ask(gateway, map.local.ip(), &map.encode(), patience, |answer| map.read(answer)).await
}

impl Map {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, opcode(self.transport), 0, 0];
        bytes.extend_from_slice(&self.local.port().to_be_bytes());
        bytes.extend_from_slice(&self.suggested.to_be_bytes());
        bytes.extend_from_slice(&self.seconds.to_be_bytes());
        bytes
    }

    fn read(&self, answer: &[u8]) -> Option<Result<Mapped, Refused>> {
        let epoch = match read_header(answer, opcode(self.transport))? {
            Ok(epoch) => epoch,
            Err(error) => return Some(Err(error)),
        };
        let body: &[u8; 8] = answer.get(8..)?.first_chunk()?;
        let half = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let seconds = u32::from_be_bytes([body[4], body[5], body[6], body[7]]);
        (half(0) == self.local.port()).then_some(Ok(Mapped { port: half(2), seconds, epoch }))
    }
}

fn read_external(answer: &[u8]) -> Option<Result<(Ipv4Addr, u32), Refused>> {
    Some(match read_header(answer, EXTERNAL)? {
        Ok(epoch) => Ok((Ipv4Addr::from(*answer.get(8..)?.first_chunk::<4>()?), epoch)),
        Err(error) => Err(error),
    })
}

/// The epoch in seconds. `None` if it answers no question of this kind.
fn read_header(answer: &[u8], opcode: u8) -> Option<Result<u32, Refused>> {
    let [version, answered, ..] = *answer else { return None };
    if version != VERSION && answered & RESPONSE != 0 {
        // A router that speaks only PCP says so in its own words (RFC 6887 §9).
        return Some(Err(Refused::Version));
    }
    let [_, _, a, b, epoch @ ..] = *answer.first_chunk::<8>()?;
    if answered != opcode | RESPONSE {
        return None;
    }
    Some(match u16::from_be_bytes([a, b]) {
        0 => Ok(u32::from_be_bytes(epoch)),
        1 => Err(Refused::Version),
        code => Err(Refused::Code(meaning(code), code)),
    })
}

const fn opcode(transport: Transport) -> u8 {
    match transport {
        Transport::Udp => 1,
        Transport::Tcp => 2,
    }
}

/// The result codes of RFC 6886 §3.5.
const fn meaning(code: u16) -> &'static str {
    match code {
        2 => "not authorized",
        3 => "network failure",
        4 => "no resources",
        5 => "unsupported opcode",
        _ => "unknown reason",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: Map = Map {
        transport: Transport::Tcp,
        local: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9)), 5_000),
        suggested: 5_001,
        seconds: 7_200,
    };

    #[test]
    fn asks_as_the_standard_says() {
        let request = [0, 2, 0, 0, 0x13, 0x88, 0x13, 0x89, 0, 0, 0x1C, 0x20];
        assert_eq!(MAP.encode(), request);
    }

    #[test]
    fn reads_answers() {
        let external = [0, 0x80, 0, 0, 0, 0, 1, 2, 192, 0, 2, 1];
        let read = read_external(&external).unwrap().unwrap();
        assert_eq!(read, (Ipv4Addr::new(192, 0, 2, 1), 258));
        assert!(read_external(&external[..11]).is_none());
        let answer = [0, 0x82, 0, 0, 0, 0, 1, 2, 0x13, 0x88, 0x17, 0x70, 0, 0, 0, 60];
        let mapped = MAP.read(&answer).unwrap().unwrap();
        assert_eq!(mapped, Mapped { port: 6_000, seconds: 60, epoch: 258 });
        assert!(MAP.read(&answer[..15]).is_none(), "too short");
        assert!(MAP.read(&external).is_none(), "the answer to another question");
        assert!(MAP.read(&MAP.encode()).is_none(), "a question is no answer");
        let mut other = answer;
        other[9] = 0x89;
        assert!(MAP.read(&other).is_none(), "another port");
        let mut refused = answer;
        refused[3] = 3;
        let error = MAP.read(&refused).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "refused: network failure (code 3)");
    }

    #[test]
    fn knows_routers_that_speak_only_pcp() {
        let answer = [2, 0x80, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5];
        assert!(matches!(read_external(&answer), Some(Err(Refused::Version))));
        assert!(matches!(MAP.read(&answer), Some(Err(Refused::Version))));
    }
}
