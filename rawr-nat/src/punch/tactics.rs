//! What one side does in each round of a plan.

use std::time::Duration;

use crate::nat::{Behaviour, Ports};
use crate::punch::plan::{Order, Part, Plan};

/// Rounds of a birthday: the easy side sends in two of them.
const BIRTHDAY_ROUNDS: u16 = 4;
/// Pause between two passes of the same probes.
const PASS_PAUSE: Duration = Duration::from_millis(150);

/// What one side does in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tactics {
    pub(crate) sockets: Sockets,
    pub(crate) aim: Aim,
    pub(crate) order: Order,
    /// How often the same probes are sent: those of a NAT's one try, or of lost datagrams.
    pub(crate) passes: u16,
    pub(crate) pass_pause: Duration,
    pub(crate) hops: Hops,
    pub(crate) rounds: u16,
    /// Nothing is sent in every other round: what the last one opened is still open, and the other
    /// side's new sockets may meet it.
    pub(crate) rests: bool,
}

/// How far probes go. They have to pass the own NATs, and need not come to the other side's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hops {
    /// All the way.
    All,
    /// Those of a first pass end on the way, so that none is early.
    FewFirst,
    /// In the second half of the rounds they end on the way: a router whose outside is open chooses
    /// no port at random that a datagram has come to. In the first half they do not: nobody knows
    /// how many routers there are before the last NAT of our own.
    FewLater,
}

/// What a round's probes are sent from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sockets {
    /// The mapped one.
    Mapped,
    /// The mapped one in the first round. Later a fresh one, of which a server tells the external
    /// port: something has spoilt the mapping.
    MappedThenFresh,
    /// So many fresh ones.
    Fresh(u16),
    /// The same; a server tells the external port of the first.
    Sampled(u16),
}

/// What a round's probes are sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// The endpoints that are known.
    Endpoints,
    /// The ports after the one that the other side has learnt.
    Window { count: u16, step: i16, is_permuted: bool },
    /// So many ports from each socket, all different until there are no more.
    Range { low: u16, high: u16, each: u16 },
}

impl Tactics {
    /// Whether nothing is sent in this round.
    pub(crate) const fn rests_in(&self, round: u16) -> bool {
        self.rests && round % 2 == 1
    }

    /// Nothing where the plan is hopeless.
    pub(crate) fn of(
        plan: Plan,
        ours: &Behaviour,
        theirs: &Behaviour,
        is_initiator: bool,
    ) -> Option<Self> {
        let usual = Self {
            sockets: Sockets::Mapped,
            aim: Aim::Endpoints,
            order: Order::Together,
            passes: 1,
            pass_pause: PASS_PAUSE,
            hops: Hops::All,
            rounds: 3,
            rests: false,
        };
        let step = step_of(theirs);
        Some(match plan {
            Plan::Straight { order } => Self {
                sockets: Sockets::MappedThenFresh,
                order,
                passes: 8,
                hops: if order == Order::Together { Hops::FewFirst } else { Hops::All },
                ..usual
            },
            Plan::Predict { part: Part::Easy, order, window, .. } => {
                let aim = Aim::Window { count: window, step, is_permuted: false };
                Self { aim, order, rounds: 6, ..usual }
            }
            Plan::Predict { part: Part::Hard, order, sockets, .. } => {
                let sockets = Sockets::Sampled(sockets);
                Self { sockets, order, passes: 2, rounds: 6, ..usual }
            }
            Plan::Birthday { part, order, sockets, probes, low, high } => {
                let aim = Aim::Range { low, high, each: probes };
                let sockets = Sockets::Fresh(sockets);
                let rounds = BIRTHDAY_ROUNDS;
                match (part, order) {
                    (Part::Easy, Order::OursFirst | Order::Together) => {
                        Self { aim, order, rounds, hops: Hops::FewLater, rests: true, ..usual }
                    }
                    // These go through what the hard side has opened, so they have to arrive.
                    (Part::Easy, Order::TheirsFirst) => Self { aim, order, rounds, ..usual },
                    (Part::Hard, _) => Self { sockets, order, passes: 2, rounds, ..usual },
                }
            }
            Plan::Sweep { window, rounds } => {
                let aim = Aim::Window { count: window, step, is_permuted: is_initiator };
                Self { sockets: Sockets::Sampled(1), aim, passes: 2, rounds, ..usual }
            }
            Plan::Block { sockets, targets } => {
                let sockets = match ours.ports {
                    Some(Ports::Sequential { .. }) => Sockets::Sampled(sockets),
                    Some(Ports::Preserved | Ports::Block { .. } | Ports::Random) | None => {
                        Sockets::Fresh(sockets)
                    }
                };
                let aim = match theirs.ports {
                    Some(Ports::Block { low, high }) => Aim::Range { low, high, each: targets },
                    Some(Ports::Preserved | Ports::Sequential { .. } | Ports::Random) | None => {
                        Aim::Window { count: targets, step, is_permuted: false }
                    }
                };
                Self { sockets, aim, ..usual }
            }
            Plan::Hopeless(_) => return None,
        })
    }
}

fn step_of(side: &Behaviour) -> i16 {
    match side.ports {
        Some(Ports::Sequential { step }) => step,
        Some(Ports::Preserved | Ports::Block { .. } | Ports::Random) | None => 1,
    }
}
