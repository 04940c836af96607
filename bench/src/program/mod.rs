//! What the XDP program costs per packet, without a driver (`BPF_PROG_TEST_RUN`).

use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rawr_common::channel::GROUP;
use rawr_tests::instructions::stack_depth;
use rawr_tests::kernel::{Kernel, action, bare_program};

use crate::Run;
use crate::document::{Document, Row};
use crate::rounds::{self, undisturbed};

use flows::{Family, Flow, Leg, Tables, Way, frame};
use kinds::{KINDS, Kind, Route};
use measure::{CALLS, Expected, REPEAT, Rewinder, cost};

mod flows;
mod kinds;
mod measure;

const METHOD: &[&str] = &[
    "BPF_PROG_TEST_RUN: the program runs on a packet in memory, 160 bytes of UDP payload, without any \
     driver. Each round measures every row three times, all rows in turn, and the least of the three \
     counts: what else runs on the processor can only add to it.",
    rounds::RULE,
    "The reference is a bare `XDP_TX`: a program of two instructions.",
    "A value is the mean of 400 calls or more of 250 runs each, without the slowest quarter of the \
     calls. The kernel's clock has a resolution of 1 ns and rounds down; 0.5 ns are added.",
    "Each run finds what the one before left. Packets of a pair therefore go to and fro between its \
     two flows; what is passed up stays as it is.",
    "Where a packet leaves in another form (IPv4 to IPv6, a VLAN tag, an answer), a program in front restores it \
     before each run. What this program costs in front of a bare `XDP_TX`, above the bare `XDP_TX` \
     alone, is measured in the same round and subtracted. \"IPv4 to IPv6 and back\" needs nothing \
     restored, and is the mean of the two directions: their check.",
    "\"Another flow each time\": all flows make one ring in random order, and the index of the next one \
     is known only when the packet has been rewritten. Nothing can be fetched ahead, so this is the \
     full price of the cache misses, above what packets that do not depend on each other pay.",
    "Entries are flows installed in the table of each family; 1 stands for one pair. Their number \
     matters only to packets that visit them.",
];
/// Tables of the results: what is warm in the caches, and what is not.
const SAME_FLOW: &str = "program";
const ANOTHER_FLOW: &str = "another flow each time";
/// What is not forwarded but answered.
const ANSWERS: &str = "answers";
const SIZE: &str = "size";
/// Flows installed. One is for a pair alone.
const ENTRIES: [u32; 3] = [1, 60_000, 1_000_000];

pub(crate) fn run(run: &Run) -> Result<()> {
    let mut bench = Bench::load()?;
    // So that no page is touched for the first time later.
    bench.round()?;
    let rounds =
        undisturbed(run.wanted(), &mut bench, |bench| bench.bare(), |bench| bench.round())?;
    let mut document = Document::new("program", "cargo xtask bench program".to_owned(), METHOD);
    document.discarded = rounds.discarded;
    document.rows.push(row(SAME_FLOW, "bare XDP_TX", 0, rounds.reference.clone()));
    for (place, (kind, tables)) in bench.cases().enumerate() {
        let table = match kind.route {
            Route::EachAnother(_) => ANOTHER_FLOW,
            Route::Answered(_) => ANSWERS,
            Route::PassedUp(_) | Route::RoundTrip(_) | Route::OneWay(_) => SAME_FLOW,
        };
        document.rows.push(row(table, kind.name, ENTRIES[tables], rounds.at(place)));
    }
    document.rows.extend(bench.size()?);
    print(&document);
    run.json.as_ref().map_or(Ok(()), |file| document.write(file))
}

fn row(table: &str, packets: &str, entries: u32, rounds: Vec<f64>) -> Row {
    let labels = [("packets", packets), ("entries", &entries.to_string())];
    Row::new(table, &labels, "ns per packet", rounds)
}

fn print(document: &Document) {
    println!("{:<46} {:>8} {:>8} {:>8} {:>8}", "packets", "entries", "ns", "least", "most");
    for row in document.rows.iter().filter(|row| row.table != SIZE) {
        let Row { median, least, most, .. } = row;
        let (packets, entries) = (row.label("packets"), row.label("entries"));
        let another = if row.table == ANOTHER_FLOW { ", another flow" } else { "" };
        let packets = packets.to_owned() + another;
        println!("{packets:<46} {entries:>8} {median:>8.1} {least:>8.1} {most:>8.1}");
    }
    for row in document.rows.iter().filter(|row| row.table == SIZE) {
        println!("{}: {} {}", row.label("of"), row.median, row.unit);
    }
    println!("{} rounds were discarded.", document.discarded);
}

/// How often each round measures each case. The least counts.
const PASSES: usize = 3;

/// What one value is made of. Where nothing had to be restored, only the first part is not 0.
#[derive(Clone, Copy)]
struct Cost {
    /// Of rawr, with that of restoring.
    rawr: f64,
    /// Of a bare `XDP_TX`, with that of restoring.
    restored: f64,
    /// Of a bare `XDP_TX`.
    bare: f64,
}

impl Cost {
    fn of(rawr: f64) -> Self {
        Self { rawr, restored: 0.0, bare: 0.0 }
    }

    fn least(self, other: Self) -> Self {
        Self {
            rawr: self.rawr.min(other.rawr),
            restored: self.restored.min(other.restored),
            bare: self.bare.min(other.bare),
        }
    }

    fn value(self) -> f64 {
        self.rawr - self.restored + self.bare
    }
}

/// Everything that is loaded.
struct Bench {
    /// Where programs are attached while they are measured.
    ifindex: u32,
    bare: OwnedFd,
    rewinder: Rewinder,
    /// One for each of [`ENTRIES`].
    tables: Vec<Tables>,
}

impl Bench {
    fn load() -> Result<Self> {
        let ifindex = own_interface()?;
        let tables = ENTRIES.map(Tables::load).into_iter().collect::<Result<_>>()?;
        Ok(Self { ifindex, bare: bare_program(action::TX)?, rewinder: Rewinder::load()?, tables })
    }

    /// Everything to measure: a kind, and the place of its tables.
    fn cases(&self) -> impl Iterator<Item = (&'static Kind, usize)> + use<> {
        let all =
            KINDS.iter().flat_map(|kind| (0..ENTRIES.len()).map(move |tables| (kind, tables)));
        all.filter(|(kind, tables)| {
            ENTRIES[*tables] > 1 || !matches!(kind.route, Route::EachAnother(_))
        })
    }

    fn bare(&mut self) -> Result<f64> {
        let frame = Flow::at(0, Family::V4).packet().frame();
        let expected = Expected { action: action::TX, length: frame.len() };
        let mut least = f64::INFINITY;
        for _ in 0..PASSES {
            let frames = std::iter::repeat_n(frame.clone(), CALLS);
            least = least.min(cost(self.bare.as_fd(), frames, expected, self.ifindex)?);
        }
        Ok(least)
    }

    fn round(&mut self) -> Result<Vec<f64>> {
        let mut least = self.pass()?;
        for _ in 1..PASSES {
            let pass = self.pass()?.into_iter();
            least.iter_mut().zip(pass).for_each(|(least, cost)| *least = least.least(cost));
        }
        Ok(least.into_iter().map(Cost::value).collect())
    }

    fn pass(&mut self) -> Result<Vec<Cost>> {
        let cases = self.cases();
        cases
            .map(|(kind, tables)| {
                let measured = self.measure(&kind.route, tables);
                measured.with_context(|| format!("{} with {} entries", kind.name, ENTRIES[tables]))
            })
            .collect()
    }

    fn measure(&mut self, route: &Route, tables: usize) -> Result<Cost> {
        let tables = &mut self.tables[tables];
        let program = tables.kernel.program()?;
        match route {
            Route::PassedUp(frame) => {
                let frame = frame();
                let expected = Expected { action: action::PASS, length: frame.len() };
                let frames = std::iter::repeat_n(frame, CALLS);
                cost(program.as_fd(), frames, expected, self.ifindex).map(Cost::of)
            }
            Route::Answered(request) => {
                let request = request();
                let [m0, m1, m2, m3, m4, m5, ..] = request[..] else { bail!("no Ethernet frame") };
                // XOR-MAPPED-ADDRESS is what an answer has more.
                let expected = Expected { action: action::TX, length: request.len() + 12 };
                let (rewinder, ifindex) = (&mut self.rewinder, self.ifindex);
                let [rawr, restored] = tables
                    .while_listening([m0, m1, m2, m3, m4, m5], |tables| {
                        rewinder.costs(&mut tables.kernel, &request, expected, ifindex)
                    })?;
                Ok(Cost { rawr, restored, bare: self.bare()? })
            }
            Route::RoundTrip(legs) => {
                tables.connect_two(*legs)?;
                let frame = frame(0, *legs);
                let frames = std::iter::repeat_n(frame.clone(), CALLS);
                cost(program.as_fd(), frames, comes_back(*legs), self.ifindex).map(Cost::of)
            }
            Route::EachAnother(legs) => {
                tables.connect_all(*legs)?;
                // Each call goes on where the last one ended.
                let starts = tables.order.iter().step_by(REPEAT as usize);
                let calls = starts.len().max(CALLS);
                let frames = starts.cycle().take(calls).map(|index| frame(*index, *legs));
                cost(program.as_fd(), frames, comes_back(*legs), self.ifindex).map(Cost::of)
            }
            Route::OneWay(legs) => {
                tables.connect_two(*legs)?;
                let [leg, other] = *legs;
                let leaves = frame(1, [other, leg]).len();
                let expected = Expected { action: leg.way.action(), length: leaves };
                let arrives = frame(0, *legs);
                let rewinder = &mut self.rewinder;
                let [rawr, restored] =
                    rewinder.costs(&mut tables.kernel, &arrives, expected, self.ifindex)?;
                Ok(Cost { rawr, restored, bare: self.bare()? })
            }
        }
    }

    /// What the kernel holds of the program: as it forwards, and with what answers Binding requests.
    fn size(&mut self) -> Result<[Row; 4]> {
        let mut forwarding = Kernel::load_with(GROUP, GROUP, false)?;
        let answering = &mut self.tables[0].kernel;
        let row = |of, bytes: u32| Row::new(SIZE, &[("of", of)], "bytes", vec![bytes.into()]);
        Ok([
            row("translated program", forwarding.translated_size()?),
            row("stack", stack_depth(&forwarding.instructions()?)?),
            row("translated program, with answers", answering.translated_size()?),
            row("stack, with answers", stack_depth(&answering.instructions()?)?),
        ])
    }
}

/// After an even number of runs a packet is on the leg where it began.
fn comes_back(legs: [Leg; 2]) -> Expected {
    const { assert!(REPEAT.is_multiple_of(2)) };
    Expected { action: legs[1].way.action(), length: frame(0, legs).len() }
}

impl Way {
    fn action(self) -> u32 {
        if self == Self::Redirect { action::REDIRECT } else { action::TX }
    }
}

/// An interface in a network namespace that goes when this process does.
fn own_interface() -> Result<u32> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .context("cannot leave the network")?;
    let arguments = ["link", "add", "bench0", "type", "veth", "peer", "name", "bench1"];
    let status = Command::new("ip").args(arguments).status().context("cannot run `ip`")?;
    ensure!(status.success(), "`ip {}` failed", arguments.join(" "));
    Ok(nix::net::if_::if_nametoindex("bench0")?)
}
