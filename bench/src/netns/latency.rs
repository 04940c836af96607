//! Latency from generator to sink, at parts of what each contender can take.

use std::time::Duration;

use anyhow::{Context, Result};

use super::check::check;
use super::contenders::Topology;
use super::throughput::{self, Entrant};
use super::traffic::{Load, Traffic};
use crate::document::Row;
use crate::rounds::{Wanted, undisturbed};

const TABLE: &str = "latency";
const TABLE_CHANNELS: &str = "latency of channels";
/// What a user would meet: many sessions, packets of voice or a game's.
pub(super) const FLOWS: u32 = 1_000;
pub(super) const BYTES: usize = 200;
const TIME: Duration = Duration::from_millis(500);

const LOADS: [(&str, f64); 3] = [("10 %", 0.1), ("50 %", 0.5), ("90 %", 0.9)];
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)];

/// Measures everybody at 10, 50 and 90 % of their capacity, which `capacities` (rows of throughput)
/// tell, and at half of coturn's; channels at the latter alone.
pub(super) fn measure(
    traffic: &mut Traffic,
    entrants: &[Entrant],
    capacities: &[Row],
    wanted: Wanted,
) -> Result<(Vec<Row>, u32)> {
    let capacity = |topology: Topology, name: &str| {
        let row = capacities.iter().find(|row| {
            row.table == throughput::TABLE
                && row.label("topology") == topology.name()
                && row.label("contender") == name
                && row.label("flows") == FLOWS.to_string()
                && row.label("bytes") == BYTES.to_string()
        });
        row.map(|row| row.median).with_context(|| format!("{name}: no capacity was measured"))
    };
    let (mut rows, mut discarded) = (Vec::new(), 0);
    let redirect = Topology::Redirect;
    for (load, part) in LOADS {
        let rate = |name: &str| Ok(part * capacity(redirect, name)?);
        let (measured, repeated) = at(traffic, entrants, (redirect, load), &rate, wanted)?;
        rows.extend(measured);
        discarded += repeated;
    }
    for topology in [redirect, Topology::ToPeer, Topology::ToClient] {
        let half = 0.5 * capacity(topology, "coturn")?;
        let load = (topology, "half of coturn's");
        let (measured, repeated) = at(traffic, entrants, load, &|_| Ok(half), wanted)?;
        rows.extend(measured);
        discarded += repeated;
    }
    Ok((rows, discarded))
}

/// One load: everybody in turn, between two looks at the limit's median.
fn at(
    traffic: &mut Traffic,
    entrants: &[Entrant],
    (topology, load): (Topology, &str),
    rate: &dyn Fn(&str) -> Result<f64>,
    wanted: Wanted,
) -> Result<(Vec<Row>, u32)> {
    let entrants: Vec<_> = entrants.iter().filter(|(kind, _)| kind.topology == topology).collect();
    let quantiles = |traffic: &mut Traffic, (kind, contender): &Entrant| -> Result<[f64; 3]> {
        let load = Load {
            shape: contender.shape(BYTES),
            flows: FLOWS,
            in_turn: false,
            cores: 1,
            rate: Some(rate(kind.name)?),
            stamped: true,
            time: TIME,
        };
        let outcome = traffic.send(contender.lab(), &load)?;
        check(contender.as_ref(), &load, &outcome).with_context(|| kind.name)?;
        Ok(QUANTILES.map(|(_, part)| outcome.latency(part)))
    };
    let limit = entrants[0];
    let measured = undisturbed(
        wanted,
        traffic,
        |traffic| Ok(quantiles(traffic, limit)?[0]),
        |traffic| {
            let mut values = Vec::new();
            for entrant in &entrants {
                values.extend(quantiles(traffic, entrant)?);
            }
            Ok(values)
        },
    )?;
    let mut rows = Vec::new();
    for (place, (kind, _)) in entrants.iter().enumerate() {
        for (index, (quantile, _)) in QUANTILES.iter().enumerate() {
            let labels = [("contender", kind.name), ("load", load), ("quantile", quantile)];
            let (table, labels) = match topology {
                Topology::Redirect => (TABLE, labels.to_vec()),
                _ => (TABLE_CHANNELS, [&labels[..], &[("topology", topology.name())]].concat()),
            };
            rows.push(Row::new(table, &labels, "us", measured.at(3 * place + index)));
        }
    }
    Ok((rows, measured.discarded))
}
