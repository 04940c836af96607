//! Attribute numbers. Those of RAWR lie in the comprehension-required expert-review range
//! (RFC 8489 §18.3).

/// USERNAME (RFC 8489 §14.3).
pub const USERNAME: u16 = 0x0006;
/// MESSAGE-INTEGRITY (RFC 8489 §14.5): read over, since RAWR uses [`MESSAGE_INTEGRITY_SHA256`].
pub const MESSAGE_INTEGRITY: u16 = 0x0008;
/// ERROR-CODE (RFC 8489 §14.8).
pub const ERROR_CODE: u16 = 0x0009;
/// UNKNOWN-ATTRIBUTES (RFC 8489 §14.9).
pub const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
/// LIFETIME (RFC 8656 §18.2), seconds.
pub const LIFETIME: u16 = 0x000d;
/// REALM (RFC 8489 §14.9).
pub const REALM: u16 = 0x0014;
/// NONCE (RFC 8489 §14.10).
pub const NONCE: u16 = 0x0015;
/// MESSAGE-INTEGRITY-SHA256 (RFC 8489 §14.6), always with all 32 bytes.
pub const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
/// XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
pub const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// PADDING (RFC 5780 §7.6).
pub const PADDING: u16 = 0x0026;
/// SOFTWARE (RFC 8489 §14.14).
pub const SOFTWARE: u16 = 0x8022;
/// FINGERPRINT (RFC 8489 §14.7).
pub const FINGERPRINT: u16 = 0x8028;

/// SESSION-ID: 16 bytes.
pub const SESSION_ID: u16 = 0x4e00;
/// SESSION-KEY: 32 bytes, masked where USERNAME is present.
pub const SESSION_KEY: u16 = 0x4e01;
/// ROLE: 0 for A, 1 for B, then three zero bytes.
pub const ROLE: u16 = 0x4e02;
/// EPOCH: 64-bit number.
pub const EPOCH: u16 = 0x4e03;
/// TARGET-MAC: form byte, then the address or its blinded form.
pub const TARGET_MAC: u16 = 0x4e04;
/// OWN-MAC: as TARGET-MAC.
pub const OWN_MAC: u16 = 0x4e05;
/// PEER-MAC: as TARGET-MAC.
pub const PEER_MAC: u16 = 0x4e06;
/// MAC-KEY: 32 bytes, masked where USERNAME is present.
pub const MAC_KEY: u16 = 0x4e07;
/// TARGET-PORT: 16-bit number, then two zero bytes.
pub const TARGET_PORT: u16 = 0x4e08;
/// ROOT-ADDRESS: as XOR-MAPPED-ADDRESS.
pub const ROOT_ADDRESS: u16 = 0x4e09;
/// HOP-LIST: 8 bytes per server passed.
pub const HOP_LIST: u16 = 0x4e0a;
/// HOP-LIMIT: one byte, then three zero bytes.
pub const HOP_LIMIT: u16 = 0x4e0b;
/// DATA-ADDRESS: as XOR-MAPPED-ADDRESS.
pub const DATA_ADDRESS: u16 = 0x4e0c;
/// LEG-STATE: one byte, then three zero bytes.
pub const LEG_STATE: u16 = 0x4e0d;
/// CANDIDATES: sealed, at most 256 bytes.
pub const CANDIDATES: u16 = 0x4e0e;
/// PEER-CANDIDATES: as CANDIDATES.
pub const PEER_CANDIDATES: u16 = 0x4e0f;
/// NAME: UTF-8 in normal form, at most 64 bytes.
pub const NAME: u16 = 0x4e10;
/// PUBLIC-KEY: 32 bytes, of X25519.
pub const PUBLIC_KEY: u16 = 0x4e11;
/// SERVER-KEY: as PUBLIC-KEY.
pub const SERVER_KEY: u16 = 0x4e12;
/// INTRODUCTION: 16 bytes.
pub const INTRODUCTION: u16 = 0x4e13;
/// SEALED: at most 960 bytes.
pub const SEALED: u16 = 0x4e14;
/// HOLDER-ADDRESS: as XOR-MAPPED-ADDRESS, with port 0.
pub const HOLDER_ADDRESS: u16 = 0x4e15;
/// PEER-ADDRESS: as XOR-MAPPED-ADDRESS.
pub const PEER_ADDRESS: u16 = 0x4e16;

/// Whether a receiver that does not know the attribute must refuse the message (RFC 8489 §14).
pub const fn comprehension_required(number: u16) -> bool {
    number < 0x8000
}
