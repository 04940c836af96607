//! Which flow stands where in the two tables, and how entries are made of flows and read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    time::Duration,
};

use rawr_common::{
    entry::{Account, Exit, Tags},
    flow::{self, Flow4, Flow6, Rate, Recipe, Tuple4, Tuple6, VACANT, flags},
};

use super::super::{
    Flow, Leg, NextHop, VlanTags,
    backend::{BackendError, Installed},
    table::Table,
};

/// Time over which a rate limit is averaged.
const BURST: Duration = Duration::from_millis(50);

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
    /// Index of its counters.
    pub counter: u32,
    /// Its [`Rate::ns_per_kib`], which says less than the limit it was made from.
    pub limit: Option<u32>,
}

/// An entry of either table.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    V4(Flow4),
    V6(Flow6),
}

impl Entries {
    /// Tables with whatever they hold. `limits` reads the rate limit at one of `capacity` indices.
    /// Entries that cannot have been meant as they stand become vacant.
    ///
    /// # Panics
    ///
    /// If the tables' length is not the same power of two.
    pub(super) fn adopt(
        v4: Table<Flow4>,
        v6: Table<Flow6>,
        capacity: u32,
        limits: impl Fn(u32) -> Option<Rate>,
    ) -> Self {
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
        let mut counters = BTreeSet::new();
        let mut take = |counter| counter < capacity && counters.insert(counter);
        for index in 0..=table_mask {
            entries.adopt_v6(index, &mut take, &limits);
        }
        for index in 0..=table_mask {
            entries.adopt_v4(index, &mut take, &limits);
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

    /// Writes a flow that has been [checked](Self::check), in place of what stands there. Returns
    /// the flows that have gone, because they borrowed from what this one was before.
    pub(super) fn write(
        &mut self,
        flow: &Flow,
        exit: &Exit,
        held: Held,
    ) -> Vec<(SocketAddr, Held)> {
        let local = flow.from.local;
        let index = self.index(local);
        let before = self.arrival(local);
        self.give_back(local);
        let gone = match before {
            Some(before) if before != flow.from => self.vacate_borrowers(local),
            _ => Vec::new(),
        };
        let generation = self.next_generation();
        let lender = if borrows(flow) { flow.to.local } else { local };
        if borrows(flow) {
            self.v4.vacate(index);
            self.borrow(local, lender);
            self.v6.set_generation(self.index(lender), generation);
        }
        match self.entry(flow, exit, held, generation) {
            Entry::V4(entry) => self.v4.write(index, &entry),
            Entry::V6(entry) => self.v6.write(index, &entry),
        }
        for &borrower in self.borrowers.get(&lender).into_iter().flatten() {
            self.v4.set_generation(self.index(borrower), generation);
        }
        self.held.insert(local, held);
        gone
    }

    /// Takes out the flow of `local` and those that borrow from it, and returns them.
    pub(super) fn vacate(&mut self, local: SocketAddr) -> Vec<(SocketAddr, Held)> {
        let Some(held) = self.held.remove(&local) else { return Vec::new() };
        let mut gone = self.vacate_borrowers(local);
        self.give_back(local);
        let index = self.index(local);
        match local {
            SocketAddr::V4(_) => self.v4.vacate(index),
            SocketAddr::V6(_) => self.v6.vacate(index),
        }
        gone.push((local, held));
        gone
    }

    /// Whether exactly this flow stands there, in force.
    pub(super) fn holds(&self, flow: &Flow, exit: &Exit) -> bool {
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
        in_force && held.limit == limit(flow) && stands == self.entry(flow, exit, held, generation)
    }

    /// The flow of `local`, if there is one.
    pub(super) fn get(&self, local: SocketAddr) -> Option<Held> {
        self.held.get(&local).copied()
    }

    /// All flows.
    pub(super) fn list(&self) -> Vec<Installed> {
        self.held.iter().map(|(&local, held)| self.decode(local, held)).collect()
    }

    /// The indices of all counters in use.
    pub(super) fn counters(&self) -> BTreeSet<u32> {
        self.held.values().map(|held| held.counter).collect()
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

    fn vacate_borrowers(&mut self, lender: SocketAddr) -> Vec<(SocketAddr, Held)> {
        let borrowers = self.borrowers.remove(&lender).unwrap_or_default();
        let mut gone = Vec::new();
        for borrower in borrowers {
            self.v4.vacate(self.index(borrower));
            self.lenders.remove(&borrower);
            gone.extend(self.held.remove(&borrower).map(|held| (borrower, held)));
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

    fn entry(&self, flow: &Flow, exit: &Exit, held: Held, generation: u32) -> Entry {
        let account = Account { generation, counter: held.counter, rated: flow.rate.is_some() };
        match (arriving(flow.from), leaving(flow.to)) {
            (Tuple::V4(from), Tuple::V4(to)) => Entry::V4(Flow4::new(from, to, exit, account)),
            (Tuple::V6(from), Tuple::V6(to)) => Entry::V6(Flow6::new(from, to, exit, account)),
            (Tuple::V6(from), Tuple::V4(to)) => Entry::V6(Flow6::to_ipv4(from, to, exit, account)),
            (Tuple::V4(from), Tuple::V6(to)) => {
                let reverse = self.index(flow.to.local);
                Entry::V4(Flow4::to_ipv6(from, &to, reverse, exit, account))
            }
        }
    }

    fn decode(&self, local: SocketAddr, held: &Held) -> Installed {
        let index = self.index(local);
        let (from, to, recipe) = match local {
            SocketAddr::V4(_) => {
                let entry = self.v4.read(index);
                let to = match entry.recipe.flags & flags::TO_IPV6 {
                    0 => mirrored(leg4(&entry.to)),
                    _ => leg6(&self.v6.read(entry.reverse).from),
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
        let rate = held.limit.map(|limit| 1024 * 1_000_000_000 / u64::from(limit.max(1)));
        Installed { flow: Flow { from, to, rate }, next_hop: next_hop(&recipe) }
    }

    fn adopt_v6(
        &mut self,
        index: u32,
        take: &mut impl FnMut(u32) -> bool,
        limits: &impl Fn(u32) -> Option<Rate>,
    ) {
        let Some(entry) = self.v6.occupied(index) else { return };
        let leg = leg6(&entry.from);
        if self.index(leg.local) == index && take(entry.recipe.counter) {
            self.adopt_held(leg.local, &entry.recipe, limits);
        } else {
            self.v6.vacate(index);
        }
    }

    fn adopt_v4(
        &mut self,
        index: u32,
        take: &mut impl FnMut(u32) -> bool,
        limits: &impl Fn(u32) -> Option<Rate>,
    ) {
        let Some(entry) = self.v4.occupied(index) else { return };
        let local = leg4(&entry.from).local;
        let mut sound = self.index(local) == index;
        let mut lender = None;
        if entry.recipe.flags & flags::TO_IPV6 != 0 {
            let reverse = (entry.reverse <= self.table_mask).then(|| self.v6.read(entry.reverse));
            lender = reverse
                .filter(|reverse| reverse.recipe.generation == entry.recipe.generation)
                .map(|reverse| leg6(&reverse.from).local);
            sound &= lender.is_some();
        }
        if sound && take(entry.recipe.counter) {
            self.adopt_held(local, &entry.recipe, limits);
            if let Some(lender) = lender {
                self.borrow(local, lender);
            }
        } else {
            self.v4.vacate(index);
        }
    }

    fn adopt_held(
        &mut self,
        local: SocketAddr,
        recipe: &Recipe,
        limits: &impl Fn(u32) -> Option<Rate>,
    ) {
        let rated = recipe.flags & flags::RATED != 0;
        let limit = limits(recipe.counter).filter(|_| rated).map(|rate| rate.ns_per_kib);
        self.held.insert(local, Held { counter: recipe.counter, limit });
        self.generation = self.generation.max(recipe.generation);
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

/// How packets leave by `next_hop`, whose interface has this slot in the device map.
pub(super) fn exit(next_hop: &NextHop, egress: u8) -> Result<Exit, BackendError> {
    let NextHop { ifindex, src_mac, dst_mac, vlan, mtu, tx } = *next_hop;
    let tags = match vlan.0 {
        [None, None] => Tags::None,
        [Some((CUSTOMER_TAG, tag)), None] => Tags::Customer(tag),
        [Some((SERVICE_TAG, tag)), None] => Tags::Service(tag),
        [Some((SERVICE_TAG, service)), Some((CUSTOMER_TAG, customer))] => {
            Tags::Both { service, customer }
        }
        _ => return Err(BackendError::VlanTags(vlan)),
    };
    Ok(Exit { ifindex, egress, src_mac, dst_mac, tags, mtu, tx })
}

/// The rate limit of a flow, its bucket full.
pub(super) fn rate(flow: &Flow) -> Option<Rate> {
    flow.rate.map(|bytes_per_second| Rate::new(bytes_per_second, BURST))
}

fn limit(flow: &Flow) -> Option<u32> {
    rate(flow).map(|rate| rate.ns_per_kib)
}

fn next_hop(recipe: &Recipe) -> NextHop {
    let [outer, inner] = recipe.vlan.map(u16::from_be_bytes);
    let has = |flag| recipe.flags & flag != 0;
    let tags = if has(flags::QINQ) {
        [Some((SERVICE_TAG, outer)), Some((CUSTOMER_TAG, inner))]
    } else if has(flags::VLAN) {
        let kind = if has(flags::SERVICE_TAG) { SERVICE_TAG } else { CUSTOMER_TAG };
        [Some((kind, outer)), None]
    } else {
        [None, None]
    };
    NextHop {
        ifindex: recipe.ifindex,
        src_mac: recipe.src_mac,
        dst_mac: recipe.dst_mac,
        vlan: VlanTags(tags),
        mtu: recipe.mtu,
        tx: has(flags::TX),
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
        Entries::adopt(v4, v6, 1000, |_| None)
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
        let counter = entries.get(flow.from.local).map_or_else(
            || (0..).find(|counter| !entries.counters().contains(counter)).unwrap(),
            |held| held.counter,
        );
        let held = Held { counter, limit: limit(flow) };
        entries.write(flow, &exit(next_hop, 1).unwrap(), held);
        Ok(())
    }

    /// What a reader in the kernel would make of the flow: in force only if all generations agree.
    fn in_force(entries: &Entries, local: SocketAddr) -> bool {
        let index = entries.index(local);
        match local {
            SocketAddr::V6(_) => entries.v6.occupied(index).is_some(),
            SocketAddr::V4(_) => entries.v4.occupied(index).is_some_and(|entry| {
                entry.recipe.flags & flags::TO_IPV6 == 0
                    || entries.v6.generation(entry.reverse) == entry.recipe.generation
            }),
        }
    }

    #[derive(Clone, Debug)]
    enum Action {
        Install { from: Leg, to: Leg, router: u8 },
        Remove(Leg),
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
                            prop_assert!(entries.holds(&flow, &exit(&way(router), 1).unwrap()));
                            prop_assert!(generations.insert(entries.generation), "used before");
                        }
                    }
                    Action::Remove(leg) => {
                        let gone = entries.vacate(leg.local);
                        let expected = memory.remove(leg.local).unwrap();
                        prop_assert_eq!(!gone.is_empty(), expected.is_some());
                    }
                    Action::Restart => {
                        let Entries { v4, v6, .. } = entries;
                        entries = Entries::adopt(v4, v6, 1000, |_| None);
                        // No reader takes as long as a restart.
                        generations.clear();
                    }
                }
                prop_assert_eq!(entries.list(), memory.list().unwrap());
                for installed in entries.list() {
                    let Installed { flow, next_hop } = installed;
                    prop_assert!(in_force(&entries, flow.from.local));
                    prop_assert!(entries.holds(&flow, &exit(&next_hop, 1).unwrap()));
                }
                let occupied = |index| {
                    u32::from(entries.v4.occupied(index).is_some())
                        + u32::from(entries.v6.occupied(index).is_some())
                };
                prop_assert_eq!((0..TABLE).map(occupied).sum::<u32>() as usize, entries.list().len());
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
        let with = |counter, flags| Flow4 {
            recipe: Recipe { counter, flags, ..sound.recipe },
            reverse: u32::MAX,
            ..sound
        };
        let elsewhere = |port: u8| Tuple4 { dst_port: [0, port], ..sound.from };
        v4.write(7, &Flow4 { from: elsewhere(8), ..with(1, 0) });
        v4.write(9, &Flow4 { from: elsewhere(9), ..with(1000, 0) });
        v4.write(10, &Flow4 { from: elsewhere(10), ..with(0, 0) });
        v4.write(11, &Flow4 { from: elsewhere(11), ..with(2, flags::TO_IPV6) });
        let entries = Entries::adopt(v4, v6, 1000, |_| None);
        assert_eq!(entries.list(), [Installed { flow, next_hop: way(1) }]);
        assert_eq!((0..TABLE).filter(|&index| entries.v4.occupied(index).is_some()).count(), 1);
    }

    #[test]
    fn a_rate_limit_is_recognized_after_a_restart() {
        let mut entries = entries();
        for bytes_per_second in [300, 12_345, 1_000_000, 777_777_777] {
            let rate = Some(bytes_per_second);
            let flow = Flow { from: leg(true, 5, 0), to: leg(false, 6, 0), rate };
            install(&mut entries, &flow, &way(1)).unwrap();
            let Entries { v4, v6, .. } = entries;
            entries = Entries::adopt(v4, v6, 1000, |_| super::rate(&flow));
            assert!(entries.holds(&flow, &exit(&way(1), 1).unwrap()));
            let other = Flow { rate: Some(bytes_per_second * 2), ..flow };
            assert!(!entries.holds(&other, &exit(&way(1), 1).unwrap()));
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
            assert!(matches!(exit(&next_hop, 0), Err(BackendError::VlanTags(_))));
        }
    }
}
