//! The shell around the pure core.

pub mod clock;
