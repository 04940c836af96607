//! What the matrix has found, as it is kept in a file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::kind::{Kind, Outcome};
use super::run::Plan;
use super::site::{Internet, Place};
use super::trial::Trial;
use super::words::Classified;

/// Failures of one cell that are kept with all that is known of them.
const KEPT: usize = 20;

/// All of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The kernel's release.
    pub kernel: String,
    pub processors: usize,
    /// Cells at the same time.
    pub jobs: usize,
    /// Trials of a cell of which a percentage is claimed, and of the others.
    pub trials: u32,
    pub few: u32,
    /// Whether nothing but a switch was between the routers.
    pub is_flat: bool,
    pub seconds: u64,
    pub kinds: Vec<KindResult>,
    pub cells: Vec<CellResult>,
    pub not_run: Vec<NotRun>,
}

/// A host, as it has found itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KindResult {
    pub kind: Kind,
    pub side: u8,
    pub found: Classified,
}

/// What cannot be tried here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NotRun {
    pub what: String,
    pub why: String,
}

/// All trials of one cell together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CellResult {
    pub cell: String,
    pub expected: String,
    pub trials: u32,
    /// Trials that were as expected.
    pub successes: u32,
    /// Trials in which data flowed.
    pub connected: u32,
    /// Of these, those in which it took a path without a relay in the end, over UDP and over TCP.
    pub direct: u32,
    pub tcp: u32,
    /// Whether enough were as expected.
    pub is_met: bool,
    /// Milliseconds until data came.
    pub first_byte: Option<Spread>,
    /// Milliseconds until data took a path without a relay.
    pub to_direct: Option<Spread>,
    /// Sent to punch a path, by both sides.
    pub probes: Option<Spread>,
    /// Milliseconds without data, after what was done to the path.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gap: Option<Spread>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub failures: Vec<Trial>,
}

/// How values lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub p50: f64,
    pub p95: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no values. The p-th percentile is the least value that p % do not exceed.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.map(|value| (value * 10.0).round() / 10.0).collect();
        values.sort_by(f64::total_cmp);
        let rank = |percent: usize| (values.len() * percent).div_ceil(100).saturating_sub(1);
        let [p50, p95] = [50, 95].map(|percent| values.get(rank(percent)).copied());
        Some(Self { p50: p50?, p95: p95?, max: *values.last()? })
    }
}

impl Results {
    pub(super) fn new(plan: &Plan) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            kernel: kernel.trim().to_owned(),
            processors,
            jobs: plan.jobs,
            trials: plan.trials,
            few: plan.few,
            is_flat: plan.internet == Internet::Flat,
            seconds: 0,
            kinds: Vec::new(),
            cells: Vec::new(),
            not_run: Vec::new(),
        }
    }

    pub(super) fn finish(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_secs();
        self.cells.sort_by_key(|result| order(&result.cell));
        self.kinds.sort_by_key(|result| (result.kind, result.side));
    }

    /// The result of this cell.
    pub fn cell(&self, cell: &Cell) -> Option<&CellResult> {
        let name = cell.to_string();
        self.cells.iter().find(|result| result.cell == name)
    }
}

/// In the order of the kinds, plain cells first.
fn order(name: &str) -> (bool, Option<(Kind, Kind)>, String) {
    let cell = name.parse::<Cell>().ok();
    (name.contains('+'), cell.map(|cell| (cell.a, cell.b)), name.to_owned())
}

impl KindResult {
    pub(super) const fn new(place: Place, found: Classified) -> Self {
        Self { kind: place.kind, side: place.side, found }
    }
}

impl CellResult {
    pub(super) fn new(cell: &Cell, trials: Vec<Trial>) -> Self {
        let count = |is: &dyn Fn(&Trial) -> bool| {
            u32::try_from(trials.iter().filter(|trial| is(trial)).count()).unwrap_or(u32::MAX)
        };
        let successes = count(&|trial| trial.is_met);
        let all = count(&|_| true);
        let needed = u64::from(all) * u64::from(cell.expected().permille());
        Self {
            cell: cell.to_string(),
            expected: cell.expected().to_string(),
            trials: all,
            successes,
            connected: count(&|trial| trial.outcome > Outcome::Nothing),
            direct: count(&|trial| trial.outcome == Outcome::Direct),
            tcp: count(&|trial| trial.outcome == Outcome::Tcp),
            is_met: all > 0 && u64::from(successes) * 1000 >= needed,
            first_byte: Spread::of(trials.iter().filter_map(|trial| trial.first_byte)),
            to_direct: Spread::of(trials.iter().filter_map(|trial| trial.direct)),
            probes: Spread::of(trials.iter().map(|trial| trial.probes as f64)),
            gap: Spread::of(trials.iter().filter_map(|trial| trial.gap)),
            failures: trials.into_iter().filter(|trial| !trial.is_met).take(KEPT).collect(),
        }
    }

    /// One line.
    pub fn summary(&self) -> String {
        let time = |spread: Option<Spread>| {
            spread.map_or_else(|| "-".to_owned(), |it| format!("{:.0}/{:.0}", it.p50, it.p95))
        };
        let mark = if self.is_met { "" } else { "  NOT AS EXPECTED" };
        format!(
            "{:<18} {:>3}/{:<3} {:<24} first byte {:>9} ms, direct {:>11} ms, probes {}{mark}",
            self.cell,
            self.successes,
            self.trials,
            self.expected,
            time(self.first_byte),
            time(self.to_direct),
            time(self.probes),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let spread = Spread::of((1..=100).map(f64::from)).unwrap();
        assert_eq!(spread, Spread { p50: 50.0, p95: 95.0, max: 100.0 });
        let one = Spread::of(std::iter::once(7.0)).unwrap();
        assert_eq!(one, Spread { p50: 7.0, p95: 7.0, max: 7.0 });
        assert_eq!(Spread::of(std::iter::empty()), None);
    }
}
