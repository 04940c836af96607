//! Makes a backend hold what the flow table wants, whatever fails on the way.
//!
//! What has changed is settled at once, what failed is tried again with growing pauses, and from
//! time to time everything is compared, a part in each step. A flow that the backend holds already as wanted is left
//! alone, so that a restarted daemon adopts what its predecessor installed and no packet notices.
//! Flows that nobody wants (*orphans*, perhaps of sessions that the restarted daemon does not know
//! yet) stay while packets use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Counters, Flow, NextHop, NextHops,
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
    orphans: BTreeMap<SocketAddr, Orphan>,
}

/// Where a comparison goes on.
#[derive(Clone, Copy, Debug)]
struct Position {
    after: Bound<SocketAddr>,
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

    /// Reads what the installed flows have forwarded. Returns the local addresses at which packets
    /// have arrived since the last call.
    pub fn poll_counters(
        &self,
        table: &mut FlowTable,
        backend: &dyn Backend,
    ) -> Result<Vec<SocketAddr>, BackendError> {
        table.count(|local| backend.counters(local))
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
        due: &mut BTreeSet<SocketAddr>,
    ) {
        let desired: Vec<_> = table.locals_after(position.after).take(SLICE).collect();
        let held = list.iter().map(|installed| installed.flow.from.local);
        let last_of = |all: &[SocketAddr]| all.get(SLICE - 1).copied();
        let held: Vec<_> = held.collect();
        let end = [last_of(&held), last_of(&desired)].into_iter().flatten().min();
        let within = |local: &SocketAddr| end.is_none_or(|end| *local <= end);

        for local in desired.into_iter().filter(within) {
            let is_lost = table.is_installed(local) && held.binary_search(&local).is_err();
            if is_lost {
                table.closed(local, None);
            }
            // The two directions of a pair are settled together: once is enough.
            if is_lost || table.partner(local).is_none_or(|partner| local < partner) {
                due.insert(local);
            }
        }
        let unwanted: Vec<_> = list
            .iter()
            .filter(|installed| {
                let local = installed.flow.from.local;
                within(&local) && !table.is_desired(local) && !table.is_leaving(local)
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
        (part, unwanted): ((Bound<SocketAddr>, Bound<SocketAddr>), &[Installed]),
    ) {
        let known: Vec<_> = self.orphans.range(part).map(|(&local, _)| local).collect();
        let known: BTreeMap<_, _> =
            known.into_iter().filter_map(|local| self.orphans.remove_entry(&local)).collect();
        for orphan in unwanted {
            let local = orphan.flow.from.local;
            let known = known.get(&local).copied();
            self.orphans.insert(local, look_at(now, backend, local, known));
        }
        for orphan in unwanted {
            let Flow { from, to, .. } = orphan.flow;
            let is_idle = self.is_idle(now, from.local) && {
                // It may stand in another part of the table, which was looked at earlier.
                if let Some(&partner) = self.orphans.get(&to.local) {
                    let partner = look_at(now, backend, to.local, Some(partner));
                    self.orphans.insert(to.local, partner);
                }
                self.is_idle(now, to.local)
            };
            if is_idle && backend.remove(from.local).is_ok() {
                table.push(Event::OrphanRemoved { orphan: *orphan });
            }
        }
    }

    /// Whether no packet has used the orphan at `local` for long; also if there is none.
    fn is_idle(&self, now: Instant, local: SocketAddr) -> bool {
        let orphan = self.orphans.get(&local);
        orphan.is_none_or(|orphan| now - orphan.active >= self.settings.orphan_idle)
    }

    /// Removes what is no longer desired; translations to IPv6 before what they build on.
    fn withdraw_all(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        due: &BTreeSet<SocketAddr>,
    ) {
        let mut leaving: Vec<_> =
            due.iter().copied().filter(|&local| !table.is_desired(local)).collect();
        leaving.sort_by_key(SocketAddr::is_ipv6);
        for local in leaving {
            if !table.is_leaving(local) {
                self.retries.remove(local);
                continue;
            }
            match backend.remove(local) {
                Ok(last) => {
                    table.closed(local, last);
                    self.retries.remove(local);
                }
                Err(_) => self.retry(now, local),
            }
        }
    }

    fn settle_all(
        &mut self,
        now: Instant,
        table: &mut FlowTable,
        backend: &mut dyn Backend,
        next_hops: &dyn NextHops,
        mut due: BTreeSet<SocketAddr>,
    ) {
        while let Some(local) = due.pop_last() {
            let unit = table.unit(local);
            for flow in &unit {
                due.remove(&flow.from.local);
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
            self.retries.remove(flow.from.local);
        }
        if at_rest {
            self.retries.remove(first.from.local);
        } else {
            self.retry(now, first.from.local);
        }
        for flow in unit {
            table.set_state(flow.from.local, outcome.clone());
        }
    }

    fn retry(&mut self, now: Instant, local: SocketAddr) {
        let Settings { first_retry, longest_retry, .. } = self.settings;
        self.retries.add(now, local, first_retry, longest_retry);
    }
}

/// An orphan as it is now: active if it has forwarded anything since it was `known`.
fn look_at(
    now: Instant,
    backend: &dyn Backend,
    local: SocketAddr,
    known: Option<Orphan>,
) -> Orphan {
    let counters = backend.counters(local).ok().flatten();
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
        match backend.remove(flow.from.local) {
            Ok(last) => table.closed(flow.from.local, last),
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

    use super::{
        super::{Leg, VlanTags, chaos::Chaos, memory::Memory},
        *,
    };

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

        fn held(&self) -> BTreeSet<SocketAddr> {
            self.backend.list().unwrap().iter().map(|held| held.flow.from.local).collect()
        }

        fn total(&self, leg: Leg) -> u64 {
            self.table.get(leg.local).unwrap().counters.packets
        }
    }

    fn short(event: &Event) -> String {
        match event {
            Event::Installed { local } => format!("installed {}", local.port()),
            Event::Pending { local } => format!("pending {}", local.port()),
            Event::Failed { local, why } => format!("failed {}: {why}", local.port()),
            Event::Removed { local, counters } => {
                format!("removed {} after {}", local.port(), counters.packets)
            }
            Event::OrphanRemoved { orphan } => format!("orphan {}", orphan.flow.from.local.port()),
            Event::ListFailed { .. } => "list failed".to_owned(),
        }
    }

    fn leg4(port: u16) -> Leg {
        Leg {
            local: SocketAddr::from(([192, 0, 2, 1], port)),
            remote: SocketAddr::from(([198, 51, 100, (port % 250) as u8], 4000)),
        }
    }

    fn leg6(port: u16) -> Leg {
        let ip = |last| [0x2001, 0xdb8, 0, 0, 0, 0, 0, last];
        Leg {
            local: SocketAddr::from((ip(1), port)),
            remote: SocketAddr::from((ip(0x100 + port % 250), 4000)),
        }
    }

    fn memory() -> Memory {
        Memory::new(1 << 16, 64)
    }

    #[test]
    fn a_pair_is_installed_and_removed() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.table.pair(a, b, None);
        assert_eq!(bench.step(), ["installed 1", "installed 2"]);
        bench.table.pair(a, b, None);
        assert!(bench.step().is_empty());
        assert_eq!(bench.backend.writes(), 2);

        bench.backend.forward(a.local, 3, 300);
        let moved = bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        assert_eq!(moved, [a.local]);
        bench.backend.forward(a.local, 2, 200);
        bench.table.unpair(a.local);
        bench.table.unpair(b.local);
        assert_eq!(bench.step(), ["removed 1 after 5", "removed 2 after 0"]);
        assert!(bench.held().is_empty());
        assert!(bench.table.is_empty());
    }

    #[test]
    fn a_table_has_changed_until_the_backend_agrees() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        assert!(!bench.table.has_changed());
        bench.table.pair(a, b, None);
        assert!(bench.table.has_changed());
        bench.step();
        assert!(!bench.table.has_changed());
        bench.table.pair(a, b, None);
        assert!(!bench.table.has_changed(), "it is there already");
        bench.table.unpair(a.local);
        assert!(bench.table.has_changed());
        bench.step();
        assert!(!bench.table.has_changed());
    }

    #[test]
    fn a_table_without_a_backend_keeps_nothing_of_flows_that_are_gone() {
        let mut table = FlowTable::default();
        let (a, b) = (leg4(1), leg4(2));
        table.pair(a, b, None);
        table.unpair(a.local);
        table.unpair(b.local);
        assert!(table.has_changed() && table.is_leaving(a.local));
        table.settle_alone();
        assert!(!table.has_changed() && !table.is_leaving(a.local));
        assert!(table.is_empty());
    }

    #[test]
    fn a_pair_waits_for_both_next_hops() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.ways.0.insert(b.remote.ip(), None);
        bench.table.pair(a, b, None);
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
        bench.table.pair(a, b, None);
        bench.step();
        bench.backend.forward(a.local, 3, 300);
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
        bench.table.pair(leg4(1), leg4(2), None);
        bench.step();
        bench.table.pair(leg4(3), leg4(4), None);
        let events = bench.step();
        assert!(events[0].starts_with("failed 3: all 3 flows are in use"), "{events:?}");
        assert!(events[1].starts_with("failed 4"), "{events:?}");
        assert_eq!(bench.held(), [leg4(1).local, leg4(2).local].into());
        assert_eq!(bench.table.totals().failed, 2);

        bench.table.unpair(leg4(1).local);
        bench.table.unpair(leg4(2).local);
        let events = bench.pass(Duration::from_secs(10));
        assert!(events.ends_with(&["installed 3".into(), "installed 4".into()]), "{events:?}");
    }

    #[test]
    fn retries_pause_longer_and_longer() {
        let mut bench = Bench::new(Chaos::new(memory(), 1.0, 1));
        bench.reconciler.settings.interval = Duration::from_secs(1000);
        bench.table.pair(leg4(1), leg4(2), None);
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
        bench.table.pair(down, old, None);
        bench.step();
        bench.table.pair(down, new, None);
        bench.table.drain(old, down, None);
        assert_eq!(
            bench.step(),
            ["installed 1", "installed 3"],
            "the old leg's flow stays as it is"
        );
        let held = bench.backend.list().unwrap();
        let to = |leg: Leg| held.iter().find(|held| held.flow.from == leg).unwrap().flow.to;
        assert_eq!((to(down), to(new), to(old)), (new, down, down));
        assert_eq!(bench.table.get(old.local).unwrap().partner, None);
        bench.table.unpair(old.local);
        bench.step();
        assert_eq!(bench.held(), [down.local, new.local].into());
    }

    #[test]
    fn counters_go_on_after_the_backend_has_lost_a_flow() {
        let mut bench = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        bench.table.pair(a, b, None);
        bench.step();
        bench.backend.forward(a.local, 4, 400);
        bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        bench.backend.remove(a.local).unwrap();
        bench.pass(Duration::from_secs(5));
        assert_eq!(bench.held(), [a.local, b.local].into());
        bench.backend.forward(a.local, 1, 100);
        bench.reconciler.poll_counters(&mut bench.table, &bench.backend).unwrap();
        assert_eq!(bench.total(a), 5);
    }

    #[test]
    fn a_restarted_daemon_adopts_what_it_finds() {
        let mut before = Bench::new(memory());
        let (a, b) = (leg4(1), leg4(2));
        before.table.pair(a, b, Some(1_000_000));
        before.step();
        before.backend.forward(a.local, 4, 400);
        let writes = before.backend.writes();

        let mut after = Bench::new(before.backend);
        after.table.pair(a, b, Some(1_000_000));
        assert_eq!(after.step(), ["installed 1", "installed 2"]);
        assert_eq!(after.backend.writes(), writes);
        after.reconciler.poll_counters(&mut after.table, &after.backend).unwrap();
        assert_eq!(after.total(a), 4);
    }

    #[test]
    fn orphans_stay_while_packets_use_either_direction() {
        let mut before = Bench::new(memory());
        for (a, b) in [(leg4(1), leg4(2)), (leg4(3), leg4(4))] {
            before.table.pair(a, b, None);
        }
        before.step();

        let mut after = Bench::new(before.backend);
        assert!(after.step().is_empty());
        assert_eq!(after.reconciler.orphans(), 4);
        assert!(!after.backend.index_free(leg4(1).local));
        let mut events = Vec::new();
        for _ in 0..7 {
            after.backend.forward(leg4(1).local, 1, 100);
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
            bench.table.pair(leg4(port), leg6(port), None);
        }
        bench.step();
        while bench.reconciler.poll_timeout().is_some_and(|at| at <= bench.now) {
            assert!(bench.step().is_empty());
        }
        let lost = [leg4(1), leg6(1), leg6(MANY - 1), leg4(MANY)].map(|leg| leg.local);
        for local in lost {
            bench.backend.remove(local).unwrap();
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
            before.table.pair(leg4(port), leg4(2 * MANY + 1 - port), None);
        }
        before.step();

        let mut after = Bench::new(before.backend);
        after.step();
        after.pass(Duration::ZERO);
        assert_eq!(after.reconciler.orphans(), 2 * usize::from(MANY));
        for _ in 0..7 {
            after.backend.forward(leg4(2 * MANY).local, 1, 100);
            after.pass(Duration::from_secs(10));
        }
        assert_eq!(after.held(), [leg4(1).local, leg4(2 * MANY).local].into());
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
        (any::<bool>(), 1u16..6).prop_map(|(v6, port)| if v6 { leg6(port) } else { leg4(port) })
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
            Action::Pair(a, b) => bench.table.pair(a, b, None),
            Action::Drain(from, to) => bench.table.drain(from, to, None),
            Action::Unpair(leg) => drop(bench.table.unpair(leg.local)),
            Action::Way(leg, way) => {
                bench.ways.0.insert(leg.remote.ip(), way);
                bench.table.next_hop_changed(leg.remote.ip());
            }
            Action::Lose(leg) => drop(bench.backend.inner_mut().remove(leg.local)),
            Action::Time(ms) => drop(bench.pass(Duration::from_millis(ms.into()))),
        }
        bench.step();
    }

    /// What the backend should hold once nothing fails any more.
    fn wanted(bench: &Bench<Chaos<Memory>>) -> BTreeMap<SocketAddr, Installed> {
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
                Some((view.flow.from.local, Installed { flow: view.flow, next_hop }))
            })
            .collect();
        // A one-way translation to IPv6 needs a flow that comes back, and goes without.
        let translations: Vec<_> = wanted
            .values()
            .filter(|held| held.flow.from.local.is_ipv4() && held.flow.to.local.is_ipv6())
            .filter(|held| !wanted.contains_key(&held.flow.to.local))
            .map(|held| held.flow.from.local)
            .collect();
        wanted.retain(|local, _| !translations.contains(local));
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
            let held: BTreeMap<_, _> = list.iter().map(|held| (held.flow.from.local, *held)).collect();
            prop_assert_eq!(&held, &wanted);
            for view in bench.table.iter() {
                let local = view.flow.from.local;
                prop_assert_eq!(view.state.is_installed(), held.contains_key(&local));
                if let Some(partner) = view.partner {
                    prop_assert_eq!(held.contains_key(&local), held.contains_key(&partner));
                }
            }
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
                let held: BTreeSet<_> = held.iter().map(|held| held.flow.from.local).collect();
                for view in bench.table.iter() {
                    let Some(partner) = view.partner else { continue };
                    let local = view.flow.from.local;
                    if view.state.is_installed() {
                        prop_assert!(held.contains(&local) && held.contains(&partner));
                    }
                }
            }
        }
    }
}
