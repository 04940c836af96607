//! Probe: what a client sends from its data socket, so that its leg's remote is learnt.

use std::net::SocketAddr;

use rawr_proto::{
    Attributes, Class, Head, Message, Method, Role, SessionId, TransactionId, decode, peek,
};

use super::command::Source;
use super::counters::Count;
use super::server::Server;
use super::session::{PeerLeg, Use};
use super::store::Index;
use super::time::Now;

impl Server {
    /// Takes a datagram that came to a data port and was not forwarded.
    pub fn handle_data(&mut self, now: Now, local: SocketAddr, from: SocketAddr, bytes: &[u8]) {
        let index = self.store.by_port(local);
        let session = index.and_then(|index| self.store.get(index));
        let Some((index, role)) = index.zip(session.and_then(|session| session.use_of(local)))
        else {
            self.relay_data(now, local, from, bytes);
            return;
        };
        let taken = match role {
            Use::Peer(role) | Use::Retiring(role) => {
                self.probed(now, Port { index, local, role }, from, bytes)
            }
            Use::Target => self.target_data(now, index, local, from, bytes),
            Use::Upstream(serial) => self.upstream_data(now, index, serial, from, bytes),
            Use::Leaving => false,
        };
        if !taken {
            self.counters.add(Count::Stray);
        }
    }

    /// Takes a Probe of the client that the leg with this data port belongs to. All else, wrong
    /// integrity too, is left unanswered.
    pub(super) fn probed(&mut self, now: Now, port: Port, from: SocketAddr, bytes: &[u8]) -> bool {
        if peek(bytes) != Some((Class::Request, Method::Probe)) {
            return false;
        }
        let Ok(decoded) = decode(bytes) else { return false };
        let Some(session) = self.store.get(port.index) else { return false };
        let Message { transaction, attributes: a, .. } = &decoded.message;
        let key = session.integrity();
        if (a.session, a.role) != (Some(session.id), Some(port.role)) || !decoded.verify(&key) {
            return false;
        }
        if self.store.by_port(from).is_some() {
            self.counters.add(Count::OwnAddress);
            return true;
        }
        let probe = Probe { session: session.id, transaction: *transaction, from };
        if self.remote_of(&port) != Some(from) {
            if let Err((code, count)) = self.check_nonce(now, from, a.nonce.as_deref()) {
                self.counters.add(count);
                let nonce = Some(self.nonces.make(now.unix.as_secs(), from));
                let attributes = Attributes { nonce, ..Attributes::default() };
                let bytes_out = Message::error(probe.head(), code, attributes).encode(None);
                self.challenge_probe(now, &port, from, bytes_out, bytes.len());
                return true;
            }
            self.learn(now, &port, from);
        }
        self.answer_probe(&port, &probe, &key);
        true
    }

    fn challenge_probe(
        &mut self,
        now: Now,
        port: &Port,
        from: SocketAddr,
        answer: Vec<u8>,
        length: usize,
    ) {
        if answer.len() > length {
            self.counters.add(Count::TooLong);
        } else if self.allow_unverified(now, from) {
            self.counters.add(Count::Challenged);
            self.transmit(Source::Data(port.local), from, answer);
        }
    }

    fn answer_probe(&mut self, port: &Port, probe: &Probe, key: &rawr_proto::IntegrityKey) {
        self.counters.add(Count::Probe);
        let leg_state = self.store.get(port.index).map(|session| session.state_of(port.local));
        let attributes = Attributes {
            session: Some(probe.session),
            leg_state,
            mapped: Some(probe.from),
            ..Attributes::default()
        };
        let bytes = Message::success(probe.head(), attributes).encode(Some(key));
        self.transmit(Source::Data(port.local), probe.from, bytes);
    }

    fn remote_of(&self, port: &Port) -> Option<SocketAddr> {
        let session = self.store.get(port.index)?;
        let newest = session.leg(port.role);
        let retiring = session.retiring[port.role as usize].as_deref();
        let mut legs = newest.into_iter().chain(retiring);
        let target = session.target.as_ref().and_then(|target| target.bound());
        legs.find_map(|leg| leg.bound().filter(|bound| bound.local == port.local))
            .or_else(|| target.filter(|bound| bound.local == port.local))
            .map(|bound| bound.remote)
    }

    /// Takes `from` as the remote of the leg. Its sender knows the session's key and receives there.
    fn learn(&mut self, now: Now, port: &Port, from: SocketAddr) {
        let Some(session) = self.store.get_mut(port.index) else { return };
        let is_it = |leg: &PeerLeg| leg.port.open() == Some(port.local);
        let newest = session.legs[port.role as usize].as_mut().filter(|leg| is_it(leg));
        let retiring = session.retiring[port.role as usize].as_deref_mut();
        if let Some(leg) = newest.or_else(|| retiring.filter(|leg| is_it(leg))) {
            let before = leg.remote.replace(from);
            if before.is_none() {
                leg.refresh(now.monotonic, leg.source, leg.lifetime);
                self.quotas.bind_leg(leg.prefix);
            } else {
                self.counters.add(Count::Rebound);
            }
        } else if let Some(target) = &mut session.target {
            target.learn(now.monotonic, from);
        }
        self.touch(now, port.index);
    }
}

/// The data port that a Probe came to.
pub(super) struct Port {
    pub(super) index: Index,
    pub(super) local: SocketAddr,
    /// The peer that is behind it.
    pub(super) role: Role,
}

struct Probe {
    session: SessionId,
    transaction: TransactionId,
    from: SocketAddr,
}

impl Probe {
    fn head(&self) -> Head {
        Head { class: Class::Request, method: Method::Probe, transaction: self.transaction }
    }
}
