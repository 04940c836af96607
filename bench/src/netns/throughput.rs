//! Delivered packets per second, by flows, frame length and cores.

use std::time::Duration;

use anyhow::{Context, Result};
use bench_ebpf::FLOWS;

use super::check::check;
use super::contenders::{Contender, Kind, PROCESS_FLOWS, Topology};
use super::latency;
use super::traffic::{Load, Outcome, Traffic};
use crate::document::Row;
use crate::rounds::{Wanted, undisturbed};

pub(super) const TABLE: &str = "throughput";
const TABLE_CORES: &str = "one core and two";
const TABLE_IN_TURN: &str = "throughput, flows in turn";
const LOSS: &str = "loss";

/// How long each contender is measured in each round.
const TIME: Duration = Duration::from_millis(300);
/// More is offered to a process by this factor, until no more comes out.
const RAISE: f64 = 1.3;

/// What is varied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) topology: Topology,
    pub(super) flows: u32,
    /// Length of the Ethernet frames.
    pub(super) bytes: usize,
    /// Cores that are measured side by side.
    pub(super) cores: &'static [usize],
    /// See [`Load::in_turn`].
    pub(super) in_turn: bool,
}

impl Point {
    const fn one_core(topology: Topology, flows: u32, bytes: usize) -> Self {
        Self { topology, flows, bytes, cores: &[1], in_turn: false }
    }

    /// The table of its rows.
    pub(super) fn table(self) -> &'static str {
        match (self.in_turn, self.cores.len()) {
            (true, _) => TABLE_IN_TURN,
            (false, 1) => TABLE,
            (false, _) => TABLE_CORES,
        }
    }
}

/// Numbers of flows that differ in how well caches hold them.
const SIZES: [u32; 4] = [1, 1_000, 100_000, FLOWS];

/// Everything on one core; in turn, only what caches matter to; one and two cores for short frames, and
/// not for a single flow, which is one core's.
pub(super) fn points() -> Vec<Point> {
    let mut points = Vec::new();
    for topology in Topology::ALL {
        let (sizes, lengths): (&[u32], &[usize]) = match topology {
            Topology::Redirect => (&SIZES, &[64, 200, 1200]),
            Topology::Stick => (&SIZES, &[64, 1200]),
            Topology::ToPeer | Topology::ToClient => (&SIZES, &[64]),
            Topology::Binding => (&[1_000], &[64]),
        };
        for &flows in sizes {
            // Of many flows, the shortest frames and the longest say enough.
            let lengths =
                lengths.iter().filter(|&&bytes| bytes != latency::BYTES || flows <= PROCESS_FLOWS);
            points.extend(lengths.map(|&bytes| Point::one_core(topology, flows, bytes)));
        }
    }
    // What latency is measured at.
    for topology in [Topology::ToPeer, Topology::ToClient] {
        points.push(Point::one_core(topology, latency::FLOWS, latency::BYTES));
    }
    for topology in [Topology::Redirect, Topology::Stick] {
        for &flows in &SIZES[1..] {
            let point = Point::one_core(topology, flows, 64);
            points.push(Point { cores: &[1, 2], ..point });
            if flows > PROCESS_FLOWS {
                points.push(Point { in_turn: true, ..point });
            }
        }
    }
    points
}

/// Whether contenders that are processes take part.
pub(super) fn takes_processes(point: &Point) -> bool {
    point.cores == [1] && point.flows <= PROCESS_FLOWS
}

/// A contender in its lab, and how it is known.
pub(super) type Entrant = (&'static Kind, Box<dyn Contender>);

/// What is offered to a contender at a point: what makes it deliver most.
struct Case<'a> {
    kind: &'static Kind,
    contender: &'a dyn Contender,
    load: Load,
}

/// Measures one point: the limit first and last, everybody else between.
pub(super) fn measure(
    traffic: &mut Traffic,
    entrants: &[Entrant],
    point: Point,
    wanted: Wanted,
) -> Result<(Vec<Row>, u32)> {
    let mut cases = Vec::new();
    for (kind, contender) in entrants.iter().filter(|(kind, _)| kind.takes(point)) {
        for &cores in point.cores {
            let case = prepare(traffic, kind, contender.as_ref(), point, cores)
                .with_context(|| format!("{} at {point:?}", kind.name))?;
            cases.push(case);
        }
    }
    let [limit, others @ ..] = cases.as_slice() else { return Ok((Vec::new(), 0)) };
    let measured = undisturbed(
        wanted,
        traffic,
        |traffic| Ok(run(traffic, limit)?.rate()),
        |traffic| {
            let mut values = Vec::new();
            for case in others {
                let outcome = run(traffic, case)?;
                values.extend([outcome.rate(), outcome.loss()]);
            }
            Ok(values)
        },
    )?;
    let mut rows = vec![row(point.table(), limit, point, "packets/s", measured.reference.clone())];
    for (place, case) in others.iter().enumerate() {
        rows.push(row(point.table(), case, point, "packets/s", measured.at(2 * place)));
        if point.table() == TABLE {
            rows.push(row(LOSS, case, point, "part", measured.at(2 * place + 1)));
        }
    }
    Ok((rows, measured.discarded))
}

fn row(table: &str, case: &Case<'_>, point: Point, unit: &str, values: Vec<f64>) -> Row {
    let [flows, bytes, cores] =
        [point.flows.to_string(), point.bytes.to_string(), case.load.cores.to_string()];
    let labels = [
        ("topology", point.topology.name()),
        ("contender", case.kind.name),
        ("flows", &flows),
        ("bytes", &bytes),
        ("cores", &cores),
    ];
    Row::new(table, &labels, unit, values)
}

impl Kind {
    fn takes(&self, point: Point) -> bool {
        self.topology == point.topology
            && point.flows <= self.flows
            && (!self.process || takes_processes(&point))
    }
}

/// Warms up, and finds what to offer: as much as can be, to a process only as much as it can take.
fn prepare<'a>(
    traffic: &mut Traffic,
    kind: &'static Kind,
    contender: &'a dyn Contender,
    point: Point,
    cores: usize,
) -> Result<Case<'a>> {
    let load = Load {
        shape: contender.shape(point.bytes),
        flows: point.flows,
        in_turn: point.in_turn,
        cores,
        rate: None,
        stamped: false,
        time: TIME,
    };
    let mut case = Case { kind, contender, load };
    let mut outcome = run(traffic, &case)?;
    // Connection tracking has to learn each flow: it goes round twice, because what is lost is not learnt.
    let mut sent = outcome.offered;
    while sent < 2 * u64::from(point.flows) {
        outcome = run(traffic, &case)?;
        sent += outcome.offered;
    }
    if kind.process {
        let (rate, best) = best_offer(outcome.rate(), |rate| {
            case.load.rate = Some(rate);
            Ok(run(traffic, &case)?.rate())
        })?;
        case.load.rate = (best > outcome.rate()).then_some(rate);
    }
    Ok(case)
}

/// Raises what is offered from `start` on until less is delivered. Returns the offer that most was
/// delivered of, and how much.
fn best_offer(start: f64, mut deliver: impl FnMut(f64) -> Result<f64>) -> Result<(f64, f64)> {
    let mut best = (start, deliver(start)?);
    loop {
        let offer = best.0 * RAISE;
        let delivered = deliver(offer)?;
        if delivered <= best.1 {
            return Ok(best);
        }
        best = (offer, delivered);
    }
}

fn run(traffic: &mut Traffic, case: &Case<'_>) -> Result<Outcome> {
    let outcome = traffic.send(case.contender.lab(), &case.load)?;
    check(case.contender, &case.load, &outcome).with_context(|| case.kind.name)?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_offer_is_the_one_before_things_get_worse() {
        // Delivers all up to 1,000 packets per second, and ever less beyond.
        let deliver = |rate: f64| Ok(rate.min(2_000.0 - rate));
        let (offer, delivered) = best_offer(600.0, deliver).unwrap();
        assert_eq!((offer.round(), delivered.round()), (1_014.0, 986.0));
    }

    #[test]
    fn points_are_told_apart() {
        let points = points();
        for (index, point) in points.iter().enumerate() {
            assert!(!points[..index].contains(point));
        }
        assert_eq!(points.len(), 39);
    }
}
