//! Makes a backend hold what the flow table wants, whatever fails on the way.
//!
//! What has changed is settled at once, what failed is tried again with growing pauses, and from
//! time to time everything is compared, a part in each step. A flow that the backend holds already as wanted is left
//! alone, so that a restarted daemon adopts what its predecessor installed and no packet notices.
//! Flows that nobody wants (*orphans*, perhaps of sessions that the restarted daemon does not know
//! yet) stay while packets use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Counters, Flow, FlowKey, NextHop, NextHops,
    backend::{Backend, BackendError, Installed},
    flow_table::{Event, FlowTable, State},
    retry::Retries,
};

/// Flows that one step compares: others wait for their packets meanwhile.
const SLICE: usize = 512;

/// The reconciler's pace.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Time from one full comparison to the next.
    pub interval: Duration,
    /// How long an orphan may stay without a packet.
    pub orphan_idle: Duration,
    /// Pause before the first retry of what failed; it doubles from one to the next.
    pub first_retry: Duration,
    /// The longest such pause; a full comparison retries too.
    pub longest_retry: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            orphan_idle: Duration::from_secs(60),
            first_retry: Duration::from_millis(100),
            longest_retry: Duration::from_secs(5),
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    next_comparison: Option<Instant>,
    /// How far the comparison has come that is under way.
    comparing: Option<Position>,
    retries: Retries,
    orphans: BTreeMap<FlowKey, Orphan>,
}

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug)]
struct Position {
    after: Bound<FlowKey>,
    /// When it began.
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Orphan {
    counters: Counters,
    active: Instant,
}

impl Reconciler {
    /// A reconciler whose first steps compare everything.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            next_comparison: None,
            comparing: None,
            retries: Retries::default(),
            orphans: BTreeMap::new(),
        }
    }

    /// Settles what has changed in `table` and whatever else is due. The outcome stands in the
    /// table: [`FlowTable::take_events`].
    pub fn step(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        next_hops: &dyn NextHops,
    ) {
        let mut due = table.take_dirty();
        due.extend(self.retries.due(now));
        if self.comparing.is_none() && self.next_comparison.is_none_or(|at| at <= now) {
            self.next_comparison = Some(now + self.settings.interval);
            self.comparing = Some(Position { after: Bound::Unbounded, since: now });
        }
        if let Some(position) = self.comparing.take() {
            match backend.list_after(position.after, SLICE) {
                Ok(list) => self.compare(now, table, backend, (position, &list), &mut due),
                Err(why) => table.push(Event::ListFailed { why: Arc::new(why) }),
            }
        }
        self.withdraw_all(now, table, backend, &due);
        self.settle_all(now, table, backend, next_hops, due);
    }

    /// When [`Reconciler::step`] has something to do next even if nothing happens; `None` before
    /// the first step, which is due at once.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let comparing = self.comparing.map(|position| position.since);
        [comparing, self.retries.poll_timeout(), self.next_comparison].into_iter().flatten().min()
    }

    /// Reads what the installed flows have forwarded. Returns those that have forwarded something since
    /// the last call.
    pub fn poll_counters(
        &self,
        table: &mut FlowTable,
        backend: &dyn Backend,
    ) -> Result<Vec<FlowKey>, BackendError> {
        table.count(|key| backend.counters(key))
    }

    /// How many flows the backend holds that nobody wants, as of the last comparison.
    pub fn orphans(&self) -> usize {
        self.orphans.len()
    }

    /// Finds what the backend has lost, what differs, and what it should not have, in one part of the
    /// table. `list` is what the backend holds there, and perhaps further on.
    fn compare(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        (position, list): (Position, &[Installed]),
        due: &mut BTreeSet<FlowKey>,
    ) {
        let desired: Vec<_> = table.keys_after(position.after).take(SLICE).collect();
        let held = list.iter().map(|installed| installed.flow.from.key());
        let last_of = |all: &[FlowKey]| all.get(SLICE - 1).copied();
        let held: Vec<_> = held.collect();
        let end = [last_of(&held), last_of(&desired)].into_iter().flatten().min();
        let within = |key: &FlowKey| end.is_none_or(|end| *key <= end);

        for key in desired.into_iter().filter(within) {
            let is_lost = table.is_installed(key) && held.binary_search(&key).is_err();
            if is_lost {
                table.closed(key, None);
            }
            // The two directions of a pair are settled together: once is enough.
            if is_lost || table.partner(key).is_none_or(|partner| key < partner) {
                due.insert(key);
            }
        }
        let unwanted: Vec<_> = list
            .iter()
            .filter(|installed| {
                let key = installed.flow.from.key();
                within(&key) && !table.is_desired(key) && !table.is_leaving(key)
            })
            .copied()
            .collect();
        let part = (position.after, end.map_or(Bound::Unbounded, Bound::Included));
        self.tend_orphans(now, table, backend, (part, &unwanted));
        self.comparing = end.map(|end| Position { after: Bound::Excluded(end), ..position });
    }

    /// Removes those of the `unwanted` flows that have been idle for long; they are all that there
    /// are in this part of the table. The two directions of what was a session count as one.
    fn tend_orphans(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        (part, unwanted): ((Bound<FlowKey>, Bound<FlowKey>), &[Installed]),
    ) {
        let known: Vec<_> = self.orphans.range(part).map(|(&key, _)| key).collect();
        let known: BTreeMap<_, _> =
            known.into_iter().filter_map(|key| self.orphans.remove_entry(&key)).collect();
        for orphan in unwanted {
            let key = orphan.flow.from.key();
            let known = known.get(&key).copied();
            self.orphans.insert(key, look_at(now, backend, key, known));
        }
        for orphan in unwanted {
            let Flow { from, to, .. } = orphan.flow;
            let is_idle = self.is_idle(now, from.key()) && {
                // It may stand in another part of the table, which was looked at earlier.
                if let Some(&partner) = self.orphans.get(&to.key()) {
                    let partner = look_at(now, backend, to.key(), Some(partner));
                    self.orphans.insert(to.key(), partner);
                }
                self.is_idle(now, to.key())
            };
            if is_idle && backend.remove(from.key()).is_ok() {
                table.push(Event::OrphanRemoved { orphan: *orphan });
            }
        }
    }

    /// Whether no packet has used the orphan at `key` for long; also if there is none.
    fn is_idle(&self, now: Instant, key: FlowKey) -> bool {
        let orphan = self.orphans.get(&key);
        orphan.is_none_or(|orphan| now - orphan.active >= self.settings.orphan_idle)
    }

    /// Removes what is no longer desired; translations to IPv6 before what they build on.
    fn withdraw_all(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        due: &BTreeSet<FlowKey>,
    ) {
        let mut leaving: Vec<_> =
            due.iter().copied().filter(|&key| !table.is_desired(key)).collect();
        leaving.sort_by_key(FlowKey::is_ipv6);
        for key in leaving {
            if !table.is_leaving(key) {
                self.retries.remove(key);
                continue;
            }
            match backend.remove(key) {
                Ok(last) => {
                    table.closed(key, last);
                    self.retries.remove(key);
                }
                Err(_) => self.retry(now, key),
            }
        }
    }

    fn settle_all(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        next_hops: &dyn NextHops,
        mut due: BTreeSet<FlowKey>,
    ) {
        while let Some(key) = due.pop_last() {
            let unit = table.unit(key);
            for flow in &unit {
                due.remove(&flow.from.key());
            }
            if !unit.is_empty() {
                self.settle(now, table, backend, next_hops, &unit);
            }
        }
    }

    /// Installs all flows of a unit, or sees to it that none is.
    fn settle(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        next_hops: &dyn NextHops,
        unit: &[Flow],
    ) {
        let ways: Option<Vec<_>> = unit
            .iter()
            .map(|flow| next_hops.next_hop(flow.to.remote.ip(), flow.to.local.ip()))
            .collect();
        let outcome = match ways {
            Some(ways) => match install_all(backend, unit, &ways) {
                Ok(()) => State::Installed,
                Err(why) => State::Failed(Arc::new(why)),
            },
            None => State::Pending,
        };
        let clean = outcome.is_installed() || remove_all(table, backend, unit);
        let at_rest = clean && !matches!(outcome, State::Failed(_));
        let [first, rest @ ..] = unit else { return };
        for flow in rest {
            self.retries.remove(flow.from.key());
        }
        if at_rest {
            self.retries.remove(first.from.key());
        } else {
            self.retry(now, first.from.key());
        }
        for flow in unit {
            table.set_state(flow.from.key(), outcome.clone());
        }
    }

    fn retry(&mut self, now: Instant, key: FlowKey) {
        let Settings { first_retry, longest_retry, .. } = self.settings;
        self.retries.add(now, key, first_retry, longest_retry);
    }
}

/// An orphan as it is now: active if it has forwarded anything since it was `known`.
fn look_at(now: Instant, backend: &dyn Backend, key: FlowKey, known: Option<Orphan>) -> Orphan {
    let counters = backend.counters(key).ok().flatten();
    let counters = counters.or_else(|| known.map(|known| known.counters)).unwrap_or_default();
    let active = known.filter(|known| known.counters == counters).map(|known| known.active);
    Orphan { counters, active: active.unwrap_or(now) }
}

/// Installs what the backend does not hold already.
fn install_all(
    backend: &mut dyn Backend,
    unit: &[Flow],
    ways: &[NextHop],
) -> Result<(), BackendError> {
    for (flow, way) in unit.iter().zip(ways) {
        if !backend.holds(flow, way) {
            backend.install(flow, way)?;
        }
    }
    Ok(())
}

/// Removes what was installed last first. Returns whether nothing is left.
fn remove_all(table: &mut FlowTable, backend: &mut dyn Backend, unit: &[Flow]) -> bool {
    let mut all = true;
    for flow in unit.iter().rev() {
        match backend.remove(flow.from.key()) {
            Ok(last) => table.closed(flow.from.key(), last),
            Err(_) => all = false,
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::{IpAddr, SocketAddr},
        time::{Duration, Instant},
    };

    use proptest::prelude::*;
    use rawr_proto::ChannelNumber;

    use super::{
        super::{Leg, Limit, RateLimits, VlanTags, chaos::Chaos, memory::Memory, place::Places},
        *,
    };

    const FREE: RateLimits = [None, None];

    /// One router on every way, except where a way has its own or none.
    #[derive(Default)]
    struct Ways(BTreeMap<IpAddr, Option<u8>>);

    impl NextHops for Ways {
        fn next_hop(&self, remote: IpAddr, _local: IpAddr) -> Option<NextHop> {
            let router = self.0.get(&remote).copied().unwrap_or(Some(1))?;
            Some(NextHop {
                ifindex: 2,
                src_mac: [2, 0, 0, 0, 0, 0],
                dst_mac: [2, 0, 0, 0, 0, router],
                vlan: VlanTags::default(),
                mtu: 1500,
                tx: true,
            })
        }
    }

    struct Bench<B> {
        now: Instant,
        table: FlowTable,
        reconciler: Reconciler,
        backend: B,
        ways: Ways,
    }

    impl<B: Backend> Bench<B> {
        #[expect(clippy::disallowed_methods, reason = "tests need some instant to begin with")]
        fn new(backend: B) -> Self {
            Self {
                now: Instant::now(),
                table: FlowTable::default(),
                reconciler: Reconciler::new(Settings::default()),
                backend,
                ways: Ways::default(),
            }
        }

        fn step(&mut self) -> Vec<String> {
            self.reconciler.step(self.now, &mut self.table, &mut self.backend, &self.ways);
            self.table.take_events().iter().map(short).collect()
        }

        /// Lets time pass in steps of the reconciler's own choice.
        fn pass(&mut self, time: Duration) -> Vec<String> {
            let end = self.now + time;
            let mut events = Vec::new();
            while let Some(at) = self.reconciler.poll_timeout().filter(|&at| at <= end) {
                self.now = self.now.max(at);
                events.extend(self.step());
            }
            self.now = end;
            events
        }

        fn held(&self) -> BTreeSet<FlowKey> {
            self.backend.list().unwrap().iter().map(|held| held.flow.from.key()).collect()
        }

        fn total(&self, leg: Leg) -> u64 {
            self.table.get(leg.key()).unwrap().counters.packets
        }
    }

    fn short(event: &Event) -> String {
        match event {
            Event::Installed { key } => format!("installed {}", key.local().port()),
            Event::Pending { key } => format!("pending {}", key.local().port()),
            Event::Failed { key, why } => format!("failed {}: {why}", key.local().port()),
            Event::Removed { key, counters } => {
                format!("removed {} after {}", key.local().port(), counters.packets)
            }
            Event::OrphanRemoved { orphan } => format!("orphan {}", orphan.flow.from.local.port()),
            Event::ListFailed { .. } => "list failed".to_owned(),
        }
    }

    fn leg4(port: u16) -> Leg {
        Leg::whole(
            SocketAddr::from(([192, 0, 2, 1], port)),
            SocketAddr::from(([198, 51, 100, (port % 250) as u8], 4000)),
        )
    }

    fn leg6(port: u16) -> Leg {
        let ip = |last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last];
        Leg::whole(
            SocketAddr::from((ip(1), port)),
            SocketAddr::from((ip(0x100 + port % 250), 4000)),
        )
    }

    /// A client in a channel: at the STUN port, which all have.
    fn client(v6: bool, number: u16, channel: u16) -> Leg {
        let Leg { local, remote, .. } = if v6 { leg6(100 + number) } else { leg4(100 + number) };
        let local = SocketAddr::new(local.ip(), 3478);
        Leg::shared(local, remote, ChannelNumber::new(0x4000 + channel))
    }

    /// A peer at a relayed transport address.
    fn peer(v6: bool, number: u16, allocation: u16) -> Leg {
        let Leg { local, remote, .. } = if v6 { leg6(200 + number) } else { leg4(200 + number) };
        Leg::shared(SocketAddr::new(local.ip(), 60_000 + allocation), remote, None)
    }

    fn memory() -> Memory {
        Memory::new(1 << 16, 64)
    }

    #[test]
    fn channels_share_ports_and_come_and_go_by_themselves() {
        let mut bench = Bench::new(memory());
        let pairs = [
            (client(false, 1, 0), peer(false, 1, 1)),
            (client(false, 1, 1), peer(false, 2, 1)),
            (client(false, 2, 0), peer(true, 1, 2)),
            (client(true, 1, 0), peer(false, 1, 3)),
        ];
        for (client, peer) in pairs {
            bench.table.pair(client, peer, FREE);
        }
        assert_eq!(bench.step().len(), 8);
        let keys = |pairs: &[(Leg, Leg)]| {
            pairs.iter().flat_map(|(a, b)| [a.key(), b.key()]).collect::<BTreeSet<_>>()
        };
        assert_eq!(bench.held(), keys(&pairs));
        let (client, peer) = pairs[1];
        bench.table.unpair(client.key());
        bench.table.unpair(peer.key());
        assert_eq!(bench.step(), ["removed 3478 after 0", "removed 60001 after 0"]);
        assert_eq!(bench.held(), keys(&[pairs[0], pairs[2], pairs[3]]));
        bench.table.unpair_all(pairs[0].0.local);
        bench.step();
        let left = [pairs[0].1, pairs[2].1, pairs[3].0, pairs[3].1];
        assert_eq!(bench.held(), left.map(|leg| leg.key()).into());
    }

    #[test]
    fn two_channels_of_one_client_may_be_joined() {
        let mut bench = Bench::new(memory());
        let (a, b) = (client(false, 1, 0), client(false, 1, 1));
        bench.table.pair(a, b, FREE);
        bench.step();
        assert_eq!(bench.held(), [a.key(), b.key()].into());
        let held = bench.backend.list().unwrap();
        assert_eq!((held[0].flow.from, held[0].flow.to), (a, b));
    }

    #[test]
    fn a_channel_without_a_place_fails_visibly_and_is_tried_again() {
        let mut bench = Bench::new(Memory::in_places(Places::new(1 << 5, 8, 0), 64));
        for number in 0..8 {
            bench.table.pair(client(false, number, 0), peer(false, 1, number), FREE);
        }
        assert_eq!(bench.step().len(), 16);
        assert_eq!(bench.table.totals().installed, 16);
        let late = client(false, 8, 0);
        bench.table.pair(late, peer(false, 1, 8), FREE);
        let events = bench.step();
        assert!(events[0].contains("the channel table has no place for"), "{events:?}");
        assert!(events[1].starts_with("failed 60008"), "{events:?}");
        assert_eq!(bench.table.totals().failed, 2);
        assert_eq!(bench.held().len(), 16, "in neither direction");
        bench.table.unpair(client(false, 3, 0).key());
        let events = bench.pass(Duration::from_secs(10));
        assert!(
            events.ends_with(&["installed 3478".into(), "installed 60008".into()]),
            "{events:?}"
        );
    }

    #[test]
    fn a_pair_is_installed_and_removed() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.table.pair(a, b, FREE);
        assert_eq!(bench.step(), ["installed 1", "installed 2"]);
        bench.table.pair(a, b, FREE);
        assert!(bench.step().is_empty());
        assert_eq!(bench.backend.writes(), 2);

        bench.backend.forward(a.key(), 3, 300);
        let moved = bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        assert_eq!(moved, [a.key()]);
        bench.backend.forward(a.key(), 2, 200);
        bench.table.unpair(a.key());
        bench.table.unpair(b.key());
        assert_eq!(bench.step(), ["removed 1 after 5", "removed 2 after 0"]);
        assert!(bench.held().is_empty());
        assert!(bench.table.is_empty());
    }

    #[test]
    fn a_table_has_changed_until_the_backend_agrees() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        assert!(!bench.table.has_changed());
        bench.table.pair(a, b, FREE);
        assert!(bench.table.has_changed());
        bench.step();
        assert!(!bench.table.has_changed());
        bench.table.pair(a, b, FREE);
        assert!(!bench.table.has_changed(), "it is there already");
        bench.table.unpair(a.key());
        assert!(bench.table.has_changed());
        bench.step();
        assert!(!bench.table.has_changed());
    }

    #[test]
    fn a_table_without_a_backend_keeps_nothing_of_flows_that_are_gone() {
        let mut table = FlowTable::default();
        let (a, b) = (leg4(1), leg4(2));
        table.pair(a, b, FREE);
        table.unpair(a.key());
        table.unpair(b.key());
        assert!(table.has_changed() && table.is_leaving(a.key()));
        table.settle_alone();
        assert!(!table.has_changed() && !table.is_leaving(a.key()));
        assert!(table.is_empty());
    }

    #[test]
    fn a_pair_waits_for_both_next_hops() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.ways.0.insert(b.remote.ip(), None);
        bench.table.pair(a, b, FREE);
        assert_eq!(bench.step(), ["pending 1", "pending 2"]);
        assert!(bench.held().is_empty());
        assert!(bench.pass(Duration::from_secs(60)).is_empty());

        bench.ways.0.insert(b.remote.ip(), Some(7));
        bench.table.next_hop_changed(b.remote.ip());
        assert_eq!(bench.step(), ["installed 1", "installed 2"]);

        bench.ways.0.insert(b.remote.ip(), None);
        bench.table.next_hop_changed(b.remote.ip());
        assert_eq!(bench.step(), ["pending 1", "pending 2"]);
        assert!(bench.held().is_empty());
    }

    #[test]
    fn a_changed_next_hop_is_written_in_place() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.table.pair(a, b, FREE);
        bench.step();
        bench.backend.forward(a.key(), 3, 300);
        bench.ways.0.insert(b.remote.ip(), Some(9));
        bench.table.next_hop_changed(b.remote.ip());
        assert!(bench.step().is_empty());
        assert_eq!(bench.backend.writes(), 3, "only one direction goes that way");
        let held = bench.backend.list().unwrap();
        assert_eq!(held.iter().find(|held| held.flow.from == a).unwrap().next_hop.dst_mac[5], 9);
        bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        assert_eq!(bench.total(a), 3);
    }

    #[test]
    fn a_pair_without_room_for_both_directions_is_not_installed_at_all() {
        let mut bench = Bench::new(Memory::new(1 << 16, 3));
        bench.table.pair(leg4(1), leg4(2), FREE);
        bench.step();
        bench.table.pair(leg4(3), leg4(4), FREE);
        let events = bench.step();
        assert!(events[0].starts_with("failed 3: all 3 flows are in use"), "{events:?}");
        assert!(events[1].starts_with("failed 4"), "{events:?}");
        assert_eq!(bench.held(), [leg4(1).key(), leg4(2).key()].into());
        assert_eq!(bench.table.totals().failed, 2);

        bench.table.unpair(leg4(1).key());
        bench.table.unpair(leg4(2).key());
        let events = bench.pass(Duration::from_secs(10));
        assert!(events.ends_with(&["installed 3".into(), "installed 4".into()]), "{events:?}");
    }

    #[test]
    fn retries_pause_longer_and_longer() {
        let mut bench = Bench::new(Chaos::new(memory(), 1.0, 1));
        bench.reconciler.settings.interval = Duration::from_secs(1000);
        bench.table.pair(leg4(1), leg4(2), FREE);
        assert_eq!(bench.step().iter().filter(|event| event.starts_with("failed")).count(), 2);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let at = bench.reconciler.poll_timeout().unwrap();
            pauses.push((at - bench.now).as_millis());
            bench.now = at;
            assert!(bench.step().is_empty(), "a failure is told once");
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(bench.table.totals().failures, 2 * 9);
    }

    #[test]
    fn a_session_moves_without_losing_the_last_packets_of_its_old_leg() {
        let mut bench = Bench::new(memory());
        let (down, old, new) = (leg6(1), leg4(2), leg4(3));
        bench.table.pair(down, old, FREE);
        bench.step();
        bench.table.pair(down, new, FREE);
        bench.table.drain(old, down, FREE);
        assert_eq!(
            bench.step(),
            ["installed 1", "installed 3"],
            "the old leg's flow stays as it is"
        );
        let held = bench.backend.list().unwrap();
        let to = |leg: Leg| held.iter().find(|held| held.flow.from == leg).unwrap().flow.to;
        assert_eq!((to(down), to(new), to(old)), (new, down, down));
        assert_eq!(bench.table.get(old.key()).unwrap().partner, None);
        bench.table.unpair(old.key());
        bench.step();
        assert_eq!(bench.held(), [down.key(), new.key()].into());
    }

    #[test]
    fn counters_go_on_after_the_backend_has_lost_a_flow() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.table.pair(a, b, FREE);
        bench.step();
        bench.backend.forward(a.key(), 4, 400);
        bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        bench.backend.remove(a.key()).unwrap();
        bench.pass(Duration::from_secs(5));
        assert_eq!(bench.held(), [a.key(), b.key()].into());
        bench.backend.forward(a.key(), 1, 100);
        bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        assert_eq!(bench.total(a), 5);
    }

    #[test]
    fn a_restarted_daemon_adopts_what_it_finds() {
        let mut before = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        before.table.pair(a, b, Limit::own(Some(1_000_000)));
        before.step();
        before.backend.forward(a.key(), 4, 400);
        let writes = before.backend.writes();

        let mut after = Bench::new(before.backend);
        after.table.pair(a, b, Limit::own(Some(1_000_000)));
        assert_eq!(after.step(), ["installed 1", "installed 2"]);
        assert_eq!(after.backend.writes(), writes);
        after.reconciler.poll_counters(&mut after.table, &after.backend).unwrap();
        assert_eq!(after.total(a), 4);
    }

    #[test]
    fn orphans_stay_while_packets_use_either_direction() {
        let mut before = Bench::new(memory());
        for (a, b) in [(leg4(1), leg4(2)), (leg4(3), leg4(4))] {
            before.table.pair(a, b, FREE);
        }
        before.step();

        let mut after = Bench::new(before.backend);
        assert!(after.step().is_empty());
        assert_eq!(after.reconciler.orphans(), 4);
        assert!(!after.backend.index_free(leg4(1).local));
        let mut events = Vec::new();
        for _ in 0..7 {
            after.backend.forward(leg4(1).key(), 1, 100);
            events.extend(after.pass(Duration::from_secs(10)));
        }
        assert_eq!(events, ["orphan 3", "orphan 4"]);
        assert_eq!(after.pass(Duration::from_secs(70)), ["orphan 1", "orphan 2"]);
        assert!(after.held().is_empty());
        assert!(after.backend.index_free(leg4(1).local));
    }

    /// Flows for more than two parts.
    const MANY: u16 = 3 * SLICE as u16;

    #[test]
    fn a_long_table_is_compared_in_parts() {
        let mut bench = Bench::new(Memory::new(1 << 16, 2 * u32::from(MANY)));
        for port in 1..=MANY {
            bench.table.pair(leg4(port), leg6(port), FREE);
        }
        bench.step();
        while bench.reconciler.poll_timeout().is_some_and(|at| at <= bench.now) {
            assert!(bench.step().is_empty());
        }
        let lost = [leg4(1), leg6(1), leg6(MANY - 1), leg4(MANY)].map(|leg| leg.key());
        for key in lost {
            bench.backend.remove(key).unwrap();
        }
        bench.now += Duration::from_secs(5);
        let begin = bench.backend.writes();
        bench.step();
        assert!(!bench.held().contains(&lost[2]), "one step does not come so far");
        assert!(bench.reconciler.poll_timeout().is_some_and(|at| at <= bench.now));
        bench.pass(Duration::ZERO);
        assert_eq!(bench.held().len(), 2 * usize::from(MANY));
        // What translates to IPv6 was taken out with what it builds on.
        assert_eq!(bench.backend.writes() - begin, 5);
    }

    #[test]
    fn an_orphan_in_one_part_stays_while_its_other_direction_in_another_is_used() {
        let mut before = Bench::new(Memory::new(1 << 16, 4 * u32::from(MANY)));
        for port in 1..=MANY {
            before.table.pair(leg4(port), leg4(2 * MANY + 1 - port), FREE);
        }
        before.step();

        let mut after = Bench::new(before.backend);
        after.step();
        after.pass(Duration::ZERO);
        assert_eq!(after.reconciler.orphans(), 2 * usize::from(MANY));
        for _ in 0..7 {
            after.backend.forward(leg4(2 * MANY).key(), 1, 100);
            after.pass(Duration::from_secs(10));
        }
        assert_eq!(after.held(), [leg4(1).key(), leg4(2 * MANY).key()].into());
        after.pass(Duration::from_secs(70));
        assert!(after.held().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Action {
        Pair(Leg, Leg),
        Drain(Leg, Leg),
        Unpair(Leg),
        Way(Leg, Option<u8>),
        Lose(Leg),
        Time(u16),
    }

    fn any_leg() -> impl Strategy<Value = Leg> {
        let whole = (any::<bool>(), 1u16..6)
            .prop_map(|(v6, port)| if v6 { leg6(port) } else { leg4(port) });
        let client =
            (any::<bool>(), 1u16..3, 0u16..3).prop_map(|(v6, it, channel)| client(v6, it, channel));
        let peer = (any::<bool>(), 1u16..4, 1u16..3).prop_map(|(v6, it, port)| peer(v6, it, port));
        prop_oneof![2 => whole, 1 => client, 1 => peer]
    }

    fn any_action() -> impl Strategy<Value = Action> {
        let distinct = || (any_leg(), any_leg()).prop_filter("two legs", |(a, b)| a != b);
        prop_oneof![
            4 => distinct().prop_map(|(a, b)| Action::Pair(a, b)),
            1 => distinct().prop_map(|(a, b)| Action::Drain(a, b)),
            2 => any_leg().prop_map(Action::Unpair),
            2 => (any_leg(), proptest::option::weighted(0.7, 1u8..4)).prop_map(|(l, w)| Action::Way(l, w)),
            1 => any_leg().prop_map(Action::Lose),
            3 => (0u16..8000).prop_map(Action::Time),
        ]
    }

    fn act(bench: &mut Bench<Chaos<Memory>>, action: Action) {
        match action {
            Action::Pair(a, b) => bench.table.pair(a, b, FREE),
            Action::Drain(from, to) => bench.table.drain(from, to, FREE),
            Action::Unpair(leg) => drop(bench.table.unpair(leg.key())),
            Action::Way(leg, way) => {
                bench.ways.0.insert(leg.remote.ip(), way);
                bench.table.next_hop_changed(leg.remote.ip());
            }
            Action::Lose(leg) => drop(bench.backend.inner_mut().remove(leg.key())),
            Action::Time(ms) => drop(bench.pass(Duration::from_millis(ms.into()))),
        }
        bench.step();
    }

    /// What the backend should hold once nothing fails any more.
    fn wanted(bench: &Bench<Chaos<Memory>>) -> BTreeMap<FlowKey, Installed> {
        let views: Vec<_> = bench.table.iter().collect();
        let way = |flow: &Flow| bench.ways.next_hop(flow.to.remote.ip(), flow.to.local.ip());
        let mut wanted: BTreeMap<_, _> = views
            .iter()
            .filter(|view| {
                view.partner
                    .is_none_or(|partner| way(&bench.table.get(partner).unwrap().flow).is_some())
            })
            .filter_map(|view| {
                let next_hop = way(&view.flow)?;
                Some((view.flow.from.key(), Installed { flow: view.flow, next_hop }))
            })
            .collect();
        // A one-way translation to IPv6 needs a flow that comes back, and goes without.
        let translations: Vec<_> = wanted
            .values()
            .filter(|held| held.flow.from.local.is_ipv4() && held.flow.to.local.is_ipv6())
            .filter(|held| !wanted.contains_key(&held.flow.to.key()))
            .map(|held| held.flow.from.key())
            .collect();
        wanted.retain(|key, _| !translations.contains(key));
        wanted
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn whatever_fails_the_backend_ends_up_as_wanted(
            actions in proptest::collection::vec(any_action(), 1..60),
            probability in 0.0..0.9,
            seed: u64,
        ) {
            let mut bench = Bench::new(Chaos::new(memory(), probability, seed));
            for action in actions {
                act(&mut bench, action);
            }
            bench.backend.set_probability(0.0);
            bench.pass(Duration::from_secs(90));
            let wanted = wanted(&bench);
            let list = bench.backend.list().unwrap();
            let held: BTreeMap<_, _> = list.iter().map(|held| (held.flow.from.key(), *held)).collect();
            prop_assert_eq!(&held, &wanted);
            for view in bench.table.iter() {
                let key = view.flow.from.key();
                prop_assert_eq!(view.state.is_installed(), held.contains_key(&key));
                if let Some(partner) = view.partner {
                    prop_assert_eq!(held.contains_key(&key), held.contains_key(&partner));
                }
            }
        }

        /// Tables so short that not everything fits hold what is said to be installed, and no more.
        #[test]
        fn what_does_not_fit_fails_visibly(
            actions in proptest::collection::vec(any_action(), 1..60),
            seed: u64,
        ) {
            let places = Places::new(1 << 3, 8, seed);
            let mut bench = Bench::new(Chaos::new(Memory::in_places(places, 20), 0.2, seed));
            for action in actions {
                act(&mut bench, action);
            }
            bench.backend.set_probability(0.0);
            bench.pass(Duration::from_secs(90));
            let mut installed = BTreeSet::new();
            for view in bench.table.iter() {
                let key = view.flow.from.key();
                match view.state {
                    State::Installed => prop_assert!(installed.insert(key)),
                    State::Pending => {}
                    State::Failed(why) => {
                        let expected = [
                            "place in the port table taken (table_length)",
                            "no place in the channel table (channel_table_length)",
                            "no flow of the other direction",
                            "all flows are in use",
                        ];
                        prop_assert!(expected.contains(&why.kind()), "{}", why);
                    }
                }
            }
            prop_assert_eq!(bench.held(), installed);
        }

        /// Even while calls fail, a pair that is at rest stands in both directions or in neither.
        #[test]
        fn what_is_called_installed_is_installed_both_ways(
            actions in proptest::collection::vec(any_action(), 1..60),
            seed: u64,
        ) {
            let mut bench = Bench::new(Chaos::new(memory(), 0.3, seed));
            for action in actions {
                if matches!(action, Action::Lose(_)) {
                    continue;
                }
                act(&mut bench, action);
                let held = bench.backend.inner_mut().list().unwrap();
                let held: BTreeSet<_> = held.iter().map(|held| held.flow.from.key()).collect();
                for view in bench.table.iter() {
                    let Some(partner) = view.partner else { continue };
                    let key = view.flow.from.key();
                    if view.state.is_installed() {
                        prop_assert!(held.contains(&key) && held.contains(&partner));
                    }
                }
            }
        }
    }
}
