//! `rawr doctor`: what on this host would break or slow the fast path, and how to mend it.
//!
//! [`gather`] reads [`facts::Facts`], [`findings`] judges them and touches nothing.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use serde::Serialize;

use self::facts::Facts;

mod ethtool;
pub mod facts;
pub mod findings;
mod gather;

/// What the server is (to be) run with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Interfaces that the program is attached to; empty for every one that carries Ethernet.
    pub interfaces: Vec<String>,
    /// Sessions that the server is to hold at once.
    pub sessions: u64,
    /// Own addresses that data ports are opened on; empty for all.
    pub data_addresses: Vec<IpAddr>,
    pub data_ports: RangeInclusive<u16>,
    /// STUN port.
    pub control_port: u16,
    /// Entries of each port table; a power of two.
    pub table_length: u32,
    /// Entries of each channel table; a power of two.
    pub channel_table_length: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            sessions: 10_000,
            data_addresses: Vec::new(),
            data_ports: 49_152..=65_535,
            control_port: 3478,
            table_length: 1 << 16,
            channel_table_length: 1 << 16,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Ok,
    /// Works, but slower, or not in every case.
    Warn,
    /// Does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What it is about: "kernel", the name of an interface.
    pub subject: String,
    pub what: String,
    /// Why it matters. Empty if all is well.
    pub why: String,
    /// The command or setting that mends it. Empty if all is well.
    pub fix: String,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    pub facts: Facts,
}

/// Looks at this host, in the network namespace of the calling thread. What cannot be read, for want
/// of privilege or because this kernel does not have it, is left out of the facts.
pub fn run(options: &Options) -> Report {
    let facts = gather::facts(options);
    Report { findings: findings::judge(&facts, options), facts }
}

/// What to say when the program is attached to this interface: packets that a local stack sends
/// through a veth pair carry unfinished checksums, which no forwarding below the stack can mend.
pub fn veth_checksum_warning(ifname: &str) -> Option<String> {
    let interface = gather::interface(ifname);
    findings::veth_checksums(&interface).map(|finding| format!("{finding}"))
}

impl Report {
    pub fn worst(&self) -> Severity {
        self.findings.iter().map(|finding| finding.severity).max().unwrap_or(Severity::Ok)
    }

    /// 0 unless something does not work.
    pub fn exit_code(&self) -> u8 {
        u8::from(self.worst() == Severity::Fail)
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// The worst first; what is well takes one line.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.findings.iter().map(|it| it.subject.len()).max().unwrap_or_default();
        let mut findings: Vec<_> = self.findings.iter().collect();
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        for Finding { severity, subject, what, why, fix } in findings {
            writeln!(f, "{severity:<5} {subject:<width$}  {what}")?;
            for (label, text) in [("why", why), ("fix", fix)] {
                if !text.is_empty() {
                    writeln!(f, "      {:width$}  {label}: {text}", "")?;
                }
            }
        }
        Ok(())
    }
}

/// On one line.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.what)?;
        if !self.why.is_empty() {
            write!(f, ": {}", self.why)?;
        }
        if !self.fix.is_empty() {
            write!(f, "; to mend it: {}", self.fix)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_can_be_examined_by_anyone() {
        let report = run(&Options::default());
        assert!(report.findings.iter().any(|finding| finding.subject == "kernel"));
        let json = serde_json::to_value(&report).unwrap();
        assert!(json["findings"].as_array().unwrap().len() >= 5);
        let lo = run(&Options { interfaces: vec!["lo".to_owned()], ..Options::default() });
        assert_eq!(lo.exit_code(), 1);
        assert!(lo.to_string().contains("FAIL  lo"), "{lo}");
    }

    #[test]
    fn lo_has_no_checksums_to_warn_of() {
        assert_eq!(veth_checksum_warning("lo"), None);
        assert_eq!(veth_checksum_warning("no-such-device"), None);
    }
}
