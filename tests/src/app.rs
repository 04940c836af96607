//! A real-time application over UDP, as it sends and judges what it receives: numbered, time-stamped
//! datagrams whose every byte is covered by a checksum.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Shortest body: stream, number, time stamp, checksum.
const BODY: usize = 4 + 8 + 8 + 4;
/// Begins a plain datagram as RTP would (RFC 3550 §5.1: version 2, a dynamic payload type).
const PLAIN: [u8; 4] = [0x80, 0x60, 0x00, 0x00];
const STUN_HEADER: usize = 20;
const STUN_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
/// Comprehension-optional and unassigned, so any STUN agent skips it.
const BODY_ATTRIBUTE: [u8; 2] = [0xc0, 0x5e];
const FINGERPRINT: [u8; 4] = [0x80, 0x28, 0x00, 0x04];
const FINGERPRINT_MASK: u32 = 0x5354_554e;

/// What the datagrams look like to whoever carries them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    /// Like RTP.
    Plain,
    /// STUN Binding requests with FINGERPRINT, as ICE connectivity checks are (RFC 8445 §7).
    Stun,
}

/// One datagram of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Tells this stream from others.
    pub stream: u32,
    /// Counts from zero.
    pub number: u64,
    /// When it was sent, in nanoseconds of the host's monotonic clock.
    pub sent_at: u64,
}

impl Datagram {
    /// The bytes to send: `length` of them, or as few more as the shape needs.
    pub fn encode(&self, shape: Shape, length: usize) -> Vec<u8> {
        match shape {
            Shape::Plain => {
                let mut bytes = PLAIN.to_vec();
                self.append_body(&mut bytes, length.saturating_sub(PLAIN.len()));
                bytes
            }
            Shape::Stun => self.encode_stun(length),
        }
    }

    /// Reads a datagram back; `None` if any of its bytes has changed on the way.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if let Some(body) = bytes.strip_prefix(&PLAIN) {
            return Self::decode_body(body);
        }
        let (message, fingerprint) = bytes.split_last_chunk::<8>()?;
        let (header, attribute) = message.split_at_checked(STUN_HEADER)?;
        let (attribute_header, body) = attribute.split_at_checked(4)?;
        let datagram = Self::decode_body(body)?;
        let expected = datagram.stun_header(bytes.len() - STUN_HEADER);
        let intact = header == expected
            && attribute_header[..2] == BODY_ATTRIBUTE
            && usize::from(u16::from_be_bytes([attribute_header[2], attribute_header[3]]))
                == body.len()
            && *fingerprint == fingerprint_of(message);
        intact.then_some(datagram)
    }

    fn encode_stun(&self, length: usize) -> Vec<u8> {
        let overhead = STUN_HEADER + 4 + 8;
        let body_length = length.saturating_sub(overhead).max(BODY) & !3;
        let mut bytes = self.stun_header(4 + body_length + 8).to_vec();
        bytes.extend(BODY_ATTRIBUTE);
        bytes.extend(length_field(body_length));
        self.append_body(&mut bytes, body_length);
        let fingerprint = fingerprint_of(&bytes);
        bytes.extend(fingerprint);
        bytes
    }

    /// The transaction id is the stream and the number, so all are different.
    fn stun_header(&self, attributes: usize) -> [u8; STUN_HEADER] {
        let mut header = [0; STUN_HEADER];
        header[..2].copy_from_slice(&BINDING_REQUEST);
        header[2..4].copy_from_slice(&length_field(attributes));
        header[4..8].copy_from_slice(&STUN_COOKIE);
        header[8..12].copy_from_slice(&self.stream.to_be_bytes());
        header[12..].copy_from_slice(&self.number.to_be_bytes());
        header
    }

    fn append_body(&self, bytes: &mut Vec<u8>, length: usize) {
        let start = bytes.len();
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(self.number.to_be_bytes());
        bytes.extend(self.sent_at.to_be_bytes());
        let end = start + length.max(BODY) - 4;
        let mut noise = self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        while bytes.len() < end {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
            bytes.push((noise >> 24) as u8);
        }
        let checksum = crc32(&bytes[start..]);
        bytes.extend(checksum.to_be_bytes());
    }

    fn decode_body(body: &[u8]) -> Option<Self> {
        let (content, checksum) = body.split_last_chunk::<4>()?;
        if u32::from_be_bytes(*checksum) != crc32(content) {
            return None;
        }
        let (stream, rest) = content.split_first_chunk::<4>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (sent_at, _noise) = rest.split_first_chunk::<8>()?;
        Some(Self {
            stream: u32::from_be_bytes(*stream),
            number: u64::from_be_bytes(*number),
            sent_at: u64::from_be_bytes(*sent_at),
        })
    }
}

/// What one end of a stream has seen so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub sent: u64,
    /// Different datagrams that arrived intact.
    pub received: u64,
    pub duplicated: u64,
    /// Arrived after one with a higher number.
    pub reordered: u64,
    /// Arrived, but not as they were sent.
    pub corrupted: u64,
    /// Longest time between two arrivals.
    pub longest_gap_ms: u64,
    /// One-way delay.
    pub latency_us: Percentiles,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    pub p50: u32,
    pub p95: u32,
    pub p99: u32,
    pub max: u32,
}

impl Percentiles {
    /// Of all values, by nearest rank; all zero if there are none.
    pub fn of(mut values: Vec<u32>) -> Self {
        values.sort_unstable();
        if values.is_empty() {
            return Self::default();
        }
        let at = |percent: usize| values[(values.len() * percent).div_ceil(100) - 1];
        Self { p50: at(50), p95: at(95), p99: at(99), max: at(100) }
    }
}

/// Judges what arrives of one stream.
#[derive(Debug, Default)]
pub struct Receiver {
    report: Report,
    /// One bit for each number seen.
    seen: Vec<u64>,
    highest: Option<u64>,
    last_arrival: Option<u64>,
    longest_gap: u64,
    latencies: Vec<u32>,
}

impl Receiver {
    /// Counts a datagram that arrived at `now`, in nanoseconds of the monotonic clock.
    pub fn arrived(&mut self, bytes: &[u8], now: u64) {
        let Some(datagram) = Datagram::decode(bytes) else {
            self.report.corrupted += 1;
            return;
        };
        if !self.note(datagram.number) {
            self.report.duplicated += 1;
            return;
        }
        self.report.received += 1;
        if self.highest.is_some_and(|highest| datagram.number < highest) {
            self.report.reordered += 1;
        }
        self.highest = self.highest.max(Some(datagram.number));
        if let Some(last) = self.last_arrival.replace(now) {
            self.longest_gap = self.longest_gap.max(now.saturating_sub(last));
        }
        let latency = now.saturating_sub(datagram.sent_at) / 1000;
        self.latencies.push(u32::try_from(latency).unwrap_or(u32::MAX));
    }

    /// The figures until now, for an end that has itself sent `sent` datagrams.
    pub fn report(&self, sent: u64) -> Report {
        let longest_gap_ms = Duration::from_nanos(self.longest_gap).as_millis();
        Report {
            sent,
            longest_gap_ms: u64::try_from(longest_gap_ms).unwrap_or(u64::MAX),
            latency_us: Percentiles::of(self.latencies.clone()),
            ..self.report.clone()
        }
    }

    /// Whether the number is new.
    fn note(&mut self, number: u64) -> bool {
        let Ok(word) = usize::try_from(number / 64) else { return false };
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let bit = 1 << (number % 64);
        let new = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        new
    }
}

fn length_field(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// RFC 8489 §14.7.
fn fingerprint_of(message: &[u8]) -> [u8; 8] {
    let mut attribute = [0; 8];
    attribute[..4].copy_from_slice(&FINGERPRINT);
    attribute[4..].copy_from_slice(&(crc32(message) ^ FINGERPRINT_MASK).to_be_bytes());
    attribute
}

/// The CRC of Ethernet and of STUN (ITU-T V.42).
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = crc32_table();
    !bytes
        .iter()
        .fold(!0, |crc, byte| TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8))
}

const fn crc32_table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u64) -> Datagram {
        Datagram { stream: 7, number, sent_at: 1_000_000 * number }
    }

    #[test]
    fn crc_of_the_check_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn both_shapes_survive_the_round_trip() {
        for shape in [Shape::Plain, Shape::Stun] {
            for length in [0, 64, 201, 1200] {
                let bytes = datagram(3).encode(shape, length);
                assert_eq!(Datagram::decode(&bytes), Some(datagram(3)), "{shape:?} {length}");
                assert!(bytes.len().abs_diff(length.max(60)) <= 32, "{} {length}", bytes.len());
            }
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        for shape in [Shape::Plain, Shape::Stun] {
            let bytes = datagram(3).encode(shape, 100);
            for position in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[position] ^= 0x10;
                assert_eq!(Datagram::decode(&changed), None, "{shape:?} byte {position}");
            }
        }
    }

    #[test]
    fn a_stun_datagram_is_a_binding_request_with_a_right_fingerprint() {
        let bytes = datagram(3).encode(Shape::Stun, 120);
        let decoded = is_binding_request(&bytes);
        assert!(decoded, "{bytes:02x?}");
    }

    /// By the definitions of RFC 8489 §5 and §14.7 alone.
    fn is_binding_request(bytes: &[u8]) -> bool {
        let length = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        let (message, fingerprint) = bytes.split_at(bytes.len() - 8);
        bytes.len() == 20 + length
            && length % 4 == 0
            && bytes[4..8] == [0x21, 0x12, 0xa4, 0x42]
            && fingerprint[..4] == [0x80, 0x28, 0, 4]
            && fingerprint[4..] == (crc32(message) ^ 0x5354_554e).to_be_bytes()
    }

    #[test]
    fn the_receiver_tells_loss_from_order_and_repetition() {
        let mut receiver = Receiver::default();
        for (number, at_ms) in [(0, 10), (2, 12), (1, 13), (2, 14), (5, 114)] {
            receiver.arrived(&datagram(number).encode(Shape::Plain, 80), at_ms * 1_000_000);
        }
        receiver.arrived(b"noise", 0);
        let report = receiver.report(9);
        assert_eq!(
            (report.received, report.duplicated, report.reordered, report.corrupted),
            (4, 1, 1, 1)
        );
        assert_eq!((report.sent, report.longest_gap_ms), (9, 101));
    }

    #[test]
    fn percentiles_of_few_and_many() {
        assert_eq!(Percentiles::of(vec![]), Percentiles::default());
        let hundred = Percentiles::of((0..=100).collect());
        assert_eq!((hundred.p50, hundred.p95, hundred.p99, hundred.max), (50, 95, 99, 100));
        let twenty = Percentiles::of((1..=20).collect());
        assert_eq!((twenty.p50, twenty.p95, twenty.max), (10, 19, 20));
    }
}
