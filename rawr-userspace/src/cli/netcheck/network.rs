//! What else the network has for this host: a router that maps ports, a NAT64.

use std::time::Duration;

use rawr_nat::nat64::{self, Prefix, Resolver};
use rawr_nat::portmap::{Gateways, PortMapper, PortMapperConfig, Protocols};

/// Routers and name servers are near: what they have not answered by then they will not. UPnP takes three
/// exchanges, two of them over TCP.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// By what the router maps ports. `None` where there is none to ask.
pub(super) async fn router(limit: Duration) -> Option<Protocols> {
    let patience = PATIENCE.min(limit);
    let config = PortMapperConfig { patience, ..PortMapperConfig::of_this_host() };
    if config.gateways == Gateways::default() {
        return None;
    }
    Some(PortMapper::new(config).protocols().await)
}

/// The prefix of the network's NAT64.
pub(super) async fn nat64(limit: Duration) -> Option<Prefix> {
    let found = async { nat64::discover(&Resolver::system()?).await };
    match tokio::time::timeout(PATIENCE.min(limit), found).await {
        Ok(Ok(prefix)) => prefix,
        Ok(Err(error)) => {
            log::info!("cannot ask for a NAT64's prefix: {error}");
            None
        }
        Err(_) => {
            log::info!("cannot ask for a NAT64's prefix: no name server answers in time");
            None
        }
    }
}
