//! Routers that speak PCP, NAT-PMP or UPnP-IGD, as part of a [`MappingContext`].

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::Mutex;

use super::context::{
    HolePunchServerAddr, MapFuture, MappingContext, PortLease, PortMapping, ReleaseFuture,
    Transport,
};
use crate::portmap::{self, Gateways, PortMapper, PortMapperConfig, Protocols};

/// A router that maps ports by PCP (RFC 6887), NAT-PMP (RFC 6886) or UPnP-IGD: all are tried.
#[derive(Debug)]
pub struct Gateway {
    config: PortMapperConfig,
    mapper: Mutex<PortMapper>,
}

impl Gateway {
    /// The routers of the default routes.
    pub fn of_this_host() -> Self {
        Self::new(PortMapperConfig::of_this_host())
    }

    /// The router with this address.
    pub fn at(address: Ipv4Addr) -> Self {
        let gateways = Gateways { ipv4: Some(address), ipv6: None };
        Self::new(PortMapperConfig { gateways, ..PortMapperConfig::of_this_host() })
    }

    /// With settings of one's own.
    pub fn new(config: PortMapperConfig) -> Self {
        Self { config, mapper: Mutex::new(PortMapper::new(config)) }
    }
}

impl fmt::Display for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gateways { ipv4, ipv6 } = self.config.gateways;
        match (ipv4, ipv6) {
            (Some(ipv4), _) => write!(f, "the router {ipv4}"),
            (None, Some(ipv6)) => write!(f, "the router {}", ipv6.address),
            (None, None) => f.write_str("no router"),
        }
    }
}

impl PortMapping for Gateway {
    fn map(&self, transport: Transport, local: SocketAddr) -> MapFuture<'_> {
        let transport = match transport {
            Transport::Udp => portmap::Transport::Udp,
            Transport::Tcp => portmap::Transport::Tcp,
        };
        Box::pin(async move {
            let port = self.mapper.lock().await.map(transport, local).await;
            let port = port.map_err(|error| error.to_string())?;
            let mapping = port.mapping().ok_or("the mapping is lost already")?;
            let (external, is_double_nat) = (mapping.external, mapping.is_double_nat);
            Ok(PortLease { external, is_double_nat, guard: Box::new(port) })
        })
    }

    fn release(&self) -> ReleaseFuture<'_> {
        Box::pin(async {
            let anew = PortMapper::new(self.config);
            let mapper = std::mem::replace(&mut *self.mapper.lock().await, anew);
            mapper.close().await;
        })
    }
}

/// Adds the routers of this host that map ports, if there are any.
pub(super) async fn find(context: &MappingContext) {
    let gateway = Gateway::of_this_host();
    let speaks = gateway.mapper.lock().await.protocols().await;
    if speaks != Protocols::NONE {
        context.add_servers([HolePunchServerAddr::IgdGateway(Arc::new(gateway))]);
    }
}
