//! Control between two agents, sealed: nobody on the way reads it, alters it, or repeats it later.
//!
//! ```text
//! 0xf0 | run (6 bytes) | counter (6 bytes) | ChaCha20-Poly1305 of: run addressed (6 bytes), message
//! ```
//! The nonce is the run, which the sender has never had before, and a counter; each direction has a key of
//! its own. So no nonce is used twice, and an agent that starts again is noticed.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use rawr_proto::{Role, SessionSecret};

use super::frame::CONTROL;

const NONCE: usize = 12;
const HEADER: usize = 1 + NONCE;
/// Runs and counters are 48 bits long.
const RUN_BYTES: usize = 6;
const RUN_MASK: u64 = (1 << 48) - 1;
/// Datagrams that may overtake one that still counts.
const WINDOW: u64 = 128;

/// Seals what one agent sends, and opens what the other one sent.
#[derive(Debug)]
pub(super) struct Sealer {
    ours: Cipher,
    theirs: Cipher,
    run: u64,
    counter: u64,
    peer: Option<Heard>,
}

/// What came out of a datagram.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) message: Vec<u8>,
    /// The other agent has started again since we last heard from it.
    pub(super) is_new_run: bool,
}

/// What has come from the other agent's present run.
#[derive(Debug)]
struct Heard {
    run: u64,
    newest: u64,
    /// Bit n: the datagram n before the newest has come.
    seen: u128,
}

struct Cipher(ChaCha20Poly1305);

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cipher(…)")
    }
}

impl Cipher {
    fn new(secret: &SessionSecret, sender: Role) -> Self {
        let label: &[u8] = match sender {
            Role::A => b"control from A",
            Role::B => b"control from B",
        };
        Self(ChaCha20Poly1305::new(Key::from_slice(&secret.derive(label))))
    }
}

impl Sealer {
    /// `run` is greater than that of any earlier run (milliseconds since 1970).
    pub(super) fn new(secret: &SessionSecret, role: Role, run: u64) -> Self {
        let (ours, theirs) = (Cipher::new(secret, role), Cipher::new(secret, role.other()));
        Self { ours, theirs, run: run & RUN_MASK, counter: 0, peer: None }
    }

    pub(super) fn seal(&mut self, message: &[u8]) -> Vec<u8> {
        let mut datagram = vec![CONTROL];
        datagram.extend(&self.run.to_be_bytes()[2..]);
        datagram.extend(&self.counter.to_be_bytes()[2..]);
        self.counter += 1;
        let addressed = self.peer.as_ref().map_or(0, |peer| peer.run);
        let plain = [&addressed.to_be_bytes()[2..], message].concat();
        let payload = Payload { msg: &plain, aad: &[CONTROL] };
        let sealed = self.ours.0.encrypt(Nonce::from_slice(&datagram[1..]), payload);
        // The cipher fails for messages of 256 GiB and more only.
        datagram.extend(sealed.unwrap_or_default());
        datagram
    }

    /// `None` if it was not made with this session's key for us, or has come before.
    pub(super) fn open(&mut self, datagram: &[u8]) -> Option<Opened> {
        let (header, sealed) = datagram.split_at_checked(HEADER)?;
        let (frame, nonce) = header.split_first()?;
        let (run, counter) = (number(&nonce[..RUN_BYTES]), number(&nonce[RUN_BYTES..]));
        if *frame != CONTROL || self.peer.as_ref().is_some_and(|peer| !peer.is_fresh(run, counter))
        {
            return None;
        }
        let payload = Payload { msg: sealed, aad: &[CONTROL] };
        let plain = self.theirs.0.decrypt(Nonce::from_slice(nonce), payload).ok()?;
        let (addressed, message) = plain.split_at_checked(RUN_BYTES)?;
        let addressed = number(addressed);
        if addressed != 0 && addressed != self.run {
            return None;
        }
        let is_new_run = self.note(run, counter);
        Some(Opened { message: message.to_vec(), is_new_run })
    }

    /// Returns whether a run that was known has ended.
    fn note(&mut self, run: u64, counter: u64) -> bool {
        match &mut self.peer {
            Some(peer) if peer.run == run => {
                peer.note(counter);
                false
            }
            peer => peer.replace(Heard { run, newest: counter, seen: 1 }).is_some(),
        }
    }
}

impl Heard {
    fn is_fresh(&self, run: u64, counter: u64) -> bool {
        if run != self.run {
            return run > self.run;
        }
        match self.newest.checked_sub(counter) {
            None => true,
            Some(age) => age < WINDOW && self.seen & (1 << age) == 0,
        }
    }

    fn note(&mut self, counter: u64) {
        match self.newest.checked_sub(counter) {
            Some(age) => self.seen |= 1 << age,
            None => {
                let ahead = counter - self.newest;
                self.seen = if ahead < WINDOW { self.seen << ahead | 1 } else { 1 };
                self.newest = counter;
            }
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Sealer, Sealer) {
        let secret = SessionSecret::from_bytes([3; 32]);
        (Sealer::new(&secret, Role::A, 1000), Sealer::new(&secret, Role::B, 2000))
    }

    #[test]
    fn only_the_other_agent_opens_it_and_only_once() {
        let (mut a, mut b) = pair();
        let datagram = a.seal(b"hello");
        assert_eq!(a.open(&datagram), None, "a reflection");
        for at in 0..datagram.len() {
            let mut altered = datagram.clone();
            altered[at] ^= 1;
            assert_eq!(b.open(&altered), None, "byte {at} altered");
        }
        let opened = b.open(&datagram).unwrap();
        assert_eq!(opened, Opened { message: b"hello".to_vec(), is_new_run: false });
        assert_eq!(b.open(&datagram), None, "a repetition");
        assert_eq!(b.open(&datagram[..HEADER - 1]), None);
    }

    #[test]
    fn a_datagram_may_be_overtaken_but_not_by_many() {
        let (mut a, mut b) = pair();
        let all: Vec<_> = (0..=WINDOW).map(|i| a.seal(&i.to_be_bytes())).collect();
        assert!(b.open(all.last().unwrap()).is_some());
        assert_eq!(b.open(&all[0]), None);
        assert!(all[1..all.len() - 1].iter().rev().all(|it| b.open(it).is_some()));
        assert!(all.iter().all(|it| b.open(it).is_none()));
    }

    #[test]
    fn a_new_run_is_noticed_and_an_old_one_is_over() {
        let (mut a, mut b) = pair();
        let early = a.seal(b"early");
        assert!(b.open(&a.seal(b"first")).is_some());
        let mut again = Sealer::new(&SessionSecret::from_bytes([3; 32]), Role::A, 1001);
        assert!(b.open(&again.seal(b"second")).unwrap().is_new_run);
        assert!(!b.open(&again.seal(b"third")).unwrap().is_new_run);
        assert_eq!(b.open(&early), None);
        // What is addressed to the run before is not for the one that follows.
        let mut fresh = Sealer::new(&SessionSecret::from_bytes([3; 32]), Role::B, 2001);
        assert!(again.open(&b.seal(b"to know the run")).is_some());
        assert_eq!(fresh.open(&again.seal(b"to the run before")), None);
    }
}
