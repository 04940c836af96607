//! The relay over plain memory: what tests, fuzzers and benchmarks run on the host.

use core::cell::Cell;
use core::ops::Range;
use core::ptr::NonNull;

use crate::flow::{Exit, Flow4, Flow6, Rate};
use crate::rate;
use crate::relay::{Frame, Tables};
use crate::shared::{Entry, Shared};

/// A frame in a buffer that may have room before and behind it.
#[derive(Debug)]
pub struct Buffer<'a> {
    bytes: &'a [Cell<u8>],
    head: usize,
    end: usize,
    ingress: u32,
}

impl<'a> Buffer<'a> {
    /// The frame in this part of `bytes`, which came in by the interface `ingress`.
    ///
    /// # Panics
    /// If the part is not within the buffer.
    pub fn new(bytes: &'a mut [u8], frame: Range<usize>, ingress: u32) -> Self {
        let Range { start: head, end } = frame;
        assert!(head <= end && end <= bytes.len(), "the frame lies within the buffer");
        Self { bytes: Cell::from_mut(bytes).as_slice_of_cells(), head, end, ingress }
    }

    /// Where in the buffer the frame lies now.
    pub fn range(&self) -> Range<usize> {
        self.head..self.end
    }
}

// SAFETY: `at` returns a part of a slice that may be written through shared references.
unsafe impl Frame for Buffer<'_> {
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let part = self.bytes[self.head..self.end].get(offset..offset.checked_add(len)?)?;
        NonNull::new(part.as_ptr().cast::<u8>().cast_mut())
    }

    fn len(&self) -> usize {
        self.end - self.head
    }

    fn ingress(&self) -> u32 {
        self.ingress
    }

    fn move_head(&mut self, delta: i32) -> bool {
        // As in the kernel, an Ethernet header's worth of bytes stays.
        let most = self.end.saturating_sub(14);
        let moved = self.head.checked_add_signed(delta as isize).filter(|head| *head <= most);
        self.head = moved.unwrap_or(self.head);
        moved.is_some()
    }

    fn move_tail(&mut self, delta: i32) -> bool {
        let within = self.head + 14..=self.bytes.len();
        let moved = self.end.checked_add_signed(delta as isize).filter(|end| within.contains(end));
        self.end = moved.unwrap_or(self.end);
        moved.is_some()
    }
}

/// Tables in slices. The port tables are as long as each other, and that is a power of two; so are the
/// channel tables, of one group at least.
#[derive(Clone, Copy, Debug)]
pub struct Memory<'a> {
    pub flows4: &'a [Cell<Flow4>],
    pub flows6: &'a [Cell<Flow6>],
    pub channels4: &'a [Cell<Flow4>],
    pub channels6: &'a [Cell<Flow6>],
    /// See [`crate::sharing`].
    pub shared_ports: &'a [Cell<u64>],
    /// See [`crate::flow::names::HASH_SEED`].
    pub seed: u64,
    pub exits: &'a [Exit],
    pub rates: &'a [Cell<Rate>],
    /// Whether there is an interface, per slot of the device map.
    pub egress: &'a [bool],
    /// Nanoseconds.
    pub now: u64,
}

impl Tables for Memory<'_> {
    fn mask(&self) -> u32 {
        mask(self.flows4)
    }

    fn channel_mask(&self) -> u32 {
        mask(self.channels4)
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn flow4(&self, index: u32) -> Option<Shared<Flow4>> {
        open(self.flows4, index)
    }

    fn flow6(&self, index: u32) -> Option<Shared<Flow6>> {
        open(self.flows6, index)
    }

    fn shared_ports(&self, index: u32) -> u64 {
        self.shared_ports.get(index as usize).map_or(0, Cell::get)
    }

    fn channel4(&self, index: u32) -> Option<Shared<Flow4>> {
        open(self.channels4, index)
    }

    fn channel6(&self, index: u32) -> Option<Shared<Flow6>> {
        open(self.channels6, index)
    }

    fn has_egress(&self, slot: u8) -> bool {
        self.egress.get(usize::from(slot)).is_some_and(|there| *there)
    }

    fn exit(&self, slot: u8) -> Option<&Exit> {
        self.exits.get(usize::from(slot))
    }

    fn admit(&self, rate: u32, bytes: u16) -> bool {
        let at = |index: u32| NonNull::new(self.rates.get(index as usize)?.as_ptr());
        // SAFETY: cells in a slice that outlives the packet; nobody else has them meanwhile.
        unsafe { rate::admit(at, rate, self.now, bytes) }
    }
}

fn mask<E>(table: &[Cell<E>]) -> u32 {
    u32::try_from(table.len()).map_or(u32::MAX, |len| len.wrapping_sub(1))
}

fn open<E: Entry>(table: &[Cell<E>], index: u32) -> Option<Shared<E>> {
    let entry = table.get(index as usize)?;
    // SAFETY: the cell lies in a slice that outlives the packet, and may be read while shared.
    unsafe { Shared::open(NonNull::new(entry.as_ptr())?) }
}
