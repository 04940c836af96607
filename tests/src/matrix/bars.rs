//! What the matrix as a whole has to show, and what it shows.

use super::cell::{Axis, Cell};
use super::kind::{Expected, Kind};
use super::results::{CellResult, Results, Spread};

/// Milliseconds until data flows, at the 95th percentile.
const FIRST_BYTE: f64 = 1000.0;
/// The same until it takes a path without a relay, where no port has to be guessed.
const TO_DIRECT: f64 = 2000.0;
/// The longest that data stands still when a path or the relay dies.
const GAP: f64 = 3000.0;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub what: &'static str,
    pub measured: String,
    /// `None` where nothing of it has been run.
    pub is_met: Option<bool>,
}

/// All of them.
pub(super) fn bars(results: &Results) -> Vec<Bar> {
    use Kind::{N1, N3, N3a, N5, N6, N7, P};
    let plain: Vec<_> = plain(results).map(|(_, result)| result).collect();
    let possible = among(results, |cell| cell.expected() != Expected::Connected);
    let known = [(P, P), (P, N1), (P, N3), (P, N6), (N1, N1), (N1, N3), (N1, N6), (N3, N3)];
    let known = known.map(|(a, b)| Cell::plain(a, b));
    let tcp = |a, b| Cell::with(a, b, Axis::Tcp);
    let tcp =
        [(P, N3), (N3, N3), (N3, N3a), (N3a, N3a), (N3, N6), (N3a, N6)].map(|(a, b)| tcp(a, b));
    let guessed = |probes| [N3, N3a].map(|easy| Cell::with(easy, N6, Axis::Probes(probes)));
    vec![
        cells("every pair connects each time", &plain, |it| it.connected == it.trials),
        cells("data flows within 1 s (95th percentile)", &plain, |it| {
            it.connected == it.trials && within(it.first_byte, FIRST_BYTE)
        }),
        cells("every pair that can go direct does, as often as expected", &possible, |it| {
            it.is_met
        }),
        cells(
            "P, N1, N3 and N6, where no port has to be guessed: direct within 2 s (95th percentile)",
            &named(results, &known),
            |it| it.is_met && within(it.to_direct, TO_DIRECT),
        ),
        share("N3 and N3a × N6 with 1,024 probes: 98 %", &named(results, &guessed(1024)), 980),
        share("N3 and N3a × N6 with 2,048 probes: 99.9 %", &named(results, &guessed(2048)), 999),
        share("N5 × N5: 95 %", &named(results, &[Cell::plain(N5, N5)]), 950),
        share("N7 × N7: 95 %", &named(results, &[Cell::plain(N7, N7)]), 950),
        share("TCP punching, each pair tried: 95 %", &named(results, &tcp), 950),
        cells(
            "data stands still for 3 s at most when a path or the relay dies",
            &disturbed(results),
            |it| it.gap.is_some_and(|gap| gap.max <= GAP),
        ),
    ]
}

fn plain(results: &Results) -> impl Iterator<Item = (Cell, &CellResult)> {
    let cells = results.cells.iter().filter_map(|it| Some((it.cell.parse::<Cell>().ok()?, it)));
    cells.filter(|(cell, _)| cell.axis == Axis::Plain)
}

fn among(results: &Results, is_meant: impl Fn(&Cell) -> bool) -> Vec<&CellResult> {
    plain(results).filter(|(cell, _)| is_meant(cell)).map(|(_, result)| result).collect()
}

fn named<'a>(results: &'a Results, cells: &[Cell]) -> Vec<&'a CellResult> {
    cells.iter().filter_map(|cell| results.cell(cell)).collect()
}

fn disturbed(results: &Results) -> Vec<&CellResult> {
    let cells =
        results.cells.iter().filter(|it| it.cell.parse().is_ok_and(|it: Cell| it.axis.disturbs()));
    cells.collect()
}

fn within(spread: Option<Spread>, limit: f64) -> bool {
    spread.is_some_and(|spread| spread.p95 <= limit)
}

fn cells(what: &'static str, cells: &[&CellResult], is_met: impl Fn(&CellResult) -> bool) -> Bar {
    let met = cells.iter().filter(|cell| is_met(cell)).count();
    let measured = format!("{met} of {} cells", cells.len());
    Bar { what, measured, is_met: (!cells.is_empty()).then_some(met == cells.len()) }
}

/// Each of the cells has to have its share of successes, in thousandths.
fn share(what: &'static str, cells: &[&CellResult], permille: u32) -> Bar {
    let is_met = |it: &&CellResult| it.trials > 0 && it.successes * 1000 >= it.trials * permille;
    let figures: Vec<_> =
        cells.iter().map(|it| format!("{} {}/{}", it.cell, it.successes, it.trials)).collect();
    let measured = figures.join(", ");
    Bar { what, measured, is_met: (!cells.is_empty()).then(|| cells.iter().all(is_met)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::{Internet, Plan};

    fn results(cells: Vec<CellResult>) -> Results {
        let internet = Internet::Routed;
        let plan = Plan { cells: Vec::new(), trials: 0, few: 0, jobs: 1, internet };
        Results { cells, ..Results::new(&plan) }
    }

    fn result(cell: Cell, successes: u32, first_byte: f64) -> CellResult {
        let spread = Spread::of(std::iter::once(first_byte));
        CellResult {
            trials: 100,
            successes,
            connected: 100,
            is_met: successes >= 95,
            first_byte: spread,
            to_direct: spread,
            ..CellResult::new(&cell, Vec::new())
        }
    }

    #[test]
    fn what_has_not_been_run_is_neither_met_nor_missed() {
        assert!(bars(&results(Vec::new())).iter().all(|bar| bar.is_met.is_none()));
    }

    #[test]
    fn a_share_is_counted_for_each_cell() {
        let sweep = Cell::plain(Kind::N5, Kind::N5);
        let verdict = |successes| {
            let bars = bars(&results(vec![result(sweep, successes, 100.0)]));
            bars.into_iter().find(|bar| bar.what.starts_with("N5")).unwrap()
        };
        assert_eq!(verdict(95).is_met, Some(true));
        assert_eq!(verdict(94).is_met, Some(false));
        assert_eq!(verdict(94).measured, "N5xN5 94/100");
    }

    #[test]
    fn one_slow_cell_is_told() {
        let (fast, slow) = (Cell::plain(Kind::P, Kind::P), Cell::plain(Kind::N3, Kind::N3));
        let bars = bars(&results(vec![result(fast, 100, 50.0), result(slow, 100, 1500.0)]));
        let first_byte = bars.iter().find(|bar| bar.what.starts_with("data flows")).unwrap();
        assert_eq!(
            (first_byte.is_met, first_byte.measured.as_str()),
            (Some(false), "1 of 2 cells")
        );
    }
}
