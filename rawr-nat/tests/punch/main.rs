//! Hole punching over a simulated network of NATs, in virtual time.

mod adverse;
mod bars;
mod kinds;
mod matrix;
mod pair;
mod plans;
mod regressions;
#[cfg(feature = "tokio")]
mod tcp;
