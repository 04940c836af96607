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
use crate::departure::verdict;
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

/// An attribute of four bytes, as it loads.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Attribute {
    header: u32,
    value: u32,
}

/// Who asks.
struct Asker {
    recipe: Recipe,
    meter: Meter,
    udp: Udp,
    /// Length of the IP header.
    ip_len: usize,
    /// The address; of an IPv4 one, the first word counts.
    address: [u32; 4],
    v4: bool,
}

/// XOR-MAPPED-ADDRESS (RFC 8489 §14.2) as it loads, and what else an answer says.
struct Answer {
    /// Type and length of the message.
    first: u32,
    /// Of the attribute.
    header: u32,
    /// Family and port.
    port: u32,
    /// As of [`Asker::address`].
    address: [u32; 4],
    /// The value of FINGERPRINT, if the request had one.
    fingerprint: Option<u32>,
    udp: Udp,
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
    let asker = if v4 { asker4(frame, tables, offset)? } else { asker6(frame, tables, offset)? };
    let answer = Answer::to(frame, &asker, offset)?;
    let ethernet: Ethernet = frame.load(0).ok_or(Reason::NotIp)?;
    let recipe = &asker.recipe;
    let exit = tables.exit(recipe.exit).ok_or(Reason::NoEgress)?;
    if exit.ifindex != frame.ingress() || ethernet.dst != exit.src_mac {
        return Err(Reason::NoEgress);
    }
    let verdict = verdict(frame, tables, recipe.exit, &exit)?;
    let len = asker.ip_len as u16 + u16::from_be_bytes(answer.udp.len);
    if recipe.flags & flags::RATED != 0 && !tables.admit(recipe.rate, len) {
        return Err(Reason::BindingLimited);
    }
    // At the front: behind a frame, a driver need not have any room (veth has not).
    if !frame.move_head(-i32::from(asker.grown())) {
        return Err(Reason::NoHeadroom);
    }
    if write(frame, &ethernet, offset, &asker, &answer).is_none() {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    // In 64 bits, or else the kernel's verifier sees pointers subtracted in 32.
    let padded = black_box(frame.len());
    if !frame.move_tail((offset + usize::from(len)).wrapping_sub(padded) as i32) {
        return Ok(Verdict::Drop(Reason::NoHeadroom));
    }
    asker.meter.count(len - asker.grown());
    Ok(verdict)
}

/// Who asks over IPv4, if the listener is still there.
#[inline(always)]
fn asker4(frame: &impl Frame, tables: &impl Tables, offset: usize) -> Result<Asker, Reason> {
    let ip: Ipv4 = frame.load(offset).ok_or(Reason::NotIp)?;
    let udp: Udp = frame.load(offset + size_of::<Ipv4>()).ok_or(Reason::Malformed)?;
    let listener = tables.flow4(index(ip.dst[3], &udp, tables)).ok_or(Reason::NoFlow)?;
    let (at, recipe, meter) = (listener.from(), listener.recipe(), listener.meter());
    listener.check().ok_or(Reason::FlowChanging)?;
    let Tuple4 { dst, dst_port, .. } = at;
    // What no host sends from, the stack would not answer either (RFC 1812 §5.3.7).
    let unsound = matches!(ip.src[0], 0 | 127 | 224..) || udp.src_port == [0, 0];
    if unsound || !listens(&recipe) || dst != ip.dst || dst_port != udp.dst_port {
        return Err(Reason::NoFlow);
    }
    let address = [u32::from_ne_bytes(ip.src), 0, 0, 0];
    Ok(Asker { recipe, meter, udp, ip_len: size_of::<Ipv4>(), address, v4: true })
}

/// As [`asker4`].
#[inline(always)]
fn asker6(frame: &impl Frame, tables: &impl Tables, offset: usize) -> Result<Asker, Reason> {
    let ip: Ipv6 = frame.load(offset).ok_or(Reason::NotIp)?;
    let udp: Udp = frame.load(offset + size_of::<Ipv6>()).ok_or(Reason::Malformed)?;
    let listener = tables.flow6(index(ip.dst[15], &udp, tables)).ok_or(Reason::NoFlow)?;
    let (at, recipe, meter) = (listener.from(), listener.recipe(), listener.meter());
    listener.check().ok_or(Reason::FlowChanging)?;
    let here = Tuple6 { dst: at.dst, dst_port: at.dst_port, ..ip.tuple(&udp) }.is(&ip.tuple(&udp));
    let source = offset + offset_of!(Ipv6, src);
    let Words(address) = frame.load(source).ok_or(Reason::NotIp)?;
    let [a0, a1, ..] = address;
    // Multicast; unspecified, loopback and IPv4 in disguise.
    let unsound = ip.src[0] == 0xff || a0 | a1 == 0 || udp.src_port == [0, 0];
    if unsound || !listens(&recipe) || !here {
        return Err(Reason::NoFlow);
    }
    Ok(Asker { recipe, meter, udp, ip_len: size_of::<Ipv6>(), address, v4: false })
}

/// Whether an entry is one of whose datagrams some may be requests.
#[inline(always)]
pub(crate) fn listens(recipe: &Recipe) -> bool {
    recipe.flags & flags::LISTENER != 0
}

impl Asker {
    /// How much longer the answer is than the request: one XOR-MAPPED-ADDRESS, its header included.
    #[inline(always)]
    fn grown(&self) -> u16 {
        if self.v4 { 12 } else { 24 }
    }
}

impl Answer {
    /// The answer; fails if the request's FINGERPRINT is wrong.
    #[inline(always)]
    fn to(frame: &impl Frame, asker: &Asker, offset: usize) -> Result<Self, Reason> {
        let Asker { udp, address, v4, ip_len, .. } = asker;
        let (v4, grown) = (*v4, asker.grown() as u8);
        let payload = offset + ip_len + size_of::<Udp>();
        let message: Message = frame.load(payload).ok_or(Reason::Malformed)?;
        let [before, mask @ ..] = message.0;
        let first = before ^ u32::from_ne_bytes([1, 0, 0, 0]);
        let first = (u32::from_be(first) + u32::from(grown)).to_be();
        let header = u32::from_ne_bytes([0x00, 0x20, 0, grown - 4]);
        let [p0, p1] = udp.src_port;
        let port = u32::from_ne_bytes([0, if v4 { 1 } else { 2 }, p0 ^ 0x21, p1 ^ 0x12]);
        let mut mapped = [0; 4];
        for at in 0..if v4 { 1 } else { 4 } {
            mapped[at] = address[at] ^ mask[at];
        }
        // STUN's length grows, and UDP's, which counts twice.
        let mut sum = Sum::default().word(0x0100_u16.to_be());
        sum = sum.word((3 * u16::from(grown)).to_be()).words(header).words(port);
        sum = mapped.into_iter().fold(sum, Sum::words);
        let mut fingerprint = None;
        if u16::from_be_bytes(udp.len) != size_of::<Udp>() as u16 + HEADER {
            let (was, is) = fingerprints(frame, payload, &message, [header, port], &mapped, v4)?;
            sum = sum.words(!was).words(is);
            fingerprint = Some(is);
        }
        let udp = answering(udp, u16::from(grown), sum)?;
        Ok(Self { first, header, port, address: mapped, fingerprint, udp })
    }
}

/// The UDP header of an answer that is `grown` bytes longer, where the checksummed words' sum changes by
/// `sum`. It is made of the request's, so that whoever asks notices what has happened to the request on
/// its way.
#[inline(always)]
fn answering(udp: &Udp, grown: u16, sum: Sum) -> Result<Udp, Reason> {
    if udp.checksum == [0, 0] {
        return Err(Reason::NoChecksum);
    }
    let checksum = sent(sum.word(!u16::from_ne_bytes(udp.checksum)).checksum());
    let len = (u16::from_be_bytes(udp.len) + grown).to_be_bytes();
    Ok(Udp { src_port: udp.dst_port, dst_port: udp.src_port, len, checksum })
}

/// The value of the request's FINGERPRINT, if it is right, and that of the answer's.
#[inline(always)]
fn fingerprints(
    frame: &impl Frame,
    payload: usize,
    message: &Message,
    [header, port]: [u32; 2],
    address: &[u32; 4],
    v4: bool,
) -> Result<(u32, u32), Reason> {
    let attribute: Attribute =
        frame.load(payload + usize::from(HEADER)).ok_or(Reason::Malformed)?;
    let [m0, m1, m2, m3, m4] = message.0;
    let state = crc::words(crc::INITIAL, &crc::Words([m0, m1, m2, m3, m4, m4, m4, m4]), 5);
    if attribute.header != FINGERPRINT_HEADER || attribute.value != fingerprint(state) {
        return Err(Reason::NoFlow);
    }
    let (differs, len) = if v4 { (DIFFERS4, 3) } else { (DIFFERS6, 6) };
    let [a0, a1, a2, a3] = *address;
    let words = crc::Words([header, port, a0, a1, a2, a3, a3, a3]);
    let state = crc::words(state ^ differs, &words, len);
    Ok((attribute.value, fingerprint(state)))
}

/// The value of FINGERPRINT, as it loads, where the CRC's register is at `state`.
#[inline(always)]
fn fingerprint(state: u32) -> u32 {
    (!state ^ FINGERPRINT_XOR).to_be()
}

/// Writes an answer over its request, which begins as many bytes further on as it is shorter. So whatever
/// is copied goes towards the front, and is read before it is written over. VLAN tags stay, and so does
/// FINGERPRINT's place.
#[inline(always)]
fn write(
    frame: &impl Frame,
    ethernet: &Ethernet,
    offset: usize,
    asker: &Asker,
    answer: &Answer,
) -> Option<()> {
    let grown = usize::from(asker.grown());
    let (dst, src) = (ethernet.src, ethernet.dst);
    frame.put(0, Ethernet { dst, src, ..*ethernet })?;
    let mut tag = size_of::<Ethernet>();
    for _ in 0..2 {
        if tag < offset {
            frame.put(tag, frame.load::<VlanTag>(tag + grown)?)?;
            tag += size_of::<VlanTag>();
        }
    }
    if asker.v4 {
        let mut ip: Ipv4 = frame.load(offset + grown)?;
        let total_len = size_of::<Ipv4>() as u16 + u16::from_be_bytes(answer.udp.len);
        (ip.tos, ip.total_len, ip.id) = (0, total_len.to_be_bytes(), [0, 0]);
        (ip.fragment, ip.ttl, ip.protocol) = (Ipv4::DONT_FRAGMENT, TTL, protocol::UDP);
        (ip.src, ip.dst) = (ip.dst, ip.src);
        ip.checksum = ipv4_header(&ip);
        frame.put(offset, ip)?;
    } else {
        let mut ip: Ipv6 = frame.load(offset + grown)?;
        (ip.version_class_label, ip.payload_len) = ([0x60, 0, 0, 0], answer.udp.len);
        (ip.hop_limit, ip.src, ip.dst) = (TTL, ip.dst, ip.src);
        frame.put(offset, ip)?;
    }
    let udp = offset + asker.ip_len;
    let message = udp + size_of::<Udp>();
    let Message([_, header @ ..]) = frame.load(message + grown)?;
    frame.put(udp, answer.udp)?;
    frame.put(message, answer.first)?;
    frame.put(message + size_of::<u32>(), header)?;
    let attribute = message + usize::from(HEADER);
    let [a0, rest @ ..] = answer.address;
    frame.put(attribute, [answer.header, answer.port, a0])?;
    if !asker.v4 {
        frame.put(attribute + 12, rest)?;
    }
    if let Some(value) = answer.fingerprint {
        frame.put(attribute + grown, Attribute { header: FINGERPRINT_HEADER, value })?;
    }
    Some(())
}
