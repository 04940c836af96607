//! A TURN client (RFC 8656), message by message: what it sends, and what it reads in answers. Sockets are
//! its user's.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use stun_types::attribute::{AttributeWrite, ErrorCode, Nonce, Realm, Username};
use stun_types::message::{
    IntegrityAlgorithm, IntegrityKey, LongTermKeyCredentials, Message, MessageClass, MessageType,
    MessageWrite, MessageWriteExt as _, MessageWriteVec, Method, TransactionId,
};
use turn_types::attribute::{ChannelNumber, Lifetime, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

/// The user that servers are told of, and the realm that they are in.
pub(crate) const USER: &str = "anna";
pub(crate) const PASSWORD: &str = "correct horse";
pub(crate) const REALM: &str = "rawr";
/// The first channel number.
pub(crate) const CHANNEL: u16 = 0x4000;
/// Longer than any measurement, in seconds; coturn grants no more.
const LIFETIME: u32 = 3600;

/// One client with at most one allocation.
#[derive(Clone)]
pub(crate) struct Client {
    key: IntegrityKey,
    nonce: String,
}

impl Client {
    pub(crate) fn new() -> Self {
        let credentials =
            LongTermKeyCredentials::new(USER.to_owned(), PASSWORD.to_owned(), REALM.to_owned());
        Self { key: credentials.make_key(IntegrityAlgorithm::Sha1), nonce: String::new() }
    }

    /// An Allocate without credentials: the answer has the nonce ([`Self::challenged`]).
    pub(crate) fn first(&self) -> Vec<u8> {
        let mut request = Message::builder_request(ALLOCATE, MessageWriteVec::new());
        let transport = RequestedTransport::new(RequestedTransport::UDP);
        // A new message has room for it, and takes it once.
        let _ = request.add_attribute(&transport);
        request.finish()
    }

    /// Takes the nonce from the answer to [`Self::first`].
    pub(crate) fn challenged(&mut self, answer: &[u8]) -> Result<()> {
        let message = Message::from_bytes(answer).context("the answer is no STUN message")?;
        let nonce = message.attribute::<Nonce>();
        let nonce = nonce.with_context(|| format!("the answer has no nonce: {message}"))?;
        self.nonce = nonce.nonce().to_owned();
        Ok(())
    }

    pub(crate) fn allocate(&self) -> Result<Vec<u8>> {
        let transport = RequestedTransport::new(RequestedTransport::UDP);
        self.sign(ALLOCATE, |_| vec![Box::new(transport), Box::new(Lifetime::new(LIFETIME))])
    }

    /// Asks for a permission for the peer's address.
    pub(crate) fn permit(&self, peer: SocketAddr) -> Result<Vec<u8>> {
        self.sign(CREATE_PERMISSION, |id| vec![Box::new(XorPeerAddress::new(peer, id))])
    }

    /// Binds the first channel.
    pub(crate) fn bind(&self, peer: SocketAddr) -> Result<Vec<u8>> {
        let number = ChannelNumber::new(CHANNEL);
        let peer = |id| XorPeerAddress::new(peer, id);
        self.sign(CHANNEL_BIND, |id| vec![Box::new(number), Box::new(peer(id))])
    }

    /// Refreshes the allocation.
    pub(crate) fn refresh(&self) -> Result<Vec<u8>> {
        self.sign(REFRESH, |_| vec![Box::new(Lifetime::new(LIFETIME))])
    }

    /// Gives the allocation back (RFC 8656 §8).
    pub(crate) fn release(&self) -> Result<Vec<u8>> {
        self.sign(REFRESH, |_| vec![Box::new(Lifetime::new(0))])
    }

    fn sign(
        &self,
        method: Method,
        attributes: impl FnOnce(TransactionId) -> Vec<Box<dyn AttributeWrite>>,
    ) -> Result<Vec<u8>> {
        let transaction = TransactionId::generate();
        let kind = MessageType::from_class_method(MessageClass::Request, method);
        let mut request = Message::builder(kind, transaction, MessageWriteVec::new());
        for attribute in attributes(transaction) {
            request.add_attribute(&*attribute)?;
        }
        request.add_attribute(&Username::new(USER)?)?;
        request.add_attribute(&Realm::new(REALM)?)?;
        request.add_attribute(&Nonce::new(&self.nonce)?)?;
        request.add_message_integrity_with_key(&self.key, IntegrityAlgorithm::Sha1)?;
        Ok(request.finish())
    }
}

/// Whether an answer says that what was asked for is done.
///
/// # Errors
/// The error that it says instead, or that it is none.
pub(crate) fn succeeded(answer: &[u8]) -> Result<()> {
    let message = Message::from_bytes(answer).context("the answer is no STUN message")?;
    let error = message.attribute::<ErrorCode>();
    let error = error.map_or_else(|_| String::new(), |it| format!("{} {}", it.code(), it.reason()));
    ensure!(message.class() == MessageClass::Success, "{message}: {error}");
    Ok(())
}

/// The error code of an answer.
pub(crate) fn error_code(answer: &[u8]) -> Option<u16> {
    Some(Message::from_bytes(answer).ok()?.attribute::<ErrorCode>().ok()?.code())
}
