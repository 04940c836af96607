//! Which plots are made of which rows.

use anyhow::Result;

use crate::document::{Document, Row};

use super::figure::{Scale, label};
use super::plot::{Axis, Bar, Bars, Line, Lines};
use super::table::distinct;

/// A plot in a file.
pub(super) struct Plot {
    /// Without its folder.
    pub(super) file: String,
    /// What it shows, for those who do not see it.
    pub(super) title: String,
    pub(super) svg: String,
}

/// All plots of a document: of those tables alone whose names and labels are known here.
pub(super) fn plots(document: &Document) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    for topology in ["redirect", "stick"] {
        let rows = select(document, "throughput", &[("topology", topology), ("cores", "1")]);
        plots.extend(lines(&rows, &Over::flows(topology))?);
        plots.extend(lines(&rows, &Over::bytes(topology))?);
        let rows = select(document, "one core and two", &[("topology", topology)]);
        plots.extend(cores(&rows, topology)?);
    }
    for quantile in ["p50", "p99", "p99.9"] {
        let rows = select(document, "latency", &[("quantile", quantile)]);
        plots.extend(lines(&rows, &Over::load(quantile))?);
    }
    plots.extend(program(document)?);
    Ok(plots)
}

fn select<'a>(document: &'a Document, table: &str, labels: &[(&str, &str)]) -> Vec<&'a Row> {
    let rows = document.rows.iter().filter(|row| row.table == table);
    rows.filter(|row| row.has(labels)).collect()
}

/// One plot with a line for each contender.
struct Over {
    file: String,
    title: String,
    /// The label along the x axis.
    label: &'static str,
    /// Labels that are the same for all points: the values that most rows have.
    fixed: &'static [&'static str],
    x: Axis,
    y_name: &'static str,
    y_log: bool,
}

impl Over {
    fn flows(topology: &str) -> Self {
        Self {
            file: format!("throughput-flows-{topology}.svg"),
            title: format!("Delivered packets, {}, 1 core", described(topology)),
            label: "flows",
            fixed: &["bytes"],
            x: Axis { name: "flows, each packet of another one".to_owned(), is_log: true },
            y_name: "",
            y_log: false,
        }
    }

    fn bytes(topology: &str) -> Self {
        Self {
            file: format!("throughput-bytes-{topology}.svg"),
            title: format!("Delivered packets by size, {}, 1 core", described(topology)),
            label: "bytes",
            fixed: &["flows"],
            x: Axis { name: "Ethernet frame, bytes".to_owned(), is_log: true },
            y_name: "",
            y_log: false,
        }
    }

    fn load(quantile: &str) -> Self {
        Self {
            file: format!("latency-{quantile}.svg"),
            title: format!("Latency, {quantile}"),
            label: "load",
            fixed: &[],
            x: Axis { name: "load, % of each one's capacity".to_owned(), is_log: false },
            y_name: "latency, ",
            y_log: true,
        }
    }
}

fn described(topology: &str) -> &str {
    if topology == "stick" { "on a stick" } else { topology }
}

/// `None` if there are fewer than two points on the x axis.
fn lines(rows: &[&Row], over: &Over) -> Result<Option<Plot>> {
    let (rows, fixed) = usual(rows, over.fixed, over.label);
    let at = |row: &Row| row.label(over.label).trim_end_matches([' ', '%']).parse::<f64>().ok();
    let rows: Vec<_> = rows.into_iter().filter_map(|row| Some((at(row)?, row))).collect();
    if distinct(rows.iter().map(|(_, row)| row.label(over.label))).len() < 2 {
        return Ok(None);
    }
    let most = rows.iter().map(|(_, row)| row.median).fold(0.0, f64::max);
    let scale = Scale::of(&rows[0].1.unit, most);
    let mut drawn = Vec::new();
    for name in distinct(rows.iter().map(|(_, row)| row.label("contender"))) {
        let own = rows.iter().filter(|(_, row)| row.label("contender") == name);
        let mut points: Vec<_> = own.map(|(at, row)| (*at, scaled(row, scale))).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        drawn.push(Line { name: name.to_owned(), points });
    }
    let title = format!("{}{fixed}", over.title);
    let y = Axis { name: format!("{}{}", over.y_name, scale.unit), is_log: over.y_log };
    let svg = Lines { title: title.clone(), x: over.x.clone(), y, lines: drawn }.svg()?;
    Ok(Some(Plot { file: over.file.clone(), title, svg }))
}

/// Of rows that differ in labels which a plot cannot show, those with the values by which most points
/// of the x axis, then most rows, are there; and these values in words.
fn usual<'a>(rows: &[&'a Row], fixed: &[&str], axis: &str) -> (Vec<&'a Row>, String) {
    let (mut rows, mut words) = (rows.to_vec(), String::new());
    for name in fixed {
        let values = distinct(rows.iter().map(|row| row.label(name)));
        let extent = |value: &str| {
            let own = || rows.iter().filter(|row| row.label(name) == value);
            (distinct(own().map(|row| row.label(axis))).len(), own().count())
        };
        // Of equals, the first.
        let best = values.iter().rev().max_by_key(|value| extent(value)).copied();
        let Some(best) = best.map(str::to_owned) else { continue };
        rows.retain(|row| row.label(name) == best);
        let unit = if *name == "bytes" && best != "1" { "-byte frames" } else { " flows" };
        words += &match (best.as_str(), *name) {
            ("1", "flows") => ", 1 flow".to_owned(),
            _ => format!(", {}{unit}", label(&best)),
        };
    }
    (rows, words)
}

/// What two cores bring to each contender.
fn cores(rows: &[&Row], topology: &str) -> Result<Option<Plot>> {
    let (rows, flows) = usual(rows, &["flows"], "cores");
    let (rows, bytes) = usual(&rows, &["bytes"], "cores");
    if distinct(rows.iter().map(|row| row.label("cores"))).len() < 2 {
        return Ok(None);
    }
    let most = rows.iter().map(|row| row.median).fold(0.0, f64::max);
    let scale = Scale::of(&rows[0].unit, most);
    let mut bars = Vec::new();
    for name in distinct(rows.iter().map(|row| row.label("contender"))) {
        for (group, cores) in ["1", "2"].into_iter().enumerate() {
            let row = rows.iter().find(|row| row.has(&[("contender", name), ("cores", cores)]));
            let Some(row) = row else { continue };
            bars.push(Bar { name: name.to_owned(), values: scaled(row, scale), group });
        }
    }
    let title = format!("One and two cores, {}{flows}{bytes}", described(topology));
    let groups = vec!["1 core".to_owned(), "2 cores".to_owned()];
    let svg = Bars { title: title.clone(), unit: scale.unit.to_owned(), groups, bars }.svg()?;
    Ok(Some(Plot { file: format!("cores-{topology}.svg"), title, svg }))
}

/// What the program costs: one plot with the same flow each time, and one with another.
fn program(document: &Document) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let mut add = |file: &str, title: &str, groups: Vec<String>, bars: Vec<Bar>| -> Result<()> {
        if bars.is_empty() {
            return Ok(());
        }
        let unit = "ns per packet".to_owned();
        let svg = Bars { title: title.to_owned(), unit, groups, bars }.svg()?;
        plots.push(Plot { file: file.to_owned(), title: title.to_owned(), svg });
        Ok(())
    };
    let bar = |row: &Row, group| Bar {
        name: row.label("packets").to_owned(),
        values: [row.median, row.least, row.most],
        group,
    };
    let warm = document.rows.iter().filter(|row| row.table == "program");
    // What has no entries is shown, too.
    let warm = warm.filter(|row| ["0", "60000"].contains(&row.label("entries")));
    let warm = warm.map(|row| bar(row, 0)).collect();
    add("program.svg", "Cost of the program, 60,000 entries", Vec::new(), warm)?;

    let table = "another flow each time";
    let rows = select(document, table, &[]);
    let sizes = distinct(rows.iter().map(|row| row.label("entries")));
    let group = |row: &Row| sizes.iter().position(|size| *size == row.label("entries"));
    let cold = rows.iter().map(|row| bar(row, group(row).unwrap_or(0))).collect();
    let groups = sizes.iter().map(|size| format!("{} entries", label(size))).collect();
    add("program-flows.svg", "Cost of the program, another flow each time", groups, cold)?;
    Ok(plots)
}

fn scaled(row: &Row, scale: Scale<'_>) -> [f64; 3] {
    [row.median, row.least, row.most].map(|value| scale.apply(value))
}
