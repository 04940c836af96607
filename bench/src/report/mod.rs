//! `docs/benchmarks.md` and its plots: made of the results beside them, and of nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::document::Document;

mod bars;
mod figure;
mod page;
mod plot;
mod plots;
mod table;

/// The benchmarks, in the order of the page.
const BENCHMARKS: [&str; 3] = ["netns", "program", "control"];
/// The page, and the folder of results, notes and plots beside it.
const PAGE: &str = "benchmarks.md";
const FOLDER: &str = "benchmarks";

/// Writes the page and its plots, and removes plots that are no longer made.
///
/// # Errors
///
/// If a benchmark has no results yet, or a bar no figure; what there is has been written then.
pub(crate) fn run() -> Result<()> {
    let docs = docs();
    let report = Report::read(&docs)?;
    let files = report.files()?;
    for (name, text) in &files {
        fs::write(docs.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    for name in plots_in(&docs)?.iter().filter(|name| !files.contains_key(*name)) {
        fs::remove_file(docs.join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    report.check()
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// All there is to report.
struct Report {
    /// By their benchmarks.
    documents: BTreeMap<&'static str, Document>,
    /// Texts written by hand, by the sections that they begin.
    notes: BTreeMap<String, String>,
}

impl Report {
    fn read(docs: &Path) -> Result<Self> {
        let folder = docs.join(FOLDER);
        let mut documents = BTreeMap::new();
        for name in BENCHMARKS {
            let file = folder.join(name).with_extension("json");
            if file.exists() {
                documents.insert(name, Document::read(&file)?);
            }
        }
        let mut notes = BTreeMap::new();
        for file in listed(&folder.join("notes"), "md")? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&file);
            notes.insert(name, text.with_context(|| format!("cannot read {}", file.display()))?);
        }
        Ok(Self { documents, notes })
    }

    /// Every file by its name below the documents.
    fn files(&self) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        let mut plots = BTreeMap::new();
        for (name, document) in &self.documents {
            plots.insert(*name, plots::plots(document)?);
        }
        files.insert(PAGE.to_owned(), page::page(self, &plots));
        for plot in plots.into_values().flatten() {
            files.insert(format!("{FOLDER}/{}", plot.file), plot.svg);
        }
        Ok(files)
    }

    /// Fails if something has not been measured.
    fn check(&self) -> Result<()> {
        let mut missing = Vec::new();
        for name in BENCHMARKS.iter().filter(|name| !self.documents.contains_key(*name)) {
            missing.push(format!(
                "docs/{FOLDER}/{name}.json does not exist; \
                 `cargo xtask bench {name} --json docs/{FOLDER}/{name}.json` makes it"
            ));
        }
        for bar in bars::BARS {
            let Some(document) = self.documents.get(bar.document) else { continue };
            if bar.judge(document).is_none() {
                missing.push(format!(
                    "\"{}\": no row of table \"{}\" in docs/{FOLDER}/{}.json has the labels {:?}{}",
                    bar.what,
                    bar.table,
                    bar.document,
                    bar.labels,
                    if bar.over.is_empty() {
                        String::new()
                    } else {
                        format!(" and a counterpart with {:?}", bar.over)
                    }
                ));
            }
        }
        ensure!(missing.is_empty(), "the report is not complete:\n{}", missing.join("\n"));
        Ok(())
    }
}

/// Plots in the documents' folder, by their names below the documents.
fn plots_in(docs: &Path) -> Result<Vec<String>> {
    let files = listed(&docs.join(FOLDER), "svg")?;
    let names = files.iter().filter_map(|file| file.file_name());
    Ok(names.map(|name| format!("{FOLDER}/{}", name.to_string_lossy())).collect())
}

/// Files with an extension, in a folder that may be missing.
fn listed(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if folder.exists() {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            found.push(entry?.path());
        }
    }
    found.retain(|file| file.extension().is_some_and(|own| own == extension));
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Row;

    /// The page and the plots that are there are those that the results give.
    #[test]
    fn the_page_says_what_was_measured() {
        let docs = docs();
        let files = Report::read(&docs).unwrap().files().unwrap();
        for (name, text) in &files {
            let there = fs::read_to_string(docs.join(name)).unwrap_or_default();
            assert!(there == *text, "docs/{name} is out of date: run `cargo xtask bench report`");
        }
        for name in plots_in(&docs).unwrap() {
            assert!(files.contains_key(&name), "docs/{name} is not made any more");
        }
    }

    #[test]
    fn every_bar_has_a_figure() {
        Report::read(&docs()).unwrap().check().unwrap();
    }

    /// Invented figures, to see what becomes of rows of every kind.
    fn invented() -> Report {
        let mut netns = Document::new("netns", "cargo xtask bench netns".to_owned(), &["Method."]);
        for (rank, contender) in ["bare XDP redirect", "rawr", "coturn"].into_iter().enumerate() {
            for flows in ["1", "1000", "1000000"] {
                let points = [
                    ("throughput", "64", "1"),
                    ("throughput", "200", "1"),
                    ("one core and two", "64", "1"),
                    ("one core and two", "64", "2"),
                ];
                for (table, bytes, cores) in points {
                    let labels = [
                        ("topology", "redirect"),
                        ("contender", contender),
                        ("flows", flows),
                        ("bytes", bytes),
                        ("cores", cores),
                    ];
                    let value = 9e6 / (rank + flows.len()) as f64;
                    let rounds = vec![value, value * 1.1, value * 0.9];
                    netns.rows.push(Row::new(table, &labels, "packets/s", rounds));
                }
            }
            for load in ["10 %", "50 %", "90 %", "half of coturn's"] {
                let labels = [("contender", contender), ("load", load), ("quantile", "p99")];
                let rounds = vec![3.0 * (rank + 1) as f64, 40.0];
                netns.rows.push(Row::new("latency", &labels, "us", rounds));
            }
        }
        let notes = BTreeMap::from([("netns".to_owned(), "A note.\n".to_owned())]);
        Report { documents: BTreeMap::from([("netns", netns)]), notes }
    }

    #[test]
    fn known_tables_get_plots_and_bars() {
        let files = invented().files().unwrap();
        let names: Vec<_> = files.keys().map(String::as_str).collect();
        let expected = [
            "benchmarks.md",
            "benchmarks/cores-redirect.svg",
            "benchmarks/latency-p99.svg",
            "benchmarks/throughput-bytes-redirect.svg",
            "benchmarks/throughput-flows-redirect.svg",
        ];
        assert_eq!(names, expected);
        let page = &files["benchmarks.md"];
        let bar = "| Redirect, 1 flow: rawr over a bare XDP redirect | ≥ 0.970 | \
                   0.500 (0.500–0.500), the worst of 2: bytes: 64 | **missed by 48 %** |";
        assert!(page.contains(bar), "{page}");
        assert!(page.contains("A note.") && page.contains("not measured"), "{page}");
        for (name, text) in files.iter().filter(|(name, _)| name.ends_with("svg")) {
            assert!(text.contains("coturn") && text.ends_with("</svg>\n"), "{name}: {text}");
        }
    }

    #[test]
    fn results_give_the_same_files_each_time() {
        let report = invented();
        assert_eq!(report.files().unwrap(), report.files().unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = invented().check().unwrap_err().to_string();
        assert!(error.contains("`cargo xtask bench program --json docs/benchmarks/program.json`"));
        assert!(error.contains("On a stick, 1 flow"), "{error}");
    }
}
