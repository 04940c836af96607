//! A TURN client over DTLS of which nothing is ours: the client is turn-client-proto's, and DTLS is spoken by
//! `openssl s_client`.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use turn_client_proto::api::{
    Transmit, TransmitBuild, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet,
};
use turn_client_proto::prelude::{DelayedTransmitBuild as _, TurnClientApi as _};
use turn_client_proto::stun::Instant;
use turn_client_proto::tcp::TurnClientTcp;
use turn_types::{AddressFamily, TransportType, TurnCredentials};

use crate::netns::Netns;
use crate::process::{Process, now};

/// Nothing here takes that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client with an allocation.
pub struct OpenSslClient {
    openssl: Process,
    received: Receiver<Vec<u8>>,
    client: TurnClientTcp,
    local: SocketAddr,
    server: SocketAddr,
    start: std::time::Instant,
}

impl OpenSslClient {
    /// Makes an allocation by long-term credentials.
    pub fn allocate(
        host: &Netns,
        server: SocketAddr,
        (user, password): (&str, &str),
        log: &Path,
    ) -> Result<Self> {
        let mut command = host.command("openssl");
        command.args(["s_client", "-dtls1_2", "-quiet", "-connect", &server.to_string()]);
        let mut openssl = Process::spawn("openssl", &mut command, log)?;
        let (sender, received) = mpsc::channel();
        let mut output = openssl.take_stdout()?;
        thread::spawn(move || {
            let mut bytes = vec![0; 1 << 14];
            while let Ok(length @ 1..) = output.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    break;
                }
            }
        });
        // What it takes for its own address is nobody's business but its own.
        let local = SocketAddr::new(server.ip(), 1);
        let mut config = TurnConfig::new(TurnCredentials::new(user, password));
        let is_v4 = server.is_ipv4();
        config.set_address_family(if is_v4 { AddressFamily::IPV4 } else { AddressFamily::IPV6 });
        let client = TurnClientTcp::allocate(local, server, config);
        let mut client = Self { openssl, received, client, local, server, start: now() };
        match client.event()? {
            TurnEvent::AllocationCreated(..) => Ok(client),
            other => bail!("no allocation: {other:?}"),
        }
    }

    /// Binds a channel to a peer.
    pub fn bind(&mut self, peer: SocketAddr) -> Result<()> {
        let time = self.time();
        self.client.bind_channel(TransportType::Udp, peer, time).map_err(|e| anyhow!("{e}"))?;
        loop {
            match self.event()? {
                TurnEvent::ChannelCreated(..) => return Ok(()),
                TurnEvent::PermissionCreated(..) => {}
                other => bail!("no channel: {other:?}"),
            }
        }
    }

    /// Sends `data` to the peer of a channel, and wants it back.
    pub fn echo(&mut self, peer: SocketAddr, data: &[u8]) -> Result<()> {
        let time = self.time();
        let sent = self.client.send_to(TransportType::Udp, peer, data.to_vec(), time);
        if let Some(TransmitBuild { data, .. }) = sent.map_err(|e| anyhow!("{e}"))? {
            self.write(&data.build())?;
        }
        let answer = self.hear()?.context("the peer's answer is no data")?;
        ensure!(answer == data, "sent {} bytes, got {}", data.len(), answer.len());
        Ok(())
    }

    /// The next event, after as many requests and answers as it takes, one request at a time: OpenSSL puts
    /// what it reads at once into one record, and a record is one message.
    fn event(&mut self) -> Result<TurnEvent> {
        loop {
            let time = self.time();
            let TurnPollRet::WaitUntil(due) = self.client.poll(time) else { bail!("it is closed") };
            if let Some(event) = self.client.poll_event() {
                return Ok(event);
            }
            let Some(transmit) = self.client.poll_transmit(time) else {
                thread::sleep(due.saturating_duration_since(time));
                continue;
            };
            self.write(&transmit.data)?;
            ensure!(self.hear()?.is_none(), "data that nobody has sent");
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.openssl.stdin()?;
        stdin.write_all(bytes)?;
        Ok(stdin.flush()?)
    }

    /// Waits for a message; a peer's data, if it is that.
    fn hear(&mut self) -> Result<Option<Vec<u8>>> {
        let bytes = self.received.recv_timeout(PATIENCE);
        let bytes = bytes.with_context(|| self.openssl.log_tail(20))?;
        let transmit = Transmit::new(bytes, TransportType::Tcp, self.server, self.local);
        let time = self.time();
        match self.client.recv(transmit, time) {
            TurnRecvRet::PeerData(data) => Ok(Some(data.data().to_vec())),
            TurnRecvRet::Handled | TurnRecvRet::PeerIcmp { .. } => Ok(None),
            TurnRecvRet::Ignored(_) => bail!("the client makes nothing of the answer"),
        }
    }

    fn time(&self) -> Instant {
        Instant::from_nanos(self.start.elapsed().as_nanos() as i64 + 1_000_000_000)
    }
}
