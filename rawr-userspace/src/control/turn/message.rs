//! What comes from clients, and what goes back to them.

use std::net::SocketAddr;

use rawr_proto::{Datagram, LongTermIntegrity, StunError, classify, parse_stun};
use stun_types::AddressFamily;
use stun_types::attribute::{
    Attribute, AttributeFromRaw, AttributeStaticType, AttributeType, AttributeWrite, ErrorCode,
    RawAttribute, XorMappedAddress,
};
use stun_types::message::{
    Message, MessageClass, MessageHeader, MessageType, MessageWrite, MessageWriteVec, Method,
    StunParseError, TransactionId,
};
use turn_types::attribute::{
    AddressErrorCode, ConnectionId, Lifetime, ReservationToken, XorPeerAddress, XorRelayedAddress,
};
use turn_types::message::{
    ALLOCATE, CHANNEL_BIND, CONNECT, CONNECTION_BIND, CREATE_PERMISSION, REFRESH, SEND,
};

use crate::control::authenticate::Authenticated;
use crate::control::client::Client;
use crate::control::counters::Count;
use crate::control::server::Server;
use crate::control::stun::{Head, Refusal};
use crate::control::time::Now;

/// ADDITIONAL-ADDRESS-FAMILY by the number that it had before RFC 8656 (§18.11) gave it another. coturn
/// and its clients still use it; it is nobody else's, and understanding it is optional.
pub(super) const ADDITIONAL_ADDRESS_FAMILY_DRAFT: AttributeType = AttributeType::new(0x8032);

/// MOBILITY-TICKET (RFC 8016 §3.1).
pub(super) const MOBILITY_TICKET: AttributeType = AttributeType::new(0x8030);

/// Attributes with which comprehension is required, and that are understood: by TURN itself, or by
/// whoever has checked the credentials.
const UNDERSTOOD: [u16; 22] = [
    0x0006, 0x0008, 0x000c, 0x000d, 0x0012, 0x0013, 0x0014, 0x0015, 0x0017, 0x0018, 0x0019, 0x001a,
    0x001b, 0x001c, 0x001d, 0x001e, 0x0022, 0x002a, 0x0009, 0x000a, 0x0016, 0x0020,
];

/// Whether what came to the STUN port is TURN's: ChannelData, or a message of one of its methods.
pub(in crate::control) fn is_turn(bytes: &[u8]) -> bool {
    match classify(bytes) {
        Datagram::ChannelData => true,
        Datagram::Stun => MessageHeader::from_bytes(bytes).is_ok_and(|header| {
            matches!(header.get_type().method().value(), 0x003 | 0x004 | 0x006..=0x00c)
        }),
        Datagram::Other => false,
    }
}

/// A request or an indication of a client.
pub(super) struct Request<'a> {
    pub(super) now: Now,
    pub(super) client: Client,
    pub(super) message: &'a Message<'a>,
}

impl<'a> Request<'a> {
    /// An attribute that may be missing.
    ///
    /// # Errors
    /// It cannot be read: 400.
    pub(super) fn optional<A>(&self) -> Result<Option<A>, Refusal>
    where
        A: AttributeFromRaw<'a> + AttributeStaticType,
    {
        match self.message.attribute::<A>() {
            Ok(attribute) => Ok(Some(attribute)),
            Err(StunParseError::MissingAttribute(_)) => Ok(None),
            Err(_) => Err(bad_request()),
        }
    }

    /// An attribute without which there is no sense in it: 400 if it is missing.
    pub(super) fn required<A>(&self) -> Result<A, Refusal>
    where
        A: AttributeFromRaw<'a> + AttributeStaticType,
    {
        self.optional()?.ok_or_else(bad_request)
    }

    /// REQUESTED-ADDRESS-FAMILY or ADDITIONAL-ADDRESS-FAMILY: 440 where it is none that we know.
    pub(super) fn family(
        &self,
        attribute: AttributeType,
    ) -> Result<Option<AddressFamily>, Refusal> {
        let Some(raw) = self.message.raw_attribute(attribute) else { return Ok(None) };
        match *raw.value {
            [1, _, _, _] => Ok(Some(AddressFamily::IPV4)),
            [2, _, _, _] => Ok(Some(AddressFamily::IPV6)),
            [_, _, _, _] => {
                Err(Refusal::new(StunError::AddressFamilyNotSupported, Count::TurnFamily))
            }
            _ => Err(bad_request()),
        }
    }

    /// The peers that the message names.
    pub(super) fn peers(&self) -> impl Iterator<Item = Result<SocketAddr, Refusal>> {
        let transaction = self.message.transaction_id();
        let attributes = self.message.iter_attributes();
        attributes.filter(|(_, raw)| raw.get_type() == XorPeerAddress::TYPE).map(move |(_, raw)| {
            let peer = XorPeerAddress::from_raw_ref(&raw).map_err(|_| bad_request())?;
            Ok(peer.addr(transaction))
        })
    }

    /// The peer that the message names first.
    pub(super) fn peer(&self) -> Result<SocketAddr, Refusal> {
        self.peers().next().ok_or_else(bad_request)?
    }

    /// Whether there is an attribute that would have to be understood, and is not.
    pub(super) fn has_unknown(&self) -> bool {
        !self.unknown().is_empty()
    }

    /// Attributes that would have to be understood, and are not (RFC 8489 §6.3.1).
    fn unknown(&self) -> Vec<AttributeType> {
        let types = self.message.iter_attributes().map(|(_, raw)| raw.get_type());
        types
            .filter(|it| it.comprehension_required() && !UNDERSTOOD.contains(&it.value()))
            .collect()
    }
}

/// What becomes of a granted request.
pub(super) enum Answer {
    Now(Success),
    /// It follows when a port is open, or a peer has been reached.
    Later,
}

/// The attributes of a success response.
#[derive(Clone, Debug, Default)]
pub(super) struct Success {
    pub(super) relayed: [Option<SocketAddr>; 2],
    pub(super) mapped: Option<SocketAddr>,
    /// Seconds.
    pub(super) lifetime: Option<u32>,
    /// The family that no address was found of, and why.
    pub(super) refused: Option<(AddressFamily, StunError)>,
    pub(super) token: Option<u64>,
    pub(super) connection: Option<u32>,
    pub(super) ticket: Option<Vec<u8>>,
}

impl Success {
    fn encode(&self, head: &Head, key: &LongTermIntegrity) -> Vec<u8> {
        let transaction = head.transaction;
        let mut writer = head.success();
        for relayed in self.relayed.iter().flatten() {
            put(&mut writer, &XorRelayedAddress::new(*relayed, transaction));
        }
        if let Some(mapped) = self.mapped {
            put(&mut writer, &XorMappedAddress::new(mapped, transaction));
        }
        if let Some(lifetime) = self.lifetime {
            put(&mut writer, &Lifetime::new(lifetime));
        }
        if let Some((family, code)) = self.refused {
            let error = ErrorCode::builder(code.code()).reason("").build();
            error.into_iter().for_each(|it| put(&mut writer, &AddressErrorCode::new(family, it)));
        }
        if let Some(token) = self.token {
            put(&mut writer, &ReservationToken::new(token));
        }
        if let Some(connection) = self.connection {
            put(&mut writer, &ConnectionId::new(connection));
        }
        if let Some(ticket) = &self.ticket {
            put(&mut writer, &RawAttribute::new(MOBILITY_TICKET, ticket));
        }
        head.finish(writer, Some(key))
    }
}

impl Server {
    /// Takes what [`is_turn`].
    pub(in crate::control) fn handle_turn(&mut self, now: Now, client: &Client, bytes: &[u8]) {
        if classify(bytes) == Datagram::ChannelData {
            self.channel_data(now, client, bytes);
            return;
        }
        let Some(message) = parse_stun(bytes) else {
            self.counters.add(Count::Malformed);
            return;
        };
        let request = Request { now, client: *client, message: &message };
        match (message.class(), message.method()) {
            (MessageClass::Request, _) => self.turn_request(&request),
            (MessageClass::Indication, SEND) => self.send_indication(&request),
            (MessageClass::Indication | MessageClass::Success | MessageClass::Error, _) => {
                self.counters.add(Count::Unexpected);
            }
        }
    }

    fn turn_request(&mut self, request: &Request<'_>) {
        let Request { now, client, message } = request;
        let head = Head::of(message);
        let who = match self.authenticate(*now, client, message) {
            Ok(who) => who,
            Err(refusal) => {
                self.refuse_stun(*now, client, &head, refusal);
                return;
            }
        };
        match self.turn_dispatch(request, &who) {
            Ok(Answer::Now(success)) => self.send_success(client, &head, &who.key, &success),
            Ok(Answer::Later) => {}
            Err(refusal) => self.refuse_stun(*now, client, &head, refusal.signed(&who.key)),
        }
    }

    fn turn_dispatch(
        &mut self,
        request: &Request<'_>,
        who: &Authenticated,
    ) -> Result<Answer, Refusal> {
        let unknown = request.unknown();
        if !unknown.is_empty() {
            return Err(Refusal::unknown(unknown));
        }
        match request.message.method() {
            ALLOCATE => self.allocate(request, who),
            REFRESH => self.refresh_allocation(request, who),
            CREATE_PERMISSION => self.create_permission(request, who),
            CHANNEL_BIND => self.bind_channel(request, who),
            CONNECT => self.connect_peer(request, who),
            CONNECTION_BIND => self.bind_connection(request, who),
            _ => Err(bad_request()),
        }
    }

    pub(super) fn send_success(
        &mut self,
        client: &Client,
        head: &Head,
        key: &LongTermIntegrity,
        success: &Success,
    ) {
        let bytes = success.encode(head, key);
        self.answer(client, bytes);
    }
}

/// An indication without an answer.
pub(super) fn indication(method: Method, transaction: TransactionId) -> MessageWriteVec {
    let kind = MessageType::from_class_method(MessageClass::Indication, method);
    Message::builder(kind, transaction, MessageWriteVec::new())
}

/// Appends an attribute. Their number and sizes are those of this file: they always fit.
pub(super) fn put(writer: &mut MessageWriteVec, attribute: &dyn AttributeWrite) {
    writer.push_attribute_unchecked(attribute);
}

pub(super) fn bad_request() -> Refusal {
    Refusal::new(StunError::BadRequest, Count::BadRequest)
}
