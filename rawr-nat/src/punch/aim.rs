//! Lays out the probes of one round.

use std::net::{IpAddr, SocketAddr};

use rand::rngs::StdRng;

use crate::nat::Behaviour;
use crate::punch::coordinator::Coordinator;
use crate::punch::ports::{Deck, permuted, window};
use crate::punch::tactics::{Aim, Tactics};
use crate::punch::volley::Shot;
use crate::socket_id::SocketId;

/// What is known of the other side's outside, and what has been tried of it.
#[derive(Debug)]
pub(crate) struct Target {
    ip: IpAddr,
    last_port: u16,
    endpoints: Vec<SocketAddr>,
    deck: Option<Deck>,
}

impl Target {
    pub(crate) fn new(theirs: &Behaviour, endpoints: Vec<SocketAddr>) -> Self {
        Self { ip: theirs.external, last_port: theirs.last_port, endpoints, deck: None }
    }

    /// The probes of one round, from these sockets.
    pub(crate) fn shots(
        &mut self,
        tactics: &Tactics,
        sockets: &[SocketId],
        coordinator: &Coordinator,
        rng: &mut StdRng,
    ) -> Vec<Shot> {
        if tactics.rests_in(coordinator.round()) {
            return Vec::new();
        }
        match tactics.aim {
            Aim::Endpoints => each(&self.endpoints(coordinator), sockets),
            Aim::Window { count, step, is_permuted } => {
                let last = coordinator.their_port().unwrap_or(self.last_port);
                let mut ports = window(last, step, count);
                if is_permuted {
                    ports = permuted(ports, rng);
                }
                let at = |port| SocketAddr::new(self.ip, port);
                each(&ports.into_iter().map(at).collect::<Vec<_>>(), sockets)
            }
            Aim::Range { low, high, each: count } => {
                let deck = self.deck.get_or_insert_with(|| Deck::new(low, high));
                let mut shots = Vec::new();
                for socket in sockets {
                    for _ in 0..count {
                        let to = SocketAddr::new(self.ip, deck.draw(rng));
                        shots.push(Shot { socket: *socket, to, ttl: None });
                    }
                }
                shots
            }
        }
    }

    /// All known endpoints of the other side's, the one learnt for this round first.
    fn endpoints(&self, coordinator: &Coordinator) -> Vec<SocketAddr> {
        let learnt = coordinator.their_port().map(|port| SocketAddr::new(self.ip, port));
        let told = self.endpoints.iter().chain(coordinator.their_endpoints());
        let mut endpoints = Vec::new();
        for endpoint in learnt.iter().chain(told) {
            let is_reachable = endpoint.is_ipv4() == self.ip.is_ipv4() && endpoint.port() != 0;
            if is_reachable && !endpoints.contains(endpoint) {
                endpoints.push(*endpoint);
            }
        }
        if endpoints.is_empty() {
            endpoints.push(SocketAddr::new(self.ip, self.last_port));
        }
        endpoints
    }
}

/// From each socket to each target.
fn each(targets: &[SocketAddr], sockets: &[SocketId]) -> Vec<Shot> {
    let from =
        |to: SocketAddr| sockets.iter().map(move |socket| Shot { socket: *socket, to, ttl: None });
    targets.iter().flat_map(|to| from(*to)).collect()
}
