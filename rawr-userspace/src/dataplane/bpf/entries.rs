//! Which flow stands where in the tables, and how entries are made of flows and read back.

mod adopt;
mod listen;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
};

use rawr_common::{
    channel::PROBES,
    entry::{Account, Hop, Tags},
    flow::{self, Channels, Exit, Flow4, Flow6, Place, Recipe, VACANT, flags},
};
use rawr_proto::ChannelNumber;

pub(super) use self::adopt::Known;
use super::{
    super::{
        Counters, Flow, FlowKey, Leg, NextHop, RateLimits, Share, VlanTags,
        backend::{BackendError, Installed, Usage},
        place::Places,
        tuple::{Tuple, arriving, ends4, ends6, leaving},
    },
    ports::SharedPorts,
    tables::{Shelf, Tables},
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
    v4: Tables<Flow4>,
    v6: Tables<Flow6>,
    places: Places,
    ports: SharedPorts,
    generation: u32,
    held: BTreeMap<FlowKey, Held>,
    /// The STUN ports at which the program answers by itself.
    listeners: BTreeMap<FlowKey, Held>,
    /// The IPv4 flows that borrow from an IPv6 one.
    borrowers: BTreeMap<FlowKey, BTreeSet<FlowKey>>,
    /// The IPv6 flow that each of them borrows from.
    lenders: BTreeMap<FlowKey, FlowKey>,
}

/// What is known of a flow besides its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Where its entry is.
    pub place: Place,
    /// Slot of its exit.
    pub exit: u8,
    /// Index of its rate limit.
    pub limit: Option<u32>,
}

/// An entry of either family.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    V4(Flow4),
    V6(Flow6),
}

impl Entries {
    /// Where `flow` stands, or may stand if it does not yet.
    pub(super) fn check(&self, flow: &Flow) -> Result<Place, BackendError> {
        for leg in [flow.from, flow.to] {
            if !is_suited(leg) {
                return Err(BackendError::Unsuited { local: leg.local, remote: leg.remote });
            }
        }
        let key = flow.from.key();
        let place = match self.held.get(&key) {
            Some(held) => held.place,
            None => self.vacancy(flow.from)?,
        };
        if borrows(flow) && self.arrival(flow.to.key()) != Some(flow.to) {
            return Err(BackendError::NoReverse { key, reverse: flow.to.key() });
        }
        Ok(place)
    }

    /// Writes a flow that has been [checked](Self::check), in place of what stands there; where
    /// nothing does, its counters start at zero. Returns what was held by flows that have gone, because
    /// they borrowed from what this one was before.
    pub(super) fn write(&mut self, flow: &Flow, dst_mac: [u8; 6], held: Held) -> Vec<Held> {
        let (key, place) = (flow.from.key(), held.place);
        let before = self.arrival(key);
        self.give_back(key);
        let gone = match before {
            Some(before) if before != flow.from => self.vacate_borrowers(key),
            Some(_) => Vec::new(),
            None => {
                self.shelf_mut(&key).reset_counters(place);
                self.ports.enter(key, place);
                Vec::new()
            }
        };
        let generation = self.next_generation();
        let lender = if borrows(flow) { flow.to.key() } else { key };
        if borrows(flow) {
            self.v4.vacate(place);
            self.borrow(key, lender);
            if let Some(held) = self.held.get(&lender) {
                self.v6.set_generation(held.place, generation);
            }
        }
        match self.entry(flow, dst_mac, held, generation) {
            Some(Entry::V4(entry)) => self.v4.write(place, &entry),
            Some(Entry::V6(entry)) => self.v6.write(place, &entry),
            None => {}
        }
        for borrower in self.borrowers.get(&lender).into_iter().flatten() {
            if let Some(held) = self.held.get(borrower) {
                self.v4.set_generation(held.place, generation);
            }
        }
        self.held.insert(key, held);
        gone
    }

    /// Takes out a flow and those that borrow from it, and returns what they held, its own last.
    pub(super) fn vacate(&mut self, key: FlowKey) -> Vec<Held> {
        let Some(held) = self.held.remove(&key) else { return Vec::new() };
        let mut gone = self.vacate_borrowers(key);
        self.give_back(key);
        self.shelf_mut(&key).vacate(held.place);
        self.ports.leave(key, held.place);
        gone.push(held);
        gone
    }

    /// Whether exactly this flow stands there, in force, whatever its limits are.
    pub(super) fn holds(&self, flow: &Flow, exit: u8, dst_mac: [u8; 6]) -> bool {
        let key = flow.from.key();
        let Some(&held) = self.held.get(&key) else { return false };
        let stands = self.entry_at(&key, held.place);
        let generation = stands.recipe().generation;
        let reverse = self.held.get(&flow.to.key());
        let in_force = !borrows(flow)
            || (reverse.is_some_and(|it| self.v6.generation(it.place) == generation)
                && self.arrival(flow.to.key()) == Some(flow.to));
        in_force && held.exit == exit && self.entry(flow, dst_mac, held, generation) == Some(stands)
    }

    /// What is known of a flow, if it is there.
    pub(super) fn get(&self, key: FlowKey) -> Option<Held> {
        self.held.get(&key).copied()
    }

    /// How many flows there are.
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// What is known of all flows besides their entries.
    pub(super) fn held(&self) -> impl Iterator<Item = &Held> {
        self.held.values()
    }

    /// The first `most` flows behind `after`, in the order of their keys, by way of the exits in their
    /// slots and within the limits at their indices.
    pub(super) fn list_after(
        &self,
        after: Bound<FlowKey>,
        most: usize,
        exit: impl Fn(u8) -> Exit,
        limits: impl Fn(Option<u32>) -> RateLimits,
    ) -> Vec<Installed> {
        let behind = self.held.range((after, Bound::Unbounded)).take(most);
        let read = |(key, held): (&FlowKey, &Held)| {
            let (from, to, recipe) = self.decode(key, held.place)?;
            let flow = Flow { from, to, limits: limits(held.limit) };
            Some(Installed { flow, next_hop: next_hop(&exit(held.exit), recipe.dst_mac) })
        };
        behind.filter_map(read).collect()
    }

    /// What a flow has forwarded that stands in this place, or has stood there last.
    pub(super) fn counters(&self, key: FlowKey, place: Place) -> Counters {
        let flow::Counters { packets, bytes } = self.shelf(&key).counters(place);
        Counters { packets, bytes }
    }

    /// Whether a data port may be handed out.
    pub(super) fn index_free(&self, local: SocketAddr) -> bool {
        let key = FlowKey::port(local);
        let next = self.held.range(key..).next();
        self.shelf(&key).is_vacant(Place::Port(self.places.index(local)))
            && next.is_none_or(|(next, _)| next.local() != key.local())
    }

    /// How full the tables are.
    pub(super) fn usage(&self) -> Usage {
        let taken = self.held.iter().map(|(key, held)| (key.is_ipv6(), held.place));
        Usage::of(self.places.lengths(), taken)
    }

    /// The best vacant place for what arrives on `leg`.
    fn vacancy(&self, leg: Leg) -> Result<Place, BackendError> {
        let key = leg.key();
        let shelf = self.shelf(&key);
        if let Some(place) = self.places.of(leg).find(|&place| shelf.is_vacant(place)) {
            return Ok(place);
        }
        match leg.share {
            Share::Whole => {
                let place = Place::Port(self.places.index(leg.local));
                let occupant = self.entry_at(&key, place).arrival().key();
                Err(BackendError::IndexTaken { key, occupant })
            }
            Share::Shared { .. } => Err(BackendError::NoPlace { key, probes: PROBES }),
        }
    }

    /// The leg that a flow serves, if it is there.
    fn arrival(&self, key: FlowKey) -> Option<Leg> {
        let held = self.held.get(&key)?;
        Some(self.entry_at(&key, held.place).arrival())
    }

    fn next_generation(&mut self) -> u32 {
        self.generation = self.generation.wrapping_add(1);
        if self.generation == VACANT {
            self.generation += 1;
        }
        self.generation
    }

    fn vacate_borrowers(&mut self, lender: FlowKey) -> Vec<Held> {
        let borrowers = self.borrowers.remove(&lender).unwrap_or_default();
        let mut gone = Vec::new();
        for borrower in borrowers {
            self.lenders.remove(&borrower);
            if let Some(held) = self.held.remove(&borrower) {
                self.v4.vacate(held.place);
                self.ports.leave(borrower, held.place);
                gone.push(held);
            }
        }
        gone
    }

    fn borrow(&mut self, borrower: FlowKey, lender: FlowKey) {
        self.borrowers.entry(lender).or_default().insert(borrower);
        self.lenders.insert(borrower, lender);
    }

    fn give_back(&mut self, borrower: FlowKey) {
        let Some(lender) = self.lenders.remove(&borrower) else { return };
        if let Some(borrowers) = self.borrowers.get_mut(&lender) {
            borrowers.remove(&borrower);
            if borrowers.is_empty() {
                self.borrowers.remove(&lender);
            }
        }
    }

    /// The entry of a flow; `None` if it borrows from one that is not there.
    fn entry(&self, flow: &Flow, dst_mac: [u8; 6], held: Held, generation: u32) -> Option<Entry> {
        let hop = Hop { exit: held.exit, dst_mac };
        let account = Account { generation, rate: held.limit };
        let number = |leg: Leg| leg.channel().map(ChannelNumber::number);
        let channels = Channels::new(number(flow.from), number(flow.to));
        let entry = match (arriving(flow.from), leaving(flow.to)) {
            (Tuple::V4(from), Tuple::V4(to)) => Entry::V4(Flow4::new(from, to, hop, account)),
            (Tuple::V6(from), Tuple::V6(to)) => Entry::V6(Flow6::new(from, to, hop, account)),
            (Tuple::V6(from), Tuple::V4(to)) => Entry::V6(Flow6::to_ipv4(from, to, hop, account)),
            (Tuple::V4(from), Tuple::V6(to)) => {
                let reverse = self.held.get(&flow.to.key())?.place;
                Entry::V4(Flow4::to_ipv6(from, &to, reverse, hop, account))
            }
        };
        Some(entry.over(channels).sharing(flow))
    }

    /// The legs of the flow that stands in a place, and how its packets leave; `None` if it borrows from
    /// one that is not there.
    fn decode(&self, key: &FlowKey, place: Place) -> Option<(Leg, Leg, Recipe)> {
        let entry = self.entry_at(key, place);
        let recipe = *entry.recipe();
        let shared = share(recipe.channels.leaving(), recipe.flags & flags::SHARES_TO != 0);
        let to = match &entry {
            Entry::V4(entry) => match entry.reverse() {
                Some(_) => self.arrival(*self.lenders.get(key)?)?,
                None => departure(ends4(&entry.to), shared),
            },
            Entry::V6(entry) if recipe.flags & flags::TO_IPV6 == 0 => {
                departure(ends4(&entry.to4), shared)
            }
            Entry::V6(entry) => departure(ends6(&entry.to6), shared),
        };
        Some((entry.arrival(), to, recipe))
    }

    fn entry_at(&self, key: &FlowKey, place: Place) -> Entry {
        if key.is_ipv6() { Entry::V6(self.v6.read(place)) } else { Entry::V4(self.v4.read(place)) }
    }

    /// The tables that a flow stands in.
    fn shelf(&self, key: &FlowKey) -> &dyn Shelf {
        if key.is_ipv6() { &self.v6 } else { &self.v4 }
    }

    fn shelf_mut(&mut self, key: &FlowKey) -> &mut dyn Shelf {
        if key.is_ipv6() { &mut self.v6 } else { &mut self.v4 }
    }
}

impl Entry {
    fn recipe(&self) -> &Recipe {
        match self {
            Self::V4(entry) => &entry.recipe,
            Self::V6(entry) => &entry.recipe,
        }
    }

    /// The same for ChannelData.
    fn over(self, channels: Channels) -> Self {
        match self {
            Self::V4(entry) => Self::V4(entry.over(channels)),
            Self::V6(entry) => Self::V6(entry.over(channels)),
        }
    }

    /// The same with a note of which legs share their ports, for whoever takes the entry over.
    fn sharing(mut self, flow: &Flow) -> Self {
        let recipe = match &mut self {
            Self::V4(entry) => &mut entry.recipe,
            Self::V6(entry) => &mut entry.recipe,
        };
        let is_shared = |leg: Leg| leg.share != Share::Whole;
        recipe.flags |= if is_shared(flow.from) { flags::SHARES_FROM } else { 0 };
        recipe.flags |= if is_shared(flow.to) { flags::SHARES_TO } else { 0 };
        self
    }

    /// The leg that its flow serves.
    fn arrival(&self) -> Leg {
        let recipe = self.recipe();
        let share = share(recipe.channels.arriving(), recipe.flags & flags::SHARES_FROM != 0);
        let (remote, local) = match self {
            Self::V4(entry) => ends4(&entry.from),
            Self::V6(entry) => ends6(&entry.from),
        };
        Leg { local, remote, share }
    }
}

/// How a leg is told from others, as an entry says it.
fn share(channel: Option<u16>, is_shared: bool) -> Share {
    if is_shared {
        Share::Shared { channel: channel.and_then(ChannelNumber::new) }
    } else {
        Share::Whole
    }
}

/// The leg on which packets leave with this source and destination.
fn departure((local, remote): (SocketAddr, SocketAddr), share: Share) -> Leg {
    Leg { local, remote, share }
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

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io,
        net::IpAddr,
        os::fd::{AsFd as _, FromRawFd as _},
        sync::atomic::{AtomicBool, AtomicU64, Ordering, fence},
        thread,
    };

    use proptest::prelude::*;
    use rawr_common::flow::Tuple4;
    use rawr_common::sharing::{self, Bit};

    use super::{
        super::super::{
            backend::{Backend, Filling},
            memory::Memory,
            table::Table,
        },
        super::ports::bit,
        *,
    };

    const FREE: RateLimits = [None, None];
    const PORTS: u32 = 16;
    const CHANNELS: u32 = 8;

    fn places() -> Places {
        Places::new(PORTS, CHANNELS, 77)
    }

    fn ports() -> SharedPorts {
        SharedPorts::anonymous().unwrap()
    }

    fn entries() -> Entries {
        fn tables<E: rawr_common::shared::Entry>() -> Tables<E> {
            let (ports, channels) = (Table::anonymous(PORTS), Table::anonymous(CHANNELS));
            Tables { ports: ports.unwrap(), channels: channels.unwrap() }
        }
        adopt(tables(), tables(), ports(), 1000)
    }

    /// With room for so many flows, any limits, and the exits of [`way`].
    fn adopt(v4: Tables<Flow4>, v6: Tables<Flow6>, ports: SharedPorts, flows: u32) -> Entries {
        let mut known = Known { flows, limit: &mut |index| index < 100, exit: &|slot| slot < 2 };
        Entries::adopt(v4, v6, places(), ports, &mut known)
    }

    fn restarted(entries: Entries) -> Entries {
        let Entries { v4, v6, ports, .. } = entries;
        adopt(v4, v6, ports, 1000)
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
        entries.list_after(Bound::Unbounded, usize::MAX, exit_in, |_| FREE)
    }

    fn ends(v6: bool, port: u16, remote: u8) -> (SocketAddr, SocketAddr) {
        let (local, far): (IpAddr, IpAddr) = if v6 {
            ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(), [0x2001, 0xdb8, 1, 0, 0, 0, 0, 9].into())
        } else {
            ([192, 0, 2, 1].into(), [198, 51, 100, 9].into())
        };
        ((local, port).into(), (far, 4000 + u16::from(remote)).into())
    }

    fn leg(v6: bool, port: u16, remote: u8) -> Leg {
        let (local, remote) = ends(v6, port, remote);
        Leg::whole(local, remote)
    }

    fn client(v6: bool, remote: u8, channel: u16) -> Leg {
        let (local, remote) = ends(v6, 3478, remote);
        Leg::shared(local, remote, ChannelNumber::new(0x4000 + channel))
    }

    fn peer(v6: bool, port: u16, remote: u8) -> Leg {
        let (local, remote) = ends(v6, port, remote);
        Leg::shared(local, remote, None)
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
        let place = entries.check(flow)?;
        let held = Held { place, exit: slot_of(next_hop), limit: None };
        entries.write(flow, next_hop.dst_mac, held);
        Ok(())
    }

    fn holds(entries: &Entries, flow: &Flow, next_hop: &NextHop) -> bool {
        entries.holds(flow, slot_of(next_hop), next_hop.dst_mac)
    }

    fn counters(entries: &Entries, key: FlowKey) -> Option<Counters> {
        entries.get(key).map(|held| entries.counters(key, held.place))
    }

    /// Counts a packet as the kernel would.
    fn forward(entries: &Entries, key: FlowKey, bytes: u16) {
        let place = entries.get(key).unwrap().place;
        if key.is_ipv6() {
            let (table, index) = entries.v6.table(place);
            table.open(index).unwrap().meter().count(bytes);
        } else {
            let (table, index) = entries.v4.table(place);
            table.open(index).unwrap().meter().count(bytes);
        }
    }

    /// What a reader in the kernel would make of the flow: in force only if it is found where the kernel
    /// looks, and all generations agree.
    fn in_force(entries: &Entries, flow: &Flow) -> bool {
        let key = flow.from.key();
        let Some(held) = entries.get(key) else { return false };
        entries.places.of(flow.from).any(|place| place == held.place)
            && if key.is_ipv6() {
                entries.v6.occupied(held.place).is_some()
            } else {
                entries.v4.occupied(held.place).is_some_and(|entry| {
                    let generation = entry.recipe.generation;
                    entry.reverse().is_none_or(|it| entries.v6.generation(it) == generation)
                })
            }
    }

    /// The ports of all entries that stand in the channel tables, by what stands there.
    fn standing(entries: &Entries) -> BTreeSet<Bit> {
        fn of<E: rawr_common::shared::Entry>(
            tables: &Tables<E>,
            entry: fn(E) -> Entry,
        ) -> Vec<(FlowKey, Place)> {
            let occupied = |place| Some((entry(tables.occupied(place)?).arrival().key(), place));
            tables.places().filter_map(occupied).collect()
        }
        let all = of(&entries.v4, Entry::V4).into_iter().chain(of(&entries.v6, Entry::V6));
        all.filter_map(|(key, place)| bit(key, place)).collect()
    }

    /// What the program takes for them.
    fn marked(entries: &Entries) -> BTreeSet<Bit> {
        let mut marked = BTreeSet::new();
        // Nearly all words are 0, and 16 ports share one.
        let begins = (0..sharing::WORDS).filter(|&index| entries.ports.read(index) != 0);
        let ports = begins.flat_map(|index| (0..16).map(move |port| (16 * index + port) as u16));
        for (port, ipv6) in ports.flat_map(|port| [(port, false), (port, true)]) {
            let held = sharing::Held::at(port, ipv6, |index| entries.ports.read(index));
            for (is_held, channel) in [(held.channels, true), (held.datagrams, false)] {
                marked.extend(is_held.then(|| Bit::new(port, ipv6, channel)));
            }
        }
        marked
    }

    #[derive(Clone, Debug)]
    enum Action {
        Install { from: Leg, to: Leg, router: u8 },
        Remove(Leg),
        Forward(Leg, u16),
        Restart,
    }

    fn any_leg() -> impl Strategy<Value = Leg> {
        let v6 = any::<bool>;
        prop_oneof![
            2 => (v6(), 0u16..24, 0u8..2).prop_map(|(v6, port, remote)| leg(v6, port, remote)),
            1 => (v6(), 0u8..4, 0u16..4).prop_map(|(v6, it, channel)| client(v6, it, channel)),
            1 => (v6(), 30u16..34, 2u8..6).prop_map(|(v6, port, it)| peer(v6, port, it)),
        ]
    }

    fn any_action() -> impl Strategy<Value = Action> {
        let install = (any_leg(), any_leg(), 0u8..3)
            .prop_filter("two legs", |(from, to, _)| from.key() != to.key())
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
            let mut memory = Memory::in_places(places(), 1000);
            let mut generations = BTreeSet::new();
            for action in actions {
                match action {
                    Action::Install { from, to, router } => {
                        let flow = Flow { from, to, limits: FREE };
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
                        let key = leg.key();
                        let gone = entries.vacate(key);
                        let expected = memory.remove(key).unwrap();
                        let last = gone.last().map(|held| entries.counters(key, held.place));
                        prop_assert_eq!(last, expected);
                    }
                    Action::Forward(leg, bytes) => {
                        if memory.forward(leg.key(), 1, bytes.into()) {
                            forward(&entries, leg.key(), bytes);
                        }
                    }
                    Action::Restart => {
                        entries = restarted(entries);
                        // No reader takes as long as a restart.
                        generations.clear();
                    }
                }
                prop_assert_eq!(all(&entries), memory.list().unwrap());
                prop_assert_eq!(entries.usage(), memory.usage());
                for installed in all(&entries) {
                    let Installed { flow, next_hop } = installed;
                    let key = flow.from.key();
                    prop_assert!(in_force(&entries, &flow));
                    prop_assert!(holds(&entries, &flow, &next_hop));
                    prop_assert_eq!(counters(&entries, key), memory.counters(key).unwrap());
                }
                for leg in [leg(false, 7, 0), leg(true, 20, 0), client(false, 0, 0)] {
                    let free = entries.index_free(leg.local);
                    prop_assert_eq!(free, memory.index_free(leg.local));
                }
                prop_assert_eq!(marked(&entries), standing(&entries));
                let v4 = entries.v4.places().filter(|&place| !entries.v4.is_vacant(place)).count();
                let v6 = entries.v6.places().filter(|&place| !entries.v6.is_vacant(place)).count();
                prop_assert_eq!(v4 + v6, entries.len());
            }
        }
    }

    /// Memory that can be mapped several times, as a map of the kernel can.
    fn shared_memory(bytes: usize) -> File {
        // SAFETY: the name is a string.
        let fd = unsafe { libc::memfd_create(c"tables".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel has just made it for us.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(bytes as u64).unwrap();
        file
    }

    /// Reads entries as the program does, while they come and go: what stands has its bit.
    #[test]
    fn no_entry_ever_stands_without_its_bit() {
        let flows = shared_memory(CHANNELS as usize * size_of::<Flow4>());
        let words = shared_memory(sharing::WORDS as usize * size_of::<u64>());
        let channels = || Table::<Flow4>::map(flows.as_fd(), CHANNELS).unwrap();
        let ports = || SharedPorts::map(words.as_fd()).unwrap();
        let v4 = Tables { ports: Table::anonymous(PORTS).unwrap(), channels: channels() };
        let v6 = Tables {
            ports: Table::anonymous(PORTS).unwrap(),
            channels: Table::anonymous(CHANNELS).unwrap(),
        };
        let mut entries = adopt(v4, v6, ports(), 1000);
        let legs = [client(false, 0, 0), client(false, 1, 1), peer(false, 30, 2)];
        let others = [peer(false, 30, 3), peer(false, 31, 4), peer(false, 31, 5)];
        let (seen, done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let (channels, ports) = (channels(), ports());
                for index in (0..CHANNELS).cycle() {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let Some(entry) = channels.occupied(index) else { continue };
                    fence(Ordering::SeqCst);
                    let bit = bit(Entry::V4(entry).arrival().key(), Place::Channel(index)).unwrap();
                    let word = ports.read(bit.word());
                    fence(Ordering::SeqCst);
                    // It stood as it was read, all the time.
                    let generation = entry.recipe.generation;
                    if generation != VACANT && channels.generation(index) == generation {
                        assert_ne!(word & bit.mask(), 0, "{entry:?}");
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
            let mut round = 0;
            while !reader.is_finished() && (round < 20_000 || seen.load(Ordering::Relaxed) < 1000) {
                for from in legs.into_iter().chain(others) {
                    let flow = Flow { from, to: leg(false, 7, 0), limits: FREE };
                    install(&mut entries, &flow, &way(1)).unwrap();
                    if round % 3 == 0 {
                        entries.vacate(from.key());
                    }
                }
                for from in legs.into_iter().chain(others) {
                    entries.vacate(from.key());
                }
                round += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(marked(&entries).is_empty());
    }

    #[test]
    fn garbage_is_not_adopted() {
        let mut entries = entries();
        let (plain, channel) = (
            Flow { from: leg(false, 5, 0), to: leg(false, 6, 0), limits: FREE },
            Flow { from: client(false, 1, 1), to: peer(false, 9, 0), limits: FREE },
        );
        let expected = [&channel, &plain].map(|flow| {
            install(&mut entries, flow, &way(1)).unwrap();
            Installed { flow: *flow, next_hop: way(1) }
        });
        let Place::Channel(at) = entries.get(channel.from.key()).unwrap().place else { panic!() };
        let Entries { mut v4, v6, ports, .. } = entries;
        let (sound, bound) = (v4.ports.read(5), v4.channels.read(at));
        let recipe = sound.recipe;
        let mut write = |index, port: u8, recipe| {
            let from = Tuple4 { dst_port: [0, port], ..sound.from };
            v4.ports.write(index, &Flow4 { from, recipe, ..sound });
        };
        write(7, 8, recipe);
        write(9, 9, Recipe { exit: 2, ..recipe });
        write(10, 10, Recipe { flags: flags::RATED, rate: 1000, ..recipe });
        write(11, 11, Recipe { flags: flags::TO_IPV6, ..recipe });
        let both = flags::TO_IPV6 | flags::REVERSE_IN_CHANNELS;
        write(12, 12, Recipe { flags: both, ..recipe });
        v4.ports.write(13, &Flow4::listener([192, 0, 2, 1], 13, 1, Account::default()));
        // The same key a second time, and ChannelData where no channels are sought.
        v4.channels.write((at + 1) % CHANNELS, &bound);
        v4.ports.write(14, &bound);
        // Of ports that have nothing in a channel table, and without the one that has.
        ports.garble(3478 / 16, 0);
        ports.garble(7, u64::MAX);
        let entries = adopt(v4, v6, ports, 1000);
        assert_eq!(marked(&entries), standing(&entries));
        let mut listed = all(&entries);
        listed.sort_by_key(|installed| installed.flow.from.share);
        listed.reverse();
        assert_eq!(listed, expected);
        let vacant = |place: &Place| entries.v4.is_vacant(*place);
        assert_eq!(entries.v4.places().filter(|place| !vacant(place)).count(), 2);
    }

    #[test]
    fn no_more_flows_are_adopted_than_there_may_be() {
        let mut entries = entries();
        for port in [5, 6, 7] {
            let flow = Flow { from: leg(true, port, 0), to: leg(false, 9, 0), limits: FREE };
            install(&mut entries, &flow, &way(1)).unwrap();
        }
        let Entries { v4, v6, ports, .. } = entries;
        assert_eq!(adopt(v4, v6, ports, 2).len(), 2);
    }

    #[test]
    fn a_channel_table_fills_up_and_takes_in_again() {
        let mut entries = entries();
        let to = peer(false, 9, 0);
        for channel in 0..8 {
            let flow = Flow { from: client(false, 1, channel), to, limits: FREE };
            install(&mut entries, &flow, &way(1)).unwrap();
        }
        let late = Flow { from: client(false, 2, 0), to, limits: FREE };
        let refused = install(&mut entries, &late, &way(1));
        assert!(
            matches!(refused, Err(BackendError::NoPlace { probes: PROBES, .. })),
            "{refused:?}"
        );
        let other_family = Flow { from: client(true, 2, 0), to, limits: FREE };
        install(&mut entries, &other_family, &way(1)).unwrap();
        let usage = entries.usage();
        let used = |filling: Filling| (filling.used, filling.length);
        assert_eq!((used(usage.channels4), used(usage.channels6)), ((8, 8), (1, 8)));
        entries.vacate(client(false, 1, 3).key());
        install(&mut entries, &late, &way(1)).unwrap();
        entries = restarted(entries);
        assert!(holds(&entries, &late, &way(1)));
        assert_eq!(entries.len(), 9);
    }

    #[test]
    fn the_first_peer_of_a_port_stands_in_the_port_table_and_others_do_not() {
        let mut entries = entries();
        let to = client(false, 1, 1);
        let mut places = Vec::new();
        for remote in 0..2 {
            let flow = Flow { from: peer(false, 9, remote), to, limits: FREE };
            install(&mut entries, &flow, &way(1)).unwrap();
            places.push(entries.get(flow.from.key()).unwrap().place);
        }
        assert!(matches!(places[..], [Place::Port(9), Place::Channel(_)]), "{places:?}");
        let neighbour = leg(false, 9 + PORTS as u16, 0);
        assert!(!entries.index_free(neighbour.local), "the place is taken");
        let flow = Flow { from: neighbour, to, limits: FREE };
        let refused = install(&mut entries, &flow, &way(1));
        let taken = matches!(refused, Err(BackendError::IndexTaken { occupant, .. })
            if occupant == peer(false, 9, 0).key());
        assert!(taken, "{refused:?}");
        entries.vacate(peer(false, 9, 0).key());
        assert!(!entries.index_free(peer(false, 9, 0).local), "the other peer is left");
        assert!(entries.index_free(neighbour.local));
        install(&mut entries, &flow, &way(1)).unwrap();
        assert!(entries.index_free(leg(true, 9, 0).local), "of the other family");
    }

    #[test]
    fn a_stun_port_has_a_place_like_a_leg_of_its_own() {
        let mut entries = entries();
        let (local, _) = ends(false, 9, 0);
        let place = entries.stand(local).unwrap();
        entries.listen(local, Held { place, exit: 1, limit: None });
        assert_eq!((place, entries.listeners()), (Place::Port(9), vec![local]));
        let in_table = entries.v4.read(place);
        assert_eq!(in_table.recipe.flags, flags::LISTENER | flags::CHANNELS);
        assert!(!entries.index_free(local));
        let flow = Flow { from: leg(false, 25, 0), to: leg(false, 1, 0), limits: FREE };
        let refused = install(&mut entries, &flow, &way(1));
        assert!(matches!(refused, Err(BackendError::IndexTaken { .. })), "{refused:?}");
        assert_eq!((entries.len(), all(&entries)), (0, Vec::new()), "it is no flow");
        assert_eq!(entries.silence(local), Some(Held { place, exit: 1, limit: None }));
        install(&mut entries, &flow, &way(1)).unwrap();
        assert!(entries.stand(local).is_err());
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
