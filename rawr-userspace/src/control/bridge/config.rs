//! What an operator decides about Bridge.

use std::time::Duration;

/// Configuration of Bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeConfig {
    /// Whether it is offered.
    pub enabled: bool,
    /// What a name belongs to.
    pub owner: Owner,
    /// Lifetime of a registration that asks for none.
    pub default_lifetime: Duration,
    /// Longest lifetime of a registration.
    pub max_lifetime: Duration,
    pub limits: BridgeLimits,
}

/// What shows somebody to be a name's holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The key that registered it: who loses the key loses the name when its lifetime is over.
    #[default]
    Key,
    /// The user that registered it, who may come back with another key. Users must not share credentials.
    User,
}

/// How much one server, one holder and one source prefix (/24 or /56) may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeLimits {
    /// Names altogether.
    pub names: usize,
    /// Names of one key, or of one user where names belong to users.
    pub names_per_holder: u32,
    /// Names whose holders come from one prefix.
    pub names_per_prefix: u32,
    /// Introductions in the last minute altogether.
    pub introductions: usize,
    /// The same towards one holder.
    pub introductions_per_holder: u32,
    /// Register requests per second of one prefix that do more than refresh.
    pub registrations_per_second: u32,
    /// Lookup requests per second of one prefix.
    pub lookups_per_second: u32,
    /// Introduce requests per second of one prefix.
    pub introductions_per_second: u32,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            owner: Owner::Key,
            default_lifetime: Duration::from_secs(3600),
            max_lifetime: Duration::from_secs(86_400),
            limits: BridgeLimits::default(),
        }
    }
}

impl Default for BridgeLimits {
    fn default() -> Self {
        Self {
            names: 100_000,
            names_per_holder: 16,
            names_per_prefix: 1000,
            introductions: 10_000,
            introductions_per_holder: 256,
            registrations_per_second: 100,
            lookups_per_second: 100,
            introductions_per_second: 100,
        }
    }
}
