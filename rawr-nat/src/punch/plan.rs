//! Which strategy opens two NATs for each other.
//!
//! | one side                          | the other                        | strategy                       |
//! |-----------------------------------|----------------------------------|--------------------------------|
//! | endpoint known                    | endpoint known                   | straight, both at once         |
//! | endpoint known, any port let in   | any                              | straight, known side first     |
//! | endpoint known                    | sequential                       | prediction, known side first   |
//! | endpoint known                    | random, or in a block            | birthday, known side first     |
//! | sequential                        | sequential                       | sweeps, one of them permuted   |
//! | in a block                        | in a block, or sequential        | birthday on both sides         |
//! | any port let in, endpoint unknown | any                              | birthday, that side first      |
//! | random                            | endpoint unknown                 | none                           |
//!
//! "Known" is an endpoint that does not depend on the destination (RFC 4787 §4.1), or that has the
//! socket's own port. "Any port let in" is filtering by address at most (RFC 4787 §5).

use crate::nat::{Behaviour, Filtering, Mapping, Ports};

/// The ports that NATs choose from (RFC 4787 REQ-3 leaves the well-known ones out).
const ALL_PORTS: (u16, u16) = (1024, u16::MAX);
/// Ports in a row that the next mapping of a sequence is looked for in: what others behind the
/// same NAT take meanwhile fits in.
const WINDOW: u16 = 48;
/// A sweep succeeds with probability 1 - 1/e, whatever the others take: six leave 0.25 %.
const SWEEPS: u16 = 6;
/// Sockets of a predicted side: one is enough, the others stand in for lost datagrams.
const PREDICTED_SOCKETS: u16 = 8;
/// Sockets against all ports: with 1,024 probes 98.3 %, with 2,048 99.97 %.
const BIRTHDAY_SOCKETS: u16 = 256;
const BIRTHDAY_PROBES: u16 = 1024;
/// The same against a block of ports, of which a carrier gives few to a subscriber.
const BLOCK_SOCKETS: u16 = 64;
/// Blocks that are small enough for few sockets.
const SMALL_BLOCK: u32 = 4096;
/// Flows of one side at most, where both have to guess.
const MAX_FLOWS: u32 = 2048;

/// What one side does to reach the other. The other side's plan mirrors it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Both send to the endpoints that they were told.
    Straight {
        /// Whose datagrams go first.
        order: Order,
    },
    /// One side sends to the ports that the other's next mappings will have.
    Predict {
        /// What we are.
        part: Part,
        /// Whose datagrams go first.
        order: Order,
        /// Ports in a row that are tried.
        window: u16,
        /// Sockets of the hard side.
        sockets: u16,
    },
    /// One side opens many sockets, the other sends to many ports of its NAT, until two meet.
    Birthday {
        /// What we are.
        part: Part,
        /// Whose datagrams go first.
        order: Order,
        /// Sockets of the hard side, in each round.
        sockets: u16,
        /// Ports that the easy side tries in each round.
        probes: u16,
        /// The lowest of the ports.
        low: u16,
        /// The highest.
        high: u16,
    },
    /// Both send to the other's next ports: the initiator in random order, the other in sequence.
    Sweep {
        /// Ports in a row that are tried.
        window: u16,
        /// Rounds, each with new mappings.
        rounds: u16,
    },
    /// Both guess, within bounds that are narrow enough.
    Block {
        /// Our sockets, in each round.
        sockets: u16,
        /// Ports that each of them tries.
        targets: u16,
    },
    /// It cannot succeed, and is not tried.
    Hopeless(Hopeless),
}

/// Whose datagrams go first.
///
/// A router whose own outside is open keeps a datagram of the remote end that came too early, and
/// gives the flow that it belongs to another port afterwards. So a side that everybody can reach
/// by one endpoint fires first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Both at the same time.
    Together,
    /// Ours.
    OursFirst,
    /// Theirs.
    TheirsFirst,
}

/// Who tries ports, and who opens sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Has one endpoint, and tries many ports of the other side's NAT.
    Easy,
    /// Has many sockets, whose external ports nobody knows.
    Hard,
}

/// Why a direct path cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Hopeless {
    /// One has IPv4, the other IPv6.
    #[error("one side's address is IPv4 and the other's IPv6")]
    Families,
    /// Both are behind one NAT, which does not send back what its inside sends to its outside.
    #[error("both sides are behind the same NAT, and it does not hairpin")]
    NoHairpin,
    /// Both NATs give each flow another port, and one of them any: 54,000 flows on each side would
    /// have even chances.
    #[error("both NATs choose a port for each destination, and one of them at random")]
    Random,
    /// The same, within bounds that are too wide.
    #[error("both NATs choose a port for each destination, within bounds that are too wide")]
    WideBlocks,
}

/// Chooses the strategy for two sides of which so much is known. `plan(b, a)` mirrors
/// `plan(a, b)`, so each side chooses by itself.
pub fn plan(ours: &Behaviour, theirs: &Behaviour) -> Plan {
    if ours.external.is_ipv4() != theirs.external.is_ipv4() {
        return Plan::Hopeless(Hopeless::Families);
    }
    if is_walled(ours, theirs) {
        return Plan::Hopeless(Hopeless::NoHairpin);
    }
    match (Outside::of(ours), Outside::of(theirs)) {
        (Outside::Known(_), Outside::Known(_)) => Plan::Straight { order: Order::Together },
        (Outside::Known(Door::AnyPort), _) => Plan::Straight { order: Order::OursFirst },
        (_, Outside::Known(Door::AnyPort)) => Plan::Straight { order: Order::TheirsFirst },
        (Outside::Known(Door::OnePort), Outside::Unknown(hard)) => {
            hard.against_easy(Part::Easy, Order::OursFirst)
        }
        (Outside::Unknown(hard), Outside::Known(Door::OnePort)) => {
            hard.against_easy(Part::Hard, Order::TheirsFirst)
        }
        (Outside::Unknown(us), Outside::Unknown(them)) => both_hard(&us, &them),
    }
}

/// Whether both are behind one NAT that does not let its inside meet outside.
fn is_walled(ours: &Behaviour, theirs: &Behaviour) -> bool {
    let is_translated = ours.mapping != Mapping::None && theirs.mapping != Mapping::None;
    let may_hairpin = ours.hairpins != Some(false) && theirs.hairpins != Some(false);
    ours.external == theirs.external && is_translated && !may_hairpin
}

/// What the other side knows of an external endpoint.
enum Outside {
    Known(Door),
    Unknown(Hard),
}

/// Whom a known endpoint lets in.
enum Door {
    /// Any port of an address that it has sent to.
    AnyPort,
    /// A port that it has sent to.
    OnePort,
}

/// A side whose external port depends on the destination.
#[derive(Clone, Copy)]
struct Hard {
    next: Next,
    /// All of a socket's datagrams to one address have one external endpoint, and any port of that
    /// address is let in by it: whoever guesses the endpoint has won.
    is_wide: bool,
    /// Settles a draw between two sides that are both wide; differs for two sides.
    rank: (u32, std::net::IpAddr, u16),
}

/// Where a hard side's next mapping will be.
#[derive(Clone, Copy)]
enum Next {
    Sequence,
    Within { low: u16, high: u16 },
    Anywhere,
}

impl Outside {
    fn of(side: &Behaviour) -> Self {
        let lets_any_port = match side.filtering {
            Some(Filtering::EndpointIndependent | Filtering::AddressDependent) => true,
            Some(Filtering::AddressAndPortDependent) | None => false,
        };
        let door = if lets_any_port { Door::AnyPort } else { Door::OnePort };
        let is_by_address = match side.mapping {
            Mapping::None | Mapping::EndpointIndependent => return Self::Known(door),
            Mapping::AddressDependent => true,
            Mapping::AddressAndPortDependent => false,
        };
        let next = match side.ports {
            Some(Ports::Preserved) => return Self::Known(door),
            Some(Ports::Sequential { .. }) => Next::Sequence,
            Some(Ports::Block { low, high }) if low <= high => Next::Within { low, high },
            Some(Ports::Block { .. } | Ports::Random) | None => Next::Anywhere,
        };
        let rank = (next.count(), side.external, side.last_port);
        Self::Unknown(Hard { next, is_wide: is_by_address && lets_any_port, rank })
    }
}

impl Next {
    /// Ports that the next mapping may have.
    fn count(self) -> u32 {
        match self {
            Self::Sequence => WINDOW.into(),
            Self::Within { low, high } => u32::from(high - low) + 1,
            Self::Anywhere => Self::Within { low: ALL_PORTS.0, high: ALL_PORTS.1 }.count(),
        }
    }
}

impl Hard {
    /// The plan of a side that opens sockets behind this NAT, or of one that tries its ports.
    fn against_easy(self, part: Part, order: Order) -> Plan {
        let (low, high) = match self.next {
            Next::Sequence => {
                let (window, sockets) = (WINDOW, PREDICTED_SOCKETS);
                return Plan::Predict { part, order, window, sockets };
            }
            Next::Within { low, high } => (low, high),
            Next::Anywhere => ALL_PORTS,
        };
        let count = self.next.count();
        let (sockets, probes) = if count <= SMALL_BLOCK {
            let enough = (8 * count).div_ceil(BLOCK_SOCKETS.into());
            (BLOCK_SOCKETS, narrow(enough.min(count)))
        } else {
            (BIRTHDAY_SOCKETS, BIRTHDAY_PROBES)
        };
        Plan::Birthday { part, order, sockets, probes, low, high }
    }
}

fn both_hard(us: &Hard, them: &Hard) -> Plan {
    match (us.next, them.next) {
        (Next::Sequence, Next::Sequence) => Plan::Sweep { window: WINDOW, rounds: SWEEPS },
        _ if us.is_wide && (!them.is_wide || us.rank < them.rank) => {
            us.against_easy(Part::Hard, Order::OursFirst)
        }
        _ if them.is_wide => them.against_easy(Part::Easy, Order::TheirsFirst),
        (Next::Within { .. }, Next::Within { .. }) => blocks(us.next.count(), them.next.count()),
        (Next::Sequence, Next::Within { .. }) if sockets_in(them.next).is_some() => {
            Plan::Block { sockets: 1, targets: WINDOW }
        }
        (Next::Within { .. }, Next::Sequence) => match sockets_in(us.next) {
            Some(sockets) => Plan::Block { sockets, targets: WINDOW },
            None => Plan::Hopeless(Hopeless::WideBlocks),
        },
        (Next::Sequence, Next::Within { .. }) => Plan::Hopeless(Hopeless::WideBlocks),
        (Next::Anywhere, _) | (_, Next::Anywhere) => Plan::Hopeless(Hopeless::Random),
    }
}

/// Two blocks: flows that match are as many as the product of both sides' flows is greater than
/// the product of the blocks. Four are wanted (98 %).
fn blocks(ours: u32, theirs: u32) -> Plan {
    let product = u64::from(ours) * u64::from(theirs);
    if product > u64::from(MAX_FLOWS).pow(2) {
        return Plan::Hopeless(Hopeless::WideBlocks);
    }
    let flows = (4 * product).isqrt().clamp(64, MAX_FLOWS.into());
    let each = narrow(u32::try_from(flows).unwrap_or(MAX_FLOWS).isqrt());
    Plan::Block { sockets: each, targets: each }
}

/// Sockets inside a block, each of which sends to all of the window of a sequence: every flow
/// matches by one chance in the block's size. Three matches are wanted (95 %), one is the least.
fn sockets_in(block: Next) -> Option<u16> {
    let most = MAX_FLOWS / u32::from(WINDOW);
    let wanted = (3 * block.count()).div_ceil(WINDOW.into());
    (block.count() <= MAX_FLOWS).then(|| narrow(wanted.clamp(1, most)))
}

fn narrow(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
