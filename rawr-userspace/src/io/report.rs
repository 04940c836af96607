//! What the daemon tells of itself: the answers to `rawr status`, `sessions` and `flows`.

use std::collections::BTreeMap;

use rawr_common::reason::Reason;
use rawr_proto::{ChannelNumber, Role};

use super::allocations;
use super::driver::{Driver, now};
use crate::admin::{
    FlowCounts, FlowInfo, GatewayInfo, KernelCounts, LegInfo, Response, SessionCounts, SessionInfo,
    Status, TableInfo,
};
use crate::control::{Count, Kind, LegKind, LegView, SessionView};
use crate::dataplane::backend::{Backend as _, Filling};
use crate::dataplane::flow_table::{FlowView, State};
use crate::dataplane::{Flow, NextHop, Share};
use crate::io::clock;

/// The whole in numbers.
pub(super) fn status(driver: &mut Driver) -> Response {
    let kernel = kernel(driver);
    let kind = match driver.server.config().kind {
        Kind::Gateway => "gateway",
        Kind::Root => "root",
    };
    let uptime = clock::monotonic().saturating_duration_since(driver.about.started);
    Response::Status(Box::new(Status {
        instance: driver.about.instance.clone(),
        id: driver.server.config().id.to_string(),
        kind: kind.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        uptime_seconds: uptime.as_secs(),
        listen: driver
            .sockets
            .iter()
            .filter(|it| it.takes_requests())
            .map(|it| it.bound())
            .collect(),
        interfaces: driver.about.interfaces.clone(),
        sessions: session_counts(driver),
        allocations: allocations::counts(driver),
        flows: flow_counts(driver),
        tables: tables(driver),
        kernel,
        slow_path: driver.slow_path.totals(),
        listen_tcp: driver.streams.bound().to_vec(),
        streams: driver.streams.totals(),
        control: Count::ALL
            .iter()
            .map(|count| (count.as_str().to_owned(), driver.server.counters().get(*count)))
            .filter(|(_, value)| *value > 0)
            .collect(),
        gateways: driver.server.parents().map(gateway).collect(),
    }))
}

/// Every session with its legs.
pub(super) fn sessions(driver: &Driver) -> Response {
    Response::Sessions(driver.server.sessions(now()).map(session).collect())
}

/// Every flow, with what it has carried by whichever way.
pub(super) fn flows(driver: &mut Driver) -> Response {
    read_counters(driver);
    Response::Flows(driver.flows.iter().map(|view| flow(driver, &view)).collect())
}

fn kernel(driver: &mut Driver) -> KernelCounts {
    read_counters(driver);
    let live = driver.flows.iter().map(|view| view.counters);
    let total = live.fold(driver.carried, |sum, flow| sum + flow);
    let mut reasons = BTreeMap::new();
    if let Some(kernel) = &driver.kernel {
        match kernel.bpf.reasons() {
            Ok(counts) => reasons.extend(
                Reason::ALL
                    .iter()
                    .map(|reason| (reason.as_str().to_owned(), counts[*reason as usize]))
                    .filter(|(_, count)| *count > 0),
            ),
            Err(error) => log::warn!("cannot read the kernel's counters: {error}"),
        }
    }
    KernelCounts { packets: total.packets, bytes: total.bytes, reasons }
}

/// Brings the flows' counters up to date; what has moved stays for the next look for life.
pub(super) fn read_counters(driver: &mut Driver) {
    let Some(kernel) = &mut driver.kernel else { return };
    match kernel.reconciler.poll_counters(&mut driver.flows, &kernel.bpf) {
        Ok(moved) => driver.active.extend(moved),
        Err(error) => log::warn!("cannot read the kernel's counters: {error}"),
    }
}

fn session_counts(driver: &Driver) -> SessionCounts {
    let mut counts = SessionCounts::default();
    for session in driver.server.sessions(now()) {
        counts.total += 1;
        match session.paired {
            Some(LegKind::Upstream | LegKind::Candidate) => counts.escalated += 1,
            Some(LegKind::Downstream | LegKind::Target) => counts.met_here += 1,
            None => counts.waiting += 1,
        }
    }
    counts
}

fn flow_counts(driver: &Driver) -> FlowCounts {
    let totals = driver.flows.totals();
    let mut failures = BTreeMap::new();
    for view in driver.flows.iter() {
        if let State::Failed(why) = view.state {
            *failures.entry(why.kind().to_owned()).or_default() += 1;
        }
    }
    FlowCounts {
        installed: totals.installed as u64,
        pending: totals.pending as u64,
        failed: totals.failed as u64,
        failures,
    }
}

fn tables(driver: &Driver) -> Vec<TableInfo> {
    let Some(kernel) = &driver.kernel else { return Vec::new() };
    let usage = kernel.bpf.usage();
    let table = |name: &str, Filling { used, length }| TableInfo {
        name: name.to_owned(),
        used: used.into(),
        length: length.into(),
    };
    vec![
        table("ports, IPv4", usage.ports4),
        table("ports, IPv6", usage.ports6),
        table("channels, IPv4", usage.channels4),
        table("channels, IPv6", usage.channels6),
    ]
}

fn gateway(parent: crate::control::ParentView) -> GatewayInfo {
    GatewayInfo {
        address: parent.address.to_string(),
        up: parent.is_up,
        sessions: parent.legs as u64,
    }
}

fn session(view: SessionView) -> SessionInfo {
    let upstream = view.legs.iter().find(|leg| leg.kind == LegKind::Upstream);
    SessionInfo {
        id: view.id.to_string(),
        met_here: matches!(view.paired, Some(LegKind::Downstream | LegKind::Target)),
        upstream: upstream.and_then(|leg| leg.server),
        legs: view.legs.iter().map(leg).collect(),
    }
}

fn leg(view: &LegView) -> LegInfo {
    let direction = match view.kind {
        LegKind::Downstream => "downstream",
        LegKind::Target => "target",
        LegKind::Upstream => "upstream",
        LegKind::Candidate => "candidate",
    };
    let state = match (view.is_paired, view.remote) {
        (true, _) => "paired",
        (false, Some(_)) => "bound",
        (false, None) => "half-open",
    };
    LegInfo {
        role: match view.role {
            Role::A => "A".to_owned(),
            Role::B => "B".to_owned(),
        },
        direction: direction.to_owned(),
        local: view.local,
        remote: view.remote,
        state: state.to_owned(),
    }
}

fn flow(driver: &Driver, view: &FlowView) -> FlowInfo {
    let (state, reason) = match (&driver.kernel, &view.state) {
        (None, _) => ("userspace", None),
        (Some(_), State::Installed) => ("installed", None),
        (Some(_), State::Pending) => ("pending", Some("no next hop yet".to_owned())),
        (Some(_), State::Failed(why)) => ("failed", Some(why.to_string())),
    };
    let Flow { from, to, .. } = view.flow;
    // What shares a port is forwarded in userspace by the server, which counts it.
    let slow = driver.slow_path.counters(from.local).filter(|_| from.share == Share::Whole);
    let next_hop = driver.network.next_hop(to.remote.ip(), to.local.ip());
    FlowInfo {
        from_remote: from.remote,
        from_local: from.local,
        from_channel: from.channel().map(ChannelNumber::number),
        to_local: to.local,
        to_remote: to.remote,
        to_channel: to.channel().map(ChannelNumber::number),
        state: state.to_owned(),
        reason,
        packets: view.counters.packets,
        bytes: view.counters.bytes,
        userspace_packets: slow.unwrap_or_default().packets,
        next_hop: next_hop.map(|hop| name(driver, hop)),
    }
}

fn name(driver: &Driver, hop: NextHop) -> String {
    let link = driver.network.topology().link(hop.ifindex);
    let interface = link.map_or_else(|| hop.ifindex.to_string(), |link| link.name.clone());
    let mac = hop.dst_mac.map(|byte| format!("{byte:02x}")).join(":");
    format!("{mac} on {interface}")
}
