//! The page.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::document::Document;

use super::bars::{BARS, Bar, Limit};
use super::figure::{Scale, number};
use super::plots::Plot;
use super::table::{spread, tables, write_line};
use super::{BENCHMARKS, FOLDER, Report};

const HEAD: &str = "\
# Benchmarks

<!-- Made by `cargo xtask bench report` from the results and notes in docs/benchmarks: do not edit. -->

What rawr's data path and control plane cost, beside a bare XDP program (the limit) and beside what a user
would pick instead. All figures are medians over rounds, with the least and the most of them in
parentheses; ratios are computed round by round, from values that were measured side by side.

## How to repeat it

```console
$ cargo xtask bench program      # what the XDP program costs per packet, without a driver
$ cargo xtask bench netns        # packets per second and latency, on virtual Ethernets
$ cargo xtask bench control      # sessions and allocations: time, memory, expiry, restart
$ cargo xtask bench all          # all three, writes docs/benchmarks/*.json and this page
$ cargo xtask bench report       # this page alone, from the results that are there
```

The benchmarks need root, and Linux on x86-64. `--json FILE` keeps the results of one, `--rounds N` sets
the number of rounds.
";

pub(super) fn page(report: &Report, plots: &BTreeMap<&str, Vec<Plot>>) -> String {
    let mut page = HEAD.to_owned();
    page += "\n## The machine\n\n";
    page += &machines(report);
    note(&mut page, report, "machine");
    page += "\n## The bars\n\n";
    page += &bars(report);
    note(&mut page, report, "bars");
    for name in BENCHMARKS {
        let _ = write!(page, "\n## {}\n", heading(name));
        note(&mut page, report, name);
        match report.documents.get(name) {
            Some(document) => page += &section(document, &plots[name]),
            None => {
                let _ = write!(page, "\nNot measured yet: `cargo xtask bench {name}`.\n");
            }
        }
    }
    page
}

fn heading(benchmark: &str) -> &str {
    match benchmark {
        "netns" => "Packets per second and latency",
        "program" => "Cost of the program",
        _ => "Sessions and allocations",
    }
}

/// The text written by hand for a section, as it stands.
fn note(page: &mut String, report: &Report, name: &str) {
    if let Some(text) = report.notes.get(name) {
        let _ = write!(page, "\n{}\n", text.trim());
    }
}

fn machines(report: &Report) -> String {
    let mut text = String::new();
    let documents: Vec<_> =
        BENCHMARKS.iter().filter_map(|name| report.documents.get(name)).collect();
    if documents.is_empty() {
        return "Nothing has been measured yet.\n".to_owned();
    }
    let heads = documents.iter().map(|document| format!("`{}`", document.benchmark));
    write_line(&mut text, &[String::new()].into_iter().chain(heads).collect::<Vec<_>>());
    let _ = writeln!(text, "|---|{}", "---|".repeat(documents.len()));
    let mut line = |name: &str, value: &dyn Fn(&Document) -> String| {
        let values = documents.iter().map(|document| value(document));
        let cells: Vec<_> = [name.to_owned()].into_iter().chain(values).collect();
        write_line(&mut text, &cells);
    };
    line("CPU", &|document| document.machine.cpu.clone());
    line("CPUs", &|document| document.machine.cpus.to_string());
    line("Memory", &|document| format!("{} GiB", document.machine.memory_gib));
    line("Virtual machine", &|document| {
        if document.machine.virtual_machine { "yes" } else { "no" }.to_owned()
    });
    line("Kernel", &|document| document.machine.kernel.clone());
    line("Revision of rawr", &|document| format!("`{}`", document.machine.revision));
    line("Load average at the start", &|document| document.machine.load.clone());
    line("Rounds", &|document| {
        document.rows.iter().map(|row| row.rounds.len()).max().unwrap_or(0).to_string()
    });
    line("Rounds discarded", &|document| document.discarded.to_string());
    text
}

fn bars(report: &Report) -> String {
    let mut text = "| | required | measured | |\n|---|---:|---:|---|\n".to_owned();
    for bar in BARS {
        write_line(&mut text, &verdict(bar, report.documents.get(bar.document)));
    }
    text
}

fn verdict(bar: &Bar, document: Option<&Document>) -> [String; 4] {
    let what = bar.what.to_owned();
    let Some(outcome) = document.and_then(|document| bar.judge(document)) else {
        return [what, required(bar.limit, ""), String::new(), "not measured".to_owned()];
    };
    let row = &outcome.measured;
    let unit = if row.unit == "ratio" { "" } else { row.unit.as_str() };
    let mut measured = spread(row, Scale::of("", 0.0));
    if outcome.rows > 1 {
        let open = |key: &&String| !bar.labels.iter().any(|(own, _)| own == key);
        let labels: Vec<_> = row
            .labels
            .keys()
            .filter(open)
            .map(|key| format!("{key}: {}", row.label(key)))
            .collect();
        let _ = write!(measured, ", the worst of {}: {}", outcome.rows, labels.join(", "));
    }
    let verdict = if outcome.is_met() {
        "met".to_owned()
    } else {
        format!("**missed by {:.0} %**", (100.0 * outcome.distance()).max(1.0))
    };
    [what, required(bar.limit, unit), measured, verdict]
}

fn required(limit: Limit, unit: &str) -> String {
    let text = match limit {
        Limit::AtLeast(limit) => format!("≥ {} {unit}", number(limit)),
        Limit::AtMost(limit) => format!("≤ {} {unit}", number(limit)),
    };
    text.trim_end().to_owned()
}

fn section(document: &Document, plots: &[Plot]) -> String {
    let mut text = format!("\n`{}`\n\n", document.command);
    for line in &document.method {
        let _ = writeln!(text, "* {line}");
    }
    for plot in plots {
        let _ = write!(text, "\n![{}]({FOLDER}/{})\n", plot.title, plot.file);
    }
    text + &tables(document)
}
