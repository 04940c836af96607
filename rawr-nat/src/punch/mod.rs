//! Hole punching: two sides behind NATs send to each other until both NATs let them.
//!
//! [`plan`] chooses the strategy from what is known of both NATs, [`UdpPunch`] carries it out. Both
//! sides must run it at the same time, and need some path for short messages: one that a relay
//! offers will do.
//!
//! Three things decide who connects, and are easily missed:
//!
//! * Many home routers keep a datagram of the remote end that comes before the own one has left,
//!   and move the own flow to another port then. So a side whose endpoint is known sends first,
//!   and the other opens its sockets afterwards ([`Order`]); where both are known, the first
//!   datagrams have few hops to live ([`Tuning::opening_ttl`]).
//! * Ports are tried in random order and never twice, over all rounds: that is what the birthday
//!   formula assumes. Two sequential NATs meet if one side tries the other's next ports in random
//!   order, whatever others behind the same NATs take in between.
//! * Whoever hears first sends a few more: the other side may not have been open for the first.
//!
//! Nothing is sent where it cannot succeed.

mod aim;
mod config;
mod coordinator;
mod message;
mod paths;
mod plan;
mod ports;
mod probe;
mod tactics;
#[cfg(feature = "tokio")]
mod tcp;
mod udp;
mod volley;

#[cfg(feature = "tokio")]
pub(crate) use aim::Target;
pub use config::{PunchConfig, PunchOutput, Reason, Tuning};
#[cfg(feature = "tokio")]
pub(crate) use coordinator::Coordinator;
#[cfg(feature = "tokio")]
pub(crate) use message::{Message, Stage};
#[cfg(feature = "tokio")]
pub(crate) use paths::{PathOutput, Paths};
pub use plan::{Hopeless, Order, Part, Plan, plan};
#[cfg(feature = "tokio")]
pub(crate) use probe::ProbeKeys;
#[cfg(feature = "tokio")]
pub(crate) use tactics::{Aim, Sockets, Tactics};
#[cfg(feature = "tokio")]
pub use tcp::{TcpPunchConfig, external as tcp_external, tcp_punch};
pub use udp::UdpPunch;
#[cfg(feature = "tokio")]
pub(crate) use volley::Shot;
