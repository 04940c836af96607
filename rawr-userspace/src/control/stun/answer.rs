//! Answers to STUN and TURN requests, and the way they leave.

use std::net::SocketAddr;

use rawr_proto::{LongTermIntegrity, PasswordAlgorithm, StunError};
use stun_types::attribute::{
    AttributeStaticType, AttributeType, ErrorCode, Fingerprint, Nonce, PasswordAlgorithms,
    RawAttribute, Realm, UnknownAttributes,
};
use stun_types::message::{
    Message, MessageClass, MessageType, MessageWrite, MessageWriteExt, MessageWriteVec, Method,
    TransactionId,
};

use crate::control::client::{Client, Over};
use crate::control::command::Source;
use crate::control::counters::Count;
use crate::control::limits::Prefix;
use crate::control::server::Server;
use crate::control::time::Now;

/// What an answer takes over from its request.
#[derive(Clone, Copy, Debug)]
pub(in crate::control) struct Head {
    pub(in crate::control) method: Method,
    pub(in crate::control) transaction: TransactionId,
    /// Whether the request carries FINGERPRINT. If so its answer does.
    fingerprint: bool,
    /// Bytes of the request.
    length: usize,
}

impl Head {
    pub(in crate::control) fn of(message: &Message<'_>) -> Self {
        Self {
            method: message.method(),
            transaction: message.transaction_id(),
            fingerprint: message.has_attribute(Fingerprint::TYPE),
            length: message.as_bytes().len(),
        }
    }

    /// How long the value of one more attribute may be without making the answer longer than its request.
    pub(super) fn room_after(&self, out: &MessageWriteVec) -> Option<u16> {
        let fingerprint = if self.fingerprint { 8 } else { 0 };
        let room = self.length.checked_sub(out.len() + fingerprint + 4)?;
        Some(u16::try_from(room).unwrap_or(u16::MAX))
    }

    /// Begins the success response.
    pub(in crate::control) fn success(&self) -> MessageWriteVec {
        self.begin(MessageClass::Success)
    }

    /// Ends an answer: integrity where there is a key, FINGERPRINT where the request had it.
    pub(in crate::control) fn finish(
        &self,
        mut out: MessageWriteVec,
        key: Option<&LongTermIntegrity>,
    ) -> Vec<u8> {
        if let Some(key) = key {
            key.sign(&mut out);
        }
        if self.fingerprint {
            out.add_fingerprint().expect("the message has no FINGERPRINT yet");
        }
        out.finish()
    }

    fn begin(&self, class: MessageClass) -> MessageWriteVec {
        let kind = MessageType::from_class_method(class, self.method);
        Message::builder(kind, self.transaction, MessageWriteVec::with_capacity(160))
    }
}

/// An answer over UDP that need not leave from where its request came, nor go to where that came from.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
}

/// A refused request: an error response, or silence.
#[derive(Debug)]
pub(in crate::control) struct Refusal {
    pub(in crate::control) code: StunError,
    pub(in crate::control) count: Count,
    /// Whether REALM, NONCE and PASSWORD-ALGORITHMS go with it.
    challenge: bool,
    answered: Answered,
    /// UNKNOWN-ATTRIBUTES.
    unknown: Vec<AttributeType>,
    /// ALTERNATE-SERVER, ADDRESS-ERROR-CODE and the like.
    attributes: Vec<RawAttribute<'static>>,
    /// Known once the request's integrity has been checked.
    key: Option<Box<LongTermIntegrity>>,
}

/// To whom an error response goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answered {
    /// To a source that has shown to receive at its address.
    Always,
    /// To one that has not: not too often, and not too long.
    Sparingly,
    Never,
}

impl Refusal {
    /// An error response to a request with a valid nonce.
    pub(in crate::control) fn new(code: StunError, count: Count) -> Self {
        Self {
            code,
            count,
            challenge: false,
            answered: Answered::Always,
            unknown: Vec::new(),
            attributes: Vec::new(),
            key: None,
        }
    }

    /// 401 or 438 to a source that may be forged, with what the client needs to come back.
    pub(in crate::control) fn challenge(code: StunError, count: Count) -> Self {
        Self { challenge: true, answered: Answered::Sparingly, ..Self::new(code, count) }
    }

    /// No answer; it is only counted.
    pub(in crate::control) fn silent(code: StunError, count: Count) -> Self {
        Self { answered: Answered::Never, ..Self::new(code, count) }
    }

    /// 420, with each of these listed once (RFC 8489 §6.3.1).
    pub(in crate::control) fn unknown(mut unknown: Vec<AttributeType>) -> Self {
        unknown.sort_unstable();
        unknown.dedup();
        Self { unknown, ..Self::new(StunError::UnknownAttribute, Count::UnknownAttribute) }
    }

    /// The source has shown a valid nonce.
    pub(in crate::control) fn verified(self) -> Self {
        Self { answered: Answered::Always, ..self }
    }

    /// The source may be forged.
    pub(in crate::control) fn unverified(self) -> Self {
        Self { answered: Answered::Sparingly, ..self }
    }

    /// With a further attribute.
    pub(in crate::control) fn with(mut self, attribute: RawAttribute<'static>) -> Self {
        self.attributes.push(attribute);
        self
    }

    /// The answer is signed.
    pub(in crate::control) fn signed(self, key: &LongTermIntegrity) -> Self {
        Self { key: Some(Box::new(key.clone())), ..self }
    }
}

impl Server {
    /// Sends the error response of a refusal, and counts it.
    pub(in crate::control) fn refuse_stun(
        &mut self,
        now: Now,
        client: &Client,
        head: &Head,
        refusal: Refusal,
    ) {
        self.counters.add(refusal.count);
        match refusal.answered {
            Answered::Always => {
                let bytes = self.error_response(now, client, head, &refusal);
                self.answer(client, bytes);
            }
            Answered::Sparingly => {
                let bytes = self.error_response(now, client, head, &refusal);
                let reply = Reply { from: client.local, to: client.remote, bytes };
                self.answer_sparingly(now, client, head, reply);
            }
            Answered::Never => {}
        }
    }

    /// Sends an answer to a client, over the transport that it came by.
    pub(in crate::control) fn answer(&mut self, client: &Client, bytes: Vec<u8>) {
        let udp = Source::Control(client.local);
        let from = client.connection().map_or(udp, Source::Connection);
        self.transmit(from, client.remote, bytes);
    }

    /// Answers a source that may be forged: not too often, and over UDP with no more bytes than came,
    /// but for the clients of STUN and TURN, which never pad their first request.
    pub(super) fn answer_sparingly(
        &mut self,
        now: Now,
        client: &Client,
        head: &Head,
        reply: Reply,
    ) {
        let Reply { from, to, bytes } = reply;
        let longer = client.over == Over::Udp && bytes.len() > head.length;
        if longer && !self.config.answer_short_binding {
            self.counters.add(Count::TooLong);
        } else if self.may_answer(now, client) {
            let udp = Source::Control(from);
            let from = client.connection().map_or(udp, Source::Connection);
            self.transmit(from, to, bytes);
        }
    }

    /// Who comes over a stream has not forged its address, and would not ask again.
    fn may_answer(&mut self, now: Now, client: &Client) -> bool {
        if client.over == Over::Udp {
            return self.allow_unverified(now, client.remote);
        }
        let allowed = self.requests.allow(now.monotonic, Prefix::of(client.remote.ip()));
        if !allowed {
            self.counters.add(Count::RequestRate);
        }
        allowed
    }

    fn error_response(
        &mut self,
        now: Now,
        client: &Client,
        head: &Head,
        refusal: &Refusal,
    ) -> Vec<u8> {
        let mut out = head.begin(MessageClass::Error);
        let (class, number) = refusal.code.digits();
        // The phrase is for people, and only who has shown to be a user gets the bytes.
        let phrase = refusal.key.as_ref().map_or("", |_| refusal.code.reason());
        let value = [&[0, 0, class, number], phrase.as_bytes()].concat();
        out.push_attribute_unchecked(&RawAttribute::new(ErrorCode::TYPE, &value));
        if !refusal.unknown.is_empty() {
            out.push_attribute_unchecked(&UnknownAttributes::new(&refusal.unknown));
        }
        if refusal.challenge {
            self.counters.add(Count::Challenged);
            let nonce = self.nonces.make(now.unix.as_secs(), client.remote);
            let realm = self.config.realm.as_bytes();
            out.push_attribute_unchecked(&RawAttribute::new(Realm::TYPE, realm));
            out.push_attribute_unchecked(&RawAttribute::new(Nonce::TYPE, nonce.as_bytes()));
            let offered = &PasswordAlgorithm::OFFERED;
            out.push_attribute_unchecked(&RawAttribute::new(PasswordAlgorithms::TYPE, offered));
            #[cfg(feature = "oauth")]
            if let Some(server) = &self.config.tokens {
                let name = rawr_proto::ThirdPartyAuthorization(server.name.clone());
                out.push_attribute_unchecked(&name);
            }
        }
        for attribute in &refusal.attributes {
            out.push_attribute_unchecked(attribute);
        }
        head.finish(out, refusal.key.as_deref())
    }
}
