//! How many Probes per second one core decodes and verifies, and encodes.
//! `cargo run --release -p rawr-proto --example codec_rate`

#![expect(clippy::disallowed_methods, reason = "measures time")]

use std::hint::black_box;
use std::time::Instant;

use rawr_proto::{
    Attributes, IntegrityKey, Message, Method, Role, SessionSecret, TransactionId, decode,
};

const ROUNDS: u32 = 200_000;

fn main() {
    let session = SessionSecret::from_bytes([7; 32]).key();
    let key = IntegrityKey::session(&session);
    let attributes = Attributes {
        session: Some(session.id()),
        role: Some(Role::A),
        nonce: Some("0123456789abcdef0123456789abcdef01234567".into()),
        ..Attributes::default()
    };
    let probe = Message::request(Method::Probe, TransactionId([1; 12]), attributes);
    let bytes = probe.encode(Some(&key));
    report("decode and verify", || {
        assert!(decode(black_box(&bytes)).is_ok_and(|decoded| decoded.verify(&key)));
    });
    report("decode", || {
        assert!(decode(black_box(&bytes)).is_ok());
    });
    report("encode", || {
        black_box(black_box(&probe).encode(Some(&key)));
    });
    report("make an integrity key", || {
        black_box(IntegrityKey::session(black_box(&session)));
    });
}

fn report(what: &str, mut work: impl FnMut()) {
    let start = Instant::now();
    (0..ROUNDS).for_each(|_| work());
    let each = start.elapsed() / ROUNDS;
    println!("{what}: {each:?} each, {:.0} per second", 1.0 / each.as_secs_f64());
}
