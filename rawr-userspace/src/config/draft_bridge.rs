//! As [`super::draft`], of the table `bridge`.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::bridge::Bridge;
use super::draft::{absolute_path, boolean, integer, seconds, text};
use super::reader::Table;
use super::value::ValueError;
use crate::control::{BridgeLimits, Kind, Owner};

/// A table `bridge` in which anything may be left out. Each field is what [`Bridge`]'s is.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "the fields of Bridge")]
pub struct DraftBridge {
    pub enabled: Option<bool>,
    pub registry: Option<PathBuf>,
    pub owner: Option<Owner>,
    pub default_lifetime: Option<Duration>,
    pub max_lifetime: Option<Duration>,
    pub limits: Option<BridgeLimits>,
}

impl DraftBridge {
    /// This draft, with what `flags` say in place of what it says.
    pub(super) fn overridden_by(self, flags: Self) -> Self {
        Self {
            enabled: flags.enabled.or(self.enabled),
            registry: flags.registry.or(self.registry),
            owner: flags.owner.or(self.owner),
            default_lifetime: flags.default_lifetime.or(self.default_lifetime),
            max_lifetime: flags.max_lifetime.or(self.max_lifetime),
            limits: flags.limits.or(self.limits),
        }
    }

    /// Adds the defaults.
    pub(super) fn finish(self, kind: Kind) -> Bridge {
        let default = Bridge::default();
        Bridge {
            enabled: self.enabled.unwrap_or(kind == Kind::Root),
            registry: self.registry,
            owner: self.owner.unwrap_or(default.owner),
            default_lifetime: self.default_lifetime.unwrap_or(default.default_lifetime),
            max_lifetime: self.max_lifetime.unwrap_or(default.max_lifetime),
            limits: self.limits.unwrap_or_default(),
        }
    }

    /// Calls `claim` with what must hold among these values: key, whether it does, and why it should.
    /// `has_users` says whether anybody can have credentials.
    pub(super) fn claims(&self, has_users: bool, claim: &mut dyn FnMut(&str, bool, &'static str)) {
        let default = Bridge::default();
        let lifetime = self.default_lifetime.unwrap_or(default.default_lifetime);
        let longest = self.max_lifetime.unwrap_or(default.max_lifetime);
        claim("bridge.default_lifetime", lifetime <= longest, "is longer than bridge.max_lifetime");
        claim(
            "bridge.owner",
            self.owner != Some(Owner::User) || has_users,
            "is \"user\", but there are no users: add [[users]] or secrets",
        );
    }
}

pub(super) fn read_bridge(table: Table<'_>) -> DraftBridge {
    let draft = DraftBridge {
        enabled: table.read("enabled", boolean),
        registry: table.read("registry", absolute_path),
        owner: table.read("owner", |value| match text(value)? {
            "key" => Ok(Owner::Key),
            "user" => Ok(Owner::User),
            _ => Err(ValueError::Choice(&["key", "user"])),
        }),
        default_lifetime: table.read("default_lifetime", seconds),
        max_lifetime: table.read("max_lifetime", seconds),
        limits: table.table("limits").map(read_limits),
    };
    table.finish();
    draft
}

fn read_limits(table: Table<'_>) -> BridgeLimits {
    let default = BridgeLimits::default();
    let count = |value: &DeValue<'_>| integer(value, 1..=u32::MAX);
    let size = |value: &DeValue<'_>| integer(value, 1..=u32::MAX as usize);
    let counted = |key, default| table.read(key, count).unwrap_or(default);
    let limits = BridgeLimits {
        names: table.read("names", size).unwrap_or(default.names),
        names_per_holder: counted("names_per_holder", default.names_per_holder),
        names_per_prefix: counted("names_per_prefix", default.names_per_prefix),
        introductions: table.read("introductions", size).unwrap_or(default.introductions),
        introductions_per_holder: counted(
            "introductions_per_holder",
            default.introductions_per_holder,
        ),
        registrations_per_second: counted(
            "registrations_per_second",
            default.registrations_per_second,
        ),
        lookups_per_second: counted("lookups_per_second", default.lookups_per_second),
        introductions_per_second: counted(
            "introductions_per_second",
            default.introductions_per_second,
        ),
    };
    table.finish();
    limits
}
