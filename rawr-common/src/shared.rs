//! Entries of the flow tables in memory that userspace writes while the kernel reads it.

use core::mem::{MaybeUninit, offset_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering, fence};

use crate::flow::{Channels, Counters, Flow4, Flow6, Recipe, Tuple4, Tuple6, VACANT};

/// What is loaded and stored at once.
type Word = u32;

/// An entry of a flow table.
///
/// # Safety
/// `Self` is aligned to 8 bytes and consists of 32-bit words without padding, any bits of them are a
/// valid value, the word number `GENERATION` is the generation, the word number `CHANNELS` is
/// [`Channels`], and at the word number `COUNTERS`, an even one, there are [`Counters`].
pub unsafe trait Entry: Copy {
    /// Where [`Recipe::generation`] is, in words.
    const GENERATION: usize;
    /// Where [`Recipe::channels`] are, in words.
    const CHANNELS: usize;
    /// Where the counters are, in words.
    const COUNTERS: usize;
}

/// A flow while it may change. What was loaded holds only once [`Shared::check`] has succeeded.
pub struct Shared<E> {
    entry: NonNull<E>,
    generation: u32,
}

impl<E> Clone for Shared<E> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Shared<E> {}

impl<E: Entry> Shared<E> {
    /// Begins to read an entry; `None` if it holds no flow.
    ///
    /// # Safety
    /// `entry` is readable and aligned for as long as the result is used.
    #[inline(always)]
    pub unsafe fn open(entry: NonNull<E>) -> Option<Self> {
        // SAFETY: the caller vouches for `entry`.
        let generation = unsafe { generation(entry) };
        (generation != VACANT).then_some(Self { entry, generation })
    }

    /// Fails if the entry has changed since it was opened.
    #[inline(always)]
    pub fn check(&self) -> Option<()> {
        // SAFETY: whoever opened it vouched for `entry`.
        (unsafe { generation(self.entry) } == self.generation).then_some(())
    }

    #[inline(always)]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// [`Recipe::channels`].
    #[inline(always)]
    pub fn channels(&self) -> Channels {
        const { assert!((E::CHANNELS * size_of::<Word>()).is_multiple_of(align_of::<Channels>())) };
        // SAFETY: `Entry` vouches for the offset; the size is that of a word.
        unsafe { self.load::<Channels, Word>(E::CHANNELS * size_of::<Word>()) }
    }

    /// What counts the flow's packets.
    #[inline(always)]
    pub fn meter(&self) -> Meter {
        // SAFETY: `Entry` vouches for the offset.
        Meter(unsafe { counters_at(self.entry) })
    }

    /// Loads `T` at a byte offset, `W` by `W` and the rest in words, in program order with other such
    /// loads.
    ///
    /// # Safety
    /// At `offset`, a multiple of the size of `W`, there is a `T` made of whole words within the entry.
    #[inline(always)]
    unsafe fn load<T: Copy, W: Copy>(&self, offset: usize) -> T {
        let mut copy = MaybeUninit::<T>::uninit();
        let mut done = 0;
        // SAFETY: within `T` on both sides; `entry` is aligned, and so is `offset`, while the copy need
        // not be.
        unsafe {
            let source = self.entry.as_ptr().cast_const().byte_add(offset);
            while done + size_of::<W>() <= size_of::<T>() {
                let word = source.byte_add(done).cast::<W>().read_volatile();
                copy.as_mut_ptr().byte_add(done).cast::<W>().write_unaligned(word);
                done += size_of::<W>();
            }
            while done < size_of::<T>() {
                let word = source.byte_add(done).cast::<Word>().read_volatile();
                copy.as_mut_ptr().byte_add(done).cast::<Word>().write_unaligned(word);
                done += size_of::<Word>();
            }
        }
        // SAFETY: all words have been written, and any bits are a valid value.
        unsafe { copy.assume_init() }
    }
}

/// The counters of a flow while they may change.
pub struct Meter(NonNull<Counters>);

impl Meter {
    /// Counts a packet of `bytes`, without a lock: of two CPUs that do so at once, one may not have
    /// counted.
    #[inline(always)]
    pub fn count(&self, bytes: u16) {
        let counters = self.0.as_ptr();
        // SAFETY: whoever opened the entry vouched for it, and `Entry` for the counters in it.
        unsafe {
            let (packets, sum) = (&raw mut (*counters).packets, &raw mut (*counters).bytes);
            packets.write_volatile(packets.read_volatile().wrapping_add(1));
            sum.write_volatile(sum.read_volatile().wrapping_add(u64::from(bytes)));
        }
    }
}

/// Accessors that load one field each, by loads of one size as far as it goes.
macro_rules! fields {
    ($entry:ident { $($field:ident: $type:ty as $word:ty),* }) => {
        impl Shared<$entry> {
            $(
                #[inline(always)]
                pub fn $field(&self) -> $type {
                    const { assert!(offset_of!($entry, $field) % size_of::<$word>() == 0) };
                    const { assert!(size_of::<$type>() % size_of::<Word>() == 0) };
                    // SAFETY: the field of this name lies there; the size was just asserted.
                    unsafe { self.load::<$type, $word>(offset_of!($entry, $field)) }
                }
            )*
        }
    };
}

impl Shared<Flow4> {
    /// Index of the reverse flow, if there is one; see [`Flow4::to`].
    #[inline(always)]
    pub fn reverse(&self) -> u32 {
        const OFFSET: usize = offset_of!(Flow4, to) + offset_of!(Tuple4, src);
        const { assert!(OFFSET.is_multiple_of(size_of::<u32>())) };
        // SAFETY: a word of this field lies there.
        unsafe { self.load::<u32, u32>(OFFSET) }
    }
}

fields!(Flow4 { from: Tuple4 as u32, to: Tuple4 as u32, recipe: Recipe as u32 });
fields!(Flow6 {
    from: Tuple6 as u64,
    recipe: Recipe as u32,
    to4: Tuple4 as u32,
    to6: Tuple6 as u64
});

/// Writes `value` but for its counters over an entry, such that a reader either gets one of the two
/// whole or sees that it changes.
///
/// # Safety
/// `entry` is writable and aligned, and nobody else writes it at the same time, save for counting.
pub unsafe fn publish<E: Entry>(entry: *mut E, value: &E) {
    // SAFETY: the caller vouches for `entry`.
    unsafe { retract(entry) };
    let (target, source) = (entry.cast::<Word>(), ptr::from_ref(value).cast::<Word>());
    for index in words::<E>().filter(|index| *index != E::GENERATION) {
        // SAFETY: `Entry` vouches for these words on both sides.
        unsafe { target.add(index).write_volatile(source.add(index).read()) };
    }
    fence(Ordering::Release);
    // SAFETY: as above.
    unsafe { target.add(E::GENERATION).write_volatile(source.add(E::GENERATION).read()) };
}

/// Makes an entry vacant. Its counters stay.
///
/// # Safety
/// As for [`publish`].
pub unsafe fn retract<E: Entry>(entry: *mut E) {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { entry.cast::<Word>().add(E::GENERATION).write_volatile(VACANT) };
    fence(Ordering::SeqCst);
}

/// What an entry says, with zeros for its counters.
///
/// # Safety
/// `entry` is readable and aligned, and nobody else writes it at the same time, save for counting.
pub unsafe fn read<E: Entry>(entry: NonNull<E>) -> E {
    let mut copy = MaybeUninit::<E>::zeroed();
    let (target, source) = (copy.as_mut_ptr().cast::<Word>(), entry.cast::<Word>());
    for index in words::<E>() {
        // SAFETY: `Entry` vouches for these words on both sides.
        unsafe { target.add(index).write(source.add(index).read_volatile()) };
    }
    // SAFETY: any bits are a valid value.
    unsafe { copy.assume_init() }
}

/// What an entry's flow, or its last one, has forwarded.
///
/// # Safety
/// `entry` is readable and aligned.
pub unsafe fn counters<E: Entry>(entry: NonNull<E>) -> Counters {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe {
        let counters = counters_at(entry).as_ptr();
        Counters {
            packets: (&raw const (*counters).packets).read_volatile(),
            bytes: (&raw const (*counters).bytes).read_volatile(),
        }
    }
}

/// Sets the counters of a vacant entry to zero.
///
/// # Safety
/// `entry` is writable and aligned.
pub unsafe fn reset_counters<E: Entry>(entry: NonNull<E>) {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { counters_at(entry).write_volatile(Counters::default()) };
}

/// # Safety
/// `entry` is readable and aligned.
#[inline(always)]
unsafe fn generation<E: Entry>(entry: NonNull<E>) -> u32 {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { entry.cast::<Word>().add(E::GENERATION).read_volatile() }
}

/// # Safety
/// There is an entry.
#[inline(always)]
unsafe fn counters_at<E: Entry>(entry: NonNull<E>) -> NonNull<Counters> {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { entry.cast::<Word>().add(E::COUNTERS).cast() }
}

/// The numbers of all words but those of the counters.
fn words<E: Entry>() -> impl Iterator<Item = usize> {
    let behind = E::COUNTERS + size_of::<Counters>() / size_of::<Word>();
    (0..E::COUNTERS).chain(behind..size_of::<E>() / size_of::<Word>())
}

// SAFETY: integers and byte arrays up to the end, which `flow` asserts.
unsafe impl Entry for Flow4 {
    const GENERATION: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, generation)) / size_of::<Word>();
    const CHANNELS: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, channels)) / size_of::<Word>();
    const COUNTERS: usize = offset_of!(Self, counters) / size_of::<Word>();
}

// SAFETY: integers and byte arrays up to the end, which `flow` asserts.
unsafe impl Entry for Flow6 {
    const GENERATION: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, generation)) / size_of::<Word>();
    const CHANNELS: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, channels)) / size_of::<Word>();
    const COUNTERS: usize = offset_of!(Self, counters) / size_of::<Word>();
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::flow::flags;

    /// A flow that has the same byte everywhere.
    fn filled(byte: u8) -> Flow6 {
        let src = [byte; 16];
        let from = Tuple6 { src, dst: src, src_port: [byte; 2], dst_port: [byte; 2] };
        let generation = u32::from_ne_bytes([byte; 4]);
        let recipe =
            Recipe { generation, dst_mac: [byte; 6], flags: flags::RATED, ..Recipe::default() };
        Flow6 { from, recipe, to6: from, ..Flow6::default() }
    }

    #[test]
    fn a_reader_never_gets_parts_of_two_flows_and_counts_through_changes() {
        struct Table(*mut Flow6);
        // SAFETY: one thread writes, by `publish`; the other reads, by `Shared`.
        unsafe impl Sync for Table {}

        let mut entry = Flow6::default();
        let (table, done) = (Table(&raw mut entry), AtomicBool::new(false));
        let (table, done) = (&table, &done);
        thread::scope(|scope| {
            scope.spawn(move || {
                for round in 0..300_000_u32 {
                    // SAFETY: `entry` outlives the scope, and only this thread writes it.
                    unsafe { publish(table.0, &filled(1 + (round % 200) as u8)) };
                }
                done.store(true, Ordering::Relaxed);
            });
            let (mut whole, mut changing) = (0, 0);
            while !done.load(Ordering::Relaxed) || whole == 0 {
                // SAFETY: `entry` outlives the scope.
                let opened = NonNull::new(table.0).and_then(|entry| unsafe { Shared::open(entry) });
                let Some(shared) = opened else { continue };
                let (from, recipe, to) = (shared.from(), shared.recipe(), shared.to6());
                if shared.check().is_none() {
                    changing += 1;
                    continue;
                }
                let expected = filled(recipe.dst_mac[0]);
                assert_eq!((from, recipe, to), (expected.from, expected.recipe, expected.to6));
                shared.meter().count(3);
                whole += 1;
            }
            std::println!("{whole} whole, {changing} changing");
            // SAFETY: `entry` outlives the scope.
            let counted = NonNull::new(table.0).map(|entry| unsafe { counters(entry) });
            assert_eq!(counted, Some(Counters { packets: whole, bytes: whole * 3 }));
        });
    }
}
