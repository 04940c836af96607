//! Keeps the topology true to the kernel, and the next hops that flows use true to the topology.
//!
//! Notifications come by [`rtnetlink`]'s multicast connection; questions go by a socket of their
//! own ([`requests`]). XDP forwards past the kernel's stack, which therefore never learns that a
//! neighbour is alive: neighbours in use are verified here, every [`Config::verify_every`].

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use ipnet::IpNet;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::AsyncSocket;
use tokio::time::{Instant, sleep_until};

use self::requests::Requests;
use super::neighbours::{AllNodes, Step, Sweep, SweepConfig};
use crate::dataplane::NextHop;
use crate::topology::watch::{Changed, Pair, WatchSet};
use crate::topology::{Change, Mac, NeighbourKey, NeighbourState, Topology};

mod decode;
pub mod requests;

/// Routes asked for in one go before other work gets its turn; about 5 µs each.
const ROUTES_AT_ONCE: usize = 256;

/// How often neighbours in use are looked after.
const TICK: Duration = Duration::from_secs(1);

/// Most neighbours that are verified or provoked in one tick.
const NEIGHBOURS_PER_TICK: usize = 512;

/// How long answers to IPv6 pings are awaited.
const LISTEN: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Config {
    /// How long to wait for more news after a link or a route has changed. At most 50 ms.
    pub debounce: Duration,
    /// Within this time every neighbour in use is asked whether its MAC address still holds.
    pub verify_every: Duration,
    /// Bytes of notifications that may wait to be read: routing daemons change thousands of routes
    /// at once. If they do not fit, everything is read anew.
    pub receive_buffer: usize,
    pub sweep: SweepConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(20),
            verify_every: Duration::from_secs(10),
            receive_buffer: 4 << 20,
            sweep: SweepConfig::default(),
        }
    }
}

/// What [`NextHopResolver::next`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkEvent {
    /// A watched pair's next hop is not what it was. `None`: the fast path cannot send there now.
    NextHop { remote: IpAddr, local: IpAddr, next_hop: Option<NextHop> },
    /// A host on one of our links got or lost a MAC address.
    Neighbour { ip: IpAddr, mac: Option<Mac>, ifindex: u32 },
    /// An interface came, went or changed.
    Link { ifindex: u32 },
    /// Own addresses changed.
    Addresses,
}

#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("cannot open an rtnetlink socket: {0}; is CONFIG_NET on and AF_NETLINK allowed here?")]
    Open(#[source] io::Error),
    #[error("cannot read links, addresses and neighbours by rtnetlink: {0}")]
    Dump(#[source] io::Error),
}

/// Resolves next hops and watches over them, in the network namespace where it was opened.
pub struct NextHopResolver {
    config: Config,
    requests: Requests,
    notifications: BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>,
    topology: Topology,
    watches: WatchSet,
    sweep: Sweep,
    all_nodes: Option<(AllNodes, Instant)>,
    /// Neighbours still to be verified in this round.
    unverified: Vec<NeighbourKey>,
    requery_at: Option<Instant>,
    tick_at: Instant,
    outbox: VecDeque<NetworkEvent>,
}

impl NextHopResolver {
    /// Subscribes, then reads what there is, so that nothing falls between the two. The neighbours
    /// found are the first events. Must be called within a tokio runtime.
    pub fn open(config: Config) -> Result<Self, NetlinkError> {
        let notifications = subscribe(&config).map_err(NetlinkError::Open)?;
        let mut requests = Requests::open().map_err(NetlinkError::Open)?;
        let topology = requests.dump().map_err(NetlinkError::Dump)?;
        let sweep = Sweep::new(config.sweep.clone());
        let mut resolver = Self {
            config,
            requests,
            notifications,
            topology: Topology::default(),
            watches: WatchSet::default(),
            sweep,
            all_nodes: None,
            unverified: Vec::new(),
            requery_at: None,
            tick_at: Instant::now() + TICK,
            outbox: VecDeque::new(),
        };
        resolver.replace(topology);
        Ok(resolver)
    }

    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Counts one more user of the pair, and returns its next hop. Asks the kernel if the pair is
    /// new; if the neighbour is not resolved yet, its resolution begins and an event will tell.
    pub fn watch(&mut self, remote: IpAddr, local: IpAddr) -> Option<NextHop> {
        let pair = Pair { remote, local };
        if self.watches.add(pair) {
            self.ask(pair);
        }
        self.watches.current(pair)
    }

    /// Counts one user less. After the last one no more events come for the pair.
    pub fn unwatch(&mut self, remote: IpAddr, local: IpAddr) {
        self.watches.remove(Pair { remote, local });
    }

    /// The current next hop of a watched pair; a look into a table.
    pub fn next_hop(&self, remote: IpAddr, local: IpAddr) -> Option<NextHop> {
        self.watches.current(Pair { remote, local })
    }

    /// Looks for silent hosts on own subnets that have not been probed of late. Whoever is found
    /// comes as a [`NetworkEvent::Neighbour`].
    pub fn probe_neighbours(&mut self) {
        let added = self.sweep.start(Instant::now().into_std(), &self.topology);
        log::debug!("probing {added} addresses of own subnets for silent hosts");
        self.advance_sweep();
    }

    /// The next event. Cancel safe. All of the resolver's work happens in here, so keep polling it.
    pub async fn next(&mut self) -> NetworkEvent {
        loop {
            if let Some(event) = self.outbox.pop_front() {
                return event;
            }
            let deadline = self.deadline();
            tokio::select! {
                message = self.notifications.next() => self.on_notification(message),
                answer = answered(self.all_nodes.as_ref()) => self.on_answer(answer),
                () = sleep_until(deadline) => self.on_timeout(Instant::now()),
            }
        }
    }

    fn deadline(&self) -> Instant {
        let sweep = self.sweep.poll_timeout().map(Instant::from_std);
        let listen = self.all_nodes.as_ref().map(|(_, until)| *until);
        let others = [self.requery_at, sweep, listen];
        others.into_iter().flatten().fold(self.tick_at, Instant::min)
    }

    fn on_notification(&mut self, message: Option<NetlinkMessage<RouteNetlinkMessage>>) {
        match message.map(|message| message.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => {
                if let Some(event) = decode::event(message) {
                    let change = self.topology.apply(event);
                    self.on_change(change);
                }
            }
            Some(NetlinkPayload::Overrun(_)) => {
                log::info!("rtnetlink notifications were lost: reading everything anew");
                self.resync();
            }
            Some(_) => {}
            None => self.resubscribe(),
        }
    }

    fn on_change(&mut self, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Neighbour { key, mac_changed } => self.on_neighbour(key, mac_changed),
            Change::Addresses => {
                self.outbox.push_back(NetworkEvent::Addresses);
                self.requery_soon(None);
            }
            Change::Link(ifindex) => {
                self.outbox.push_back(NetworkEvent::Link { ifindex });
                self.requery_soon(None);
            }
            Change::Routes(subnet) => self.requery_soon(subnet),
        }
    }

    fn on_neighbour(&mut self, key: NeighbourKey, mac_changed: bool) {
        if mac_changed {
            let mac = self.topology.neighbour(key).and_then(|entry| entry.mac);
            let (ip, ifindex) = (key.ip, key.ifindex);
            self.outbox.push_back(NetworkEvent::Neighbour { ip, mac, ifindex });
            let changed = self.watches.neighbour_changed(key, &self.topology);
            self.outbox.extend(changed.into_iter().map(NetworkEvent::from));
        }
        if self.watches.uses(key) {
            self.provoke_if_unresolved(key);
        }
    }

    /// Asks again for routes into a subnet (`None`: for all) once there is no more news.
    fn requery_soon(&mut self, subnet: Option<IpNet>) {
        self.watches.mark_stale(subnet);
        if self.watches.has_stale() {
            let soon = Instant::now() + self.config.debounce;
            self.requery_at.get_or_insert(soon);
        }
    }

    fn on_timeout(&mut self, now: Instant) {
        if self.requery_at.is_some_and(|at| at <= now) {
            self.requery(now);
        }
        if self.all_nodes.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.all_nodes = None;
        }
        self.advance_sweep();
        if self.tick_at <= now {
            self.tick_at = now + TICK;
            self.look_after_neighbours();
        }
    }

    fn requery(&mut self, now: Instant) {
        for _ in 0..ROUTES_AT_ONCE {
            let Some(pair) = self.watches.next_stale() else { break };
            self.ask(pair);
        }
        self.requery_at = self.watches.has_stale().then_some(now);
    }

    /// Asks for the route of a watched pair and takes the answer in.
    fn ask(&mut self, pair: Pair) {
        let route = self.requests.route(pair, self.scope(pair)).unwrap_or_else(|error| {
            log::warn!("cannot ask for the route from {} to {}: {error}", pair.local, pair.remote);
            None
        });
        let changed = self.watches.set_route(pair, route, &self.topology);
        self.outbox.extend(changed.map(NetworkEvent::from));
        if let Some(route) = route {
            self.provoke_if_unresolved(route.neighbour(pair.remote));
        }
    }

    /// The interface that a link-local address belongs to.
    fn scope(&self, pair: Pair) -> Option<u32> {
        let IpAddr::V6(remote) = pair.remote else { return None };
        let own = |own: &&crate::topology::Address| own.address.addr() == pair.local;
        let own = remote.is_unicast_link_local().then(|| self.topology.addresses().find(own));
        own.flatten().map(|own| own.ifindex)
    }

    fn provoke_if_unresolved(&mut self, key: NeighbourKey) {
        let resolved = self.topology.neighbour(key).is_some_and(|entry| entry.mac.is_some());
        if !resolved && self.topology.link(key.ifindex).is_some_and(|link| link.up) {
            self.provoke(key);
        }
    }

    fn provoke(&mut self, key: NeighbourKey) {
        if let Err(error) = self.requests.provoke(key) {
            log::debug!("cannot provoke the resolution of {}: {error}", key.ip);
        }
    }

    /// Verifies some of the neighbours in use, all of them within `verify_every`, and provokes
    /// those that are not resolved.
    fn look_after_neighbours(&mut self) {
        if self.unverified.is_empty() {
            self.unverified = self.watches.neighbours().collect();
        }
        let ticks = self.config.verify_every.div_duration_f32(TICK).max(1.0);
        let share = (self.watches.neighbours().count() as f32 / ticks).ceil() as usize;
        let share = share.min(NEIGHBOURS_PER_TICK).min(self.unverified.len());
        for key in self.unverified.split_off(self.unverified.len() - share) {
            self.verify(key);
        }
        let unresolved: Vec<_> = self
            .watches
            .neighbours()
            .filter(|key| self.topology.neighbour(*key).is_none_or(|entry| entry.mac.is_none()))
            .take(NEIGHBOURS_PER_TICK)
            .collect();
        for key in unresolved {
            self.provoke_if_unresolved(key);
        }
    }

    fn verify(&mut self, key: NeighbourKey) {
        use NeighbourState::{Failed, Permanent, Probing, Reachable, Resolving, Stale};
        match self.topology.neighbour(key).map(|entry| entry.state) {
            Some(Reachable | Stale) if self.watches.uses(key) => {
                if let Err(error) = self.requests.verify(key) {
                    log::debug!("cannot verify the MAC address of {}: {error}", key.ip);
                }
            }
            Some(Reachable | Stale | Probing | Resolving | Failed | Permanent) | None => {}
        }
    }

    fn advance_sweep(&mut self) {
        for step in self.sweep.poll(Instant::now().into_std(), &self.topology) {
            match step {
                Step::Provoke(key) => self.provoke(key),
                Step::Forget(key) if self.watches.uses(key) => {}
                Step::Forget(key) => {
                    if let Err(error) = self.requests.forget(key) {
                        log::trace!("cannot remove the entry of {}: {error}", key.ip);
                    }
                }
                Step::PingAll { ifindex, source } => {
                    if let Err(error) = self.ping_all(ifindex, source) {
                        log::warn!("cannot ping the IPv6 hosts of interface {ifindex}: {error}");
                    }
                }
            }
        }
    }

    fn ping_all(&mut self, ifindex: u32, source: std::net::Ipv6Addr) -> io::Result<()> {
        let until = Instant::now() + LISTEN;
        let all_nodes = match self.all_nodes.take() {
            Some((all_nodes, _)) => all_nodes,
            None => AllNodes::open()?,
        };
        let (all_nodes, _) = self.all_nodes.insert((all_nodes, until));
        all_nodes.ping(ifindex, source)
    }

    fn on_answer(&mut self, answer: io::Result<(std::net::Ipv6Addr, Option<u32>)>) {
        match answer {
            Ok((ip, scope)) => {
                let ip = IpAddr::V6(ip);
                let on = scope.or_else(|| self.topology.on_link(ip));
                let Some(ifindex) = on else { return };
                self.provoke_if_unresolved(NeighbourKey { ifindex, ip });
            }
            Err(error) => {
                log::warn!("cannot read answers to IPv6 pings: {error}");
                self.all_nodes = None;
            }
        }
    }

    fn resubscribe(&mut self) {
        log::warn!("the rtnetlink subscription ended: subscribing anew");
        match subscribe(&self.config) {
            Ok(notifications) => self.notifications = notifications,
            Err(error) => {
                log::error!("cannot subscribe to rtnetlink: {error}; trying again in {TICK:?}");
                self.notifications = retry_later();
                return;
            }
        }
        self.resync();
    }

    fn resync(&mut self) {
        match self.requests.dump() {
            Ok(topology) => self.replace(topology),
            Err(error) => log::error!("cannot read the network's state by rtnetlink: {error}"),
        }
        self.requery_soon(None);
    }

    /// Puts a fresh topology in place of the old one and tells what differs.
    fn replace(&mut self, topology: Topology) {
        let old = std::mem::replace(&mut self.topology, topology);
        let mac = |topology: &Topology, key| topology.neighbour(key).and_then(|entry| entry.mac);
        let keys: Vec<_> = old
            .neighbours()
            .chain(self.topology.neighbours())
            .map(|entry| entry.key)
            .filter(|key| mac(&old, *key) != mac(&self.topology, *key))
            .collect();
        for key in keys {
            self.on_neighbour(key, true);
        }
        let links: Vec<_> = old.links().chain(self.topology.links()).map(|it| it.ifindex).collect();
        for ifindex in links {
            if old.link(ifindex) != self.topology.link(ifindex) {
                self.outbox.push_back(NetworkEvent::Link { ifindex });
            }
        }
        if !old.addresses().eq(self.topology.addresses()) {
            self.outbox.push_back(NetworkEvent::Addresses);
        }
    }
}

impl From<Changed> for NetworkEvent {
    fn from(changed: Changed) -> Self {
        let Pair { remote, local } = changed.pair;
        Self::NextHop { remote, local, next_hop: changed.next_hop }
    }
}

async fn answered(
    all_nodes: Option<&(AllNodes, Instant)>,
) -> io::Result<(std::net::Ipv6Addr, Option<u32>)> {
    match all_nodes {
        Some((all_nodes, _)) => all_nodes.answered().await,
        None => std::future::pending().await,
    }
}

/// Opens the multicast connection; a task of the runtime reads it.
fn subscribe(
    config: &Config,
) -> io::Result<BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>>> {
    let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Neigh,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])?;
    let socket = connection.socket_mut().socket_mut();
    if let Err(error) = socket.set_rx_buf_sz(config.receive_buffer as libc::c_int) {
        log::debug!("rtnetlink: the receive buffer stays small: {error}");
    }
    tokio::spawn(connection);
    Ok(messages.map(|(message, _)| message).boxed())
}

/// A subscription that ends after a while, which makes the resolver try again.
fn retry_later() -> BoxStream<'static, NetlinkMessage<RouteNetlinkMessage>> {
    let until = Instant::now() + TICK;
    futures_util::stream::once(sleep_until(until)).filter_map(|()| async { None }).boxed()
}
