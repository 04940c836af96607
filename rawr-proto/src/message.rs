//! Messages: typed, owned, and their form on the wire (RFC 8489 §5).

use std::fmt;
use std::net::SocketAddr;

use stun_types::attribute::{
    Attribute, AttributeExt, AttributeType, Fingerprint, RawAttribute, XorSocketAddr,
};
use stun_types::message::{
    self as stun, MessageClass, MessageHeader, MessageType, MessageWrite, MessageWriteVec,
};
use subtle::ConstantTimeEq;

use crate::attribute as number;
use crate::bridge::BridgeAttributes;
use crate::credentials::IntegrityKey;
use crate::error_code::ErrorCode;
use crate::method::Method;
use crate::session::{Mac, MacToken, Role, ServerId, SessionId, WireKey};

/// What FINGERPRINT's CRC is combined with (RFC 8489 §14.7).
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// Longest PADDING that is written: a message then still fits the least IPv6 MTU.
const MAX_PADDING: usize = 1000;

/// A STUN message of one of the methods that RAWR uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whether it asks, tells or answers.
    pub class: Class,
    /// What it is about.
    pub method: Method,
    /// Ties an answer to its request.
    pub transaction: TransactionId,
    /// What it says.
    pub attributes: Attributes,
}

impl Message {
    /// A request.
    pub const fn request(
        method: Method,
        transaction: TransactionId,
        attributes: Attributes,
    ) -> Self {
        Self { class: Class::Request, method, transaction, attributes }
    }

    /// An indication.
    pub const fn indication(
        method: Method,
        transaction: TransactionId,
        attributes: Attributes,
    ) -> Self {
        Self { class: Class::Indication, method, transaction, attributes }
    }

    /// The success response to the request `head`.
    pub const fn success(head: Head, attributes: Attributes) -> Self {
        let Head { method, transaction, .. } = head;
        Self { class: Class::Success, method, transaction, attributes }
    }

    /// The error response to the request `head`; `attributes` are those beside ERROR-CODE.
    pub fn error(head: Head, error: ErrorCode, attributes: Attributes) -> Self {
        let Head { method, transaction, .. } = head;
        let attributes = Attributes { error: Some(error), ..attributes };
        Self { class: Class::Error, method, transaction, attributes }
    }

    /// Class, method and transaction.
    pub const fn head(&self) -> Head {
        Head { class: self.class, method: self.method, transaction: self.transaction }
    }

    /// The message's bytes, with MESSAGE-INTEGRITY-SHA256 where a key is given, and FINGERPRINT.
    /// Attributes stand in the order of the protocol document. USERNAME, REALM, NONCE and SOFTWARE
    /// must hold to their limits (RFC 8489 §14), of which the longest is 763 bytes.
    pub fn encode(&self, key: Option<&IntegrityKey>) -> Vec<u8> {
        let mut writer = Writer::new(self);
        writer.credentials(&self.attributes);
        writer.session(&self.attributes);
        writer.answer(&self.attributes);
        writer.finish(key)
    }

    /// As [`Message::encode`], with as much PADDING as makes the message `length` bytes or longer.
    pub fn encode_padded(&self, key: Option<&IntegrityKey>, length: usize) -> Vec<u8> {
        let bytes = self.encode(key);
        let Some(missing) = length.checked_sub(bytes.len()).filter(|missing| *missing > 0) else {
            return bytes;
        };
        let mut padded = self.clone();
        padded.attributes.padding = missing.saturating_sub(4).next_multiple_of(4).max(4);
        padded.encode(key)
    }
}

/// What of a message its header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whether it asks, tells or answers.
    pub class: Class,
    /// What it is about.
    pub method: Method,
    /// Ties an answer to its request.
    pub transaction: TransactionId,
}

/// Whether a message asks, tells or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Wants an answer.
    Request,
    /// Wants none.
    Indication,
    /// A request was granted.
    Success,
    /// A request was refused.
    Error,
}

impl From<MessageClass> for Class {
    fn from(class: MessageClass) -> Self {
        match class {
            MessageClass::Request => Self::Request,
            MessageClass::Indication => Self::Indication,
            MessageClass::Success => Self::Success,
            MessageClass::Error => Self::Error,
        }
    }
}

impl From<Class> for MessageClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Request => Self::Request,
            Class::Indication => Self::Indication,
            Class::Success => Self::Success,
            Class::Error => Self::Error,
        }
    }
}

/// Ties an answer to its request: 96 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionId(pub [u8; 12]);

impl fmt::Display for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        crate::hex::write(f, &self.0)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransactionId({self})")
    }
}

impl From<TransactionId> for stun::TransactionId {
    fn from(id: TransactionId) -> Self {
        let mut bytes = [0; 16];
        bytes[4..].copy_from_slice(&id.0);
        Self::from(u128::from_be_bytes(bytes))
    }
}

impl From<stun::TransactionId> for TransactionId {
    fn from(id: stun::TransactionId) -> Self {
        let bytes = u128::from(id).to_be_bytes();
        Self(std::array::from_fn(|i| bytes[4 + i]))
    }
}

/// What a message says. Every attribute is optional here; what a method needs is the receiver's to
/// check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// USERNAME: whose credentials key this message.
    pub username: Option<String>,
    /// REALM: where those credentials count.
    pub realm: Option<String>,
    /// NONCE.
    pub nonce: Option<String>,
    /// SESSION-ID.
    pub session: Option<SessionId>,
    /// SESSION-KEY, in clear or masked.
    pub session_key: Option<WireKey>,
    /// ROLE: which peer's side the sender is on.
    pub role: Option<Role>,
    /// EPOCH: newer attachments of the same role have greater ones.
    pub epoch: Option<u64>,
    /// TARGET-MAC: the other peer's.
    pub target_mac: Option<MacToken>,
    /// OWN-MAC.
    pub own_mac: Option<MacToken>,
    /// PEER-MAC.
    pub peer_mac: Option<MacToken>,
    /// MAC-KEY, in clear or masked.
    pub mac_key: Option<WireKey>,
    /// TARGET-PORT: of the other peer's data socket.
    pub target_port: Option<u16>,
    /// ROOT-ADDRESS: where the peers agreed to meet at the latest.
    pub root: Option<SocketAddr>,
    /// HOP-LIST: servers passed, first one first. An empty list is not sent.
    pub hops: Vec<ServerId>,
    /// HOP-LIMIT: how many more servers may be passed.
    pub hop_limit: Option<u8>,
    /// DATA-ADDRESS: where the leg's data goes.
    pub data_address: Option<SocketAddr>,
    /// LEG-STATE.
    pub leg_state: Option<LegState>,
    /// CANDIDATES, sealed; at most 256 bytes.
    pub candidates: Option<Vec<u8>>,
    /// PEER-CANDIDATES, sealed; at most 256 bytes.
    pub peer_candidates: Option<Vec<u8>>,
    /// What only Bridge's messages say.
    pub bridge: BridgeAttributes,
    /// LIFETIME, in seconds.
    pub lifetime: Option<u32>,
    /// ERROR-CODE.
    pub error: Option<ErrorCode>,
    /// UNKNOWN-ATTRIBUTES. An empty list is not sent.
    pub unknown: Vec<u16>,
    /// XOR-MAPPED-ADDRESS.
    pub mapped: Option<SocketAddr>,
    /// SOFTWARE.
    pub software: Option<String>,
    /// Length of PADDING's value, in bytes; 0 for none, at most 1,000.
    pub padding: usize,
}

/// How far a leg has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LegState {
    /// The server knows the leg, and no other to join it to.
    Waiting,
    /// The server has joined it to another.
    Paired,
    /// Said by the other peer: the path works from end to end.
    Peer,
}

/// Reads a message.
///
/// # Errors
/// Tells what is no message at all, to be left unanswered, from what can be answered 400.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let header = MessageHeader::from_bytes(bytes).map_err(|_| DecodeError::NotStun)?;
    let length = usize::from(header.data_length());
    if MessageHeader::LENGTH + length != bytes.len() || length % 4 != 0 {
        return Err(DecodeError::NotStun);
    }
    let (class, transaction) = (header.get_type().class().into(), header.transaction_id().into());
    let number = header.get_type().method().value();
    let method = Method::from_number(number);

    let mut reader = Reader::new(bytes, transaction);
    let malformed = reader.read_all()?;
    // RAWR's own methods always carry FINGERPRINT: they share ports with data.
    if !reader.fingerprint && method != Some(Method::Binding) {
        return Err(DecodeError::NotStun);
    }
    let method = method.ok_or(DecodeError::UnknownMethod { class, number, transaction })?;
    let head = Head { class, method, transaction };
    if let Some(attribute) = malformed {
        return Err(DecodeError::Malformed { head, attribute });
    }
    let message = Message { class, method, transaction, attributes: reader.attributes };
    Ok(Decoded { message, bytes, integrity: reader.integrity, unknown: reader.unknown })
}

/// A message as received.
#[derive(Clone, Debug)]
pub struct Decoded<'a> {
    /// What it says. Attributes behind MESSAGE-INTEGRITY-SHA256 are not in it (RFC 8489 §14.6).
    pub message: Message,
    bytes: &'a [u8],
    /// Offset of MESSAGE-INTEGRITY-SHA256.
    integrity: Option<usize>,
    unknown: Vec<u16>,
}

impl Decoded<'_> {
    /// Whether MESSAGE-INTEGRITY-SHA256 is there.
    pub const fn has_integrity(&self) -> bool {
        self.integrity.is_some()
    }

    /// Whether MESSAGE-INTEGRITY-SHA256 is there and was made with `key`.
    pub fn verify(&self, key: &IntegrityKey) -> bool {
        self.integrity.is_some_and(|offset| {
            let claimed = &self.bytes[offset + 4..offset + 36];
            integrity(self.bytes, offset, key).ct_eq(claimed).into()
        })
    }

    /// Attributes that are not known but would have to be (to be listed with 420).
    pub fn unknown_required(&self) -> &[u16] {
        &self.unknown
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not STUN, or with a wrong FINGERPRINT, or one of RAWR's methods without it. Leave it
    /// unanswered; on a data port it is data.
    #[error("not a STUN message")]
    NotStun,
    /// STUN of a method that RAWR does not use.
    #[error("unknown STUN method {number:#05x}")]
    UnknownMethod {
        /// Whether it asks, tells or answers.
        class: Class,
        /// The method.
        number: u16,
        /// Ties an answer to it.
        transaction: TransactionId,
    },
    /// A known attribute has an impossible value or length.
    #[error("malformed attribute {attribute:#06x} in a {:?} {:?}", head.method, head.class)]
    Malformed {
        /// The message's.
        head: Head,
        /// The attribute's number.
        attribute: u16,
    },
}

/// Builds a message's bytes.
pub(crate) struct Writer {
    out: MessageWriteVec,
    transaction: stun::TransactionId,
}

impl Writer {
    fn new(message: &Message) -> Self {
        let method = stun::Method::new(message.method.number());
        let message_type = MessageType::from_class_method(message.class.into(), method);
        let transaction = message.transaction.into();
        let out = MessageWriteVec::with_capacity(320);
        Self { out: stun::Message::builder(message_type, transaction, out), transaction }
    }

    fn credentials(&mut self, a: &Attributes) {
        self.put_some(number::USERNAME, a.username.as_ref().map(String::as_bytes));
        self.put_some(number::REALM, a.realm.as_ref().map(String::as_bytes));
        self.put_some(number::NONCE, a.nonce.as_ref().map(String::as_bytes));
    }

    fn session(&mut self, a: &Attributes) {
        self.put_some(number::SESSION_ID, a.session.as_ref().map(|id| id.0.as_slice()));
        self.put_some(number::SESSION_KEY, a.session_key.as_ref().map(|key| key.0.as_slice()));
        self.put_small(number::ROLE, a.role.map(|role| u8::from(role == Role::B)));
        self.put_some(number::EPOCH, a.epoch.map(u64::to_be_bytes));
        self.put_mac(number::TARGET_MAC, a.target_mac);
        self.put_mac(number::OWN_MAC, a.own_mac);
        self.put_mac(number::PEER_MAC, a.peer_mac);
        self.put_some(number::MAC_KEY, a.mac_key.as_ref().map(|key| key.0.as_slice()));
        let port = a.target_port.map(u16::to_be_bytes);
        self.put_some(number::TARGET_PORT, port.map(|[high, low]| [high, low, 0, 0]));
        self.put_address(number::ROOT_ADDRESS, a.root);
        let hops: Vec<u8> = a.hops.iter().flat_map(|id| id.0).collect();
        self.put_some(number::HOP_LIST, Some(&hops).filter(|hops| !hops.is_empty()));
        self.put_small(number::HOP_LIMIT, a.hop_limit);
    }

    fn answer(&mut self, a: &Attributes) {
        self.put_address(number::DATA_ADDRESS, a.data_address);
        self.put_small(number::LEG_STATE, a.leg_state.map(leg_state_number));
        self.put_some(number::CANDIDATES, a.candidates.as_ref());
        self.put_some(number::PEER_CANDIDATES, a.peer_candidates.as_ref());
        a.bridge.write(self);
        self.put_some(number::LIFETIME, a.lifetime.map(u32::to_be_bytes));
        if let Some(error) = a.error {
            let (class, rest) = ((error.code() / 100) as u8, (error.code() % 100) as u8);
            let value = [&[0, 0, class, rest], error.reason().as_bytes()].concat();
            self.put(number::ERROR_CODE, &value);
        }
        let unknown: Vec<u8> = a.unknown.iter().flat_map(|number| number.to_be_bytes()).collect();
        self.put_some(number::UNKNOWN_ATTRIBUTES, Some(&unknown).filter(|list| !list.is_empty()));
        self.put_address(number::XOR_MAPPED_ADDRESS, a.mapped);
        self.put_some(number::SOFTWARE, a.software.as_ref().map(String::as_bytes));
        if a.padding > 0 {
            self.put(number::PADDING, &[0; MAX_PADDING][..a.padding.min(MAX_PADDING)]);
        }
    }

    fn finish(mut self, key: Option<&IntegrityKey>) -> Vec<u8> {
        if let Some(key) = key {
            let offset = self.out.len();
            self.put(number::MESSAGE_INTEGRITY_SHA256, &[0; 32]);
            let hmac = integrity(&self.out, offset, key);
            self.out[offset + 4..].copy_from_slice(&hmac);
        }
        let offset = self.out.len();
        self.put(number::FINGERPRINT, &[0; 4]);
        let crc = fingerprint(&self.out[..offset], self.out.len());
        self.out[offset + 4..].copy_from_slice(&crc);
        self.out.finish()
    }

    fn put_small(&mut self, number: u16, value: Option<u8>) {
        self.put_some(number, value.map(|value| [value, 0, 0, 0]));
    }

    fn put_mac(&mut self, number: u16, token: Option<MacToken>) {
        match token {
            Some(MacToken::Raw(mac)) => self.put(number, &[&[0], mac.0.as_slice()].concat()),
            Some(MacToken::Blinded(b)) => self.put(number, &[&[1], b.as_slice()].concat()),
            None => {}
        }
    }

    pub(crate) fn put_address(&mut self, number: u16, address: Option<SocketAddr>) {
        if let Some(address) = address {
            let xored = XorSocketAddr::new(address, self.transaction);
            let mut value = [0; 20];
            xored.write_into_unchecked(&mut value);
            self.put(number, &value[..usize::from(xored.length())]);
        }
    }

    pub(crate) fn put_some(&mut self, number: u16, value: Option<impl AsRef<[u8]>>) {
        if let Some(value) = value {
            self.put(number, value.as_ref());
        }
    }

    fn put(&mut self, number: u16, value: &[u8]) {
        self.out.push_attribute_unchecked(&RawAttribute::new(AttributeType::new(number), value));
    }
}

/// Takes a message's attributes apart.
struct Reader<'a> {
    bytes: &'a [u8],
    transaction: TransactionId,
    attributes: Attributes,
    integrity: Option<usize>,
    fingerprint: bool,
    unknown: Vec<u16>,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], transaction: TransactionId) -> Self {
        let attributes = Attributes::default();
        let (integrity, unknown) = (None, Vec::new());
        Self { bytes, transaction, attributes, integrity, fingerprint: false, unknown }
    }

    /// Returns the first malformed attribute.
    fn read_all(&mut self) -> Result<Option<u16>, DecodeError> {
        let mut malformed = None;
        let mut offset = MessageHeader::LENGTH;
        while offset < self.bytes.len() {
            let rest = &self.bytes[offset..];
            let raw = RawAttribute::from_bytes(rest).map_err(|_| DecodeError::NotStun)?;
            if raw.padded_len() > rest.len() {
                return Err(DecodeError::NotStun);
            }
            match raw.get_type().value() {
                number::FINGERPRINT => self.check_fingerprint(offset, &raw.value)?,
                _ if self.integrity.is_some() => {}
                number::MESSAGE_INTEGRITY_SHA256 if raw.value.len() == 32 => {
                    self.integrity = Some(offset);
                }
                number if self.read(number, &raw).is_none() => {
                    malformed = malformed.or(Some(number));
                }
                _ => {}
            }
            offset += raw.padded_len();
        }
        Ok(malformed)
    }

    fn check_fingerprint(&mut self, offset: usize, value: &[u8]) -> Result<(), DecodeError> {
        let is_last = offset + 8 == self.bytes.len();
        if !is_last || fingerprint(&self.bytes[..offset], self.bytes.len()) != value {
            return Err(DecodeError::NotStun);
        }
        self.fingerprint = true;
        Ok(())
    }

    /// Takes an attribute's first occurrence; `None` if it is malformed.
    fn read(&mut self, number: u16, raw: &RawAttribute<'_>) -> Option<()> {
        let value: &[u8] = &raw.value;
        let transaction = self.transaction;
        let a = &mut self.attributes;
        match number {
            number::USERNAME => first(&mut a.username, || text(value, 513)),
            number::REALM => first(&mut a.realm, || text(value, 763)),
            number::NONCE => first(&mut a.nonce, || text(value, 763)),
            number::SOFTWARE => first(&mut a.software, || text(value, 763)),
            number::SESSION_ID => first(&mut a.session, || Some(SessionId(array(value)?))),
            number::SESSION_KEY => first(&mut a.session_key, || Some(WireKey(array(value)?))),
            number::MAC_KEY => first(&mut a.mac_key, || Some(WireKey(array(value)?))),
            number::ROLE => first(&mut a.role, || role(value)),
            number::EPOCH => first(&mut a.epoch, || Some(u64::from_be_bytes(array(value)?))),
            number::TARGET_MAC => first(&mut a.target_mac, || mac(value)),
            number::OWN_MAC => first(&mut a.own_mac, || mac(value)),
            number::PEER_MAC => first(&mut a.peer_mac, || mac(value)),
            number::TARGET_PORT => first(&mut a.target_port, || port(value)),
            number::ROOT_ADDRESS => first(&mut a.root, || address(raw, transaction)),
            number::DATA_ADDRESS => first(&mut a.data_address, || address(raw, transaction)),
            number::XOR_MAPPED_ADDRESS => first(&mut a.mapped, || address(raw, transaction)),
            number::HOP_LIST => first_list(&mut a.hops, value, ServerId),
            number::HOP_LIMIT => first(&mut a.hop_limit, || small(value)),
            number::LEG_STATE => first(&mut a.leg_state, || leg_state(value)),
            number::CANDIDATES => first(&mut a.candidates, || sealed(value)),
            number::PEER_CANDIDATES => first(&mut a.peer_candidates, || sealed(value)),
            number::LIFETIME => first(&mut a.lifetime, || Some(u32::from_be_bytes(array(value)?))),
            number::ERROR_CODE => first(&mut a.error, || error_code(value)),
            number::UNKNOWN_ATTRIBUTES => first_list(&mut a.unknown, value, u16::from_be_bytes),
            number::PADDING => {
                a.padding = if a.padding == 0 { value.len() } else { a.padding };
                Some(())
            }
            number::MESSAGE_INTEGRITY => Some(()),
            number::MESSAGE_INTEGRITY_SHA256 => None,
            _ => {
                let address = || address(raw, transaction);
                if let Some(read) = a.bridge.read(number, value, address) {
                    return read;
                }
                if number::comprehension_required(number) && !self.unknown.contains(&number) {
                    self.unknown.push(number);
                }
                Some(())
            }
        }
    }
}

/// Fills an empty slot, and leaves a full one as it is: of duplicates the first counts.
pub(crate) fn first<T>(slot: &mut Option<T>, parse: impl FnOnce() -> Option<T>) -> Option<()> {
    if slot.is_none() {
        *slot = Some(parse()?);
    }
    Some(())
}

fn first_list<T, const N: usize>(
    slot: &mut Vec<T>,
    value: &[u8],
    parse: impl Fn([u8; N]) -> T,
) -> Option<()> {
    if slot.is_empty() {
        let (chunks, rest) = value.as_chunks();
        if !rest.is_empty() {
            return None;
        }
        slot.extend(chunks.iter().map(|chunk| parse(*chunk)));
    }
    Some(())
}

fn text(value: &[u8], max: usize) -> Option<String> {
    let text = std::str::from_utf8(value).ok()?;
    (value.len() <= max).then(|| text.to_owned())
}

pub(crate) fn array<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    value.try_into().ok()
}

/// One byte; the three after it are left for later use.
fn small(value: &[u8]) -> Option<u8> {
    let [byte, ..] = array::<4>(value)?;
    Some(byte)
}

fn port(value: &[u8]) -> Option<u16> {
    let [high, low, ..] = array::<4>(value)?;
    Some(u16::from_be_bytes([high, low]))
}

fn role(value: &[u8]) -> Option<Role> {
    match small(value)? {
        0 => Some(Role::A),
        1 => Some(Role::B),
        _ => None,
    }
}

fn mac(value: &[u8]) -> Option<MacToken> {
    match value {
        [0, mac @ ..] => Some(MacToken::Raw(Mac(array(mac)?))),
        [1, blinded @ ..] => Some(MacToken::Blinded(array(blinded)?)),
        _ => None,
    }
}

const fn leg_state_number(state: LegState) -> u8 {
    match state {
        LegState::Waiting => 1,
        LegState::Paired => 2,
        LegState::Peer => 3,
    }
}

fn leg_state(value: &[u8]) -> Option<LegState> {
    let number = small(value)?;
    let all = [LegState::Waiting, LegState::Paired, LegState::Peer];
    all.into_iter().find(|state| leg_state_number(*state) == number)
}

fn address(raw: &RawAttribute<'_>, transaction: TransactionId) -> Option<SocketAddr> {
    Some(XorSocketAddr::from_raw(raw).ok()?.addr(transaction.into()))
}

fn sealed(value: &[u8]) -> Option<Vec<u8>> {
    (value.len() <= 256).then(|| value.to_vec())
}

fn error_code(value: &[u8]) -> Option<ErrorCode> {
    let [_, _, class, rest] = *value.first_chunk()?;
    (rest < 100).then(|| ErrorCode::from_code(u16::from(class & 7) * 100 + u16::from(rest)))?
}

/// The HMAC of a message up to `offset`, where MESSAGE-INTEGRITY-SHA256 begins, with the length that
/// the header has if that attribute is the last (RFC 8489 §14.6).
fn integrity(bytes: &[u8], offset: usize, key: &IntegrityKey) -> [u8; 32] {
    let length = ((offset + 36 - MessageHeader::LENGTH) as u16).to_be_bytes();
    key.compute(&[&bytes[..2], &length, &bytes[4..offset]])
}

/// The value of FINGERPRINT that follows `bytes` and is the end of a message of `total` bytes.
fn fingerprint(bytes: &[u8], total: usize) -> [u8; 4] {
    let length = ((total - MessageHeader::LENGTH) as u16).to_be_bytes();
    let crc = Fingerprint::compute(&[&bytes[..2], &length, &bytes[4..]]);
    (u32::from_be_bytes(crc) ^ FINGERPRINT_XOR).to_be_bytes()
}
