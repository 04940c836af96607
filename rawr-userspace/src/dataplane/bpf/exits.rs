//! The exits and the device map: which slot stands for which way out of this host.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
};

use aya::{
    Pod,
    maps::{Array, DevMap, MapData},
};
use rawr_common::flow::{self, Exit};

use super::{super::backend::BackendError, features, os_error};

/// The exits by which flows leave, each with a slot of its own in both maps.
///
/// The kernel reads an exit without asking whether it changes. So one is written before the first
/// flow that names it, and its slot is not given to another before the last such flow has gone, and
/// then as late as possible, because a packet may still be on its way.
pub(super) struct Exits {
    values: Array<MapData, ExitValue>,
    devices: DevMap<MapData>,
    slots: Slots,
    /// Interfaces that are known to take frames from other drivers.
    taking: BTreeSet<u32>,
}

/// An exit in its map.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct ExitValue(Exit);

// SAFETY: integers and byte arrays without padding.
unsafe impl Pod for ExitValue {}

impl Exits {
    /// Maps with whatever they hold. The interfaces are written anew, so that they mean those of this
    /// network namespace. No flow names an exit yet: see [`Exits::hold`].
    pub(super) fn adopt(
        values: Array<MapData, ExitValue>,
        mut devices: DevMap<MapData>,
    ) -> Result<Self, BackendError> {
        let mut found = Vec::new();
        for slot in 0..flow::EXITS {
            let ExitValue(exit) = values
                .get(&slot, 0)
                .map_err(|error| BackendError::kernel("read an exit", os_error(&error)))?;
            if exit.ifindex != 0 && devices.set(slot, exit.ifindex, None, 0).is_err() {
                // There is no such interface here; perhaps there will be.
                let _ = devices.set(slot, 0, None, 0);
            }
            found.push(exit);
        }
        Ok(Self { values, devices, slots: Slots::new(found), taking: BTreeSet::new() })
    }

    /// The exit in a slot, if there is one.
    pub(super) fn get(&self, slot: u8) -> Option<Exit> {
        self.slots.get(slot)
    }

    /// The slot of an exit that has one.
    pub(super) fn find(&self, exit: &Exit) -> Option<u8> {
        self.slots.find(exit)
    }

    /// One flow more names this slot.
    pub(super) fn hold(&mut self, slot: u8) {
        self.slots.hold(slot);
    }

    /// The slot of an exit for one flow more. It gets one if it has none, and its interface again if
    /// that went away meanwhile.
    pub(super) fn acquire(&mut self, exit: &Exit) -> Result<u8, BackendError> {
        if let Some(slot) = self.slots.find(exit) {
            self.link(slot, exit.ifindex)?;
            self.slots.hold(slot);
            return Ok(slot);
        }
        let slot = self.slots.take(exit).ok_or(BackendError::TooManyExits { most: flow::EXITS })?;
        let written = self.link(slot, exit.ifindex).and_then(|()| {
            self.values
                .set(slot.into(), ExitValue(*exit), 0)
                .map_err(|error| BackendError::kernel("write an exit", os_error(&error)))
        });
        if let Err(error) = written {
            self.slots.forget(slot);
            return Err(error);
        }
        Ok(slot)
    }

    /// One flow less names this slot.
    pub(super) fn release(&mut self, slot: u8) {
        self.slots.release(slot);
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

    /// Makes sure that the device map has an interface in a slot.
    fn link(&mut self, slot: u8, ifindex: u32) -> Result<(), BackendError> {
        if self.devices.get(slot.into(), 0).is_ok_and(|device| device.if_index == ifindex) {
            return Ok(());
        }
        self.devices.set(slot.into(), ifindex, None, 0).map_err(|error| {
            let source = os_error(&error);
            match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    BackendError::Privilege { what: "write the device map" }
                }
                _ => BackendError::Egress { ifindex, source },
            }
        })
    }
}

/// Which exit has which slot, and how many flows name it.
#[derive(Debug)]
struct Slots {
    slots: Vec<Slot>,
    by_exit: BTreeMap<Exit, u8>,
    /// Slots that no flow names, the one to use next first: those never used, then the one that has
    /// rested longest. An exit keeps its slot until another takes it.
    free: VecDeque<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    exit: Exit,
    flows: u32,
}

impl Slots {
    /// As many slots as exits; one without an interface is none.
    fn new(exits: Vec<Exit>) -> Self {
        let numbered = || (0..=u8::MAX).zip(&exits);
        let (used, unused): (Vec<_>, Vec<_>) = numbered().partition(|(_, exit)| exit.ifindex != 0);
        let free = unused.iter().chain(&used).map(|&(slot, _)| slot).collect();
        let by_exit = used.iter().map(|&(slot, exit)| (*exit, slot)).collect();
        let slots = exits.iter().map(|&exit| Slot { exit, flows: 0 }).collect();
        Self { slots, by_exit, free }
    }

    fn get(&self, slot: u8) -> Option<Exit> {
        let slot = self.slots.get(usize::from(slot))?;
        (slot.exit.ifindex != 0).then_some(slot.exit)
    }

    fn find(&self, exit: &Exit) -> Option<u8> {
        self.by_exit.get(exit).copied()
    }

    /// The next free slot for an exit that has none, named by one flow.
    fn take(&mut self, exit: &Exit) -> Option<u8> {
        let slot = self.free.pop_front()?;
        self.unname(slot);
        self.slots[usize::from(slot)] = Slot { exit: *exit, flows: 1 };
        self.by_exit.insert(*exit, slot);
        Some(slot)
    }

    /// Undoes the latest [`Slots::take`].
    fn forget(&mut self, slot: u8) {
        self.unname(slot);
        self.slots[usize::from(slot)] = Slot { exit: Exit::default(), flows: 0 };
        self.free.push_front(slot);
    }

    fn hold(&mut self, slot: u8) {
        if self.slots[usize::from(slot)].flows == 0 {
            self.free.retain(|free| *free != slot);
        }
        self.slots[usize::from(slot)].flows += 1;
    }

    fn release(&mut self, slot: u8) {
        let flows = &mut self.slots[usize::from(slot)].flows;
        *flows -= 1;
        if *flows == 0 {
            self.free.push_back(slot);
        }
    }

    fn unname(&mut self, slot: u8) {
        let exit = self.slots[usize::from(slot)].exit;
        if self.find(&exit) == Some(slot) {
            self.by_exit.remove(&exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use rawr_common::entry::Tags;

    use super::*;

    fn exit(tag: u16) -> Exit {
        Exit::new(7, [2, 0, 0, 0, 0, 1], 1500).tagged(Tags::Customer(tag))
    }

    #[test]
    fn an_exit_that_is_named_keeps_its_slot() {
        let mut slots = Slots::new(vec![Exit::default(); 2]);
        assert_eq!((slots.take(&exit(1)), slots.take(&exit(2))), (Some(0), Some(1)));
        assert_eq!(slots.take(&exit(3)), None);
        slots.hold(0);
        slots.release(0);
        assert_eq!(slots.take(&exit(3)), None, "one flow is left");
        slots.release(0);
        assert_eq!((slots.find(&exit(1)), slots.get(0)), (Some(0), Some(exit(1))), "until taken");
        assert_eq!(slots.take(&exit(3)), Some(0));
        assert_eq!((slots.find(&exit(1)), slots.find(&exit(3))), (None, Some(0)));
    }

    #[test]
    fn what_was_named_last_is_taken_last() {
        let mut slots = Slots::new(vec![exit(1), Exit::default(), exit(2), Exit::default()]);
        slots.hold(2);
        assert_eq!((slots.find(&exit(1)), slots.find(&exit(2))), (Some(0), Some(2)));
        assert_eq!(slots.take(&exit(3)), Some(1), "never used");
        slots.release(1);
        assert_eq!(slots.take(&exit(4)), Some(3), "never used");
        assert_eq!(slots.take(&exit(5)), Some(0), "a predecessor's, which nothing names");
        assert_eq!(slots.take(&exit(6)), Some(1), "rested");
        assert_eq!(slots.take(&exit(7)), None);
    }

    #[test]
    fn a_slot_that_could_not_be_written_means_nothing() {
        let mut slots = Slots::new(vec![exit(1)]);
        let slot = slots.take(&exit(2)).unwrap();
        slots.forget(slot);
        assert_eq!(
            (slots.get(slot), slots.find(&exit(1)), slots.find(&exit(2))),
            (None, None, None)
        );
        assert_eq!(slots.take(&exit(3)), Some(slot));
    }
}
