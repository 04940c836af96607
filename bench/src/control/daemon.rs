//! The real daemon in a namespace, with the sessions of a crowd: what it weighs, and how long a
//! session that is added has to wait until the kernel forwards its first packet.

use std::rc::Rc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit};
use rawr_tests::crowd::Crowd;
use rawr_tests::lab::Family;
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon, PORT, Serve};
use rawr_tests::scene::Scene;
use rawr_tests::topology::{INTERNET, both};

use super::memory::Memory;
use super::values::Value;

/// Sessions held, as far as the system's limit of open files allows.
const SIZES: [u32; 2] = [100, 9_000];
/// Open files that the daemon needs besides two for each session.
const OTHER_FILES: u64 = 1_000;
const LIMITS: &str = "[limits]\nsessions = 20000\nunverified_per_second = 20000\n";
/// Seconds. Sessions are held for longer than the benchmark takes.
const LIFETIME: u32 = 3600;
const PAIR_LIMIT: Duration = Duration::from_secs(120);
/// Sessions added in each round.
const SAMPLES: u32 = 100;
const SAMPLE_LIMIT: Duration = Duration::from_secs(5);
/// Memory that a burst of requests has taken is back by then.
const SETTLE: Duration = Duration::from_secs(2);

/// Two daemons, one with few sessions and one with many.
pub(super) struct Daemons {
    daemons: Vec<Held>,
    _scene: Scene,
}

/// A daemon that holds sessions.
struct Held {
    root: Rc<Daemon>,
    crowd: Crowd,
    sessions: u32,
    /// Before it held them.
    idle: Memory,
}

impl Daemons {
    pub(super) fn start() -> Result<Self> {
        let mut scene = Scene::new("control")?;
        let most = most_sessions()?;
        let sizes = SIZES.map(|size| size.min(most));
        let daemons =
            sizes.iter().map(|size| Held::start(&mut scene, *size)).collect::<Result<_>>();
        let daemons = daemons.inspect_err(|_| eprintln!("{}", scene.describe()))?;
        Ok(Self { daemons, _scene: scene })
    }

    /// A round of all values.
    pub(super) fn measure(&mut self) -> Result<Vec<Value>> {
        let mut values = Vec::new();
        for held in &mut self.daemons {
            values.extend(held.measure()?);
        }
        Ok(values)
    }
}

impl Held {
    fn start(scene: &mut Scene, sessions: u32) -> Result<Self> {
        let (server, client) = (format!("root{sessions}"), format!("crowd{sessions}"));
        scene.lab.hosts(&[&server, &client])?;
        scene.lab.wire(&INTERNET, (&server, "wan", 1), (&client, "eth0", 2))?;
        let root = scene.serve(&server, Serve::root(&["wan"]).configured(LIMITS).terse())?;
        let pid = root.pid().context("the daemon does not run")?;
        let mut crowd = Crowd::new(&*scene.lab.at(&client)?, &both(&INTERNET, 2))?;
        let idle = Memory::of(pid)?;
        // Half of them of each family, so that the legs of either fit one address's data ports.
        for family in [Family::Ipv4, Family::Ipv6] {
            let server = INTERNET.socket(family, 1, PORT);
            crowd.pair(server, sessions as usize / 2, LIFETIME, PAIR_LIMIT)?;
        }
        let held = root.sessions()?;
        ensure!(held == u64::from(sessions), "the daemon holds {held} sessions of {sessions}");
        sleep(SETTLE);
        Ok(Self { root, crowd, sessions, idle })
    }

    fn measure(&mut self) -> Result<Vec<Value>> {
        let pid = self.root.pid().context("the daemon does not run")?;
        let memory = Memory::of(pid)?;
        let sessions = self.sessions.to_string();
        let labels = [("sessions", &*sessions)];
        let (p50, p95, share) = self.first_packets()?;
        Ok(vec![
            Value::new(
                "resident memory of the daemon per session",
                &labels,
                "B",
                memory.each_since(self.idle, self.sessions),
            ),
            first_packet(&sessions, "median", p50),
            first_packet(&sessions, "95th percentile", p95),
            Value::new("first packets forwarded by the kernel", &labels, "%", 100.0 * share),
        ])
    }

    /// Median and 95th percentile in milliseconds, and the part that the kernel forwarded.
    fn first_packets(&mut self) -> Result<(f64, f64, f64)> {
        let server = INTERNET.socket(Family::Ipv4, 1, PORT);
        let before = self.root.traffic()?;
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            let took = self.crowd.first_packet(server, SAMPLE_LIMIT)?;
            times.push(1e3 * took.as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        sleep(COUNTERS_SETTLE);
        let forwarded = self.root.traffic()?.since(before);
        ensure!(forwarded.total() >= SAMPLES.into(), "only {} packets", forwarded.total());
        let at = |part: f64| times[(part * (times.len() - 1) as f64).round() as usize];
        Ok((at(0.5), at(0.95), forwarded.kernel_share()))
    }
}

fn first_packet(sessions: &str, statistic: &str, milliseconds: f64) -> Value {
    let labels = [("sessions", sessions), ("statistic", statistic)];
    Value::new("Connect to the first packet forwarded", &labels, "ms", milliseconds)
}

/// As many as one process can have two files for, rounded down.
fn most_sessions() -> Result<u32> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.saturating_sub(OTHER_FILES) / 2 / 100 * 100;
    ensure!(most >= SIZES[0].into(), "the limit of open files ({hard}) is too low");
    Ok(u32::try_from(most).unwrap_or(u32::MAX))
}
