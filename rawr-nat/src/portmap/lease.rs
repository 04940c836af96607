//! One mapping at one gateway, by one protocol: made, renewed, removed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

use igd_next::aio::tokio::{Tokio, search_gateway, search_ipv6_firewall_gateway};
use igd_next::aio::{Gateway, Ipv6FirewallGateway};
use igd_next::{
    AddPortError, GatewayIpVersion, PinholeError, PortMappingProtocol, SearchError, SearchOptions,
};
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::gateway::source_towards;
use super::pcp::{self, Nonce};
use super::{MapError, Means, PortMapperConfig, Transport, nat_pmp};

/// Where routers listen for searches (UPnP Device Architecture 2.0 §1.3.2).
const SSDP_GROUP: Ipv4Addr = Ipv4Addr::new(239, 255, 255, 250);
const SSDP_PORT: u16 = 1900;
/// What others read in the router's list.
const DESCRIPTION: &str = "rawr";
/// The longest lease of a pinhole.
const LONGEST_PINHOLE: u32 = 86_400;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) transport: Transport,
    pub(super) local: SocketAddr,
    /// The external port to have again, if it may be.
    pub(super) external_port: Option<u16>,
}

impl Wanted {
    /// The external port to ask for.
    fn port(&self) -> u16 {
        self.external_port.unwrap_or_else(|| self.local.port())
    }
}

/// A mapping that a gateway has made.
pub(super) struct Lease {
    kind: Kind,
    pub(super) external: SocketAddr,
    /// `None` where it lasts until it is removed.
    pub(super) lifetime: Option<Duration>,
    /// The gateway's when it made or renewed this, if it has one.
    pub(super) epoch: Option<u32>,
}

enum Kind {
    Pcp {
        server: SocketAddr,
        nonce: Nonce,
        wanted: Wanted,
    },
    NatPmp {
        server: SocketAddr,
        wanted: Wanted,
    },
    Igd {
        gateway: Box<Gateway<Tokio>>,
        wanted: Wanted,
    },
    Pinhole {
        gateway: Box<Ipv6FirewallGateway<Tokio>>,
        transport: Transport,
        local: SocketAddrV6,
        id: u16,
    },
}

impl Lease {
    pub(super) fn means(&self) -> Means {
        match &self.kind {
            Kind::Pcp { .. } => Means::Pcp,
            Kind::NatPmp { .. } => Means::NatPmp,
            Kind::Igd { .. } | Kind::Pinhole { .. } => Means::Igd,
        }
    }

    /// Asks by all means that are allowed, at once; takes PCP rather than NAT-PMP rather than IGD.
    pub(super) async fn obtain(
        config: &PortMapperConfig,
        wanted: Wanted,
    ) -> Result<Self, MapError> {
        match wanted.local {
            SocketAddr::V4(_) => Self::obtain4(config, wanted).await,
            SocketAddr::V6(local) => Self::obtain6(config, wanted, local).await,
        }
    }

    async fn obtain4(config: &PortMapperConfig, wanted: Wanted) -> Result<Self, MapError> {
        let mut tried = Vec::new();
        let Some(server) = config.gateways.server4() else { return Err(MapError::NoGateway) };
        let (uses, patience) = (config.uses, config.patience);
        let external = uses.nat_pmp.then(|| {
            let source = wanted.local.ip();
            Asked(tokio::spawn(nat_pmp::external(server, source, patience)))
        });
        let search = uses.igd.then(|| Asked(tokio::spawn(find_igd(server.ip(), patience))));
        if uses.pcp {
            match map_by_pcp(config, server, wanted).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tried.push((Means::Pcp, error)),
            }
        }
        if let Some(external) = external {
            let external = external.answer().await;
            match map_by_nat_pmp(config, server, wanted, external).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tried.push((Means::NatPmp, error)),
            }
        }
        if let Some(search) = search {
            let found = search.answer().await.map(Box::new);
            match map_by_igd(config, wanted, found).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tried.push((Means::Igd, error)),
            }
        }
        Err(MapError::Refused(tried))
    }

    async fn obtain6(
        config: &PortMapperConfig,
        wanted: Wanted,
        local: SocketAddrV6,
    ) -> Result<Self, MapError> {
        let mut tried = Vec::new();
        let server = config.gateways.server6();
        let (Some(gateway), Some(server)) = (config.gateways.ipv6, server) else {
            return Err(MapError::NoGateway);
        };
        let (uses, patience) = (config.uses, config.patience);
        let search =
            uses.igd.then(|| Asked(tokio::spawn(find_firewall(local, gateway.scope, patience))));
        if uses.pcp {
            match map_by_pcp(config, server, wanted).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tried.push((Means::Pcp, error)),
            }
        }
        if let Some(search) = search {
            let found = search.answer().await.map(Box::new);
            match open_pinhole(config, wanted, local, found).await {
                Ok(lease) => return Ok(lease),
                Err(error) => tried.push((Means::Igd, error)),
            }
        }
        Err(MapError::Refused(tried))
    }

    /// Makes it last again. The external address may be another one afterwards.
    pub(super) async fn renew(&mut self, config: &PortMapperConfig) -> Result<(), String> {
        let seconds = seconds(config.lifetime);
        match &mut self.kind {
            Kind::Pcp { server, nonce, wanted } => {
                let (server, nonce, wanted) = (*server, *nonce, *wanted);
                *self = pcp_map(config, server, wanted, nonce, Some(self.external)).await?;
                Ok(())
            }
            Kind::NatPmp { server, wanted } => {
                let (server, wanted) = (*server, *wanted);
                let asked = nat_pmp::external(server, wanted.local.ip(), config.patience).await;
                let wanted = Wanted { external_port: Some(self.external.port()), ..wanted };
                *self = map_by_nat_pmp(config, server, wanted, asked.map_err(text)).await?;
                Ok(())
            }
            Kind::Igd { gateway, wanted } => {
                let wanted = Wanted { external_port: Some(self.external.port()), ..*wanted };
                let lasting = if self.lifetime.is_some() { seconds } else { 0 };
                let adding = add_port(gateway, wanted, lasting);
                let (port, _) = timeout(config.patience, adding).await.map_err(text)??;
                self.external.set_port(port);
                let ip = timeout(config.patience, gateway.get_external_ip()).await.map_err(text)?;
                self.external.set_ip(ip.map_err(text)?);
                Ok(())
            }
            Kind::Pinhole { gateway, transport, local, id } => {
                let seconds = seconds.clamp(1, LONGEST_PINHOLE);
                let updating = gateway.update_pinhole(*id, seconds);
                match timeout(config.patience, updating).await.map_err(text)? {
                    Err(PinholeError::NoSuchEntry) => {
                        let opening = gateway.add_pinhole(igd(*transport), *local, seconds);
                        let opened = timeout(config.patience, opening).await.map_err(text)?;
                        *id = opened.map_err(text)?;
                        Ok(())
                    }
                    updated => updated.map_err(text),
                }
            }
        }
    }

    /// Gives it back.
    pub(super) async fn remove(self, config: &PortMapperConfig) -> Result<(), String> {
        let patience = config.patience;
        match self.kind {
            Kind::Pcp { server, nonce, wanted } => {
                let Wanted { transport, local, .. } = wanted;
                let suggested = SocketAddr::new(pcp::any_like(local.ip()), 0);
                let map = pcp::Map { transport, local, nonce, suggested, seconds: 0 };
                pcp::map(server, &map, patience).await.map(drop).map_err(text)
            }
            Kind::NatPmp { server, wanted } => {
                let Wanted { transport, local, .. } = wanted;
                let map = nat_pmp::Map { transport, local, suggested: 0, seconds: 0 };
                nat_pmp::map(server, &map, patience).await.map(drop).map_err(text)
            }
            Kind::Igd { gateway, wanted } => {
                let removing = gateway.remove_port(igd(wanted.transport), self.external.port());
                timeout(patience, removing).await.map_err(text)?.map_err(text)
            }
            Kind::Pinhole { gateway, id, .. } => {
                timeout(patience, gateway.remove_pinhole(id)).await.map_err(text)?.map_err(text)
            }
        }
    }
}

/// A question under way; nobody waits for the answer any more when this is dropped.
struct Asked<T>(JoinHandle<T>);

impl<T, E: std::fmt::Display> Asked<Result<T, E>> {
    async fn answer(mut self) -> Result<T, String> {
        (&mut self.0).await.map_err(text)?.map_err(text)
    }
}

impl<T> Drop for Asked<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The gateway by UPnP: the router of the default route is asked directly (which not all understand),
/// and at the same time all that listen.
pub(super) async fn find_igd(
    gateway: IpAddr,
    patience: Duration,
) -> Result<Gateway<Tokio>, SearchError> {
    let search = |to: SocketAddr| {
        let mut options = SearchOptions::default();
        if let Some(own) = source_towards(SocketAddr::new(gateway, SSDP_PORT)) {
            options.bind_addr = SocketAddr::new(own, 0);
        }
        (options.timeout, options.single_search_timeout) = (Some(patience), Some(patience));
        options.gateway_ip_version = GatewayIpVersion::V4;
        options.broadcast_address = to;
        search_gateway(options)
    };
    let direct = search(SocketAddr::new(gateway, SSDP_PORT));
    let all = search((SSDP_GROUP, SSDP_PORT).into());
    first(direct, all).await
}

/// The firewall by UPnP. Who answers has to name a page at the address from which it does: a link-local
/// address of its own if it is asked from such a one, else another. Which one it names is its choice.
async fn find_firewall(
    local: SocketAddrV6,
    scope: u32,
    patience: Duration,
) -> Result<Ipv6FirewallGateway<Tokio>, SearchError> {
    let search = |own: Ipv6Addr| {
        let mut options = SearchOptions::ipv6(scope);
        options.bind_addr = (own, 0).into();
        (options.timeout, options.single_search_timeout) = (Some(patience), Some(patience));
        search_ipv6_firewall_gateway(options)
    };
    first(search(*local.ip()), search(Ipv6Addr::UNSPECIFIED)).await
}

/// The first success, else the later error.
async fn first<T, E>(
    one: impl Future<Output = Result<T, E>>,
    other: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::pin!(one, other);
    tokio::select! {
        found = &mut one => match found {
            Ok(found) => Ok(found),
            Err(_) => other.await,
        },
        found = &mut other => match found {
            Ok(found) => Ok(found),
            Err(_) => one.await,
        },
    }
}

async fn map_by_pcp(
    config: &PortMapperConfig,
    server: SocketAddr,
    wanted: Wanted,
) -> Result<Lease, String> {
    let mut nonce = Nonce::default();
    OsRng.try_fill_bytes(&mut nonce).map_err(text)?;
    pcp_map(config, server, wanted, nonce, None).await
}

async fn pcp_map(
    config: &PortMapperConfig,
    server: SocketAddr,
    wanted: Wanted,
    nonce: Nonce,
    before: Option<SocketAddr>,
) -> Result<Lease, String> {
    let Wanted { transport, local, .. } = wanted;
    let any = SocketAddr::new(pcp::any_like(local.ip()), wanted.port());
    let suggested = before.unwrap_or(any);
    let map = pcp::Map { transport, local, nonce, suggested, seconds: seconds(config.lifetime) };
    let mapped = pcp::map(server, &map, config.patience).await.map_err(text)?;
    Ok(Lease {
        kind: Kind::Pcp { server, nonce, wanted },
        external: mapped.external,
        lifetime: Some(Duration::from_secs(mapped.seconds.into())),
        epoch: Some(mapped.epoch),
    })
}

async fn map_by_nat_pmp(
    config: &PortMapperConfig,
    server: SocketAddr,
    wanted: Wanted,
    external: Result<(Ipv4Addr, u32), String>,
) -> Result<Lease, String> {
    let (ip, _) = external?;
    let Wanted { transport, local, .. } = wanted;
    let (suggested, seconds) = (wanted.port(), seconds(config.lifetime));
    let map = nat_pmp::Map { transport, local, suggested, seconds };
    let mapped = nat_pmp::map(server, &map, config.patience).await.map_err(text)?;
    Ok(Lease {
        kind: Kind::NatPmp { server, wanted },
        external: SocketAddr::new(ip.into(), mapped.port),
        lifetime: Some(Duration::from_secs(mapped.seconds.into())),
        epoch: Some(mapped.epoch),
    })
}

async fn map_by_igd(
    config: &PortMapperConfig,
    wanted: Wanted,
    found: Result<Box<Gateway<Tokio>>, String>,
) -> Result<Lease, String> {
    let gateway = found?;
    let patience = config.patience;
    let ip = timeout(patience, gateway.get_external_ip()).await.map_err(text)?.map_err(text)?;
    let adding = add_port(&gateway, wanted, seconds(config.lifetime));
    let (port, lasting) = timeout(patience, adding).await.map_err(text)??;
    let external = SocketAddr::new(ip, port);
    let lifetime = (lasting > 0).then(|| Duration::from_secs(lasting.into()));
    Ok(Lease { kind: Kind::Igd { gateway, wanted }, external, lifetime, epoch: None })
}

/// Returns the external port, and for how many seconds; 0 is for ever, where the router knows nothing
/// else.
async fn add_port(
    gateway: &Gateway<Tokio>,
    wanted: Wanted,
    seconds: u32,
) -> Result<(u16, u32), String> {
    let (transport, local) = (igd(wanted.transport), wanted.local);
    let port = wanted.port();
    let mut lasting = seconds;
    let mut added = gateway.add_port(transport, port, local, lasting, DESCRIPTION).await;
    if matches!(added, Err(AddPortError::OnlyPermanentLeasesSupported)) {
        lasting = 0;
        added = gateway.add_port(transport, port, local, lasting, DESCRIPTION).await;
    }
    match added {
        Ok(()) => Ok((port, lasting)),
        Err(AddPortError::PortInUse) => {
            let added = gateway.add_any_port(transport, local, lasting, DESCRIPTION).await;
            added.map(|port| (port, lasting)).map_err(text)
        }
        Err(error) => Err(text(error)),
    }
}

async fn open_pinhole(
    config: &PortMapperConfig,
    wanted: Wanted,
    local: SocketAddrV6,
    found: Result<Box<Ipv6FirewallGateway<Tokio>>, String>,
) -> Result<Lease, String> {
    let gateway = found?;
    let seconds = seconds(config.lifetime).clamp(1, LONGEST_PINHOLE);
    let opening = gateway.add_pinhole(igd(wanted.transport), local, seconds);
    let id = timeout(config.patience, opening).await.map_err(text)?.map_err(text)?;
    let lifetime = Some(Duration::from_secs(seconds.into()));
    let kind = Kind::Pinhole { gateway, transport: wanted.transport, local, id };
    Ok(Lease { kind, external: local.into(), lifetime, epoch: None })
}

fn seconds(lifetime: Duration) -> u32 {
    u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX).max(1)
}

const fn igd(transport: Transport) -> PortMappingProtocol {
    match transport {
        Transport::Udp => PortMappingProtocol::UDP,
        Transport::Tcp => PortMappingProtocol::TCP,
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
