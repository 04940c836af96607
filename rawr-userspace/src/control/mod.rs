//! The control plane: which session is relayed here, how it gets nearer, and who may ask for it.
//!
//! All of it is one state machine, [`Server`], without sockets and without a clock. Bytes, events and
//! the time come in as arguments; what is to be done comes out of [`Server::poll_command`].
//!
//! ```text
//! handle_control ─▶ decode ─▶ dispatch ─▶ exchange │ connect │ refresh │ bridge  one request each
//! handle_data ────▶ probe │ upstream │ target                                 data ports' control
//!                      └─▶ settle: who is paired with whom, what is sought    after every change
//!                             └─▶ Command
//! ```
//!
//! No request leaves state behind before its source address and its integrity have been checked.

mod auth;
mod authenticate;
mod bridge;
mod client;
mod command;
mod config;
mod connect;
mod counters;
mod deadline;
mod exchange;
mod expire;
pub(crate) mod limits;
mod neighbours;
mod parents;
mod policy;
mod probe;
mod refresh;
mod request;
mod server;
mod session;
mod settle;
mod snapshot;
mod special;
mod store;
mod stun;
mod target;
mod time;
mod turn;
mod upstream;
mod users;
mod view;

#[cfg(feature = "oauth")]
pub use authenticate::TokenServer;
pub use bridge::{BridgeConfig, BridgeLimits, NameRecord, Owner};
pub use client::{Client, ConnectionId, Over};
pub use command::{
    AttemptId, Command, ConnectError, On, Parity, PortError, PortId, PortKind, Source,
};
pub use config::{Kind, Limits, Parent, ServerConfig};
pub use counters::{Count, Counters};
pub use deadline::Reason;
pub use neighbours::Neighbour;
pub use policy::{Denied, PeerRules, Policy, VettedPeer};
pub use server::Server;
pub use snapshot::{RestoreError, Snapshot};
pub use stun::Behaviour;
pub use time::Now;
pub use turn::{AllocationView, ChannelFlows, Icmp, TurnConfig, TurnLimits};
pub use view::{LegKind, LegView, ParentView, SessionView};
