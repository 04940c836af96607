//! The report as a person reads it.

use std::fmt::Write as _;

use rawr_nat::classify::{Evidence, FamilyReport, Lifetime, Report};
use rawr_nat::nat64::Prefix;
use rawr_nat::portmap::{Means, Protocols};
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};

use super::reach::{Reach, Why};
use super::view::{FamilyView, View};
use crate::cli::table::render;

/// The whole report.
pub(super) fn text(report: &Report, router: Option<Protocols>, view: &View) -> String {
    let mut text = String::new();
    for (name, family) in [("IPv4", &report.ipv4), ("IPv6", &report.ipv6)] {
        match family {
            Some(family) => show_family(&mut text, name, family),
            None => {
                line(&mut text, name, "not tried: this host or the servers have no address of it");
            }
        }
        text.push('\n');
    }
    show_network(&mut text, router, report.nat64);
    show_peers(&mut text, view);
    let _ = writeln!(text, "\nfound out in {:.2} s", report.elapsed.as_secs_f64());
    text
}

fn show_family(text: &mut String, name: &str, family: &FamilyReport) {
    let external = family.udp.or(family.tcp).map(|behaviour| behaviour.external);
    let local = family.local.map_or_else(|| "unknown address".to_owned(), |ip| ip.to_string());
    let place = match external {
        Some(external) if Some(external) == family.local => local,
        Some(external) => format!("{local}, seen from outside as {external}"),
        None => format!("{local}, no server answered"),
    };
    line(text, name, &place);
    match &family.udp {
        Some(udp) => show_udp(text, udp, family),
        None if family.tcp.is_some() => line(text, "  UDP", "blocked"),
        None => line(text, "  UDP", "no answer"),
    }
    match &family.tcp {
        Some(tcp) => line(text, "  TCP", &mapping(tcp, family.tcp_evidence)),
        None => line(text, "  TCP", "no answer: blocked, or the servers do not take it"),
    }
    if let Some(nats) = nats(family) {
        line(text, "  NATs", nats);
    }
    if let Some(lifetime) = family.mapping_lifetime {
        line(text, "  remembers", &remembers(lifetime));
    }
    if let Some(time) = family.round_trip {
        line(text, "  round trip", &format!("{:.1} ms", time.as_secs_f64() * 1000.0));
    }
    line(text, "  means", meaning(family));
}

fn show_udp(text: &mut String, udp: &Behaviour, family: &FamilyReport) {
    line(text, "  UDP", &mapping(udp, family.udp_evidence));
    line(
        text,
        "  lets in",
        match udp.filtering {
            Some(Filtering::EndpointIndependent) => "everybody",
            Some(Filtering::AddressDependent) => "whose address was written to",
            Some(Filtering::AddressAndPortDependent) => "whose address and port were written to",
            None => "unknown: needs a server with two addresses (RFC 5780)",
        },
    );
    if let Some(hairpins) = udp.hairpins {
        let yes = "yes: hosts behind this NAT reach each other by its outside";
        line(text, "  hairpins", if hairpins { yes } else { "no" });
    }
    let Evidence { answers, odd, .. } = family.udp_evidence;
    if odd > 0 {
        line(text, "  odd", &format!("{odd} of {answers} answers contradict the others"));
    }
}

/// Mapping and ports in one line.
fn mapping(behaviour: &Behaviour, evidence: Evidence) -> String {
    let guess = if evidence.is_measured() { "" } else { " (a guess: one address answered)" };
    let ports = match behaviour.ports {
        Some(Ports::Preserved) => "ports are kept".to_owned(),
        Some(Ports::Sequential { step }) => format!("ports in sequence, step {step}"),
        Some(Ports::Block { low, high }) => format!("ports from about {low} to {high}"),
        Some(Ports::Random) => "any ports".to_owned(),
        None => "too few ports seen to tell their pattern".to_owned(),
    };
    match behaviour.mapping {
        Mapping::None => "no NAT".to_owned(),
        Mapping::EndpointIndependent => format!("one port for all destinations{guess}; {ports}"),
        Mapping::AddressDependent => format!("a port for each address{guess}; {ports}"),
        Mapping::AddressAndPortDependent => {
            format!("symmetric, a port for each address and port{guess}; {ports}")
        }
    }
}

const fn nats(family: &FamilyReport) -> Option<&'static str> {
    match (family.carrier_grade, family.double_nat) {
        (true, Some(true)) => Some("two or more, the carrier's among them"),
        (true, _) => Some("the carrier's (100.64.0.0/10 is in use)"),
        (false, Some(true)) => Some("two or more"),
        (false, Some(false) | None) => None,
    }
}

fn remembers(Lifetime { at_least, less_than }: Lifetime) -> String {
    match less_than {
        Some(less_than) => {
            format!("{} to {} s without traffic", at_least.as_secs(), less_than.as_secs())
        }
        None => format!("{} s without traffic, or more", at_least.as_secs()),
    }
}

/// One sentence for who does not know the terms.
fn meaning(family: &FamilyReport) -> &'static str {
    let Some(udp) = &family.udp else {
        return match family.tcp {
            Some(_) => "what needs UDP has to go over TCP, mostly by a relay",
            None => "nothing can be said, and probably nothing gets out",
        };
    };
    match (udp.mapping, udp.filtering) {
        (Mapping::None, Some(Filtering::EndpointIndependent)) => {
            "neither NAT nor firewall: everybody reaches this host"
        }
        (Mapping::None, Some(_)) => {
            "no NAT, but a firewall: peers are reached directly if both sides write first"
        }
        (Mapping::None, None) => "no NAT; whether there is a firewall is not known",
        (Mapping::EndpointIndependent, Some(Filtering::EndpointIndependent)) => {
            "an open NAT: whoever is told the external port gets through"
        }
        (Mapping::EndpointIndependent, _) => {
            "the usual home router: direct with nearly everybody, if both sides write first"
        }
        (Mapping::AddressDependent, _) => {
            "peers see another port than servers do: direct with most, after trying ports"
        }
        (Mapping::AddressAndPortDependent, _) => match udp.ports {
            Some(Ports::Sequential { .. }) => {
                "peers see another port than servers do, but the next one can be foreseen"
            }
            Some(Ports::Block { .. }) => {
                "peers see another port than servers do, out of few: these can be tried"
            }
            Some(Ports::Preserved | Ports::Random) | None => {
                "the hardest kind: direct only with peers whose own port is known"
            }
        },
    }
}

fn show_network(text: &mut String, router: Option<Protocols>, nat64: Option<Prefix>) {
    if let Some(Protocols { pcp, nat_pmp, igd }) = router {
        let means = [(pcp, Means::Pcp), (nat_pmp, Means::NatPmp), (igd, Means::Igd)];
        let answered = means.into_iter().filter(|(has_answered, _)| *has_answered);
        let names: Vec<_> = answered.map(|(_, means)| means.to_string()).collect();
        match names.is_empty() {
            true => {
                line(text, "router", "maps no ports: answers neither PCP nor NAT-PMP nor UPnP-IGD")
            }
            false => line(text, "router", &format!("maps ports by {}", names.join(", "))),
        }
    }
    if let Some(prefix) = nat64 {
        line(text, "NAT64", &format!("{prefix}: reaches hosts that have only IPv4 over IPv6"));
    }
    if router.is_some() || nat64.is_some() {
        text.push('\n');
    }
}

/// One row for each kind of peer, and why those that are relayed are.
fn show_peers(text: &mut String, view: &View) {
    let table = match (&view.ipv4, &view.ipv6) {
        (Some(ipv4), Some(ipv6)) => {
            let pairs = ipv4.peers.iter().zip(&ipv6.peers);
            let rows: Vec<_> = pairs
                .map(|(v4, v6)| [v4.kind.to_string(), cell(v4.reach), cell(v6.reach)])
                .collect();
            render(["PEER", "OVER IPv4", "OVER IPv6"], &rows)
        }
        (Some(ipv4), None) => render(["PEER", "OVER IPv4"], &rows(ipv4)),
        (None, Some(ipv6)) => render(["PEER", "OVER IPv6"], &rows(ipv6)),
        (None, None) => return,
    };
    text.push_str(&table);
    let mut told: Vec<Why> = Vec::new();
    for peer in [&view.ipv4, &view.ipv6].into_iter().flatten().flat_map(|family| &family.peers) {
        if let Reach::Relayed(why) = peer.reach
            && !told.contains(&why)
        {
            told.push(why);
            let _ = write!(text, "\n{}: {why}.\n", why.short());
        }
    }
}

fn rows(family: &FamilyView) -> Vec<[String; 2]> {
    family.peers.iter().map(|peer| [peer.kind.to_string(), cell(peer.reach)]).collect()
}

fn cell(reach: Reach) -> String {
    match reach {
        Reach::Direct(how) => how.to_string(),
        Reach::Relayed(why) => why.short().to_owned(),
    }
}

/// Writing to a String does not fail.
fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<13}{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_can_read_it() {
        let udp = Behaviour {
            external: [203, 0, 113, 11].into(),
            mapping: Mapping::AddressAndPortDependent,
            filtering: Some(Filtering::AddressAndPortDependent),
            ports: Some(Ports::Random),
            last_port: 40_000,
            hairpins: Some(false),
        };
        let family = FamilyReport {
            udp: Some(udp),
            udp_evidence: Evidence { addresses: 2, answers: 24, odd: 1 },
            local: Some([10, 0, 1, 2].into()),
            carrier_grade: true,
            double_nat: Some(true),
            mapping_lifetime: Some(Lifetime {
                at_least: std::time::Duration::from_secs(30),
                less_than: None,
            }),
            ..FamilyReport::default()
        };
        let nat64 = Some(Prefix::WELL_KNOWN);
        let report = Report { ipv4: Some(family), nat64, ..Report::default() };
        let router = Some(Protocols { igd: true, pcp: true, ..Protocols::NONE });
        let text = text(&report, router, &View::of(&report, router, &[]));
        for expected in [
            "IPv4         10.0.1.2, seen from outside as 203.0.113.11\n",
            "  UDP        symmetric, a port for each address and port; any ports\n",
            "  lets in    whose address and port were written to\n",
            "  odd        1 of 24 answers contradict the others\n",
            "  NATs       two or more, the carrier's among them\n",
            "  remembers  30 s without traffic, or more\n",
            "IPv6         not tried",
            "router       maps ports by PCP, UPnP-IGD\n",
            "NAT64        64:ff9b::/96: reaches hosts",
            "with a public address                      direct\n",
            "behind a usual home router                 direct, many ports tried\n",
            "behind a symmetric NAT, any ports          relayed: both ports unknown\n",
            "\nrelayed: both ports unknown: both NATs choose a new port",
        ] {
            assert!(text.contains(expected), "{expected:?} is not in\n{text}");
        }
    }
}
