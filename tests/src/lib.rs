//! What the tests of rawr share: packets and the kernel that runs them, and the laboratory in which
//! rawr is proved: network namespaces joined by veth pairs, routers with NATs made of nftables
//! rules, a real UDP application, and the built `rawr` binary run as a process.

pub mod app;
pub mod browser;
pub mod conntrack;
pub mod crowd;
pub mod dtls;
pub mod forge;
pub mod instructions;
pub mod kernel;
pub mod lab;
pub mod load;
pub mod matrix;
pub mod nat;
pub mod nat_pmp;
pub mod netns;
pub mod nice;
pub mod packet;
pub mod peer;
pub mod privilege;
pub mod process;
pub mod rawr;
pub mod scene;
pub mod stream;
pub mod topology;
pub mod uclient;
pub mod watch;
pub mod world;
