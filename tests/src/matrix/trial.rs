//! One trial of a cell: both hosts look for each other, something may happen to them, and what came of it.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::cell::{Axis, Cell};
use super::kind::{Expected, Outcome};
use super::site::Site;
use super::words::{Account, News, Order, Over, Start};
use crate::lab::Family;
use crate::process::now;
use crate::scene::random_secret;
use crate::topology::INTERNET;

/// How long a path without a relay may take to be found.
const DIRECT_LIMIT: Duration = Duration::from_secs(20);
/// How long it is waited for where none is expected. Then data has to flow, at least.
const RELAY_LIMIT: Duration = Duration::from_secs(5);
/// Between a path that is there and what happens to it.
const SETTLE: Duration = Duration::from_millis(500);
/// How long is watched what comes of it.
const AFTERMATH: Duration = Duration::from_secs(6);
/// The longest that data may stand still then, in milliseconds.
const LONGEST_GAP: f64 = 3000.0;
/// How long a node may take to end a connection.
const END_LIMIT: Duration = Duration::from_secs(10);
/// Ports that a host has while somebody else has used them all.
const FEW_PORTS: std::ops::Range<u16> = 40_000..40_064;

/// What came of one trial. Times in milliseconds, of the side for which it took longer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    pub outcome: Outcome,
    /// Whether it is as expected.
    pub is_met: bool,
    /// Until data came.
    pub first_byte: Option<f64>,
    /// Until data took a path without a relay.
    pub direct: Option<f64>,
    /// Sent to punch a path, by both sides.
    pub probes: u64,
    /// What data took in the end, on each side.
    pub paths: [Option<String>; 2],
    /// The longest time without data, after what the axis does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<f64>,
    /// Datagrams lost since, of both sides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
    /// Why it is not as expected, as far as it is known.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub reasons: Vec<String>,
}

/// Runs one. Both sides take the part of the one that decides in turn.
pub(super) async fn run(cell: &Cell, number: u32, sites: &mut [Site; 2]) -> Result<Trial> {
    sites.iter().try_for_each(Site::forget)?;
    prepare(cell.axis, sites)?;
    let watched = watch(cell, number, sites).await;
    restore(cell.axis, sites)?;
    let mut watch = watched?;
    watch.stop(sites).await?;
    let [Some(a), Some(b)] = watch.accounts else { bail!("a node has not told how it went") };
    Ok(judge(cell, [a, b]))
}

/// Starts both sides, and lets happen to them what is to happen.
async fn watch(cell: &Cell, number: u32, sites: &mut [Site; 2]) -> Result<Watch> {
    let mut watch = Watch::default();
    let secret = random_secret();
    let over = if cell.is_tcp() { Over::Tcp } else { Over::Udp { probes: cell.probes() } };
    let decides = usize::try_from(number % 2)?;
    for side in [0, 1] {
        if let (Axis::Late(delay), 1) = (cell.axis, side) {
            let delay = Duration::from_millis(delay);
            watch.until(sites, delay, |_| false).await?;
        }
        let (secret, over) = (secret.clone(), over.clone());
        let is_a = side == decides;
        sites[side].tell(&Order::Start(Start {
            secret,
            is_a,
            epoch: u64::from(number) + 1,
            over,
        }))?;
    }
    let limit = match Expected::of(cell.a, cell.b) {
        Expected::Connected if cell.axis == Axis::Plain => RELAY_LIMIT,
        _ => DIRECT_LIMIT,
    };
    let is_direct = watch.until(sites, limit, Watch::is_direct).await?;
    if is_direct && cell.axis.disturbs() {
        watch.until(sites, SETTLE, |_| false).await?;
        sites.iter_mut().try_for_each(|site| site.tell(&Order::Mark))?;
        disturb(cell.axis, sites)?;
        watch.until(sites, AFTERMATH, |_| false).await?;
    }
    Ok(watch)
}

/// What both nodes have said so far.
#[derive(Debug, Default)]
struct Watch {
    has_data: [bool; 2],
    is_direct: [bool; 2],
    accounts: [Option<Account>; 2],
}

impl Watch {
    fn is_direct(&self) -> bool {
        self.is_direct == [true; 2] && self.has_data == [true; 2]
    }

    /// Passes on what the nodes say, until `done` or the time is over. Returns which.
    async fn until(
        &mut self,
        sites: &mut [Site; 2],
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) -> Result<bool> {
        let until = Instant::from_std(now() + limit);
        while !done(self) {
            let [a, b] = &mut *sites;
            let next = async {
                tokio::select! {
                    news = a.news() => (0, news),
                    news = b.news() => (1, news),
                }
            };
            let Ok((side, news)) = timeout_at(until, next).await else { return Ok(false) };
            self.take(sites, side, news?)?;
        }
        Ok(true)
    }

    fn take(&mut self, sites: &mut [Site; 2], side: usize, news: News) -> Result<()> {
        match news {
            News::Signal(bytes) => return sites[1 - side].tell(&Order::Signal(bytes)),
            News::FirstByte => self.has_data[side] = true,
            News::Path { is_direct, .. } => self.is_direct[side] = is_direct,
            News::Done(account) => self.accounts[side] = Some(account),
            News::Classified(_) => {}
        }
        Ok(())
    }

    async fn stop(&mut self, sites: &mut [Site; 2]) -> Result<()> {
        sites.iter_mut().try_for_each(|site| site.tell(&Order::Stop))?;
        let all = |watch: &Self| watch.accounts.iter().all(Option::is_some);
        let is_over = self.until(sites, END_LIMIT, all).await?;
        if is_over { Ok(()) } else { bail!("a node does not end its connection") }
    }
}

fn disturb(axis: Axis, sites: &[Site; 2]) -> Result<()> {
    match axis {
        Axis::RelayDies => sites.iter().try_for_each(|site| deafen(site, "==")),
        Axis::PathDies => sites.iter().try_for_each(|site| deafen(site, "!=")),
        Axis::Reboot => sites[0].forget(),
        Axis::Plain
        | Axis::Probes(_)
        | Axis::Tcp
        | Axis::RoundTrip(_)
        | Axis::Loss(_)
        | Axis::Late(_)
        | Axis::Junk(_)
        | Axis::SamePort => Ok(()),
    }
}

/// Of a hundred packets that come to the host so many do not.
fn lose(site: &Site, percent: u8) -> Result<()> {
    site.host.sh(&format!(
        "nft 'table inet rawr_cut {{ chain arrive {{ type filter hook input priority filter; \
         iifname != \"lo\" numgen random mod 100 < {percent} drop; }}; }}'"
    ))?;
    Ok(())
}

/// Nothing is lost any more, nor cut.
fn mend(site: &Site) -> Result<()> {
    site.host.sh("nft delete table inet rawr_cut 2>/dev/null || true").map(drop)
}

/// Nothing comes to the host any more from the server's address, or from all others.
fn deafen(site: &Site, comparison: &str) -> Result<()> {
    let server = INTERNET.address(Family::Ipv4, 1);
    site.host.sh(&format!(
        "nft 'table inet rawr_cut {{ chain arrive {{ type filter hook input priority filter; \
         iifname != \"lo\" ip saddr {comparison} {server} drop; }}; }}'"
    ))?;
    Ok(())
}

fn prepare(axis: Axis, sites: &[Site; 2]) -> Result<()> {
    match axis {
        Axis::Junk(count) => sites.iter().try_for_each(|site| junk(site, "add", count)),
        Axis::SamePort => use_up(&sites[0]),
        Axis::RoundTrip(time) => sites.iter().try_for_each(|site| site.move_away(time.into())),
        Axis::Loss(percent) => sites.iter().try_for_each(|site| lose(site, percent)),
        _ => Ok(()),
    }
}

/// Takes back what [`prepare`] and [`disturb`] have done.
fn restore(axis: Axis, sites: &[Site; 2]) -> Result<()> {
    match axis {
        Axis::Junk(count) => sites.iter().try_for_each(|site| junk(site, "del", count)),
        Axis::SamePort => sites[0].host.set(PORT_RANGE, "32768 60999"),
        Axis::RoundTrip(_) => sites.iter().try_for_each(|site| site.move_away(0)),
        Axis::Loss(_) | Axis::RelayDies | Axis::PathDies => sites.iter().try_for_each(mend),
        Axis::Plain | Axis::Probes(_) | Axis::Tcp | Axis::Late(_) | Axis::Reboot => Ok(()),
    }
}

/// Addresses of the documentation's (RFC 5737), to which no route leads.
fn junk(site: &Site, what: &str, count: u8) -> Result<()> {
    let lines: Vec<_> =
        (1..=count).map(|i| format!("ip addr {what} 198.51.100.{i}/32 dev eth0")).collect();
    site.host.sh(&lines.join("\n")).map(drop)
}

const PORT_RANGE: &str = "net/ipv4/ip_local_port_range";

/// Has another host of the same subnet write to the server from every port that this host has left.
fn use_up(site: &Site) -> Result<()> {
    let (first, last) = (FEW_PORTS.start, FEW_PORTS.end - 1);
    site.host.set(PORT_RANGE, &format!("{first} {last}"))?;
    let (other, server) = (site.neighbour(), site.server());
    site.host.sh(&format!("ip addr add {other}/24 dev eth0"))?;
    let used = site.host.run(|| FEW_PORTS.clone().try_for_each(|port| write(other, port, server)));
    site.host.sh(&format!("ip addr del {other}/24 dev eth0"))?;
    used?.context("the other host cannot write to the server")
}

fn write(from: std::net::IpAddr, port: u16, server: SocketAddr) -> std::io::Result<()> {
    let socket = UdpSocket::bind((from, port))?;
    socket.send_to(b"another host", server).map(drop)
}

/// What the two accounts say together.
fn judge(cell: &Cell, accounts: [Account; 2]) -> Trial {
    let both = |of: fn(&Account) -> Option<f64>| {
        let [a, b] = [of(&accounts[0])?, of(&accounts[1])?];
        // The first side has waited for the other.
        Some(if matches!(cell.axis, Axis::Late(_)) { b } else { a.max(b) })
    };
    let is_direct = accounts.iter().all(|account| account.is_direct);
    let is_tcp = accounts.iter().any(|account| account.path.as_deref() == Some("tcp"));
    let first_byte = both(|account| account.first_byte);
    let outcome = match (first_byte, is_direct, is_tcp) {
        (None, _, _) => Outcome::Nothing,
        (Some(_), true, false) => Outcome::Direct,
        (Some(_), true, true) => Outcome::Tcp,
        (Some(_), false, _) => Outcome::Relay,
    };
    let direct = both(|account| account.direct);
    let disturbed = cell.axis.disturbs().then(|| direct.is_some());
    let gap = disturbed.and_then(|_| both(|account| Some(account.gap)));
    let probes = accounts.iter().map(|account| account.probes).sum();
    let most_probes = accounts.iter().map(|account| account.probes).max().unwrap_or_default();
    let mut reasons = Vec::new();
    let mut complain = |is_wrong: bool, why: String| {
        if is_wrong {
            reasons.push(why);
        }
    };
    complain(!cell.expected().is_met(outcome), format!("{outcome:?}, not {}", cell.expected()));
    let is_lost = outcome == Outcome::Nothing && cell.is_tcp();
    complain(is_lost, "no relay either: RAWR, and with it the first path, is UDP alone".into());
    complain(disturbed == Some(false), "no path without a relay, so none was disturbed".into());
    let gap_now = gap.unwrap_or_default();
    complain(gap_now > LONGEST_GAP, format!("data stood still for {gap_now:.0} ms"));
    complain(most_probes > cell.probes().into(), format!("{most_probes} probes"));
    let is_met = reasons.is_empty();
    if !is_met {
        reasons.extend(accounts.iter().flat_map(|account| account.reasons.iter().cloned()));
    }
    let lost = disturbed.map(|_| accounts.iter().map(|account| account.lost).sum());
    let paths = accounts.map(|account| account.path);
    Trial { outcome, is_met, first_byte, direct, probes, paths, gap, lost, reasons }
}
