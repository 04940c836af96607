//! Seeds that once failed are kept in a file, and tried before all others.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use crate::kinds::{Kind, oracle};
use crate::pair::{Scenario, run};

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/punch/regressions.txt")
}

/// Writes a failure down, to be tried first from now on, and prints it.
pub(crate) fn keep(a: Kind, b: Kind, seed: u64, why: &str) {
    let line = format!("{a:?} {b:?} {seed}");
    println!("failed: {line}: {why}");
    let known = fs::read_to_string(path()).unwrap_or_default();
    if known.lines().any(|known| known == line) {
        return;
    }
    let file = OpenOptions::new().append(true).create(true).open(path());
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        println!("it could not be kept in {}: {error}", path().display());
    }
}

fn parse(line: &str) -> Option<(Kind, Kind, u64)> {
    let mut words = line.split_whitespace();
    let (a, b, seed) = (words.next()?, words.next()?, words.next()?);
    Some((Kind::named(a)?, Kind::named(b)?, seed.parse().ok()?))
}

#[test]
fn seeds_that_once_failed_do_not_fail_again() {
    let text = fs::read_to_string(path()).expect("tests/punch/regressions.txt is read");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in lines {
        let (a, b, seed) = parse(line).unwrap_or_else(|| panic!("no scenario: {line}"));
        let outcome = run(&Scenario::new(a, b), seed);
        let is_possible = oracle(a, b) > 0.5;
        assert_eq!(outcome.is_direct(), is_possible, "{line}: {outcome:?}");
    }
}
