//! Who is asked when a socket is mapped: routers and external servers.

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::ask::Speaks;
use super::error::MapWarning;
use super::socket::{is_in_use, to_map};
use crate::classify::{self, ClassifyConfig, Evidence, FamilyReport, Report};
use crate::driver::now;
use crate::nat::Behaviour;

/// How long a report on the NATs is taken for true.
const REPORT_AGE: Duration = Duration::from_secs(120);
/// How long a classification may take. What is cut short is unknown, and not wrong.
const CLASSIFY: Duration = Duration::from_millis(2500);

/// The address of a server that can be used to obtain an external address.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum HolePunchServerAddr {
    /// A server which speaks the [simple hole punching protocol](super#the-simple-protocol), such as a
    /// [`SimpleUdpHolePunchServer`](super::SimpleUdpHolePunchServer). It serves UDP alone.
    Simple(SocketAddr),
    /// A STUN server (RFC 8489), which serves UDP and TCP. One with two addresses (RFC 5780) tells what
    /// the NATs do, as well.
    Stun(SocketAddr),
    /// A router that maps ports on request.
    IgdGateway(Arc<dyn PortMapping>),
}

/// Of which kind a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// UDP.
    Udp,
    /// TCP.
    Tcp,
}

/// A port of a router's that leads to one of ours.
pub struct PortLease {
    /// Where others reach it.
    pub external: SocketAddr,
    /// Whether another NAT stands behind the router.
    pub is_double_nat: bool,
    /// Dropped when the mapping is wanted no more.
    pub guard: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for PortLease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortLease")
            .field("external", &self.external)
            .field("is_double_nat", &self.is_double_nat)
            .finish_non_exhaustive()
    }
}

/// What a router says to a wish: a lease, or why there is none.
pub type MapFuture<'a> = Pin<Box<dyn Future<Output = Result<PortLease, String>> + Send + 'a>>;

/// Until all is given back.
pub type ReleaseFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A router that maps ports on request, by whatever protocol. `Display` is what it is called in
/// warnings.
pub trait PortMapping: fmt::Debug + fmt::Display + Send + Sync {
    /// Has a port mapped, and keeps it mapped until the guard of the lease is dropped. `local` is the
    /// address of one interface.
    fn map(&self, transport: Transport, local: SocketAddr) -> MapFuture<'_>;

    /// Gives everything back that is mapped, and waits until the router has confirmed it or had its time.
    fn release(&self) -> ReleaseFuture<'_> {
        Box::pin(std::future::ready(()))
    }
}

/// You need to create a `MappingContext` before doing any socket mapping. It should be kept throughout
/// the lifetime of the program: it knows routers and servers, remembers what the NATs do, and holds the
/// port mappings of routers.
///
/// A port mapping is given back some time after its socket is closed, when the next socket is mapped,
/// or when the context is closed or dropped.
#[derive(Debug, Default)]
pub struct MappingContext {
    servers: RwLock<Vec<HolePunchServerAddr>>,
    leases: Mutex<Vec<Lease>>,
    report: tokio::sync::Mutex<Option<(Instant, Report)>>,
}

#[derive(Debug)]
struct Lease {
    transport: Transport,
    local: SocketAddr,
    /// Held, and not looked at.
    _lease: PortLease,
}

/// What the context finds out for a socket.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    pub(super) mapped: Vec<(SocketAddr, bool)>,
    pub(super) reported: [Option<Behaviour>; 2],
    pub(super) warnings: Vec<MapWarning>,
}

impl MappingContext {
    /// Create a new mapping context. This takes up to a second, in which the routers of the default routes are
    /// asked for PCP, NAT-PMP and UPnP-IGD. Without the feature `portmap` none is asked.
    ///
    /// # Errors
    /// None yet.
    pub async fn new() -> io::Result<Self> {
        let context = Self::without_gateways();
        #[cfg(feature = "portmap")]
        super::gateway::find(&context).await;
        Ok(context)
    }

    /// A context without any router: only servers are asked. [`MappingContext::add_servers`] takes both.
    pub fn without_gateways() -> Self {
        Self::default()
    }

    /// Inform the context about external hole punching servers, and about routers. Those that it has
    /// already are not taken twice.
    pub fn add_servers<S>(&self, servers: S)
    where
        S: IntoIterator<Item = HolePunchServerAddr>,
    {
        let mut known = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        for server in servers {
            if !known.iter().any(|other| is_same(other, &server)) {
                known.push(server);
            }
        }
    }

    /// The servers and routers, in the order in which they were added.
    pub fn servers(&self) -> Vec<HolePunchServerAddr> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Forgets what the NATs do, for a host that has moved to another network. It is also forgotten
    /// when servers see another external address, and after two minutes.
    pub async fn forget(&self) {
        *self.report.lock().await = None;
    }

    /// Has routers remove all port mappings, and waits until they have confirmed it or had their time. Where the
    /// context is dropped instead, that is done in the background, as long as the runtime lives.
    pub async fn close(self) {
        self.leases().clear();
        for server in self.servers() {
            if let HolePunchServerAddr::IgdGateway(gateway) = server {
                gateway.release().await;
            }
        }
    }

    /// The servers that are asked over UDP.
    pub(super) fn udp_servers(&self) -> Vec<(Speaks, SocketAddr)> {
        let servers = self.servers();
        let speaking = servers.iter().filter_map(|server| match server {
            HolePunchServerAddr::Simple(at) => Some((Speaks::Simple, *at)),
            HolePunchServerAddr::Stun(at) => Some((Speaks::Stun, *at)),
            HolePunchServerAddr::IgdGateway(_) => None,
        });
        speaking.collect()
    }

    /// Those that are asked over TCP, too.
    pub(super) fn stun_servers(&self) -> Vec<SocketAddr> {
        let speaking = self.udp_servers().into_iter();
        speaking.filter(|(speaks, _)| *speaks == Speaks::Stun).map(|(_, at)| at).collect()
    }

    /// Has all routers map a socket's port, and finds out what the NATs do, at the same time.
    pub(super) async fn surroundings(
        &self,
        transport: Transport,
        own: &[SocketAddr],
    ) -> Surroundings {
        let ((mapped, mut warnings), reported) =
            tokio::join!(self.map_ports(transport, own), self.behaviours(transport));
        let reported = reported.unwrap_or_else(|error| {
            warnings.push(MapWarning::Unclassified(error.to_string()));
            [None; 2]
        });
        Surroundings { mapped, reported, warnings }
    }

    async fn map_ports(
        &self,
        transport: Transport,
        own: &[SocketAddr],
    ) -> (Vec<(SocketAddr, bool)>, Vec<MapWarning>) {
        self.give_back();
        let mut asked = Vec::new();
        for server in self.servers() {
            let HolePunchServerAddr::IgdGateway(gateway) = server else { continue };
            for local in to_map(own) {
                let gateway = Arc::clone(&gateway);
                asked.push(tokio::spawn(async move {
                    let lease = gateway.map(transport, local).await;
                    (local, gateway.to_string(), lease)
                }));
            }
        }
        let (mut mapped, mut warnings) = (Vec::new(), Vec::new());
        for answer in asked {
            let Ok((local, gateway, lease)) = answer.await else { continue };
            match lease {
                Ok(lease) => {
                    if lease.is_double_nat {
                        warnings.push(MapWarning::DoubleNat(lease.external));
                    }
                    mapped.push((lease.external, lease.is_double_nat));
                    self.leases().push(Lease { transport, local, _lease: lease });
                }
                Err(why) => warnings.push(MapWarning::NotMapped { gateway, why }),
            }
        }
        (mapped, warnings)
    }

    /// What the NATs do, by family. Nothing where no STUN server is known.
    async fn behaviours(&self, transport: Transport) -> io::Result<[Option<Behaviour>; 2]> {
        let servers = self.stun_servers();
        if servers.is_empty() {
            return Ok([None; 2]);
        }
        // Sockets that are mapped at the same time wait for one classification.
        let mut report = self.report.lock().await;
        let is_fresh =
            |(at, _): &(Instant, Report)| now().saturating_duration_since(*at) < REPORT_AGE;
        if !report.as_ref().is_some_and(is_fresh) {
            let config = ClassifyConfig {
                timeout: CLASSIFY,
                routers: false,
                ..ClassifyConfig::new(servers)
            };
            *report = Some((now(), classify::run(config).await?));
        }
        let Some((_, report)) = &*report else { return Ok([None; 2]) };
        Ok([&report.ipv4, &report.ipv6].map(|family| behaviour(family.as_ref(), transport)))
    }

    /// Gives the mappings back whose sockets are closed.
    fn give_back(&self) {
        self.leases().retain(|lease| is_in_use(lease.transport, lease.local));
    }

    fn leases(&self) -> std::sync::MutexGuard<'_, Vec<Lease>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where one server alone has answered, the mapping is a guess, and the socket's own answers are as
/// good.
fn behaviour(report: Option<&FamilyReport>, transport: Transport) -> Option<Behaviour> {
    let report = report?;
    let (behaviour, evidence) = match transport {
        Transport::Udp => (report.udp, report.udp_evidence),
        Transport::Tcp => (report.tcp, report.tcp_evidence),
    };
    behaviour.filter(|_| Evidence::is_measured(&evidence))
}

fn is_same(a: &HolePunchServerAddr, b: &HolePunchServerAddr) -> bool {
    use HolePunchServerAddr::{IgdGateway, Simple, Stun};
    match (a, b) {
        (Simple(a), Simple(b)) | (Stun(a), Stun(b)) => a == b,
        (IgdGateway(a), IgdGateway(b)) => Arc::ptr_eq(a, b),
        (Simple(_) | Stun(_) | IgdGateway(_), _) => false,
    }
}
