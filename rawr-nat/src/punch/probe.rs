//! The datagrams that open a path and prove it.
//!
//! | bytes | what                                                                   |
//! |-------|------------------------------------------------------------------------|
//! | 1     | [`FIRST_BYTE`], which RFC 7983 leaves free                             |
//! | 1     | flags                                                                  |
//! | 1     | how often the initiator has picked a path                              |
//! | 8     | nonce of the sender's                                                  |
//! | 8     | the last nonce that came by this path, or zero                         |
//! | 16    | HMAC-SHA-256 of the rest, cut to 128 bits, by a key for each direction |
//!
//! There is no address in it: some NATs change those that they find in payloads.

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// What a probe begins with. Neither STUN (0 to 3), ZRTP (16 to 19), DTLS (20 to 63), ChannelData
/// (64 to 79), RTP (128 to 191) nor QUIC does (RFC 7983, RFC 9443).
pub(crate) const FIRST_BYTE: u8 = 12;

const BODY: usize = 19;
const TAG: usize = 16;
/// Length of a probe, in bytes of UDP payload.
pub(crate) const LENGTH: usize = BODY + TAG;

const WANTS: u8 = 1;
const PICKS: u8 = 2;
const AGREES: u8 = 4;

/// What a probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Different in each probe.
    pub(crate) nonce: u64,
    /// The nonce that is answered.
    pub(crate) echo: Option<u64>,
    /// The sender does not know yet that its datagrams arrive by this path: answer.
    pub(crate) wants: bool,
    /// The initiator has picked this path.
    pub(crate) picks: bool,
    /// The other side has seen it.
    pub(crate) agrees: bool,
    /// Which of the initiator's choices this is about.
    pub(crate) choice: u8,
}

/// Seals and opens probes.
#[derive(Clone, Debug)]
pub(crate) struct ProbeKeys {
    ours: Hmac<Sha256>,
    theirs: Hmac<Sha256>,
}

impl ProbeKeys {
    pub(crate) fn new(key: &[u8; 32], is_initiator: bool) -> Self {
        let (initiator, responder) =
            (derive(key, b"rawr punch, initiator"), derive(key, b"rawr punch, responder"));
        if is_initiator {
            Self { ours: initiator, theirs: responder }
        } else {
            Self { ours: responder, theirs: initiator }
        }
    }

    pub(crate) fn seal(&self, probe: &Probe) -> Vec<u8> {
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let mut bytes = Vec::with_capacity(LENGTH);
        bytes.push(FIRST_BYTE);
        bytes
            .push(flag(probe.wants, WANTS) | flag(probe.picks, PICKS) | flag(probe.agrees, AGREES));
        bytes.push(probe.choice);
        bytes.extend(probe.nonce.to_be_bytes());
        bytes.extend(probe.echo.unwrap_or(0).to_be_bytes());
        let tag = self.ours.clone().chain_update(&bytes).finalize().into_bytes();
        bytes.extend(tag.iter().take(TAG));
        bytes
    }

    /// Nothing if it is no probe, or not the other side's.
    pub(crate) fn open(&self, bytes: &[u8]) -> Option<Probe> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let (body, tag) = bytes.split_at(BODY);
        let [FIRST_BYTE, flags, choice, numbers @ ..] = body else { return None };
        self.theirs.clone().chain_update(body).verify_truncated_left(tag).ok()?;
        let (nonce, echo) = numbers.split_first_chunk::<8>()?;
        let echo = u64::from_be_bytes(echo.try_into().ok()?);
        Some(Probe {
            nonce: u64::from_be_bytes(*nonce),
            echo: (echo != 0).then_some(echo),
            wants: flags & WANTS != 0,
            picks: flags & PICKS != 0,
            agrees: flags & AGREES != 0,
            choice: *choice,
        })
    }
}

/// The HMAC of a direction.
pub(crate) fn derive(key: &[u8; 32], label: &[u8]) -> Hmac<Sha256> {
    let derived = keyed(key).chain_update(label).finalize().into_bytes();
    keyed(&derived.into())
}

fn keyed(key: &[u8; 32]) -> Hmac<Sha256> {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    // A key shorter than a block is filled with zeros (RFC 2104 §2).
    Hmac::new(&block.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROBE: Probe =
        Probe { nonce: 7, echo: Some(9), wants: true, picks: false, agrees: true, choice: 3 };

    #[test]
    fn the_other_side_opens_what_one_sealed() {
        let (initiator, responder) =
            (ProbeKeys::new(&[1; 32], true), ProbeKeys::new(&[1; 32], false));
        assert_eq!(responder.open(&initiator.seal(&PROBE)), Some(PROBE));
        assert_eq!(initiator.open(&responder.seal(&PROBE)), Some(PROBE));
    }

    #[test]
    fn what_comes_back_to_its_sender_is_refused() {
        let initiator = ProbeKeys::new(&[1; 32], true);
        assert_eq!(initiator.open(&initiator.seal(&PROBE)), None);
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let (initiator, responder) =
            (ProbeKeys::new(&[1; 32], true), ProbeKeys::new(&[1; 32], false));
        let sealed = initiator.seal(&PROBE);
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(responder.open(&changed), None, "bit {bit}");
        }
        assert_eq!(responder.open(&sealed[..LENGTH - 1]), None);
        assert_eq!(ProbeKeys::new(&[2; 32], false).open(&sealed), None);
    }
}
