//! Sessions and streams between two sides, over a link that loses, doubles and reorders, in virtual
//! time.

#![expect(clippy::unwrap_used, reason = "test code")]

#[cfg(feature = "tokio")]
mod connection;
mod link;
mod session;
mod streams;
