//! What the figures have to reach: each bar is one row of [`BARS`].

use crate::document::{Document, Row};

type Labels = &'static [(&'static str, &'static str)];

/// One requirement. If several rows have its labels, it holds for each, and the worst one is shown.
pub(super) struct Bar {
    pub(super) what: &'static str,
    /// Which benchmark measures it.
    pub(super) document: &'static str,
    pub(super) table: &'static str,
    pub(super) labels: Labels,
    /// What is required is a ratio to the row of the same table that differs in these labels alone.
    /// Without any, it is the value.
    pub(super) over: Labels,
    pub(super) limit: Limit,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

use Limit::{AtLeast, AtMost};

type Label = (&'static str, &'static str);

const RAWR: Label = ("contender", "rawr");
const ONE_CORE: Label = ("cores", "1");
const REDIRECT: Label = ("topology", "redirect");
const STICK: Label = ("topology", "stick");
const TO_PEER: Label = ("topology", "ChannelData to UDP");
const TO_CLIENT: Label = ("topology", "UDP to ChannelData");
const BINDING: Label = ("topology", "Binding requests");
const BARE_REDIRECT: Label = ("contender", "bare XDP redirect");
const BARE_TX: Label = ("contender", "bare XDP_TX");
const COTURN: Label = ("contender", "coturn");

pub(super) const BARS: &[Bar] = &[
    throughput(
        "Redirect, 1 flow: rawr over a bare XDP redirect",
        &[RAWR, REDIRECT, ONE_CORE, ("flows", "1")],
        &[BARE_REDIRECT],
        AtLeast(0.97),
    ),
    throughput(
        "Redirect, 1,000 flows",
        &[RAWR, REDIRECT, ONE_CORE, ("flows", "1000")],
        &[BARE_REDIRECT],
        AtLeast(0.95),
    ),
    throughput(
        "Redirect, 100,000 flows",
        &[RAWR, REDIRECT, ONE_CORE, ("flows", "100000")],
        &[BARE_REDIRECT],
        AtLeast(0.75),
    ),
    throughput(
        "Redirect, 1,000,000 flows",
        &[RAWR, REDIRECT, ONE_CORE, ("flows", "1000000")],
        &[BARE_REDIRECT],
        AtLeast(0.75),
    ),
    in_turn(
        "Redirect, 100,000 flows in turn",
        &[RAWR, REDIRECT, ("flows", "100000")],
        &[BARE_REDIRECT],
        AtLeast(0.75),
    ),
    in_turn(
        "Redirect, 1,000,000 flows in turn",
        &[RAWR, REDIRECT, ("flows", "1000000")],
        &[BARE_REDIRECT],
        AtLeast(0.75),
    ),
    throughput(
        "On a stick, 1 flow: rawr over a bare `XDP_TX`",
        &[RAWR, STICK, ONE_CORE, ("flows", "1")],
        &[BARE_TX],
        AtLeast(0.78),
    ),
    throughput(
        "On a stick, 1,000 flows",
        &[RAWR, STICK, ONE_CORE, ("flows", "1000")],
        &[BARE_TX],
        AtLeast(0.76),
    ),
    throughput(
        "On a stick, 100,000 flows",
        &[RAWR, STICK, ONE_CORE, ("flows", "100000")],
        &[BARE_TX],
        AtLeast(0.60),
    ),
    throughput(
        "On a stick, 1,000,000 flows",
        &[RAWR, STICK, ONE_CORE, ("flows", "1000000")],
        &[BARE_TX],
        AtLeast(0.60),
    ),
    in_turn(
        "On a stick, 100,000 flows in turn",
        &[RAWR, STICK, ("flows", "100000")],
        &[BARE_TX],
        AtLeast(0.60),
    ),
    in_turn(
        "On a stick, 1,000,000 flows in turn",
        &[RAWR, STICK, ("flows", "1000000")],
        &[BARE_TX],
        AtLeast(0.60),
    ),
    Bar {
        table: "one core and two",
        ..throughput("rawr on 2 cores over 1", &[RAWR, ("cores", "2")], &[ONE_CORE], AtLeast(1.9))
    },
    throughput("rawr over coturn, 1 core", &[RAWR, REDIRECT], &[COTURN], AtLeast(6.0)),
    throughput(
        "rawr in generic mode over coturn, 1 core",
        &[("contender", "rawr generic"), ONE_CORE],
        &[COTURN],
        AtLeast(2.0),
    ),
    throughput(
        "rawr's userspace path over coturn, 1 core",
        &[("contender", "rawr userspace"), ONE_CORE],
        &[COTURN],
        AtLeast(1.3),
    ),
    Bar {
        what: "99th percentile of latency at half of coturn's capacity, rawr over coturn",
        document: "netns",
        table: "latency",
        labels: &[("contender", "rawr"), ("load", "half of coturn's"), ("quantile", "p99")],
        over: &[("contender", "coturn")],
        limit: AtMost(1.0 / 3.0),
    },
    throughput(
        "ChannelData to UDP, 1 channel: rawr over a bare XDP redirect",
        &[RAWR, TO_PEER, ("flows", "1")],
        &[BARE_REDIRECT],
        AtLeast(0.94),
    ),
    throughput(
        "ChannelData to UDP, 1,000 channels",
        &[RAWR, TO_PEER, ("flows", "1000")],
        &[BARE_REDIRECT],
        AtLeast(0.92),
    ),
    throughput(
        "ChannelData to UDP, 100,000 channels",
        &[RAWR, TO_PEER, ("flows", "100000")],
        &[BARE_REDIRECT],
        AtLeast(0.65),
    ),
    throughput(
        "ChannelData to UDP, 1,000,000 channels",
        &[RAWR, TO_PEER, ("flows", "1000000")],
        &[BARE_REDIRECT],
        AtLeast(0.60),
    ),
    throughput(
        "UDP to ChannelData, 1 channel: rawr over a bare XDP redirect",
        &[RAWR, TO_CLIENT, ("flows", "1")],
        &[BARE_REDIRECT],
        AtLeast(0.94),
    ),
    throughput(
        "UDP to ChannelData, 1,000 channels",
        &[RAWR, TO_CLIENT, ("flows", "1000")],
        &[BARE_REDIRECT],
        AtLeast(0.92),
    ),
    throughput(
        "UDP to ChannelData, 100,000 channels",
        &[RAWR, TO_CLIENT, ("flows", "100000")],
        &[BARE_REDIRECT],
        AtLeast(0.65),
    ),
    throughput(
        "UDP to ChannelData, 1,000,000 channels",
        &[RAWR, TO_CLIENT, ("flows", "1000000")],
        &[BARE_REDIRECT],
        AtLeast(0.60),
    ),
    throughput("ChannelData to UDP, rawr over coturn", &[RAWR, TO_PEER], &[COTURN], AtLeast(6.0)),
    throughput("UDP to ChannelData, rawr over coturn", &[RAWR, TO_CLIENT], &[COTURN], AtLeast(6.0)),
    Bar {
        what: "Channels: 99th percentile of latency at half of coturn's capacity, rawr over coturn",
        document: "netns",
        table: "latency of channels",
        labels: &[RAWR, ("quantile", "p99")],
        over: &[COTURN],
        limit: AtMost(1.0 / 3.0),
    },
    throughput(
        "Binding requests answered, rawr over coturn",
        &[RAWR, BINDING],
        &[COTURN],
        AtLeast(10.0),
    ),
    streams("Delivered over TCP, rawr over coturn, 1 core", &[RAWR, ("over", "TCP")]),
    streams("Delivered over TLS, rawr over coturn, 1 core", &[RAWR, ("over", "TLS")]),
    program(
        "Program cost of an IPv4 pair, 60,000 entries",
        "program",
        &[("packets", "IPv4 pair"), ("entries", "60000")],
        30.0,
    ),
    program(
        "Program cost of each kind of packets, 60,000 entries",
        "program",
        &[("entries", "60000")],
        45.0,
    ),
    program("Size of the translated program", "size", &[("of", "translated program")], 16_384.0),
    program("Stack of the program", "size", &[("of", "stack")], 256.0),
    program(
        "Program cost of ChannelData to UDP, 60,000 entries",
        "program",
        &[("packets", "ChannelData to UDP"), ("entries", "60000")],
        34.0,
    ),
    program(
        "Program cost of UDP to ChannelData, 60,000 entries",
        "program",
        &[("packets", "UDP to ChannelData"), ("entries", "60000")],
        34.0,
    ),
    program(
        "Program cost of a STUN Binding request that it answers",
        "answers",
        &[("packets", "STUN Binding request, answered"), ("entries", "60000")],
        120.0,
    ),
    program(
        "The same with FINGERPRINT",
        "answers",
        &[("packets", "STUN Binding request with FINGERPRINT, answered"), ("entries", "60000")],
        120.0,
    ),
    Bar {
        what: "Sessions set up per second",
        document: "control",
        table: "sessions set up per second",
        labels: &[],
        over: &[],
        limit: AtLeast(20_000.0),
    },
    Bar {
        what: "Resident memory with 100,000 sessions, without maps",
        document: "control",
        table: "resident memory",
        labels: &[("sessions", "100000"), ("with", "server, flow table, kernel")],
        over: &[],
        limit: AtMost(200.0),
    },
    Bar {
        what: "Sessions set up per second, with 100,000 over with 100",
        document: "control",
        table: "sessions set up per second",
        labels: &[("sessions", "100000")],
        over: &[("sessions", "100")],
        limit: AtLeast(1.0),
    },
    growth("Resident memory per session, 100,000 over 100", "resident memory per session"),
    growth("Mass expiry per session, 100,000 over 100", "mass expiry, per session"),
    growth(
        "Reading counters per flow, 100,000 sessions over 100",
        "reading all counters, per flow",
    ),
    growth("Comparing flows per flow, 100,000 sessions over 100", "comparing all flows, per flow"),
    growth("Restart per flow, 100,000 sessions over 100", "restart, per flow"),
    Bar {
        what: "Authenticated TURN requests per second, in memory",
        document: "control",
        table: "authenticated TURN requests per second",
        labels: &[],
        over: &[],
        limit: AtLeast(200_000.0),
    },
    Bar {
        what: "Cost of an authenticated TURN request, with 100,000 allocations over with 100",
        document: "control",
        table: "cost of an authenticated TURN request",
        labels: &[("allocations", "100000")],
        over: &[("allocations", "100")],
        limit: AtMost(1.5),
    },
    Bar {
        what: "Allocate, permission, channel, release over UDP: requests per second, rawr over coturn",
        document: "control",
        table: "TURN requests over UDP per second",
        labels: &[RAWR],
        over: &[COTURN],
        limit: AtLeast(3.0),
    },
    Bar {
        what: "Resident memory per idle allocation, rawr over coturn",
        document: "control",
        table: "resident memory per idle allocation",
        labels: &[RAWR],
        over: &[COTURN],
        limit: AtMost(0.5),
    },
];

const fn throughput(what: &'static str, labels: Labels, over: Labels, limit: Limit) -> Bar {
    Bar { what, document: "netns", table: "throughput", labels, over, limit }
}

const fn streams(what: &'static str, labels: Labels) -> Bar {
    let (document, table, over) = ("netns", "streams", &[COTURN]);
    Bar { what, document, table, labels, over, limit: AtLeast(1.0) }
}

/// As [`throughput`], with packets whose flows are neighbours.
const fn in_turn(what: &'static str, labels: Labels, over: Labels, limit: Limit) -> Bar {
    Bar { table: "throughput, flows in turn", ..throughput(what, labels, over, limit) }
}

const fn program(what: &'static str, table: &'static str, labels: Labels, most: f64) -> Bar {
    Bar { what, document: "program", table, labels, over: &[], limit: AtMost(most) }
}

/// A cost of one of `sessions` sessions, which is to be no greater if there are many of them.
const fn growth(what: &'static str, table: &'static str) -> Bar {
    Bar {
        what,
        document: "control",
        table,
        labels: &[("sessions", "100000")],
        over: &[("sessions", "100")],
        limit: AtMost(1.0),
    }
}

/// How a bar was met.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What was compared with the limit; of several rows, the worst.
    pub(super) measured: Row,
    /// How many rows there were.
    pub(super) rows: usize,
    limit: Limit,
}

impl Bar {
    /// `None` if no row of the document, or none of that name, has been measured.
    pub(super) fn judge(&self, document: &Document) -> Option<Outcome> {
        let of_table = document.rows.iter().filter(|row| row.table == self.table);
        let named = of_table.filter(|row| row.has(self.labels));
        let mut compared: Vec<_> = named
            .filter_map(|row| match self.over {
                [] => Some(row.clone()),
                over => Some(row.ratio(counterpart(document, row, over)?)),
            })
            // What was too small to be measured has no ratio.
            .filter(|row| row.median.is_finite())
            .collect();
        let rows = compared.len();
        compared.sort_by(|a, b| match self.limit {
            AtLeast(_) => a.median.total_cmp(&b.median),
            AtMost(_) => b.median.total_cmp(&a.median),
        });
        let measured = compared.into_iter().next()?;
        Some(Outcome { measured, rows, limit: self.limit })
    }
}

/// The row that differs from `row` in the labels `over` alone.
fn counterpart<'a>(document: &'a Document, row: &Row, over: Labels) -> Option<&'a Row> {
    let mut labels = row.labels.clone();
    labels.extend(over.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    document.rows.iter().find(|other| other.table == row.table && other.labels == labels)
}

impl Outcome {
    pub(super) fn is_met(&self) -> bool {
        match self.limit {
            AtLeast(limit) => self.measured.median >= limit,
            AtMost(limit) => self.measured.median <= limit,
        }
    }

    /// How far the median is from the limit, as a part of the limit.
    pub(super) fn distance(&self) -> f64 {
        let (AtLeast(limit) | AtMost(limit)) = self.limit;
        (self.measured.median - limit).abs() / limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(rows: &[(&str, &str, f64)]) -> Document {
        let mut document = Document::new("netns", String::new(), &[]);
        document.rows = rows
            .iter()
            .map(|(who, bytes, value)| {
                let labels = [("contender", *who), ("bytes", bytes), ("cores", "1")];
                Row::new("throughput", &labels, "packets/s", vec![*value, *value])
            })
            .collect();
        document
    }

    const TWICE: Bar = throughput("", &[RAWR], &[COTURN], AtLeast(2.0));

    #[test]
    fn the_worst_row_decides() {
        let document = document(&[
            ("rawr", "64", 9.0),
            ("coturn", "64", 3.0),
            ("rawr", "200", 9.0),
            ("coturn", "200", 5.0),
            ("rawr", "1200", 1.0),
        ]);
        let outcome = TWICE.judge(&document).unwrap();
        assert_eq!((outcome.rows, outcome.measured.label("bytes")), (2, "200"));
        assert_eq!((outcome.is_met(), outcome.measured.median), (false, 1.8));
        assert!((outcome.distance() - 0.1).abs() < 1e-9);
    }

    #[test]
    fn values_have_no_counterpart() {
        let most = Bar { over: &[], limit: AtMost(3.0), ..TWICE };
        let document = document(&[("rawr", "64", 3.0), ("rawr", "200", 2.0)]);
        let outcome = most.judge(&document).unwrap();
        assert_eq!((outcome.is_met(), outcome.measured.median), (true, 3.0));
        assert!(TWICE.judge(&document).is_none());
    }
}
