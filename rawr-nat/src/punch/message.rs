//! What the two sides tell each other while they punch, by whatever path there is already.
//!
//! A message is the whole state of its sender, so one that was lost, repeated or overtaken does no
//! harm. All numbers are in network order:
//! version (1 byte), stage (1), round (2), number of this message (4), number of the last one that
//! came (4), microseconds since then (4), external port that was learnt for this round or zero (2),
//! then endpoints: family (4 or 6), address, port.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

const VERSION: u8 = 1;
/// Endpoints that a message holds at most.
const MAX_ENDPOINTS: usize = 8;

/// How far a side is in its round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Sockets are being opened.
    Preparing,
    /// All is ready.
    Prepared,
    /// Probes are about to be sent, or under way.
    Firing,
    /// All of the round's probes have been sent once.
    Fired,
    /// It has failed.
    GivenUp,
}

/// The state of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) stage: Stage,
    pub(crate) round: u16,
    /// Counts the messages of its sender, from one.
    pub(crate) number: u32,
    /// The number of the last message that came; zero for none.
    pub(crate) last: u32,
    /// How long ago that was.
    pub(crate) held: Duration,
    pub(crate) port: Option<u16>,
    pub(crate) endpoints: Vec<SocketAddr>,
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let held = u32::try_from(self.held.as_micros()).unwrap_or(u32::MAX);
        let mut bytes = vec![VERSION, self.stage.code()];
        bytes.extend(self.round.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.last.to_be_bytes());
        bytes.extend(held.to_be_bytes());
        bytes.extend(self.port.unwrap_or(0).to_be_bytes());
        for endpoint in self.endpoints.iter().take(MAX_ENDPOINTS) {
            match endpoint.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(endpoint.port().to_be_bytes());
        }
        bytes
    }

    /// Nothing if it is no message of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.u8()? != VERSION {
            return None;
        }
        let stage = Stage::from_code(reader.u8()?)?;
        let round = reader.u16()?;
        let (number, last, held) = (reader.u32()?, reader.u32()?, reader.u32()?);
        let port = reader.u16()?;
        let mut endpoints = Vec::new();
        while !reader.0.is_empty() && endpoints.len() < MAX_ENDPOINTS {
            endpoints.push(reader.endpoint()?);
        }
        let held = Duration::from_micros(held.into());
        let port = (port != 0).then_some(port);
        Some(Self { stage, round, number, last, held, port, endpoints })
    }
}

impl Stage {
    const fn code(self) -> u8 {
        match self {
            Self::Preparing => 0,
            Self::Prepared => 1,
            Self::Firing => 2,
            Self::Fired => 3,
            Self::GivenUp => 4,
        }
    }

    const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::Preparing,
            1 => Self::Prepared,
            2 => Self::Firing,
            3 => Self::Fired,
            4 => Self::GivenUp,
            _ => return None,
        })
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn endpoint(&mut self) -> Option<SocketAddr> {
        let ip = match self.u8()? {
            4 => IpAddr::from(self.take::<4>()?),
            6 => IpAddr::from(self.take::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip, self.u16()?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        Message {
            stage: Stage::Fired,
            round: 3,
            number: 70_000,
            last: 4,
            held: Duration::from_micros(123_456),
            port: Some(40_000),
            endpoints: vec![
                SocketAddr::from(([192, 0, 2, 1], 1)),
                SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 65_535)),
            ],
        }
    }

    #[test]
    fn a_message_survives_the_way() {
        assert_eq!(Message::decode(&message().encode()), Some(message()));
        let bare = Message { port: None, endpoints: Vec::new(), ..message() };
        assert_eq!(Message::decode(&bare.encode()), Some(bare));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(message) = Message::decode(&bytes) {
                prop_assert!(message.endpoints.len() <= MAX_ENDPOINTS);
            }
        }

        #[test]
        fn cut_messages_are_refused(cut in 1_usize..18) {
            let bytes = message().encode();
            prop_assert_eq!(Message::decode(&bytes[..cut]), None);
        }
    }
}
