//! The program in this machine's kernel, beside the same function in this process.

use std::collections::BTreeMap;

use rawr_common::entry::Account;
use rawr_common::flow::{Counters, Flow4, Flow6, Place, names};
use rawr_common::reason::Reason;
use rawr_common::relay::Verdict;
use rawr_common::shared;
use rawr_common::sharing::Bit;
use rawr_tests::kernel::{Kernel, action};
use rawr_tests::packet::Packet;
use rawr_tests::privilege::need_root;
use rawr_tests::world::{
    CHANNELS, EGRESS, ENTRIES, Entry, Family, Host, INGRESS, Route, entries, numbered, routes,
};
use rawr_userspace::dataplane::table::Table;

/// The program in the kernel and the same function in this process, with the same flows.
pub(crate) struct Relay {
    pub(crate) kernel: Kernel,
    pub(crate) host: Host,
    tables4: [Table<Flow4>; 2],
    tables6: [Table<Flow6>; 2],
}

impl Relay {
    /// With all routes, or `None` if this machine does not let us.
    pub(crate) fn new(test: &str) -> Option<Self> {
        if !need_root(test) {
            return None;
        }
        let mut kernel = Kernel::load(ENTRIES, CHANNELS).unwrap();
        for slot in 0..EGRESS as u32 {
            kernel.set_egress(slot, INGRESS).unwrap();
        }
        let tables4 = [(names::FLOWS4, ENTRIES), (names::CHANNELS4, CHANNELS)]
            .map(|(name, len)| kernel.table(name, len).unwrap());
        let tables6 = [(names::FLOWS6, ENTRIES), (names::CHANNELS6, CHANNELS)]
            .map(|(name, len)| kernel.table(name, len).unwrap());
        let mut relay = Self { kernel, host: Host::new(), tables4, tables6 };
        for route in routes() {
            relay.install(&route, 1);
        }
        Some(relay)
    }

    pub(crate) fn install(&mut self, route: &Route, generation: u32) {
        self.kernel.set_exit(route.slot, &route.exit).unwrap();
        self.host.set_exit(route);
        for entry in entries(route, Account { generation, rate: None }) {
            self.set(entry);
        }
    }

    pub(crate) fn set(&mut self, entry: Entry) {
        match entry {
            Entry::V4(place, ref flow) => self.kernel.set_flow4(place, flow),
            Entry::V6(place, ref flow) => self.kernel.set_flow6(place, flow),
        }
        .unwrap();
        self.host.set(entry);
    }

    /// Says whether a channel table holds flows of a port.
    pub(crate) fn mark(&mut self, bit: Bit, is_held: bool) {
        self.kernel.mark_port(bit, is_held).unwrap();
        self.host.mark_port(bit, is_held);
    }

    /// Asserts that a packet leaves as the route says, is counted there, and nowhere else.
    pub(crate) fn forwards(&mut self, route: &Route, packet: &Packet) {
        let mut expected = self.counts();
        let frame = packet.frame();
        let outcome = self.kernel.run(&frame, 1).unwrap();
        assert_eq!(outcome.action, action_of(route.verdict()), "{packet:?}");
        assert_eq!(outcome.frame, route.expected(packet).frame(), "{packet:?}");
        assert_eq!(self.host.run(&frame), (route.verdict(), outcome.frame), "{packet:?}");

        let counters = expected.flows.get_mut(&route.place()).unwrap();
        counters.packets += 1;
        counters.bytes += packet.ip_len() as u64;
        assert_eq!(self.counts(), expected, "{packet:?}");
    }

    /// Asserts that a frame goes up untouched and is counted under this reason alone.
    pub(crate) fn passes(&mut self, frame: &[u8], reason: Reason) {
        let mut expected = self.counts();
        let outcome = self.kernel.run(frame, 1).unwrap();
        assert_eq!((outcome.action, outcome.frame.as_slice()), (action::PASS, frame), "{reason:?}");
        assert_eq!(self.host.run(frame), (Verdict::Pass(reason), frame.to_vec()));

        *expected.reasons.entry(reason).or_default() += 1;
        assert_eq!(self.counts(), expected, "{reason:?}");
    }

    /// The counters of the flow of a route.
    pub(crate) fn counters(&self, route: &Route) -> Counters {
        self.counts().flows[&route.place()]
    }

    /// Everything that the kernel has counted.
    pub(crate) fn counts(&self) -> Counts {
        let [flows4, channels4] = self.tables4.each_ref().map(counters);
        let [flows6, channels6] = self.tables6.each_ref().map(counters);
        let (port, channel) = (Place::Port as fn(u32) -> Place, Place::Channel as fn(u32) -> Place);
        Counts {
            flows: numbered(Family::V4, port, flows4)
                .chain(numbered(Family::V4, channel, channels4))
                .chain(numbered(Family::V6, port, flows6))
                .chain(numbered(Family::V6, channel, channels6))
                .collect(),
            reasons: self.kernel.reasons().unwrap().into_iter().collect(),
        }
    }
}

fn counters<E: shared::Entry>(table: &Table<E>) -> Vec<Counters> {
    (0..table.len()).map(|index| table.counters(index)).collect()
}

/// All counters: one pair per entry, and the reasons that have occurred.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) flows: BTreeMap<(Family, Place), Counters>,
    pub(crate) reasons: BTreeMap<Reason, u64>,
}

pub(crate) fn action_of(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass(_) => action::PASS,
        Verdict::Drop(_) => action::DROP,
        Verdict::Transmit => action::TX,
        Verdict::Redirect { .. } => action::REDIRECT,
    }
}
