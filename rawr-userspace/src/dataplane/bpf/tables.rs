//! The two tables of one family.

use rawr_common::{
    flow::{self, Place, VACANT},
    shared::Entry,
};

use super::super::table::Table;

/// The port table and the channel table, as their only writer sees them.
#[derive(Debug)]
pub(super) struct Tables<E> {
    pub ports: Table<E>,
    pub channels: Table<E>,
}

/// What can be done in a place whatever the family.
pub(super) trait Shelf {
    /// The generation of the entry there, or [`VACANT`].
    fn generation(&self, place: Place) -> u32;

    /// Gives the entry there another generation.
    fn set_generation(&mut self, place: Place, generation: u32);

    /// Makes the place vacant.
    fn vacate(&mut self, place: Place);

    /// What the flow there, or the last one there, has forwarded.
    fn counters(&self, place: Place) -> flow::Counters;

    /// Sets the counters of the vacant place to zero.
    fn reset_counters(&mut self, place: Place);

    /// Whether no entry is there.
    fn is_vacant(&self, place: Place) -> bool {
        self.generation(place) == VACANT
    }
}

impl<E: Entry> Tables<E> {
    /// All places of both tables.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + use<E> {
        let ports = (0..self.ports.len()).map(Place::Port);
        ports.chain((0..self.channels.len()).map(Place::Channel))
    }

    /// Whether there is such a place.
    pub(super) fn has(&self, place: Place) -> bool {
        match place {
            Place::Port(index) => index < self.ports.len(),
            Place::Channel(index) => index < self.channels.len(),
        }
    }

    /// What lies in a place, with zeros for its counters.
    pub(super) fn read(&self, place: Place) -> E {
        let (table, index) = self.table(place);
        table.read(index)
    }

    /// The same, unless the place is vacant.
    pub(super) fn occupied(&self, place: Place) -> Option<E> {
        let (table, index) = self.table(place);
        table.occupied(index)
    }

    /// Puts an entry in a place, where the counters go on.
    pub(super) fn write(&mut self, place: Place, entry: &E) {
        let (table, index) = self.table_mut(place);
        table.write(index, entry);
    }

    pub(super) fn table(&self, place: Place) -> (&Table<E>, u32) {
        match place {
            Place::Port(index) => (&self.ports, index),
            Place::Channel(index) => (&self.channels, index),
        }
    }

    fn table_mut(&mut self, place: Place) -> (&mut Table<E>, u32) {
        match place {
            Place::Port(index) => (&mut self.ports, index),
            Place::Channel(index) => (&mut self.channels, index),
        }
    }
}

impl<E: Entry> Shelf for Tables<E> {
    fn generation(&self, place: Place) -> u32 {
        let (table, index) = self.table(place);
        table.generation(index)
    }

    fn set_generation(&mut self, place: Place, generation: u32) {
        let (table, index) = self.table_mut(place);
        table.set_generation(index, generation);
    }

    fn vacate(&mut self, place: Place) {
        let (table, index) = self.table_mut(place);
        table.vacate(index);
    }

    fn counters(&self, place: Place) -> flow::Counters {
        let (table, index) = self.table(place);
        table.counters(index)
    }

    fn reset_counters(&mut self, place: Place) {
        let (table, index) = self.table_mut(place);
        table.reset_counters(index);
    }
}
