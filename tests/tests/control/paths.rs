//! Where sessions meet, and how they move.

use std::time::Duration;

use rawr_nat::Attachment;
use rawr_proto::{Attributes, Credentials, Mac, MacToken, Method, Role, ServerId, decode};
use rawr_userspace::control::{Command, Count, LegKind, Neighbour, Server};

use super::direct::Direct;
use super::net::{DATA_PORT, Datagram, Nat, Net, ip, is_status, ms, secs};
use super::{assert_talk, gateway, root, secret};

const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

/// Attaches both clients of a session to a server each, and lets them settle.
fn meet(net: &mut Net, (a, at): (usize, usize), (b, bt): (usize, usize), with_root: Option<usize>) {
    for (client, server) in [(a, at), (b, bt)] {
        let mut config = net.config(client, server, 1);
        config.root = with_root.map(|root| net.stun(root));
        net.attach(client, config);
        net.run(ms(30));
    }
    net.run(secs(1));
    for client in [a, b] {
        net.clients[client].use_attachment(0);
    }
}

fn pair_kind(server: &Server, net: &Net) -> Option<LegKind> {
    server.sessions(net.clock()).next().and_then(|session| session.paired)
}

#[test]
fn peers_meet_at_a_root() {
    let mut net = Net::new();
    let server = net.add_server("198.51.100.1", root(1));
    let a = net.add_client("192.0.2.10", &secret(1), Role::A);
    let b = net.add_client("203.0.113.10", &secret(1), Role::B);
    meet(&mut net, (a, server), (b, server), None);
    assert!(net.clients[a].is_confirmed() && net.clients[b].is_confirmed());
    let forwarded = net.servers[server].forwarded;
    assert_talk(&mut net, a, b);
    assert!(net.servers[server].forwarded >= forwarded + 2);
    let counters = net.servers[server].server.counters();
    assert_eq!(counters.get(Count::PairedPeers), 1);
    assert_eq!(counters.get(Count::Escalated), 0);
}

#[test]
fn symmetric_nats_map_data_apart_from_control() {
    let mut net = Net::new();
    let server = net.add_server("198.51.100.1", root(1));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    net.clients[a].nat = Some(Nat::new("192.0.2.1"));
    net.clients[b].nat = Some(Nat::new("203.0.113.1"));
    meet(&mut net, (a, server), (b, server), None);
    assert_talk(&mut net, a, b);
}

#[test]
fn peers_meet_at_their_gateway() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    meet(&mut net, (a, near), (b, near), Some(top));
    assert_talk(&mut net, a, b);
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Downstream));
    net.run(secs(10));
    assert_eq!(net.servers[top].server.session_count(), 0, "the root's leg was not released");
    assert_eq!(net.servers[near].ports.len(), 2);
    assert_talk(&mut net, a, b);
}

/// Two routers under one ISP gateway under a root.
fn tree() -> (Net, [usize; 4], [usize; 2]) {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let isp = net.add_server("192.0.2.1", gateway(2, &[]));
    let left = net.add_server("192.0.2.11", gateway(3, &["192.0.2.1"]));
    let right = net.add_server("192.0.2.12", gateway(4, &["192.0.2.1"]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    (net, [top, isp, left, right], [a, b])
}

#[test]
fn routers_meet_at_their_isp() {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    meet(&mut net, (a, left), (b, right), Some(top));
    assert!(net.clients[a].is_confirmed() && net.clients[b].is_confirmed());
    assert_talk(&mut net, a, b);
    net.run(secs(10));
    assert_eq!(pair_kind(&net.servers[isp].server, &net), Some(LegKind::Downstream));
    assert_eq!(pair_kind(&net.servers[left].server, &net), Some(LegKind::Upstream));
    assert_eq!(net.servers[top].server.session_count(), 0, "the root's leg was not released");
    let at_root = net.servers[top].forwarded;
    assert_talk(&mut net, a, b);
    assert_eq!(net.servers[top].forwarded, at_root);
}

#[test]
fn peers_of_different_providers_meet_at_the_root() {
    let (mut net, [top, isp, left, _], [a, _]) = tree();
    let c = net.add_client("203.0.113.10", &secret(1), Role::B);
    meet(&mut net, (a, left), (c, top), Some(top));
    assert_talk(&mut net, a, c);
    assert_eq!(pair_kind(&net.servers[isp].server, &net), Some(LegKind::Upstream));
    assert_eq!(pair_kind(&net.servers[top].server, &net), Some(LegKind::Downstream));
}

#[test]
fn parent_dies_and_comes_back() {
    parent_comes_back(false);
}

#[test]
fn move_loses_nothing_even_if_status_is_lost() {
    parent_comes_back(true);
}

fn parent_comes_back(loses_status: bool) {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    meet(&mut net, (a, left), (b, right), Some(top));
    net.run(secs(10));
    let paths = [net.clients[a].path, net.clients[b].path];

    net.servers[isp].is_up = false;
    net.run(ms(2_500));
    assert_talk(&mut net, a, b);
    assert_eq!(pair_kind(&net.servers[top].server, &net), Some(LegKind::Downstream));

    // It comes back with nothing in its memory.
    let config = net.servers[isp].server.config().clone();
    net.servers[isp].server = Server::new(config, [77; 32], net.clock());
    net.servers[isp].flows.clear();
    net.servers[isp].ports.clear();
    net.servers[isp].is_up = true;
    net.loses_status = loses_status;
    stream_without_loss(&mut net, a, b, 12);
    let carried = net.servers[left].server.counters().get(Count::Carried)
        + net.servers[right].server.counters().get(Count::Carried);
    assert_eq!(carried > 0, loses_status);
    assert_eq!(pair_kind(&net.servers[isp].server, &net), Some(LegKind::Downstream));
    net.run(secs(5));
    assert_eq!(net.servers[top].server.session_count(), 0, "the root's legs were not released");
    assert_talk(&mut net, a, b);
    let counters = net.servers[left].server.counters();
    assert_eq!(counters.get(Count::ParentDown), 1);
    assert_eq!([net.clients[a].path, net.clients[b].path], paths, "the peers had to move");
}

/// Sends a numbered datagram each way every 10 ms, and checks that each arrives once.
fn stream_without_loss(net: &mut Net, a: usize, b: usize, seconds: u64) {
    for client in [a, b] {
        net.clients[client].received.clear();
    }
    let count = seconds * 100;
    for number in 0..count {
        for client in [a, b] {
            net.send(client, format!("{number}").as_bytes());
        }
        net.run(ms(10));
    }
    net.run(ms(200));
    for client in [a, b] {
        let mut numbers: Vec<u64> =
            net.clients[client].texts().iter().map(|text| text.parse().unwrap()).collect();
        numbers.sort_unstable();
        let wanted: Vec<u64> = (0..count).collect();
        let lost: Vec<_> = wanted.iter().filter(|number| !numbers.contains(number)).collect();
        assert_eq!(numbers, wanted, "lost {lost:?} on the way to {client}");
    }
}

fn neighbour(net: &mut Net, server: usize, address: &str, mac: Option<Mac>) {
    let clock = net.clock();
    let change = Neighbour { ip: ip(address), mac, ifindex: 2 };
    net.servers[server].server.neighbour(clock, change);
    net.drain_server(server);
}

/// A asks its gateway for B, which is a neighbour there and has asked nobody.
fn asks_for_target(net: &mut Net, near: usize, top: usize, a: usize, token: MacToken) {
    let mut config = net.config(a, near, 1);
    config.mac_key = Some(secret(1).mac_key());
    config.target_mac = Some(token);
    config.target_port = Some(DATA_PORT);
    config.root = Some(net.stun(top));
    net.attach(a, config);
}

fn target_is_found(token: MacToken) {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    neighbour(&mut net, near, "10.0.1.3", Some(Mac([2, 0, 0, 0, 0, 8])));
    neighbour(&mut net, near, "10.0.1.2", Some(MAC));
    asks_for_target(&mut net, near, top, a, token);
    net.run(secs(1));
    assert!(net.clients[a].is_confirmed());
    net.clients[a].use_attachment(0);
    net.clients[b].path = net.clients[b].offers.last().copied();
    assert_talk(&mut net, a, b);
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Target));
    net.run(secs(10));
    assert_eq!(net.servers[top].server.session_count(), 0);
    assert_eq!(net.servers[near].server.counters().get(Count::PairedTarget), 1);
    assert_eq!(net.servers[near].sweeps, 0);
}

#[test]
fn target_that_has_not_asked_is_found_by_its_mac() {
    target_is_found(MacToken::Raw(MAC));
}

#[test]
fn target_that_has_not_asked_is_found_by_its_blinded_mac() {
    target_is_found(secret(1).mac_key().blind(MAC));
}

#[test]
fn target_that_becomes_known_later_is_found() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    asks_for_target(&mut net, near, top, a, secret(1).mac_key().blind(MAC));
    net.run(secs(2));
    assert!(!net.clients[a].is_confirmed());
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Upstream));
    assert!(net.servers[near].sweeps > 0, "silent hosts were not asked");

    neighbour(&mut net, near, "10.0.1.2", Some(MAC));
    net.run(secs(1));
    net.clients[a].use_attachment(0);
    net.clients[b].path = net.clients[b].offers.last().copied();
    assert_talk(&mut net, a, b);
    net.run(secs(10));
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Target));
    assert_eq!(net.servers[top].server.session_count(), 0);
}

#[test]
fn target_that_asks_later_gets_its_own_leg() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    neighbour(&mut net, near, "10.0.1.2", Some(MAC));
    asks_for_target(&mut net, near, top, a, MacToken::Raw(MAC));
    net.run(secs(1));
    let config = net.config(b, near, 1);
    net.attach(b, config);
    net.run(secs(10));
    net.clients[a].use_attachment(0);
    net.clients[b].use_attachment(0);
    assert_talk(&mut net, a, b);
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Downstream));
    assert_eq!(net.servers[near].ports.len(), 2);
}

#[test]
fn silent_target_is_given_up() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    neighbour(&mut net, near, "10.0.1.2", Some(MAC));
    asks_for_target(&mut net, near, top, a, MacToken::Raw(MAC));
    net.run(secs(11));
    assert_eq!(net.servers[near].server.counters().get(Count::ExpiredTarget), 1);
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Upstream));
}

#[test]
fn joined_target_is_lost_if_nothing_arrives_from_it() {
    let mut net = Net::new();
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    neighbour(&mut net, near, "10.0.1.2", Some(MAC));
    asks_for_target(&mut net, near, near, a, MacToken::Raw(MAC));
    net.run(secs(1));
    let locals: Vec<_> = net.servers[near].ports.keys().copied().collect();
    for _ in 0..10 {
        net.run(secs(10));
        let clock = net.clock();
        net.servers[near].server.legs_active(clock, &locals);
    }
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Target));
    net.clients[b].is_up = false;
    net.run(secs(61));
    assert_eq!(pair_kind(&net.servers[near].server, &net), None);
}

#[test]
fn newer_epoch_replaces_a_leg_without_loss() {
    let mut net = Net::new();
    let server = net.add_server("198.51.100.1", root(1));
    let a = net.add_client("192.0.2.10", &secret(1), Role::A);
    let b = net.add_client("203.0.113.10", &secret(1), Role::B);
    meet(&mut net, (a, server), (b, server), None);
    let config = net.config(a, server, 2);
    net.attach(a, config);
    stream_without_loss(&mut net, a, b, 1);
    net.clients[a].use_attachment(1);
    stream_without_loss(&mut net, a, b, 6);
    assert_eq!(net.servers[server].ports.len(), 2, "the old port was not closed");
}

#[test]
fn released_session_leaves_nothing_behind() {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    meet(&mut net, (a, left), (b, right), Some(top));
    for client in [a, b] {
        let now = net.now;
        net.clients[client].attachments[0].release(now);
        net.drain_client(client);
    }
    net.run(secs(10));
    for server in [top, isp, left, right] {
        let node = &net.servers[server];
        assert_eq!(node.server.session_count(), 0, "server {server}");
        assert!(node.ports.is_empty() && node.flows.is_empty(), "server {server}");
    }
}

#[test]
fn vanished_peers_expire_everywhere() {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    meet(&mut net, (a, left), (b, right), Some(top));
    net.clients[a].is_up = false;
    net.clients[b].is_up = false;
    net.run(secs(400));
    for server in [top, isp, left, right] {
        let node = &net.servers[server];
        assert_eq!(node.server.session_count(), 0, "server {server}");
        assert!(node.ports.is_empty() && node.flows.is_empty(), "server {server}");
    }
}

#[test]
fn restart_from_a_snapshot_loses_nothing() {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    meet(&mut net, (a, left), (b, right), Some(top));
    net.run(secs(7));
    for server in [left, isp, right] {
        let clock = net.clock();
        let node = &mut net.servers[server];
        let text = serde_json::to_string(&node.server.snapshot(clock)).unwrap();
        let config = node.server.config().clone();
        let snapshot = serde_json::from_str(&text).unwrap();
        node.server = Server::restore(config, [99; 32], clock, snapshot).unwrap();
        // The kernel has kept the flows; the ports are opened again on request.
        node.ports.clear();
        net.drain_server(server);
        stream_without_loss(&mut net, a, b, 2);
    }
    stream_without_loss(&mut net, a, b, 200);
    for server in [left, isp, right] {
        assert_eq!(net.servers[server].server.session_count(), 1);
        assert_eq!(net.servers[server].ports.len(), 2, "server {server}");
    }
    assert_eq!(net.servers[top].server.session_count(), 0);
}

/// What requests of `method` say that arrive at a server within `span`.
fn requests_of(net: &mut Net, to: usize, method: Method, span: Duration) -> Vec<Attributes> {
    let to = net.stun(to);
    net.tap.clear();
    net.run(span);
    let messages = net.tap.iter().filter(|datagram| datagram.to == to);
    let messages = messages.filter_map(|datagram| Some(decode(&datagram.bytes).ok()?.message));
    let messages = messages.filter(|message| message.method == method);
    messages.map(|message| message.attributes).collect()
}

#[test]
fn root_is_told_no_mac_and_parent_is() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let isp = net.add_server("192.0.2.1", gateway(2, &[]));
    let left = net.add_server("192.0.2.11", gateway(3, &["192.0.2.1"]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    asks_for_target(&mut net, left, top, a, secret(1).mac_key().blind(MAC));
    let at_parent = requests_of(&mut net, isp, Method::Connect, secs(1));
    let full = at_parent.iter().filter(|request| request.session_key.is_some());
    let full: Vec<_> = full.collect();
    assert!(!full.is_empty());
    for request in full {
        assert!(request.mac_key.is_some() && request.target_mac.is_some());
        assert_eq!(request.root, Some(net.stun(top)));
        assert_eq!(
            (request.hops.as_slice(), request.hop_limit),
            (&[ServerId([3; 8])][..], Some(7))
        );
    }
    let to_root = net.stun(top);
    let at_root = net.tap.iter().filter(|datagram| datagram.to == to_root);
    let at_root: Vec<_> = at_root.map(|it| decode(&it.bytes).unwrap().message.attributes).collect();
    assert!(at_root.iter().any(|request| request.session_key.is_some()));
    for request in at_root {
        assert!(request.mac_key.is_none() && request.target_mac.is_none());
        assert!(request.target_port.is_none() && request.root.is_none());
    }
}

#[test]
fn second_parent_takes_over_and_gives_back() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let first = net.add_server("192.0.2.1", gateway(2, &[]));
    let second = net.add_server("192.0.2.2", gateway(5, &[]));
    let parents = ["192.0.2.1", "192.0.2.2"];
    let left = net.add_server("192.0.2.11", gateway(3, &parents));
    let right = net.add_server("192.0.2.12", gateway(4, &parents));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("10.0.1.2", &secret(1), Role::B);
    meet(&mut net, (a, left), (b, right), Some(top));
    assert_eq!(pair_kind(&net.servers[first].server, &net), Some(LegKind::Downstream));
    net.servers[first].is_up = false;
    net.run(ms(2_500));
    assert_talk(&mut net, a, b);
    assert_eq!(pair_kind(&net.servers[second].server, &net), Some(LegKind::Downstream));
    // The first one was only unreachable: it has its sessions still.
    net.servers[first].is_up = true;
    stream_without_loss(&mut net, a, b, 12);
    let at_second = net.servers[second].forwarded;
    assert_talk(&mut net, a, b);
    assert_eq!(net.servers[second].forwarded, at_second);
    net.run(secs(10));
    for server in [top, second] {
        assert_eq!(net.servers[server].server.session_count(), 0, "server {server}");
    }
}

#[test]
fn gateway_proves_itself_to_its_parent_by_credentials() {
    let mut net = Net::new();
    let user = Credentials { username: "left".to_owned(), password: "sesame".to_owned() };
    let mut closed = root(1);
    closed.trusted.clear();
    closed.users = vec![user.clone()];
    let top = net.add_server("198.51.100.1", closed);
    let mut near = gateway(2, &["198.51.100.1"]);
    near.parents[0].credentials = Some(user);
    let near = net.add_server("192.0.2.1", near);
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let config = net.config(a, near, 1);
    net.attach(a, config);
    net.run(secs(1));
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Upstream));
    assert_eq!(net.servers[top].server.session_count(), 1);
    net.run(secs(300));
    assert_eq!(net.servers[top].server.session_count(), 1, "not refreshed");
}

#[test]
fn peers_meet_over_ipv6() {
    let mut net = Net::new();
    let server = net.add_server("2001:db8:ffff::1", root(1));
    let a = net.add_client("2001:db8:1::2", &secret(1), Role::A);
    let b = net.add_client("2001:db8:2::2", &secret(1), Role::B);
    meet(&mut net, (a, server), (b, server), None);
    assert_talk(&mut net, a, b);
}

#[test]
fn root_that_was_unreachable_is_tried_again() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    net.servers[top].is_up = false;
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let mut config = net.config(a, near, 1);
    config.root = Some(net.stun(top));
    net.attach(a, config);
    net.run(secs(10));
    assert_eq!(net.servers[near].server.counters().get(Count::UpstreamLost), 2);
    net.servers[top].is_up = true;
    net.run(secs(7));
    assert_eq!(pair_kind(&net.servers[near].server, &net), Some(LegKind::Upstream));
}

#[test]
fn peer_that_probes_late_is_told_that_the_far_end_is_there() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let a = net.add_client("10.0.0.2", &secret(1), Role::A);
    let b = net.add_client("203.0.113.10", &secret(1), Role::B);
    let mut config = net.config(a, near, 1);
    config.root = Some(net.stun(top));
    let late = Attachment::new(config, 1, net.now);
    net.clients[a].attachments.push(late);
    net.drain_client(a);
    let config = net.config(b, top, 1);
    net.attach(b, config);
    net.run(secs(2));
    net.tap.clear();
    let now = net.now;
    net.clients[a].attachments[0].start_probing(now);
    net.drain_client(a);
    net.run(ms(100));
    let to_a = |datagram: &&Datagram| datagram.to.ip() == ip("10.0.0.2") && is_status(datagram);
    assert_eq!(net.tap.iter().filter(to_a).count(), 1);
    assert!(net.clients[a].is_confirmed());
}

/// Whoever is told sends at once, so the data plane has to know before.
#[test]
fn a_pair_is_made_before_its_peers_are_told() {
    let mut direct = Direct::new(root(1));
    let secret = secret(1);
    let [a, b] = ["192.0.2.10:5000", "203.0.113.10:5000"].map(|at| at.parse().unwrap());
    let near = direct.connect(a, &secret, Role::A, 1).unwrap();
    let far = direct.connect(b, &secret, Role::B, 1).unwrap();
    assert!(direct.probe(near, a, &secret, Role::A).is_some());
    let first = direct.probe_bytes(&secret, Role::B, None);
    let challenge = decode(&direct.data(far, b, &first)[0].1).unwrap().message;
    let probe = direct.probe_bytes(&secret, Role::B, challenge.attributes.nonce);

    let commands = direct.wanted_after(far, b, &probe);
    let pair = commands.iter().position(|it| matches!(it, Command::Pair { .. })).unwrap();
    let told: Vec<_> = (0..commands.len())
        .filter(|&at| matches!(commands[at], Command::Transmit { to, .. } if to == a || to == b))
        .collect();
    assert!(told.len() >= 2 && told.iter().all(|&at| at > pair), "{commands:?}");
}
