//! What an introduction says, sealed to whom it is for: Noise X (one message, the receiver's key known
//! before, the sender's in it).
//!
//! The server that passes it on learns neither what it says nor who says it to whom, other than by the
//! keys that both show the server anyway. The receiver learns that whoever sealed it holds the key that it
//! names. Whoever gets the receiver's key later can open what was sealed before: there is no forward
//! secrecy in one message. So nothing but how to meet belongs in it.

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use rawr_proto::{IntroductionId, MAX_SEALED, SessionSecret};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, DefaultResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, Error};

use crate::identity::{Identity, PublicKey, WeakKey};

const PATTERN: &str = "Noise_X_25519_ChaChaPoly_SHA256";

/// Ephemeral key, static key and its tag, tag of the message.
const OVERHEAD: usize = 32 + 32 + 16 + 16;

/// Longest message of an introduction, in bytes.
pub const MAX_MESSAGE: usize = MAX_SEALED - OVERHEAD;

/// Which way something sealed goes. What was sealed for one cannot be sent the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    ToHolder,
    FromHolder,
}

/// The secret of the session between a name's holder and whoever introduced itself to it, the same on
/// both sides, and another one for each introduction. The holder has role A in it.
///
/// # Errors
/// If `theirs` is no key that anybody holds.
pub fn session_secret(
    ours: &Identity,
    theirs: &PublicKey,
    introduction: IntroductionId,
) -> Result<SessionSecret, WeakKey> {
    ours.session_secret(theirs, &introduction.0)
}

/// Why a message cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is too long.
    #[error(
        "an introduction has at most {MAX_MESSAGE} bytes, not {0}: say the rest once connected"
    )]
    Long(usize),
    /// The receiver's key is none.
    #[error(transparent)]
    Weak(#[from] WeakKey),
}

pub(super) fn seal(
    ours: &Identity,
    theirs: &PublicKey,
    introduction: IntroductionId,
    direction: Direction,
    message: &[u8],
    seed: [u8; 32],
) -> Result<Vec<u8>, SealError> {
    if message.len() > MAX_MESSAGE {
        return Err(SealError::Long(message.len()));
    }
    ours.agree(theirs)?;
    let prologue = prologue(introduction, direction);
    let secret = ours.to_bytes();
    let mut state = builder(&prologue, seed)
        .local_private_key(secret.as_ref())
        .and_then(|it| it.remote_public_key(theirs.as_bytes()))
        .and_then(Builder::build_initiator)
        .expect("everything that X needs is there");
    let mut sealed = vec![0; message.len() + OVERHEAD];
    let length = state.write_message(message, &mut sealed);
    let length = length.expect("the message fits, and both keys are good");
    sealed.truncate(length);
    Ok(sealed)
}

/// Who sealed it, and the message; `None` if it is not for `ours`, or not for this introduction, or has
/// been changed.
pub(super) fn open(
    ours: &Identity,
    introduction: IntroductionId,
    direction: Direction,
    sealed: &[u8],
) -> Option<(PublicKey, Vec<u8>)> {
    if !(OVERHEAD..=MAX_SEALED).contains(&sealed.len()) {
        return None;
    }
    let prologue = prologue(introduction, direction);
    let secret = ours.to_bytes();
    let mut state = builder(&prologue, [0; 32])
        .local_private_key(secret.as_ref())
        .and_then(Builder::build_responder)
        .expect("everything that X needs is there");
    let mut message = vec![0; sealed.len()];
    let length = state.read_message(sealed, &mut message).ok()?;
    message.truncate(length);
    let theirs = PublicKey::from_bytes(state.get_remote_static()?.try_into().ok()?);
    Some((theirs, message))
}

fn prologue(introduction: IntroductionId, direction: Direction) -> Vec<u8> {
    let label: &[u8] = match direction {
        Direction::ToHolder => b"rawr introduction 1\0",
        Direction::FromHolder => b"rawr introduction answer 1\0",
    };
    [label, &introduction.0].concat()
}

/// `seed` makes the ephemeral key; who only reads has none.
fn builder(prologue: &[u8], seed: [u8; 32]) -> Builder<'_> {
    let pattern = PATTERN.parse().expect("a pattern that snow knows");
    Builder::with_resolver(pattern, Box::new(Seeded(seed)))
        .prologue(prologue)
        .expect("the only prologue")
}

/// snow's own primitives, with randomness from outside.
struct Seeded([u8; 32]);

impl CryptoResolver for Seeded {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Generator(StdRng::from_seed(self.0))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

struct Generator(StdRng);

impl Random for Generator {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: IntroductionId = IntroductionId([7; 16]);

    fn identity(number: u8) -> Identity {
        Identity::from_bytes(&[number; 32])
    }

    fn sealed(message: &[u8]) -> Vec<u8> {
        seal(&identity(1), &identity(2).public(), ID, Direction::ToHolder, message, [9; 32])
            .unwrap()
    }

    #[test]
    fn opens_for_its_receiver_and_purpose_only() {
        let bytes = sealed(b"hello");
        let opened = open(&identity(2), ID, Direction::ToHolder, &bytes);
        assert_eq!(opened, Some((identity(1).public(), b"hello".to_vec())));
        assert_eq!(open(&identity(3), ID, Direction::ToHolder, &bytes), None);
        assert_eq!(open(&identity(2), ID, Direction::FromHolder, &bytes), None);
        let other = IntroductionId([8; 16]);
        assert_eq!(open(&identity(2), other, Direction::ToHolder, &bytes), None);
    }

    #[test]
    fn the_longest_message_fits_and_a_longer_one_is_refused() {
        let longest = sealed(&[5; MAX_MESSAGE]);
        assert_eq!(longest.len(), MAX_SEALED);
        assert!(open(&identity(2), ID, Direction::ToHolder, &longest).is_some());
        let to = identity(2).public();
        let long = [5; MAX_MESSAGE + 1];
        let refused = seal(&identity(1), &to, ID, Direction::ToHolder, &long, [9; 32]);
        assert_eq!(refused, Err(SealError::Long(MAX_MESSAGE + 1)));
        let weak = PublicKey::from_bytes([0; 32]);
        let refused = seal(&identity(1), &weak, ID, Direction::ToHolder, b"", [9; 32]);
        assert_eq!(refused, Err(SealError::Weak(WeakKey(weak))));
    }

    #[test]
    fn both_sides_get_the_same_secret_and_each_introduction_another() {
        let (a, b) = (identity(1), identity(2));
        let ours = session_secret(&a, &b.public(), ID).unwrap();
        assert_eq!(ours, session_secret(&b, &a.public(), ID).unwrap());
        assert_ne!(ours, session_secret(&b, &a.public(), IntroductionId([8; 16])).unwrap());
    }

    /// The worked examples of the protocol document.
    #[test]
    fn the_documents_examples_open() {
        const DOCUMENT: &str = include_str!("../../../docs/protocol.md");
        let bytes = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
        let identity = |who: &str| {
            let label = format!("{who} secret = ");
            let secret = DOCUMENT.lines().find_map(|line| line.strip_prefix(&label)).unwrap();
            Identity::from_bytes(&bytes(secret).try_into().unwrap())
        };
        let said = |name: &str| {
            let start = DOCUMENT.split_once(&format!("```hex {name} ")).unwrap().1;
            let block = start.split_once("```").unwrap().0.lines().skip(1);
            let hex: String = block.flat_map(|line| line.split('#').next()).collect();
            let hex: String = hex.chars().filter(char::is_ascii_hexdigit).collect();
            let message = rawr_proto::decode(&bytes(&hex)).unwrap().message;
            let said = message.attributes.bridge;
            (said.introduction.unwrap(), said.sealed.unwrap())
        };
        let (holder, introducer) = (identity("holder"), identity("introducer"));
        let (id, sealed) = said("introduce-indication");
        let opened = open(&holder, id, Direction::ToHolder, &sealed);
        assert_eq!(opened, Some((introducer.public(), b"hello".to_vec())));
        let (id, sealed) = said("introduce-answer-indication");
        let opened = open(&introducer, id, Direction::FromHolder, &sealed);
        assert_eq!(opened, Some((holder.public(), b"welcome".to_vec())));
    }

    proptest! {
        #[test]
        fn what_is_changed_does_not_open(
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = sealed(b"hello");
            let cut = &bytes[..cut.index(bytes.len())];
            prop_assert_eq!(open(&identity(2), ID, Direction::ToHolder, cut), None);
            let at = at.index(bytes.len());
            bytes[at] ^= change;
            // The highest bit of a public key is not part of it (RFC 7748 §5), but it is hashed.
            prop_assert_eq!(open(&identity(2), ID, Direction::ToHolder, &bytes), None);
        }

        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..1100)) {
            prop_assert_eq!(open(&identity(2), ID, Direction::ToHolder, &bytes), None);
        }
    }
}
