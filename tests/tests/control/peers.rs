//! The library's peers against these servers.

use rawr_nat::{Interface, PathKind, Peer, PeerConfig, PeerEvent, ServerConfig};
use rawr_proto::{Mac, Role};
use rawr_userspace::control::{Count, Neighbour, Server};

use super::net::{DATA_PORT, Nat, Net, ip, ms, secs};
use super::{assert_talk, gateway, root, secret};

/// A peer that knows a root and gateways, behind a symmetric NAT unless it is on the open internet.
fn add_peer(
    net: &mut Net,
    (address, outside): (&str, Option<&str>),
    role: Role,
    top: usize,
    gateways: &[usize],
) -> usize {
    let secret = secret(1);
    let number = net.add_client(address, &secret, role);
    net.clients[number].nat = outside.map(Nat::new);
    let mac = Mac([2, 0, 0, 0, 0, 10 + role as u8]);
    let config = PeerConfig {
        secret,
        role,
        root: Some(ServerConfig::from(net.stun(top))),
        gateways: gateways.iter().map(|server| ServerConfig::from(net.stun(*server))).collect(),
        interfaces: vec![Interface { address: ip(address), prefix_len: 24, mac: Some(mac) }],
        data_port: DATA_PORT,
        epoch: 1_700_000_000_000,
        raw_mac: false,
        lifetime: 120,
    };
    let now = net.now;
    net.clients[number].peer = Some(Peer::new(config, 7 + number as u64, now));
    net.drain_client(number);
    number
}

fn kind(net: &Net, client: usize) -> Option<PathKind> {
    net.clients[client].peer.as_ref()?.path().map(|path| path.kind)
}

/// Two routers under one ISP gateway under a root, a peer behind each router.
fn tree() -> (Net, [usize; 4], [usize; 2]) {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let isp = net.add_server("192.0.2.1", gateway(2, &[]));
    let left = net.add_server("192.0.2.11", gateway(3, &["192.0.2.1"]));
    let right = net.add_server("192.0.2.12", gateway(4, &["192.0.2.1"]));
    let a = add_peer(&mut net, ("10.0.0.2", None), Role::A, top, &[left]);
    let b = add_peer(&mut net, ("10.0.1.2", None), Role::B, top, &[right]);
    (net, [top, isp, left, right], [a, b])
}

#[test]
fn meet_at_the_root_from_behind_symmetric_nats() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let a = add_peer(&mut net, ("10.0.0.2", Some("192.0.2.1")), Role::A, top, &[]);
    let b = add_peer(&mut net, ("10.0.1.2", Some("203.0.113.1")), Role::B, top, &[]);
    net.run(secs(1));
    assert_talk(&mut net, a, b);
    assert_eq!([kind(&net, a), kind(&net, b)], [Some(PathKind::Root); 2]);
}

#[test]
fn nat_that_forgets_is_overcome() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let a = add_peer(&mut net, ("10.0.0.2", Some("192.0.2.1")), Role::A, top, &[]);
    let b = add_peer(&mut net, ("10.0.1.2", Some("203.0.113.1")), Role::B, top, &[]);
    net.run(secs(1));
    assert_talk(&mut net, a, b);
    net.clients[a].nat.as_mut().unwrap().reboot();
    net.run(secs(3));
    assert_talk(&mut net, a, b);
}

#[test]
fn meet_at_their_isp_and_survive_its_death() {
    let (mut net, [top, isp, left, _], [a, b]) = tree();
    net.run(secs(1));
    assert_talk(&mut net, a, b);
    let at_isp = net.servers[isp].forwarded;
    assert!(at_isp > 0);
    net.run(secs(10));
    assert_eq!(net.servers[top].server.session_count(), 0);

    net.servers[isp].is_up = false;
    net.run(ms(2_900));
    assert_talk(&mut net, a, b);
    assert!(net.servers[top].forwarded > 0, "not over the root");

    let config = net.servers[isp].server.config().clone();
    net.servers[isp].server = Server::new(config, [77; 32], net.clock());
    net.servers[isp].flows.clear();
    net.servers[isp].ports.clear();
    net.servers[isp].is_up = true;
    net.run(secs(30));
    let (at_root, at_isp) = (net.servers[top].forwarded, net.servers[isp].forwarded);
    assert_talk(&mut net, a, b);
    assert_eq!(net.servers[top].forwarded, at_root, "still over the root");
    assert!(net.servers[isp].forwarded > at_isp);
    assert!(net.servers[left].server.counters().get(Count::Moved) > 0);
}

#[test]
fn first_router_dies_and_comes_back() {
    let (mut net, [top, isp, left, right], [a, b]) = tree();
    net.run(secs(10));
    assert_eq!([kind(&net, a), kind(&net, b)], [Some(PathKind::Gateway); 2]);
    net.servers[left].is_up = false;
    net.run(ms(2_900));
    assert_talk(&mut net, a, b);
    assert_eq!(kind(&net, a), Some(PathKind::Root));

    let config = net.servers[left].server.config().clone();
    net.servers[left].server = Server::new(config, [78; 32], net.clock());
    net.servers[left].flows.clear();
    net.servers[left].ports.clear();
    net.servers[left].is_up = true;
    net.run(secs(60));
    assert_eq!(kind(&net, a), Some(PathKind::Gateway));
    let at_root = net.servers[top].forwarded;
    assert_talk(&mut net, a, b);
    assert_eq!(net.servers[top].forwarded, at_root, "still over the root");
    net.run(secs(300));
    for server in [isp, left, right] {
        assert_eq!(net.servers[server].server.session_count(), 1);
        assert_eq!(net.servers[server].ports.len(), 2, "server {server}");
    }
    assert_talk(&mut net, a, b);
}

#[test]
fn target_that_knows_no_gateway_is_reached_by_its_mac() {
    let mut net = Net::new();
    let top = net.add_server("198.51.100.1", root(1));
    let near = net.add_server("192.0.2.1", gateway(2, &[]));
    let clock = net.clock();
    let mac = Some(Mac([2, 0, 0, 0, 0, 11]));
    let neighbour = Neighbour { ip: ip("10.0.1.2"), mac, ifindex: 2 };
    net.servers[near].server.neighbour(clock, neighbour);
    let a = add_peer(&mut net, ("10.0.0.2", None), Role::A, top, &[near]);
    let b = add_peer(&mut net, ("10.0.1.2", None), Role::B, top, &[]);
    net.run(secs(3));
    let at_root = net.servers[top].forwarded;
    assert_talk(&mut net, a, b);
    assert_eq!(net.servers[top].forwarded, at_root);
    assert_eq!(net.servers[near].server.counters().get(Count::PairedTarget), 1);
}

#[test]
fn close_leaves_nothing_behind() {
    let (mut net, servers, [a, b]) = tree();
    net.run(secs(10));
    for client in [a, b] {
        let now = net.now;
        net.clients[client].peer.as_mut().unwrap().close(now);
        net.drain_client(client);
    }
    net.run(secs(15));
    for client in [a, b] {
        assert_eq!(net.clients[client].peer_events.last(), Some(&PeerEvent::Closed));
    }
    for server in servers {
        assert_eq!(net.servers[server].server.session_count(), 0, "server {server}");
        assert!(net.servers[server].ports.is_empty(), "server {server}");
    }
}
