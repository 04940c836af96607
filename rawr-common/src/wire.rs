//! Headers as they stand in a frame: byte arrays in network order, without padding.
//!
//! In a frame they lie at any address, and are copied out of it and into it. The copies are aligned,
//! because the kernel's verifier wants words on a program's stack to be.

use core::mem::MaybeUninit;
use core::ptr::NonNull;

use crate::flow::{Tuple4, Tuple6};

/// A header, or what is loaded like one, that any bytes of its size are a valid value of.
///
/// # Safety
/// The type consists of `Word`s without padding, and has no invalid bit patterns.
pub unsafe trait Header: Copy {
    /// What is loaded at once: such that what is looked at together is in one register, and what is
    /// not needs no shifting.
    type Word: Copy;

    /// Copies it out of a frame or a map.
    ///
    /// # Safety
    /// `source` is valid for reads of its size.
    #[inline(always)]
    unsafe fn load(source: NonNull<u8>) -> Self {
        let mut copy = MaybeUninit::<Self>::uninit();
        let mut index = 0;
        while index < size_of::<Self>() / size_of::<Self::Word>() {
            // SAFETY: within the header on both sides.
            unsafe {
                let word = source.cast::<Self::Word>().add(index).read_unaligned();
                copy.as_mut_ptr().cast::<Self::Word>().add(index).write_unaligned(word);
            }
            index += 1;
        }
        // SAFETY: all words have been written, and any bits are a valid value.
        unsafe { copy.assume_init() }
    }
}

/// The end of IP and UDP headers on their way out, where all changes are.
pub trait Outgoing: Copy {
    /// Length of the headers, in bytes. What is not written stays as it is, at their front.
    const LEN: usize;
    const ETHER_TYPE: [u8; 2];
}

/// EtherTypes (IEEE 802 Numbers).
pub mod ether_type {
    pub const IPV4: [u8; 2] = [0x08, 0x00];
    pub const IPV6: [u8; 2] = [0x86, 0xdd];
    /// 802.1Q customer tag.
    pub const VLAN: [u8; 2] = [0x81, 0x00];
    /// 802.1ad service tag.
    pub const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
}

/// IP protocol numbers.
pub mod protocol {
    pub const UDP: u8 = 17;
    pub const IPV6_FRAGMENT: u8 = 44;
    /// The extension headers of IPv6 besides the fragment header (IANA, IPv6 Extension Header Types).
    pub const IPV6_EXTENSIONS: [u8; 9] = [0, 43, 50, 51, 60, 135, 139, 140, 253];
}

/// Ethernet II.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(2))]
pub struct Ethernet {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub ether_type: [u8; 2],
}

/// A MAC address in words. Six bytes would be copied by way of the program's stack, and not in whole
/// words there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(u32, u16);

/// What follows the tag protocol identifier of a VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct VlanTag {
    /// Priority, drop eligibility and VLAN identifier.
    pub control: [u8; 2],
    pub ether_type: [u8; 2],
}

/// IPv4 without options (RFC 791).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Ipv4 {
    /// Version and header length in 32-bit words.
    pub version_ihl: u8,
    pub tos: u8,
    pub total_len: [u8; 2],
    pub id: [u8; 2],
    /// Flags and fragment offset.
    pub fragment: [u8; 2],
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: [u8; 2],
    pub src: [u8; 4],
    pub dst: [u8; 4],
}

/// IPv6 (RFC 8200).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_label: [u8; 4],
    pub payload_len: [u8; 2],
    pub next_header: u8,
    pub hop_limit: u8,
    pub src: [u8; 16],
    pub dst: [u8; 16],
}

/// UDP (RFC 768).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Udp {
    pub src_port: [u8; 2],
    pub dst_port: [u8; 2],
    pub len: [u8; 2],
    pub checksum: [u8; 2],
}

/// ChannelData (RFC 8656 §12.4). Number 0, which no channel has, stands for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct ChannelHeader {
    pub number: [u8; 2],
    /// Of what follows the header, without padding.
    pub len: [u8; 2],
}

/// All headers of a datagram of IP, that of ChannelData included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<Ip> {
    pub headers: Whole<Ip>,
    pub channel: ChannelHeader,
}

/// IP and UDP headers, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Whole<Ip> {
    pub ip: Ip,
    pub udp: Udp,
}

/// IPv4 and UDP headers from the TTL on, in the words that [`Ipv4`] is loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct End4 {
    /// TTL, protocol, checksum.
    pub ttl: u32,
    pub ends: Tuple4,
    pub udp_len: [u8; 2],
    pub udp_checksum: [u8; 2],
}

/// IPv6 and UDP headers, in the words that [`Ipv6`] is loaded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(8))]
pub struct End6 {
    /// From the version to the hop limit.
    pub first: u64,
    pub ends: Tuple6,
    pub udp_len: [u8; 2],
    pub udp_checksum: [u8; 2],
}

/// All headers of a UDP datagram without VLAN tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack<T> {
    pub dst: Mac,
    pub src: Mac,
    pub ether_type: [u8; 2],
    pub outgoing: T,
}

impl<T: Outgoing> Stack<T> {
    /// Length in a frame.
    pub const LEN: usize = size_of::<Ethernet>() + T::LEN;

    /// Writes the headers one behind the other.
    ///
    /// # Safety
    /// `target` is valid for writes of [`Self::LEN`] bytes.
    #[inline(always)]
    pub unsafe fn write(&self, target: *mut u8) {
        // SAFETY: the parts, and what stays between them, are as long as `LEN` together.
        unsafe {
            self.dst.write(target);
            self.src.write(target.add(6));
            target.add(12).cast::<[u8; 2]>().write_unaligned(self.ether_type);
            let end = target.add(Self::LEN - size_of::<T>()).cast::<T>();
            end.write_unaligned(self.outgoing);
        }
    }
}

impl Mac {
    /// # Safety
    /// `target` is valid for writes of six bytes.
    #[inline(always)]
    pub unsafe fn write(self, target: *mut u8) {
        // SAFETY: within the six bytes.
        unsafe {
            target.cast::<u32>().write_unaligned(self.0);
            target.add(4).cast::<u16>().write_unaligned(self.1);
        }
    }
}

impl ChannelHeader {
    #[inline(always)]
    pub fn is_there(&self) -> bool {
        u16::from_ne_bytes(self.number) != 0
    }

    /// Length in bytes of what there is.
    #[inline(always)]
    pub fn size(&self) -> usize {
        if self.is_there() { size_of::<Self>() } else { 0 }
    }
}

impl From<[u8; 6]> for Mac {
    #[inline(always)]
    fn from([b0, b1, b2, b3, b4, b5]: [u8; 6]) -> Self {
        Self(u32::from_ne_bytes([b0, b1, b2, b3]), u16::from_ne_bytes([b4, b5]))
    }
}

impl Ipv4 {
    /// Version 4, five words of header.
    pub const PLAIN: u8 = 0x45;
    /// The flag "don't fragment" in [`Self::fragment`].
    pub const DONT_FRAGMENT: [u8; 2] = [0x40, 0x00];

    pub fn version(&self) -> u8 {
        self.version_ihl >> 4
    }

    /// Whether this is one of several fragments: more follow, or the offset is not 0.
    pub fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    pub fn tuple(&self, udp: &Udp) -> Tuple4 {
        Tuple4 { src: self.src, dst: self.dst, src_port: udp.src_port, dst_port: udp.dst_port }
    }
}

impl Ipv6 {
    pub fn version(&self) -> u8 {
        self.version_class_label[0] >> 4
    }

    pub fn traffic_class(&self) -> u8 {
        (u32::from_be_bytes(self.version_class_label) >> 20) as u8
    }

    pub fn tuple(&self, udp: &Udp) -> Tuple6 {
        Tuple6 { src: self.src, dst: self.dst, src_port: udp.src_port, dst_port: udp.dst_port }
    }
}

// SAFETY: byte arrays and bytes only.
unsafe impl Header for Ethernet {
    type Word = u16;
}
// SAFETY: byte arrays only.
unsafe impl Header for VlanTag {
    type Word = u16;
}
// SAFETY: byte arrays and bytes only.
unsafe impl Header for Ipv4 {
    type Word = u32;
}
// SAFETY: byte arrays and bytes only.
unsafe impl Header for Ipv6 {
    type Word = u64;
}
// SAFETY: byte arrays only.
unsafe impl Header for Udp {
    type Word = u16;
}
// SAFETY: byte arrays only.
unsafe impl Header for ChannelHeader {
    type Word = u32;
}

impl Outgoing for End4 {
    const LEN: usize = size_of::<Whole<Ipv4>>();
    const ETHER_TYPE: [u8; 2] = ether_type::IPV4;
}

impl Outgoing for End6 {
    const LEN: usize = size_of::<Whole<Ipv6>>();
    const ETHER_TYPE: [u8; 2] = ether_type::IPV6;
}

const _: () = {
    assert!(size_of::<Ethernet>() == 14);
    assert!(size_of::<VlanTag>() == 4);
    assert!(size_of::<Whole<Ipv4>>() == 28);
    assert!(size_of::<Whole<Ipv6>>() == 48);
    assert!(size_of::<ChannelHeader>() == 4);
    assert!(size_of::<End4>() == 28 - 8);
    assert!(size_of::<End6>() == 48);
};
