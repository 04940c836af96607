//! What the table `bridge` says.

use std::path::PathBuf;
use std::time::Duration;

use crate::control::{BridgeConfig, BridgeLimits, Owner};

/// Rendezvous by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    pub enabled: bool,
    /// File of the names that survive a restart. None: they are kept in memory.
    pub registry: Option<PathBuf>,
    /// What a name belongs to.
    pub owner: Owner,
    /// Lifetime of a registration that asks for none.
    pub default_lifetime: Duration,
    pub max_lifetime: Duration,
    pub limits: BridgeLimits,
}

impl Bridge {
    /// What concerns the control plane.
    pub(super) fn server(&self) -> BridgeConfig {
        BridgeConfig {
            enabled: self.enabled,
            owner: self.owner,
            default_lifetime: self.default_lifetime,
            max_lifetime: self.max_lifetime,
            limits: self.limits,
        }
    }
}

impl Default for Bridge {
    fn default() -> Self {
        let BridgeConfig { enabled, owner, default_lifetime, max_lifetime, limits } =
            BridgeConfig::default();
        Self { enabled, registry: None, owner, default_lifetime, max_lifetime, limits }
    }
}
