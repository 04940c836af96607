//! Bridge, the rendezvous by name: its attributes, and the key that binds a request to an identity.
//!
//! Each caller has an X25519 key pair (RFC 7748), its *identity*; a server has one, too, whose public half
//! comes with the challenge. What both compute from the two keys the message's integrity, so that a
//! request shows that its sender holds the secret half, without a signature.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::attribute as number;
use crate::message::{Writer, array, first};
use crate::name::BridgeName;
use crate::session::hmac_with;
use hmac::Mac as _;

/// Longest SEALED, in bytes: an Introduce then fits the least IPv6 MTU, short credentials included.
pub const MAX_SEALED: usize = 960;

/// Shortest first request of Bridge's methods, in bytes of UDP payload, that any server answers with a
/// challenge: that holds SERVER-KEY, and a REALM of up to 128 bytes.
pub const MIN_FIRST_BRIDGE_REQUEST: usize = 256;

/// What the holder of an identity shares with a server; keys their messages in place of a session's key.
#[derive(Clone)]
pub struct BridgeKey([u8; 32]);

impl BridgeKey {
    /// `agreed` is what X25519 makes of one side's secret and the other side's public key.
    pub fn new(agreed: &[u8; 32], caller: &[u8; 32], server: &[u8; 32]) -> Self {
        let mut hmac = hmac_with(agreed);
        [b"rawr bridge key".as_slice(), caller, server].iter().for_each(|part| hmac.update(part));
        Self(hmac.finalize().into_bytes().into())
    }

    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for BridgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BridgeKey(..)")
    }
}

/// Names an introduction: 128 random bits that whoever introduces itself has chosen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IntroductionId(pub [u8; 16]);

impl fmt::Display for IntroductionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::hex::write(f, &self.0)
    }
}

impl fmt::Debug for IntroductionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IntroductionId({self})")
    }
}

/// What messages of Bridge say besides what others say, too. Every attribute is optional here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BridgeAttributes {
    /// NAME, of a holder.
    pub name: Option<BridgeName>,
    /// PUBLIC-KEY: in a request its sender's, in the answer to a Lookup the holder's.
    pub public_key: Option<[u8; 32]>,
    /// SERVER-KEY: the server's, in a challenge.
    pub server_key: Option<[u8; 32]>,
    /// INTRODUCTION.
    pub introduction: Option<IntroductionId>,
    /// SEALED: what holder and introducer have to say to each other; at most [`MAX_SEALED`] bytes.
    pub sealed: Option<Vec<u8>>,
    /// HOLDER-ADDRESS: where a holder is; its port is nobody's business.
    pub holder_address: Option<IpAddr>,
    /// PEER-ADDRESS: where the other one's datagrams come from.
    pub peer_address: Option<SocketAddr>,
}

impl BridgeAttributes {
    pub(crate) fn write(&self, out: &mut Writer) {
        out.put_some(number::NAME, self.name.as_ref().map(|name| name.as_str().as_bytes()));
        out.put_some(number::PUBLIC_KEY, self.public_key);
        out.put_some(number::SERVER_KEY, self.server_key);
        out.put_some(number::INTRODUCTION, self.introduction.map(|id| id.0));
        out.put_some(number::SEALED, self.sealed.as_ref());
        out.put_address(number::HOLDER_ADDRESS, self.holder_address.map(|ip| (ip, 0).into()));
        out.put_address(number::PEER_ADDRESS, self.peer_address);
    }

    /// Takes an attribute's first occurrence. The outer `None` says that it is none of these, the inner
    /// one that it is malformed.
    pub(crate) fn read(
        &mut self,
        number: u16,
        value: &[u8],
        address: impl FnOnce() -> Option<SocketAddr>,
    ) -> Option<Option<()>> {
        Some(match number {
            number::NAME => first(&mut self.name, || BridgeName::from_wire(value)),
            number::PUBLIC_KEY => first(&mut self.public_key, || array(value)),
            number::SERVER_KEY => first(&mut self.server_key, || array(value)),
            number::INTRODUCTION => {
                first(&mut self.introduction, || array(value).map(IntroductionId))
            }
            number::SEALED => {
                first(&mut self.sealed, || (value.len() <= MAX_SEALED).then(|| value.to_vec()))
            }
            number::HOLDER_ADDRESS => {
                let without_port = |address: &SocketAddr| address.port() == 0;
                let ip = || Some(address().filter(without_port)?.ip());
                first(&mut self.holder_address, ip)
            }
            number::PEER_ADDRESS => first(&mut self.peer_address, address),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_depends_on_all_three() {
        let key =
            |agreed, caller, server| BridgeKey::new(&[agreed; 32], &[caller; 32], &[server; 32]).0;
        let first = key(1, 2, 3);
        assert_eq!(first, key(1, 2, 3));
        for other in [key(0, 2, 3), key(1, 0, 3), key(1, 2, 0), key(1, 3, 2)] {
            assert_ne!(first, other);
        }
        assert_eq!(format!("{:?}", BridgeKey(first)), "BridgeKey(..)");
    }
}
