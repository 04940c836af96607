//! How fast sessions are set up, and what they weigh. Run in release mode, with `--ignored`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rawr_proto::{
    Attributes, IntegrityKey, MIN_FIRST_REQUEST, Message, Method, Role, SessionSecret, WireKey,
    decode,
};
use rawr_userspace::control::Count;

use super::direct::{Direct, Sent, subject};
use super::net::secs;
use super::root;

const SESSIONS: u32 = 50_000;

/// Measures the server alone: making and reading the clients' messages does not count.
struct Stopwatch {
    direct: Direct,
    spent: Duration,
}

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "measures real time")]
    fn time(&mut self, work: impl FnOnce(&mut Direct) -> Sent) -> Attributes {
        let begin = Instant::now();
        let sent = work(&mut self.direct);
        self.spent += begin.elapsed();
        let answer = sent.last().expect("no answer");
        decode(&answer.1).unwrap().message.attributes
    }

    /// Connect and Probe, each after a challenge.
    fn leg(&mut self, number: u32, secret: &SessionSecret, role: Role) {
        let [_, a, b, c] = number.to_be_bytes();
        let from = SocketAddr::from(([10 + role as u8, a, b, c], 5000));
        let key = secret.key();
        let integrity = IntegrityKey::session(&key);
        let first = Attributes::default();
        let first = self.direct.message(Method::Connect, first);
        let first = first.encode_padded(None, MIN_FIRST_REQUEST);
        let nonce = self.time(|direct| direct.control(from, &first)).nonce;
        let session_key = Some(WireKey::from(&key));
        let connect = Attributes { session_key, nonce, ..subject(secret, role, 1) };
        let connect: Message = self.direct.message(Method::Connect, connect);
        let connect = connect.encode(Some(&integrity));
        let local = self.time(|direct| direct.control(from, &connect)).data_address.unwrap();

        let data = SocketAddr::new(from.ip(), 6000);
        let probe = self.direct.probe_bytes(secret, role, None);
        let nonce = self.time(|direct| direct.data(local, data, &probe)).nonce;
        let probe = self.direct.probe_bytes(secret, role, nonce);
        assert!(self.time(|direct| direct.data(local, data, &probe)).leg_state.is_some());
    }
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
#[ignore = "a benchmark"]
fn load_of_sessions() {
    let mut config = root(1);
    config.limits.half_open = u32::MAX;
    config.limits.half_open_per_prefix = u32::MAX;
    let mut watch = Stopwatch { direct: Direct::new(config), spent: Duration::ZERO };
    let before = resident();
    for number in 0..SESSIONS {
        let mut bytes = [9; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        let secret = SessionSecret::from_bytes(bytes);
        watch.leg(number, &secret, Role::A);
        watch.leg(number, &secret, Role::B);
        watch.direct.commands.clear();
    }
    let weight = (resident() - before) / u64::from(SESSIONS);
    let rate = f64::from(SESSIONS) / watch.spent.as_secs_f64();
    let paired = watch.direct.server.counters().get(Count::PairedPeers);
    println!("{rate:.0} sessions set up per second, {weight} bytes per session, {paired} paired");
    assert_eq!(paired, u64::from(SESSIONS));
    watch.direct.pass(secs(130));
    assert_eq!(watch.direct.server.session_count(), 0);
    assert!(rate >= 20_000.0, "{rate}");
    assert!(weight <= 1_500, "{weight}");
}
