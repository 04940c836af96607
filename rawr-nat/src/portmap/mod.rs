//! Port mappings: a router is asked to let in what comes to a port of its own, by PCP (RFC 6887),
//! NAT-PMP (RFC 6886) and UPnP-IGD, all at once. For IPv6 it is a hole in its firewall, by PCP or
//! IGD's WANIPv6FirewallControl.
//!
//! A mapping is renewed at half of its lifetime, made anew when the gateway has forgotten it, and
//! removed when it is no longer wanted.

mod epoch;
mod exchange;
mod gateway;
mod keeper;
mod lease;
mod nat_pmp;
mod pcp;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinHandle;

use keeper::Keeper;
use lease::{Lease, Wanted};

pub use gateway::{Gateway6, Gateways};

/// What is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A UDP port.
    Udp,
    /// A TCP port.
    Tcp,
}

/// By what a mapping is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Means {
    /// The Port Control Protocol (RFC 6887).
    Pcp,
    /// The NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP's Internet Gateway Device.
    Igd,
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Igd => "UPnP-IGD",
        })
    }
}

/// A choice of means: those that may be used, or those that a gateway answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// UPnP-IGD.
    pub igd: bool,
    /// NAT-PMP.
    pub nat_pmp: bool,
    /// PCP.
    pub pcp: bool,
}

impl Protocols {
    /// All.
    pub const ALL: Self = Self { igd: true, nat_pmp: true, pcp: true };
    /// None.
    pub const NONE: Self = Self { igd: false, nat_pmp: false, pcp: false };
}

/// The settings of a [`PortMapper`].
#[derive(Clone, Copy, Debug)]
pub struct PortMapperConfig {
    /// Who is asked.
    pub gateways: Gateways,
    /// By what.
    pub uses: Protocols,
    /// How long a mapping is to last without being renewed. A gateway may grant less.
    pub lifetime: Duration,
    /// How long each means has to answer.
    pub patience: Duration,
    /// How often a gateway is asked whether it has forgotten its mappings.
    pub check: Duration,
}

impl PortMapperConfig {
    /// The gateways of the default routes by all means: two hours, a second, a minute.
    pub fn of_this_host() -> Self {
        Self {
            gateways: Gateways::of_this_host(),
            uses: Protocols::ALL,
            lifetime: Duration::from_secs(7_200),
            patience: Duration::from_secs(1),
            check: Duration::from_secs(60),
        }
    }
}

/// A port of a gateway's that leads to one of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// UDP or TCP.
    pub transport: Transport,
    /// Our socket.
    pub local: SocketAddr,
    /// Where others reach it.
    pub external: SocketAddr,
    /// By what it was made.
    pub means: Means,
    /// How long it lasts without being renewed; `None`: until it is removed.
    pub lifetime: Option<Duration>,
    /// Whether there is another NAT behind the gateway, so that the external address is of no use on
    /// the Internet.
    pub is_double_nat: bool,
}

/// Why there is no mapping.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no gateway for that family of addresses.
    #[error("no port mapping: the host has no default gateway for such an address")]
    NoGateway,
    /// The socket is bound to all addresses, or has no port.
    #[error("no port mapping: {0} is not one address and port that a router could send to")]
    NotOne(SocketAddr),
    /// No means has worked: each with what became of it.
    #[error("no port mapping{}; a router may have to be told to allow one",
        .0.iter().map(|(means, why)| format!("; {means}: {why}")).collect::<String>())]
    Refused(Vec<(Means, String)>),
}

/// Asks gateways for mappings and keeps them.
///
/// [`PortMapper::close`] removes them. Where it is dropped instead, they are removed in the
/// background, as long as the runtime lives.
#[derive(Debug)]
pub struct PortMapper {
    config: PortMapperConfig,
    stop: watch::Sender<bool>,
    keepers: Vec<JoinHandle<()>>,
}

impl PortMapper {
    /// Nothing is asked yet.
    pub fn new(config: PortMapperConfig) -> Self {
        Self { config, stop: watch::Sender::new(false), keepers: Vec::new() }
    }

    /// Which means the gateways answer to. No mapping is made for that.
    pub async fn protocols(&self) -> Protocols {
        let PortMapperConfig { gateways, uses, patience, .. } = self.config;
        let servers = [gateways.server4(), gateways.server6()];
        let pcp = async {
            let [a, b] =
                servers.map(|server| async move { pcp::announce(server?, patience).await.ok() });
            let (a, b) = tokio::join!(a, b);
            uses.pcp && (a.is_some() || b.is_some())
        };
        let nat_pmp = async {
            let Some(server) = gateways.server4().filter(|_| uses.nat_pmp) else { return false };
            let Some(source) = gateway::source_towards(server) else { return false };
            nat_pmp::external(server, source, patience).await.is_ok()
        };
        let igd = async {
            let Some(server) = gateways.server4().filter(|_| uses.igd) else { return false };
            lease::find_igd(server.ip(), patience).await.is_ok()
        };
        let (pcp, nat_pmp, igd) = tokio::join!(pcp, nat_pmp, igd);
        Protocols { igd, nat_pmp, pcp }
    }

    /// Has `local` mapped; it is the address of a socket, not of all interfaces. The mapping stays
    /// until what is returned is dropped.
    ///
    /// # Errors
    /// If no gateway makes one, with the reasons of each means.
    pub async fn map(
        &mut self,
        transport: Transport,
        local: SocketAddr,
    ) -> Result<MappedPort, MapError> {
        if local.ip().is_unspecified() || local.port() == 0 {
            return Err(MapError::NotOne(local));
        }
        let wanted = Wanted { transport, local, external_port: None };
        let lease = Lease::obtain(&self.config, wanted).await?;
        let (publish, mapping) = watch::channel(Some(mapping_of(wanted, &lease)));
        let unwanted = watch::Sender::new(false);
        let stops = [self.stop.subscribe(), unwanted.subscribe()];
        let keeper = Keeper::new(self.config, wanted, lease, publish, now());
        self.keepers.retain(|keeper| !keeper.is_finished());
        self.keepers.push(tokio::spawn(keeper.run(stops)));
        Ok(MappedPort { mapping, unwanted })
    }

    /// Removes all mappings, and waits until the gateways have confirmed it or had their time.
    pub async fn close(mut self) {
        self.stop.send_replace(true);
        for keeper in std::mem::take(&mut self.keepers) {
            if let Err(error) = keeper.await {
                log::warn!("a port mapping may be left: {error}");
            }
        }
    }
}

impl Drop for PortMapper {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// A mapping that is kept. Dropped, it is removed in the background.
#[derive(Debug)]
pub struct MappedPort {
    mapping: watch::Receiver<Option<Mapping>>,
    unwanted: watch::Sender<bool>,
}

impl MappedPort {
    /// The mapping as it is now; `None` while there is none.
    pub fn mapping(&self) -> Option<Mapping> {
        *self.mapping.borrow()
    }

    /// Waits until it has changed: another external address, or none.
    ///
    /// # Errors
    /// If the mapper has been closed.
    pub async fn changed(&mut self) -> io::Result<Option<Mapping>> {
        let changed = self.mapping.changed().await;
        changed.map_err(|_| io::Error::other("the port mapper has been closed"))?;
        Ok(*self.mapping.borrow_and_update())
    }
}

impl Drop for MappedPort {
    fn drop(&mut self) {
        self.unwanted.send_replace(true);
    }
}

fn mapping_of(wanted: Wanted, lease: &Lease) -> Mapping {
    Mapping {
        transport: wanted.transport,
        local: wanted.local,
        external: lease.external,
        means: lease.means(),
        lifetime: lease.lifetime,
        is_double_nat: gateway::is_behind_another_nat(lease.external.ip()),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is a driver")]
fn now() -> Instant {
    Instant::now()
}
