//! The shell around the pure core: sockets, netlink, the clock, and the loop that joins them.

mod allocations;
pub mod clock;
pub mod control_socket;
mod data_ports;
pub mod driver;
mod events;
pub mod listeners;
pub mod neighbours;
pub mod netlink;
pub mod ports;
pub mod registry;
mod report;
pub mod state_file;
pub mod streams;
