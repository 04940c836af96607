//! What two sides tell each other before they punch, and what they keep to themselves.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::address::{MappedSocketAddr, is_usable};
use super::error::PunchError;
use super::wire;
use crate::identity::{Identity, PublicKey};
use crate::nat::Behaviour;

/// Endpoints that are told, at most. Whoever tells more of them is not believed the rest.
pub(super) const MAX_ENDPOINTS: usize = 16;

/// Info exchanged by both parties before performing a rendezvous connection.
///
/// As text (`Display`, `FromStr`) it is one word of a few hundred letters, digits, `-` and `_`, fit for a
/// message or a URL; [`PubRendezvousInfo::to_bytes`] is shorter by a quarter. It is no secret: who reads
/// it on its way can neither take part nor listen. Who *changes* it can take the other side's place, so
/// the way it goes must tell who it is from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PubRendezvousInfo {
    pub(super) endpoints: Vec<MappedSocketAddr>,
    /// Identifies the side, for this rendezvous alone.
    pub(super) key: PublicKey,
}

/// The local half of a [`PubRendezvousInfo`]: a key of 256 bits that is used for one rendezvous.
#[derive(Debug)]
pub struct PrivRendezvousInfo {
    identity: Identity,
    pub(super) endpoints: Vec<MappedSocketAddr>,
}

/// Create a `(PrivRendezvousInfo, PubRendezvousInfo)` pair from a list of mapped socket addresses.
///
/// Of more than 16 addresses the first 16 are told.
///
/// # Panics
/// If the system has no randomness to give.
pub fn gen_rendezvous_info(
    mut endpoints: Vec<MappedSocketAddr>,
) -> (PrivRendezvousInfo, PubRendezvousInfo) {
    endpoints.truncate(MAX_ENDPOINTS);
    let identity = Identity::random();
    let key = identity.public();
    (
        PrivRendezvousInfo { identity, endpoints: endpoints.clone() },
        PubRendezvousInfo { endpoints, key },
    )
}

impl PubRendezvousInfo {
    /// Where the side may be reached.
    pub fn endpoints(&self) -> &[MappedSocketAddr] {
        &self.endpoints
    }

    /// For the way to the other side.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads what [`PubRendezvousInfo::to_bytes`] has written. What a later version has added is
    /// passed over; endpoints that nobody can send to are left out.
    ///
    /// # Errors
    /// If it is something else, or not all of it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InfoError> {
        let mut info = wire::decode(bytes)?;
        info.endpoints.retain(|endpoint| is_usable(endpoint.addr));
        info.endpoints.truncate(MAX_ENDPOINTS);
        Ok(info)
    }
}

impl fmt::Display for PubRendezvousInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64URL_NOPAD.encode(&self.to_bytes()))
    }
}

impl FromStr for PubRendezvousInfo {
    type Err = InfoError;

    fn from_str(text: &str) -> Result<Self, InfoError> {
        let bytes = BASE64URL_NOPAD.decode(text.trim().as_bytes());
        Self::from_bytes(&bytes.map_err(|error| InfoError::Character(error.position))?)
    }
}

/// Why something is no [`PubRendezvousInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InfoError {
    /// It is cut off, or something else.
    #[error("this is no rendezvous information, or not all of it")]
    Malformed,
    /// It is of a version that cannot be read.
    #[error(
        "this rendezvous information is of version {0}, and version 1 is known here; is the other side newer?"
    )]
    Version(u8),
    /// There is no key in it.
    #[error("this rendezvous information has no key")]
    NoKey,
    /// The character at this position, counted from 0, is none of those that the text has.
    #[error(
        "the character at position {0} of the rendezvous information is none of a-z, A-Z, 0-9, - and _, or the end is missing"
    )]
    Character(usize),
}

/// What both sides compute of the two halves.
pub(super) struct Agreement {
    /// Authenticates what they punch with.
    pub(super) key: Zeroizing<[u8; 32]>,
    /// True for one of them.
    pub(super) is_initiator: bool,
}

impl PrivRendezvousInfo {
    /// What we have in common with the other side, and nobody else has.
    pub(super) fn agree(&self, theirs: &PubRendezvousInfo) -> Result<Agreement, PunchError> {
        let ours = self.identity.public();
        if ours == theirs.key {
            return Err(PunchError::OwnInfo);
        }
        let shared = self.identity.agree(&theirs.key)?;
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(shared.as_ref()).expect("HMAC takes keys of any length");
        hmac.update(b"rawr rendezvous");
        hmac.update(ours.min(theirs.key).as_bytes());
        hmac.update(ours.max(theirs.key).as_bytes());
        let key = Zeroizing::new(hmac.finalize().into_bytes().into());
        Ok(Agreement { key, is_initiator: ours < theirs.key })
    }
}

/// What the NATs before these endpoints do, for one family.
pub(super) fn behaviour(endpoints: &[MappedSocketAddr], is_ipv6: bool) -> Option<Behaviour> {
    let mut of_family = endpoints.iter().filter(|endpoint| endpoint.addr.is_ipv6() == is_ipv6);
    of_family.find_map(|endpoint| endpoint.nat.filter(|nat| nat.external.is_ipv6() == is_ipv6))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> [(PrivRendezvousInfo, PubRendezvousInfo); 2] {
        let at = |text: &str| vec![MappedSocketAddr::open(text.parse().unwrap())];
        [gen_rendezvous_info(at("10.0.0.1:1")), gen_rendezvous_info(at("[fd00::1]:2"))]
    }

    #[test]
    fn both_sides_agree_on_a_key_and_on_who_begins() {
        let [(priv_a, pub_a), (priv_b, pub_b)] = pair();
        let (a, b) = (priv_a.agree(&pub_b).unwrap(), priv_b.agree(&pub_a).unwrap());
        assert_eq!(a.key, b.key);
        assert_ne!(a.is_initiator, b.is_initiator);
        let [(_, stranger), _] = pair();
        assert_ne!(priv_a.agree(&stranger).unwrap().key, a.key);
    }

    #[test]
    fn whoever_is_handed_its_own_half_or_a_weak_one_is_told() {
        let [(ours, own), _] = pair();
        assert!(matches!(ours.agree(&own), Err(PunchError::OwnInfo)));
        let weak = PubRendezvousInfo { key: PublicKey::from_bytes([0; 32]), ..own };
        assert!(matches!(ours.agree(&weak), Err(PunchError::WeakKey(_))));
    }

    #[test]
    fn it_survives_as_text() {
        let [(_, info), _] = pair();
        assert_eq!(format!(" {info}\n").parse(), Ok(info.clone()));
        assert_eq!("!".parse::<PubRendezvousInfo>(), Err(InfoError::Character(0)));
    }

    #[test]
    fn nobody_is_made_to_flood() {
        let many = (1..=100).map(|port| MappedSocketAddr::open(([192, 0, 2, 1], port).into()));
        let (_, info) = gen_rendezvous_info(many.collect());
        assert_eq!(info.endpoints().len(), MAX_ENDPOINTS);
        let group = MappedSocketAddr::open("224.0.0.1:5".parse().unwrap());
        let all = MappedSocketAddr::open("255.255.255.255:5".parse().unwrap());
        let (_, info) = gen_rendezvous_info(vec![group, all]);
        assert_eq!(PubRendezvousInfo::from_bytes(&info.to_bytes()).unwrap().endpoints(), []);
    }
}
