//! What a request costs, and what an allocation takes. Prints, and asserts nothing about time: run it as
//! `cargo test --release -p rawr-tests --test turn load -- --ignored --nocapture`.

use std::net::SocketAddr;
use std::time::Instant;

use rawr_userspace::control::{Client, Server};
use turn_types::attribute::{ChannelNumber, RequestedTransport, XorPeerAddress};
use turn_types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

use super::direct::{Direct, User, config, local};

/// Requests that are made in one measurement.
const REQUESTS: usize = 200_000;

fn client(number: usize) -> Client {
    let [_, a, b, c] = (number as u32).to_be_bytes();
    Client::udp(local(), SocketAddr::from(([11, a, b, c], 5_000)))
}

/// A server without limits, of whose ports no account is kept.
fn uncounted() -> Direct {
    let mut config = config();
    config.limits.requests_per_second = u32::MAX;
    config.limits.unverified_per_second = u32::MAX;
    config.turn.limits.allocations_per_user = u32::MAX;
    let mut direct = Direct::with(config);
    direct.stop_counting();
    direct
}

/// So many users with an allocation, a permission and a channel each.
fn crowd(count: usize) -> (Direct, Vec<User>) {
    let mut direct = uncounted();
    let mut users: Vec<User> = (0..count).map(|number| User::new("anna", client(number))).collect();
    for user in &mut users {
        direct.allocate(user);
        direct.bind(user, 0x4000, SocketAddr::from(([203, 0, 113, 5], 9_000)));
    }
    (direct, users)
}

/// Requests of a kind, made by clients in no order, ready to be sent.
fn requests(direct: &mut Direct, users: &[User], kind: usize) -> Vec<(Client, Vec<u8>)> {
    let transport = RequestedTransport::new(RequestedTransport::UDP);
    let mut at = 0;
    let mut next = || {
        at = (at + 7_919 * 31) % users.len();
        &users[at]
    };
    (0..REQUESTS)
        .map(|_| {
            let user = next();
            let transaction = direct.transaction();
            let peer = SocketAddr::from(([203, 0, 113, 5], 9_000));
            let peer = XorPeerAddress::new(peer, transaction);
            let bytes = match kind {
                0 => user.sign(REFRESH, transaction, &[]),
                1 => user.sign(CREATE_PERMISSION, transaction, &[&peer]),
                2 => user.sign(CHANNEL_BIND, transaction, &[&ChannelNumber::new(0x4000), &peer]),
                _ => user.sign(ALLOCATE, transaction, &[&transport]),
            };
            (user.client, bytes)
        })
        .collect()
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
fn nanoseconds(direct: &mut Direct, requests: &[(Client, Vec<u8>)]) -> f64 {
    let begun = Instant::now();
    for (client, bytes) in requests {
        direct.server.handle_control(direct.now, client, bytes);
        drain(&mut direct.server);
    }
    begun.elapsed().as_nanos() as f64 / requests.len() as f64
}

fn drain(server: &mut Server) {
    while let Some(command) = server.poll_command() {
        std::hint::black_box(command);
    }
}

#[test]
#[ignore = "measures, for people"]
fn authenticated_requests_per_second() {
    let kinds = ["Refresh", "CreatePermission", "ChannelBind", "Allocate again (437)"];
    let mut first = [0.0; 4];
    for count in [100, 100_000] {
        let (mut direct, users) = crowd(count);
        for (kind, name) in kinds.iter().enumerate() {
            let requests = requests(&mut direct, &users, kind);
            let best = (0..5).map(|_| nanoseconds(&mut direct, &requests));
            let best = best.fold(f64::INFINITY, f64::min);
            let before = std::mem::replace(&mut first[kind], best);
            let per_second = 1e9 / best;
            let ratio = if before == 0.0 { 1.0 } else { best / before };
            println!(
                "{count:>7} allocations, {name:<20} {best:>7.0} ns, {per_second:>9.0}/s, x {ratio:.2}"
            );
        }
    }
}

#[test]
#[ignore = "measures, for people"]
fn memory_of_an_allocation() {
    let before = resident();
    let count = 100_000;
    let mut direct = uncounted();
    for number in 0..count {
        direct.allocate(&mut User::new("anna", client(number)));
    }
    let idle = (resident() - before) as f64 / count as f64;
    for number in 0..count {
        let mut user = User::new("anna", client(number));
        direct.bind(&mut user, 0x4000, SocketAddr::from(([203, 0, 113, 5], 9_000)));
    }
    let with_channel = (resident() - before) as f64 / count as f64;
    println!(
        "{idle:.0} bytes for an allocation, {with_channel:.0} with a permission and a channel"
    );
    assert_eq!(direct.server.allocation_count(), count);
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * 4_096
}
