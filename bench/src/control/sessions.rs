//! One server in memory: sessions are set up, held, looked after, and expire all at once.

use std::time::Duration;

use anyhow::{Result, ensure};
use rawr_tests::load::{Load, Spent};
use rawr_tests::process::now;
use rawr_userspace::control::Count;

use super::memory::Memory;
use super::plane::{Kind, Plane, Router};
use super::values::Value;

/// Longer than the reconciler waits between two looks at everything.
const INTERVAL: Duration = Duration::from_secs(6);

/// All values of `sessions` sessions.
pub(super) fn measure(kind: Kind, sessions: u32, instance: &str) -> Result<Vec<Value>> {
    let mut load = Load::new(Plane::open(kind, instance, Router(1))?)?;
    let labels = [("sessions", &*sessions.to_string()), ("with", kind.name())];
    let mut values = Vec::new();
    let mut add = |table: &str, unit: &str, value: f64| {
        values.push(Value::new(table, &labels, unit, value));
    };

    let idle = Memory::own()?;
    let spent = load.set_up(sessions)?;
    let full = Memory::own()?;
    check_full(&load, sessions)?;
    add("sessions set up per second", "sessions/s", f64::from(sessions) / seconds(spent.total));
    add("resident memory per session", "B", full.each_since(idle, sessions));
    add("resident memory", "MB", full.anonymous as f64 / 1e6);
    if kind == Kind::Kernel {
        add("kernel's maps, shown as resident", "MB", full.maps as f64 / 1e6);
    }

    if load.plane.has_backend() {
        let begin = now();
        load.plane.poll_counters()?;
        let flows = 2.0 * f64::from(sessions);
        add("reading all counters, per flow", "ns", nanoseconds(begin.elapsed()) / flows);
        let spent = compare(&mut load);
        add("comparing all flows, per flow", "ns", nanoseconds(spent.total) / flows);
        add("comparing all flows, longest turn", "ms", 1e3 * seconds(spent.longest));
    }

    let spent = load.expire();
    check_empty(&load)?;
    add("mass expiry, per session", "ns", nanoseconds(spent.total) / f64::from(sessions));
    add("mass expiry, longest turn", "ms", 1e3 * seconds(spent.longest));
    Ok(values)
}

/// The look at everything that is due from time to time.
fn compare(load: &mut Load<Plane>) -> Spent {
    let mut spent = Spent::default();
    load.now.monotonic += INTERVAL;
    load.now.unix += INTERVAL;
    let at = load.now.monotonic;
    while load.plane.poll_timeout().is_some_and(|due| due <= at) {
        let begin = now();
        load.plane.step(at);
        let took = begin.elapsed();
        spent.total += took;
        spent.longest = spent.longest.max(took);
    }
    spent
}

fn check_full(load: &Load<Plane>, sessions: u32) -> Result<()> {
    let (held, paired) = (load.server.session_count(), paired(load));
    let all = sessions as usize;
    ensure!(held == all && paired == u64::from(sessions), "{held} sessions, {paired} paired");
    if load.plane.has_backend() {
        let in_force = load.plane.list()?.len();
        ensure!(in_force == 2 * all, "{in_force} flows of {} are installed", 2 * all);
    }
    Ok(())
}

fn check_empty(load: &Load<Plane>) -> Result<()> {
    let held = load.server.session_count();
    ensure!(held == 0 && load.plane.flows.is_empty(), "{held} sessions have not expired");
    ensure!(!load.plane.has_backend() || load.plane.list()?.is_empty(), "flows are left");
    Ok(())
}

fn paired(load: &Load<Plane>) -> u64 {
    load.server.counters().get(Count::PairedPeers)
}

pub(super) fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

pub(super) fn nanoseconds(time: Duration) -> f64 {
    1e9 * time.as_secs_f64()
}
