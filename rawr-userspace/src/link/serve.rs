//! What one end does for the other, as far as it has been allowed to.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rawr_nat::secure::SecureStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Service;
use super::file::{self, FileError, Transferred};
use super::hub::Hub;
use super::pipe::{Piped, pipe};
use super::target::{Allowed, Target, Transport};
use super::wire::{Reply, read_text};
use super::{tcp, udp};
use crate::io::clock;

/// How long pipes and files have to come to their end once the link is over, and others to take an answer.
const REST: Duration = Duration::from_secs(5);

/// Why all of it may end early: the other side waits for an answer in vain, or says what nobody says.
const DEAF: &str = "the request cannot be read: it may be of another version";

/// What the other sides may have done here, on all links of a listener.
#[derive(Debug, Default)]
pub struct Offers {
    /// Standard input and output, for the first one who wants them.
    pub pipe: Option<AtomicBool>,
    /// Where they may have connections and datagrams taken to.
    pub allowed: Vec<Allowed>,
    /// Where their files go.
    pub directory: Option<PathBuf>,
}

/// What was done.
#[derive(Debug)]
pub enum Served {
    /// The pipe is at its end.
    Piped(io::Result<Piped>),
    /// Something was asked for that is not allowed, or does not work.
    Refused(String),
    /// Bytes of a file have come: its length, and how much of it is there.
    Progress { size: u64, received: u64 },
    /// A file has come, or not, and how long that took.
    File(Result<Transferred, FileError>, Duration),
}

impl Offers {
    /// Standard input and output alone.
    pub fn pipe() -> Self {
        Self { pipe: Some(AtomicBool::new(false)), ..Self::default() }
    }

    /// Why a target is not one that is allowed.
    fn refusal(&self, transport: Transport, target: &Target) -> Option<String> {
        if self.allowed.iter().any(|allowed| allowed.covers(transport, target)) {
            return None;
        }
        let transport = transport.as_str();
        Some(format!(
            "this side does not allow {target}/{transport}: it has to be started with --allow \
             {target}/{transport}"
        ))
    }

    /// Takes the pipe, if there is one and nobody has it.
    fn take_pipe(&self) -> Result<(), &'static str> {
        match &self.pipe {
            None => Err(
                "this side offers no pipe: it forwards ports (-L, -U), or receives files (rawr send)",
            ),
            Some(is_taken) if is_taken.swap(true, Ordering::Relaxed) => {
                Err("somebody else has the pipe of this side: it takes one at a time")
            }
            Some(_) => Ok(()),
        }
    }
}

/// Serves the streams of one link until it is over. What was done is told to `served`.
pub async fn serve(hub: Arc<Hub>, offers: Arc<Offers>, served: mpsc::Sender<Served>) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = hub.link().accept() => {
                let Ok((stream, port)) = accepted else { break };
                let client = Client {
                    hub: Arc::clone(&hub),
                    offers: Arc::clone(&offers),
                    served: served.clone(),
                };
                tasks.spawn(client.serve(stream, port));
            }
            Some(_) = tasks.join_next() => {}
            _ = hub.link().ended() => break,
        }
    }
    // Files and pipes have to say how they ended.
    let rest = async { while tasks.join_next().await.is_some() {} };
    let _broken_off = tokio::time::timeout(REST, rest).await;
}

/// One who has opened a stream.
struct Client {
    hub: Arc<Hub>,
    offers: Arc<Offers>,
    served: mpsc::Sender<Served>,
}

impl Client {
    async fn serve(self, stream: SecureStream, port: u16) {
        let served = match Service::of(port) {
            Some(Service::Pipe) => self.pipe(stream).await,
            Some(Service::Tcp) => self.tcp(stream).await,
            Some(Service::Udp) => self.udp(stream).await,
            Some(Service::File) => self.file(stream).await,
            None => self.refuse(stream, "this side does not know that service: it is older").await,
        };
        let told = match served {
            Ok(Some(told)) => told,
            Ok(None) => return,
            Err(error) => Served::Refused(format!("{DEAF} ({error})")),
        };
        self.tell(told).await;
    }

    async fn pipe(&self, mut stream: SecureStream) -> io::Result<Option<Served>> {
        if let Err(why) = self.offers.take_pipe() {
            return self.refuse(stream, why).await;
        }
        Reply::Agreed.write(&mut stream).await?;
        let piped = pipe(stream, tokio::io::stdin(), tokio::io::stdout()).await;
        Ok(Some(Served::Piped(piped)))
    }

    async fn tcp(&self, mut stream: SecureStream) -> io::Result<Option<Served>> {
        let target = match self.target(&mut stream, Transport::Tcp).await? {
            Ok(target) => target,
            Err(why) => return self.refuse(stream, &why).await,
        };
        match tcp::connect(&target).await {
            Ok(socket) => {
                Reply::Agreed.write(&mut stream).await?;
                tcp::join(stream, socket).await;
                Ok(None)
            }
            Err(error) => self.refuse(stream, &format!("{target}: {error}")).await,
        }
    }

    async fn udp(&self, mut stream: SecureStream) -> io::Result<Option<Served>> {
        let id = stream.read_u32().await?;
        let target = match self.target(&mut stream, Transport::Udp).await? {
            Ok(target) => target,
            Err(why) => return self.refuse(stream, &why).await,
        };
        let socket = match udp::connect(&target).await {
            Ok(socket) => socket,
            Err(error) => return self.refuse(stream, &format!("{target}: {error}")).await,
        };
        let Some(flow) = self.hub.take_flow(id) else {
            return self.refuse(stream, "this side has as many flows as it may have").await;
        };
        Reply::Agreed.write(&mut stream).await?;
        udp::serve(stream, flow, socket).await;
        Ok(None)
    }

    async fn file(&self, stream: SecureStream) -> io::Result<Option<Served>> {
        let Some(directory) = &self.offers.directory else {
            let why = "this side receives no files: it has to be started as rawr receive";
            return self.refuse(stream, why).await;
        };
        let progress = |size, received| {
            // One that is not shown is followed by others.
            let _busy = self.served.try_send(Served::Progress { size, received });
        };
        let began = clock::monotonic();
        let received = file::receive(stream, directory, progress).await;
        let took = clock::monotonic().saturating_duration_since(began);
        Ok(Some(Served::File(received, took)))
    }

    /// What the other side asks to be taken to, or why it is not.
    async fn target(
        &self,
        stream: &mut SecureStream,
        transport: Transport,
    ) -> io::Result<Result<Target, String>> {
        let text = read_text(stream).await?;
        let target: Target = match text.parse() {
            Ok(target) => target,
            Err(error) => return Ok(Err(format!("{error}"))),
        };
        Ok(match self.offers.refusal(transport, &target) {
            None => Ok(target),
            Some(why) => Err(why),
        })
    }

    /// Says why not. A stream that is dropped before the other side has said all is reset, and the answer
    /// may be lost with it.
    async fn refuse(&self, mut stream: SecureStream, why: &str) -> io::Result<Option<Served>> {
        Reply::Refused(why.to_owned()).write(&mut stream).await?;
        stream.shutdown().await?;
        let mut sink = tokio::io::sink();
        let _late = tokio::time::timeout(REST, tokio::io::copy(&mut stream, &mut sink)).await;
        Ok(Some(Served::Refused(why.to_owned())))
    }

    async fn tell(&self, served: Served) {
        // Who is not interested any more is about to end.
        let _ended = self.served.send(served).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_allowed_by_their_listener_alone() {
        let offers =
            Offers { allowed: vec!["127.0.0.1:80/tcp".parse().unwrap()], ..Offers::default() };
        let target: Target = "127.0.0.1:80".parse().unwrap();
        assert_eq!(offers.refusal(Transport::Tcp, &target), None);
        let why = offers.refusal(Transport::Udp, &target).unwrap();
        assert!(why.contains("--allow 127.0.0.1:80/udp"), "{why}");
        assert!(Offers::default().refusal(Transport::Tcp, &target).is_some());
    }

    #[test]
    fn one_has_the_pipe() {
        let offers = Offers::pipe();
        assert_eq!(offers.take_pipe(), Ok(()));
        assert!(offers.take_pipe().unwrap_err().contains("somebody else"));
        assert!(Offers::default().take_pipe().unwrap_err().contains("no pipe"));
    }
}
