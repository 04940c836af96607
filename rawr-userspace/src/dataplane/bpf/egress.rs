//! The device map: which slot stands for which interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use aya::maps::{DevMap, MapData};

use super::{super::backend::BackendError, features, os_error};

/// The interfaces that packets may leave by.
pub(super) struct Egress {
    map: DevMap<MapData>,
    slots: BTreeMap<u32, u8>,
    /// Interfaces that are known to take frames from other drivers.
    taking: BTreeSet<u32>,
}

impl Egress {
    /// A device map with whatever it holds. Its entries are written anew, so that they mean the
    /// interfaces of this network namespace.
    pub(super) fn adopt(map: DevMap<MapData>) -> Self {
        let mut egress = Self { map, slots: BTreeMap::new(), taking: BTreeSet::new() };
        for slot in 0..=egress.last_slot() {
            if let Some(ifindex) = egress.get(slot)
                && egress.map.set(slot.into(), ifindex, None, 0).is_ok()
            {
                egress.slots.insert(ifindex, slot);
            }
        }
        egress
    }

    /// The slot of an interface that has one.
    pub(super) fn known(&self, ifindex: u32) -> Option<u8> {
        self.slots.get(&ifindex).copied()
    }

    /// The slot of an interface, which gets one if it has none, or lost it by going away.
    pub(super) fn slot(&mut self, ifindex: u32) -> Result<u8, BackendError> {
        if let Some(slot) = self.known(ifindex)
            && self.get(slot) == Some(ifindex)
        {
            return Ok(slot);
        }
        self.slots.remove(&ifindex);
        let slot = self.free().ok_or(BackendError::TooManyInterfaces { most: self.map.len() })?;
        self.map.set(slot.into(), ifindex, None, 0).map_err(|error| {
            let source = os_error(&error);
            match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    BackendError::Privilege { what: "write the device map" }
                }
                _ => BackendError::Egress { ifindex, source },
            }
        })?;
        self.slots.retain(|_, other| *other != slot);
        self.slots.insert(ifindex, slot);
        Ok(slot)
    }

    /// Whether an interface takes frames that a program in another driver, or in its own, redirects
    /// to it. A veth does only while its peer has GRO or an XDP program.
    pub(super) fn takes_frames(&mut self, ifindex: u32) -> bool {
        if self.taking.contains(&ifindex) {
            return true;
        }
        // A kernel that does not tell (before 6.3) has to be believed.
        let takes = features::of(ifindex).map_or(true, |bits| bits & features::NDO_XMIT != 0);
        if takes {
            self.taking.insert(ifindex);
        }
        takes
    }

    /// A slot without an interface, preferably one that no flow has ever named.
    fn free(&self) -> Option<u8> {
        let all = || 0..=self.last_slot();
        let unused = all().find(|slot| !self.slots.values().any(|used| used == slot));
        unused.or_else(|| all().find(|&slot| self.get(slot).is_none()))
    }

    fn get(&self, slot: u8) -> Option<u32> {
        self.map.get(slot.into(), 0).ok().map(|value| value.if_index)
    }

    fn last_slot(&self) -> u8 {
        u8::try_from(self.map.len().saturating_sub(1)).unwrap_or(u8::MAX)
    }
}
