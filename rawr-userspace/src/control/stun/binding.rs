//! Binding: which address does a client come from? (RFC 8489 §7; with two addresses, RFC 5780 §6)

use std::net::SocketAddr;

use rawr_proto::{
    ChangeRequest, OtherAddress, Padding, ResponseOrigin, ResponsePort, StunError, parse_stun,
};
use stun_types::attribute::{
    Attribute, AttributeFromRaw, AttributeStaticType, AttributeType, XorMappedAddress,
};
use stun_types::message::{Message, MessageWrite};

use super::answer::{Head, Refusal, Reply};
use super::behaviour::Behaviour;
use crate::control::authenticate::CREDENTIALS;
use crate::control::client::{Client, Over};
use crate::control::counters::Count;
use crate::control::limits::Prefix;
use crate::control::server::Server;
use crate::control::time::Now;

/// What a client may ask for beyond its address.
#[derive(Clone, Copy, Debug, Default)]
struct Wish {
    change: ChangeRequest,
    port: Option<u16>,
    padding: Option<u16>,
}

impl Server {
    /// Answers a Binding request. Nobody need be a user for it.
    pub(in crate::control) fn binding(&mut self, now: Now, client: &Client, bytes: &[u8]) {
        let Some(message) = parse_stun(bytes) else {
            self.counters.add(Count::Malformed);
            return;
        };
        let head = Head::of(&message);
        let behaviour = self.behaviour_at(client);
        // Over a stream an answer goes back where its request came from.
        let changeable = behaviour.filter(|_| client.over == Over::Udp);
        match wish(&message, changeable) {
            Ok(wish) if wish.port.is_some() && !self.allows_response_port(now, client) => {
                self.counters.add(Count::UnverifiedRate);
            }
            Ok(wish) => {
                self.counters.add(Count::Binding);
                let reply = success(client, &head, behaviour, wish);
                self.answer_sparingly(now, client, &head, reply);
            }
            Err(refusal) => self.refuse_stun(now, client, &head, refusal.unverified()),
        }
    }

    /// The addresses that the client can ask over the transport that it has come over; `None` if there is
    /// but one.
    fn behaviour_at(&self, client: &Client) -> Option<Behaviour> {
        let all = match client.over {
            Over::Udp => &self.config.behaviours[..],
            Over::Tcp(_) => &self.config.behaviours_tcp,
            Over::Tls(_) => &self.config.behaviours_tls,
            Over::Dtls(_) => &[],
        };
        all.iter().copied().find(|behaviour| behaviour.sockets().contains(&client.local))
    }

    /// An answer to another port goes to one that may know nothing of it (RFC 5780 §9).
    fn allows_response_port(&mut self, now: Now, client: &Client) -> bool {
        self.response_ports.allow(now.monotonic, Prefix::of(client.remote.ip()))
    }
}

fn wish(message: &Message<'_>, behaviour: Option<Behaviour>) -> Result<Wish, Refusal> {
    let discovery = [ChangeRequest::TYPE, ResponsePort::TYPE];
    let unknown: Vec<AttributeType> = message
        .iter_attributes()
        .map(|(_, attribute)| attribute.get_type())
        .filter(|kind| kind.comprehension_required() && *kind != Padding::TYPE)
        .filter(|kind| !CREDENTIALS.contains(kind))
        .filter(|kind| behaviour.is_none() || !discovery.contains(kind))
        .collect();
    if !unknown.is_empty() {
        return Err(Refusal::unknown(unknown));
    }
    if behaviour.is_none() {
        return Ok(Wish::default());
    }
    let bad_request = || Refusal::new(StunError::BadRequest, Count::BadRequest);
    let change = message.raw_attribute(ChangeRequest::TYPE);
    let change = change.map(|raw| ChangeRequest::from_raw_ref(&raw)).transpose();
    let port = message.raw_attribute(ResponsePort::TYPE);
    let port = port.map(|raw| ResponsePort::from_raw_ref(&raw)).transpose();
    let padding = message.raw_attribute(Padding::TYPE).map(|raw| raw.length());
    let (Ok(change), Ok(port)) = (change, port) else { return Err(bad_request()) };
    let port = port.map(|ResponsePort(port)| port);
    // Both together would send fragments to a port that has not asked for them (RFC 5780 §6.1).
    if port == Some(0) || port.is_some() && padding.is_some() {
        return Err(bad_request());
    }
    Ok(Wish { change: change.unwrap_or_default(), port, padding })
}

fn success(client: &Client, head: &Head, behaviour: Option<Behaviour>, wish: Wish) -> Reply {
    let mut out = head.success();
    out.push_attribute_unchecked(&XorMappedAddress::new(
        canonical(client.remote),
        head.transaction,
    ));
    let both = ChangeRequest { ip: true, port: true };
    let origin = behaviour.and_then(|behaviour| behaviour.changed(client.local, wish.change));
    let other = behaviour.and_then(|behaviour| behaviour.changed(client.local, both));
    if let Some((origin, other)) = origin.zip(other) {
        out.push_attribute_unchecked(&ResponseOrigin(origin));
        out.push_attribute_unchecked(&OtherAddress(other));
        // As much as came, less what the answer's other attributes take: RFC 5780 §6.1 would have the
        // interface's MTU, which is for anybody to multiply traffic with.
        if let Some((wanted, room)) = wish.padding.zip(head.room_after(&out)) {
            out.push_attribute_unchecked(&Padding { length: wanted.min(room) & !3 });
        }
    }
    let to = wish.port.map_or(client.remote, |port| SocketAddr::new(client.remote.ip(), port));
    Reply { from: origin.unwrap_or(client.local), to, bytes: head.finish(out, None) }
}

/// IPv4 where the socket's family made it IPv6: the client wants to know what it is seen as.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
