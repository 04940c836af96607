//! The rawr daemon: a pure control plane, data plane back ends, and the shell that joins them.

pub mod control;
pub mod dataplane;
pub mod io;
