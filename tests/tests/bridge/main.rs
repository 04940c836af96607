//! Rendezvous by name, over virtual time: the server spoken to message by message, and with the library's
//! own client over a network that loses.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod config;
mod direct;
mod floods;
mod introduce;
mod limits;
mod machines;
mod names;
mod restart;
mod users;

use std::time::Duration;

use rawr_nat::Identity;
use rawr_proto::{BridgeName, ServerId};
use rawr_userspace::control::{Kind, ServerConfig};

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn identity(number: u8) -> Identity {
    Identity::from_bytes(&[number; 32])
}

pub(crate) fn name(text: &str) -> BridgeName {
    text.parse().unwrap()
}

/// A root that trusts everybody and offers Bridge.
pub(crate) fn root() -> ServerConfig {
    let mut config = ServerConfig::new(Kind::Root, ServerId([1; 8]));
    config.trusted = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    config.bridge.enabled = true;
    config
}
