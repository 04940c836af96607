//! `rawr status`, `rawr sessions`, `rawr allocations`, `rawr flows`: what the daemon says of itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::bail;
use serde::Serialize;

use super::args::{DaemonArgs, OutputArgs};
use super::table::{bytes, duration, render};
use crate::admin::{
    self, AllocationCounts, AllocationInfo, Carried, FlowInfo, Request, Response, SessionInfo,
    Status,
};
use crate::dataplane::slow_path::Totals;
use crate::io::streams::StreamTotals;

/// Asks the daemon and writes its answer.
pub(super) fn run(request: Request, daemon: &DaemonArgs, output: OutputArgs) -> anyhow::Result<()> {
    let text = match admin::ask(&daemon.socket(), request)? {
        Response::Status(status) => in_form(output, &status, |status| show_status(status)),
        Response::Sessions(sessions) => in_form(output, &sessions, |found| show_sessions(found)),
        Response::Allocations(found) => in_form(output, &found, |found| show_allocations(found)),
        Response::Flows(flows) => in_form(output, &flows, |flows| show_flows(flows)),
        Response::Done | Response::Failed(_) => bail!("the daemon answered something else"),
    }?;
    print!("{text}");
    Ok(())
}

fn in_form<T: Serialize>(
    output: OutputArgs,
    value: &T,
    show: impl FnOnce(&T) -> String,
) -> anyhow::Result<String> {
    Ok(if output.json { serde_json::to_string_pretty(value)? + "\n" } else { show(value) })
}

fn show_status(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    let Status { instance, kind, version, pid, .. } = status;
    line("rawr", format!("{version}, {kind} \"{instance}\", pid {pid}"));
    line("up", duration(status.uptime_seconds));
    line("listens on", joined(&status.listen));
    if !status.listen_tcp.is_empty() {
        line("TCP and TLS", joined(&status.listen_tcp));
        let StreamTotals { open, accepted, .. } = status.streams;
        line("streams", format!("{open} open of {accepted}"));
    }
    for interface in &status.interfaces {
        let why = interface.fallback.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
        line("interface", format!("{}: {}{why}", interface.name, interface.mode));
    }
    for gateway in &status.gateways {
        let state = if gateway.up { "up" } else { "down" };
        line("gateway", format!("{}: {state}, {} sessions", gateway.address, gateway.sessions));
    }
    let sessions = &status.sessions;
    line(
        "sessions",
        format!(
            "{} ({} met here, {} escalated, {} waiting)",
            sessions.total, sessions.met_here, sessions.escalated, sessions.waiting
        ),
    );
    line("allocations", allocations(&status.allocations));
    let flows = &status.flows;
    line(
        "flows",
        format!(
            "{} in the kernel, {} pending, {} failed",
            flows.installed, flows.pending, flows.failed
        ),
    );
    for table in &status.tables {
        line("table", format!("{}: {} of {} places", table.name, table.used, table.length));
    }
    let kernel = &status.kernel;
    line("kernel", format!("{} packets, {}", kernel.packets, bytes(kernel.bytes)));
    let slow = &status.slow_path;
    line("userspace", format!("{} packets, {}", slow.forwarded, bytes(slow.forwarded_bytes)));
    text.push_str(&counters("flows not installed", &flows.failures));
    text.push_str(&counters("passed up by the kernel", &kernel.reasons));
    text.push_str(&counters("userspace", &losses(slow)));
    text.push_str(&counters("streams", &stream_losses(&status.streams)));
    text.push_str(&counters("control", &status.control));
    text
}

/// The counters that are not zero, under a title; nothing if all are.
fn counters(title: &str, counters: &BTreeMap<String, u64>) -> String {
    let rows: Vec<[String; 2]> = counters
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| [format!("  {name}"), count.to_string()])
        .collect();
    if rows.is_empty() { String::new() } else { format!("\n{}", render([title, ""], &rows)) }
}

/// What the slow path did but forward.
fn losses(totals: &Totals) -> BTreeMap<String, u64> {
    let named = [
        ("to control", totals.to_control),
        ("dropped, control too slow", totals.control_overrun),
        ("dropped, over the rate limit", totals.rate_limited),
        ("dropped, other leg closed", totals.no_way_out),
        ("not sent, refused by the remote host", totals.refused),
        ("not sent, no buffer", totals.no_buffer),
        ("not sent, too big", totals.too_big),
        ("not sent", totals.send_failed),
        ("not received", totals.receive_failed),
        ("ICMP errors to control", totals.path_errors),
    ];
    named.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// What went wrong with streams.
fn stream_losses(totals: &StreamTotals) -> BTreeMap<String, u64> {
    let named = [
        ("refused, too many", totals.refused),
        ("ended before they spoke", totals.failed),
        ("messages dropped, client does not read", totals.dropped),
    ];
    named.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn show_sessions(sessions: &[SessionInfo]) -> String {
    let mut rows = Vec::new();
    for session in sessions {
        let meets = match (session.met_here, session.upstream) {
            (true, _) => "here".to_owned(),
            (false, Some(upstream)) => upstream.to_string(),
            (false, None) => "-".to_owned(),
        };
        let mut first = [session.id.clone(), meets];
        if session.legs.is_empty() {
            let [id, meets] = first;
            rows.push([id, meets, "-".into(), "-".into(), "-".into(), "-".into()]);
            continue;
        }
        for leg in &session.legs {
            let [id, meets] = std::mem::take(&mut first);
            let role = format!("{} {}", leg.role, leg.direction);
            rows.push([id, meets, role, shown(leg.local), shown(leg.remote), leg.state.clone()]);
        }
    }
    let header = ["SESSION", "MEETS", "LEG", "LOCAL", "REMOTE", "STATE"];
    render(header, &rows) + &format!("{} sessions\n", sessions.len())
}

fn allocations(counts: &AllocationCounts) -> String {
    let AllocationCounts { total, reserved_ports, users, most } = counts;
    if total + reserved_ports == 0 {
        return "0".to_owned();
    }
    let most: Vec<_> = most.iter().map(|it| format!("{} {}", it.name, it.allocations)).collect();
    format!("{total} of {users} users, {reserved_ports} reserved ports; most: {}", most.join(", "))
}

fn show_allocations(allocations: &[AllocationInfo]) -> String {
    let row = |it: &AllocationInfo| {
        [
            format!("{} {}", it.client, it.transport),
            joined(&it.relayed) + if it.peers_over == "tcp" { " tcp" } else { "" },
            it.user.clone(),
            duration(it.expires_seconds),
            it.permissions.to_string(),
            format!("{}, {} forwarded", it.channels, it.forwarded_channels),
            carried(it.to_peers),
            carried(it.to_client),
        ]
    };
    let rows: Vec<[String; 8]> = allocations.iter().map(row).collect();
    let header =
        ["CLIENT", "RELAYED", "USER", "LEFT", "PERMISSIONS", "CHANNELS", "TO PEERS", "TO CLIENT"];
    render(header, &rows) + &format!("{} allocations\n", allocations.len())
}

fn carried(it: Carried) -> String {
    format!("{} kernel, {} userspace", bytes(it.kernel_bytes), bytes(it.userspace_bytes))
}

fn show_flows(flows: &[FlowInfo]) -> String {
    let row = |flow: &FlowInfo| {
        let state = match &flow.reason {
            Some(reason) => format!("{}: {reason}", flow.state),
            None => flow.state.clone(),
        };
        [
            flow.from_remote.to_string(),
            at_channel(flow.from_local, flow.from_channel),
            at_channel(flow.to_local, flow.to_channel),
            flow.to_remote.to_string(),
            flow.packets.to_string(),
            bytes(flow.bytes),
            flow.next_hop.clone().unwrap_or_else(|| "-".to_owned()),
            state,
        ]
    };
    let rows: Vec<[String; 8]> = flows.iter().map(row).collect();
    let header = ["FROM", "ARRIVES ON", "LEAVES BY", "TO", "PACKETS", "BYTES", "NEXT HOP", "STATE"];
    render(header, &rows) + &format!("{} flows\n", flows.len())
}

fn at_channel(address: SocketAddr, channel: Option<u16>) -> String {
    match channel {
        Some(channel) => format!("{address} {channel:#06x}"),
        None => address.to_string(),
    }
}

fn shown(address: Option<SocketAddr>) -> String {
    address.map_or_else(|| "-".to_owned(), |address| address.to_string())
}

fn joined(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
