//! What the kernel and userspace share: the flow tables' layout, the reasons for passing a packet
//! up, and the relay itself as a pure function over bytes.
#![no_std]

mod arrival;
pub mod binding;
mod carry;
pub mod channel;
pub mod checksum;
mod crc;
mod departure;
pub mod entry;
pub mod flow;
mod ipv4;
mod ipv6;
mod lookup;
pub mod memory;
pub mod rate;
pub mod reason;
pub mod relay;
pub mod shared;
pub mod sharing;
pub mod wire;
