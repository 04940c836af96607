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
    /// The number of the channel that the payload is sent over, as ChannelData.
    pub channel: Option<u16>,
    pub payload: Vec<u8>,
    /// What follows a ChannelData message within the datagram.
    pub fill: Vec<u8>,
    /// Whether the UDP checksum is computed or left 0.
    pub checksum: bool,
    /// What a relay has taken off the datagram's end, and left in the frame.
    pub trailer: Vec<u8>,
    /// Bytes behind that, as short frames get on an Ethernet.
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
            channel: None,
            payload: b"rawr".to_vec(),
            fill: Vec::new(),
            checksum: true,
            trailer: Vec::new(),
            padding: 0,
        }
    }

    /// What leaves when a relay forwards the payload as `src` to `dst`, over a channel or as it is; layer 2
    /// is left alone.
    pub fn relayed(&self, src: SocketAddr, dst: SocketAddr, channel: Option<u16>) -> Self {
        let mut relayed = Self { src, dst, channel, ttl: self.ttl - 1, ..self.clone() };
        relayed.trailer.splice(..0, relayed.fill.drain(..));
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
        frame.extend(&self.trailer);
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

    /// Where the payload begins, behind all headers.
    pub fn payload_offset(&self) -> usize {
        self.udp_offset() + 8 + if self.channel.is_some() { 4 } else { 0 }
    }

    /// Length from the IP header to the datagram's end.
    pub fn ip_len(&self) -> usize {
        self.udp_offset() - self.ip_offset() + usize::from(self.udp_len())
    }

    /// Bytes of padding that make a ChannelData message a multiple of four.
    pub fn padding_of_channel(&self) -> usize {
        self.payload.len().next_multiple_of(4) - self.payload.len()
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
        header.extend(self.udp_len().to_be_bytes());
        header.extend([17, self.ttl]);
        header.extend(src);
        header.extend(dst);
        header
    }

    fn udp(&self) -> Vec<u8> {
        let len = self.udp_len();
        let mut datagram = self.src.port().to_be_bytes().to_vec();
        datagram.extend(self.dst.port().to_be_bytes());
        datagram.extend(len.to_be_bytes());
        datagram.extend([0, 0]);
        if let Some(number) = self.channel {
            datagram.extend(number.to_be_bytes());
            datagram.extend((self.payload.len() as u16).to_be_bytes());
        }
        datagram.extend(&self.payload);
        datagram.extend(&self.fill);
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

    fn udp_len(&self) -> u16 {
        let header = self.payload_offset() - self.udp_offset();
        (header + self.payload.len() + self.fill.len()) as u16
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
