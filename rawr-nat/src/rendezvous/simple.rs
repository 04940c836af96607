//! The simple hole punching protocol: one datagram asks a server where it comes from, one answers.
//!
//! Request, 64 bytes: [`ASK`] (8 bytes), a nonce (16), zeros (40).
//! Answer, 60 bytes: [`TELL`] (8), the nonce (16), family (1; 4 or 6), zero (1), port (2), address (16;
//! of IPv4 the first four count), tag (16). Port and address are in network order, and mixed by
//! exclusive or with a pad. Pad and tag are HMAC-SHA-256, by the nonce as key: the pad of a label, the
//! tag of all that stands before it.
//!
//! * An answer is shorter than its request, so a server multiplies nobody's traffic. It keeps no state.
//! * No address is in clear, so NATs that rewrite payloads find none; what is changed on the way
//!   nevertheless does not pass the tag, and counts as no answer.
//! * Who has not seen the request does not know its nonce, and cannot answer in the server's place.
//!   Who sits on the way can, as with STUN without credentials (RFC 8489 §16.1.2): what two sides punch
//!   is authenticated by their own keys, so a false address costs the path, and nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// What a request begins with.
const ASK: [u8; 8] = *b"where?\x00\x01";
/// What an answer begins with. It is no request, so two servers do not keep each other busy.
const TELL: [u8; 8] = *b"there!\x00\x01";
/// Length of a request, in bytes.
pub(super) const ASK_LEN: usize = 64;
/// Length of an answer, in bytes.
const TELL_LEN: usize = BODY + TAG;
const BODY: usize = 8 + NONCE + 1 + 1 + 2 + 16;
const NONCE: usize = 16;
const TAG: usize = 16;

/// Ties an answer to its request; random.
pub(super) type Nonce = [u8; NONCE];

/// Asks.
pub(super) fn ask(nonce: &Nonce) -> [u8; ASK_LEN] {
    let mut bytes = [0; ASK_LEN];
    bytes[..8].copy_from_slice(&ASK);
    bytes[8..8 + NONCE].copy_from_slice(nonce);
    bytes
}

/// The answer to a datagram that came from there; `None` if that is no request.
pub(super) fn answer(request: &[u8], from: SocketAddr) -> Option<Vec<u8>> {
    let request: &[u8; ASK_LEN] = request.try_into().ok()?;
    let rest = request.strip_prefix(&ASK)?;
    let (nonce, _) = rest.split_first_chunk::<NONCE>()?;
    let mut address = [0; 16];
    let family = match from.ip().to_canonical() {
        IpAddr::V4(ip) => {
            address[..4].copy_from_slice(&ip.octets());
            4
        }
        IpAddr::V6(ip) => {
            address = ip.octets();
            6
        }
    };
    let mut port = from.port().to_be_bytes();
    mix(nonce, &mut port, &mut address);
    let mut bytes = Vec::with_capacity(TELL_LEN);
    bytes.extend(TELL);
    bytes.extend(nonce);
    bytes.extend([family, 0]);
    bytes.extend(port);
    bytes.extend(address);
    let tag = keyed(nonce).chain_update(&bytes).finalize().into_bytes();
    bytes.extend(tag.iter().take(TAG));
    Some(bytes)
}

/// What an answer says; `None` if it is none to the request with this nonce, or was changed on the way.
pub(super) fn read(bytes: &[u8], nonce: &Nonce) -> Option<SocketAddr> {
    let bytes: &[u8; TELL_LEN] = bytes.try_into().ok()?;
    let (body, tag) = bytes.split_at(BODY);
    let rest = body.strip_prefix(&TELL)?.strip_prefix(nonce)?;
    keyed(nonce).chain_update(body).verify_truncated_left(tag).ok()?;
    let [family, _, rest @ ..] = rest else { return None };
    let (port, address) = rest.split_first_chunk::<2>()?;
    let (mut port, mut address) = (*port, <[u8; 16]>::try_from(address).ok()?);
    mix(nonce, &mut port, &mut address);
    let [a, b, c, d, ..] = address;
    let ip: IpAddr = match family {
        4 => Ipv4Addr::new(a, b, c, d).into(),
        6 => Ipv6Addr::from(address).into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

/// Its own inverse.
fn mix(nonce: &Nonce, port: &mut [u8; 2], address: &mut [u8; 16]) {
    let pad = keyed(nonce).chain_update(b"pad").finalize().into_bytes();
    for (byte, pad) in port.iter_mut().chain(address).zip(pad) {
        *byte ^= pad;
    }
}

fn keyed(nonce: &Nonce) -> Hmac<Sha256> {
    Hmac::new_from_slice(nonce).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: Nonce = [7; 16];

    fn told(from: &str) -> (SocketAddr, Vec<u8>) {
        let from = from.parse().unwrap();
        (from, answer(&ask(&NONCE), from).unwrap())
    }

    #[test]
    fn an_answer_tells_where_the_request_came_from() {
        for from in ["192.0.2.7:40000", "[2001:db8::7]:1"] {
            let (from, bytes) = told(from);
            assert_eq!(read(&bytes, &NONCE), Some(from));
            assert!(bytes.len() < ASK_LEN, "it multiplies nobody's traffic");
        }
        let (_, mapped) = told("[::ffff:192.0.2.7]:9");
        assert_eq!(read(&mapped, &NONCE), Some("192.0.2.7:9".parse().unwrap()));
    }

    /// Computed by another program from what the module says.
    #[test]
    fn an_answer_is_what_others_expect() {
        let nonce = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let told = answer(&ask(&nonce), "192.0.2.7:40000".parse().unwrap()).unwrap();
        let expected = "7468657265210001000102030405060708090a0b0c0d0e0f04006080f0dccf9e\
                        760e2371d6bd407b213163e5e0571d696a6c913577eb17f1ebb078f9";
        assert_eq!(data_encoding::HEXLOWER.encode(&told), expected);
    }

    #[test]
    fn a_nat_that_rewrites_payloads_finds_nothing_and_does_no_harm() {
        let (_, bytes) = told("192.0.2.7:40000");
        assert!(!bytes.windows(4).any(|four| four == [192, 0, 2, 7]));
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&changed, &NONCE), None, "bit {bit}");
        }
        assert_eq!(read(&bytes, &[8; 16]), None, "the answer to another request");
    }

    #[test]
    fn only_requests_are_answered() {
        let (from, bytes) = told("192.0.2.7:40000");
        assert_eq!(answer(&bytes, from), None, "an answer is no request");
        assert_eq!(answer(&ask(&NONCE)[..ASK_LEN - 1], from), None, "shorter than its answer");
        assert_eq!(answer(&[0; ASK_LEN], from), None);
    }

    proptest! {
        #[test]
        fn anything_is_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(read(&bytes, &NONCE), None);
            prop_assert_eq!(answer(&bytes, "192.0.2.1:1".parse().unwrap()), None);
        }
    }
}
