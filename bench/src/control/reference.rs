//! A fixed computation, the reference that tells whether a round was disturbed.

use std::time::Duration;

use rawr_tests::process::now;
use sha2::{Digest, Sha256};

/// Bytes that are hashed.
const BYTES: usize = 64 << 20;
const BLOCK: usize = 1 << 16;

/// Time of one computation.
pub(super) fn time() -> Duration {
    let block = vec![7; BLOCK];
    let begin = now();
    let mut hash = Sha256::new();
    for _ in 0..BYTES / BLOCK {
        hash.update(&block);
    }
    std::hint::black_box(hash.finalize());
    begin.elapsed()
}
