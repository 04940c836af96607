//! Users that ask for anything in any order: nothing breaks, and nothing stays.

use std::net::SocketAddr;

use proptest::prelude::*;
use rawr_userspace::control::{ConnectError, ConnectionId, Over, TurnLimits};
use rawr_userspace::dataplane::{Leg, Share};
use stun_types::AddressFamily;
use stun_types::attribute::{AttributeWrite, RawAttribute};
use turn_types::attribute::{
    AdditionalAddressFamily, ConnectionId as IdAttribute, EvenPort, Lifetime,
    RequestedAddressFamily, RequestedTransport, ReservationToken,
};
use turn_types::message::{ALLOCATE, CONNECT, CONNECTION_BIND, REFRESH};

use super::direct::{Direct, MOBILITY_TICKET, User, at, config};
use super::secs;

const USERS: usize = 5;

#[derive(Clone, Debug)]
enum Step {
    Allocate { tcp: bool, both: bool, v6: bool, even: Option<bool>, token: bool, mobile: bool },
    Refresh { lifetime: Option<u32>, v6: Option<bool>, ticket: bool },
    Permit(usize),
    Bind(u16, usize),
    Send(usize),
    Channel(u16),
    Data(usize),
    Connect(usize),
    Connected(bool),
    Accepted(usize),
    BindConnection,
    Gone,
    Pass(u64),
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let allocate = (any::<[bool; 3]>(), any::<Option<bool>>(), any::<[bool; 2]>());
    let allocate = allocate.prop_map(|([tcp, both, v6], even, [token, mobile])| Step::Allocate {
        tcp,
        both: both && !v6,
        v6,
        even,
        token,
        mobile,
    });
    let lifetime = prop_oneof![Just(None), Just(Some(0)), Just(Some(1_200))];
    let refresh = (lifetime, any::<Option<bool>>(), any::<bool>());
    let refresh = refresh.prop_map(|(lifetime, v6, ticket)| Step::Refresh { lifetime, v6, ticket });
    prop_oneof![
        4 => allocate,
        3 => refresh,
        3 => (0..8_usize).prop_map(Step::Permit),
        6 => (0x3fff..0x4004_u16, 0..8_usize).prop_map(|(number, peer)| Step::Bind(number, peer)),
        2 => (0..8_usize).prop_map(Step::Send),
        2 => (0x4000..0x4004_u16).prop_map(Step::Channel),
        2 => (0..8_usize).prop_map(Step::Data),
        2 => (0..8_usize).prop_map(Step::Connect),
        2 => any::<bool>().prop_map(Step::Connected),
        1 => (0..8_usize).prop_map(Step::Accepted),
        1 => Just(Step::BindConnection),
        1 => Just(Step::Gone),
        2 => prop_oneof![Just(20), Just(31), Just(250), Just(301), Just(700)].prop_map(Step::Pass),
        1 => Just(Step::Restart),
    ]
}

/// What the users have been told.
#[derive(Default)]
struct Known {
    relayed: Vec<SocketAddr>,
    tokens: Vec<u64>,
    tickets: Vec<Vec<u8>>,
    connections: Vec<u32>,
    streams: u64,
}

impl Known {
    /// Someone outside, or one of the relayed transport addresses.
    fn peer(&self, number: usize) -> SocketAddr {
        let outside = ["203.0.113.5:1", "203.0.113.5:2", "203.0.113.6:1", "[2001:db8:2::5]:1"];
        let relayed = self.relayed.iter().rev().nth(number % 4).copied();
        relayed.filter(|_| number >= 4).unwrap_or_else(|| at(outside[number % 4]))
    }
}

fn limited() -> Direct {
    let mut config = config();
    config.turn.limits = TurnLimits {
        allocations_per_user: 4,
        permissions_per_allocation: 3,
        channels_per_allocation: 3,
        connections_per_allocation: 2,
        ..TurnLimits::default()
    };
    Direct::with(config)
}

fn user(number: usize) -> User {
    let remote = format!("192.0.2.{number}:5000");
    match number {
        0 | 1 => User::anna(&remote),
        2 => User::bert(&remote),
        _ => User::stream(1_000 + number as u64, &remote),
    }
}

fn take(direct: &mut Direct, user: &mut User, known: &mut Known, step: Step) {
    let peer = |number| known.peer(number);
    match step {
        Step::Allocate { tcp, both, v6, even, token, mobile } => {
            let protocol = if tcp { RequestedTransport::TCP } else { RequestedTransport::UDP };
            let mut attributes: Vec<Box<dyn AttributeWrite>> =
                vec![Box::new(RequestedTransport::new(protocol))];
            if both {
                attributes.push(Box::new(AdditionalAddressFamily::new(AddressFamily::IPV6)));
            }
            if v6 {
                attributes.push(Box::new(RequestedAddressFamily::new(AddressFamily::IPV6)));
            }
            if let Some(even) = even {
                attributes.push(Box::new(EvenPort::new(even)));
            }
            if let Some(token) = known.tokens.last().filter(|_| token) {
                attributes.push(Box::new(ReservationToken::new(*token)));
            }
            if mobile {
                attributes.push(Box::new(RawAttribute::new(MOBILITY_TICKET, &[])));
            }
            let attributes: Vec<&dyn AttributeWrite> = attributes.iter().map(|it| &**it).collect();
            let Some(answer) = direct.try_ask(user, ALLOCATE, &attributes) else { return };
            known.relayed.extend(answer.relayed());
            known.tokens.extend(answer.token());
            known.tickets.extend(answer.ticket());
        }
        Step::Refresh { lifetime, v6, ticket } => {
            let mut attributes: Vec<Box<dyn AttributeWrite>> = Vec::new();
            if let Some(lifetime) = lifetime {
                attributes.push(Box::new(Lifetime::new(lifetime)));
            }
            if let Some(v6) = v6 {
                let family = if v6 { AddressFamily::IPV6 } else { AddressFamily::IPV4 };
                attributes.push(Box::new(RequestedAddressFamily::new(family)));
            }
            if let Some(ticket) = known.tickets.last().filter(|_| ticket) {
                attributes.push(Box::new(RawAttribute::new(MOBILITY_TICKET, ticket).into_owned()));
            }
            let attributes: Vec<&dyn AttributeWrite> = attributes.iter().map(|it| &**it).collect();
            let Some(answer) = direct.try_ask(user, REFRESH, &attributes) else { return };
            known.tickets.extend(answer.ticket());
        }
        Step::Permit(number) => drop(direct.permit(user, peer(number))),
        Step::Bind(channel, number) => drop(direct.bind(user, channel, peer(number))),
        Step::Send(number) => drop(direct.send(user, peer(number), b"data")),
        Step::Channel(channel) => drop(direct.channel(user, channel, b"data")),
        Step::Data(number) => {
            if let Some(relayed) = known.relayed.last() {
                direct.data(*relayed, known.peer(number), b"data");
            }
        }
        step => take_tcp(direct, user, known, step),
    }
}

fn take_tcp(direct: &mut Direct, user: &mut User, known: &mut Known, step: Step) {
    match step {
        Step::Connect(number) => {
            let peer = direct.peer(user, known.peer(number));
            direct.try_ask(user, CONNECT, &[&peer]);
        }
        Step::Connected(is_ok) => {
            let Some((attempt, _, _)) = direct.attempts.pop() else { return };
            known.streams += 1;
            let stream = ConnectionId(known.streams);
            let result = if is_ok { Ok(stream) } else { Err(ConnectError::Failed) };
            direct.server.peer_connected(direct.now, attempt, result);
            let answers = direct.drain();
            let answers = answers.into_iter().map(|sent| super::direct::Answer(sent.bytes));
            known.connections.extend(answers.filter_map(|answer| answer.connection()));
        }
        Step::Accepted(number) => {
            let Some(relayed) = known.relayed.last() else { return };
            known.streams += 1;
            let stream = ConnectionId(known.streams);
            direct.server.peer_accepted(direct.now, *relayed, known.peer(number), stream);
            direct.drain();
        }
        Step::BindConnection => {
            let Some(id) = known.connections.last() else { return };
            known.streams += 1;
            let over = Over::Tcp(ConnectionId(known.streams));
            let client = rawr_userspace::control::Client { over, ..user.client };
            let mut data = User { client, nonce: None, ..user.clone() };
            direct.try_ask(&mut data, CONNECTION_BIND, &[&IdAttribute::new(*id)]);
        }
        Step::Gone => {
            if let Some(connection) = user.client.connection() {
                direct.server.connection_gone(direct.now, connection);
                direct.drain();
            }
        }
        Step::Pass(seconds) => drop(direct.pass(secs(seconds))),
        Step::Restart => {
            direct.restart();
            direct.attempts.clear();
        }
        _ => unreachable!("the other steps are taken elsewhere"),
    }
}

/// What holds at any time.
fn assert_sound(direct: &Direct) {
    let views: Vec<_> = direct.server.allocations(direct.now).collect();
    for (from, to) in &direct.flows {
        assert_eq!(direct.flows.get(to), Some(from), "one way only");
        assert!(is_backed(direct, from), "{from:?} has no allocation");
    }
    let forwarded: usize = views.iter().map(|view| view.flows.len()).sum();
    assert_eq!(forwarded, channels(direct), "what is forwarded, and what is said to be");
    for view in &views {
        assert!(view.channels <= 3 && view.permissions <= 3 && view.connections <= 2);
        assert!(view.relayed.iter().all(|relayed| direct.open.contains(relayed)));
    }
    let relayed: usize = views.iter().map(|view| view.relayed.len()).sum();
    assert_eq!(direct.open.len(), relayed + direct.server.reservation_count());
}

/// Legs of clients that are forwarded.
fn channels(direct: &Direct) -> usize {
    let is_channel = |leg: &&Leg| matches!(leg.share, Share::Shared { channel: Some(_) });
    direct.flows.keys().filter(is_channel).count()
}

fn is_backed(direct: &Direct, leg: &Leg) -> bool {
    let mut views = direct.server.allocations(direct.now);
    match leg.share {
        Share::Shared { channel: Some(_) } => views.any(|view| view.client.remote == leg.remote),
        Share::Shared { channel: None } | Share::Whole => {
            views.any(|view| view.relayed.contains(&leg.local))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(192) })]

    #[test]
    fn users_cannot_break_it_and_leave_nothing_behind(
        steps in proptest::collection::vec((0..USERS, any_step()), 1..60),
    ) {
        let mut direct = limited();
        let mut users: Vec<User> = (0..USERS).map(user).collect();
        let mut known = Known::default();
        for (number, step) in steps {
            take(&mut direct, &mut users[number], &mut known, step);
            assert_sound(&direct);
        }
        direct.pass(secs(3_700));
        prop_assert_eq!((direct.server.allocation_count(), direct.server.turn_user_count()), (0, 0));
        prop_assert!(direct.open.is_empty() && direct.flows.is_empty());
        prop_assert_eq!(direct.server.poll_timeout(), None);
    }

    /// What comes from anywhere may be anything.
    #[test]
    fn any_bytes_are_survived(
        bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..20),
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..4),
    ) {
        let mut direct = limited();
        let mut anna = user(0);
        direct.allocate(&mut anna);
        direct.bind(&mut anna, 0x4000, at("203.0.113.5:1"));
        let transaction = direct.transaction();
        let mut changed = anna.sign(ALLOCATE, transaction, &[&EvenPort::new(true)]);
        for (at, value) in changes {
            let length = changed.len();
            changed[at % length] = value;
        }
        for bytes in bytes.iter().chain([&changed]) {
            direct.control(&anna.client, bytes);
            direct.control(&user(3).client, bytes);
        }
        prop_assert_eq!(direct.server.allocation_count(), 1);
    }
}
