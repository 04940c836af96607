//! Headers as they stand in a frame: byte arrays in network order, without padding.
//!
//! In a frame they lie at any address, and are copied out of it and into it whole. The copies are
//! aligned, because the kernel's verifier wants words on a program's stack to be.

use crate::flow::{Tuple4, Tuple6};

/// A header that any bytes of its size are a valid value of.
///
/// # Safety
/// The type has no padding and no invalid bit patterns.
pub unsafe trait Header: Copy {}

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

/// All headers of a UDP datagram over `Ip` behind `TAGS` VLAN tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stack<Ip, const TAGS: usize> {
    pub ethernet: Ethernet,
    pub tags: [VlanTag; TAGS],
    pub ip: Ip,
    pub udp: Udp,
}

impl<Ip: Header, const TAGS: usize> Stack<Ip, TAGS> {
    /// Length in a frame.
    pub const LEN: usize =
        size_of::<Ethernet>() + TAGS * size_of::<VlanTag>() + size_of::<Ip>() + size_of::<Udp>();

    /// Writes the headers one behind the other.
    ///
    /// # Safety
    /// `target` is valid for writes of [`Self::LEN`] bytes.
    #[inline(always)]
    pub unsafe fn write(&self, target: *mut u8) {
        // SAFETY: the four parts are as long as `LEN` together.
        unsafe {
            target.cast::<Ethernet>().write_unaligned(self.ethernet);
            let tags = target.cast::<Ethernet>().add(1).cast::<[VlanTag; TAGS]>();
            tags.write_unaligned(self.tags);
            let ip = tags.add(1).cast::<Ip>();
            ip.write_unaligned(self.ip);
            ip.add(1).cast::<Udp>().write_unaligned(self.udp);
        }
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
unsafe impl Header for Ethernet {}
// SAFETY: byte arrays only.
unsafe impl Header for VlanTag {}
// SAFETY: byte arrays and bytes only.
unsafe impl Header for Ipv4 {}
// SAFETY: byte arrays and bytes only.
unsafe impl Header for Ipv6 {}
// SAFETY: byte arrays only.
unsafe impl Header for Udp {}
const _: () = {
    assert!(size_of::<Ethernet>() == 14);
    assert!(size_of::<VlanTag>() == 4);
    assert!(size_of::<Ipv4>() == 20);
    assert!(size_of::<Ipv6>() == 40);
    assert!(size_of::<Udp>() == 8);
};
