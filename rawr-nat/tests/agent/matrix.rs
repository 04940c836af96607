//! Agents behind every kind of NAT against every other, and an oracle that says which of them must find a
//! direct path.
//!
//! `RAWR_SEEDS` sets how many runs each of the 144 cells has. Seeds that fail are printed, and kept in
//! `tests/agent/regressions.txt`, which is tried first.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use rawr_nat::agent::AgentPathKind;
use rawr_sim::Link;

use crate::kinds::{KINDS, Kind, oracle};
use crate::wild::Wild;

const SEEDS: u64 = 2;
/// How long the two have. Punching has another try after 10 s.
const LIMIT: Duration = Duration::from_secs(30);
/// Chances from which on a direct path has to be found each time.
const CERTAIN: f64 = 0.999;
/// Chances below which nothing is to be tried.
const VAIN: f64 = 0.5;

/// How soon data flows, and how soon it does without a relay where ICE alone finds the path.
const BARS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(2));

/// Why a run is not as it should be.
fn complaint(a: Kind, b: Kind, seed: u64) -> Option<&'static str> {
    let chance = oracle(a, b);
    let mut wild = Wild::new([a, b], Link::default(), seed);
    wild.run(LIMIT);
    let is_direct = wild.is_direct();
    let is_tried = wild.sockets_ever() != [1, 1];
    let (ready, direct) = wild.ready_and_direct().unwrap_or_default();
    let is_easy = wild.paths().iter().all(|path| path.kind != AgentPathKind::Punched);
    match chance {
        _ if ready > BARS.0 => Some("no data within a second"),
        _ if is_easy && direct > BARS.1 => Some("no direct path within two seconds"),
        _ if !wild.is_intact() => Some("data was lost"),
        _ if chance < VAIN => is_tried.then_some("the hopeless was tried"),
        _ => (!is_direct).then_some("no direct path"),
    }
}

fn seeds() -> u64 {
    std::env::var("RAWR_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(SEEDS)
}

/// Runs the cells of these kinds against all.
fn check(kinds: &[Kind]) {
    let mut failures = Vec::new();
    for (a, b) in kinds.iter().flat_map(|a| KINDS.iter().map(move |b| (*a, *b))) {
        let misses: Vec<_> =
            (0..seeds()).filter_map(|seed| Some((seed, complaint(a, b, seed)?))).collect();
        // A bar of 95 % of few runs.
        let is_sure = !(VAIN..=CERTAIN).contains(&oracle(a, b));
        let allowed = if is_sure { 0 } else { usize::try_from(seeds().div_ceil(20)).unwrap() };
        if misses.len() > allowed {
            misses.iter().for_each(|(seed, why)| keep(a, b, *seed, why));
            failures.push(format!("{a:?} and {b:?}: {misses:?}"));
        }
    }
    assert!(failures.is_empty(), "failed more often than may be:\n{}", failures.join("\n"));
}

#[test]
fn easy_kinds_are_as_direct_as_the_oracle_says() {
    check(&KINDS[..6]);
}

#[test]
fn hard_kinds_are_as_direct_as_the_oracle_says() {
    check(&KINDS[6..]);
}

fn regressions() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/agent/regressions.txt")
}

/// Writes a failure down, to be tried first from now on, and prints it.
fn keep(a: Kind, b: Kind, seed: u64, why: &str) {
    let line = format!("{a:?} {b:?} {seed}");
    println!("failed: {line}: {why}");
    let known = fs::read_to_string(regressions()).unwrap_or_default();
    if known.lines().any(|known| known == line) {
        return;
    }
    let file = OpenOptions::new().append(true).create(true).open(regressions());
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        println!("it could not be kept in {}: {error}", regressions().display());
    }
}

fn parse(line: &str) -> Option<(Kind, Kind, u64)> {
    let mut words = line.split_whitespace();
    let (a, b, seed) = (words.next()?, words.next()?, words.next()?);
    Some((Kind::named(a)?, Kind::named(b)?, seed.parse().ok()?))
}

#[test]
fn seeds_that_once_failed_do_not_fail_again() {
    let text = fs::read_to_string(regressions()).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    for line in lines {
        let (a, b, seed) = parse(line).unwrap_or_else(|| panic!("no run: {line}"));
        assert_eq!(complaint(a, b, seed), None, "{line}");
    }
}
