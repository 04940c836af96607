//! `rawr listen` and `rawr receive`: the side that holds the name.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use clap::Args;
use rawr_nat::PublicKey;
use rawr_nat::link::{Callers, Ending, Link, Listener, ListenerEvent};
use rawr_proto::BridgeName;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::client::ClientArgs;
use super::connect::{leave, watch_path};
use super::report::{Report, To};
use super::{Outcome, stopped};
use crate::link::hub::Hub;
use crate::link::serve::{Offers, Served, serve};
use crate::link::target::Allowed;

/// What was done for others, and has not been told yet.
const MAX_UNTOLD: usize = 64;

/// Flags of `rawr listen`.
#[derive(Args, Clone, Debug)]
pub struct ListenArgs {
    /// Name to listen under
    name: BridgeName,
    /// Target that the other sides may have ports forwarded to (-L, -U); may be repeated. The host is a name,
    /// an address, a subnet or *, the port a number, FIRST-LAST or *. Without any, standard input and output
    /// are piped to the first who comes
    #[arg(short, long = "allow", value_name = "HOST:PORT[/tcp|/udp]")]
    allowed: Vec<Allowed>,
    #[command(flatten)]
    callers: CallersArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Flags of `rawr receive`.
#[derive(Args, Clone, Debug)]
pub struct ReceiveArgs {
    /// Name to receive under
    name: BridgeName,
    /// Where files go
    #[arg(default_value = ".")]
    directory: PathBuf,
    /// Go on after the first file, until interrupted
    #[arg(short, long)]
    keep: bool,
    #[command(flatten)]
    callers: CallersArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Who may come.
#[derive(Args, Clone, Debug)]
struct CallersArgs {
    /// Key of somebody who may come, as `rawr identity` prints it there; may be repeated [default: whoever
    /// knows the name]
    #[arg(long = "peer-key", value_name = "KEY")]
    peer_keys: Vec<PublicKey>,
}

impl CallersArgs {
    fn callers(self) -> Callers {
        match self.peer_keys.is_empty() {
            true => Callers::Anyone,
            false => Callers::Keys(self.peer_keys),
        }
    }
}

/// Pipes standard input and output to one who comes, or forwards for all who come.
pub(super) async fn listen(args: ListenArgs, stop: watch::Receiver<bool>) -> Outcome {
    let (offers, to) = match args.allowed.is_empty() {
        true => (Offers::pipe(), To::ErrorBesideData),
        false => (Offers { allowed: args.allowed, ..Offers::default() }, To::Error),
    };
    let report = Report::new(args.client.is_json(), to);
    let callers = args.callers.callers();
    Hall::open(&args.client, args.name, callers, offers, report, stop, false).await
}

/// Receives files.
pub(super) async fn receive(args: ReceiveArgs, stop: watch::Receiver<bool>) -> Outcome {
    let directory = args.directory;
    let metadata = std::fs::metadata(&directory);
    let metadata = metadata.with_context(|| format!("{}", directory.display()))?;
    if !metadata.is_dir() {
        return Err(anyhow!("{} is no directory: name one, or make it first", directory.display()));
    }
    let offers = Offers { directory: Some(directory), ..Offers::default() };
    let report = Report::new(args.client.is_json(), To::Output);
    let callers = args.callers.callers();
    Hall::open(&args.client, args.name, callers, offers, report, stop, args.keep).await
}

/// A listener, and those who have come.
struct Hall {
    name: BridgeName,
    key: PublicKey,
    offers: Arc<Offers>,
    report: Arc<Report>,
    stop: watch::Receiver<bool>,
    /// Whether it goes on after the first file.
    keeps: bool,
    /// One for each link.
    guests: JoinSet<()>,
    served: mpsc::Sender<(String, Served)>,
}

/// Whether to go on.
enum Next {
    GoOn,
    End(Outcome),
}

impl Hall {
    async fn open(
        client: &ClientArgs,
        name: BridgeName,
        callers: Callers,
        offers: Offers,
        report: Report,
        stop: watch::Receiver<bool>,
        keeps: bool,
    ) -> Outcome {
        let (leave, leaving) = watch::channel(false);
        let client = tokio::select! {
            client = client.client(leaving.clone()) => client?,
            () = stopped(&stop) => return Ok(()),
        };
        let key = client.link.identity.public();
        let mut listener = Listener::bind(client.link, &name, callers)?;
        let (served, mut news) = mpsc::channel(MAX_UNTOLD);
        let mut hall = Self {
            name,
            key,
            offers: Arc::new(offers),
            report: Arc::new(report),
            stop: leaving,
            keeps,
            guests: JoinSet::new(),
            served,
        };
        let outcome = loop {
            let next = tokio::select! {
                event = listener.next() => match event {
                    Ok(event) => hall.happened(event),
                    Err(error) => Next::End(Err(error.into())),
                },
                Some((peer, served)) = news.recv() => hall.served(&peer, served),
                Some(_) = hall.guests.join_next() => Next::GoOn,
                () = stopped(&stop) => Next::End(Ok(())),
            };
            if let Next::End(outcome) = next {
                break outcome;
            }
        };
        leave.send_replace(true);
        let guests = async { while hall.guests.join_next().await.is_some() {} };
        // What is still told is of no interest, but must not hold anybody up.
        let ignore = async { while news.recv().await.is_some() {} };
        let closing = async { tokio::join!(listener.close(), guests).0 };
        tokio::select! {
            closed = closing => closed?,
            () = ignore => {}
        }
        outcome
    }

    fn happened(&mut self, event: ListenerEvent) -> Next {
        match event {
            ListenerEvent::Registered { reflexive, .. } => {
                self.report.registered(&self.name, self.key, reflexive);
            }
            ListenerEvent::NotRegistered(error) if error.is_passing() => {
                self.report.refused(self.name.as_str(), &format!("{error}; tried again"));
            }
            ListenerEvent::NotRegistered(error) => {
                return Next::End(Err(anyhow!("{}: {error}", self.name)));
            }
            ListenerEvent::Link(link) => {
                let peer = link.peer().to_string();
                self.report.linked(&peer, &link);
                let host = Host {
                    offers: Arc::clone(&self.offers),
                    report: Arc::clone(&self.report),
                    stop: self.stop.clone(),
                    served: self.served.clone(),
                };
                self.guests.spawn(host.entertain(link, peer));
            }
            ListenerEvent::Refused { from, refusal } => {
                self.report.refused(&from.to_string(), &format!("it was told that {refusal}"));
            }
            ListenerEvent::Failed { from, error } => {
                self.report.refused(&from.to_string(), &error.to_string());
            }
        }
        Next::GoOn
    }

    fn served(&mut self, peer: &str, served: Served) -> Next {
        match served {
            Served::Piped(piped) => {
                return Next::End(piped.map(drop).context("the pipe broke"));
            }
            Served::Refused(why) => self.report.refused(peer, &why),
            Served::Progress { size, received } => {
                self.report.progress(size, received);
            }
            Served::File(Ok(file), took) => {
                self.report.file("received", &file, took);
                if !self.keeps {
                    return Next::End(Ok(()));
                }
            }
            Served::File(Err(error), _) if self.keeps => {
                self.report.refused(peer, &error.to_string());
            }
            Served::File(Err(error), _) => return Next::End(Err(error.into())),
        }
        Next::GoOn
    }
}

/// Has one link.
struct Host {
    offers: Arc<Offers>,
    report: Arc<Report>,
    stop: watch::Receiver<bool>,
    served: mpsc::Sender<(String, Served)>,
}

impl Host {
    async fn entertain(self, link: Link, peer: String) {
        let link = Arc::new(link);
        let hub = Hub::new(Arc::clone(&link));
        let (tell, mut told) = mpsc::channel(MAX_UNTOLD);
        let mut tasks = JoinSet::new();
        tasks.spawn(watch_path(Arc::clone(&link), peer.clone(), Arc::clone(&self.report)));
        let answering = Arc::clone(&hub);
        tasks.spawn(async move {
            // Its end is that of the link.
            let _over = answering.run().await;
        });
        tasks.spawn(serve(hub, self.offers, tell));
        let why = loop {
            tokio::select! {
                served = told.recv() => match served {
                    // Nobody listens once all is over.
                    Some(served) => drop(self.served.send((peer.clone(), served)).await),
                    None => break match link.ended().await {
                        Ending::Closed => None,
                        Ending::Broken(why) => Some(why),
                    },
                },
                () = stopped(&self.stop) => break None,
            }
        };
        tasks.shutdown().await;
        leave(link).await;
        self.report.ended(&peer, why.as_deref());
    }
}
