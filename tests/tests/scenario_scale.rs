//! Ten thousand sessions at once on one server, or, where the system's limit of open files is too low
//! for the two sockets of each, as many as it allows.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rawr_tests::crowd::Crowd;
use rawr_tests::lab::Family;
use rawr_tests::process::eventually;
use rawr_tests::rawr::{PORT, Serve};
use rawr_tests::scene::scenario;
use rawr_tests::topology::{INTERNET, both};

/// Half of them of each family, so that the legs of either fit one address's data ports.
const SESSIONS: usize = 10_000;
/// Open files that the daemon needs besides.
const OTHER_FILES: usize = 200;
const LIMITS: &str = "[limits]\nsessions = 20000\nunverified_per_second = 20000\n";
/// Seconds; a leg lives so long once its client has fallen silent.
const LIFETIME: u32 = 60;
const PAIR_LIMIT: Duration = Duration::from_secs(120);
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn ten_thousand_sessions_are_paired_released_and_expire() {
    scenario("ten_thousand_sessions_are_paired_released_and_expire", |scene| {
        scene.lab.hosts(&["root", "crowd"])?;
        scene.lab.wire(&INTERNET, ("root", "wan", 1), ("crowd", "eth0", 2))?;
        let serve = Serve::root(&["wan"]).configured(LIMITS).terse();
        let root = scene.serve("root", serve)?;
        let idle = root.memory()?;

        let sessions = SESSIONS.min(open_files()?.saturating_sub(OTHER_FILES) / 4 * 2);
        if sessions < SESSIONS {
            eprintln!("only {sessions} sessions: the limit of open files allows no more");
        }
        ensure!(sessions >= SESSIONS / 2, "the limit of open files is too low for this test");
        let mut crowd = Crowd::new(&*scene.lab.at("crowd")?, &both(&INTERNET, 2))?;
        for family in [Family::Ipv4, Family::Ipv6] {
            let server = INTERNET.socket(family, 1, PORT);
            crowd.pair(server, sessions / 2, LIFETIME, PAIR_LIMIT)?;
        }
        ensure!(root.sessions()? == sessions as u64, "the root holds {}", root.sessions()?);
        let each = root.memory()?.saturating_sub(idle) / (sessions as u64);
        eprintln!("memory of the daemon: {idle} bytes idle, {each} bytes per session");
        eprintln!("{} of {} connects had to be repeated", crowd.retries, 2 * sessions);

        let before = root.traffic()?;
        let missing = crowd.exchange_data(LIMIT)?;
        ensure!(missing == 0, "{missing} legs did not get the other side's data");
        eventually("the kernel has forwarded all data", LIMIT, || {
            let forwarded = root.traffic()?.since(before);
            Ok((forwarded.kernel >= 2 * sessions as u64).then_some(()))
        })?;

        crowd.release(sessions / 2, LIMIT)?;
        let held = root.sessions()?;
        ensure!(held == (sessions / 2) as u64, "after releases, {held} sessions are held");

        drop(crowd);
        let expiry = Duration::from_secs(LIFETIME.into()) + LIMIT;
        eventually("the other half has expired", expiry, || {
            Ok((root.sessions()? == 0).then_some(()))
        })?;
        ensure!(root.listed("flows")?.is_empty(), "flows are left");
        Ok(())
    });
}

/// The hard limit of this process, which the daemon inherits and raises if it may.
fn open_files() -> Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let may_raise = setrlimit(Resource::RLIMIT_NOFILE, hard, hard + 1).is_ok();
    Ok(if may_raise { usize::MAX } else { usize::try_from(hard)? })
}
