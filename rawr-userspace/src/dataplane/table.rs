//! Arrays of flow entries in memory that the kernel reads while they are written.
//!
//! One process writes. Readers, in the kernel, take an entry only if its generation is the same
//! before and after they copy it, so a writer first makes the entry vacant, then fills it in, then
//! gives it a generation that it has not had before. The counters in an entry are the readers' own.

use std::{
    io,
    os::fd::BorrowedFd,
    ptr::NonNull,
    sync::atomic::{Ordering, fence},
};

use rawr_common::{
    flow::{self, VACANT},
    shared::{self, Entry},
};

use super::mapping::Mapping;

/// An array of entries in shared memory.
#[derive(Debug)]
pub struct Table<E> {
    entries: Mapping<E>,
}

impl<E: Entry> Table<E> {
    /// The `len` entries of a `BPF_F_MMAPABLE` array map.
    pub fn map(array: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        Ok(Self { entries: Mapping::of(array, len)? })
    }

    /// `len` vacant entries that nobody else reads.
    pub fn anonymous(len: u32) -> io::Result<Self> {
        Ok(Self { entries: Mapping::anonymous(len)? })
    }

    /// How many entries there are.
    pub fn len(&self) -> u32 {
        self.entries.len()
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What lies at `index`, vacant or not, with zeros for its counters.
    ///
    /// # Panics
    ///
    /// As all methods: if there is no such index.
    pub fn read(&self, index: u32) -> E {
        // SAFETY: within the mapping, which nobody else writes, save for counting.
        unsafe { shared::read(self.at(index)) }
    }

    /// What the flow at `index`, or the last one there, has forwarded.
    pub fn counters(&self, index: u32) -> flow::Counters {
        // SAFETY: within the mapping.
        unsafe { shared::counters(self.at(index)) }
    }

    /// Sets the counters of the vacant entry at `index` to zero.
    pub fn reset_counters(&mut self, index: u32) {
        // SAFETY: within the mapping.
        unsafe { shared::reset_counters(self.at(index)) };
    }

    /// The entry at `index`, unless it is vacant.
    pub fn occupied(&self, index: u32) -> Option<E> {
        (self.generation(index) != VACANT).then(|| self.read(index))
    }

    /// Puts `entry` at `index`, where the counters go on. Its generation must be one that no entry
    /// there has had.
    pub fn write(&mut self, index: u32, entry: &E) {
        // SAFETY: within the mapping, which nobody else writes, save for counting.
        unsafe { shared::publish(self.at(index).as_ptr(), entry) };
    }

    /// Gives the entry at `index`, unchanged otherwise, another generation.
    pub fn set_generation(&mut self, index: u32, generation: u32) {
        fence(Ordering::Release);
        // SAFETY: within the mapping, which nobody else writes.
        unsafe { self.generation_at(index).write_volatile(generation) };
    }

    /// Makes the entry at `index` vacant.
    pub fn vacate(&mut self, index: u32) {
        // SAFETY: within the mapping, which nobody else writes.
        unsafe { shared::retract(self.at(index).as_ptr()) };
    }

    /// The generation of the entry at `index`.
    pub fn generation(&self, index: u32) -> u32 {
        // SAFETY: within the mapping.
        unsafe { self.generation_at(index).read_volatile() }
    }

    /// The flow at `index` as the kernel sees it. Must not outlive the table.
    #[cfg(test)]
    pub(super) fn open(&self, index: u32) -> Option<shared::Shared<E>> {
        // SAFETY: within the mapping.
        unsafe { shared::Shared::open(self.at(index)) }
    }

    fn generation_at(&self, index: u32) -> *mut u32 {
        // SAFETY: `Entry` vouches that the generation lies within the entry.
        unsafe { self.at(index).as_ptr().cast::<u32>().add(E::GENERATION) }
    }

    fn at(&self, index: u32) -> NonNull<E> {
        self.entries.at(index)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, AtomicU64},
        thread,
    };

    use rawr_common::{
        flow::{Flow4, Flow6, Recipe, Tuple4, Tuple6},
        shared::Shared,
    };

    use super::*;

    #[test]
    fn entries_come_back_as_written() {
        let mut table = Table::<Flow6>::anonymous(4).unwrap();
        let tuple = |byte| Tuple6 {
            src: [byte; 16],
            dst: [byte + 1; 16],
            src_port: [byte; 2],
            dst_port: [9; 2],
        };
        let recipe = Recipe {
            generation: 77,
            rate: 7,
            udp_delta: 1500,
            dst_mac: [4; 6],
            exit: 9,
            ..Recipe::default()
        };
        let entry = Flow6 { from: tuple(1), recipe, to6: tuple(5), ..Flow6::default() };
        table.write(2, &entry);
        assert_eq!(table.occupied(2), Some(entry));
        assert_eq!(table.occupied(1), None);
        table.set_generation(2, 78);
        assert_eq!(table.read(2).recipe, Recipe { generation: 78, ..recipe });
        table.vacate(2);
        assert_eq!(table.occupied(2), None);
    }

    #[test]
    fn counters_go_on_until_they_are_reset() {
        let mut table = Table::<Flow4>::anonymous(4).unwrap();
        let with = |generation| Flow4 {
            recipe: Recipe { generation, ..Recipe::default() },
            ..Flow4::default()
        };
        table.write(2, &with(1));
        table.open(2).unwrap().meter().count(100);
        let counted = flow::Counters { packets: 1, bytes: 100 };
        assert_eq!(table.counters(2), counted);
        let stale = flow::Counters { packets: 7, bytes: 7 };
        table.write(2, &Flow4 { counters: stale, ..with(2) });
        assert_eq!((table.counters(2), table.read(2)), (counted, with(2)));
        table.vacate(2);
        assert_eq!(table.counters(2), counted, "the last ones of the flow");
        table.reset_counters(2);
        table.write(2, &with(3));
        assert_eq!(table.counters(2), flow::Counters::default());
    }

    #[test]
    #[should_panic(expected = "entry 4 of a table of 4")]
    fn there_is_nothing_behind_the_end() {
        Table::<Flow4>::anonymous(4).unwrap().vacate(4);
    }

    /// A reader that follows the kernel's rule never sees half of one entry and half of another.
    #[test]
    fn readers_never_take_a_torn_entry() {
        struct Reader(NonNull<Flow4>);
        // SAFETY: the entry outlives the scope of the thread that reads it.
        unsafe impl Send for Reader {}

        let mut table = Table::<Flow4>::anonymous(1).unwrap();
        let reader = Reader(table.at(0));
        let (done, taken) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                let reader = { reader };
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: the table outlives this thread.
                    let Some(entry) = (unsafe { Shared::open(reader.0) }) else { continue };
                    let (first, last) = (entry.from().src, entry.recipe().rate);
                    if entry.check().is_some() {
                        assert_eq!(first, last.to_ne_bytes());
                        taken.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let mut generation = 0;
            while generation < 100_000 || taken.load(Ordering::Relaxed) < 100 {
                generation += 1;
                let byte = (generation % 251) as u8;
                let from = Tuple4 { src: [byte; 4], ..Tuple4::default() };
                let rate = u32::from_ne_bytes([byte; 4]);
                let recipe = Recipe { generation, rate, ..Recipe::default() };
                table.write(0, &Flow4 { from, recipe, ..Flow4::default() });
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
