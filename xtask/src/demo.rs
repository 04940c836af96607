//! `cargo xtask demo`: the main job, in network namespaces on this machine.

use anyhow::Result;

use crate::command::{as_root, cargo, is_root, run, workspace};
use crate::setup;

/// Builds the daemon and the demo, and runs it. Its last line is JSON.
pub(crate) fn start() -> Result<()> {
    setup::run()?;
    run(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    if !is_root() {
        eprintln!("Network namespaces and XDP need root, so the demo itself runs through sudo.");
    }
    run(&mut as_root(workspace().join("target/debug/rawr-demo"))?)
}
