//! The classifier in simulated networks with NATs of every kind, in virtual time.

#![expect(clippy::unwrap_used, reason = "test code")]

#[cfg(feature = "tokio")]
mod driver;
mod kinds;
mod lifetime;
mod net;
mod random;
mod support;
