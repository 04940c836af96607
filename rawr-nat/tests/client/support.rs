//! A RAWR server that does just what its clients' tests need, over virtual time.

use std::collections::HashMap;
use std::net::SocketAddr;

use rawr_proto::{
    Attributes, Class, Credentials, Decoded, ErrorCode, Head, IntegrityKey, LegState, LongTermKey,
    MacToken, Message, Method, NonceKey, Role, SessionId, SessionKey, TransactionId, decode, peek,
};

pub(crate) const REALM: &str = "example.org";

/// A datagram from one address to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Datagram {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) bytes: Vec<u8>,
}

/// One leg at the server.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) local: SocketAddr,
    pub(crate) remote: Option<SocketAddr>,
    pub(crate) epoch: u64,
    pub(crate) target_mac: Option<MacToken>,
    pub(crate) knows_mac_key: bool,
}

/// A session at the server.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) key: SessionKey,
    pub(crate) legs: HashMap<Role, Leg>,
    pub(crate) exchanged: HashMap<Role, (SocketAddr, Attributes)>,
}

#[derive(Debug)]
pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    pub(crate) user: Option<Credentials>,
    pub(crate) up: bool,
    pub(crate) sessions: HashMap<SessionId, Session>,
    /// Every message that was taken up, in order.
    pub(crate) log: Vec<(Class, Method)>,
    /// Application datagrams forwarded.
    pub(crate) forwarded: usize,
    pub(crate) nonces: NonceKey,
    next_port: u16,
    serial: u8,
}

impl FakeServer {
    pub(crate) fn new(address: &str) -> Self {
        Self {
            address: address.parse().unwrap(),
            user: None,
            up: true,
            sessions: HashMap::new(),
            log: Vec::new(),
            forwarded: 0,
            nonces: NonceKey::from_bytes([9; 32]),
            next_port: 40_000,
            serial: 0,
        }
    }

    /// Whether `address` is one of the server's.
    pub(crate) fn owns(&self, address: SocketAddr) -> bool {
        address.ip() == self.address.ip()
    }

    pub(crate) fn handle(&mut self, datagram: &Datagram) -> Vec<Datagram> {
        if !self.up {
            return Vec::new();
        }
        if datagram.to == self.address {
            return self.handle_control(datagram.from, &datagram.bytes);
        }
        self.handle_data(datagram)
    }

    fn handle_control(&mut self, from: SocketAddr, bytes: &[u8]) -> Vec<Datagram> {
        let Ok(message) = decode(bytes) else { return Vec::new() };
        let head = message.message.head();
        self.log.push((head.class, head.method));
        if head.method == Method::Binding {
            let attributes = Attributes { mapped: Some(from), ..Attributes::default() };
            return vec![self.reply(from, Message::success(head, attributes).encode(None))];
        }
        let a = &message.message.attributes;
        let nonce = a.nonce.clone().unwrap_or_default();
        if self.nonces.check(0, from, &nonce).is_err() {
            assert!(bytes.len() >= 160, "first request is padded");
            assert!(a.session_key.is_none(), "first request shows no key");
            return vec![self.challenge(head, from)];
        }
        let user = self.user.as_ref().map(|user| user.key(REALM));
        if user.is_some() && a.username != self.user.as_ref().map(|user| user.username.clone()) {
            return vec![self.challenge(head, from)];
        }
        let Some(key) = self.session_key(&message, user.as_ref()) else {
            let forgotten = a.session_key.is_none();
            return vec![match forgotten {
                true => self.refuse(head, from, ErrorCode::UnknownSession),
                false => self.challenge(head, from),
            }];
        };
        let integrity = match &user {
            Some(user) => IntegrityKey::credentialed(user, &key),
            None => IntegrityKey::session(&key),
        };
        if !message.verify(&integrity) {
            return vec![self.challenge(head, from)];
        }
        self.grant(from, &message.message, key, &integrity)
    }

    fn session_key(&self, message: &Decoded<'_>, user: Option<&LongTermKey>) -> Option<SessionKey> {
        let a = &message.message.attributes;
        let id = a.session?;
        let Some(wire) = a.session_key else {
            return Some(self.sessions.get(&id)?.key.clone());
        };
        let transaction = message.message.transaction;
        let key = match user {
            Some(user) => user.mask_session_key(wire, a.nonce.as_deref()?, transaction),
            None => wire,
        };
        Some(key.session_key()).filter(|key| key.id() == id)
    }

    fn grant(
        &mut self,
        from: SocketAddr,
        request: &Message,
        key: SessionKey,
        integrity: &IntegrityKey,
    ) -> Vec<Datagram> {
        let a = &request.attributes;
        let (id, role) = (a.session.unwrap(), a.role.unwrap());
        let empty = || Session { key, legs: HashMap::new(), exchanged: HashMap::new() };
        let session = self.sessions.entry(id).or_insert_with(empty);
        let mut out = Vec::new();
        let attributes = match request.method {
            Method::Connect => {
                let mut local = self.address;
                local.set_port(self.next_port);
                let known = session.legs.get(&role).filter(|leg| Some(leg.epoch) == a.epoch);
                let old = known.cloned();
                self.next_port += u16::from(old.is_none());
                let leg = Leg {
                    local: old.as_ref().map_or(local, |leg| leg.local),
                    remote: old.and_then(|leg| leg.remote),
                    epoch: a.epoch.unwrap(),
                    target_mac: a.target_mac,
                    knows_mac_key: a.mac_key.is_some(),
                };
                let data_address = Some(leg.local);
                session.legs.insert(role, leg);
                Attributes { data_address, lifetime: a.lifetime, ..Attributes::default() }
            }
            Method::Exchange => {
                session.exchanged.insert(role, (from, a.clone()));
                let peer = session.exchanged.get(&role.other()).cloned();
                if let Some((peer_address, _)) = &peer {
                    out.push(exchange_indication(self.address, *peer_address, id, a, &session.key));
                }
                peer_attributes(peer.as_ref().map(|(_, attributes)| attributes))
            }
            Method::Release => {
                session.legs.remove(&role);
                Attributes::default()
            }
            _ if !session.legs.contains_key(&role) => {
                return vec![self.refuse(request.head(), from, ErrorCode::UnknownSession)];
            }
            _ => Attributes { lifetime: a.lifetime, ..Attributes::default() },
        };
        let bytes = Message::success(request.head(), attributes).encode(Some(integrity));
        out.push(self.reply(from, bytes));
        out
    }

    fn handle_data(&mut self, datagram: &Datagram) -> Vec<Datagram> {
        let Datagram { from, to, bytes } = datagram;
        let find = |(id, session): (&SessionId, &Session)| {
            let (role, _) = session.legs.iter().find(|(_, leg)| leg.local == *to)?;
            Some((*id, *role))
        };
        let Some((id, role)) = self.sessions.iter().find_map(find) else { return Vec::new() };
        let session = self.sessions.get_mut(&id).unwrap();
        let (leg, other) = (session.legs[&role].clone(), session.legs.get(&role.other()).cloned());
        if let Some(Leg { local, remote: Some(remote), .. }) = other
            && leg.remote == Some(*from)
        {
            self.forwarded += usize::from(peek(bytes).is_none());
            return vec![Datagram { from: local, to: remote, bytes: bytes.clone() }];
        }
        let key = IntegrityKey::session(&session.key);
        let Some(message) = decode(bytes).ok().filter(|message| message.verify(&key)) else {
            return Vec::new();
        };
        self.log.push((message.message.class, message.message.method));
        if message.message.class != Class::Request {
            return Vec::new();
        }
        let head = message.message.head();
        let nonce = message.message.attributes.nonce.clone().unwrap_or_default();
        if self.nonces.check(0, *from, &nonce).is_err() {
            return vec![Datagram { from: *to, ..self.challenge(head, *from) }];
        }
        session.legs.get_mut(&role).unwrap().remote = Some(*from);
        let paired = session.legs.values().filter(|leg| leg.remote.is_some()).count() == 2;
        let leg_state = Some(if paired { LegState::Paired } else { LegState::Waiting });
        let attributes = Attributes {
            session: Some(id),
            leg_state,
            mapped: Some(*from),
            ..Attributes::default()
        };
        let bytes = Message::success(head, attributes).encode(Some(&key));
        let mut out = vec![Datagram { from: *to, to: *from, bytes }];
        if paired {
            self.serial += 1;
            let transaction = TransactionId([self.serial; 12]);
            let attributes = Attributes { session: Some(id), leg_state, ..Attributes::default() };
            let status = Message::indication(Method::Status, transaction, attributes);
            let bytes = status.encode(Some(&key));
            out.extend(session.legs.values().filter_map(|leg| {
                Some(Datagram { from: leg.local, to: leg.remote?, bytes: bytes.clone() })
            }));
        }
        out
    }

    fn challenge(&self, head: Head, to: SocketAddr) -> Datagram {
        let realm = self.user.as_ref().map(|_| REALM.to_owned());
        let nonce = Some(self.nonces.make(0, to));
        let attributes = Attributes { realm, nonce, ..Attributes::default() };
        let message = Message::error(head, ErrorCode::Unauthenticated, attributes);
        self.reply(to, message.encode(None))
    }

    fn refuse(&self, head: Head, to: SocketAddr, error: ErrorCode) -> Datagram {
        self.reply(to, Message::error(head, error, Attributes::default()).encode(None))
    }

    fn reply(&self, to: SocketAddr, bytes: Vec<u8>) -> Datagram {
        Datagram { from: self.address, to, bytes }
    }
}

fn peer_attributes(peer: Option<&Attributes>) -> Attributes {
    Attributes {
        peer_mac: peer.and_then(|peer| peer.own_mac),
        peer_candidates: peer.and_then(|peer| peer.candidates.clone()),
        ..Attributes::default()
    }
}

fn exchange_indication(
    from: SocketAddr,
    to: SocketAddr,
    id: SessionId,
    asker: &Attributes,
    key: &SessionKey,
) -> Datagram {
    let attributes = Attributes { session: Some(id), ..peer_attributes(Some(asker)) };
    let message = Message::indication(Method::Exchange, TransactionId([0xee; 12]), attributes);
    Datagram { from, to, bytes: message.encode(Some(&IntegrityKey::session(key))) }
}
