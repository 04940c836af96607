//! A simulated network in virtual time: hosts, routers with NATs of all kinds (RFC 4787), delay,
//! jitter, loss and foreign flows. The same seed gives the same run.
//!
//! ```
//! use std::time::Duration;
//! use rawr_sim::{Link, NatConfig, Network};
//!
//! let mut network = Network::new(Link::default(), 1);
//! let home = network.add_nat(NatConfig::home(), None);
//! let (guest, server) = (network.add_host(Some(home)), network.add_host(None));
//! let (guest, server) = (network.bind(guest), network.bind(server));
//!
//! network.send(guest, server, None, b"hello".to_vec());
//! let arrival = network.step(Duration::from_secs(1)).unwrap();
//! assert_eq!(arrival.local, server);
//! assert_ne!(arrival.from, guest, "the NAT has translated it");
//! ```
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod nat;
mod network;

pub use nat::{Filtering, Mapping, NatConfig, Ports};
pub use network::{Arrival, HostId, Link, NatId, Network};
