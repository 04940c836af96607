//! What the guest reports on its console: `scripts/vm-init.sh` frames the output of each job.

use std::fmt;

use crate::test::{self, Counts};

/// Begins the lines that are not a job's own.
const MARK: &str = "rawr-vm ";

/// What has been read so far.
#[derive(Debug, Default)]
pub(super) struct Report {
    kernel: Option<String>,
    /// Seconds of the guest's clock since it was booted, before the first job.
    started_at: u64,
    outcomes: Vec<Outcome>,
    is_complete: bool,
}

/// One job.
#[derive(Debug, Default)]
struct Outcome {
    name: String,
    counts: Counts,
    /// Exit status; `None` if it has not ended.
    status: Option<i32>,
    /// On the same clock.
    ended_at: u64,
}

impl Report {
    /// Takes one line of the console.
    pub(super) fn read(&mut self, line: &str) {
        let Some(words) = line.strip_prefix(MARK) else {
            if let Some(outcome) = self.outcomes.last_mut() {
                outcome.counts += test::read(line);
            }
            return;
        };
        match *words.split_whitespace().collect::<Vec<_>>() {
            ["kernel", release, seconds] => {
                self.kernel = Some(release.to_owned());
                self.started_at = seconds.parse().unwrap_or_default();
            }
            ["begin", name] => {
                self.outcomes.push(Outcome { name: name.to_owned(), ..Outcome::default() });
            }
            ["end", name, status, seconds] => {
                if let Some(outcome) = self.outcomes.last_mut().filter(|last| last.name == name) {
                    outcome.status = status.parse().ok();
                    outcome.ended_at = seconds.parse().unwrap_or_default();
                }
            }
            ["done"] => self.is_complete = true,
            _ => {}
        }
    }

    /// Tests of all jobs.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for outcome in &self.outcomes {
            counts += outcome.counts;
        }
        // A skipped test has returned early, which its runner takes for a pass.
        counts.passed = counts.passed.saturating_sub(counts.skipped);
        counts
    }

    /// Why the run is no proof that all `jobs` succeed. Empty if it is.
    pub(super) fn problems(&self, jobs: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        if self.kernel.is_none() {
            problems.push("the guest did not start its jobs".to_owned());
        }
        for job in jobs {
            let outcome = self.outcomes.iter().find(|outcome| outcome.name == *job);
            let problem = match outcome.map(|outcome| (outcome.status, outcome.counts)) {
                None => "has not run",
                Some((None, _)) => "has not ended",
                Some((Some(0), counts)) if counts.skipped > 0 => "has skipped tests",
                Some((Some(0), counts)) if counts.passed == 0 => "has run no test",
                Some((Some(0), counts)) if counts.failed == 0 => continue,
                Some(_) => "has failed",
            };
            problems.push(format!("{job} {problem}"));
        }
        if !self.is_complete {
            problems.push("the guest did not come to its end".to_owned());
        }
        problems
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = self.kernel.as_deref().unwrap_or("(unknown)");
        writeln!(f, "on kernel {kernel}, under emulation:")?;
        let mut began_at = self.started_at;
        for Outcome { name, counts, ended_at, .. } in &self.outcomes {
            let took = ended_at.saturating_sub(began_at);
            writeln!(f, "  {name}: {counts} ({took} s)")?;
            began_at = *ended_at;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    const CONSOLE: &str = "\
        [    1.2] a message of the kernel\n\
        rawr-vm kernel 6.1.0-1-amd64 8\n\
        rawr-vm begin datapath\n\
        running 2 tests\n\
        test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
        rawr-vm end datapath 0 20\n\
        rawr-vm begin scenario_paths/stick\n\
        test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 9 filtered out\n\
        rawr-vm end scenario_paths/stick 101 65\n\
        rawr-vm done\n";

    fn report(console: &str) -> Report {
        let mut report = Report::default();
        console.lines().for_each(|line| report.read(line));
        report
    }

    fn problems(console: &str, jobs: &[&str]) -> Vec<String> {
        report(console).problems(&jobs.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn counts_and_times_are_told_by_job() {
        let report = report(CONSOLE);
        assert_eq!(report.counts().to_string(), "3 passed, 1 failed, 0 skipped");
        assert_eq!(
            report.to_string(),
            "on kernel 6.1.0-1-amd64, under emulation:\n  \
             datapath: 2 passed, 0 failed, 0 skipped (12 s)\n  \
             scenario_paths/stick: 1 passed, 1 failed, 0 skipped (45 s)\n"
        );
    }

    #[test]
    fn what_ran_and_passed_is_no_problem() {
        let (good, _) = CONSOLE.split_once("rawr-vm begin scenario").unwrap();
        assert_eq!(problems(&format!("{good}rawr-vm done\n"), &["datapath"]), [""; 0]);
    }

    #[test]
    fn a_job_that_failed_or_never_ran_is_one() {
        let found = problems(CONSOLE, &["datapath", "scenario_paths/stick", "backend"]);
        assert_eq!(found, ["scenario_paths/stick has failed", "backend has not run"]);
    }

    #[test]
    fn a_filter_that_no_test_matches_is_one() {
        let console = CONSOLE.replace("ok. 2 passed", "ok. 0 passed");
        assert_eq!(problems(&console, &["datapath"]), ["datapath has run no test"]);
        let console = CONSOLE.replace("running 2 tests", "rawr-skipped a_test: needs root");
        assert_eq!(problems(&console, &["datapath"]), ["datapath has skipped tests"]);
    }

    #[test]
    fn a_guest_that_dies_is_one() {
        let (begun, _) = CONSOLE.split_once("test result").unwrap();
        let complaints = ["datapath has not ended", "the guest did not come to its end"];
        assert_eq!(problems(begun, &["datapath"]), complaints);
        let none = ["the guest did not start its jobs", "datapath has not run"];
        assert_eq!(problems("Kernel panic", &["datapath"])[..2], none);
    }
}
