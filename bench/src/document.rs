//! What a benchmark leaves behind: a file that holds every round of every row, and what describes the
//! run. `docs/benchmarks.md` is made of such files alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// One run of one benchmark.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Document {
    /// Its name: `program`, `netns`, `control`.
    pub(crate) benchmark: String,
    /// What to type to repeat it.
    pub(crate) command: String,
    pub(crate) machine: Machine,
    /// How it was measured, and which rounds do not count: the rule stood before the run.
    pub(crate) method: Vec<String>,
    /// Rounds that were measured and do not count.
    #[serde(default)]
    pub(crate) discarded: u32,
    pub(crate) rows: Vec<Row>,
}

/// One thing measured, once in each round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// Rows of one table are told apart by their labels and compared with each other.
    pub(crate) table: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) unit: String,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// One value per round, in their order: values at the same place were measured side by side.
    pub(crate) rounds: Vec<f64>,
}

impl Document {
    pub(crate) fn new(benchmark: &str, command: String, method: &[&str]) -> Self {
        let method = method.iter().map(ToString::to_string).collect();
        let machine = Machine::describe();
        let benchmark = benchmark.to_owned();
        Self { benchmark, command, machine, method, discarded: 0, rows: Vec::new() }
    }

    /// # Errors
    ///
    /// If the file cannot be read, or is not what [`Self::write`] writes.
    pub(crate) fn read(file: &Path) -> Result<Self> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read {}; run the benchmark first", file.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is not a result of `cargo xtask bench`", file.display()))
    }

    /// # Errors
    ///
    /// If the file cannot be written.
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

impl Row {
    /// # Panics
    ///
    /// Without a round.
    pub(crate) fn new(table: &str, labels: &[(&str, &str)], unit: &str, rounds: Vec<f64>) -> Self {
        let sorted = sorted(&rounds);
        Self {
            table: table.to_owned(),
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            unit: unit.to_owned(),
            median: median(&rounds),
            least: sorted[0],
            most: sorted[sorted.len() - 1],
            rounds,
        }
    }

    pub(crate) fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(key, value)| self.labels.get(*key).is_some_and(|has| has == value))
    }

    /// The label, or nothing if the row has none of that name.
    pub(crate) fn label(&self, key: &str) -> &str {
        self.labels.get(key).map_or("", String::as_str)
    }

    /// This row over another, round by round: what both share, such as a slow moment of the machine,
    /// cancels out.
    pub(crate) fn ratio(&self, to: &Self) -> Self {
        let rounds = self.rounds.iter().zip(&to.rounds).map(|(own, other)| own / other).collect();
        let labels: Vec<_> = self.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Self::new(&self.table, &labels, "ratio", rounds)
    }
}

/// The middle one; of an even number, the mean of the middle two.
///
/// # Panics
///
/// Without a value.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sums_up_its_rounds() {
        let row = Row::new("t", &[("flows", "1")], "packets/s", vec![3.0, 1.0, 10.0, 2.0]);
        assert_eq!((row.median, row.least, row.most), (2.5, 1.0, 10.0));
        let half = Row::new("t", &[], "packets/s", vec![6.0, 4.0, 5.0, 4.0]);
        assert_eq!(row.ratio(&half).rounds, [0.5, 0.25, 2.0, 0.5]);
    }

    #[test]
    fn rows_are_found_by_their_labels() {
        let mut document = Document::new("netns", "command".to_owned(), &[]);
        document.rows.push(Row::new("a", &[("flows", "1"), ("bytes", "64")], "", vec![1.0]));
        document.rows.push(Row::new("a", &[("flows", "2"), ("bytes", "64")], "", vec![2.0]));
        let found = document.rows.iter().filter(|row| row.has(&[("flows", "2")]));
        assert_eq!(found.map(|row| row.median).collect::<Vec<_>>(), [2.0]);
        assert!(!document.rows[0].has(&[("cores", "1")]));
    }
}
