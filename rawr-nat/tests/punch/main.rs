//! Hole punching over a simulated network of NATs, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adverse;
mod bars;
mod kinds;
mod matrix;
mod pair;
mod plans;
mod regressions;
#[cfg(feature = "tokio")]
mod tcp;
