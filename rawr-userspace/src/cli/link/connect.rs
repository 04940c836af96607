//! `rawr connect`: the side that comes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::Args;
use rawr_nat::agent::AgentEvent;
use rawr_nat::link::{Ending, Link, LinkError};
use rawr_proto::BridgeName;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::{ClientArgs, TrustArgs};
use super::report::{Report, To};
use super::{Outcome, stopped};
use crate::link::forward::Forward;
use crate::link::hub::Hub;
use crate::link::pipe::pipe;
use crate::link::wire::{Reply, shown};
use crate::link::{Service, tcp, udp};

/// How long the rest of a pipe may take to come once the other side has left.
const REST: Duration = Duration::from_secs(5);
/// How often it is looked whether nobody uses a link any more, and the pauses between.
const LETTING_GO: u32 = 1000;
const GLANCE: Duration = Duration::from_millis(1);
/// How often the status line is brought up to date.
const STATUS: Duration = Duration::from_millis(500);

/// Flags of `rawr connect`.
#[derive(Args, Clone, Debug)]
pub struct ConnectArgs {
    /// Name that the other side listens under
    name: BridgeName,
    /// Forward a local TCP port to a target that the other side reaches, and allows; may be repeated. Then
    /// nothing is piped
    #[arg(short = 'L', long = "tcp", value_name = "[BIND:]PORT:HOST:PORT")]
    tcp: Vec<Forward>,
    /// The same with UDP
    #[arg(short = 'U', long = "udp", value_name = "[BIND:]PORT:HOST:PORT")]
    udp: Vec<Forward>,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

/// Pipes standard input and output, or forwards ports, until one side ends it.
pub(super) async fn run(args: ConnectArgs, stop: watch::Receiver<bool>) -> Outcome {
    let ports = Ports::open(&args).await?;
    let is_pipe = ports.is_empty();
    let to = if is_pipe { To::ErrorBesideData } else { To::Error };
    let report = Arc::new(Report::new(args.client.is_json(), to));
    let Some((link, peer)) = reach(&args.client, &args.trust, &args.name, &stop, &report).await?
    else {
        return Ok(());
    };
    let hub = Hub::new(Arc::clone(&link));
    let mut tasks = JoinSet::new();
    tasks.spawn(watch_path(Arc::clone(&link), peer.clone(), Arc::clone(&report)));
    ports.forward(&hub, &report, &peer, &mut tasks)?;
    let answering = Arc::clone(&hub);
    tasks.spawn(async move {
        // Its end is that of the link.
        let _over = answering.run().await;
    });
    let outcome = tokio::select! {
        piped = pipe_through(&link), if is_pipe => piped,
        ending = link.ended(), if !is_pipe => over(ending),
        () = stopped(&stop) => Ok(()),
    };
    tasks.shutdown().await;
    drop(hub);
    let error = outcome.as_ref().err().map(ToString::to_string);
    leave(link).await;
    report.ended(&peer, error.as_deref());
    outcome
}

/// Makes a link with whoever holds `name`; nothing, if it is interrupted before.
pub(super) async fn reach(
    client: &ClientArgs,
    trust: &TrustArgs,
    name: &BridgeName,
    stop: &watch::Receiver<bool>,
    report: &Report,
) -> anyhow::Result<Option<(Arc<Link>, String)>> {
    let client = tokio::select! {
        client = client.client(stop.clone()) => client?,
        () = stopped(stop) => return Ok(None),
    };
    let known = trust.trust(&client)?;
    match Link::connect(&client.link, name, &known, trust.wait()).await {
        Ok(link) => {
            report.linked(name.as_str(), &link);
            Ok(Some((Arc::new(link), name.to_string())))
        }
        Err(LinkError::Stopped) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Closes a link, whose users have been aborted.
pub(super) async fn leave(mut link: Arc<Link>) {
    for _ in 0..LETTING_GO {
        match Arc::try_unwrap(link) {
            Ok(link) => return link.close().await,
            Err(used) => link = used,
        }
        // What is aborted lets go when it is next looked at.
        tokio::time::sleep(GLANCE).await;
    }
    log::warn!("a link is still in use: servers keep its legs until they notice");
}

/// Tells of the path as long as the link lasts.
pub(super) async fn watch_path(link: Arc<Link>, peer: String, report: Arc<Report>) {
    let mut tick = tokio::time::interval(STATUS);
    let mut changes = 0;
    loop {
        tokio::select! {
            event = link.news() => {
                changes += u32::from(matches!(event, AgentEvent::PathChanged { .. }));
                report.path(&peer, &event);
            }
            _ = tick.tick() => report.status(&peer, link.path().as_ref(), changes),
        }
    }
}

/// Opens a stream for a service, and has the other side agree to it.
pub(super) async fn ask(
    link: &Link,
    service: Service,
) -> io::Result<rawr_nat::secure::SecureStream> {
    link.open(service.port()).await
}

async fn pipe_through(link: &Link) -> Outcome {
    let mut stream = ask(link, Service::Pipe).await.context("no pipe")?;
    match Reply::read(&mut stream).await? {
        Reply::Agreed => {}
        Reply::Refused(why) => bail!("the other side refuses: {}", shown(&why)),
    }
    let mut piping = Box::pin(pipe(stream, tokio::io::stdin(), tokio::io::stdout()));
    let piped = tokio::select! {
        piped = &mut piping => piped,
        ending = link.ended() => match tokio::time::timeout(REST, piping).await {
            Ok(piped) => piped,
            Err(_) => return over(ending).and_then(|()| {
                Err(anyhow!("the other side has left before everything was through"))
            }),
        },
    };
    piped.map(drop).context("the pipe broke")
}

/// What the end of a link means.
pub(super) fn over(ending: Ending) -> Outcome {
    match ending {
        Ending::Closed => Ok(()),
        Ending::Broken(why) => Err(anyhow!("the link broke: {why}")),
    }
}

/// Local ports, open before there is a link: what cannot be opened is told at once.
struct Ports {
    tcp: Vec<(TcpListener, Forward)>,
    udp: Vec<(UdpSocket, Forward)>,
}

impl Ports {
    async fn open(args: &ConnectArgs) -> anyhow::Result<Self> {
        let (mut tcp, mut udp) = (Vec::new(), Vec::new());
        for forward in &args.tcp {
            let opened = TcpListener::bind(forward.local).await;
            let opened = opened.with_context(|| format!("cannot listen on {}", forward.local))?;
            tcp.push((opened, forward.clone()));
        }
        for forward in &args.udp {
            let opened = UdpSocket::bind(forward.local).await;
            let opened = opened.with_context(|| format!("cannot listen on {}", forward.local))?;
            udp.push((opened, forward.clone()));
        }
        Ok(Self { tcp, udp })
    }

    fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    fn forward(
        self,
        hub: &Arc<Hub>,
        report: &Arc<Report>,
        peer: &str,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let refused = || {
            let (report, peer) = (Arc::clone(report), peer.to_owned());
            move |why: &str| report.refused(&peer, why)
        };
        for (listener, Forward { target, .. }) in self.tcp {
            report.forwarding("tcp", listener.local_addr()?, &target.to_string());
            let (hub, refused) = (Arc::clone(hub), refused());
            tasks.spawn(tcp::forward(hub, listener, target, refused));
        }
        for (socket, Forward { target, .. }) in self.udp {
            report.forwarding("udp", socket.local_addr()?, &target.to_string());
            let (hub, refused) = (Arc::clone(hub), refused());
            tasks.spawn(async move {
                if let Err(error) = udp::forward(hub, socket, target, refused).await {
                    log::error!("a forwarded UDP port has failed: {error}");
                }
            });
        }
        Ok(())
    }
}
