//! Noise IK by `snow`: its randomness from outside, its X25519 with secrets that are wiped.

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::{CryptoResolver, RingResolver};
use snow::types::{Cipher, Dh, Hash, Random};
use snow::{Builder, HandshakeState, StatelessTransportState};
use x25519_dalek::StaticSecret;
use zeroize::Zeroize as _;

use super::wire::{Hello, INITIATION_LEN, RESPONSE_LEN, Slot};
use crate::identity::{Identity, PublicKey};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";

/// What both sides hash into a handshake before its first message.
#[derive(Clone, Debug)]
pub(super) struct Prologue(Vec<u8>);

impl Prologue {
    pub(super) fn new(context: &[u8]) -> Self {
        Self([b"rawr secure 1\0", context].concat())
    }
}

/// An initiator between its message and the response.
pub(super) struct Initiator(Box<HandshakeState>);

impl Initiator {
    /// Also returns the message.
    pub(super) fn new(
        identity: &Identity,
        peer: &PublicKey,
        prologue: &Prologue,
        hello: Hello,
        seed: [u8; 32],
    ) -> Option<(Self, [u8; INITIATION_LEN])> {
        let secret = identity.to_bytes();
        let mut state = builder(prologue, seed)
            .local_private_key(secret.as_ref())
            .and_then(|it| it.remote_public_key(peer.as_bytes()))
            .and_then(Builder::build_initiator)
            .expect("everything that IK needs is there");
        let mut message = [0; INITIATION_LEN];
        let length = state.write_message(&hello.encode(), &mut message).ok()?;
        (length == INITIATION_LEN).then_some((Self(Box::new(state)), message))
    }

    /// Reads a response. Returns whether it is genuine, and then the responder's slot.
    pub(super) fn read(&mut self, response: &[u8; RESPONSE_LEN]) -> Option<Slot> {
        let mut payload = [0; 1];
        self.0.read_message(response, &mut payload).ok()?;
        Slot::new(payload[0])
    }

    /// To be called after [`Initiator::read`].
    pub(super) fn into_transport(self) -> Option<StatelessTransportState> {
        self.0.into_stateless_transport_mode().ok()
    }
}

/// A responder that has read an initiation.
pub(super) struct Responder {
    state: Box<HandshakeState>,
    pub(super) peer: PublicKey,
    pub(super) hello: Hello,
}

impl Responder {
    /// Reads an initiation. `None` if it is not for this identity, or not genuine.
    pub(super) fn read(
        identity: &Identity,
        prologue: &Prologue,
        initiation: &[u8; INITIATION_LEN],
        seed: [u8; 32],
    ) -> Option<Self> {
        let secret = identity.to_bytes();
        let mut state = builder(prologue, seed)
            .local_private_key(secret.as_ref())
            .and_then(Builder::build_responder)
            .expect("everything that IK needs is there");
        let mut payload = [0; Hello::LEN];
        state.read_message(initiation, &mut payload).ok()?;
        let peer = PublicKey::from_bytes(state.get_remote_static()?.try_into().ok()?);
        Some(Self { state: Box::new(state), peer, hello: Hello::decode(&payload)? })
    }

    /// The response, and the keys that follow from it.
    pub(super) fn respond(
        mut self,
        slot: Slot,
    ) -> Option<([u8; RESPONSE_LEN], StatelessTransportState)> {
        let mut message = [0; RESPONSE_LEN];
        self.state.write_message(&[slot.byte()], &mut message).ok()?;
        Some((message, self.state.into_stateless_transport_mode().ok()?))
    }
}

fn builder(prologue: &Prologue, seed: [u8; 32]) -> Builder<'_> {
    let pattern = PATTERN.parse().expect("a pattern that snow knows");
    Builder::with_resolver(pattern, Box::new(Resolver { seed }))
        .prologue(&prologue.0)
        .expect("the only prologue")
}

struct Resolver {
    seed: [u8; 32],
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Seeded(StdRng::from_seed(self.seed))))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        matches!(choice, DHChoice::Curve25519).then(|| Box::new(X25519::default()) as Box<dyn Dh>)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        RingResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

struct Seeded(StdRng);

impl Random for Seeded {
    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), snow::Error> {
        self.0.fill_bytes(bytes);
        Ok(())
    }
}

/// Wiped when it is dropped, and does not agree with points of low order; snow's own does neither.
struct X25519 {
    secret: StaticSecret,
    public: x25519_dalek::PublicKey,
}

impl Default for X25519 {
    fn default() -> Self {
        let mut dh = Self { secret: StaticSecret::from([0; 32]), public: [0; 32].into() };
        dh.replace(StaticSecret::from([0; 32]));
        dh
    }
}

impl X25519 {
    fn replace(&mut self, secret: StaticSecret) {
        self.public = (&secret).into();
        self.secret = secret;
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        let mut bytes: [u8; 32] = secret.try_into().expect("X25519 keys have 32 bytes");
        self.replace(StaticSecret::from(bytes));
        bytes.zeroize();
    }

    fn generate(&mut self, rng: &mut dyn Random) -> Result<(), snow::Error> {
        let mut bytes = [0; 32];
        rng.try_fill_bytes(&mut bytes)?;
        self.replace(StaticSecret::from(bytes));
        bytes.zeroize();
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_bytes()
    }

    fn dh(&self, theirs: &[u8], out: &mut [u8]) -> Result<(), snow::Error> {
        let theirs: [u8; 32] =
            theirs.get(..32).and_then(|it| it.try_into().ok()).ok_or(snow::Error::Dh)?;
        let shared = self.secret.diffie_hellman(&theirs.into());
        if !shared.was_contributory() {
            return Err(snow::Error::Dh);
        }
        out[..32].copy_from_slice(shared.as_bytes());
        Ok(())
    }
}
