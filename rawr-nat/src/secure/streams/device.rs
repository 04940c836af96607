//! The network that `smoltcp` sees: two hosts, IPv6, no checksums since everything is sealed.
//!
//! Each side is the first host for itself. The IPv6 header says nothing that both sides do not know,
//! so it stays here: only TCP segments go over the wire.

use std::collections::VecDeque;

use smoltcp::phy::{
    Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken,
};
use smoltcp::time::Instant;
use smoltcp::wire::{IpAddress, Ipv6Address};

const HEADER_LEN: usize = 40;
const TCP: u8 = 6;

const OWN: Ipv6Address = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const PEER: Ipv6Address = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0, 2);

pub(super) const OWN_ADDRESS: IpAddress = IpAddress::Ipv6(OWN);
pub(super) const PEER_ADDRESS: IpAddress = IpAddress::Ipv6(PEER);

/// Holds the one segment that is to be taken in, and those that are to go out.
pub(super) struct SegmentDevice {
    /// The longest segment.
    mtu: usize,
    arrived: Option<Vec<u8>>,
    leaving: VecDeque<Vec<u8>>,
}

impl SegmentDevice {
    pub(super) const fn new(mtu: usize) -> Self {
        Self { mtu, arrived: None, leaving: VecDeque::new() }
    }

    pub(super) fn put(&mut self, segment: &[u8]) {
        let Ok(length) = u16::try_from(segment.len()) else { return };
        let mut packet = Vec::with_capacity(HEADER_LEN + segment.len());
        packet.extend_from_slice(&[0x60, 0, 0, 0]);
        packet.extend_from_slice(&length.to_be_bytes());
        packet.extend_from_slice(&[TCP, 64]);
        packet.extend_from_slice(&PEER.octets());
        packet.extend_from_slice(&OWN.octets());
        packet.extend_from_slice(segment);
        self.arrived = Some(packet);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.leaving.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        self.leaving.pop_front()
    }
}

impl Device for SegmentDevice {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.arrived.take()?;
        Some((Arrived(packet), Leaving(&mut self.leaving)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.leaving))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        (checksum.tcp, checksum.icmpv6) = (Checksum::None, Checksum::None);
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = HEADER_LEN + self.mtu;
        capabilities.checksum = checksum;
        capabilities
    }
}

pub(super) struct Arrived(Vec<u8>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub(super) struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        let is_tcp = packet.get(6) == Some(&TCP);
        if is_tcp && let Some(segment) = packet.get(HEADER_LEN..) {
            self.0.push_back(segment.to_vec());
        }
        result
    }
}
