//! Two agents, their NATs and their server, over virtual time, while data flows both ways.

#![expect(clippy::unwrap_used, reason = "test code")]

#[cfg(feature = "tokio")]
mod driver;
#[allow(dead_code, reason = "other tests need more of the kinds")]
#[path = "../punch/kinds.rs"]
mod kinds;
#[cfg(feature = "portmap")]
mod mapping;
mod matrix;
mod net;
mod paths;
mod punching;
#[allow(dead_code, reason = "other tests need more of the server")]
#[path = "../client/support.rs"]
mod support;
mod wild;
