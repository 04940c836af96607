//! Which flow stands where in the two tables, and how entries are made of flows and read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    ops::Bound,
};

use rawr_common::{
    entry::{Account, Hop, Tags},
    flow::{self, Exit, Flow4, Flow6, Rate, Recipe, Tuple4, Tuple6, VACANT, flags},
};

use super::{
    super::{
        Counters, Flow, Leg, NextHop, VlanTags,
        backend::{BackendError, Installed},
        table::Table,
    },
    rates::{self, Limit},
};

const CUSTOMER_TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;

/// The flow tables of both families, as their only writer sees them.
///
/// A flow from IPv4 to IPv6 borrows the addresses of the flow of the other direction, and is in
/// force only while both have the same generation. So whenever one of the two is written, both get
/// a new one, and so do all others that borrow from the same flow.
#[derive(Debug)]
pub(super) struct Entries {
    v4: Table<Flow4>,
    v6: Table<Flow6>,
    table_mask: u32,
    generation: u32,
    held: BTreeMap<SocketAddr, Held>,
    /// The IPv4 flows that borrow from an IPv6 one.
    borrowers: BTreeMap<SocketAddr, BTreeSet<SocketAddr>>,
    /// The IPv6 flow that each of them borrows from.
    lenders: BTreeMap<SocketAddr, SocketAddr>,
}

/// What is known of a flow besides its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Slot of its exit.
    pub exit: u8,
    pub limit: Option<Limit>,
}

/// What entries may build on when they are taken over.
pub(super) struct Known<'a> {
    /// Most flows at once.
    pub flows: u32,
    /// Reads the rate limit at an index.
    pub limit: &'a dyn Fn(u32) -> Option<Rate>,
    /// Whether there is an exit in a slot.
    pub exit: &'a dyn Fn(u8) -> bool,
}

/// An entry of either table.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    V4(Flow4),
    V6(Flow6),
}

impl Entries {
    /// Tables with whatever they hold. Entries that cannot have been meant as they stand become vacant.
    ///
    /// # Panics
    ///
    /// If the tables' length is not the same power of two.
    pub(super) fn adopt(v4: Table<Flow4>, v6: Table<Flow6>, known: &Known<'_>) -> Self {
        assert!(v4.len() == v6.len() && v4.len().is_power_of_two(), "tables' lengths");
        let table_mask = v4.len() - 1;
        let mut entries = Self {
            v4,
            v6,
            table_mask,
            generation: VACANT,
            held: BTreeMap::new(),
            borrowers: BTreeMap::new(),
            lenders: BTreeMap::new(),
        };
        let mut limits = BTreeSet::new();
        for index in 0..=table_mask {
            entries.adopt_v6(index, known, &mut limits);
        }
        for index in 0..=table_mask {
            entries.adopt_v4(index, known, &mut limits);
        }
        entries
    }

    /// Whether `flow` may stand where it would.
    pub(super) fn check(&self, flow: &Flow) -> Result<(), BackendError> {
        for leg in [flow.from, flow.to] {
            if !is_suited(leg) {
                return Err(BackendError::Unsuited { local: leg.local, remote: leg.remote });
            }
        }
        let local = flow.from.local;
        if let Some(occupant) = self.occupant(local).filter(|&occupant| occupant != local) {
            return Err(BackendError::IndexTaken { local, occupant });
        }
        if borrows(flow) && self.arrival(flow.to.local) != Some(flow.to) {
            return Err(BackendError::NoReverse { local, reverse: flow.to.local });
        }
        Ok(())
    }

    /// Writes a flow that has been [checked](Self::check), in place of what stands there; where
    /// nothing does, its counters start at zero. Returns what was held by flows that have gone, because
    /// they borrowed from what this one was before.
    pub(super) fn write(&mut self, flow: &Flow, dst_mac: [u8; 6], held: Held) -> Vec<Held> {
        let local = flow.from.local;
        let index = self.index(local);
        let before = self.arrival(local);
        self.give_back(local);
        let gone = match before {
            Some(before) if before != flow.from => self.vacate_borrowers(local),
            Some(_) => Vec::new(),
            None => {
                self.reset_counters(local);
                Vec::new()
            }
        };
        let generation = self.next_generation();
        let lender = if borrows(flow) { flow.to.local } else { local };
        if borrows(flow) {
            self.v4.vacate(index);
            self.borrow(local, lender);
            self.v6.set_generation(self.index(lender), generation);
        }
        match self.entry(flow, dst_mac, held, generation) {
            Entry::V4(entry) => self.v4.write(index, &entry),
            Entry::V6(entry) => self.v6.write(index, &entry),
        }
        for &borrower in self.borrowers.get(&lender).into_iter().flatten() {
            self.v4.set_generation(self.index(borrower), generation);
        }
        self.held.insert(local, held);
        gone
    }

    /// Takes out the flow of `local` and those that borrow from it, and returns what they held.
    pub(super) fn vacate(&mut self, local: SocketAddr) -> Vec<Held> {
        let Some(held) = self.held.remove(&local) else { return Vec::new() };
        let mut gone = self.vacate_borrowers(local);
        self.give_back(local);
        let index = self.index(local);
        match local {
            SocketAddr::V4(_) => self.v4.vacate(index),
            SocketAddr::V6(_) => self.v6.vacate(index),
        }
        gone.push(held);
        gone
    }

    /// Whether exactly this flow stands there, in force.
    pub(super) fn holds(&self, flow: &Flow, exit: u8, dst_mac: [u8; 6]) -> bool {
        let local = flow.from.local;
        let Some(&held) = self.held.get(&local) else { return false };
        let index = self.index(local);
        let stands = match local {
            SocketAddr::V4(_) => Entry::V4(self.v4.read(index)),
            SocketAddr::V6(_) => Entry::V6(self.v6.read(index)),
        };
        let generation = stands.recipe().generation;
        let in_force = !borrows(flow)
            || (self.v6.generation(self.index(flow.to.local)) == generation
                && self.arrival(flow.to.local) == Some(flow.to));
        let wanted = flow.rate.map(|rate| rates::full(rate).ns_per_kib);
        in_force
            && held.exit == exit
            && held.limit.map(|limit| limit.ns_per_kib) == wanted
            && stands == self.entry(flow, dst_mac, held, generation)
    }

    /// The flow of `local`, if there is one.
    pub(super) fn get(&self, local: SocketAddr) -> Option<Held> {
        self.held.get(&local).copied()
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What is known of all flows besides their entries.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// The first `most` flows behind `after`, in the order of their local addresses, by way of the
    /// exits in their slots.
    pub(super) fn list_after(
        &self,
        after: Bound<SocketAddr>,
        most: usize,
        exit: impl Fn(u8) -> Exit,
    ) -> Vec<Installed> {
        let behind = self.held.range((after, Bound::Unbounded)).take(most);
        behind.map(|(&local, held)| self.decode(local, held, &exit(held.exit))).collect()
    }

    /// What the flow of `local`, or the last one in its place, has forwarded.
    pub(super) fn counters(&self, local: SocketAddr) -> Counters {
        let index = self.index(local);
        let flow::Counters { packets, bytes } = match local {
            SocketAddr::V4(_) => self.v4.counters(index),
            SocketAddr::V6(_) => self.v6.counters(index),
        };
        Counters { packets, bytes }
    }

    /// Whose flow stands where that of `local` would.
    pub(super) fn occupant(&self, local: SocketAddr) -> Option<SocketAddr> {
        let index = self.index(local);
        let leg = match local {
            SocketAddr::V4(_) => self.v4.occupied(index).map(|entry| leg4(&entry.from)),
            SocketAddr::V6(_) => self.v6.occupied(index).map(|entry| leg6(&entry.from)),
        };
        leg.map(|leg| leg.local)
    }

    /// The leg that the flow of `local` serves, if there is one.
    fn arrival(&self, local: SocketAddr) -> Option<Leg> {
        self.held.get(&local)?;
        let index = self.index(local);
        Some(match local {
            SocketAddr::V4(_) => leg4(&self.v4.read(index).from),
            SocketAddr::V6(_) => leg6(&self.v6.read(index).from),
        })
    }

    fn index(&self, local: SocketAddr) -> u32 {
        let last_byte = match local.ip() {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        flow::index(last_byte, local.port(), self.table_mask)
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == VACANT {
            self.generation += 1;
        }
        self.generation
    }

    fn reset_counters(&mut self, local: SocketAddr) {
        let index = self.index(local);
        match local {
            SocketAddr::V4(_) => self.v4.reset_counters(index),
            SocketAddr::V6(_) => self.v6.reset_counters(index),
        }
    }

    fn vacate_borrowers(&mut self, lender: SocketAddr) -> Vec<Held> {
        let borrowers = self.borrowers.remove(&lender).unwrap_or_default();
        let mut gone = Vec::new();
        for borrower in borrowers {
            self.v4.vacate(self.index(borrower));
            self.lenders.remove(&borrower);
            gone.extend(self.held.remove(&borrower));
        }
        gone
    }

    fn borrow(&mut self, borrower: SocketAddr, lender: SocketAddr) {
        self.borrowers.entry(lender).or_default().insert(borrower);
        self.lenders.insert(borrower, lender);
    }

    fn give_back(&mut self, borrower: SocketAddr) {
        let Some(lender) = self.lenders.remove(&borrower) else { return };
        if let Some(borrowers) = self.borrowers.get_mut(&lender) {
            borrowers.remove(&borrower);
            if borrowers.is_empty() {
                self.borrowers.remove(&lender);
            }
        }
    }

    fn entry(&self, flow: &Flow, dst_mac: [u8; 6], held: Held, generation: u32) -> Entry {
        let hop = Hop { exit: held.exit, dst_mac };
        let account = Account { generation, rate: held.limit.map(|limit| limit.index) };
        match (arriving(flow.from), leaving(flow.to)) {
            (Tuple::V4(from), Tuple::V4(to)) => Entry::V4(Flow4::new(from, to, hop, account)),
            (Tuple::V6(from), Tuple::V6(to)) => Entry::V6(Flow6::new(from, to, hop, account)),
            (Tuple::V6(from), Tuple::V4(to)) => Entry::V6(Flow6::to_ipv4(from, to, hop, account)),
            (Tuple::V4(from), Tuple::V6(to)) => {
                let reverse = self.index(flow.to.local);
                Entry::V4(Flow4::to_ipv6(from, &to, reverse, hop, account))
            }
        }
    }

    fn decode(&self, local: SocketAddr, held: &Held, exit: &Exit) -> Installed {
        let index = self.index(local);
        let (from, to, recipe) = match local {
            SocketAddr::V4(_) => {
                let entry = self.v4.read(index);
                let to = match entry.recipe.flags & flags::TO_IPV6 {
                    0 => mirrored(leg4(&entry.to)),
                    _ => leg6(&self.v6.read(entry.recipe.reverse).from),
                };
                (leg4(&entry.from), to, entry.recipe)
            }
            SocketAddr::V6(_) => {
                let entry = self.v6.read(index);
                let to = match entry.recipe.flags & flags::TO_IPV6 {
                    0 => mirrored(leg4(&entry.to4)),
                    _ => mirrored(leg6(&entry.to6)),
                };
                (leg6(&entry.from), to, entry.recipe)
            }
        };
        let per_second = |limit: Limit| 1024 * 1_000_000_000 / u64::from(limit.ns_per_kib.max(1));
        let rate = held.limit.map(per_second);
        Installed { flow: Flow { from, to, rate }, next_hop: next_hop(exit, recipe.dst_mac) }
    }

    fn adopt_v6(&mut self, index: u32, known: &Known<'_>, limits: &mut BTreeSet<u32>) {
        let Some(entry) = self.v6.occupied(index) else { return };
        let local = leg6(&entry.from).local;
        if self.index(local) != index || !self.adopt_held(local, &entry.recipe, known, limits) {
            self.v6.vacate(index);
        }
    }

    fn adopt_v4(&mut self, index: u32, known: &Known<'_>, limits: &mut BTreeSet<u32>) {
        let Some(entry) = self.v4.occupied(index) else { return };
        let (local, recipe) = (leg4(&entry.from).local, entry.recipe);
        let mut sound = self.index(local) == index;
        let mut lender = None;
        if recipe.flags & flags::TO_IPV6 != 0 {
            let reverse = (recipe.reverse <= self.table_mask).then(|| self.v6.read(recipe.reverse));
            lender = reverse
                .filter(|reverse| reverse.recipe.generation == recipe.generation)
                .map(|reverse| leg6(&reverse.from).local);
            sound &= lender.is_some();
        }
        if !sound || !self.adopt_held(local, &recipe, known, limits) {
            self.v4.vacate(index);
        } else if let Some(lender) = lender {
            self.borrow(local, lender);
        }
    }

    /// Takes over what a flow holds, unless that cannot be: `limits` are those that others hold.
    fn adopt_held(
        &mut self,
        local: SocketAddr,
        recipe: &Recipe,
        known: &Known<'_>,
        limits: &mut BTreeSet<u32>,
    ) -> bool {
        if self.held.len() >= known.flows as usize || !(known.exit)(recipe.exit) {
            return false;
        }
        let mut limit = None;
        if recipe.flags & flags::RATED != 0 {
            let Some(rate) = (known.limit)(recipe.rate) else { return false };
            if !limits.insert(recipe.rate) {
                return false;
            }
            limit = Some(Limit { index: recipe.rate, ns_per_kib: rate.ns_per_kib });
        }
        self.held.insert(local, Held { exit: recipe.exit, limit });
        self.generation = self.generation.max(recipe.generation);
        true
    }
}

impl Entry {
    fn recipe(&self) -> &Recipe {
        match self {
            Self::V4(entry) => &entry.recipe,
            Self::V6(entry) => &entry.recipe,
        }
    }
}

/// The exit that leads to `next_hop`.
pub(super) fn exit(next_hop: &NextHop) -> Result<Exit, BackendError> {
    let NextHop { ifindex, src_mac, dst_mac: _, vlan, mtu, tx } = *next_hop;
    let tags = match vlan.0 {
        [None, None] => Tags::None,
        [Some((CUSTOMER_TAG, tag)), None] => Tags::Customer(tag),
        [Some((SERVICE_TAG, tag)), None] => Tags::Service(tag),
        [Some((SERVICE_TAG, service)), Some((CUSTOMER_TAG, customer))] => {
            Tags::Both { service, customer }
        }
        _ => return Err(BackendError::VlanTags(vlan)),
    };
    Ok(Exit::new(ifindex, src_mac, mtu).tagged(tags).transmitting(tx))
}

fn next_hop(exit: &Exit, dst_mac: [u8; 6]) -> NextHop {
    let tags = match exit.tags() {
        Tags::None => [None, None],
        Tags::Customer(tag) => [Some((CUSTOMER_TAG, tag)), None],
        Tags::Service(tag) => [Some((SERVICE_TAG, tag)), None],
        Tags::Both { service, customer } => {
            [Some((SERVICE_TAG, service)), Some((CUSTOMER_TAG, customer))]
        }
    };
    NextHop {
        ifindex: exit.ifindex,
        src_mac: exit.src_mac,
        dst_mac,
        vlan: VlanTags(tags),
        mtu: exit.mtu,
        tx: exit.transmits(),
    }
}

/// Whether a flow leaves as IPv6 what arrives as IPv4.
fn borrows(flow: &Flow) -> bool {
    flow.from.local.is_ipv4() && flow.to.local.is_ipv6()
}

/// Of one family, and without a scope, for which entries have no room.
fn is_suited(leg: Leg) -> bool {
    let scoped = |addr| matches!(addr, SocketAddr::V6(v6) if v6.scope_id() != 0);
    leg.local.is_ipv4() == leg.remote.is_ipv4() && !scoped(leg.local) && !scoped(leg.remote)
}

enum Tuple {
    V4(Tuple4),
    V6(Tuple6),
}

/// How packets arrive on `leg`, which is of one family.
fn arriving(leg: Leg) -> Tuple {
    tuple(leg.remote, leg.local)
}

/// How packets leave on it.
fn leaving(leg: Leg) -> Tuple {
    tuple(leg.local, leg.remote)
}

fn tuple(src: SocketAddr, dst: SocketAddr) -> Tuple {
    let (src_port, dst_port) = (src.port().to_be_bytes(), dst.port().to_be_bytes());
    match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Tuple::V4(Tuple4 { src: src.octets(), dst: dst.octets(), src_port, dst_port })
        }
        (src, dst) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            Tuple::V6(Tuple6 { src: octets(src), dst: octets(dst), src_port, dst_port })
        }
    }
}

/// The leg whose packets arrive with these addresses.
fn leg4(tuple: &Tuple4) -> Leg {
    let addr = |ip: [u8; 4], port| SocketAddrV4::new(ip.into(), u16::from_be_bytes(port)).into();
    Leg { local: addr(tuple.dst, tuple.dst_port), remote: addr(tuple.src, tuple.src_port) }
}

/// The leg whose packets arrive with these addresses.
fn leg6(tuple: &Tuple6) -> Leg {
    let addr =
        |ip: [u8; 16], port| SocketAddrV6::new(ip.into(), u16::from_be_bytes(port), 0, 0).into();
    Leg { local: addr(tuple.dst, tuple.dst_port), remote: addr(tuple.src, tuple.src_port) }
}

fn mirrored(leg: Leg) -> Leg {
    Leg { local: leg.remote, remote: leg.local }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::super::{backend::Backend, memory::Memory},
        *,
    };

    const TABLE: u32 = 16;

    fn entries() -> Entries {
        let (v4, v6) = (Table::anonymous(TABLE).unwrap(), Table::anonymous(TABLE).unwrap());
        Entries::adopt(v4, v6, &known())
    }

    /// Room for 1000 flows, no limits, the exits of [`way`].
    fn known() -> Known<'static> {
        Known { flows: 1000, limit: &|_| None, exit: &|slot| slot < 2 }
    }

    /// The exit of [`way`] in this slot.
    fn exit_in(slot: u8) -> Exit {
        exit(&way(slot)).unwrap()
    }

    /// The slot of a next hop's exit.
    fn slot_of(next_hop: &NextHop) -> u8 {
        (0..2).find(|&slot| exit(next_hop).unwrap() == exit_in(slot)).unwrap()
    }

    fn all(entries: &Entries) -> Vec<Installed> {
        entries.list_after(Bound::Unbounded, usize::MAX, exit_in)
    }

    fn leg(v6: bool, port: u16, remote: u8) -> Leg {
        let (local, far): (IpAddr, IpAddr) = if v6 {
            ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), [0x2001, 0xdb8, 1, 0, 0, 0, 0, 9].into())
        } else {
            ([192, 0, 2, 1].into(), [198, 51, 100, 9].into())
        };
        let (local, far) = ((local, port).into(), (far, 4000 + u16::from(remote)).into());
        Leg { local, remote: far }
    }

    fn way(router: u8) -> NextHop {
        NextHop {
            ifindex: 3,
            src_mac: [2, 0, 0, 0, 0, 0],
            dst_mac: [2, 0, 0, 0, 0, router],
            vlan: VlanTags([Some((SERVICE_TAG, 7)), Some((CUSTOMER_TAG, 0x6005))]),
            mtu: 1492,
            tx: router.is_multiple_of(2),
        }
    }

    fn install(entries: &mut Entries, flow: &Flow, next_hop: &NextHop) -> Result<(), BackendError> {
        entries.check(flow)?;
        let limit = |rate| Limit { index: 5, ns_per_kib: rates::full(rate).ns_per_kib };
        let held = Held { exit: slot_of(next_hop), limit: flow.rate.map(limit) };
        entries.write(flow, next_hop.dst_mac, held);
        Ok(())
    }

    fn holds(entries: &Entries, flow: &Flow, next_hop: &NextHop) -> bool {
        entries.holds(flow, slot_of(next_hop), next_hop.dst_mac)
    }

    /// Counts a packet as the kernel would.
    fn forward(entries: &Entries, local: SocketAddr, bytes: u16) {
        let index = entries.index(local);
        match local {
            SocketAddr::V4(_) => entries.v4.open(index).unwrap().meter().count(bytes),
            SocketAddr::V6(_) => entries.v6.open(index).unwrap().meter().count(bytes),
        }
    }

    /// What a reader in the kernel would make of the flow: in force only if all generations agree.
    fn in_force(entries: &Entries, local: SocketAddr) -> bool {
        let index = entries.index(local);
        match local {
            SocketAddr::V6(_) => entries.v6.occupied(index).is_some(),
            SocketAddr::V4(_) => entries.v4.occupied(index).is_some_and(|entry| {
                entry.recipe.flags & flags::TO_IPV6 == 0
                    || entries.v6.generation(entry.recipe.reverse) == entry.recipe.generation
            }),
        }
    }

    #[derive(Clone, Debug)]
    enum Action {
        Install { from: Leg, to: Leg, router: u8 },
        Remove(Leg),
        Forward(Leg, u16),
        Restart,
    }

    fn any_leg() -> impl Strategy<Value = Leg> {
        (any::<bool>(), 0u16..24, 0u8..2).prop_map(|(v6, port, remote)| leg(v6, port, remote))
    }

    fn any_action() -> impl Strategy<Value = Action> {
        let install = (any_leg(), any_leg(), 0u8..3)
            .prop_filter("two legs", |(from, to, _)| from.local != to.local)
            .prop_map(|(from, to, router)| Action::Install { from, to, router });
        prop_oneof![
            12 => install,
            4 => any_leg().prop_map(Action::Remove),
            8 => (any_leg(), 28u16..).prop_map(|(leg, bytes)| Action::Forward(leg, bytes)),
            1 => Just(Action::Restart),
        ]
    }

    proptest! {
        /// The tables of the kernel and the plain maps of [`Memory`] agree on everything.
        #[test]
        fn tables_behave_like_plain_maps(
            actions in proptest::collection::vec(any_action(), 1..120)
        ) {
            let mut entries = entries();
            let mut memory = Memory::new(TABLE, 1000);
            let mut generations = BTreeSet::new();
            for action in actions {
                match action {
                    Action::Install { from, to, router } => {
                        let flow = Flow { from, to, rate: None };
                        let outcome = install(&mut entries, &flow, &way(router));
                        let expected = memory.install(&flow, &way(router));
                        let text = |outcome: &Result<_, BackendError>| {
                            outcome.as_ref().map_err(ToString::to_string).copied()
                        };
                        prop_assert_eq!(text(&outcome), text(&expected));
                        if outcome.is_ok() {
                            prop_assert!(holds(&entries, &flow, &way(router)));
                            prop_assert!(generations.insert(entries.generation), "used before");
                        }
                    }
                    Action::Remove(leg) => {
                        let gone = entries.vacate(leg.local);
                        let expected = memory.remove(leg.local).unwrap();
                        let counters = (!gone.is_empty()).then(|| entries.counters(leg.local));
                        prop_assert_eq!(counters, expected);
                    }
                    Action::Forward(leg, bytes) => {
                        if memory.forward(leg.local, 1, bytes.into()) {
                            forward(&entries, leg.local, bytes);
                        }
                    }
                    Action::Restart => {
                        let Entries { v4, v6, .. } = entries;
                        entries = Entries::adopt(v4, v6, &known());
                        // No reader takes as long as a restart.
                        generations.clear();
                    }
                }
                prop_assert_eq!(all(&entries), memory.list().unwrap());
                for installed in all(&entries) {
                    let Installed { flow, next_hop } = installed;
                    let local = flow.from.local;
                    prop_assert!(in_force(&entries, local));
                    prop_assert!(holds(&entries, &flow, &next_hop));
                    prop_assert_eq!(Some(entries.counters(local)), memory.counters(local).unwrap());
                }
                let occupied = |index| {
                    u32::from(entries.v4.occupied(index).is_some())
                        + u32::from(entries.v6.occupied(index).is_some())
                };
                prop_assert_eq!((0..TABLE).map(occupied).sum::<u32>() as usize, entries.len());
            }
        }
    }

    #[test]
    fn garbage_is_not_adopted() {
        let mut entries = entries();
        let flow = Flow { from: leg(false, 5, 0), to: leg(false, 6, 0), rate: None };
        install(&mut entries, &flow, &way(1)).unwrap();
        let Entries { mut v4, v6, .. } = entries;
        let sound = v4.read(5);
        let write = |v4: &mut Table<Flow4>, index, port: u8, recipe| {
            let from = Tuple4 { dst_port: [0, port], ..sound.from };
            v4.write(index, &Flow4 { from, recipe, ..sound });
        };
        let recipe = sound.recipe;
        write(&mut v4, 7, 8, recipe);
        write(&mut v4, 9, 9, Recipe { exit: 2, ..recipe });
        write(&mut v4, 10, 10, Recipe { flags: flags::RATED, rate: 1000, ..recipe });
        let flags = flags::TO_IPV6;
        write(&mut v4, 11, 11, Recipe { flags, reverse: u32::MAX, ..recipe });
        let entries = Entries::adopt(v4, v6, &known());
        assert_eq!(all(&entries), [Installed { flow, next_hop: way(1) }]);
        assert_eq!((0..TABLE).filter(|&index| entries.v4.occupied(index).is_some()).count(), 1);
    }

    #[test]
    fn two_flows_cannot_have_one_limit() {
        let mut entries = entries();
        for port in [5, 6] {
            let flow = Flow { from: leg(false, port, 0), to: leg(false, 9, 0), rate: Some(1) };
            install(&mut entries, &flow, &way(1)).unwrap();
        }
        let Entries { v4, v6, .. } = entries;
        let limit = |index| (index == 5).then(|| rates::full(1));
        let entries = Entries::adopt(v4, v6, &Known { limit: &limit, ..known() });
        assert_eq!(entries.len(), 1);
    }

    #[test]
    fn no_more_flows_are_adopted_than_there_may_be() {
        let mut entries = entries();
        for port in [5, 6, 7] {
            let flow = Flow { from: leg(true, port, 0), to: leg(false, 9, 0), rate: None };
            install(&mut entries, &flow, &way(1)).unwrap();
        }
        let Entries { v4, v6, .. } = entries;
        let entries = Entries::adopt(v4, v6, &Known { flows: 2, ..known() });
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn a_rate_limit_is_recognized_after_a_restart() {
        let mut entries = entries();
        for bytes_per_second in [300, 12_345, 1_000_000, 777_777_777] {
            let rate = Some(bytes_per_second);
            let flow = Flow { from: leg(true, 5, 0), to: leg(false, 6, 0), rate };
            install(&mut entries, &flow, &way(1)).unwrap();
            let Entries { v4, v6, .. } = entries;
            let limit = |_| Some(rates::full(bytes_per_second));
            entries = Entries::adopt(v4, v6, &Known { limit: &limit, ..known() });
            assert!(holds(&entries, &flow, &way(1)));
            let other = Flow { rate: Some(bytes_per_second * 2), ..flow };
            assert!(!holds(&entries, &other, &way(1)));
        }
    }

    #[test]
    fn tags_that_cannot_be_written_are_refused() {
        for tags in [
            [Some((CUSTOMER_TAG, 1)), Some((CUSTOMER_TAG, 2))],
            [Some((0x9100, 1)), None],
            [None, Some((CUSTOMER_TAG, 1))],
        ] {
            let next_hop = NextHop { vlan: VlanTags(tags), ..way(1) };
            assert!(matches!(exit(&next_hop), Err(BackendError::VlanTags(_))));
        }
    }
}
