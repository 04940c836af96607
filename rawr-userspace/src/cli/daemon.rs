//! `rawr stop`, `rawr detach`.

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::args::DaemonArgs;
use crate::admin::{self, AdminError, Request, Response};
use crate::dataplane::bpf::{BPFFS, Pins};

/// How long a daemon may take to end, in steps of [`STEP`].
const STEPS: u32 = 100;
const STEP: Duration = Duration::from_millis(50);

/// Ends the daemon; the kernel goes on.
pub(super) fn stop(daemon: &DaemonArgs) -> anyhow::Result<()> {
    end(daemon, Request::Stop)?;
    println!("stopped; the kernel forwards on until `rawr serve` takes over, or `rawr detach`");
    Ok(())
}

/// Ends the daemon, if there is one, and all forwarding in the kernel, which goes on without.
pub(super) fn detach(daemon: &DaemonArgs) -> anyhow::Result<()> {
    match (end(daemon, Request::Detach), daemon.instance()) {
        (Ok(()), _) => println!("stopped; nothing is forwarded any more"),
        (Err(AdminError::Absent { .. }), Some(instance)) => {
            let interfaces = Pins::detach(Path::new(BPFFS), instance.as_str())?;
            match interfaces.as_slice() {
                [] => println!("{} forwards nothing in the kernel", instance.as_str()),
                names => println!("detached from {}", names.join(", ")),
            }
        }
        (Err(error), _) => return Err(error.into()),
    }
    Ok(())
}

/// Asks the daemon to end, and waits until it has.
fn end(daemon: &DaemonArgs, request: Request) -> Result<(), AdminError> {
    let socket = daemon.socket();
    match admin::ask(&socket, request) {
        // It may end before it has answered.
        Ok(Response::Done) | Err(AdminError::Gone) => {}
        Ok(_) => return Err(AdminError::Failed("the daemon answered something else".to_owned())),
        Err(error) => return Err(error),
    }
    for _ in 0..STEPS {
        match admin::ask(&socket, Request::Status) {
            Err(AdminError::Absent { .. }) => return Ok(()),
            _ => sleep(STEP),
        }
    }
    Err(AdminError::Failed("the daemon has said that it ends, and has not yet".to_owned()))
}
