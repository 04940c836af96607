//! STUN Binding requests (RFC 8489 §2) that the program answers itself.
//!
//! Only what needs no thought: requests without attributes but FINGERPRINT, to an address and port with
//! a [`LISTENER`](flags::LISTENER). All others are passed up. An answer holds XOR-MAPPED-ADDRESS and, if
//! the request had one, FINGERPRINT: what userspace sends, byte for byte.
//!
//! Whoever forges a source has 12 bytes more sent there than he has sent himself (over IPv6, 24), on 48
//! (68) of layer 3: there is little to gain. How much goes out in all is limited by the listener's rate.

use core::hint::black_box;
use core::mem::offset_of;

use crate::checksum::{Sum, ipv4_header, sent};
use crate::crc;
use crate::departure::WayOut;
use crate::flow::{Recipe, Tuple4, Tuple6, flags};
use crate::reason::Reason;
use crate::relay::{Frame, Tables, Verdict, index, refused};
use crate::shared::Meter;
use crate::wire::{Ethernet, Header, Ipv4, Ipv6, Udp, VlanTag, protocol};

/// Length of a STUN header in bytes (RFC 8489 §5).
const HEADER: u16 = 20;
/// Length of the FINGERPRINT attribute, its header included.
const FINGERPRINT: u16 = 8;
/// Type and length of the FINGERPRINT attribute (RFC 8489 §14.7).
const FINGERPRINT_HEADER: u32 = u32::from_ne_bytes([0x80, 0x28, 0, 4]);
/// What the CRC is combined with there.
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const COOKIE: u32 = u32::from_ne_bytes([0x21, 0x12, 0xa4, 0x42]);
/// The TTL of what this host sends.
const TTL: u8 = 64;

/// By how much the CRC's register behind the STUN header differs between request and answer, whose type
/// and length are others.
const DIFFERS4: u32 = differs(FINGERPRINT, FINGERPRINT + 12);
const DIFFERS6: u32 = differs(FINGERPRINT, FINGERPRINT + 24);

const fn differs(before: u16, after: u16) -> u32 {
    let mut bytes = [0; HEADER as usize];
    (bytes[0], bytes[3]) = (1, (before ^ after) as u8);
    crc::register(0, &bytes)
}

/// A STUN header, as it loads: type and length, magic cookie, transaction ID.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Message([u32; 5]);

/// An IPv6 address, as it loads.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Words([u32; 4]);

/// What is checksummed at once.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Word(u32);

/// An attribute of four bytes, as it loads.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Attribute {
    header: u32,
    value: u32,
}

/// Who answers.
struct Listener {
    recipe: Recipe,
    meter: Meter,
}

/// Where the parts of a request or of its answer begin.
#[derive(Clone, Copy)]
struct Layout {
    ip: usize,
    udp: usize,
    message: usize,
    v4: bool,
}

// SAFETY: integers only.
unsafe impl Header for Message {
    type Word = u32;
}
// SAFETY: integers only.
unsafe impl Header for Words {
    type Word = u32;
}
// SAFETY: integers only.
unsafe impl Header for Word {
    type Word = u32;
}
// SAFETY: integers only.
unsafe impl Header for Attribute {
    type Word = u32;
}

/// Whether a datagram could be a request that is answered here.
#[inline(always)]
pub(crate) fn is_request(frame: &impl Frame, payload: usize, udp: &Udp) -> bool {
    let len = u16::from_be_bytes(udp.len);
    let plain = size_of::<Udp>() as u16 + HEADER;
    if len != plain && len != plain + FINGERPRINT {
        return false;
    }
    let Some(message) = frame.load::<Message>(payload) else { return false };
    let [first, cookie, ..] = message.0;
    let attributes = if len == plain { 0 } else { FINGERPRINT as u8 };
    first == u32::from_ne_bytes([0, 1, 0, attributes]) && cookie == COOKIE
}

/// Answers what could be a request to a listener, or leaves the frame as it was. Its IP header is at
/// `offset`.
#[inline(always)]
pub fn answer(frame: &mut impl Frame, tables: &impl Tables, offset: usize, v4: bool) -> Verdict {
    match try_answer(frame, tables, offset, v4) {
        Ok(verdict) => verdict,
        Err(reason) => refused(reason),
    }
}

#[inline(always)]
fn try_answer(
    frame: &mut impl Frame,
    tables: &impl Tables,
    offset: usize,
    v4: bool,
) -> Result<Verdict, Reason> {
    let layout = Layout::of(offset, v4);
    let udp: Udp = frame.load(layout.udp).ok_or(Reason::Malformed)?;
    let listener = match v4 {
        true => listener4(frame, tables, offset, &udp)?,
        false => listener6(frame, tables, offset, &udp)?,
    };
    let register = register(frame, &layout, &udp)?;
    let ethernet: Ethernet = frame.load(0).ok_or(Reason::NotIp)?;
    let way = WayOut::of(frame, tables, &listener.recipe)?;
    if way.exit.ifindex != frame.ingress() || ethernet.dst != way.exit.src_mac {
        return Err(Reason::NoEgress);
    }
    let bytes = (layout.udp - layout.ip) as u16 + u16::from_be_bytes(udp.len);
    let len = bytes + layout.grown();
    if !way.admits(tables, len) {
        return Err(Reason::BindingLimited);
    }
    // At the front: behind a frame, a driver need not have any room (veth has not).
    if !frame.move_head(-i32::from(layout.grown())) {
        return Err(Reason::NoHeadroom);
    }
    if write(frame, &layout, register).is_none() {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    // In 64 bits, or else the kernel's verifier sees pointers subtracted in 32.
    let padded = black_box(frame.len());
    if !frame.move_tail((offset + usize::from(len)).wrapping_sub(padded) as i32) {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    listener.meter.count(bytes);
    Ok(way.verdict())
}

/// Who answers over IPv4, if the listener is still there.
#[inline(always)]
fn listener4(
    frame: &impl Frame,
    tables: &impl Tables,
    offset: usize,
    udp: &Udp,
) -> Result<Listener, Reason> {
    let ip: Ipv4 = frame.load(offset).ok_or(Reason::NotIp)?;
    let entry = tables.flow4(index(ip.dst[3], udp, tables)).ok_or(Reason::NoFlow)?;
    let (Tuple4 { dst, dst_port, .. }, recipe, meter) =
        (entry.from(), entry.recipe(), entry.meter());
    entry.check().ok_or(Reason::FlowChanging)?;
    // What no host sends from, the stack would not answer either (RFC 1812 §5.3.7).
    let unsound = matches!(ip.src[0], 0 | 127 | 224..);
    let here = dst == ip.dst && dst_port == udp.dst_port;
    Listener::of(recipe, meter, here && !unsound, udp)
}

/// As [`listener4`].
#[inline(always)]
fn listener6(
    frame: &impl Frame,
    tables: &impl Tables,
    offset: usize,
    udp: &Udp,
) -> Result<Listener, Reason> {
    let ip: Ipv6 = frame.load(offset).ok_or(Reason::NotIp)?;
    let entry = tables.flow6(index(ip.dst[15], udp, tables)).ok_or(Reason::NoFlow)?;
    let (at, recipe, meter) = (entry.from(), entry.recipe(), entry.meter());
    entry.check().ok_or(Reason::FlowChanging)?;
    let arrives = ip.tuple(udp);
    let here = Tuple6 { dst: at.dst, dst_port: at.dst_port, ..arrives }.is(&arrives);
    let source = offset + offset_of!(Ipv6, src);
    let Word(a0) = frame.load(source).ok_or(Reason::NotIp)?;
    let Word(a1) = frame.load(source + size_of::<Word>()).ok_or(Reason::NotIp)?;
    // Multicast; unspecified, loopback and IPv4 in disguise.
    let unsound = ip.src[0] == 0xff || a0 | a1 == 0;
    Listener::of(recipe, meter, here && !unsound, udp)
}

/// Whether an entry is one of whose datagrams some may be requests.
#[inline(always)]
pub(crate) fn listens(recipe: &Recipe) -> bool {
    recipe.flags & flags::LISTENER != 0
}

impl Listener {
    /// What the entry with this recipe is, if the request is `for_us`.
    #[inline(always)]
    fn of(recipe: Recipe, meter: Meter, for_us: bool, udp: &Udp) -> Result<Self, Reason> {
        if !for_us || !listens(&recipe) || udp.src_port == [0, 0] {
            return Err(Reason::NoFlow);
        }
        if udp.checksum == [0, 0] {
            return Err(Reason::NoChecksum);
        }
        Ok(Self { recipe, meter })
    }
}

impl Layout {
    /// With the IP header at `offset`.
    #[inline(always)]
    fn of(offset: usize, v4: bool) -> Self {
        let udp = offset + if v4 { size_of::<Ipv4>() } else { size_of::<Ipv6>() };
        Self { ip: offset, udp, message: udp + size_of::<Udp>(), v4 }
    }

    /// How much longer the answer is than the request: one XOR-MAPPED-ADDRESS, its header included.
    #[inline(always)]
    fn grown(&self) -> u16 {
        if self.v4 { 12 } else { 24 }
    }
}

/// If the request has a FINGERPRINT and that is right, the CRC's register behind its STUN header.
#[inline(always)]
fn register(frame: &impl Frame, layout: &Layout, udp: &Udp) -> Result<Option<u32>, Reason> {
    if u16::from_be_bytes(udp.len) == size_of::<Udp>() as u16 + HEADER {
        return Ok(None);
    }
    let offset = layout.message + usize::from(HEADER);
    let attribute: Attribute = frame.load(offset).ok_or(Reason::Malformed)?;
    let register = crc::words(crc::INITIAL, usize::from(HEADER) / size_of::<Word>(), |at| {
        word(frame, layout.message, at)
    });
    let register = register.ok_or(Reason::Malformed)?;
    if attribute.header != FINGERPRINT_HEADER || attribute.value != fingerprint(register) {
        return Err(Reason::NoFlow);
    }
    Ok(Some(register))
}

/// The word number `at` of what begins at `offset`.
#[inline(always)]
fn word(frame: &impl Frame, offset: usize, at: usize) -> Option<u32> {
    // Or else the compiler would add to the frame's end instead, what the kernel's verifier does not want.
    let Word(word) = frame.load(black_box(offset + at * size_of::<Word>()))?;
    Some(word)
}

/// The value of FINGERPRINT, as it loads, for a message that ends with this register.
#[inline(always)]
fn fingerprint(register: u32) -> u32 {
    (!register ^ FINGERPRINT_XOR).to_be()
}

/// Writes an answer over its request, which begins as many bytes further on as it is shorter. So whatever
/// is copied goes towards the front, and is read before it is written over. VLAN tags stay, and so does
/// FINGERPRINT's place. `register` is as of [`register`].
#[inline(always)]
fn write(frame: &impl Frame, layout: &Layout, register: Option<u32>) -> Option<()> {
    let grown = usize::from(layout.grown());
    let ethernet: Ethernet = frame.load(grown)?;
    let (dst, src) = (ethernet.src, ethernet.dst);
    frame.put(0, Ethernet { dst, src, ..ethernet })?;
    let mut tag = size_of::<Ethernet>();
    for _ in 0..2 {
        if tag < layout.ip {
            frame.put(tag, frame.load::<VlanTag>(tag + grown)?)?;
            tag += size_of::<VlanTag>();
        }
    }
    let udp: Udp = frame.load(layout.udp + grown)?;
    let udp_len = (u16::from_be_bytes(udp.len) + layout.grown()).to_be_bytes();
    let address = write_ip(frame, layout, udp_len)?;
    let changed = write_message(frame, layout, &udp, address, register)?;
    // Made of the request's, so that whoever asks notices what has happened to the request on its way.
    let checksum = sent(changed.word(!u16::from_ne_bytes(udp.checksum)).checksum());
    let (src_port, dst_port) = (udp.dst_port, udp.src_port);
    frame.put(layout.udp, Udp { src_port, dst_port, len: udp_len, checksum })
}

/// Writes the IP header, and returns the address that it answers to; of an IPv4 one, the first word counts.
#[inline(always)]
fn write_ip(frame: &impl Frame, layout: &Layout, udp_len: [u8; 2]) -> Option<[u32; 4]> {
    let before = layout.ip + usize::from(layout.grown());
    if layout.v4 {
        let mut ip: Ipv4 = frame.load(before)?;
        let address = u32::from_ne_bytes(ip.src);
        let total_len = size_of::<Ipv4>() as u16 + u16::from_be_bytes(udp_len);
        (ip.tos, ip.total_len, ip.id) = (0, total_len.to_be_bytes(), [0, 0]);
        (ip.fragment, ip.ttl, ip.protocol) = (Ipv4::DONT_FRAGMENT, TTL, protocol::UDP);
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.checksum = ipv4_header(&ip);
        frame.put(layout.ip, ip)?;
        return Some([address, 0, 0, 0]);
    }
    let mut ip: Ipv6 = frame.load(before)?;
    let Words(address) = frame.load(before + offset_of!(Ipv6, src))?;
    (ip.version_class_label, ip.payload_len) = ([0x60, 0, 0, 0], udp_len);
    (ip.hop_limit, ip.src, ip.dst) = (TTL, ip.dst, ip.src);
    frame.put(layout.ip, ip)?;
    Some(address)
}

/// Writes the STUN message, and returns by how much that changes the sum of what UDP's checksum covers.
#[inline(always)]
fn write_message(
    frame: &impl Frame,
    layout: &Layout,
    udp: &Udp,
    address: [u32; 4],
    register: Option<u32>,
) -> Option<Sum> {
    let (grown, message) = (layout.grown(), layout.message);
    let [attribute, end] = [0, grown].map(|more| message + usize::from(HEADER + more));
    let Message([before, mask @ ..]) = frame.load(message + usize::from(grown))?;
    let first = before ^ u32::from_ne_bytes([1, 0, 0, 0]);
    frame.put(message, (u32::from_be(first) + u32::from(grown)).to_be())?;
    frame.put(message + size_of::<u32>(), mask)?;
    // XOR-MAPPED-ADDRESS (RFC 8489 §14.2).
    let header = u32::from_ne_bytes([0x00, 0x20, 0, grown as u8 - 4]);
    let [p0, p1] = udp.src_port;
    let port = u32::from_ne_bytes([0, if layout.v4 { 1 } else { 2 }, p0 ^ 0x21, p1 ^ 0x12]);
    frame.put(attribute, [header, port, address[0] ^ mask[0]])?;
    // STUN's length grows, and UDP's, which counts twice.
    let sum = Sum::default().word(0x0100_u16.to_be()).word((3 * grown).to_be());
    let mut sum = sum.words(header).words(port).words(address[0] ^ mask[0]);
    if !layout.v4 {
        let rest = [address[1] ^ mask[1], address[2] ^ mask[2], address[3] ^ mask[3]];
        frame.put(attribute + 12, rest)?;
        sum = rest.into_iter().fold(sum, Sum::words);
    }
    if let Some(register) = register {
        let was = fingerprint(register);
        let differs = if layout.v4 { DIFFERS4 } else { DIFFERS6 };
        let register =
            crc::words(register ^ differs, usize::from(grown) / size_of::<Word>(), |at| {
                word(frame, attribute, at)
            })?;
        let value = fingerprint(register);
        frame.put(end, Attribute { header: FINGERPRINT_HEADER, value })?;
        sum = sum.words(!was).words(value);
    }
    Some(sum)
}
