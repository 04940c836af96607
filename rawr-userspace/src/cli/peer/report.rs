//! Tells what happens to a `rawr peer`: to a program on standard output, or to a person on standard error.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context as _;
use rawr_nat::Traffic;
use serde_json::{Value, json};

use super::line::{Event, Path};
use crate::io::clock;

pub(super) struct Report {
    as_json: bool,
    started: Instant,
}

impl Report {
    pub(super) fn new(as_json: bool) -> Self {
        Self { as_json, started: clock::monotonic() }
    }

    pub(super) fn listening(&self, address: SocketAddr) -> anyhow::Result<()> {
        log::info!("applications send to {address}");
        self.line(json!({ "event": "listening", "address": address }))
    }

    pub(super) fn event(&self, event: &Event) -> anyhow::Result<()> {
        let line = match event {
            Event::Ready { path, connect } => {
                let connect_ms = connect.as_secs_f64() * 1000.0;
                log::info!("ready after {connect_ms:.1} ms: {}", shown(path));
                json!({ "event": "ready", "connect_ms": connect_ms, "path": as_json(path) })
            }
            Event::Changed { from, to } => {
                log::info!("path changed: {}", shown(to));
                let from = from.as_ref().map(as_json);
                json!({ "event": "path-changed", "path": as_json(to), "from": from })
            }
            Event::Lost(from) => {
                log::warn!("path lost: {}", shown(from));
                json!({ "event": "path-lost", "from": as_json(from) })
            }
            Event::Refused { server, error } => {
                log::warn!("{server} refused: {error}");
                json!({ "event": "refused", "server": server, "code": error.code(), "reason": error.reason() })
            }
            Event::NotPunched { reason, probes } => {
                log::info!("no path punched with {probes} probes: {reason}");
                json!({ "event": "not-punched", "reason": reason.to_string(), "probes": probes })
            }
            Event::Closed => return Ok(()),
        };
        self.line(line)
    }

    /// The end. `dropped` counts what the application could not be given.
    pub(super) fn closed(&self, traffic: Traffic, dropped: u64) -> anyhow::Result<()> {
        let dropped = traffic.dropped + dropped;
        log::info!("{} sent, {} received, {dropped} dropped", traffic.sent, traffic.received);
        self.line(json!({
            "event": "closed",
            "sent": traffic.sent,
            "received": traffic.received,
            "dropped": dropped,
        }))
    }

    fn line(&self, mut line: Value) -> anyhow::Result<()> {
        if self.as_json {
            let after = clock::monotonic().saturating_duration_since(self.started);
            line["after_ms"] = json!(after.as_secs_f64() * 1000.0);
            writeln!(io::stdout(), "{line}").context("cannot write to standard output")?;
        }
        Ok(())
    }
}

fn as_json(path: &Path) -> Value {
    json!({
        "kind": path.kind,
        "server": path.remote,
        "rtt_us": u64::try_from(path.rtt.as_micros()).unwrap_or(u64::MAX),
    })
}

fn shown(path: &Path) -> String {
    format!("{} by {}, round trip {:?}", path.kind, path.remote, path.rtt)
}
