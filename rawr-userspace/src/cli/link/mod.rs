//! `rawr listen`, `connect`, `send`, `receive` and `ping`: links with whoever holds a name.

mod client;
mod connect;
mod listen;
mod ping;
mod report;
mod send;

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

pub use self::client::IdentityArgs;
pub use self::connect::ConnectArgs;
pub use self::listen::{ListenArgs, ReceiveArgs};
pub use self::ping::PingArgs;
pub use self::send::SendArgs;

pub(super) use self::client::print_identity;

use crate::io::clock;

/// Exit status of a command that was interrupted, and then again.
const INSISTED: i32 = 130;
/// What comes sooner after the first interruption is the same one: shells and terminals that end tell a
/// process and its group.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a command has ended.
pub(super) type Outcome = anyhow::Result<()>;

pub(super) fn connect(args: ConnectArgs) -> Outcome {
    run(args.client.is_json(), |stop| connect::run(args, stop))
}

pub(super) fn listen(args: ListenArgs) -> Outcome {
    run(args.client.is_json(), |stop| listen::listen(args, stop))
}

pub(super) fn receive(args: ReceiveArgs) -> Outcome {
    run(args.client.is_json(), |stop| listen::receive(args, stop))
}

pub(super) fn send(args: SendArgs) -> Outcome {
    run(args.client.is_json(), |stop| send::run(args, stop))
}

pub(super) fn ping(args: PingArgs) -> Outcome {
    run(args.client.is_json(), |stop| ping::run(args, stop))
}

/// Runs a command until it is done. It is told when it is interrupted, and releases what it holds then; who
/// interrupts it again does not want to wait for that.
fn run<F: Future<Output = Outcome>>(
    is_json: bool,
    command: impl FnOnce(watch::Receiver<bool>) -> F,
) -> Outcome {
    // Lines of a log would stand between those of a report that programs read.
    let level = if is_json { log::LevelFilter::Error } else { log::LevelFilter::Warn };
    env_logger::Builder::new()
        .filter_level(level)
        .parse_env("RAWR_LOG")
        .format_timestamp_millis()
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (tell, stop) = watch::channel(false);
        let first = Arc::new(OnceLock::new());
        let mut signals = Vec::new();
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            signals.push(signal(kind)?);
        }
        for mut signal in signals {
            let (tell, first) = (tell.clone(), Arc::clone(&first));
            tokio::spawn(async move {
                while signal.recv().await.is_some() {
                    let now = clock::monotonic();
                    let first = *first.get_or_init(|| now);
                    if now.saturating_duration_since(first) >= PATIENCE {
                        std::process::exit(INSISTED);
                    }
                    tell.send_replace(true);
                }
            });
        }
        command(stop).await
    });
    // A thread may still wait for standard input.
    runtime.shutdown_background();
    outcome
}

/// Waits for an interruption.
async fn stopped(stop: &watch::Receiver<bool>) {
    let mut stop = stop.clone();
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}
