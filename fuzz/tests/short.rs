//! A bounded run of every target: its corpus, and inputs made of that. The same inputs each time.
//!
//! `RAWR_FUZZ_ROUNDS=50` makes it fifty times as long, `RAWR_FUZZ_SEED` makes other inputs.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rand::SeedableRng;
use rand::rngs::StdRng;
use rawr_fuzz::mutate::mutate;
use rawr_fuzz::{TARGETS, Target};
use rawr_tests::privilege::need_root;

fn corpus_of(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// All inputs that are kept, in the order of their names.
fn corpus(target: &Target) -> Vec<Vec<u8>> {
    let mut files: Vec<_> =
        fs::read_dir(corpus_of(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs one input; what fails is kept, to be run again.
fn check(target: &Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok() {
        return;
    }
    let file = std::env::temp_dir().join(format!("rawr-fuzz-{}", target.name));
    fs::write(&file, input).unwrap();
    panic!(
        "{} fails with {}: mend it, and keep the file in {}",
        target.name,
        file.display(),
        corpus_of(target).display()
    );
}

fn short(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    if target.needs_root && !need_root(name) {
        return;
    }
    let corpus = corpus(target);
    corpus.iter().for_each(|input| check(target, input));
    let mut rng = StdRng::seed_from_u64(number("RAWR_FUZZ_SEED", 0x5eed));
    for _ in 0..u64::from(target.rounds) * number("RAWR_FUZZ_ROUNDS", 1) {
        check(target, &mutate(&mut rng, &corpus));
    }
}

#[test]
fn server() {
    short("server");
}

#[test]
fn stream() {
    short("stream");
}

#[test]
fn datapath() {
    short("datapath");
}

/// So that seeds that are added to a target are in its corpus, too.
#[test]
fn every_seed_is_kept() {
    for target in &TARGETS {
        let kept = corpus(target);
        for seed in (target.seeds)() {
            assert!(kept.contains(&seed), "{}: run `keep_seeds`, and commit", target.name);
        }
    }
}

#[test]
#[ignore = "writes into the corpus"]
fn keep_seeds() {
    for target in &TARGETS {
        fs::create_dir_all(corpus_of(target)).unwrap();
        for (number, seed) in (target.seeds)().iter().enumerate() {
            fs::write(corpus_of(target).join(format!("seed-{number:03}")), seed).unwrap();
        }
    }
}
