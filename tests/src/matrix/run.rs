//! Runs many cells, several at a time: each host, and each carrier, is in one at most.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::{JoinSet, LocalSet};

use super::cell::{Axis, Cell};
use super::kind::{Expected, Kind, Outcome};
use super::results::{CellResult, KindResult, NotRun, Results};
use super::site::{Internet, Place, Site, build};
use super::trial::{self, Trial};
use crate::process::now;
use crate::scene::Scene;

const CLASSIFIED_AT_ONCE: usize = 4;
/// How long a node may take to find out what its NATs do.
const CLASSIFY_LIMIT: Duration = Duration::from_secs(15);

/// How the matrix is run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub cells: Vec<Cell>,
    /// Trials of a cell of which a percentage is claimed.
    pub trials: u32,
    /// Trials of the others.
    pub few: u32,
    /// Cells at the same time.
    pub jobs: usize,
    pub internet: Internet,
}

impl Plan {
    fn trials_of(&self, cell: &Cell) -> u32 {
        if cell.is_claimed() { self.trials } else { self.few }
    }

    /// About how many seconds a cell takes.
    fn length_of(&self, cell: &Cell) -> u32 {
        let each = match cell.expected() {
            _ if cell.axis.disturbs() => 10,
            Expected::Connected => 5,
            Expected::Likely { .. } => 3,
            Expected::Direct | Expected::Tcp { .. } => 1,
        };
        each * self.trials_of(cell)
    }
}

/// Kinds that have a part in these cells.
fn kinds(cells: &[Cell]) -> Vec<Kind> {
    let kinds: BTreeSet<_> = cells.iter().flat_map(|cell| [cell.a, cell.b]).collect();
    kinds.into_iter().collect()
}

/// Builds the network in an empty scene, and runs all cells.
pub fn run(scene: &mut Scene, plan: &Plan) -> Result<Results> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    runtime.block_on(local.run_until(run_all(scene, plan)))
}

async fn run_all(scene: &mut Scene, plan: &Plan) -> Result<Results> {
    let started = now();
    let mut waiting = plan.cells.clone();
    let mut results = Results::new(plan);
    results.not_run = leave_out(&mut waiting, plan.internet);
    let kinds = kinds(&waiting);
    let (sites, helpers) = build(scene, plan.internet, &kinds)?;
    let mut free = Free::new(kinds);
    for (found, site) in introduce_all(sites).await? {
        results.kinds.push(found);
        free.put(site);
    }
    eprintln!("{} hosts after {:.1} s", free.sites.len(), started.elapsed().as_secs_f64());
    // Those that take longest first: they would be alone in the end.
    waiting.sort_by_key(|cell| std::cmp::Reverse(plan.length_of(cell)));
    let mut running = JoinSet::new();
    loop {
        while running.len() < plan.jobs
            && let Some((cell, sites)) = free.take_first(&mut waiting)
        {
            running.spawn_local(run_cell(cell, plan.trials_of(&cell), sites));
        }
        let Some(ended) = running.join_next().await else { break };
        let Ended { result, sites, is_broken } = ended.context("a cell has panicked")?;
        eprintln!("{:6.1} s  {}", started.elapsed().as_secs_f64(), result.summary());
        results.cells.push(result);
        for mut site in sites {
            if is_broken {
                site.restart(&scene.lab)?;
                introduce(&mut site).await?;
            }
            free.put(site);
        }
    }
    drop(helpers);
    results.finish(started.elapsed());
    Ok(results)
}

/// Takes out what this machine cannot do.
fn leave_out(cells: &mut Vec<Cell>, internet: Internet) -> Vec<NotRun> {
    let has_tayga = Command::new("tayga").arg("--help").output().is_ok();
    let obstacle = |cell: &Cell| match cell.axis {
        Axis::RoundTrip(_) if internet == Internet::Flat => Some("a switch has no length"),
        _ if [cell.a, cell.b].contains(&Kind::N11) && !has_tayga => {
            Some("tayga is not installed (Debian package tayga)")
        }
        _ => None,
    };
    let not_run = |cell: &Cell| {
        obstacle(cell).map(|why| NotRun { what: cell.to_string(), why: why.to_owned() })
    };
    let out = cells.iter().filter_map(not_run).collect();
    cells.retain(|cell| obstacle(cell).is_none());
    out
}

/// Some at a time: more would wait for the processor.
async fn introduce_all(sites: Vec<Site>) -> Result<Vec<(KindResult, Site)>> {
    let mut waiting = sites.into_iter();
    let mut running = JoinSet::new();
    let mut done = Vec::new();
    loop {
        while running.len() < CLASSIFIED_AT_ONCE
            && let Some(mut site) = waiting.next()
        {
            running.spawn_local(async move { (introduce(&mut site).await, site) });
        }
        let Some(ended) = running.join_next().await else { return Ok(done) };
        let (found, site) = ended.context("a host has panicked")?;
        done.push((found?, site));
    }
}

async fn introduce(site: &mut Site) -> Result<KindResult> {
    let place = site.place;
    let classified = tokio::time::timeout(CLASSIFY_LIMIT, site.classify()).await;
    let classified = classified
        .context("no classification in time")?
        .with_context(|| format!("the host {} {}", place.kind, place.side))?;
    Ok(KindResult::new(place, classified))
}

/// Hosts and carriers that no cell uses.
struct Free {
    sites: BTreeMap<Place, Site>,
    carriers: BTreeSet<Kind>,
}

impl Free {
    fn new(kinds: Vec<Kind>) -> Self {
        Self { sites: BTreeMap::new(), carriers: kinds.into_iter().collect() }
    }

    /// The first of these cells for which all is there, with its hosts.
    fn take_first(&mut self, cells: &mut Vec<Cell>) -> Option<(Cell, [Site; 2])> {
        let found = cells.iter().enumerate();
        let mut found = found.filter_map(|(at, cell)| Some((at, self.places(cell)?)));
        let (at, [a, b]) = found.next()?;
        let cell = cells.remove(at);
        let sites = [self.sites.remove(&a)?, self.sites.remove(&b)?];
        carriers(&cell).for_each(|kind| {
            self.carriers.remove(&kind);
        });
        Some((cell, sites))
    }

    /// A host for each of its sides, if there are any.
    fn places(&self, cell: &Cell) -> Option<[Place; 2]> {
        if !carriers(cell).all(|kind| self.carriers.contains(&kind)) {
            return None;
        }
        let place = |kind, side| {
            let place = Place { kind, side };
            self.sites.contains_key(&place).then_some(place)
        };
        let a = place(cell.a, 0).or_else(|| place(cell.a, 1))?;
        let b = [place(cell.b, 1), place(cell.b, 0)].into_iter().flatten().find(|b| *b != a)?;
        Some([a, b])
    }

    fn put(&mut self, site: Site) {
        self.carriers.insert(site.place.kind);
        self.sites.insert(site.place, site);
    }
}

fn carriers(cell: &Cell) -> impl Iterator<Item = Kind> {
    [cell.a, cell.b].into_iter().filter(|kind| kind.carrier().is_some())
}

struct Ended {
    result: CellResult,
    sites: [Site; 2],
    /// Whether the nodes can be told nothing more.
    is_broken: bool,
}

async fn run_cell(cell: Cell, trials: u32, mut sites: [Site; 2]) -> Ended {
    let mut done = Vec::new();
    let mut is_broken = false;
    for number in 0..trials {
        match trial::run(&cell, number, &mut sites).await {
            Ok(trial) => done.push(trial),
            Err(error) => {
                done.push(broken(&error));
                is_broken = true;
                break;
            }
        }
    }
    Ended { result: CellResult::new(&cell, done), sites, is_broken }
}

/// A trial that could not be brought to its end.
fn broken(error: &anyhow::Error) -> Trial {
    Trial {
        outcome: Outcome::Nothing,
        is_met: false,
        first_byte: None,
        direct: None,
        probes: 0,
        paths: [None, None],
        gap: None,
        lost: None,
        reasons: vec![format!("{error:#}")],
    }
}
