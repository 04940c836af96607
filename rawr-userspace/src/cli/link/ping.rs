//! `rawr ping`: the path to whoever holds a name, and its round trip times.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use rawr_nat::link::Link;
use rawr_proto::BridgeName;
use serde_json::json;
use tokio::sync::watch;

use super::client::{ClientArgs, TrustArgs};
use super::connect::{leave, over, reach};
use super::report::{Report, To, path_json, path_text};
use super::{Outcome, stopped};
use crate::io::clock;
use crate::link::hub::Hub;

/// How long the last answers may take.
const LAST: Duration = Duration::from_secs(2);

/// Flags of `rawr ping`.
#[derive(Args, Clone, Debug)]
pub struct PingArgs {
    /// Name that the other side listens under
    name: BridgeName,
    /// Pings to send [default: until interrupted]
    #[arg(short, long, value_name = "NUMBER")]
    count: Option<u64>,
    /// Seconds from one to the next
    #[arg(short, long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    interval: f64,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    pub(super) client: ClientArgs,
}

fn interval(text: &str) -> Result<f64, &'static str> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds")?;
    match (0.01..=3600.0).contains(&seconds) {
        true => Ok(seconds),
        false => Err("expected 0.01 to 3600 seconds"),
    }
}

/// Pings until it has sent as many as it was told to, or is interrupted. Fails if nothing came back.
pub(super) async fn run(args: PingArgs, stop: watch::Receiver<bool>) -> Outcome {
    let report = Report::new(args.client.is_json(), To::Output);
    let Some((link, peer)) = reach(&args.client, &args.trust, &args.name, &stop, &report).await?
    else {
        return Ok(());
    };
    let hub = Hub::new(Arc::clone(&link));
    let mut pinging = Pinging { peer, sent: HashMap::new(), next: 0, times: Times::default() };
    let answering = tokio::spawn({
        let hub = Arc::clone(&hub);
        async move { hub.run().await }
    });
    let outcome = tokio::select! {
        outcome = pinging.run(&hub, &link, &args, &report) => outcome,
        () = stopped(&stop) => Ok(()),
    };
    answering.abort();
    // It was aborted, and holds the link no longer.
    let _aborted = answering.await;
    drop(hub);
    pinging.sum_up(&report);
    leave(link).await;
    outcome?;
    if pinging.next > 0 && pinging.times.count == 0 {
        bail!("nothing came back from {}", pinging.peer);
    }
    Ok(())
}

struct Pinging {
    peer: String,
    /// By their marks.
    sent: HashMap<u64, Instant>,
    next: u64,
    times: Times,
}

impl Pinging {
    async fn run(&mut self, hub: &Hub, link: &Link, args: &PingArgs, report: &Report) -> Outcome {
        let mut pongs = hub.pongs();
        let mut tick = tokio::time::interval(Duration::from_secs_f64(args.interval));
        let is_over = |next| args.count.is_some_and(|count| next >= count);
        loop {
            let waits = !self.sent.is_empty();
            tokio::select! {
                _ = tick.tick(), if !is_over(self.next) => {
                    self.sent.insert(self.next, clock::monotonic());
                    hub.ping(self.next);
                    self.next += 1;
                }
                Some(mark) = pongs.recv() => self.answered(mark, link, report),
                event = link.news() => report.path(&self.peer, &event),
                ending = link.ended() => return over(ending),
                () = tokio::time::sleep(LAST), if is_over(self.next) => return Ok(()),
            }
            if is_over(self.next) && waits && self.sent.is_empty() {
                return Ok(());
            }
        }
    }

    fn answered(&mut self, mark: u64, link: &Link, report: &Report) {
        let Some(sent) = self.sent.remove(&mark) else { return };
        let rtt = clock::monotonic().saturating_duration_since(sent);
        self.times.add(rtt);
        let path = link.path();
        let text = path.as_ref().map_or_else(|| "no path".to_owned(), path_text);
        let milliseconds = rtt.as_secs_f64() * 1000.0;
        let peer = &self.peer;
        report.event(
            format_args!("{peer}: ping {mark}: {milliseconds:.2} ms, {text}"),
            &json!({
                "event": "pong", "peer": peer, "sequence": mark, "rtt_us": rtt.as_micros() as u64,
                "path": path.as_ref().map(path_json),
            }),
        );
    }

    fn sum_up(&self, report: &Report) {
        let Times { count, least, most, sum } = self.times;
        let mean = if count == 0 { Duration::ZERO } else { sum.div_f64(count as f64) };
        let milliseconds = [least, mean, most].map(|it| it.as_secs_f64() * 1000.0);
        let [low, middle, high] = milliseconds;
        let (peer, sent) = (&self.peer, self.next);
        report.event(
            format_args!(
                "{peer}: {sent} sent, {count} came back; least {low:.2} ms, mean {middle:.2} ms, most \
                 {high:.2} ms"
            ),
            &json!({
                "event": "summary", "peer": peer, "sent": sent, "received": count,
                "min_ms": low, "mean_ms": middle, "max_ms": high,
            }),
        );
    }
}

/// Round trip times.
#[derive(Clone, Copy, Debug, Default)]
struct Times {
    count: u64,
    least: Duration,
    most: Duration,
    sum: Duration,
}

impl Times {
    fn add(&mut self, rtt: Duration) {
        self.least = if self.count == 0 { rtt } else { self.least.min(rtt) };
        self.most = self.most.max(rtt);
        self.sum += rtt;
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_summed_up() {
        let mut times = Times::default();
        [3, 1, 2].map(Duration::from_millis).into_iter().for_each(|rtt| times.add(rtt));
        assert_eq!((times.least, times.most), (Duration::from_millis(1), Duration::from_millis(3)));
        assert_eq!((times.count, times.sum), (3, Duration::from_millis(6)));
    }

    #[test]
    fn intervals_have_bounds() {
        assert_eq!(interval("0.2"), Ok(0.2));
        assert!(interval("0").is_err() && interval("nan").is_err() && interval("x").is_err());
    }
}
