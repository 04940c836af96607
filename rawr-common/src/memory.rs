//! The relay over plain memory: what tests, fuzzers and benchmarks run on the host.

use core::cell::Cell;
use core::ptr::NonNull;

use crate::flow::{Exit, Flow4, Flow6, Rate};
use crate::relay::{Frame, Tables};
use crate::shared::Shared;

/// A frame in a buffer that may have room before it.
#[derive(Debug)]
pub struct Buffer<'a> {
    bytes: &'a [Cell<u8>],
    head: usize,
    ingress: u32,
}

impl<'a> Buffer<'a> {
    /// The frame that begins at `head` of `bytes` and came in by the interface `ingress`.
    ///
    /// # Panics
    /// If `head` lies behind the end.
    pub fn new(bytes: &'a mut [u8], head: usize, ingress: u32) -> Self {
        assert!(head <= bytes.len(), "the frame begins within the buffer");
        Self { bytes: Cell::from_mut(bytes).as_slice_of_cells(), head, ingress }
    }

    /// Where in the buffer the frame begins now.
    pub fn head(&self) -> usize {
        self.head
    }
}

// SAFETY: `at` returns a part of a slice that may be written through shared references.
unsafe impl Frame for Buffer<'_> {
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let part = self.bytes[self.head..].get(offset..offset.checked_add(len)?)?;
        NonNull::new(part.as_ptr().cast::<u8>().cast_mut())
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.head
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn move_head(&mut self, delta: i32) -> bool {
        // As in the kernel, an Ethernet header's worth of bytes stays.
        let most = self.bytes.len().saturating_sub(14);
        let moved = self.head.checked_add_signed(delta as isize).filter(|head| *head <= most);
        self.head = moved.unwrap_or(self.head);
        moved.is_some()
    }
}

/// Tables in slices. The flow tables are as long as each other, and that is a power of two.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    pub flows4: &'a [Cell<Flow4>],
    pub flows6: &'a [Cell<Flow6>],
    pub exits: &'a [Exit],
    pub rates: &'a [Cell<Rate>],
    /// Whether there is an interface, per slot of the device map.
    pub egress: &'a [bool],
    /// Nanoseconds.
    pub now: u64,
}

impl Tables for Memory<'_> {
    fn mask(&self) -> u32 {
        u32::try_from(self.flows4.len()).map_or(u32::MAX, |len| len.wrapping_sub(1))
    }

    fn flow4(&self, index: u32) -> Option<Shared<Flow4>> {
        let entry = self.flows4.get(index as usize)?;
        // SAFETY: the cell lies in a slice that outlives the packet, and may be read while shared.
        unsafe { Shared::open(NonNull::new(entry.as_ptr())?) }
    }

    fn flow6(&self, index: u32) -> Option<Shared<Flow6>> {
        let entry = self.flows6.get(index as usize)?;
        // SAFETY: as above.
        unsafe { Shared::open(NonNull::new(entry.as_ptr())?) }
    }

    fn has_egress(&self, slot: u8) -> bool {
        self.egress.get(usize::from(slot)).is_some_and(|there| *there)
    }

    fn exit(&self, slot: u8) -> Option<Exit> {
        self.exits.get(usize::from(slot)).copied()
    }

    fn admit(&self, rate: u32, bytes: u16) -> bool {
        let Some(cell) = self.rates.get(rate as usize) else { return true };
        let Some(full_at) = cell.get().admit(self.now, bytes) else { return false };
        cell.set(Rate { full_at, ..cell.get() });
        true
    }
}
