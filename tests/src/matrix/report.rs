//! The results as a part of docs/traversal.md.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};

use super::bars::bars;
use super::cell::Cell;
use super::kind::Kind;
use super::results::{CellResult, Results, Spread};

/// What stands around the part that is made of the results.
const MARKERS: (&str, &str) = ("<!-- matrix: begin -->", "<!-- matrix: end -->");

/// Puts the part in its place.
///
/// # Errors
/// If the document has no such place.
pub fn replace(document: &str, part: &str) -> Result<String> {
    let missing = || format!("there is no {} … {} in the document", MARKERS.0, MARKERS.1);
    let (before, rest) = document.split_once(MARKERS.0).with_context(missing)?;
    let (_, after) = rest.split_once(MARKERS.1).with_context(missing)?;
    Ok(format!("{before}{}\n{}\n{}{after}", MARKERS.0, part.trim(), MARKERS.1))
}

/// The part.
pub fn markdown(results: &Results) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "Kernel {}, {} processors, {} cells at a time, {} min in all. {} trials of a cell of which a percentage is \
         claimed, {} of each other one.\n",
        results.kernel,
        results.processors,
        results.jobs,
        results.seconds.div_ceil(60),
        results.trials,
        results.few
    );
    grid(&mut text, results);
    goals(&mut text, results);
    let (special, plain): (Vec<_>, Vec<_>) =
        results.cells.iter().partition(|cell| cell.cell.contains('+'));
    table(&mut text, "Each pair", &plain, false);
    table(&mut text, "Under special conditions", &special, true);
    hosts(&mut text, results);
    failures(&mut text, results);
    not_run(&mut text, results);
    text
}

fn not_run(text: &mut String, results: &Results) {
    if results.not_run.is_empty() {
        return;
    }
    let _ = writeln!(text, "### Not run\n");
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for not_run in &results.not_run {
        reasons.entry(&not_run.why).or_default().push(&not_run.what);
    }
    for (why, cells) in reasons {
        let _ = writeln!(text, "* {}: {why}", cells.join(", "));
    }
}

fn grid(text: &mut String, results: &Results) {
    let names: Vec<_> = Kind::ALL.iter().map(ToString::to_string).collect();
    let _ = writeln!(text, "| |{}|\n|---|{}", names.join("|"), "---|".repeat(names.len()));
    for (i, a) in Kind::ALL.into_iter().enumerate() {
        let columns = Kind::ALL.into_iter().enumerate().map(|(j, b)| {
            let result = results.cell(&Cell::plain(a, b)).filter(|_| j >= i);
            result.map_or(String::new(), letter)
        });
        let _ = writeln!(text, "| {a} |{}|", columns.collect::<Vec<_>>().join("|"));
    }
    let _ = writeln!(
        text,
        "\nD: direct over UDP, T: direct over TCP, R: through a relay, -: not at all; and in how many \
         of the trials. **Bold**: less than is expected.\n"
    );
}

fn goals(text: &mut String, results: &Results) {
    let _ = writeln!(text, "| what has to be | measured | |\n|---|---|---|");
    for bar in bars(results) {
        let verdict = match bar.is_met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "not run",
        };
        let _ = writeln!(text, "| {} | {} | {verdict} |", bar.what, bar.measured);
    }
    let _ = writeln!(text);
}

/// The best way that at least half of the trials ended with, and how many did.
fn letter(result: &CellResult) -> String {
    let ways = [
        ("D", result.direct),
        ("T", result.direct + result.tcp),
        ("R", result.connected),
        ("-", result.trials),
    ];
    let way = ways.into_iter().find(|(_, count)| 2 * count >= result.trials);
    let (letter, count) = way.unwrap_or(("-", 0));
    let text = format!("{letter} {count}/{}", result.trials);
    if result.is_met { text } else { format!("**{text}**") }
}

fn table(text: &mut String, title: &str, cells: &[&CellResult], has_gap: bool) {
    let (gap_title, gap_line) = if has_gap { (" gap, ms |", "---|") } else { ("", "") };
    let _ = writeln!(
        text,
        "### {title}\n\n\
         | cell | expected | as expected | first byte, ms | direct after, ms | probes |{gap_title}\n\
         |---|---|---|---|---|---|{gap_line}"
    );
    for cell in cells {
        let share = format!("{}/{}", cell.successes, cell.trials);
        let share = if cell.is_met { share } else { format!("**{share}**") };
        let gap = if has_gap { format!(" {} |", spread(cell.gap)) } else { String::new() };
        let _ = writeln!(
            text,
            "| {} | {} | {share} | {} | {} | {} |{gap}",
            cell.cell,
            cell.expected,
            spread(cell.first_byte),
            spread(cell.to_direct),
            spread(cell.probes)
        );
    }
    let _ = writeln!(
        text,
        "\nMedian / 95th percentile / most. Probes: of UDP punching, both sides together.\n"
    );
}

fn spread(spread: Option<Spread>) -> String {
    spread.map_or_else(String::new, |it| format!("{:.0} / {:.0} / {:.0}", it.p50, it.p95, it.max))
}

fn hosts(text: &mut String, results: &Results) {
    let _ = writeln!(
        text,
        "### Hosts\n\n| kind | what it is | UDP as found | TCP as found |\n|---|---|---|---|"
    );
    for host in results.kinds.iter().filter(|host| host.side == 0) {
        let found = |found: &Option<String>| match (found, host.kind) {
            (Some(found), _) => found.clone(),
            (None, Kind::N11) => "none: IPv6".to_owned(),
            (None, _) => "blocked".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            host.kind,
            host.kind.meaning(),
            found(&host.found.udp),
            found(&host.found.tcp)
        );
    }
    let _ = writeln!(text);
}

/// How often which reasons were given.
fn failures(text: &mut String, results: &Results) {
    let _ = writeln!(text, "### Trials that were not as expected\n");
    for cell in results.cells.iter().filter(|cell| !cell.failures.is_empty()) {
        let mut reasons: BTreeMap<String, u32> = BTreeMap::new();
        for failure in &cell.failures {
            *reasons.entry(without_numbers(&failure.reasons.join("; "))).or_default() += 1;
        }
        let reasons: Vec<_> =
            reasons.into_iter().map(|(reason, count)| format!("{count} × {reason}")).collect();
        let _ = writeln!(
            text,
            "* {}, {} of {}: {}",
            cell.cell,
            cell.trials - cell.successes,
            cell.trials,
            reasons.join(" — ")
        );
    }
    let _ = writeln!(text);
}

/// The same reason with other figures in it is the same.
fn without_numbers(reason: &str) -> String {
    let word = |word: &str| {
        let number = word.trim_matches(['(', ')']);
        if number.parse::<f64>().is_ok() { word.replace(number, "…") } else { word.to_owned() }
    };
    reason.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_part_is_put_between_its_markers() {
        let document = format!("a\n{}\nold\n{}\nb\n", MARKERS.0, MARKERS.1);
        let new = replace(&document, "new\n\n").unwrap();
        assert_eq!(new, format!("a\n{}\nnew\n{}\nb\n", MARKERS.0, MARKERS.1));
        assert!(replace("a", "new").is_err());
    }

    #[test]
    fn reasons_are_told_apart_by_their_words() {
        assert_eq!(without_numbers("gave up (731 probes)"), "gave up (… probes)");
    }
}
