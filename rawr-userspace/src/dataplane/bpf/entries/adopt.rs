//! Taking over what a predecessor left in the tables.

use std::collections::BTreeMap;

use rawr_common::flow::{Flow4, Flow6, Place, Recipe, VACANT, flags};

use super::super::super::{FlowKey, place::Places};
use super::super::ports::SharedPorts;
use super::super::tables::{Shelf as _, Tables};
use super::{Entries, Entry, Held};

/// What entries may build on when they are taken over.
pub(in super::super) struct Known<'a> {
    /// Most flows at once.
    pub flows: u32,
    /// Whether one flow more may have the rate limit at an index, which it then has.
    pub limit: &'a mut dyn FnMut(u32) -> bool,
    /// Whether there is an exit in a slot.
    pub exit: &'a dyn Fn(u8) -> bool,
}

impl Entries {
    /// Tables with whatever they hold. Entries that cannot have been meant as they stand become vacant,
    /// and so do those that are no flows. What `ports` say then follows from those that are left.
    pub(in super::super) fn adopt(
        v4: Tables<Flow4>,
        v6: Tables<Flow6>,
        places: Places,
        ports: SharedPorts,
        known: &mut Known<'_>,
    ) -> Self {
        let mut entries = Self {
            v4,
            v6,
            places,
            ports,
            generation: VACANT,
            held: BTreeMap::new(),
            listeners: BTreeMap::new(),
            borrowers: BTreeMap::new(),
            lenders: BTreeMap::new(),
        };
        // What lends first.
        for place in entries.v6.places() {
            entries.adopt_v6(place, known);
        }
        for place in entries.v4.places() {
            entries.adopt_v4(place, known);
        }
        let standing = entries.held.iter().map(|(key, held)| (*key, held.place));
        entries.ports.adopt(standing);
        entries
    }

    fn adopt_v6(&mut self, place: Place, known: &mut Known<'_>) {
        let Some(entry) = self.v6.occupied(place).map(Entry::V6) else { return };
        if !self.adopt_held(&entry, place, known) {
            self.v6.vacate(place);
        }
    }

    fn adopt_v4(&mut self, place: Place, known: &mut Known<'_>) {
        let Some(entry) = self.v4.occupied(place) else { return };
        let lender = entry.reverse().map(|reverse| self.lender(reverse, &entry.recipe));
        let entry = Entry::V4(entry);
        let sound = lender != Some(None) && self.adopt_held(&entry, place, known);
        match lender.flatten() {
            _ if !sound => self.v4.vacate(place),
            Some(lender) => self.borrow(entry.arrival().key(), lender),
            None => {}
        }
    }

    /// The flow in a place of the IPv6 tables, if one with this recipe can borrow from it.
    fn lender(&self, reverse: Place, borrower: &Recipe) -> Option<FlowKey> {
        if !self.v6.has(reverse) || self.v6.generation(reverse) != borrower.generation {
            return None;
        }
        Some(Entry::V6(self.v6.read(reverse)).arrival().key())
    }

    /// Takes over an entry and what it holds, unless that cannot be.
    fn adopt_held(&mut self, entry: &Entry, place: Place, known: &mut Known<'_>) -> bool {
        let (leg, recipe) = (entry.arrival(), entry.recipe());
        let key = leg.key();
        let limit = (recipe.flags & flags::RATED != 0).then_some(recipe.rate);
        if recipe.flags & flags::LISTENER != 0
            || !self.places.of(leg).any(|may_be| may_be == place)
            || self.held.contains_key(&key)
            || self.held.len() >= known.flows as usize
            || !(known.exit)(recipe.exit)
            || !limit.is_none_or(|index| (known.limit)(index))
        {
            return false;
        }
        self.held.insert(key, Held { place, exit: recipe.exit, limit });
        self.generation = self.generation.max(recipe.generation);
        true
    }
}
