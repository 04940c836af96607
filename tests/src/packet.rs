//! Frames with UDP datagrams, built from a description, with checksums computed from scratch.
//!
//! A forwarded frame is compared with what a builder of the expected headers gives, byte by byte; so
//! nothing here shares code with what it tests.

use std::net::{IpAddr, SocketAddr};

/// 802.1Q.
pub const VLAN: u16 = 0x8100;
/// 802.1ad.
pub const SERVICE_VLAN: u16 = 0x88a8;

/// A UDP datagram in an Ethernet frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    /// TPID and tag control information, outermost first.
    pub tags: Vec<(u16, u16)>,
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// TOS or traffic class.
    pub class: u8,
    pub ttl: u8,
    /// IPv4 only.
    pub id: u16,
    /// IPv4 only: flags and offset.
    pub fragment: u16,
    /// IPv6 only.
    pub flow_label: u32,
    pub payload: Vec<u8>,
    /// Whether the UDP checksum is computed or left 0.
    pub checksum: bool,
    /// Bytes behind the datagram, as short frames get on an Ethernet.
    pub padding: usize,
}

impl Packet {
    /// A datagram with a short payload between two addresses of the same family.
    pub fn new(src: SocketAddr, dst: SocketAddr) -> Self {
        assert_eq!(src.is_ipv4(), dst.is_ipv4(), "a datagram has one family");
        Self {
            src_mac: [0x02, 0, 0, 0, 0, 0x01],
            dst_mac: [0x02, 0, 0, 0, 0, 0x02],
            tags: Vec::new(),
            src,
            dst,
            class: 0,
            ttl: 64,
            id: 0,
            fragment: 0x4000,
            flow_label: 0,
            payload: b"rawr".to_vec(),
            checksum: true,
            padding: 0,
        }
    }

    /// What leaves when a relay forwards this datagram as `src` to `dst`; layer 2 is left alone.
    pub fn relayed(&self, src: SocketAddr, dst: SocketAddr) -> Self {
        let mut relayed = Self { src, dst, ttl: self.ttl - 1, ..self.clone() };
        if src.is_ipv4() != self.src.is_ipv4() {
            // Don't fragment; the rest is what the other family cannot tell.
            (relayed.id, relayed.fragment, relayed.flow_label) = (0, 0x4000, 0);
        }
        relayed
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.link_layer();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                frame.extend(self.ipv4(src.octets(), dst.octets()));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                frame.extend(self.ipv6(src.octets(), dst.octets()));
            }
            _ => unreachable!("a datagram has one family"),
        }
        frame.extend(self.udp());
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// Where the IP header begins.
    pub fn ip_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where the UDP header begins.
    pub fn udp_offset(&self) -> usize {
        self.ip_offset() + if self.src.is_ipv4() { 20 } else { 40 }
    }

    /// Length from the IP header to the payload's end.
    pub fn ip_len(&self) -> usize {
        self.udp_offset() - self.ip_offset() + 8 + self.payload.len()
    }

    fn link_layer(&self) -> Vec<u8> {
        let mut bytes = [self.dst_mac, self.src_mac].concat();
        for (tpid, control) in &self.tags {
            bytes.extend(tpid.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        bytes.extend(if self.src.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] });
        bytes
    }

    fn ipv4(&self, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
        let mut header = vec![0x45, self.class];
        header.extend((self.ip_len() as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, 17, 0, 0]);
        header.extend(src);
        header.extend(dst);
        let checksum = checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    fn ipv6(&self, src: [u8; 16], dst: [u8; 16]) -> Vec<u8> {
        let first = 6 << 28 | u32::from(self.class) << 20 | self.flow_label;
        let mut header = first.to_be_bytes().to_vec();
        header.extend((self.payload.len() as u16 + 8).to_be_bytes());
        header.extend([17, self.ttl]);
        header.extend(src);
        header.extend(dst);
        header
    }

    fn udp(&self) -> Vec<u8> {
        let len = self.payload.len() as u16 + 8;
        let mut datagram = self.src.port().to_be_bytes().to_vec();
        datagram.extend(self.dst.port().to_be_bytes());
        datagram.extend(len.to_be_bytes());
        datagram.extend([0, 0]);
        datagram.extend(&self.payload);
        if self.checksum {
            let mut covered = self.pseudo_header(len);
            covered.extend(&datagram);
            let checksum = match checksum(&covered) {
                0 => 0xffff,
                checksum => checksum,
            };
            datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
        }
        datagram
    }

    fn pseudo_header(&self, len: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        for ip in [self.src.ip(), self.dst.ip()] {
            match ip {
                IpAddr::V4(ip) => bytes.extend(ip.octets()),
                IpAddr::V6(ip) => bytes.extend(ip.octets()),
            }
        }
        bytes.extend(u32::from(len).to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        bytes
    }
}

/// The Internet checksum (RFC 1071), by the book.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
