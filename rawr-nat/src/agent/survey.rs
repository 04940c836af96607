//! Finds out what own NATs do, while data flows already.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::classify::{self, ClassifyConfig};
use crate::nat::Behaviour;

/// Pause before it is tried again where no server has answered; it doubles up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// A classification under way, if any. It ends with this.
#[derive(Debug, Default)]
pub(super) struct Survey {
    servers: Vec<SocketAddr>,
    task: JoinSet<Behaviour>,
}

impl Survey {
    /// Asks these servers from now on, whatever was asked before.
    pub(super) fn ask(&mut self, servers: Vec<SocketAddr>, local: Vec<IpAddr>) {
        // Only what NATs do to IPv4 is of use to punching.
        self.servers = servers.into_iter().filter(SocketAddr::is_ipv4).collect();
        self.begin(local);
    }

    /// Begins, or begins again: the host has other addresses by now.
    pub(super) fn begin(&mut self, local: Vec<IpAddr>) {
        self.task = JoinSet::new();
        if !self.servers.is_empty() && local.iter().any(IpAddr::is_ipv4) {
            let mut config = ClassifyConfig::new(self.servers.clone());
            (config.local, config.tcp, config.routers) = (local, false, false);
            self.task.spawn(find_out(config));
        }
    }

    /// Waits for what own NATs do to UDP over IPv4; for ever where nothing is under way. Nothing is lost if the
    /// future is dropped.
    pub(super) async fn next(&mut self) -> Behaviour {
        loop {
            match self.task.join_next().await {
                Some(Ok(behaviour)) => return behaviour,
                Some(Err(error)) => log::warn!("the NATs before this host stay unknown: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}

/// Does not give up: the network may come later than we do.
async fn find_out(config: ClassifyConfig) -> Behaviour {
    let mut pause = PAUSE.0;
    loop {
        match classify::run(config.clone()).await {
            Ok(report) => match report.ipv4.and_then(|family| family.udp) {
                Some(behaviour) => return behaviour,
                None => log::debug!("no STUN server answers over UDP; again in {pause:?}"),
            },
            Err(error) => log::debug!("own NATs cannot be asked after: {error}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}
