//! The laboratory itself: NATs translate as their names say, switches and wires carry checked
//! streams, and everything is gone afterwards.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use rawr_tests::app::Shape;
use rawr_tests::lab::{Family, Lab, Subnet};
use rawr_tests::nat::{self, Nat};
use rawr_tests::netns::Netns;
use rawr_tests::privilege::can_make_namespaces;
use rawr_tests::stream::{Endpoint, Settings, Stream};

const INSIDE: Subnet = Subnet::new([10, 0, 1], [0xfd00, 1, 0, 0]);
const OUTSIDE: Subnet = Subnet::new([203, 0, 113], [0x2001, 0xdb8, 0, 1]);
const DESTINATIONS: u16 = 6;

#[test]
fn a_symmetric_nat_maps_each_destination_to_a_port_of_its_own() -> Result<()> {
    if !can_make_namespaces("a_symmetric_nat_maps_each_destination_to_a_port_of_its_own") {
        return Ok(());
    }
    let lab = behind_nat("symmetric", Nat::Symmetric)?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let mapped = mappings(&lab, family)?;
        let ports: BTreeSet<_> = mapped.iter().map(SocketAddr::port).collect();
        assert_eq!(ports.len(), usize::from(DESTINATIONS), "{mapped:?}");
        assert!(mapped.iter().all(|each| each.ip() == OUTSIDE.address(family, 11)), "{mapped:?}");
        assert!(!answers_strangers(&lab, family, mapped[0])?);
    }
    Ok(())
}

#[test]
fn a_home_nat_keeps_one_mapping() -> Result<()> {
    if !can_make_namespaces("a_home_nat_keeps_one_mapping") {
        return Ok(());
    }
    let lab = behind_nat("home", Nat::Home)?;
    let ipv4: BTreeSet<_> = mappings(&lab, Family::Ipv4)?.into_iter().collect();
    assert_eq!(ipv4.len(), 1, "{ipv4:?}");
    assert!(ipv4.iter().all(|each| each.ip() == OUTSIDE.address(Family::Ipv4, 11)));

    let ipv6 = mappings(&lab, Family::Ipv6)?;
    assert!(ipv6.iter().all(|each| each.ip() == INSIDE.address(Family::Ipv6, 2)), "{ipv6:?}");
    for mapped in ipv4.into_iter().chain(ipv6) {
        let family = if mapped.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 };
        assert!(!answers_strangers(&lab, family, mapped)?);
    }
    Ok(())
}

#[test]
fn a_stream_through_a_router_and_a_switch_arrives_whole() -> Result<()> {
    if !can_make_namespaces("a_stream_through_a_router_and_a_switch_arrives_whole") {
        return Ok(());
    }
    let mut lab = Lab::new("plain")?;
    lab.switch("lan")?;
    lab.hosts(&["a", "router", "b"])?;
    lab.plug(&INSIDE, "lan", ("a", "eth0", 2))?;
    lab.plug(&INSIDE, "lan", ("router", "lan", 1))?;
    lab.wire(&OUTSIDE, ("router", "wan", 1), ("b", "eth0", 2))?;
    lab.default_route("a", &INSIDE, 1)?;
    lab.default_route("b", &OUTSIDE, 1)?;
    nat::forward(&*lab.at("router")?)?;

    let (a, b) = (lab.at("a")?, lab.at("b")?);
    for family in [Family::Ipv4, Family::Ipv6] {
        for shape in [Shape::Plain, Shape::Stun] {
            let (left, right) = (INSIDE.socket(family, 2, 4000), OUTSIDE.socket(family, 2, 4000));
            let ends = [
                Endpoint { host: &a, bind: left, to: right },
                Endpoint { host: &b, bind: right, to: left },
            ];
            let settings = Settings { shape, ..Settings::default() };
            let mut stream = Stream::start(ends, settings, lab.directory())?;
            stream.flows(200, Duration::from_secs(5))?;
            stream.stop()?.ensure_perfect()?;
        }
    }
    assert_eq!((a.checksum_errors()?, b.checksum_errors()?), (0, 0));
    Ok(())
}

#[test]
fn nothing_is_left_behind() -> Result<()> {
    if !can_make_namespaces("nothing_is_left_behind") {
        return Ok(());
    }
    let mut lab = Lab::new("left")?;
    lab.hosts(&["a"])?;
    let (namespace, directory) =
        (Path::new("/run/netns").join(lab.at("a")?.name()), lab.directory().to_owned());
    assert!(namespace.exists() && directory.exists());
    drop(lab);
    assert!(!namespace.exists(), "{} is still there", namespace.display());
    assert!(!directory.exists(), "{} is still there", directory.display());
    Ok(())
}

#[test]
fn a_changed_mac_address_is_announced() -> Result<()> {
    if !can_make_namespaces("a_changed_mac_address_is_announced") {
        return Ok(());
    }
    let mut lab = Lab::new("mac")?;
    lab.hosts(&["a", "b"])?;
    lab.wire(&INSIDE, ("a", "eth0", 1), ("b", "eth0", 2))?;
    let (a, b) = (lab.at("a")?, lab.at("b")?);
    for family in [Family::Ipv4, Family::Ipv6] {
        let socket = b.run(|| UdpSocket::bind(INSIDE.socket(family, 2, 4000)))??;
        let _ = socket.send_to(b"resolve", INSIDE.socket(family, 1, 4000));
    }
    std::thread::sleep(Duration::from_millis(1100));
    a.sh("ip link set eth0 address 02:00:00:00:00:77")?;
    std::thread::sleep(Duration::from_millis(100));
    let neighbours = b.sh("ip neigh show dev eth0")?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let address = INSIDE.address(family, 1).to_string();
        let entry = neighbours.lines().find(|line| line.starts_with(&address));
        let entry = entry.with_context(|| format!("{address} is not in\n{neighbours}"))?;
        assert!(entry.contains("02:00:00:00:00:77"), "{entry}");
    }
    Ok(())
}

/// Host `a` behind a router with a NAT, and host `server` outside.
fn behind_nat(label: &str, kind: Nat) -> Result<Lab> {
    let mut lab = Lab::new(label)?;
    lab.hosts(&["a", "router", "server"])?;
    lab.wire(&INSIDE, ("router", "lan", 1), ("a", "eth0", 2))?;
    lab.wire(&OUTSIDE, ("router", "wan", 11), ("server", "eth0", 1))?;
    lab.default_route("a", &INSIDE, 1)?;
    lab.default_route("server", &OUTSIDE, 11)?;
    kind.apply(&*lab.at("router")?, "wan")?;
    Ok(lab)
}

/// Where one socket of `a` seems to be, as seen by several ports of the server in turn.
fn mappings(lab: &Lab, family: Family) -> Result<Vec<SocketAddr>> {
    let client = socket(&*lab.at("a")?, INSIDE.socket(family, 2, 5000))?;
    (0..DESTINATIONS)
        .map(|number| {
            let address = OUTSIDE.socket(family, 1, 6000 + number);
            let server = socket(&*lab.at("server")?, address)?;
            client.send_to(b"where am I", address)?;
            let (_, from) = server.recv_from(&mut [0; 64])?;
            server.send_to(b"there", from)?;
            client.recv_from(&mut [0; 64]).context("the answer did not come through")?;
            Ok(from)
        })
        .collect()
}

/// Whether a packet from a port that nobody asked reaches `a` through a mapping.
fn answers_strangers(lab: &Lab, family: Family, mapped: SocketAddr) -> Result<bool> {
    let client = socket(&*lab.at("a")?, INSIDE.socket(family, 2, 5000))?;
    let stranger = socket(&*lab.at("server")?, OUTSIDE.socket(family, 1, 7000))?;
    stranger.send_to(b"let me in", mapped)?;
    client.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(client.recv_from(&mut [0; 64]).is_ok())
}

fn socket(host: &Netns, address: SocketAddr) -> Result<UdpSocket> {
    let socket = host.run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}
