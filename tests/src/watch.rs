//! An independent witness of which packets pass: counters on a switch's port, in no way rawr's own.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Lab;
use crate::netns::Netns;
use std::rc::Rc;

/// Frames longer than this are the application's, if its payloads are longer: no message of the
/// control plane is.
const LONGEST_CONTROL: usize = 620;

/// Payload sizes that a watch tells from control messages.
pub const WATCHED_SIZES: &[usize] = &[700, 900, 1200];

/// Counts long IP packets that a switch delivers to one of its ports, or takes from it.
#[derive(Debug)]
pub struct Watch {
    switch: Rc<Netns>,
    table: String,
}

impl Watch {
    /// Watches the port of a switch to which `host` is plugged with `interface`.
    pub fn new(lab: &Lab, switch: &str, host: &str, interface: &str) -> Result<Self> {
        let port = format!("{host}-{interface}");
        let table = format!("watch_{host}_{interface}");
        let switch = lab.at(switch)?;
        switch.sh(&format!(
            r#"nft -f - <<'RULES'
table bridge {table} {{
    chain passing {{
        type filter hook forward priority filter; policy accept;
        oifname "{port}" meta protocol {{ ip, ip6 }} meta length > {LONGEST_CONTROL} counter
        iifname "{port}" meta protocol {{ ip, ip6 }} meta length > {LONGEST_CONTROL} counter
    }}
}}
RULES"#
        ))?;
        Ok(Self { switch, table })
    }

    /// Long packets so far.
    pub fn packets(&self) -> Result<u64> {
        let text = self.switch.sh(&format!("nft -j list table bridge {}", self.table))?;
        let listing: Value = serde_json::from_str(&text)?;
        let items = listing["nftables"].as_array().context("nft lists nothing")?;
        let rules = items.iter().filter_map(|item| item["rule"]["expr"].as_array());
        let counters = rules.flatten().filter_map(|part| part["counter"]["packets"].as_u64());
        Ok(counters.sum())
    }
}
