//! The client's state machines and their driver, against a server made for the purpose.

#![expect(clippy::unwrap_used, reason = "test code")]

mod attachment;
#[cfg(feature = "tokio")]
mod driver;
mod peer;
mod support;
