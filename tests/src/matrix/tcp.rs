//! A node's TCP punching. What the two sides have to tell each other goes through the matrix, as an
//! application's own channel would carry it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng as _;
use rawr_nat::Behaviour;
use rawr_nat::punch::{TcpPunchConfig, Tuning, tcp_external, tcp_punch};
use rawr_proto::SessionSecret;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;

use super::account::Ledger;
use super::node::say;
use super::words::{Card, News, Order, Start};
use crate::process::now;

/// How long the other side's card may take to come.
const CARD_LIMIT: Duration = Duration::from_secs(10);

/// Punches a stream and exchanges a few bytes over it, then waits for the order to stop.
pub(super) async fn connect(
    start: &Start,
    ours: Option<Behaviour>,
    local: Option<IpAddr>,
    server: SocketAddr,
    orders: &mut UnboundedReceiver<Order>,
    ledger: &mut Ledger,
) -> Result<()> {
    let known = ours.zip(local).filter(|_| server.is_ipv4());
    let Some((ours, local)) = known else {
        ledger.reason("TCP: no server answered over IPv4".to_owned());
        return until_stop(orders).await;
    };
    let (to_punch, incoming) = unbounded_channel();
    let outcome = {
        let stream = punch(start, ours, local, server, incoming, ledger);
        tokio::pin!(stream);
        loop {
            tokio::select! {
                outcome = &mut stream => break outcome,
                order = orders.recv() => match order {
                    // Whoever punches may have ended.
                    Some(Order::Signal(bytes)) => drop(to_punch.send(bytes)),
                    Some(Order::Stop) | None => return Ok(()),
                    Some(_) => {}
                }
            }
        }
    };
    match outcome {
        Ok(stream) => {
            until_stop(orders).await?;
            drop(stream);
        }
        Err(error) => {
            ledger.reason(format!("TCP: {error:#}"));
            until_stop(orders).await?;
        }
    }
    Ok(())
}

async fn punch(
    start: &Start,
    ours: Behaviour,
    local: IpAddr,
    server: SocketAddr,
    mut incoming: UnboundedReceiver<Vec<u8>>,
    ledger: &mut Ledger,
) -> Result<TcpStream> {
    let held = hold(local)?;
    let local = held.local_addr()?.as_socket().context("no local address")?;
    let endpoint = tcp_external(local, server).await.context("the own external endpoint")?;
    say(&News::Signal(serde_json::to_vec(&Card::new(&ours, endpoint))?))?;
    let card = tokio::time::timeout(CARD_LIMIT, incoming.recv()).await;
    let card = card.ok().flatten().context("the other side has said nothing")?;
    let card: Card = serde_json::from_slice(&card).context("the other side's card")?;
    let secret: SessionSecret = start.secret.parse().context("no secret")?;
    let (outgoing, to_tell) = unbounded_channel();
    let config = TcpPunchConfig {
        key: secret.derive(b"matrix: punching over TCP"),
        is_initiator: start.is_a,
        ours,
        theirs: card.behaviour()?,
        local,
        our_external: vec![endpoint],
        their_endpoints: vec![card.endpoint],
        server: Some(server),
        tuning: Tuning::default(),
        outgoing,
        incoming,
    };
    // Ends with this future: nothing more may be said when the next trial has begun.
    let mut telling = JoinSet::new();
    telling.spawn(tell(to_tell));
    let mut stream = tcp_punch(config).await?;
    drop(telling);
    ledger.direct(now());
    say(&News::Path { kind: "tcp".to_owned(), is_direct: true })?;
    exchange(&mut stream, ledger).await?;
    ledger.end(Some(("tcp".to_owned(), true)), 0);
    Ok(stream)
}

async fn tell(mut messages: UnboundedReceiver<Vec<u8>>) {
    while let Some(message) = messages.recv().await {
        if let Err(error) = say(&News::Signal(message)) {
            log::error!("standard output: {error:#}");
        }
    }
}

/// A number each way.
async fn exchange(stream: &mut TcpStream, ledger: &mut Ledger) -> Result<()> {
    let number: u64 = rand::rng().random();
    stream.write_all(&number.to_be_bytes()).await?;
    let theirs = stream.read_u64().await?;
    stream.write_all(&theirs.to_be_bytes()).await?;
    anyhow::ensure!(stream.read_u64().await? == number, "what was sent came back changed");
    ledger.take(now(), 0);
    say(&News::FirstByte)
}

/// A local port that others may share.
fn hold(local: IpAddr) -> Result<Socket> {
    let any = SocketAddr::new(local, 0);
    let socket = Socket::new(Domain::for_address(any), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&any.into())?;
    Ok(socket)
}

async fn until_stop(orders: &mut UnboundedReceiver<Order>) -> Result<()> {
    while let Some(order) = orders.recv().await {
        if matches!(order, Order::Stop) {
            break;
        }
    }
    Ok(())
}
