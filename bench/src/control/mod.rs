//! What sessions cost: to set up, to hold, to look after, to lose, and to take over after a restart; and
//! what TURN's requests and allocations do.
//!
//! Everything in memory is measured in a process of its own, so that no value depends on what the
//! allocator has left of another. It is this program again, with the hidden subcommand [`Step`].

use std::process::Command;

use anyhow::{Context, Result};
use clap::Subcommand;
use rawr_tests::netns::{Netns, checked};
use rawr_tests::rawr;

use self::daemon::Daemons;
use self::plane::{Instance, Kind};
use self::values::{Rows, Value};
use crate::Run;
use crate::document::{Document, Row};
use crate::rounds::{self, undisturbed};

mod allocations;
mod daemon;
mod memory;
mod plane;
mod reference;
mod restart;
mod sessions;
mod turn;
mod values;

const METHOD: &[&str] = &[
    "Each round measures every row once, one after the other. What is in memory is measured in a \
     fresh process each time.",
    rounds::RULE,
    "The reference is the time that the SHA-256 of 64 MiB takes.",
    "Sessions in memory: Connect and Probe, each after a challenge, for both legs. Only the server \
     and what obeys it is timed: from a datagram that comes in until all that follows is done (a turn).",
    "Resident memory is what the process has of its own (Anonymous of smaps) beyond what it had \
     before the first session. The kernel's maps, of 2^20 places for each family, are told apart.",
    "Mass expiry: all sessions' legs expire at the same moment of virtual time.",
    "Restart: maps with all flows are pinned, and the sessions' state is read from JSON. The flows \
     are settled with the same next hops as before, and with another MAC address for all.",
    "Connect to the first packet: the daemon in a namespace holds the sessions; 100 more are added in \
     each round, one after the other. From the first Connect of either leg until a datagram, sent \
     when its sender is told of the pair, has arrived at the other leg.",
    "TURN requests in memory: one user's clients, each with an allocation, a permission and a channel, ask \
     in no order; their requests are made beforehand. The least of three passes over 50,000 requests \
     counts in a round.",
    "TURN over UDP: clients get a challenge, allocate, create a permission, bind a channel and release, 32 \
     at a time; all five requests count. Each relay is started anew in each round, on a core of its own, \
     with one relay thread (coturn) and with XDP on its interface (rawr); the clients have the other core. \
     Memory is the process's own, before and with 4,000 allocations.",
];
/// Allocations in memory.
const ALLOCATIONS: [u32; 2] = [100, 100_000];
/// Sessions in memory.
const SIZES: [u32; 3] = [100, 10_000, 100_000];

/// One measurement in a process of its own, which prints its values as JSON.
#[derive(Subcommand)]
pub(crate) enum Step {
    Sessions {
        #[arg(long)]
        sessions: u32,
        #[arg(long)]
        with: Kind,
        #[arg(long)]
        instance: String,
    },
    Restart {
        #[arg(long)]
        sessions: u32,
        #[arg(long)]
        instance: String,
    },
    Turn {
        #[arg(long)]
        allocations: u32,
        #[arg(long)]
        instance: String,
    },
}

impl Step {
    pub(crate) fn run(&self) -> Result<()> {
        let values = match self {
            Self::Sessions { sessions, with, instance } => {
                sessions::measure(*with, *sessions, instance)?
            }
            Self::Restart { sessions, instance } => restart::measure(*sessions, instance)?,
            Self::Turn { allocations, .. } => turn::measure(*allocations)?,
        };
        println!("{}", serde_json::to_string(&values)?);
        Ok(())
    }
}

pub(crate) fn run(run: &Run) -> Result<()> {
    rawr::sweep();
    let namespace = Netns::new("control")?;
    let mut daemons = Daemons::start()?;
    let measured = undisturbed(
        run.wanted(),
        &mut daemons,
        |_| Ok(reference::time().as_secs_f64()),
        |daemons| {
            let mut values = in_memory(&namespace)?;
            values.extend(daemons.measure()?);
            values.extend(allocations::measure()?);
            Ok(values)
        },
    )?;
    let mut rows = Rows::default();
    for round in &measured.kept {
        rows.add(round)?;
    }
    let command = "cargo xtask bench control".to_owned();
    let mut document = Document::new("control", command, METHOD);
    document.discarded = measured.discarded;
    document.rows = rows.into_rows();
    print(&document.rows);
    run.json.as_ref().map_or(Ok(()), |file| document.write(file))
}

/// A round of everything that needs no daemon.
fn in_memory(namespace: &Netns) -> Result<Vec<Value>> {
    let instance = Instance(namespace.name().to_owned());
    let mut values = Vec::new();
    for sessions in SIZES.map(|sessions| sessions.to_string()) {
        for kind in Kind::ALL {
            let with = kind.argument();
            values.extend(step(
                namespace,
                &instance,
                &["sessions", "--sessions", &sessions, "--with", &with],
            )?);
        }
        values.extend(step(namespace, &instance, &["restart", "--sessions", &sessions])?);
    }
    for allocations in ALLOCATIONS.map(|allocations| allocations.to_string()) {
        values.extend(step(namespace, &instance, &["turn", "--allocations", &allocations])?);
    }
    Ok(values)
}

/// Runs one [`Step`], and removes what it has pinned.
fn step(namespace: &Netns, instance: &Instance, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut command: Command = namespace.command(std::env::current_exe()?);
    command.arg("control-step").args(arguments).args(["--instance", &instance.0]);
    let output = checked(&mut command)?;
    instance.clear()?;
    serde_json::from_slice(&output.stdout).context("a measurement printed no values")
}

fn print(rows: &[Row]) {
    for row in rows {
        let labels: Vec<_> = row.labels.values().map(String::as_str).collect();
        let Row { table, unit, median, least, most, .. } = row;
        println!(
            "{table:<42} {:<58} {median:>12.1} {unit:<10} {least:.1}–{most:.1}",
            labels.join(", ")
        );
    }
}

#[cfg(test)]
mod tests {
    use rawr_tests::privilege::need_root;

    use super::*;

    const SESSIONS: u32 = 50;

    fn check(values: &[Value], tables: usize) {
        assert_eq!(values.len(), tables);
        for value in values {
            let is_memory = value.table.contains("memory");
            let is_sound = value.value.is_finite() && (value.value > 0.0 || is_memory);
            assert!(is_sound, "{value:?}");
        }
    }

    #[test]
    fn sessions_in_memory_are_set_up_and_expire() {
        for (kind, tables) in [(Kind::Server, 5), (Kind::Table, 5), (Kind::Memory, 8)] {
            check(&sessions::measure(kind, SESSIONS, "").unwrap(), tables);
        }
    }

    #[test]
    fn turn_requests_in_memory_are_answered() {
        check(&turn::measure(20).unwrap(), 8);
    }

    #[test]
    fn allocations_are_made_and_released_by_both_relays() {
        if need_root("allocations_are_made_and_released_by_both_relays") {
            check(&allocations::measure().unwrap(), 4);
        }
    }

    #[test]
    fn sessions_in_the_kernel_are_set_up_expire_and_outlive_a_restart() {
        if !need_root("sessions_in_the_kernel_are_set_up_expire_and_outlive_a_restart") {
            return;
        }
        let instance = Instance(format!("rawr-{}-control-test", std::process::id()));
        check(&sessions::measure(Kind::Kernel, SESSIONS, &instance.0).unwrap(), 9);
        instance.clear().unwrap();
        check(&restart::measure(SESSIONS, &instance.0).unwrap(), 16);
    }
}
