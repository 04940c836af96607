//! What the kernel and userspace share: the flow tables' layout, the reasons for passing a packet
//! up, and the relay itself as a pure function over bytes.
#![no_std]

pub mod checksum;
pub mod entry;
pub mod flow;
pub mod memory;
pub mod rate;
pub mod reason;
pub mod relay;
pub mod shared;
pub mod wire;
