//! Entries of the flow tables in memory that userspace writes while the kernel reads it.

use core::mem::{MaybeUninit, offset_of};
use core::ptr::{self, NonNull};
use core::sync::atomic::{Ordering, fence};

use crate::flow::{Flow4, Flow6, Recipe, Tuple4, Tuple6, VACANT};

/// What is loaded and stored at once.
type Word = u32;

/// An entry of a flow table.
///
/// # Safety
/// The first `WORDS` 32-bit words of `Self` have no padding, any bits of them are a valid value, and
/// the generation is the word number `GENERATION`.
pub unsafe trait Entry: Copy {
    /// Length of what is in use, in words.
    const WORDS: usize;
    /// Where [`Recipe::generation`] is, in words.
    const GENERATION: usize;
}

/// A flow while it may change. What was loaded holds only once [`Shared::check`] has succeeded.
pub struct Shared<E> {
    entry: NonNull<E>,
    generation: u32,
}

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

    /// Loads `T` at a byte offset, word by word, in program order with other such loads.
    ///
    /// # Safety
    /// At `offset`, a multiple of 4, there is a `T` made of whole words within the entry.
    #[inline(always)]
    unsafe fn load<T: Copy>(&self, offset: usize) -> T {
        let mut copy = MaybeUninit::<T>::uninit();
        let mut index = 0;
        while index < size_of::<T>() / size_of::<Word>() {
            // SAFETY: within `T` on both sides; `entry` is aligned, and so is `offset`, while the copy
            // need not be.
            unsafe {
                let source = self.entry.as_ptr().byte_add(offset).cast::<Word>().add(index);
                copy.as_mut_ptr().cast::<Word>().add(index).write_unaligned(source.read_volatile());
            }
            index += 1;
        }
        // SAFETY: all words have been written, and any bits are a valid value.
        unsafe { copy.assume_init() }
    }
}

/// Accessors that load one field each.
macro_rules! fields {
    ($entry:ident { $($field:ident: $type:ty),* }) => {
        impl Shared<$entry> {
            $(
                #[inline(always)]
                pub fn $field(&self) -> $type {
                    const { assert!(offset_of!($entry, $field) % size_of::<Word>() == 0) };
                    const { assert!(size_of::<$type>() % size_of::<Word>() == 0) };
                    // SAFETY: the field of this name lies there; the size was just asserted.
                    unsafe { self.load(offset_of!($entry, $field)) }
                }
            )*
        }
    };
}

fields!(Flow4 { from: Tuple4, to: Tuple4, recipe: Recipe, reverse: u32 });
fields!(Flow6 { from: Tuple6, recipe: Recipe, to4: Tuple4, to6: Tuple6 });

/// Writes `value` over an entry such that a reader either gets one of the two whole or sees that it
/// changes.
///
/// # Safety
/// `entry` is writable and aligned, and nobody else writes it at the same time.
pub unsafe fn publish<E: Entry>(entry: *mut E, value: &E) {
    // SAFETY: the caller vouches for `entry`.
    unsafe { retract(entry) };
    let (target, source) = (entry.cast::<Word>(), ptr::from_ref(value).cast::<Word>());
    for index in (0..E::WORDS).filter(|index| *index != E::GENERATION) {
        // SAFETY: `Entry` vouches for these words on both sides.
        unsafe { target.add(index).write_volatile(source.add(index).read()) };
    }
    fence(Ordering::Release);
    // SAFETY: as above.
    unsafe { target.add(E::GENERATION).write_volatile(source.add(E::GENERATION).read()) };
}

/// Makes an entry vacant.
///
/// # Safety
/// As for [`publish`].
pub unsafe fn retract<E: Entry>(entry: *mut E) {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { entry.cast::<Word>().add(E::GENERATION).write_volatile(VACANT) };
    fence(Ordering::SeqCst);
}

/// # Safety
/// `entry` is readable and aligned.
#[inline(always)]
unsafe fn generation<E: Entry>(entry: NonNull<E>) -> u32 {
    // SAFETY: the caller vouches for `entry`, `Entry` for the offset.
    unsafe { entry.cast::<Word>().add(E::GENERATION).read_volatile() }
}

// SAFETY: integers and byte arrays, as far as the end of the last field.
unsafe impl Entry for Flow4 {
    const WORDS: usize = size_of::<Self>() / size_of::<Word>();
    const GENERATION: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, generation)) / size_of::<Word>();
}

// SAFETY: integers and byte arrays, as far as the end of the last field.
unsafe impl Entry for Flow6 {
    const WORDS: usize = (offset_of!(Self, to6) + size_of::<Tuple6>()) / size_of::<Word>();
    const GENERATION: usize =
        (offset_of!(Self, recipe) + offset_of!(Recipe, generation)) / size_of::<Word>();
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
            Recipe { generation, dst_mac: [byte; 6], flags: flags::TX, ..Recipe::default() };
        Flow6 { from, recipe, to4: Tuple4::default(), to6: from }
    }

    #[test]
    fn a_reader_never_gets_parts_of_two_flows() {
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
                whole += 1;
            }
            std::println!("{whole} whole, {changing} changing");
        });
    }
}
