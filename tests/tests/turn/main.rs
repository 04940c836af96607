//! TURN's state machine over virtual time.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, as it should")]

mod allocate;
mod causes;
mod channels;
mod clients;
mod direct;
mod disorder;
mod limits;
mod load;
mod mobility;
mod refresh;
mod relay;
mod restart;
mod tcp;

use std::time::Duration;

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
