//! What one measurement hands to the process that asked for it, and how values become rows.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::document::Row;

/// One value of one round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Value {
    pub(super) table: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) unit: String,
    pub(super) value: f64,
}

impl Value {
    pub(super) fn new(table: &str, labels: &[(&str, &str)], unit: &str, value: f64) -> Self {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Self { table: table.to_owned(), labels, unit: unit.to_owned(), value }
    }

    fn is_of(&self, row: &Row) -> bool {
        row.table == self.table && row.labels == self.labels
    }

    fn row(&self, rounds: Vec<f64>) -> Row {
        let labels: Vec<_> = self.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        Row::new(&self.table, &labels, &self.unit, rounds)
    }
}

/// Rows that grow by a value in each round.
#[derive(Default)]
pub(super) struct Rows(Vec<Row>);

impl Rows {
    /// Adds a round.
    ///
    /// # Errors
    /// If it has other values than the rounds before.
    pub(super) fn add(&mut self, round: &[Value]) -> Result<()> {
        let is_first = self.0.is_empty();
        for value in round {
            match self.0.iter_mut().find(|row| value.is_of(row)) {
                Some(row) => {
                    let mut rounds = std::mem::take(&mut row.rounds);
                    rounds.push(value.value);
                    *row = value.row(rounds);
                }
                None if is_first => self.0.push(value.row(vec![value.value])),
                None => bail!("a value that the first round had not: {value:?}"),
            }
        }
        let count = self.0.first().map_or(0, |row| row.rounds.len());
        let lacking = self.0.iter().find(|row| row.rounds.len() != count);
        ensure!(lacking.is_none(), "a round without {:?}", lacking.map(|row| &row.labels));
        Ok(())
    }

    pub(super) fn into_rows(self) -> Vec<Row> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_rows_round_by_round() {
        let round = |a, b| {
            [Value::new("t", &[("n", "1")], "ns", a), Value::new("t", &[("n", "2")], "ns", b)]
        };
        let mut rows = Rows::default();
        rows.add(&round(1.0, 2.0)).unwrap();
        rows.add(&round(3.0, 4.0)).unwrap();
        assert!(rows.add(&round(5.0, 6.0)[..1]).is_err(), "a round that lacks a row");
        let rows = rows.into_rows();
        assert_eq!(rows[0].rounds, [1.0, 3.0, 5.0]);
        assert_eq!((rows[1].median, rows[1].label("n")), (3.0, "2"));
    }
}
