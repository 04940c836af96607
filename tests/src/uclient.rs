//! coturn's `turnutils_uclient`: a TURN client that somebody else wrote, and what it says it did.

use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::Netns;

/// What the clients of one run have sent and got back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub sent: u64,
    pub received: u64,
}

/// Runs it on `host` against `server` and waits until it has ended, for at most `seconds`.
///
/// # Errors
/// It could not be run, said that it could not complete something, or did not end.
pub fn uclient(host: &Netns, server: IpAddr, arguments: &[&str], seconds: u32) -> Result<Outcome> {
    let mut command = host.command("timeout");
    command.arg(seconds.to_string()).arg("turnutils_uclient");
    command.args(arguments).arg(server.to_string());
    let output = command.output().context("cannot run turnutils_uclient (Debian's coturn)")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let told = || format!("turnutils_uclient {} said:\n{said}", arguments.join(" "));
    ensure!(output.status.success(), "{}: {}", output.status, told());
    outcome(&said).with_context(told)
}

/// The last counts in what it prints.
fn outcome(said: &str) -> Result<Outcome> {
    if let Some(error) = said.lines().find(|line| line.contains("ERROR:")) {
        bail!("{error}");
    }
    let totals = said.lines().rev().find_map(|line| {
        let (_, counts) = line.split_once("start_mclient: tot_send_msgs=")?;
        let (sent, received) = counts.split_once(", tot_recv_msgs=")?;
        Some(Outcome { sent: sent.parse().ok()?, received: received.trim().parse().ok()? })
    });
    totals.context("it printed no totals")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_last_ones() {
        let said = "\
6: : start_mclient: msz=4, tot_send_msgs=150, tot_recv_msgs=149, tot_send_bytes ~ 24000\n\
6: : start_mclient: tot_send_msgs=200, tot_recv_msgs=199\n\
6: : start_mclient: tot_send_bytes ~ 32000, tot_recv_bytes ~ 32000\n";
        assert_eq!(outcome(said).unwrap(), Outcome { sent: 200, received: 199 });
    }

    #[test]
    fn errors_are_told() {
        let said = "0: : ERROR: Cannot complete Allocation\n";
        assert!(outcome(said).unwrap_err().to_string().contains("Cannot complete Allocation"));
        assert!(outcome("").is_err());
    }
}
