//! ICE (RFC 8445, trickle RFC 8838) by the crate `is`: finds the pair of addresses by which two agents reach
//! each other.
//!
//! The crate makes its transaction identifiers by a generator of its own. They decide nothing, so runs with
//! the same seed still take the same turns.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hmac::{Hmac, Mac};
use is::stun::{StunMessage, StunPacket};
use is::{Candidate, CandidateKind, IceAgent, IceAgentEvent, IceCreds, Protocol, Sha1HmacProvider};
use rand::Rng;
use rand::distr::Alphanumeric;
use rand::rngs::StdRng;
use sha1::Sha1;

use crate::nat64::Prefix;

/// Pause between checks of different pairs (RFC 8445 §14.2 asks for no less than 5 ms).
const PACE: Duration = Duration::from_millis(20);
/// Pause before a check is repeated, at first, and at most as long as no pair has been found.
const RTO: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The longest pause once one has been found.
const FOUND_RTO: Duration = Duration::from_secs(10);
/// Lengths of user name fragment and password (RFC 8445 §5.3 asks for 24 and 128 random bits).
const CREDENTIALS: (usize, usize) = (8, 24);
/// Candidates that the other agent may name.
const MAX_REMOTE: usize = 64;

/// What ICE has found, or wants to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IceOutput {
    Transmit {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    /// Checks have succeeded both ways between these.
    Found {
        local: SocketAddr,
        remote: SocketAddr,
        is_host: bool,
        rtt: Option<Duration>,
    },
}

/// One run of ICE.
#[derive(Debug)]
pub(super) struct Ice {
    agent: IceAgent,
    nat64: Option<Prefix>,
    /// Has the other agent's credentials.
    is_open: bool,
    remote: usize,
    /// Addresses of own candidates that the other agent does not reach by host candidates alone, and where they
    /// lead.
    reflexive: Vec<(SocketAddr, SocketAddr)>,
}

/// The endpoint of an IPv4 candidate that is behind a NAT.
pub(super) fn reflexive_of(sdp: &str) -> Option<SocketAddr> {
    let candidate = Candidate::from_sdp_string(sdp).ok()?;
    let is_reflexive = candidate.kind() == CandidateKind::ServerReflexive;
    Some(candidate.addr()).filter(|address| is_reflexive && address.is_ipv4())
}

/// What the other agent is told of an address of the other family, which NAT64 has given to a socket of ours.
/// The own pairs need it not: the socket has a host candidate, from which checks to synthesised addresses go.
fn translated(address: SocketAddr) -> Option<String> {
    let candidate = Candidate::server_reflexive(address, address, Protocol::Udp).ok()?;
    Some(candidate.to_sdp_string())
}

#[derive(Debug)]
struct HmacSha1;

impl Sha1HmacProvider for HmacSha1 {
    fn sha1_hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
        let mut mac = Hmac::<Sha1>::new_from_slice(key).expect("a key");
        payloads.iter().for_each(|payload| mac.update(payload));
        mac.finalize().into_bytes().into()
    }
}

impl Ice {
    pub(super) fn new(
        is_controlling: bool,
        nat64: Option<Prefix>,
        rng: &mut StdRng,
        now: Instant,
    ) -> Self {
        let credentials =
            IceCreds { ufrag: text(rng, CREDENTIALS.0), pass: text(rng, CREDENTIALS.1) };
        let mut agent = IceAgent::with_hmac(credentials, &HmacSha1);
        agent.set_controlling(is_controlling);
        agent.set_control_tie_breaker(rng.random());
        agent.set_timing_advance(PACE);
        agent.set_initial_stun_rto(RTO.0);
        agent.set_max_stun_rto(RTO.1);
        agent.handle_timeout(now);
        Self { agent, nat64, is_open: false, remote: 0, reflexive: Vec::new() }
    }

    /// User name fragment and password.
    pub(super) fn credentials(&self) -> (String, String) {
        let credentials = self.agent.local_credentials();
        (credentials.ufrag.clone(), credentials.pass.clone())
    }

    /// Returns the candidate as the other agent is to be told it, unless it is redundant or of no use.
    pub(super) fn add_host(&mut self, address: SocketAddr) -> Option<String> {
        let candidate = Candidate::host(address, Protocol::Udp).ok()?;
        self.agent.add_local_candidate(candidate).map(Candidate::to_sdp_string)
    }

    /// The same for an address that leads to `base` through a NAT.
    pub(super) fn add_reflexive(
        &mut self,
        address: SocketAddr,
        base: SocketAddr,
    ) -> Option<String> {
        if self.reflexive.contains(&(address, base)) {
            return None;
        }
        let sdp = if address.is_ipv4() == base.is_ipv4() {
            let candidate = Candidate::server_reflexive(address, base, Protocol::Udp).ok()?;
            self.agent.add_local_candidate(candidate).map(Candidate::to_sdp_string)?
        } else {
            translated(address)?
        };
        self.reflexive.push((address, base));
        Some(sdp)
    }

    /// Takes back all candidates of the socket with this address.
    pub(super) fn remove(&mut self, base: SocketAddr) {
        let gone: Vec<_> = self.agent.local_candidates().filter(|it| it.local() == base).collect();
        for candidate in gone {
            self.agent.invalidate_candidate(&candidate);
        }
        self.reflexive.retain(|(_, of)| *of != base);
    }

    /// Own addresses that NATs have given us.
    pub(super) fn reflexive(&self) -> Vec<SocketAddr> {
        self.reflexive.iter().map(|(address, _)| *address).collect()
    }

    pub(super) fn set_remote(&mut self, fragment: String, password: String) {
        self.agent.set_remote_credentials(IceCreds { ufrag: fragment, pass: password });
        self.is_open = true;
    }

    /// Takes the other agent's candidate. What is none is ignored.
    pub(super) fn add_remote(&mut self, sdp: &str) {
        let Ok(candidate) = Candidate::from_sdp_string(sdp) else { return };
        let is_udp = candidate.proto() == Protocol::Udp;
        if !is_udp || self.remote >= MAX_REMOTE || candidate.addr().port() == 0 {
            return;
        }
        self.remote += 1;
        let synthesised = match (self.nat64, candidate.addr().ip()) {
            (Some(prefix), IpAddr::V4(ip)) => Some(prefix.synthesize(ip)),
            _ => None,
        };
        if let Some(ip) = synthesised {
            let address = SocketAddr::new(ip.into(), candidate.addr().port());
            self.agent.add_remote_candidate(Candidate::from_parts(
                format!("nat64-{}", self.remote),
                1,
                Protocol::Udp,
                candidate.prio(),
                address,
                CandidateKind::ServerReflexive,
                None,
                None,
                None,
            ));
        }
        self.agent.add_remote_candidate(candidate);
    }

    /// The other agent's addresses behind its NATs.
    pub(super) fn remote_reflexive(&self) -> Vec<SocketAddr> {
        let reflexive = |it: &Candidate| it.kind() == CandidateKind::ServerReflexive;
        let candidates = self.agent.remote_candidates().filter(reflexive);
        candidates.map(|candidate| candidate.addr()).collect()
    }

    /// Whether the other agent has named this address, or sent a check from it.
    pub(super) fn is_remote(&self, address: SocketAddr) -> bool {
        self.agent.remote_candidates().any(|it| it.addr() == address)
    }

    /// Whether the other agent has this address itself.
    pub(super) fn is_remote_host(&self, address: SocketAddr) -> bool {
        let mut candidates = self.agent.remote_candidates();
        candidates.any(|it| it.kind() == CandidateKind::Host && it.addr() == address)
    }

    /// Takes a datagram that came to the socket with the address `local`. Returns whether it was ICE's.
    pub(super) fn handle(
        &mut self,
        now: Instant,
        local: SocketAddr,
        from: SocketAddr,
        bytes: &[u8],
    ) -> bool {
        let Ok(message) = StunMessage::parse(bytes) else { return false };
        // Whether a response is ours cannot be told before.
        if !self.is_open && !message.is_binding_request() {
            return false;
        }
        let packet = StunPacket { proto: Protocol::Udp, source: from, destination: local, message };
        self.agent.handle_packet(now, packet)
    }

    /// Checks all pairs again, those that have failed, too.
    pub(super) fn recheck(&mut self) {
        self.agent.set_max_stun_rto(RTO.1);
        self.agent.recreate_candidate_pairs();
    }

    /// A path is in use: checks may be seldom.
    pub(super) fn relax(&mut self) {
        self.agent.set_max_stun_rto(FOUND_RTO);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.agent.handle_timeout(now);
    }

    /// `None` as long as the other agent is not known.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        self.agent.poll_timeout().filter(|_| self.is_open)
    }

    pub(super) fn poll_output(&mut self) -> Option<IceOutput> {
        if let Some(transmit) = self.agent.poll_transmit() {
            let (from, to, bytes) =
                (transmit.source, transmit.destination, transmit.contents.into());
            return Some(IceOutput::Transmit { from, to, bytes });
        }
        while let Some(event) = self.agent.poll_event() {
            if let IceAgentEvent::NominatedSend { source, destination, .. } = event {
                let is_host = self.is_remote_host(destination);
                let rtt = self.agent.nominated_pair_rtt();
                return Some(IceOutput::Found { local: source, remote: destination, is_host, rtt });
            }
        }
        None
    }
}

fn text(rng: &mut StdRng, length: usize) -> String {
    rng.sample_iter(Alphanumeric).take(length).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn ice() -> Ice {
        use rand::SeedableRng as _;
        Ice::new(true, None, &mut StdRng::seed_from_u64(1), Instant::now())
    }

    #[test]
    fn an_endpoint_that_nat64_has_given_is_told_once() {
        let mut ice = ice();
        let base = "[2001:db8::2]:4000".parse().unwrap();
        let external = "192.0.2.1:4000".parse().unwrap();
        assert!(ice.add_host(base).is_some());
        let sdp = ice.add_reflexive(external, base).unwrap();
        assert_eq!(reflexive_of(&sdp), Some(external));
        assert_eq!(ice.add_reflexive(external, base), None);
        assert_eq!(ice.reflexive(), [external]);
        ice.remove(base);
        assert_eq!(ice.reflexive(), []);
    }
}
