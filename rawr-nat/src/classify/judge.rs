//! From what servers have seen to how a NAT maps (RFC 4787 §4.1, RFC 5780 §4.3).
//!
//! Each verdict is a majority over all pairs of answers that could tell it, so that one odd answer, as
//! of a NAT that moves a mapping in between, does not change it.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::ask::FIRST_PAUSE;
use super::ports::{self, Mapped};
use super::report::Evidence;
use crate::nat::{Behaviour, Mapping, Ports};

/// Where one of our ports seemed to be, for one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Observation {
    /// Of ours: one number for each local port.
    pub(super) source: u32,
    pub(super) local: SocketAddr,
    /// The server.
    pub(super) to: SocketAddr,
    /// What the server has seen.
    pub(super) seen: SocketAddr,
    /// Requests are numbered as they are sent first.
    pub(super) order: u32,
    /// From the first transmission to the answer.
    pub(super) took: Duration,
}

/// Behaviour without filtering and hairpinning, which other tests tell; `None` without answers.
pub(super) fn judge(observations: &[Observation], own: &[IpAddr]) -> Option<(Behaviour, Evidence)> {
    let external = majority(observations.iter().map(|each| each.seen.ip()))?;
    let addresses = majorities(observations.iter().map(|each| each.to.ip())).len();
    let mapping = mapping(observations, own, addresses);
    let mut mapped = mappings(observations, mapping);
    mapped.sort_by_key(|each| each.order);
    let last_port = mapped.last()?.external;
    let ports = match mapping {
        Mapping::None => Some(Ports::Preserved),
        Mapping::EndpointIndependent
        | Mapping::AddressDependent
        | Mapping::AddressAndPortDependent => ports::pattern(&mapped),
    };
    let odd = odd(observations, mapping, own);
    let behaviour =
        Behaviour { external, mapping, filtering: None, ports, last_port, hairpins: None };
    Some((behaviour, Evidence { addresses, answers: observations.len(), odd }))
}

fn mapping(observations: &[Observation], own: &[IpAddr], addresses: usize) -> Mapping {
    let untranslated = observations.iter().filter(|each| is_untranslated(each, own)).count();
    if untranslated * 2 > observations.len() {
        return Mapping::None;
    }
    let by_address = Vote::of(observations, |a, b| a.to.ip() != b.to.ip());
    let by_port = Vote::of(observations, |a, b| a.to.ip() == b.to.ip() && a.to != b.to);
    match (by_address.outcome(), by_port.outcome()) {
        (_, Some(true)) => Mapping::AddressAndPortDependent,
        (Some(true), Some(false)) => Mapping::AddressDependent,
        // No address was asked at two ports: the worse of the two.
        (Some(true), None) => Mapping::AddressAndPortDependent,
        (Some(false), _) => Mapping::EndpointIndependent,
        (None, _) => guess(observations, addresses),
    }
}

/// One address was asked, so a mapping that depends on the address cannot be told.
fn guess(observations: &[Observation], addresses: usize) -> Mapping {
    let kept = observations.iter().filter(|each| each.seen.port() == each.local.port()).count();
    if addresses == 1 && kept * 2 > observations.len() {
        Mapping::EndpointIndependent
    } else {
        Mapping::AddressAndPortDependent
    }
}

fn is_untranslated(observation: &Observation, own: &[IpAddr]) -> bool {
    let Observation { local, seen, .. } = observation;
    seen.port() == local.port() && (seen.ip() == local.ip() || own.contains(&seen.ip()))
}

/// Pairs of answers to the same port of ours, from servers that differ in one respect.
#[derive(Clone, Copy, Debug, Default)]
struct Vote {
    same: usize,
    different: usize,
}

impl Vote {
    fn of(
        observations: &[Observation],
        counts: impl Fn(&Observation, &Observation) -> bool,
    ) -> Self {
        let mut vote = Self::default();
        for (position, a) in observations.iter().enumerate() {
            let later = &observations[position + 1..];
            for b in later.iter().filter(|b| a.source == b.source && counts(a, b)) {
                match a.seen == b.seen {
                    true => vote.same += 1,
                    false => vote.different += 1,
                }
            }
        }
        vote
    }

    /// Whether it makes a difference.
    const fn outcome(self) -> Option<bool> {
        match (self.same, self.different) {
            (0, 0) => None,
            (same, different) => Some(different > same),
        }
    }
}

/// What one mapping should be for, by the verdict: answers with the same key show the same endpoint.
fn key(observation: &Observation, mapping: Mapping) -> (u32, Option<IpAddr>, Option<u16>) {
    let Observation { source, to, .. } = *observation;
    match mapping {
        Mapping::None | Mapping::EndpointIndependent => (source, None, None),
        Mapping::AddressDependent => (source, Some(to.ip()), None),
        Mapping::AddressAndPortDependent => (source, Some(to.ip()), Some(to.port())),
    }
}

/// The mappings that were made, each as most answers show it.
fn mappings(observations: &[Observation], mapping: Mapping) -> Vec<Mapped> {
    let mut groups: BTreeMap<_, Vec<&Observation>> = BTreeMap::new();
    for observation in observations {
        groups.entry(key(observation, mapping)).or_default().push(observation);
    }
    let mapped = groups.into_values().filter_map(|group| {
        let seen = majority(group.iter().map(|each| each.seen))?;
        let first = group.iter().filter(|each| each.seen == seen).min_by_key(|each| each.order)?;
        Some(Mapped {
            local: first.local.port(),
            external: seen.port(),
            order: first.order,
            is_prompt: is_prompt(first, observations),
        })
    });
    mapped.collect()
}

/// Whether it was the first transmission that was answered, so that the mapping was made in its turn:
/// a repetition's answer comes later than the fastest one of that server by the pause before it.
fn is_prompt(observation: &Observation, observations: &[Observation]) -> bool {
    let others = observations.iter().filter(|other| other.to == observation.to);
    let least = others.map(|other| other.took).min().unwrap_or_default();
    observation.took < least + FIRST_PAUSE
}

/// Answers that contradict the verdict.
fn odd(observations: &[Observation], mapping: Mapping, own: &[IpAddr]) -> usize {
    if mapping == Mapping::None {
        return observations.iter().filter(|each| !is_untranslated(each, own)).count();
    }
    let mut groups: BTreeMap<_, Vec<SocketAddr>> = BTreeMap::new();
    for observation in observations {
        groups.entry(key(observation, mapping)).or_default().push(observation.seen);
    }
    let agree = |group: &Vec<SocketAddr>| {
        majorities(group.iter().copied()).first().map_or(0, |(_, count)| *count)
    };
    observations.len() - groups.values().map(agree).sum::<usize>()
}

/// What occurs most often; of several the first.
pub(super) fn majority<T: Copy + Eq + Hash>(values: impl Iterator<Item = T>) -> Option<T> {
    majorities(values).first().map(|(value, _)| *value)
}

/// What occurs, and how often, the most frequent first.
fn majorities<T: Copy + Eq>(values: impl Iterator<Item = T>) -> Vec<(T, usize)> {
    let mut counts: Vec<(T, usize)> = Vec::new();
    for value in values {
        match counts.iter_mut().find(|(known, _)| *known == value) {
            Some((_, count)) => *count += 1,
            None => counts.push((value, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [&str; 4] =
        ["203.0.113.1:3478", "203.0.113.1:3479", "203.0.113.2:3478", "203.0.113.2:3479"];

    /// What six sockets see by a NAT that gives `port(source, server)`.
    fn seen_by(servers: &[&str], port: impl Fn(u32, usize) -> u16) -> Vec<Observation> {
        let mut observations = Vec::new();
        for source in 0..6 {
            for (number, server) in servers.iter().enumerate() {
                observations.push(Observation {
                    source,
                    local: SocketAddr::new([10, 0, 1, 2].into(), 40_000 + source as u16),
                    to: server.parse().unwrap(),
                    seen: SocketAddr::new([203, 0, 113, 11].into(), port(source, number)),
                    order: observations.len() as u32,
                    took: Duration::from_millis(1),
                });
            }
        }
        observations
    }

    fn verdict(observations: &[Observation]) -> (Mapping, usize) {
        let (behaviour, evidence) = judge(observations, &[]).unwrap();
        (behaviour.mapping, evidence.odd)
    }

    #[test]
    fn mappings_are_told_apart() {
        let keeps = seen_by(&SERVERS, |source, _| 40_000 + source as u16);
        assert_eq!(verdict(&keeps), (Mapping::EndpointIndependent, 0));
        let by_address = seen_by(&SERVERS, |source, server| {
            50_000 + 7 * source as u16 + 100 * (server as u16 / 2)
        });
        assert_eq!(verdict(&by_address), (Mapping::AddressDependent, 0));
        let by_port =
            seen_by(&SERVERS, |source, server| 50_000 + 7 * source as u16 + 100 * server as u16);
        assert_eq!(verdict(&by_port), (Mapping::AddressAndPortDependent, 0));
        // Never seen in the field, but what depends on the port alone is as hard as the worst.
        let by_port_alone =
            seen_by(&SERVERS, |source, server| 50_000 + source as u16 + 100 * (server as u16 % 2));
        assert_eq!(verdict(&by_port_alone).0, Mapping::AddressAndPortDependent);
    }

    #[test]
    fn an_own_address_with_the_own_port_is_no_nat() {
        let mut observations = seen_by(&SERVERS, |source, _| 40_000 + source as u16);
        for each in &mut observations {
            each.seen.set_ip([198, 51, 100, 9].into());
        }
        let own: IpAddr = [198, 51, 100, 9].into();
        let (behaviour, _) = judge(&observations, &[own]).unwrap();
        assert_eq!(behaviour.mapping, Mapping::None);
        assert_eq!(behaviour.ports, Some(Ports::Preserved));
        assert_eq!(judge(&observations, &[]).unwrap().0.mapping, Mapping::EndpointIndependent);
        assert_eq!(judge(&[], &[own]), None);
    }

    #[test]
    fn one_odd_answer_changes_nothing() {
        for mapping in 0..3 {
            let port = |source: u32, server: usize| match mapping {
                0 => 40_000 + source as u16,
                1 => 50_000 + 7 * source as u16 + 100 * (server as u16 / 2),
                _ => 50_000 + 7 * source as u16 + 100 * server as u16,
            };
            let plain = seen_by(&SERVERS, port);
            for position in 0..plain.len() {
                let mut observations = plain.clone();
                observations[position].seen.set_port(33_333);
                assert_eq!(verdict(&observations).0, verdict(&plain).0, "{mapping} {position}");
            }
        }
    }

    #[test]
    fn with_one_address_the_kept_port_decides() {
        let keeps = seen_by(&SERVERS[..1], |source, _| 40_000 + source as u16);
        let (behaviour, evidence) = judge(&keeps, &[]).unwrap();
        assert_eq!(behaviour.mapping, Mapping::EndpointIndependent);
        assert!(!evidence.is_measured());
        let random = seen_by(&SERVERS[..1], |source, _| 9_000 * (source as u16 + 1));
        assert_eq!(verdict(&random).0, Mapping::AddressAndPortDependent);
        // Two ports of one address suffice where the port alone makes a difference.
        let two_ports = seen_by(&SERVERS[..2], |source, server| {
            9_000 * (source as u16 + 1) + 50 * server as u16
        });
        assert_eq!(verdict(&two_ports).0, Mapping::AddressAndPortDependent);
    }

    #[test]
    fn two_addresses_with_one_port_each_tell_the_worst() {
        let servers = [SERVERS[0], SERVERS[2]];
        let differs =
            seen_by(&servers, |source, server| 50_000 + 7 * source as u16 + 100 * server as u16);
        assert_eq!(verdict(&differs).0, Mapping::AddressAndPortDependent);
        let same = seen_by(&servers, |source, _| 50_000 + 7 * source as u16);
        assert_eq!(verdict(&same).0, Mapping::EndpointIndependent);
    }
}
