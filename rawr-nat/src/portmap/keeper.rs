//! Keeps one mapping: renews it, sees that the gateway has forgotten it, makes it anew, removes it.

use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::epoch::Epoch;
use super::lease::{Lease, Wanted};
use super::{Mapping, Means, PortMapperConfig, mapping_of, nat_pmp, now, pcp};

/// Pause before a gateway is asked again that made no mapping, doubled up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

pub(super) struct Keeper {
    config: PortMapperConfig,
    wanted: Wanted,
    held: Option<Held>,
    publish: watch::Sender<Option<Mapping>>,
    /// When the gateway is asked for what it lacks, or to go on.
    act_at: Instant,
    check_at: Instant,
    pause: Duration,
}

struct Held {
    lease: Lease,
    expires: Option<Instant>,
    epoch: Option<Epoch>,
}

impl Held {
    fn new(lease: Lease, now: Instant) -> Self {
        let expires = lease.lifetime.map(|lifetime| now + lifetime);
        let epoch = lease.epoch.map(|seconds| Epoch { seconds, at: now });
        Self { lease, expires, epoch }
    }
}

impl Keeper {
    pub(super) fn new(
        config: PortMapperConfig,
        wanted: Wanted,
        lease: Lease,
        publish: watch::Sender<Option<Mapping>>,
        now: Instant,
    ) -> Self {
        let held = Some(Held::new(lease, now));
        let check_at = now + config.check;
        let mut keeper =
            Self { config, wanted, held, publish, act_at: now, check_at, pause: FIRST_PAUSE };
        keeper.plan(now);
        keeper
    }

    /// Until one of `stops` says so; then the mapping is removed.
    pub(super) async fn run(mut self, [mut mapper, mut user]: [watch::Receiver<bool>; 2]) {
        loop {
            let until = self.act_at.min(self.check_at);
            tokio::select! {
                // Gone is as good as said.
                _ = mapper.wait_for(|stop| *stop) => break,
                _ = user.wait_for(|stop| *stop) => break,
                () = tokio::time::sleep_until(until.into()) => {}
            }
            if self.act_at <= now() {
                self.act().await;
            } else {
                self.check().await;
            }
        }
        if let Some(held) = self.held {
            let external = held.lease.external;
            if let Err(error) = held.lease.remove(&self.config).await {
                log::warn!("the port mapping {external} may be left at the gateway: {error}");
            }
        }
    }

    /// Renewal is due at half of what is left, but not too often.
    fn plan(&mut self, now: Instant) {
        let held = self.held.as_ref();
        self.act_at = match held.map(|held| held.expires) {
            Some(Some(expires)) => {
                now + (expires.saturating_duration_since(now) / 2).max(Duration::from_millis(500))
            }
            // It lasts until it is removed, but not if the gateway starts anew: checks see to that.
            Some(None) => now + Duration::from_secs(24 * 3_600),
            None => now + self.pause,
        };
    }

    async fn act(&mut self) {
        match self.held.take() {
            Some(held) => self.renew(held, false).await,
            None => self.obtain().await,
        }
        self.plan(now());
    }

    /// `is_lost`: the gateway has said that it does not have the mapping any more.
    async fn renew(&mut self, mut held: Held, is_lost: bool) {
        let Err(error) = held.lease.renew(&self.config).await else { return self.hold(held.lease) };
        let external = held.lease.external;
        // A gateway that has started anew may be found elsewhere: UPnP has no port of its own.
        let wanted = Wanted { external_port: Some(external.port()), ..self.wanted };
        match Lease::obtain(&self.config, wanted).await {
            Ok(lease) => self.hold(lease),
            Err(_) if !is_lost && held.expires.is_none_or(|at| now() < at) => {
                log::debug!("the port mapping {external} was not renewed: {error}");
                self.held = Some(held);
            }
            Err(_) => {
                log::info!("the port mapping {external} is lost: {error}");
                self.wanted = wanted;
                self.tell(None);
            }
        }
    }

    async fn obtain(&mut self) {
        match Lease::obtain(&self.config, self.wanted).await {
            Ok(lease) => {
                self.pause = FIRST_PAUSE;
                self.hold(lease);
            }
            Err(error) => {
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                log::debug!("{error}");
            }
        }
    }

    fn hold(&mut self, lease: Lease) {
        self.tell(Some(mapping_of(self.wanted, &lease)));
        self.held = Some(Held::new(lease, now()));
    }

    fn tell(&self, mapping: Option<Mapping>) {
        self.publish.send_if_modified(|told| {
            let is_new = *told != mapping;
            *told = mapping;
            is_new
        });
    }

    /// Sees to it that the gateway still has the mapping. By PCP and NAT-PMP it says how long it has
    /// had its state. Otherwise, or if it does not say, it is asked for the mapping again, which
    /// changes nothing if it is there.
    async fn check(&mut self) {
        self.check_at = now() + self.config.check;
        let Some(held) = &self.held else { return };
        let is_lost = self.is_lost(held).await;
        if is_lost == Some(false) {
            return;
        }
        if let Some(held) = self.held.take() {
            self.renew(held, is_lost.is_some()).await;
            self.plan(now());
        }
    }

    /// `None` if the gateway does not say.
    async fn is_lost(&self, held: &Held) -> Option<bool> {
        let server = self.config.gateways.server_of(self.wanted.local)?;
        let (epoch, patience) = (held.epoch?, self.config.patience);
        match held.lease.means() {
            Means::Pcp => {
                let said = pcp::announce(server, patience).await.ok()?;
                Some(epoch.has_restarted(said, now()))
            }
            Means::NatPmp => {
                let asked = nat_pmp::external(server, self.wanted.local.ip(), patience).await;
                let (ip, said) = asked.ok()?;
                Some(epoch.has_restarted(said, now()) || held.lease.external.ip() != ip)
            }
            Means::Igd => None,
        }
    }
}
