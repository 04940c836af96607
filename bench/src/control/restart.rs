//! A restart: the kernel's maps hold all flows, the next daemon has the sessions' state.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::load::{Load, config};
use rawr_tests::process::now;
use rawr_userspace::control::{Server, Snapshot};
use rawr_userspace::dataplane::backend::Installed;

use super::plane::{Kind, Plane, Router};
use super::sessions::{nanoseconds, seconds};
use super::values::Value;

/// Another seed than the predecessor's.
const SEED: [u8; 32] = [4; 32];

/// What the next daemon finds when it looks at the way out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NextHops {
    Unchanged,
    Changed,
}

/// All values of a restart with `sessions` sessions, on maps pinned as `instance`.
pub(super) fn measure(sessions: u32, instance: &str) -> Result<Vec<Value>> {
    let mut load = Load::new(Plane::open(Kind::Kernel, instance, Router(1))?)?;
    load.set_up(sessions)?;
    let state = serde_json::to_vec(&load.server.snapshot(load.now))?;
    let (held, at) = (load.plane.list()?, load.now);
    ensure!(held.len() == 2 * sessions as usize, "only {} flows are installed", held.len());
    drop(load);

    let mut values = Vec::new();
    for next_hops in [NextHops::Unchanged, NextHops::Changed] {
        let router = if next_hops == NextHops::Changed { Router(2) } else { Router(1) };
        let begin = now();
        let plane = Plane::open(Kind::Kernel, instance, router)?;
        let opened = begin.elapsed();
        let snapshot: Snapshot = serde_json::from_slice(&state).context("the state")?;
        let server = Server::restore(config()?, SEED, at, snapshot)?;
        let restored = begin.elapsed();
        let mut load = Load::with(server, plane, at);
        let settled = load.resume();
        let total = begin.elapsed();

        check(&load.plane, &held, next_hops)?;
        ensure!(load.server.session_count() == sessions as usize, "sessions are lost");
        let phases = [
            ("the maps are taken over", opened),
            ("the sessions are restored", restored - opened),
            ("the flows are settled", settled.total),
            ("all", total),
        ];
        values.extend(of(sessions, next_hops, &phases));
    }
    Ok(values)
}

fn of(sessions: u32, next_hops: NextHops, phases: &[(&str, Duration)]) -> Vec<Value> {
    let sessions_label = sessions.to_string();
    let name = if next_hops == NextHops::Changed { "all changed" } else { "unchanged" };
    let mut values = Vec::new();
    for (phase, time) in phases {
        let labels = [("sessions", &*sessions_label), ("next hops", name), ("phase", phase)];
        let each = nanoseconds(*time) / f64::from(2 * sessions);
        values.push(Value::new("restart", &labels, "ms", 1e3 * seconds(*time)));
        values.push(Value::new("restart, per flow", &labels, "ns", each));
    }
    values
}

/// Every flow of before is in force, by way of the router of now.
fn check(plane: &Plane, before: &[Installed], next_hops: NextHops) -> Result<()> {
    ensure!(plane.failed == 0, "{} flows could not be installed", plane.failed);
    let mut expected = before.to_vec();
    for installed in &mut expected {
        if next_hops == NextHops::Changed {
            installed.next_hop.dst_mac[5] = 2;
        }
    }
    ensure!(plane.list()? == expected, "the maps do not hold what they held before");
    Ok(())
}
