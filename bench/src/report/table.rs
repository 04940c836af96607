//! Any table of a document in Markdown.

use std::fmt::Write;

use crate::document::{Document, Row};

use super::figure::{Scale, label};

/// Labels whose values may be columns, the first one that varies, and what one of them is called.
const COLUMNS: &[(&str, &str)] = &[
    ("flows", "flow"),
    ("entries", "entry"),
    ("sessions", "session"),
    ("allocations", "allocation"),
    ("quantile", ""),
    ("bytes", "byte"),
    ("cores", "core"),
];
/// The label whose values get tables of their own.
const SPLIT: &str = "topology";
/// The label that rows begin with.
const FIRST: &str = "contender";

/// All tables of a document.
pub(super) fn tables(document: &Document) -> String {
    let mut text = String::new();
    for name in distinct(document.rows.iter().map(|row| row.table.as_str())) {
        let rows: Vec<_> = document.rows.iter().filter(|row| row.table == name).collect();
        for part in distinct(rows.iter().map(|row| row.label(SPLIT))) {
            let rows: Vec<_> =
                rows.iter().copied().filter(|row| row.label(SPLIT) == part).collect();
            for unit in distinct(rows.iter().map(|row| row.unit.as_str())) {
                let rows: Vec<_> = rows.iter().copied().filter(|row| row.unit == unit).collect();
                text += &table(name, part, &rows);
            }
        }
    }
    text
}

/// In the order in which they come first.
pub(super) fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}

/// Rows of one unit, of which there is at least one.
fn table(name: &str, part: &str, rows: &[&Row]) -> String {
    let most = rows.iter().map(|row| row.median).fold(0.0, f64::max);
    let scale = Scale::of(&rows[0].unit, most);
    let part = if part.is_empty() { String::new() } else { format!(", {part}") };
    let mut text = format!("\n**{}{part}**, {}\n\n", capital(name), scale.unit);
    let varies = |name: &str| distinct(rows.iter().map(|row| row.label(name))).len() > 1;
    let (column, singular) = COLUMNS
        .iter()
        .find(|(name, _)| varies(name))
        .map_or((None, ""), |(name, one)| (Some(*name), *one));
    let mut heads: Vec<_> = rows[0].labels.keys().map(String::as_str).collect();
    heads.retain(|key| *key != SPLIT && Some(*key) != column);
    heads.sort_by_key(|key| *key != FIRST);
    let columns = column.map_or_else(|| vec![""], |column| ordered(rows, column));
    let title = |value: &str| match column {
        Some(_) if value == "1" => format!("1 {singular}"),
        Some(column) if value.parse::<u64>().is_ok() => format!("{} {column}", label(value)),
        Some(_) => value.to_owned(),
        None => "median (least–most)".to_owned(),
    };
    let mut cells: Vec<_> = heads.iter().map(|head| (*head).to_owned()).collect();
    cells.extend(columns.iter().map(|value| title(value)));
    write_line(&mut text, &cells);
    let rule: Vec<_> = heads.iter().map(|_| "---").chain(columns.iter().map(|_| "---:")).collect();
    let _ = writeln!(text, "|{}|", rule.join("|"));

    let key = |row: &Row| heads.iter().map(|head| label(row.label(head))).collect::<Vec<_>>();
    let mut keys: Vec<Vec<String>> = Vec::new();
    for row in rows {
        if !keys.contains(&key(row)) {
            keys.push(key(row));
        }
    }
    for line in keys {
        let cell = |value: &&str| {
            let fits = |row: &&&Row| column.is_none_or(|column| row.label(column) == *value);
            let row = rows.iter().filter(|row| key(row) == line).find(fits);
            row.map_or_else(String::new, |row| spread(row, scale))
        };
        let values: Vec<_> = columns.iter().map(cell).collect();
        write_line(&mut text, &[line, values].concat());
    }
    text
}

/// The values of a label: numbers by size, words as they come.
fn ordered<'a>(rows: &[&'a Row], column: &str) -> Vec<&'a str> {
    let mut values = distinct(rows.iter().map(|row| row.label(column)));
    values.sort_by_key(|value| value.parse::<u64>().unwrap_or(u64::MAX));
    values
}

/// The median, and between what the rounds lie.
pub(super) fn spread(row: &Row, scale: Scale<'_>) -> String {
    let median = scale.write(row.median);
    if row.rounds.len() == 1 {
        return median;
    }
    format!("{median} ({}–{})", scale.write(row.least), scale.write(row.most))
}

pub(super) fn write_line(text: &mut String, cells: &[String]) {
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_any_name_is_written() {
        let mut document = Document::new("control", String::new(), &[]);
        let row = |with: &str, sessions: &str, rounds: &[f64]| {
            let labels = [("with", with), ("sessions", sessions)];
            Row::new("mass expiry", &labels, "ns", rounds.to_vec())
        };
        document.rows =
            vec![row("kernel", "10000", &[1500.0, 1600.0, 1700.0]), row("kernel", "100", &[21.5])];
        document.rows.push(row("server", "100", &[0.5]));
        let expected = "\n**Mass expiry**, ns\n\n\
            | with | 100 sessions | 10,000 sessions |\n\
            |---|---:|---:|\n\
            | kernel | 21.5 | 1,600 (1,500–1,700) |\n\
            | server | 0.500 |  |\n";
        assert_eq!(tables(&document), expected);
    }
}
