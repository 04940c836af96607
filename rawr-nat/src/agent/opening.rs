//! Opens own NATs for the other agent's external endpoints before these are checked.
//!
//! Many routers take a datagram of the remote end that comes before the own one has left for one to
//! themselves, and give the own flow another port afterwards: the endpoint that the other side was told is no
//! more. So each agent sends a datagram that ends on its way as soon as it is told of such an endpoint, and
//! checks nothing before the other has confirmed what it was told, and so has done the same.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::{AgentOutput, AgentSocket};
use super::{Agent, ice};

/// The longest that candidates wait for the other agent.
const LIMIT: Duration = Duration::from_millis(500);
/// No STUN message, no frame and no probe: nobody answers if it comes all the way.
const OPENER: [u8; 1] = [0];

/// Candidates that are not checked yet.
#[derive(Debug, Default)]
pub(super) struct Opening {
    held: Vec<String>,
    until: Option<Instant>,
}

impl Opening {
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.until
    }
}

impl Agent {
    /// Takes the other agent's candidate: at once, or after own NATs are open for it.
    pub(super) fn take_candidate(&mut self, now: Instant, sdp: String) {
        let hops = self.config.punching.and_then(|tuning| tuning.opening_ttl);
        match ice::reflexive_of(&sdp).zip(hops) {
            Some((endpoint, hops)) => {
                self.open_for(endpoint, hops);
                self.opening.held.push(sdp);
                self.opening.until.get_or_insert(now + LIMIT);
            }
            None => self.check(now, &sdp),
        }
    }

    /// Checks the candidates that have been held back once the other agent knows of all of ours, or has had its
    /// time.
    pub(super) fn pump_opening(&mut self, now: Instant) {
        let is_over = self.opening.until.is_some_and(|until| until <= now);
        if is_over || self.mailbox.is_confirmed() {
            self.opening.until = None;
            for sdp in std::mem::take(&mut self.opening.held) {
                self.check(now, &sdp);
            }
        }
    }

    fn check(&mut self, now: Instant, sdp: &str) {
        self.ice.add_remote(sdp);
        self.ice.handle_timeout(now);
        self.name_paths();
    }

    /// From every socket that checks may be sent from.
    fn open_for(&mut self, endpoint: SocketAddr, hops: u8) {
        let sockets = self.config.sockets.iter().filter(|it| it.address.is_ipv4());
        let datagrams = sockets.map(|socket| AgentOutput::Transmit {
            socket: AgentSocket::Own(socket.id),
            to: endpoint,
            ttl: Some(hops),
            bytes: OPENER.to_vec(),
        });
        self.outputs.extend(datagrams);
    }
}
