//! A router that maps ports on request: Debian's miniupnpd, which speaks PCP, NAT-PMP and UPnP-IGD.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::lab::{Family, Subnet};
use crate::netns::Netns;
use crate::process::{Process, eventually};

/// Where it is to listen: PCP and NAT-PMP, and the search for UPnP's devices.
const PORTS: [u16; 2] = [5351, 1900];
const START_LIMIT: Duration = Duration::from_secs(10);

/// Its chains in the table of [`Nat`](crate::nat::Nat), and where they are looked at: before the NAT's own rules.
const CHAINS: &str = "\
nft add chain inet rawr_nat miniupnpd
nft add chain inet rawr_nat prerouting_miniupnpd
nft add chain inet rawr_nat postrouting_miniupnpd
nft insert rule inet rawr_nat through_router jump miniupnpd
nft insert rule inet rawr_nat arrive jump prerouting_miniupnpd
nft insert rule inet rawr_nat translate jump postrouting_miniupnpd";

/// The daemon on a router. Dropping it ends it, as a power cut does: nothing is tidied up.
#[derive(Debug)]
pub struct Upnp {
    _daemon: Process,
}

impl Upnp {
    /// Starts it on a router with the interfaces `wan` and `lan`, which a [`Nat`](crate::nat::Nat) has been applied
    /// to. It maps nothing where the address of `wan` is one that is reserved for special purposes.
    pub fn start(router: &Netns, lan: &Subnet, directory: &Path) -> Result<Self> {
        router.sh(CHAINS)?;
        let file = |suffix: &str| directory.join(format!("{}-upnp{suffix}", router.name()));
        fs::write(file(".conf"), config(lan))?;
        let mut command = router.command("miniupnpd");
        command.arg("-d").arg("-f").arg(file(".conf")).arg("-P").arg(file(".pid"));
        let daemon = Process::spawn("miniupnpd", &mut command, &file(".log"))?;
        eventually("miniupnpd listens", START_LIMIT, || {
            let sockets = router.proc_net("udp")? + &router.proc_net("udp6")?;
            let listens = |port| sockets.contains(&format!(":{port:04X} "));
            Ok(PORTS.iter().all(listens).then_some(()))
        })?;
        Ok(Self { _daemon: daemon })
    }
}

/// How many ports of this router's are mapped now.
pub fn mapped_ports(router: &Netns) -> Result<usize> {
    let rules = router.sh("nft list chain inet rawr_nat prerouting_miniupnpd")?;
    Ok(rules.lines().filter(|line| line.contains("dnat")).count())
}

fn config(lan: &Subnet) -> String {
    let lan = lan.cidr(Family::Ipv4);
    format!(
        "ext_ifname=wan\n\
         listening_ip=lan\n\
         enable_natpmp=yes\n\
         enable_upnp=yes\n\
         min_lifetime=2\n\
         max_lifetime=86400\n\
         upnp_table_name=rawr_nat\n\
         upnp_nat_table_name=rawr_nat\n\
         secure_mode=yes\n\
         system_uptime=no\n\
         uuid=00000000-0000-4000-8000-000000000001\n\
         allow 1024-65535 {lan} 1024-65535\n\
         deny 0-65535 0.0.0.0/0 0-65535\n"
    )
}
