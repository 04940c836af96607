//! Rendezvous information as bytes: a version, then items of type (1 byte), length (2) and value. All
//! numbers are in network order. Items of other types, and bytes after the known ones of an item, are
//! passed over: a later version may add them.
//!
//! | type | value                                                                              |
//! |------|------------------------------------------------------------------------------------|
//! | 1    | public key (32)                                                                    |
//! | 2    | endpoint: flags (1; bit 0: restricted), address, then what its NAT does, if known  |
//!
//! An address is 4 or 6 (1), IP address (4 or 16), port (2). What a NAT does: external address with the
//! last port; mapping, filtering, kind of ports, hairpinning (1 each); two numbers of the ports (2 each).

use std::net::{IpAddr, SocketAddr};

use super::address::MappedSocketAddr;
use super::info::{InfoError, PubRendezvousInfo};
use crate::identity::PublicKey;
use crate::nat::{Behaviour, Filtering, Mapping, Ports};

const VERSION: u8 = 1;
const KEY: u8 = 1;
const ENDPOINT: u8 = 2;
const RESTRICTED: u8 = 1;

pub(super) fn encode(info: &PubRendezvousInfo) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    push_item(&mut bytes, KEY, info.key.as_bytes());
    for endpoint in &info.endpoints {
        let mut item = vec![if endpoint.nat_restricted { RESTRICTED } else { 0 }];
        push_address(&mut item, endpoint.addr);
        if let Some(nat) = &endpoint.nat {
            push_behaviour(&mut item, nat);
        }
        push_item(&mut bytes, ENDPOINT, &item);
    }
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Result<PubRendezvousInfo, InfoError> {
    let mut reader = Reader(bytes);
    match reader.u8() {
        Some(VERSION) => {}
        Some(other) => return Err(InfoError::Version(other)),
        None => return Err(InfoError::Malformed),
    }
    let (mut key, mut endpoints) = (None, Vec::new());
    while !reader.0.is_empty() {
        let (kind, mut item) = reader.item().ok_or(InfoError::Malformed)?;
        match kind {
            KEY => key = Some(PublicKey::from_bytes(item.take().ok_or(InfoError::Malformed)?)),
            ENDPOINT => endpoints.push(item.endpoint().ok_or(InfoError::Malformed)?),
            _ => {}
        }
    }
    Ok(PubRendezvousInfo { endpoints, key: key.ok_or(InfoError::NoKey)? })
}

fn push_item(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).expect("items are a few dozen bytes long");
    bytes.push(kind);
    bytes.extend(length.to_be_bytes());
    bytes.extend(value);
}

fn push_address(bytes: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            bytes.push(4);
            bytes.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            bytes.push(6);
            bytes.extend(ip.octets());
        }
    }
    bytes.extend(address.port().to_be_bytes());
}

fn push_behaviour(bytes: &mut Vec<u8>, nat: &Behaviour) {
    push_address(bytes, SocketAddr::new(nat.external, nat.last_port));
    bytes.push(match nat.mapping {
        Mapping::None => 0,
        Mapping::EndpointIndependent => 1,
        Mapping::AddressDependent => 2,
        Mapping::AddressAndPortDependent => 3,
    });
    bytes.push(match nat.filtering {
        None => 0,
        Some(Filtering::EndpointIndependent) => 1,
        Some(Filtering::AddressDependent) => 2,
        Some(Filtering::AddressAndPortDependent) => 3,
    });
    let (kind, first, second) = match nat.ports {
        None => (0, 0, 0),
        Some(Ports::Preserved) => (1, 0, 0),
        Some(Ports::Sequential { step }) => (2, step.cast_unsigned(), 0),
        Some(Ports::Block { low, high }) => (3, low, high),
        Some(Ports::Random) => (4, 0, 0),
    };
    bytes.push(kind);
    bytes.push(match nat.hairpins {
        None => 0,
        Some(false) => 1,
        Some(true) => 2,
    });
    bytes.extend(first.to_be_bytes());
    bytes.extend(second.to_be_bytes());
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
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

    fn item(&mut self) -> Option<(u8, Self)> {
        let kind = self.u8()?;
        let length = self.u16()?;
        let (item, rest) = self.0.split_at_checked(length.into())?;
        self.0 = rest;
        Some((kind, Reader(item)))
    }

    fn address(&mut self) -> Option<SocketAddr> {
        let ip = match self.u8()? {
            4 => IpAddr::from(self.take::<4>()?),
            6 => IpAddr::from(self.take::<16>()?),
            _ => return None,
        };
        Some(SocketAddr::new(ip.to_canonical(), self.u16()?))
    }

    fn endpoint(&mut self) -> Option<MappedSocketAddr> {
        let nat_restricted = self.u8()? & RESTRICTED != 0;
        let addr = self.address()?;
        // What is not known here is as good as not told: sending to the endpoint is tried anyway.
        let nat = if self.0.is_empty() { None } else { self.behaviour() };
        Some(MappedSocketAddr { addr, nat_restricted, nat })
    }

    fn behaviour(&mut self) -> Option<Behaviour> {
        let external = self.address()?;
        let mapping = match self.u8()? {
            0 => Mapping::None,
            1 => Mapping::EndpointIndependent,
            2 => Mapping::AddressDependent,
            3 => Mapping::AddressAndPortDependent,
            _ => return None,
        };
        let filtering = match self.u8()? {
            1 => Some(Filtering::EndpointIndependent),
            2 => Some(Filtering::AddressDependent),
            3 => Some(Filtering::AddressAndPortDependent),
            _ => None,
        };
        let (kind, hairpins) = (self.u8()?, self.u8()?);
        let (first, second) = (self.u16()?, self.u16()?);
        let ports = match kind {
            1 => Some(Ports::Preserved),
            2 => Some(Ports::Sequential { step: first.cast_signed() }),
            3 if first <= second => Some(Ports::Block { low: first, high: second }),
            4 => Some(Ports::Random),
            _ => None,
        };
        let hairpins = match hairpins {
            1 => Some(false),
            2 => Some(true),
            _ => None,
        };
        let (external, last_port) = (external.ip(), external.port());
        Some(Behaviour { external, mapping, filtering, ports, last_port, hairpins })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn behaviours() -> impl Strategy<Value = Behaviour> {
        let mapping = prop::sample::select(vec![
            Mapping::None,
            Mapping::EndpointIndependent,
            Mapping::AddressDependent,
            Mapping::AddressAndPortDependent,
        ]);
        let filtering = prop::sample::select(vec![
            None,
            Some(Filtering::EndpointIndependent),
            Some(Filtering::AddressDependent),
            Some(Filtering::AddressAndPortDependent),
        ]);
        let ports = prop_oneof![
            Just(None),
            Just(Some(Ports::Preserved)),
            Just(Some(Ports::Random)),
            any::<i16>().prop_map(|step| Some(Ports::Sequential { step })),
            (any::<u16>(), any::<u16>())
                .prop_map(|(a, b)| Some(Ports::Block { low: a.min(b), high: a.max(b) })),
        ];
        let rest = (any::<[u8; 4]>(), any::<u16>(), any::<Option<bool>>());
        (mapping, filtering, ports, rest).prop_map(
            |(mapping, filtering, ports, (external, last_port, hairpins))| Behaviour {
                external: external.into(),
                mapping,
                filtering,
                ports,
                last_port,
                hairpins,
            },
        )
    }

    fn infos() -> impl Strategy<Value = PubRendezvousInfo> {
        let endpoint =
            (any::<[u8; 4]>(), any::<u16>(), any::<bool>(), prop::option::of(behaviours()))
                .prop_map(|(ip, port, nat_restricted, nat)| {
                    let addr = SocketAddr::from((ip, port));
                    MappedSocketAddr { addr, nat_restricted, nat }
                });
        (any::<[u8; 32]>(), prop::collection::vec(endpoint, 0..5)).prop_map(|(key, endpoints)| {
            PubRendezvousInfo { endpoints, key: PublicKey::from_bytes(key) }
        })
    }

    proptest! {
        #[test]
        fn it_survives_the_way(info in infos()) {
            prop_assert_eq!(decode(&encode(&info)), Ok(info));
        }

        #[test]
        fn what_a_later_version_adds_is_passed_over(info in infos(), item: Vec<u8>, kind in 3..=255_u8) {
            let mut bytes = encode(&info);
            push_item(&mut bytes, kind, &item);
            prop_assert_eq!(decode(&bytes), Ok(info));
        }

        #[test]
        fn what_is_cut_off_within_an_item_is_refused(info in infos(), at: prop::sample::Index) {
            let bytes = encode(&info);
            let cut = at.index(bytes.len());
            if let Ok(less) = decode(&bytes[..cut]) {
                prop_assert!(info.endpoints.starts_with(&less.endpoints));
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn ipv6_and_other_versions() {
        let addr = "[2001:db8::1]:9".parse().unwrap();
        let info = PubRendezvousInfo {
            endpoints: vec![MappedSocketAddr::open(addr)],
            key: PublicKey::from_bytes([3; 32]),
        };
        let mut bytes = encode(&info);
        assert_eq!(decode(&bytes), Ok(info));
        bytes[0] = 2;
        assert_eq!(decode(&bytes), Err(InfoError::Version(2)));
        assert_eq!(decode(&[]), Err(InfoError::Malformed));
        assert_eq!(decode(&[VERSION]), Err(InfoError::NoKey));
    }
}
