//! The rawr daemon: a pure control plane, data plane back ends, and the shell that joins them.

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod doctor;
pub mod io;
pub mod link;
pub mod topology;
