//! What agents tell each other once and for all: credentials, candidates, what their NATs do. Carried by
//! [`super::mailbox`].

use super::wire::{Reader, put_ip, put_text};
use crate::nat::{Behaviour, Filtering, Mapping, Ports};

/// One signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    /// What the sender's connectivity checks are made with (RFC 8445 §5.3). The first signal of a run.
    Credentials {
        /// The user name's fragment.
        fragment: String,
        /// The password.
        password: String,
    },
    /// One of the sender's candidates, as in SDP (RFC 8839 §5.1).
    Candidate(String),
    /// What the sender's NATs do to UDP over IPv4.
    Behaviour(Behaviour),
    /// From the controlling agent: check all candidates again.
    Recheck,
    /// From the controlling agent: punch, for the time that this counts.
    Punch(u32),
}

impl Signal {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Credentials { fragment, password } => {
                out.push(1);
                put_text(&mut out, fragment);
                put_text(&mut out, password);
            }
            Self::Candidate(sdp) => {
                out.push(2);
                put_text(&mut out, sdp);
            }
            Self::Behaviour(behaviour) => {
                out.push(3);
                put_behaviour(&mut out, behaviour);
            }
            Self::Recheck => out.push(4),
            Self::Punch(attempt) => {
                out.push(5);
                out.extend(attempt.to_be_bytes());
            }
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let signal = match reader.u8()? {
            1 => Self::Credentials { fragment: reader.text()?, password: reader.text()? },
            2 => Self::Candidate(reader.text()?),
            3 => Self::Behaviour(behaviour(&mut reader)?),
            4 => Self::Recheck,
            5 => Self::Punch(reader.u32()?),
            _ => return None,
        };
        reader.end(signal)
    }
}

fn put_behaviour(out: &mut Vec<u8>, behaviour: &Behaviour) {
    let Behaviour { external, mapping, filtering, ports, last_port, hairpins } = behaviour;
    put_ip(out, *external);
    out.push(match mapping {
        Mapping::None => 0,
        Mapping::EndpointIndependent => 1,
        Mapping::AddressDependent => 2,
        Mapping::AddressAndPortDependent => 3,
    });
    out.push(match filtering {
        None => 0,
        Some(Filtering::EndpointIndependent) => 1,
        Some(Filtering::AddressDependent) => 2,
        Some(Filtering::AddressAndPortDependent) => 3,
    });
    let (kind, first, second) = match ports {
        None => (0, 0, 0),
        Some(Ports::Preserved) => (1, 0, 0),
        Some(Ports::Sequential { step }) => (2, step.cast_unsigned(), 0),
        Some(Ports::Block { low, high }) => (3, *low, *high),
        Some(Ports::Random) => (4, 0, 0),
    };
    out.push(kind);
    [first, second, *last_port].iter().for_each(|number| out.extend(number.to_be_bytes()));
    out.push(hairpins.map_or(0, |hairpins| 1 + u8::from(hairpins)));
}

fn behaviour(reader: &mut Reader<'_>) -> Option<Behaviour> {
    let external = reader.ip()?;
    let mapping = match reader.u8()? {
        0 => Mapping::None,
        1 => Mapping::EndpointIndependent,
        2 => Mapping::AddressDependent,
        3 => Mapping::AddressAndPortDependent,
        _ => return None,
    };
    let filtering = match reader.u8()? {
        0 => None,
        1 => Some(Filtering::EndpointIndependent),
        2 => Some(Filtering::AddressDependent),
        3 => Some(Filtering::AddressAndPortDependent),
        _ => return None,
    };
    let (kind, first, second) = (reader.u8()?, reader.u16()?, reader.u16()?);
    let ports = match kind {
        0 => None,
        1 => Some(Ports::Preserved),
        2 => Some(Ports::Sequential { step: first.cast_signed() }),
        3 => Some(Ports::Block { low: first, high: second }),
        4 => Some(Ports::Random),
        _ => return None,
    };
    let last_port = reader.u16()?;
    let hairpins = match reader.u8()? {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return None,
    };
    Some(Behaviour { external, mapping, filtering, ports, last_port, hairpins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_is_decoded() {
        let ports = [
            None,
            Some(Ports::Preserved),
            Some(Ports::Sequential { step: -2 }),
            Some(Ports::Block { low: 20_000, high: 20_511 }),
            Some(Ports::Random),
        ];
        let behaviours = ports.map(|ports| {
            Signal::Behaviour(Behaviour {
                external: "192.0.2.1".parse().unwrap(),
                mapping: Mapping::AddressAndPortDependent,
                filtering: Some(Filtering::AddressDependent),
                ports,
                last_port: 41_007,
                hairpins: Some(false),
            })
        });
        let others = [
            Signal::Credentials { fragment: "frag".to_owned(), password: "word".repeat(6) },
            Signal::Candidate("candidate:1 1 udp 1 2001:db8::1 5 typ host".to_owned()),
            Signal::Recheck,
            Signal::Punch(3),
        ];
        for signal in behaviours.into_iter().chain(others) {
            let bytes = signal.encode();
            assert_eq!(Signal::decode(&bytes), Some(signal));
        }
        assert_eq!(Signal::decode(&[]), None);
        assert_eq!(Signal::decode(&[4, 0]), None);
        assert_eq!(Signal::decode(&[3, 4, 192, 0, 2, 1, 9]), None);
    }
}
