//! A path that loses, delays and reorders: sessions come about all the same, the kernel carries what
//! arrives, and every datagram is accounted for. The path is made of the kernel's netem, which not
//! every kernel has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::app::{Percentiles, Report};
use rawr_tests::lab::{Family, Lab};
use rawr_tests::rawr::Traffic;
use rawr_tests::scene::scenario;
use rawr_tests::stream::{Reports, Settings};
use rawr_tests::topology;
use serde_json::Value;

/// Of each direction between peer `a` and its router. The jitter is ten times the distance between two
/// datagrams, so it reorders.
const NETEM: &str = "delay 40ms 10ms loss 5%";
/// Where it happens: host and interface that send towards the relay, and towards the peer.
const ENDS: [(&str, &str); 2] = [("a", "eth0"), ("router-a", "lan")];
const SETUPS: usize = 5;
const STREAM: Duration = Duration::from_secs(5);
const PATH_LIMIT: Duration = Duration::from_secs(10);
const KERNEL_SHARE: f64 = 0.999;
/// Control messages among the dropped packets of one stream and direction: more than the peers and
/// their keepalives send in that time.
const CONTROL: u64 = 20;

#[test]
#[ignore = "needs sch_netem: `cargo xtask vm`"]
fn a_lossy_path_is_relayed_ipv4() {
    lossy_path(Family::Ipv4);
}

#[test]
#[ignore = "needs sch_netem: `cargo xtask vm`"]
fn a_lossy_path_is_relayed_ipv6() {
    lossy_path(Family::Ipv6);
}

fn lossy_path(family: Family) {
    scenario("a_lossy_path_is_relayed", |scene| {
        let site = topology::two_homes(scene)?;
        for (host, interface) in ENDS {
            let add = format!("tc qdisc add dev {interface} root netem {NETEM}");
            scene.lab.at(host)?.sh(&add)?;
        }
        let [a, b] = (site.joins)(family);
        let mut times = Vec::new();
        for _ in 0..SETUPS {
            let session = scene.session(&a, &b)?;
            times.push(u32::try_from(session.connected()?.as_micros())?);
            scene.leave(session)?;
        }
        let times = Percentiles::of(times);
        eprintln!("setup of {SETUPS} sessions, in microseconds: {times:?}");

        let session = scene.session(&a, &b)?;
        for peer in [&session.a, &session.b] {
            peer.goes_by(&["root"], PATH_LIMIT)?;
        }
        let (errors, before) = (scene.checksum_errors()?, drops(&scene.lab)?);
        let (reports, traffic) =
            scene.carry(&session, Settings::default(), STREAM, &site.relays())?;
        let after = drops(&scene.lab)?;
        let dropped = [after[0] - before[0], after[1] - before[1]];
        eprintln!("netem dropped {dropped:?}; {reports:?}; {traffic:?}");
        ensure!(scene.checksum_errors()? == errors, "a host received a wrong checksum");
        accounts(&reports, dropped)?;
        is_in_kernel(traffic[0], &reports, dropped[0])
    })
}

/// Each datagram arrived once and as it was sent, or is one that netem dropped.
fn accounts(Reports([a, b]): &Reports, dropped: [u64; 2]) -> Result<()> {
    let directions = [("to the relay", a, b), ("from the relay", b, a)];
    for ((name, sender, receiver), dropped) in directions.into_iter().zip(dropped) {
        let Report { corrupted, duplicated, reordered, .. } = *receiver;
        ensure!((corrupted, duplicated) == (0, 0), "{name}: {receiver:?}");
        let lost = sender.sent.checked_sub(receiver.received);
        let lost = lost.with_context(|| format!("{name}: more came than went"))?;
        ensure!(lost > 0 && reordered > 0, "{name}: netem did nothing: {receiver:?}");
        ensure!(
            (lost..=lost + CONTROL).contains(&dropped),
            "{name}: {lost} of {} datagrams were lost, netem dropped {dropped} packets",
            sender.sent
        );
    }
    Ok(())
}

/// The relay's kernel forwarded all that reached it: what `b` sent, and what netem left of what `a`
/// sent.
fn is_in_kernel(traffic: Traffic, Reports([a, b]): &Reports, dropped: u64) -> Result<()> {
    let reached = (a.sent + b.sent).saturating_sub(dropped);
    let enough = KERNEL_SHARE * reached as f64;
    ensure!(
        traffic.kernel_share() >= KERNEL_SHARE && traffic.kernel as f64 >= enough,
        "{traffic:?} of {reached} datagrams that reached the relay"
    );
    Ok(())
}

/// Packets that netem has dropped at each of [`ENDS`].
fn drops(lab: &Lab) -> Result<[u64; 2]> {
    let mut drops = [0; 2];
    for (count, (host, interface)) in drops.iter_mut().zip(ENDS) {
        let text = lab.at(host)?.sh(&format!("tc -s -j qdisc show dev {interface}"))?;
        let listing: Value = serde_json::from_str(&text)?;
        let number = listing.pointer("/0/drops").and_then(Value::as_u64);
        *count = number.with_context(|| format!("no drops in {text}"))?;
    }
    Ok(drops)
}
