//! Bytes per second that clients over TCP and TLS get relayed to UDP peers.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::process::now;

use self::client::{Connection, MESSAGE, Over};
use self::server::{Relay, Server};
use super::check::parse;
use super::contenders::Topology;
use super::lab::Lab;
use super::throughput::Entrant;
use super::traffic::{Load, Traffic};
use super::wire::far_peer;
use crate::affinity::pin_to;
use crate::document::Row;
use crate::rounds::{Wanted, undisturbed};

mod client;
mod server;

const TABLE: &str = "streams";
/// The CPU of the clients; the server has the one of processes.
const CLIENT_CPU: usize = 0;
/// Clients of a server, which all send at once.
const CLIENTS: u32 = 4;
/// Congestion windows are open by then.
const WARM_UP: Duration = Duration::from_millis(200);
const TIME: Duration = Duration::from_millis(800);

/// A relay with clients over one transport, who hold a channel each.
struct Case {
    relay: Relay,
    over: Over,
    connections: Vec<Connection>,
    server: usize,
}

/// Measures both relays over both transports, between two looks at the limit.
pub(super) fn measure(
    traffic: &mut Traffic,
    entrants: &[Entrant],
    wanted: Wanted,
) -> Result<(Vec<Row>, u32)> {
    let servers = Relay::ALL
        .into_iter()
        .map(|relay| Server::start(traffic, relay).with_context(|| relay.name()))
        .collect::<Result<Vec<_>>>()?;
    let mut cases = Vec::new();
    for (server, running) in servers.iter().enumerate() {
        for over in Over::ALL {
            let connections = connect(running, over)
                .with_context(|| format!("{} over {}", running.relay.name(), over.name()))?;
            cases.push(Case { relay: running.relay, over, connections, server });
        }
    }
    let limit = entrants.iter().find(|(kind, _)| kind.topology == Topology::Redirect);
    let (_, limit) = limit.context("no limit is set up")?;
    let load = Load {
        shape: limit.shape(200),
        flows: 1_000,
        in_turn: false,
        cores: 1,
        rate: None,
        stamped: false,
        time: Duration::from_millis(300),
    };
    let mut state = (traffic, &mut cases);
    let measured = undisturbed(
        wanted,
        &mut state,
        |(traffic, _)| Ok(traffic.send(limit.lab(), &load)?.rate()),
        |(traffic, cases)| {
            let rate = |case: &mut Case| {
                let lab = &servers[case.server].lab;
                run(traffic, lab, case)
                    .with_context(|| format!("{} over {}", case.relay.name(), case.over.name()))
            };
            cases.iter_mut().map(rate).collect()
        },
    )?;
    let row = |(place, case): (usize, &Case)| {
        let labels = [("contender", case.relay.name()), ("over", case.over.name())];
        Row::new(TABLE, &labels, "bytes/s", measured.at(place))
    };
    Ok((cases.iter().enumerate().map(row).collect(), measured.discarded))
}

fn connect(server: &Server, over: Over) -> Result<Vec<Connection>> {
    let (at, trusted) = (server.at(over), &server.trusted);
    let connection = |number| {
        let first = if over == Over::Tcp { 0 } else { CLIENTS };
        Connection::open(over, at, trusted, first + number)
    };
    server.lab.generator.run(|| (0..CLIENTS).map(connection).collect())?
}

/// Bytes per second that arrive while all clients send.
fn run(traffic: &mut Traffic, lab: &Lab, case: &mut Case) -> Result<f64> {
    let mark = traffic.begin();
    let is_over = AtomicBool::new(false);
    let (connections, delivered) = (&mut case.connections, traffic.delivered());
    let (packets, seconds) = lab.generator.run(|| -> Result<_> {
        std::thread::scope(|scope| {
            let send = |connection| scope.spawn(|| send_on(connection, mark, &is_over));
            let threads: Vec<_> = connections.iter_mut().map(send).collect();
            sleep(WARM_UP);
            let (before, begin) = (delivered(), now());
            sleep(TIME);
            let (after, seconds) = (delivered(), begin.elapsed().as_secs_f64());
            is_over.store(true, Ordering::Relaxed);
            for thread in threads {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            Ok((after - before, seconds))
        })
    })??;
    traffic.end();
    ensure!(packets > 0, "nothing arrived");
    for frame in traffic.samples() {
        check(case, &frame).with_context(|| format!("frame {frame:02x?}"))?;
    }
    Ok(packets as f64 * MESSAGE as f64 / seconds)
}

fn send_on(connection: &mut Connection, mark: u32, is_over: &AtomicBool) -> Result<()> {
    pin_to(CLIENT_CPU)?;
    connection.send_until(mark, is_over)
}

fn check(case: &Case, frame: &[u8]) -> Result<()> {
    let packet = parse(frame)?;
    ensure!(packet.frame() == frame, "has a wrong length or checksum");
    let sender = case.connections.iter().find(|it| it.is_sender_of(&packet.payload));
    let sender = sender.context("has another payload than any client has sent")?;
    let to = SocketAddr::V4(far_peer(sender.number));
    ensure!(packet.dst == to, "goes to {}", packet.dst);
    Ok(())
}

#[cfg(test)]
mod tests {
    use bench_ebpf::FLOWS;
    use rawr_tests::privilege;

    use super::*;
    use crate::netns::contenders::KINDS;

    #[test]
    fn both_relays_carry_streams() {
        if !privilege::can_make_namespaces("both_relays_carry_streams") {
            return;
        }
        let mut traffic = Traffic::new().unwrap();
        let limit = (&KINDS[0], KINDS[0].make(&mut traffic, FLOWS).unwrap());
        let wanted = Wanted { rounds: 1, is_rehearsal: true };
        let (rows, _) = measure(&mut traffic, &[limit], wanted).unwrap();
        assert_eq!(rows.len(), 4);
        for row in rows {
            assert!(row.median > 0.0, "{row:?}");
        }
    }
}
