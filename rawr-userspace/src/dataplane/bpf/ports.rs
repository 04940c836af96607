//! What tells the program which ports have flows in the channel tables.

use std::{
    collections::BTreeMap,
    io,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use rawr_common::{
    flow::Place,
    sharing::{Bit, WORDS},
};

use super::super::{FlowKey, mapping::Mapping};

/// The words in shared memory, as their only writer sees them, and how many entries each bit stands for.
///
/// An entry never stands without its bit: whoever writes an entry [enters](Self::enter) it first, and
/// whoever takes one out [leaves](Self::leave) afterwards.
#[derive(Debug)]
pub(super) struct SharedPorts {
    words: Mapping<AtomicU64>,
    counts: BTreeMap<Bit, u32>,
}

impl SharedPorts {
    /// The words of a `BPF_F_MMAPABLE` array map, whatever they hold.
    pub(super) fn map(array: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { words: Mapping::of(array, WORDS)?, counts: BTreeMap::new() })
    }

    /// Words that nobody else reads.
    #[cfg(test)]
    pub(super) fn anonymous() -> io::Result<Self> {
        Ok(Self { words: Mapping::anonymous(WORDS)?, counts: BTreeMap::new() })
    }

    /// Writes all words anew for entries that stand and are all there are. A predecessor may have ended
    /// between a bit and its entry; what programs read meanwhile is never less than what stands.
    pub(super) fn adopt(&mut self, entries: impl Iterator<Item = (FlowKey, Place)>) {
        self.counts.clear();
        let mut words = vec![0; WORDS as usize];
        for bit in entries.filter_map(|(key, place)| bit(key, place)) {
            *self.counts.entry(bit).or_default() += 1;
            words[bit.word() as usize] |= bit.mask();
        }
        for (index, word) in (0..).zip(words) {
            self.word(index).store(word, Ordering::Release);
        }
    }

    /// An entry is about to be written where none of this key stands.
    pub(super) fn enter(&mut self, key: FlowKey, place: Place) {
        let Some(bit) = bit(key, place) else { return };
        let count = self.counts.entry(bit).or_default();
        *count += 1;
        if *count == 1 {
            self.word(bit.word()).fetch_or(bit.mask(), Ordering::SeqCst);
            fence(Ordering::SeqCst);
        }
    }

    /// An entry has become vacant.
    pub(super) fn leave(&mut self, key: FlowKey, place: Place) {
        let Some(bit) = bit(key, place) else { return };
        let Some(count) = self.counts.get_mut(&bit) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(&bit);
            fence(Ordering::SeqCst);
            self.word(bit.word()).fetch_and(!bit.mask(), Ordering::SeqCst);
        }
    }

    fn word(&self, index: u32) -> &AtomicU64 {
        // SAFETY: within the mapping, which lives as long as `self`; others read words whole.
        unsafe { self.words.at(index).as_ref() }
    }

    /// The word at an index, as a program reads it.
    #[cfg(test)]
    pub(super) fn read(&self, index: u32) -> u64 {
        self.word(index).load(Ordering::SeqCst)
    }

    /// The same, garbled.
    #[cfg(test)]
    pub(super) fn garble(&self, index: u32, word: u64) {
        self.word(index).store(word, Ordering::SeqCst);
    }
}

/// The bit that an entry in this place stands for, if it is one of a channel table.
pub(super) fn bit(key: FlowKey, place: Place) -> Option<Bit> {
    match place {
        Place::Port(_) => None,
        Place::Channel(_) => {
            Some(Bit::new(key.local().port(), key.is_ipv6(), key.channel().is_some()))
        }
    }
}
