//! Which path is found, and what becomes of data as it moves from one to another.

use std::time::Duration;

use proptest::prelude::*;
use rawr_nat::PathKind;
use rawr_nat::agent::{AgentConfig, AgentEvent, AgentPathKind, Signalling};
use rawr_proto::Role;

use crate::net::{Kind, Net, PACE};

const SECOND: Duration = Duration::from_secs(1);

const fn unchanged(_: &mut AgentConfig) {}

fn kinds(net: &Net) -> Vec<Option<AgentPathKind>> {
    net.hosts.iter().map(|host| host.path().map(|path| path.kind)).collect()
}

/// All that was sent has come, once and in order.
fn assert_intact(net: &mut Net) {
    net.is_flowing = false;
    net.run(SECOND);
    for (to, from) in [(0, 1), (1, 0)] {
        let sent: Vec<u32> = (0..net.hosts[from].sent).collect();
        assert_eq!(net.hosts[to].numbers(), sent, "from {from} to {to}");
    }
}

/// When data took a path without a relay, for good.
fn direct_since(net: &Net, i: usize) -> Option<Duration> {
    let path_of = |event: &AgentEvent| match event {
        AgentEvent::Ready { path, .. } | AgentEvent::PathChanged { to: path, .. } => Some(*path),
        _ => None,
    };
    let changes: Vec<_> = net.hosts[i]
        .events
        .iter()
        .filter_map(|(at, event)| Some((*at, path_of(event)?.kind.is_direct())))
        .collect();
    let last = changes.iter().rposition(|(_, is_direct)| !is_direct).map_or(0, |last| last + 1);
    changes.get(last).map(|(at, _)| *at)
}

#[test]
fn one_network() {
    let mut net = Net::new([Kind::None, Kind::None], 1, unchanged);
    net.run(5 * SECOND);
    assert_eq!(kinds(&net), [Some(AgentPathKind::Host); 2]);
    assert!(net.agree());
    assert_intact(&mut net);
}

#[test]
fn a_neighbour_that_rawr_has_found_is_enough() {
    let on_subnet: fn(&mut AgentConfig) = |config| config.rawr.interfaces[0].prefix_len = 24;
    let mut net = Net::new([Kind::None, Kind::None], 1, on_subnet);
    net.run(5 * SECOND);
    assert!(direct_since(&net, 0).unwrap() <= SECOND);
    assert!(net.agree());
    assert_intact(&mut net);
}

#[test]
fn data_flows_over_rawr_first_and_through_two_nats_then() {
    let mut net = Net::new([Kind::Cone, Kind::Cone], 2, unchanged);
    net.run(5 * SECOND);
    for i in 0..2 {
        let (at, first) = &net.hosts[i].events[0];
        let AgentEvent::Ready { path, .. } = first else { panic!("{first:?}") };
        assert_eq!(path.kind, AgentPathKind::Rawr(PathKind::Root));
        assert!(*at <= SECOND, "ready after {at:?}");
        let at = direct_since(&net, i).unwrap();
        assert!(at <= 2 * SECOND, "direct after {at:?}");
    }
    assert_eq!(kinds(&net), [Some(AgentPathKind::Reflexive); 2]);
    assert!(net.agree());
    assert_intact(&mut net);
}

#[test]
fn a_public_host_and_one_behind_the_worst_of_nats() {
    for kinds in [[Kind::None, Kind::Symmetric], [Kind::Symmetric, Kind::None]] {
        let mut net = Net::new(kinds, 3, unchanged);
        net.run(5 * SECOND);
        assert!((0..2).all(|i| direct_since(&net, i).is_some_and(|at| at <= 2 * SECOND)));
        assert!(net.agree());
        assert_intact(&mut net);
    }
}

#[test]
fn where_nothing_else_works_data_stays_on_the_relay() {
    for kinds in [[Kind::Symmetric, Kind::Symmetric], [Kind::OnlyServer, Kind::None]] {
        let mut net = Net::new(kinds, 4, unchanged);
        net.run(60 * SECOND);
        let all_relayed = net.hosts.iter().all(|host| {
            host.path().is_some_and(|path| path.kind == AgentPathKind::Rawr(PathKind::Root))
        });
        assert!(all_relayed && net.agree());
        assert!(net.hosts.iter().all(|host| host.events.len() == 1));
        assert_intact(&mut net);
    }
}

#[test]
fn an_application_carries_the_signals_where_there_is_no_rawr() {
    let without: fn(&mut AgentConfig) = |config| {
        config.rawr.root = None;
        config.signalling = Signalling::Application;
    };
    let mut net = Net::new([Kind::Cone, Kind::Cone], 5, without);
    net.run(5 * SECOND);
    assert_eq!(kinds(&net), [Some(AgentPathKind::Reflexive); 2]);
    assert!(net.agree());
}

#[test]
fn data_moves_back_when_the_path_dies_and_returns_when_it_works_again() {
    let mut net = Net::new([Kind::Cone, Kind::Cone], 6, unchanged);
    net.run(5 * SECOND);
    assert!((0..2).all(|i| direct_since(&net, i).is_some()));
    let before = net.elapsed();
    net.straight_is_down = true;
    net.run(10 * SECOND);
    for i in 0..2 {
        let gap = net.longest_gap(i, before);
        assert!(gap <= 3 * SECOND, "nothing for {gap:?}");
        assert_eq!(direct_since(&net, i), None);
    }
    assert!(net.agree());
    net.straight_is_down = false;
    net.run(120 * SECOND);
    assert!((0..2).all(|i| direct_since(&net, i).is_some()), "back on the better path");
    assert!(net.agree());
}

#[test]
fn a_path_that_dies_one_way_is_left_by_both() {
    for mute in 0..2 {
        let mut net = Net::new([Kind::Cone, Kind::Cone], 7, unchanged);
        net.run(5 * SECOND);
        let before = net.elapsed();
        net.mute = Some(mute);
        net.run(10 * SECOND);
        for i in 0..2 {
            let gap = net.longest_gap(i, before);
            assert!(gap <= 3 * SECOND, "mute {mute}, to {i}: nothing for {gap:?}");
            assert_eq!(direct_since(&net, i), None, "mute {mute}: {i} has not noticed");
        }
        assert!(net.agree());
    }
}

#[test]
fn the_death_of_the_relay_does_not_matter_once_there_is_a_better_path() {
    let mut net = Net::new([Kind::Cone, Kind::Cone], 8, unchanged);
    net.run(5 * SECOND);
    let before = net.elapsed();
    net.server.up = false;
    net.run(60 * SECOND);
    assert!((0..2).all(|i| net.longest_gap(i, before) <= PACE * 4));
    assert!(net.agree());
    assert_intact(&mut net);
}

#[test]
fn an_agent_that_starts_again_is_met_again() {
    for role in [Role::A, Role::B] {
        let mut net = Net::new([Kind::Cone, Kind::Cone], 9, unchanged);
        net.run(5 * SECOND);
        net.join(role, Kind::Cone, 100_000, unchanged);
        net.run(30 * SECOND);
        assert_eq!(kinds(&net), [Some(AgentPathKind::Reflexive); 2], "{role}");
        assert!(net.agree());
        let restarted = usize::from(role == Role::B);
        let at = net.elapsed();
        net.run(SECOND);
        assert!(net.longest_gap(restarted, at) <= PACE * 4);
    }
}

#[test]
fn a_host_that_moves_is_followed() {
    for i in 0..2 {
        let mut net = Net::new([Kind::None, Kind::None], 11, unchanged);
        net.run(5 * SECOND);
        let before = net.elapsed();
        net.move_to(i, 30);
        net.run(20 * SECOND);
        assert_eq!(kinds(&net), [Some(AgentPathKind::Host); 2], "{i} has moved");
        assert!(net.agree());
        for to in 0..2 {
            let gap = net.longest_gap(to, before);
            assert!(gap <= 3 * SECOND, "{i} has moved, to {to}: nothing for {gap:?}");
        }
    }
}

#[test]
fn idle_agents_are_quiet() {
    let mut net = Net::new([Kind::Cone, Kind::Cone], 10, unchanged);
    net.is_flowing = false;
    net.run(10 * SECOND);
    assert!((0..2).all(|i| direct_since(&net, i).is_some()));
    let before = net.hosts[0].datagrams;
    net.run(60 * SECOND);
    let sent = net.hosts[0].datagrams - before;
    assert!(sent <= 200, "{sent} datagrams in a minute");
    assert!(net.agree());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn both_agree_whatever_is_lost(seed: u64, loss in 0.0..0.25_f64, cut: bool) {
        let mut net = Net::new([Kind::Cone, Kind::Cone], seed, unchanged);
        net.loss = loss;
        net.run(15 * SECOND);
        if cut {
            net.straight_is_down = true;
            net.run(15 * SECOND);
            net.straight_is_down = false;
        }
        net.loss = 0.0;
        net.run(90 * SECOND);
        prop_assert!(net.agree());
        prop_assert!((0..2).all(|i| direct_since(&net, i).is_some()), "{:?}", kinds(&net));
    }

    #[test]
    fn data_is_never_lost_or_disordered_by_an_upgrade(seed: u64) {
        let mut net = Net::new([Kind::Cone, Kind::Cone], seed, unchanged);
        net.run(5 * SECOND);
        prop_assert!((0..2).all(|i| direct_since(&net, i).is_some()));
        assert_intact(&mut net);
    }
}
