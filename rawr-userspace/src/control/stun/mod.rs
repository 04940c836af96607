//! STUN: Binding (RFC 8489 §7), NAT behaviour discovery (RFC 5780) and answers as TURN gives them, too.

mod alternate;
mod answer;
mod behaviour;
mod binding;

pub(super) use answer::{Head, Refusal};
pub use behaviour::Behaviour;
