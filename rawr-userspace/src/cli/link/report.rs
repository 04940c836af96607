//! Tells what happens to links: a line of JSON for each event, or a line of text, and where a person looks
//! on, a line that is always up to date.

use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rawr_nat::PublicKey;
use rawr_nat::agent::{AgentEvent, AgentPath};
use rawr_nat::link::{Familiarity, Link};
use rawr_proto::BridgeName;
use serde_json::{Value, json};

use crate::io::clock;
use crate::link::file::Transferred;

/// How often programs are told how much of a file is through.
const PROGRESS: Duration = Duration::from_secs(1);

/// Where reports go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    /// Standard output: they are the result.
    Output,
    /// Standard error.
    Error,
    /// Standard error, while standard output is for data.
    ErrorBesideData,
}

/// Tells what happens.
pub(super) struct Report {
    to: To,
    is_json: bool,
    /// Hidden where nobody looks on.
    bar: ProgressBar,
    /// When a program was told last how much of a file is through.
    told: Mutex<Option<Instant>>,
}

impl Report {
    pub(super) fn new(is_json: bool, to: To) -> Self {
        // What is piped to a terminal would stand between.
        let is_shared = to == To::ErrorBesideData && io::stdout().is_terminal();
        let is_watched = !is_json && !is_shared && io::stderr().is_terminal();
        let target = match is_watched {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{msg}"));
        Self { to, is_json, bar, told: Mutex::default() }
    }

    /// The name is ours.
    pub(super) fn registered(&self, name: &BridgeName, key: PublicKey, reflexive: SocketAddr) {
        self.event(
            format_args!("listening as {name}, key {key}"),
            &json!({
                "event": "registered", "name": name.as_str(), "key": key.to_string(),
                "address": reflexive,
            }),
        );
        self.bar.set_message(format!("{name}: nobody has come yet"));
    }

    /// There is a link.
    pub(super) fn linked(&self, peer: &str, link: &Link) {
        let familiarity = match link.familiarity() {
            Familiarity::Known => "",
            Familiarity::New => ", met for the first time: compare it with what it prints there",
        };
        let key = link.peer().to_string();
        let key = if key == peer { String::new() } else { format!(", key {key}") };
        self.event(
            format_args!("linked with {peer}{key}{familiarity}"),
            &json!({
                "event": "linked", "peer": peer, "key": link.peer().to_string(),
                "first_use": link.familiarity() == Familiarity::New,
                "path": link.path().as_ref().map(path_json),
            }),
        );
    }

    /// Something happened to the path of a link.
    pub(super) fn path(&self, peer: &str, event: &AgentEvent) {
        let label = short(peer);
        match event {
            AgentEvent::Ready { path, after } => {
                let milliseconds = after.as_secs_f64() * 1000.0;
                let text = path_text(path);
                self.event(
                    format_args!("{label}: {text}, found after {milliseconds:.0} ms"),
                    &json!({
                        "event": "path", "peer": peer, "path": path_json(path),
                        "after_ms": milliseconds,
                    }),
                );
            }
            AgentEvent::PathChanged { from, to } => {
                let text = path_text(to);
                let from = from.as_ref().map(path_json);
                self.event(
                    format_args!("{label}: path changed: {text}"),
                    &json!({ "event": "path", "peer": peer, "path": path_json(to), "from": from }),
                );
            }
            AgentEvent::PathLost(from) => self.event(
                format_args!("{label}: path lost: {}", path_text(from)),
                &json!({ "event": "path-lost", "peer": peer, "from": path_json(from) }),
            ),
            AgentEvent::Refused { server, error } => self.event(
                format_args!("{server} refused: {error}"),
                &json!({
                    "event": "server-refused", "server": server, "code": error.code(),
                    "reason": error.reason(),
                }),
            ),
            AgentEvent::NotPunched { reason, probes } => {
                log::info!("{label}: no path punched with {probes} probes: {reason:?}");
            }
            AgentEvent::Closed => {}
        }
    }

    /// A local port leads to the other side.
    pub(super) fn forwarding(&self, transport: &str, local: SocketAddr, target: &str) {
        self.event(
            format_args!("{transport} {local} leads to {target} at the other side"),
            &json!({
                "event": "forwarding", "transport": transport, "local": local, "target": target,
            }),
        );
    }

    /// Something was not done, on this side or the other.
    pub(super) fn refused(&self, peer: &str, why: &str) {
        self.event(
            format_args!("{}: refused: {why}", short(peer)),
            &json!({ "event": "refused", "peer": peer, "reason": why }),
        );
    }

    /// A file is through.
    pub(super) fn file(&self, event: &str, file: &Transferred, took: Duration) {
        let hash: String = file.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let seconds = took.as_secs_f64();
        let Transferred { name, size, .. } = file;
        let rate = *size as f64 / 1e6 / seconds.max(1e-6);
        self.event(
            format_args!(
                "{event} {name}: {size} bytes in {seconds:.1} s, {rate:.1} MB/s, SHA-256 {hash}"
            ),
            &json!({
                "event": event, "file": name, "bytes": size, "sha256": hash, "seconds": seconds,
            }),
        );
    }

    /// A link is over.
    pub(super) fn ended(&self, peer: &str, why: Option<&str>) {
        let text = why.map(|why| format!(": {why}")).unwrap_or_default();
        self.event(
            format_args!("{}: the link has ended{text}", short(peer)),
            &json!({ "event": "ended", "peer": peer, "error": why }),
        );
    }

    /// What a person who looks on wants to know of a link.
    pub(super) fn status(&self, peer: &str, path: Option<&AgentPath>, changes: u32) {
        self.bar.set_message(status_text(peer, path, changes));
    }

    /// So much of a file is through.
    pub(super) fn progress(&self, size: u64, done: u64) {
        if self.bar.length() != Some(size) {
            self.bar.set_style(style(
                "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left  {msg}",
            ));
            self.bar.set_length(size);
        }
        self.bar.set_position(done);
        if self.is_json && self.is_due(clock::monotonic()) {
            let event = json!({ "event": "progress", "bytes": done, "of": size });
            self.event(format_args!("{done} of {size} bytes"), &event);
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = told.is_none_or(|told| now.saturating_duration_since(told) >= PROGRESS);
        if is_due {
            *told = Some(now);
        }
        is_due
    }

    /// A line for people, and one for programs.
    pub(super) fn event(&self, text: std::fmt::Arguments<'_>, json: &Value) {
        let line = if self.is_json { json.to_string() } else { text.to_string() };
        self.bar.suspend(|| {
            let written = match self.to {
                To::Output => writeln!(io::stdout(), "{line}"),
                To::Error | To::ErrorBesideData => writeln!(io::stderr(), "{line}"),
            };
            if let Err(error) = written {
                log::debug!("nobody reads reports: {error}");
            }
        });
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A name, or the beginning of a key, which is enough to tell it from others.
fn short(peer: &str) -> &str {
    const SHORT: usize = 8;
    match peer.parse::<PublicKey>() {
        Ok(_) => peer.get(..SHORT).unwrap_or(peer),
        Err(_) => peer,
    }
}

/// The line for a person who looks on.
fn status_text(peer: &str, path: Option<&AgentPath>, changes: u32) -> String {
    let path = path.map_or_else(|| "no path at the moment".to_owned(), path_text);
    let changes = match changes {
        0 => String::new(),
        1 => ", changed once".to_owned(),
        times => format!(", changed {times} times"),
    };
    format!("{}: {path}{changes}", short(peer))
}

/// A path as people read it.
pub(super) fn path_text(path: &AgentPath) -> String {
    let way = match (path.kind.is_direct(), path.kind.as_str()) {
        (true, "direct") => "direct".to_owned(),
        (true, kind) => format!("direct ({kind})"),
        (false, kind) => format!("relayed ({kind})"),
    };
    let rtt = match path.rtt.is_zero() {
        true => String::new(),
        false => format!(", round trip {:.1} ms", path.rtt.as_secs_f64() * 1000.0),
    };
    format!("{way} by {}{rtt}", path.remote)
}

/// A path as programs read it.
pub(super) fn path_json(path: &AgentPath) -> Value {
    json!({
        "kind": path.kind.as_str(),
        "direct": path.kind.is_direct(),
        "remote": path.remote,
        "rtt_us": (!path.rtt.is_zero()).then_some(path.rtt.as_micros() as u64),
    })
}

#[cfg(test)]
mod tests {
    use rawr_nat::agent::AgentPathKind;

    use super::*;

    #[test]
    fn the_status_line_tells_path_round_trip_time_and_changes() {
        let mut path = AgentPath {
            kind: AgentPathKind::Reflexive,
            remote: "203.0.113.12:41870".parse().unwrap(),
            rtt: Duration::from_micros(18_020),
        };
        assert_eq!(
            status_text("alice", Some(&path), 2),
            "alice: direct (reflexive) by 203.0.113.12:41870, round trip 18.0 ms, changed 2 times"
        );
        path.rtt = Duration::ZERO;
        assert_eq!(
            status_text("alice", Some(&path), 1),
            "alice: direct (reflexive) by 203.0.113.12:41870, changed once"
        );
        assert_eq!(status_text("alice", None, 0), "alice: no path at the moment");
    }

    #[test]
    fn keys_are_shown_shortly_and_names_whole() {
        let key = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        assert_eq!(short(key), "aaaaaaaa");
        assert_eq!(short("a-name-that-is-longer"), "a-name-that-is-longer");
    }

    #[test]
    fn programs_are_told_of_progress_once_a_second() {
        let report = Report::new(true, To::Error);
        let began = clock::monotonic();
        let due = [0, 500, 999, 1000, 1500, 2000];
        let due = due.map(|after| report.is_due(began + Duration::from_millis(after)));
        assert_eq!(due, [true, false, false, true, false, true]);
    }
}
