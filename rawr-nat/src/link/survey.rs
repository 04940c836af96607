//! What the own NATs do, found out in the background while links are made.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::sync::watch;

use crate::classify::{self, ClassifyConfig};
use crate::host::{Host as _, LinuxHost};
use crate::nat::Behaviour;

/// How long a verdict is believed, as long as the host keeps its addresses.
const INTERVAL: Duration = Duration::from_secs(600);
/// How often it is looked whether it does.
const GLANCE: Duration = Duration::from_secs(2);
/// Pause before servers are asked again of which none has answered; it doubles up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What is known of the own NATs. Clones share it.
#[derive(Clone, Debug)]
pub struct Survey(Option<watch::Receiver<Option<Behaviour>>>);

impl Survey {
    /// Nothing, for good: no path is punched then.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Starts to ask these STUN servers, and asks again from time to time, and when the host has other
    /// addresses, as long as somebody wants to know.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn begin(servers: Vec<SocketAddr>) -> Self {
        let (found, receiver) = watch::channel(None);
        tokio::spawn(async move {
            tokio::select! {
                () = found.closed() => {}
                () = explore(servers, &found) => {}
            }
        });
        Self(Some(receiver))
    }

    /// What has been found out so far of UDP over IPv4.
    pub fn found(&self) -> Option<Behaviour> {
        self.0.as_ref().and_then(|found| *found.borrow())
    }

    /// Waits for something new. Nothing is lost if the future is dropped.
    pub(super) async fn changed(&mut self) -> Behaviour {
        if let Some(found) = &mut self.0 {
            while found.changed().await.is_ok() {
                if let Some(behaviour) = *found.borrow_and_update() {
                    return behaviour;
                }
            }
        }
        std::future::pending().await
    }
}

async fn explore(servers: Vec<SocketAddr>, found: &watch::Sender<Option<Behaviour>>) {
    let mut pause = PAUSE.0;
    loop {
        let addresses = own_addresses();
        let wait = match verdict(&servers).await {
            Some(behaviour) => {
                pause = PAUSE.0;
                found.send_if_modified(|before| before.replace(behaviour) != Some(behaviour));
                INTERVAL
            }
            None => {
                let wait = pause;
                pause = (pause * 2).min(PAUSE.1);
                wait
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = moved(&addresses) => pause = PAUSE.0,
        }
    }
}

/// Asks once.
async fn verdict(servers: &[SocketAddr]) -> Option<Behaviour> {
    let mut config = ClassifyConfig::new(servers.to_vec());
    (config.tcp, config.routers) = (false, false);
    match classify::run(config).await {
        Ok(report) => {
            let behaviour = report.ipv4.and_then(|family| family.udp);
            log::debug!("own NATs: {behaviour:?}");
            behaviour
        }
        Err(error) => {
            log::debug!("own NATs are unknown: {error}");
            None
        }
    }
}

/// Waits until the host has other addresses than these.
async fn moved(addresses: &[IpAddr]) {
    loop {
        tokio::time::sleep(GLANCE).await;
        if own_addresses() != addresses {
            return;
        }
    }
}

fn own_addresses() -> Vec<IpAddr> {
    let interfaces = LinuxHost.interfaces(None).unwrap_or_default();
    let mut addresses: Vec<_> = interfaces.iter().map(|interface| interface.address).collect();
    addresses.sort();
    addresses
}
