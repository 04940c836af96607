//! Throughput and latency from one end of a relay to the other, in network namespaces.

use std::time::Instant;

use anyhow::Result;
use bench_ebpf::FLOWS;
use rawr_tests::process::now;
use rawr_tests::{netns, rawr};

use self::contenders::{KINDS, Topology};
use self::throughput::{Entrant, Point};
use self::traffic::Traffic;
use crate::Run;
use crate::document::{Document, Row};
use crate::rounds::{self, Wanted};

mod check;
mod contenders;
mod lab;
mod latency;
mod mapped;
mod streams;
mod throughput;
mod traffic;
mod wire;

const METHOD: &[&str] = &[
    "Three network namespaces in a row for each contender: generator, relay, sink, joined by veth \
     pairs with a queue for each CPU. All contenders stay set up during the whole run and are \
     measured in turn.",
    "The generator is an XDP program run with live frames (BPF_PROG_TEST_RUN); it writes all headers \
     of each packet anew. Each packet is another flow's than the one before; a walk by the golden \
     section of their number visits all flows, neighbours far apart. The sink is an XDP program that \
     counts packets by flow.",
    "\"Flows in turn\": neighbouring flows follow each other instead, so that the processor can fetch \
     entries ahead.",
    "\"On a stick\", packets leave by the interface that they came in by, and the sink is where the \
     generator is.",
    "One frame of 4,096 is compared byte by byte with what has to come out, checksums included. \
     A wrong one ends the run without a result.",
    "\"1 core\": generator, relay and sink share one core. coturn and rawr's userspace path are \
     processes; they have a core to themselves, and a second one, the generator's, receives for them. \
     What is offered to them is raised by 30 % from step to step as long as that makes them deliver \
     more. On two cores, each core's generator has half of the flows.",
    "rawr has 1,000,000 sessions installed, both ways, whatever number of flows is in use. coturn and \
     the userspace path have 1,000, because each takes sockets.",
    "coturn gets ChannelData and sends plain datagrams, with one relay thread and without \
     authentication. Checksum offload is off, so that sockets have to compute what a network card \
     would.",
    "One core and two: the same flows and frames with one and with two in each round.",
    "\"ChannelData to UDP\" and \"UDP to ChannelData\": each flow is a client with one channel. rawr has \
     1,000,000 installed, both ways, in a channel table of 8,388,608 places; frames go in at the length \
     that is named and come out with a header of 4 bytes less or more.",
    "\"Binding requests\": of 1,000 clients, without attributes; answers are what counts, and sampled ones \
     have to tell the client its address. rawr answers in XDP, by the interface that requests come in by.",
    "Streams: four clients over TCP or TLS, each with a channel to a UDP peer of its own, write ChannelData \
     of 1,000 bytes as fast as it is taken, from one core. The server has the other one. Bytes are those of \
     the payload that reach the sink in 0.8 s. Users have passwords. rawr's program is on the interface \
     towards the peers alone.",
    "Delivered packets per second count what reaches the sink while the generator runs; loss is what \
     never does.",
    "Latency is from the generator's program to the sink's, by the kernel's monotonic clock, at 1,000 \
     flows and 200 bytes. Below 500,000 packets per second each packet is sent by itself, above that \
     the kernel hands over up to 16 at once.",
    rounds::RULE,
    "The reference is the limit (the bare XDP program) at the same point; of latency, its median. \
     Rounds of one point follow each other.",
];

pub(crate) fn run(run: &Run) -> Result<()> {
    netns::sweep();
    rawr::sweep();
    let begin = now();
    let mut traffic = Traffic::new()?;
    let mut entrants: Vec<Entrant> = Vec::new();
    for kind in KINDS {
        eprintln!("setting up {} ({})", kind.name, kind.topology.name());
        entrants.push((kind, kind.make(&mut traffic, FLOWS)?));
    }
    tell("set up", begin);
    let mut document = Document::new("netns", "cargo xtask bench netns".to_owned(), METHOD);
    // Processes come first: a quarter of an hour after its channels were bound, coturn delivered
    // nothing on them any more, whatever lifetimes it had been given.
    let (with_processes, without) =
        throughput::points().into_iter().partition::<Vec<_>, _>(throughput::takes_processes);
    measure_throughput(&mut traffic, &entrants, &with_processes, run.wanted(), &mut document)?;
    let begin = now();
    let (rows, discarded) =
        latency::measure(&mut traffic, &entrants, &document.rows, run.wanted())?;
    print_latency(&rows);
    tell("latency", begin);
    document.rows.extend(rows);
    document.discarded += discarded;
    let begin = now();
    let (rows, discarded) = streams::measure(&mut traffic, &entrants, run.wanted())?;
    print_streams(&rows);
    tell("streams", begin);
    document.rows.extend(rows);
    document.discarded += discarded;
    measure_throughput(&mut traffic, &entrants, &without, run.wanted(), &mut document)?;
    run.json.as_ref().map_or(Ok(()), |file| document.write(file))
}

/// Says how long a part took.
fn tell(part: &str, begin: Instant) {
    eprintln!("{part}: {:.0} s", begin.elapsed().as_secs_f64());
}

fn measure_throughput(
    traffic: &mut Traffic,
    entrants: &[Entrant],
    points: &[Point],
    wanted: Wanted,
    document: &mut Document,
) -> Result<()> {
    for topology in Topology::ALL {
        let begin = now();
        for &point in points.iter().filter(|point| point.topology == topology) {
            let (rows, discarded) = throughput::measure(traffic, entrants, point, wanted)?;
            print(point, &rows);
            document.rows.extend(rows);
            document.discarded += discarded;
        }
        tell(topology.name(), begin);
    }
    Ok(())
}

fn print(point: Point, rows: &[Row]) {
    let Point { topology, flows, bytes, in_turn, .. } = point;
    let order = if in_turn { ", in turn" } else { "" };
    println!("{}, {flows} flows{order}, {bytes} bytes:", topology.name());
    let rates: Vec<_> = rows.iter().filter(|row| row.table == point.table()).collect();
    for row in &rates {
        let ratio = row.ratio(rates[0]);
        println!(
            "  {:<20} {} core {:>7.3} Mpps ({:.3}-{:.3}), {:.3} of the limit ({:.3}-{:.3})",
            row.label("contender"),
            row.label("cores"),
            row.median / 1e6,
            row.least / 1e6,
            row.most / 1e6,
            ratio.median,
            ratio.least,
            ratio.most
        );
    }
}

fn print_latency(rows: &[Row]) {
    for row in rows {
        let [topology, load, contender, quantile] =
            ["topology", "load", "contender", "quantile"].map(|name| row.label(name));
        println!(
            "{topology:<20} {load:<17} {contender:<20} {quantile:<6} {:>9.1} us ({:.1}-{:.1})",
            row.median, row.least, row.most
        );
    }
}

fn print_streams(rows: &[Row]) {
    for row in rows {
        let (over, contender) = (row.label("over"), row.label("contender"));
        let [median, least, most] = [row.median, row.least, row.most].map(|rate| rate / 1e6);
        println!("{over:<4} {contender:<10} {median:>8.1} MB/s ({least:.1}-{most:.1})");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rawr_tests::privilege;

    use super::*;
    use crate::netns::traffic::Load;
    use crate::netns::wire::Carrier;

    /// What is measured, is right: every contender delivers packets of all flows, and sampled ones are
    /// what has to come out.
    #[test]
    fn every_contender_relays() {
        if !privilege::can_make_namespaces("every_contender_relays") {
            return;
        }
        netns::sweep();
        let flows = 64;
        let mut traffic = Traffic::new().unwrap();
        for kind in KINDS {
            let contender = kind.make(&mut traffic, flows).unwrap();
            for (stamped, rate) in [(false, None), (true, Some(20_000.0))] {
                let (shape, time) = (contender.shape(200), Duration::from_millis(300));
                let load = Load { shape, flows, in_turn: false, cores: 1, rate, stamped, time };
                let outcome = traffic.send(contender.lab(), &load).unwrap();
                check::check(contender.as_ref(), &load, &outcome).expect(kind.name);
                assert_eq!(outcome.flows, flows, "{}", kind.name);
                let timed = stamped && shape.carrier != Carrier::Binding;
                assert_eq!(outcome.latency(0.5).is_finite(), timed, "{}", kind.name);
            }
        }
    }
}
