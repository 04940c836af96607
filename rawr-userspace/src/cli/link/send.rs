//! `rawr send`: a file to whoever runs `rawr receive`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use rawr_proto::BridgeName;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::{ClientArgs, TrustArgs};
use super::connect::{ask, leave, reach, watch_path};
use super::report::{Report, To};
use super::{Outcome, stopped};
use crate::io::clock;
use crate::link::{Service, file};

/// Flags of `rawr send`.
#[derive(Args, Clone, Debug)]
pub struct SendArgs {
    /// What to send
    file: PathBuf,
    /// Name that the other side receives under
    name: BridgeName,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Sends the file, and waits until the other side has it.
pub(super) async fn run(args: SendArgs, stop: watch::Receiver<bool>) -> Outcome {
    let report = Arc::new(Report::new(args.client.is_json(), To::Output));
    let path = &args.file;
    std::fs::metadata(path).with_context(|| format!("{}", path.display()))?;
    let Some((link, peer)) = reach(&args.client, &args.trust, &args.name, &stop, &report).await?
    else {
        return Ok(());
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_path(Arc::clone(&link), peer.clone(), Arc::clone(&report)));
    let began = clock::monotonic();
    let sending = async {
        let stream = ask(&link, Service::File).await.context("nothing can be sent")?;
        let progress = |size, sent| report.progress(size, sent);
        let sent = file::send(stream, path, progress).await?;
        let took = clock::monotonic().saturating_duration_since(began);
        report.file("sent", &sent, took);
        Ok(())
    };
    let outcome = tokio::select! {
        sent = sending => sent,
        () = stopped(&stop) => Err(anyhow::anyhow!("interrupted: the file was not sent")),
    };
    tasks.shutdown().await;
    leave(link).await;
    outcome
}
