//! Binding requests and their answers (RFC 8489 §7, RFC 5780 §7).

use std::net::SocketAddr;

use rawr_proto::{ChangeRequest, OtherAddress, ResponsePort, TransactionId, parse_stun};
use stun_types::attribute::{AttributeType, AttributeWrite, RawAttribute, XorMappedAddress};
use stun_types::message::{
    BINDING, Message, MessageClass, MessageType, MessageWrite, MessageWriteVec,
};

/// SOFTWARE (RFC 8489 §14.14), so long that no answer to the request is longer than it: then servers
/// that let nobody use them to multiply traffic answer, too.
const SOFTWARE: &[u8; 72] =
    b"rawr: a host wants to know how the NATs before it behave (RFC 5780 \xc2\xa74).";
const SOFTWARE_TYPE: AttributeType = AttributeType::new(0x8022);

/// What a request asks for beyond the address it comes from.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Wish {
    pub(super) change: Option<ChangeRequest>,
    pub(super) port: Option<ResponsePort>,
}

/// An answer of a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) transaction: TransactionId,
    /// Where the request came from; `None` where it was refused.
    pub(super) seen: Option<SocketAddr>,
    /// OTHER-ADDRESS (RFC 5780 §7.4).
    pub(super) other: Option<SocketAddr>,
}

/// A Binding request.
pub(super) fn request(transaction: TransactionId, wish: Wish) -> Vec<u8> {
    let mut out = begin(MessageClass::Request, transaction);
    if let Some(change) = wish.change {
        push(&mut out, &change);
    }
    if let Some(port) = wish.port {
        push(&mut out, &port);
    }
    push(&mut out, &RawAttribute::new(SOFTWARE_TYPE, SOFTWARE));
    out.finish()
}

/// A Binding indication, which nobody answers.
pub(super) fn indication(transaction: TransactionId) -> Vec<u8> {
    begin(MessageClass::Indication, transaction).finish()
}

/// The transaction of a Binding indication.
pub(super) fn read_indication(bytes: &[u8]) -> Option<TransactionId> {
    let message = parse_stun(bytes)?;
    let is_ours = message.has_class(MessageClass::Indication) && message.has_method(BINDING);
    is_ours.then(|| message.transaction_id().into())
}

/// Reads an answer; `None` for what is none, or does not make sense.
pub(super) fn read(bytes: &[u8]) -> Option<Answer> {
    let message = parse_stun(bytes)?;
    if !message.has_method(BINDING) {
        return None;
    }
    let transaction = message.transaction_id().into();
    match message.class() {
        MessageClass::Success => {
            // XOR-MAPPED-ADDRESS alone: NATs have been seen to rewrite addresses in clear.
            let mapped = message.attribute::<XorMappedAddress>().ok()?;
            let seen = mapped.addr(message.transaction_id());
            let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
            let other = message.attribute::<OtherAddress>().ok().map(|OtherAddress(other)| other);
            Some(Answer { transaction, seen: Some(seen), other })
        }
        MessageClass::Error => Some(Answer { transaction, seen: None, other: None }),
        MessageClass::Request | MessageClass::Indication => None,
    }
}

fn begin(class: MessageClass, transaction: TransactionId) -> MessageWriteVec {
    let kind = MessageType::from_class_method(class, BINDING);
    Message::builder(kind, transaction.into(), MessageWriteVec::with_capacity(112))
}

fn push(out: &mut MessageWriteVec, attribute: &dyn AttributeWrite) {
    out.push_attribute_unchecked(attribute);
}

#[cfg(test)]
mod tests {
    use stun_types::message::MessageWriteExt;

    use super::*;

    const TRANSACTION: TransactionId = TransactionId([7; 12]);

    fn success(attributes: &[&dyn AttributeWrite]) -> Vec<u8> {
        let mut out = begin(MessageClass::Success, TRANSACTION);
        attributes.iter().for_each(|each| push(&mut out, *each));
        out.add_fingerprint().unwrap();
        out.finish()
    }

    #[test]
    fn answers_are_read() {
        let seen: SocketAddr = "[2001:db8::7]:4000".parse().unwrap();
        let mapped = XorMappedAddress::new(seen, TRANSACTION.into());
        let other: SocketAddr = "[2001:db8::2]:3479".parse().unwrap();
        let bytes = success(&[&mapped, &OtherAddress(other)]);
        let expected = Answer { transaction: TRANSACTION, seen: Some(seen), other: Some(other) };
        assert_eq!(read(&bytes), Some(expected));
        assert_eq!(read(&bytes[..bytes.len() - 4]), None);
        assert_eq!(read(&success(&[])), None);
        let refused = begin(MessageClass::Error, TRANSACTION).finish();
        assert_eq!(read(&refused).map(|answer| answer.seen), Some(None));
    }

    #[test]
    fn no_answer_is_longer_than_its_request() {
        let bytes = request(TRANSACTION, Wish::default());
        assert_eq!(read(&bytes), None);
        // Header, and three addresses of IPv6 in attributes.
        assert!(bytes.len() >= 20 + 3 * 24, "{} bytes", bytes.len());
        let both = ChangeRequest { ip: true, port: true };
        let wish = Wish { change: Some(both), port: Some(ResponsePort(4000)) };
        let message_bytes = request(TRANSACTION, wish);
        let message = parse_stun(&message_bytes).unwrap();
        assert_eq!(message.attribute::<ChangeRequest>().unwrap(), both);
        assert_eq!(message.attribute::<ResponsePort>().unwrap(), ResponsePort(4000));
    }

    #[test]
    fn indications_are_told_from_requests() {
        assert_eq!(read_indication(&indication(TRANSACTION)), Some(TRANSACTION));
        assert_eq!(read_indication(&request(TRANSACTION, Wish::default())), None);
    }
}
