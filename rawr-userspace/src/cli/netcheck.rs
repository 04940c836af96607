//! `rawr netcheck`: what the NATs before this host do, and what that means for connections.

mod network;
mod reach;
mod show;
mod view;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use rawr_nat::classify::{self, ClassifyConfig, Report};
use rawr_nat::portmap::Protocols;

use self::view::View;
use super::args::OutputArgs;
use crate::config::ServerAddress;
use crate::io::clock;

/// Most of the time that the names of servers may take to be looked up.
const LOOK_UP_SHARE: u32 = 2;

/// Flags of `rawr netcheck`.
#[derive(Args, Clone, Debug)]
pub struct NetcheckArgs {
    /// STUN server to ask: a rawr root, or any other; may be repeated. One with two addresses (RFC 5780)
    /// tells most, of others two are needed
    #[arg(short, long = "server", value_name = "HOST[:PORT]", required = true)]
    servers: Vec<ServerAddress>,
    /// Seconds after which a report is due, whatever is known by then
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=60))]
    timeout: u64,
    /// Test how long the NAT remembers, too: after each of these seconds of silence. Takes as long as the
    /// longest
    #[arg(
        long,
        value_name = "SECONDS,...",
        num_args = 0..=1,
        require_equals = true,
        value_delimiter = ',',
        default_missing_value = "15,30,45,60,90,120,180,240,300"
    )]
    lifetime: Vec<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Writes the report. Fails if no server answered.
pub(super) fn run(args: &NetcheckArgs) -> anyhow::Result<ExitCode> {
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .parse_env("RAWR_LOG")
        .format_timestamp_millis()
        .init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (servers, report, router) = runtime.block_on(check(args))?;
    // Lookups of names go on in threads of their own.
    runtime.shutdown_background();
    let view = View::of(&report, router, &servers);
    if args.output.json {
        println!("{}", serde_json::to_string_pretty(&view)?);
    } else {
        print!("{}", show::text(&report, router, &view));
    }
    if !has_answer(&report) {
        bail!(
            "no server answered, over UDP or TCP, of {}: see that this host is online and that these are \
             STUN servers; else something on the way drops what goes to their ports",
            joined(&servers)
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Also tells by what the router maps ports, where there is one.
async fn check(
    args: &NetcheckArgs,
) -> anyhow::Result<(Vec<SocketAddr>, Report, Option<Protocols>)> {
    let timeout = Duration::from_secs(args.timeout);
    let until = clock::monotonic() + timeout;
    let servers = look_up(&args.servers, clock::monotonic() + timeout / LOOK_UP_SHARE).await?;
    let mut config = ClassifyConfig::new(servers.clone());
    config.timeout = until.saturating_duration_since(clock::monotonic());
    config.silences = args.lifetime.iter().copied().map(Duration::from_secs).collect();
    let limit = config.timeout;
    let (report, router, nat64) =
        tokio::join!(classify::run(config), network::router(limit), network::nat64(limit));
    let report = report.context("cannot ask this host for its addresses")?;
    Ok((servers, Report { nat64, ..report }, router))
}

/// All addresses of all servers that can be found in time.
async fn look_up(names: &[ServerAddress], until: Instant) -> anyhow::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    let mut failures = Vec::new();
    let mut lookups = tokio::task::JoinSet::new();
    for (position, server) in names.iter().cloned().enumerate() {
        lookups.spawn(async move {
            let found = tokio::net::lookup_host((server.host.as_str(), server.port));
            match tokio::time::timeout_at(until.into(), found).await {
                Ok(Ok(addresses)) => Ok((position, addresses.collect::<Vec<_>>())),
                Ok(Err(error)) => Err(format!("cannot resolve {}: {error}", server.host)),
                Err(_) => Err(format!("cannot resolve {}: no answer in time", server.host)),
            }
        });
    }
    while let Some(lookup) = lookups.join_next().await {
        match lookup? {
            Ok(addresses) => found.push(addresses),
            Err(failure) => failures.push(failure),
        }
    }
    if found.iter().all(|(_, addresses)| addresses.is_empty()) {
        bail!("{}: give --server an address, or mend the resolver", failures.join("; "));
    }
    failures.iter().for_each(|failure| log::warn!("{failure}"));
    // In the order of the command line, whichever was resolved first.
    found.sort_by_key(|(position, _)| *position);
    let mut servers: Vec<SocketAddr> = Vec::new();
    for server in found.into_iter().flat_map(|(_, addresses)| addresses) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    Ok(servers)
}

fn has_answer(report: &Report) -> bool {
    let families = [&report.ipv4, &report.ipv6];
    families.into_iter().flatten().any(|family| family.udp.is_some() || family.tcp.is_some())
}

fn joined(servers: &[SocketAddr]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: NetcheckArgs,
    }

    fn lifetime(flags: &[&str]) -> Vec<u64> {
        let line = [&["netcheck", "--server", "192.0.2.1"], flags].concat();
        Line::try_parse_from(line).unwrap().args.lifetime
    }

    #[test]
    fn silences_are_named_or_the_usual_ones() {
        assert_eq!(lifetime(&[]), [0; 0]);
        assert_eq!(lifetime(&["--lifetime=1,10"]), [1, 10]);
        assert_eq!(lifetime(&["--lifetime"]), [15, 30, 45, 60, 90, 120, 180, 240, 300]);
    }

    #[tokio::test]
    async fn servers_come_in_the_order_of_the_command_line_and_once() {
        let names = ["127.0.0.3:9", "127.0.0.2", "127.0.0.3:9"].map(|name| name.parse().unwrap());
        let until = clock::monotonic() + Duration::from_secs(20);
        let found = look_up(&names, until).await.unwrap();
        assert_eq!(joined(&found), "127.0.0.3:9, 127.0.0.2:3478");
    }
}
