//! A third party that joins, replays, loops and floods; and a session beside it that notices nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::RngCore;
use rawr_proto::{
    Attributes, ErrorCode, IntegrityKey, Message, Method, Role, ServerId, SessionKey,
    SessionSecret, WireKey,
};
use rawr_tests::forge::{Forger, Verdict, attributes_of, new_key, transaction};
use rawr_tests::lab::Family;
use rawr_tests::netns::Netns;
use rawr_tests::process::eventually;
use rawr_tests::rawr::{Daemon, PORT};
use rawr_tests::scene::{Session, scenario};
use rawr_tests::stream::{Settings, Stream};
use rawr_tests::topology::{self, INTERNET};

const FLOW_LIMIT: Duration = Duration::from_secs(10);
/// Longer than a leg lives whose client never sends data.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(25);
const FLOOD: usize = 300;

#[test]
fn abuse_is_refused_and_disturbs_nobody_ipv4() {
    abuse(Family::Ipv4);
}

#[test]
fn abuse_is_refused_and_disturbs_nobody_ipv6() {
    abuse(Family::Ipv6);
}

fn abuse(family: Family) {
    scenario("abuse_is_refused_and_disturbs_nobody", |scene| {
        let site = topology::two_homes(scene)?;
        scene.lab.hosts(&["mallory"])?;
        scene.lab.plug(&INTERNET, "internet", ("mallory", "eth0", 66))?;
        let [a, b] = (site.joins)(family);
        let session = scene.session(&a, &b)?;
        let mut stream = scene.stream(&session, Settings::default())?;
        stream.flows(100, FLOW_LIMIT)?;

        let mallory = Mallory {
            host: &*scene.lab.at("mallory")?,
            family,
            root: &site.root,
            victim: session.secret.parse::<SessionSecret>()?.key(),
        };
        mallory.joins_with_the_id_alone().context("forged join")?;
        mallory.comes_third().context("third leg")?;
        mallory.closes_with_the_id_alone().context("forged release")?;
        mallory.replays().context("replay")?;
        mallory.loops().context("loop")?;
        mallory.sends_rubbish().context("rubbish")?;
        mallory.shouts_at_the_data_path(&session).context("data path")?;
        mallory.asks_to_be_amplified().context("amplification")?;
        mallory.floods(&mut stream).context("flood")?;

        stream.flows(100, FLOW_LIMIT)?;
        stream.stop()?.ensure_perfect().context("the session beside was disturbed")
    });
}

struct Mallory<'a> {
    host: &'a Netns,
    family: Family,
    root: &'a Daemon,
    /// The key of the session that is attacked. Mallory knows it where the text says so; else only
    /// its id.
    victim: SessionKey,
}

impl Mallory<'_> {
    /// The id names a session, and proves nothing.
    fn joins_with_the_id_alone(&self) -> Result<()> {
        let (forger, own) = (self.forger()?, new_key());
        for method in [Method::Connect, Method::Exchange] {
            for role in [Role::A, Role::B] {
                let attributes = Attributes {
                    session: Some(self.victim.id()),
                    session_key: Some(WireKey(*own.as_bytes())),
                    role: Some(role),
                    epoch: Some(u64::MAX),
                    nonce: Some(forger.nonce()?),
                    ..Attributes::default()
                };
                let verdict = forger.request(method, attributes, &own)?;
                ensure!(verdict != Verdict::Granted, "{method:?} as {role:?}: {verdict:?}");
            }
        }
        self.only_the_victim_is_there()
    }

    /// Even who holds the key finds both roles taken, unless he is newer.
    fn comes_third(&self) -> Result<()> {
        let forger = self.forger()?;
        let attributes = Attributes { nonce: Some(forger.nonce()?), ..attributes_of(&self.victim) };
        let verdict = forger.request(Method::Connect, attributes, &self.victim)?;
        ensure!(verdict == Verdict::Refused(ErrorCode::RoleTaken), "{verdict:?}");
        self.only_the_victim_is_there()
    }

    fn closes_with_the_id_alone(&self) -> Result<()> {
        let (forger, own) = (self.forger()?, new_key());
        for method in [Method::Release, Method::Refresh] {
            let attributes = Attributes {
                session: Some(self.victim.id()),
                role: Some(Role::A),
                epoch: Some(u64::MAX),
                lifetime: Some(0),
                nonce: Some(forger.nonce()?),
                ..Attributes::default()
            };
            let verdict = forger.request(method, attributes, &own)?;
            ensure!(verdict != Verdict::Granted, "{method:?}: {verdict:?}");
        }
        let unknown = Attributes { nonce: Some(forger.nonce()?), ..attributes_of(&own) };
        let verdict = forger.request(Method::Refresh, unknown, &own)?;
        ensure!(verdict == Verdict::Refused(ErrorCode::UnknownSession), "{verdict:?}");
        self.only_the_victim_is_there()
    }

    /// A request that was right counts from nowhere else.
    fn replays(&self) -> Result<()> {
        let (forger, other, own) = (self.forger()?, self.forger()?, new_key());
        let attributes = Attributes { nonce: Some(forger.nonce()?), ..attributes_of(&own) };
        let request = Message::request(Method::Connect, transaction(), attributes);
        let bytes = request.encode(Some(&IntegrityKey::session(&own)));
        let original = forger.judge(&bytes)?;
        ensure!(original == Verdict::Granted, "the original: {original:?}");
        let replay = other.judge(&bytes)?;
        ensure!(
            matches!(replay, Verdict::Silence | Verdict::Refused(ErrorCode::StaleNonce)),
            "the replay: {replay:?}"
        );
        let release = Attributes { nonce: Some(forger.nonce()?), ..attributes_of(&own) };
        let released = forger.request(Method::Release, release, &own)?;
        ensure!(released == Verdict::Granted, "the release: {released:?}");
        self.only_the_victim_is_there()
    }

    fn loops(&self) -> Result<()> {
        let (forger, own) = (self.forger()?, new_key());
        let id = self.root.id()?;
        let hops = vec![ServerId(u64::from_str_radix(&id, 16)?.to_be_bytes())];
        let nonce = forger.nonce()?;
        let looped = Attributes { hops, nonce: Some(nonce.clone()), ..attributes_of(&own) };
        let verdict = forger.request(Method::Connect, looped, &own)?;
        ensure!(verdict == Verdict::Refused(ErrorCode::LoopDetected), "loop: {verdict:?}");

        let far = Attributes { hop_limit: Some(0), nonce: Some(nonce), ..attributes_of(&own) };
        let verdict = forger.request(Method::Connect, far, &own)?;
        ensure!(verdict == Verdict::Refused(ErrorCode::TooManyHops), "hops: {verdict:?}");
        self.only_the_victim_is_there()
    }

    /// Truncated, extended and invented messages get no answer, or an error.
    fn sends_rubbish(&self) -> Result<()> {
        let (forger, own) = (self.forger()?, new_key());
        let attributes = Attributes { nonce: Some(forger.nonce()?), ..attributes_of(&own) };
        let right = Message::request(Method::Connect, transaction(), attributes);
        let right = right.encode(Some(&IntegrityKey::session(&own)));
        let server = INTERNET.socket(self.family, 1, PORT);
        for length in 0..right.len() {
            forger.throw(&right[..length], server)?;
        }
        let mut noise = [0; 600];
        for length in 0..noise.len() {
            rand::rng().fill_bytes(&mut noise);
            noise[0] &= 0x3f;
            forger.throw(&noise[..length], server)?;
        }
        for position in 0..right.len() {
            let mut changed = right.clone();
            changed[position] ^= 0x41;
            forger.throw(&changed, server)?;
        }
        ensure!(self.root.is_running(), "the root has died of it");
        self.only_the_victim_is_there()
    }

    /// What comes to a leg's data address from elsewhere than its peer goes nowhere. Had it been
    /// forwarded, the application would have counted it as corrupted.
    fn shouts_at_the_data_path(&self, session: &Session) -> Result<()> {
        let forger = self.forger()?;
        for peer in [&session.a, &session.b] {
            let address = peer.via()?.server.context("the peer does not tell where data goes")?;
            for length in [0, 1, 64, 200, 1200] {
                forger.throw(&vec![0x80; length], address)?;
            }
            let own = new_key();
            let probe = Message::request(Method::Probe, transaction(), attributes_of(&own));
            forger.throw(&probe.encode(Some(&IntegrityKey::session(&own))), address)?;
        }
        self.only_the_victim_is_there()
    }

    /// Nobody who has not shown his address to be real gets more than he sent.
    fn asks_to_be_amplified(&self) -> Result<()> {
        let forger = self.forger()?;
        for method in [Method::Binding, Method::Exchange, Method::Connect, Method::Refresh] {
            for length in [20, 60, 100, 140, 180, 400] {
                let request = Message::request(method, transaction(), Attributes::default());
                let bytes = request.encode_padded(None, length);
                if let Some(answer) = forger.ask(&bytes)? {
                    let (sent, got) = (bytes.len(), answer.len());
                    // A root answers the Binding requests of plain STUN clients: an address, and
                    // FINGERPRINT.
                    let most = if method == Method::Binding { sent.max(52) } else { sent };
                    ensure!(got <= most, "{method:?}: {got} bytes for {sent}");
                }
            }
        }
        Ok(())
    }

    /// Requests without a nonce leave nothing behind; legs that never send data soon expire.
    fn floods(&self, stream: &mut Stream) -> Result<()> {
        let server = INTERNET.socket(self.family, 1, PORT);
        let first = Message::request(Method::Connect, transaction(), attributes_of(&new_key()));
        let first = first.encode_padded(None, 200);
        for _ in 0..FLOOD {
            let source = self.forger()?;
            for _ in 0..10 {
                source.throw(&first, server)?;
            }
        }
        self.only_the_victim_is_there()?;

        let forger = self.forger()?;
        let nonce = forger.nonce()?;
        for _ in 0..FLOOD {
            let own = new_key();
            let attributes = Attributes { nonce: Some(nonce.clone()), ..attributes_of(&own) };
            let request = Message::request(Method::Connect, transaction(), attributes);
            forger.throw(&request.encode(Some(&IntegrityKey::session(&own))), server)?;
        }
        stream.flows(200, FLOW_LIMIT)?;
        ensure!(self.root.sessions()? > 1, "the flood did not even arrive");
        eventually("half-open sessions expire", HALF_OPEN_LIMIT, || {
            Ok((self.root.sessions()? == 1).then_some(()))
        })
    }

    fn only_the_victim_is_there(&self) -> Result<()> {
        let sessions = self.root.sessions()?;
        ensure!(sessions == 1, "the root holds {sessions} sessions");
        Ok(())
    }

    fn forger(&self) -> Result<Forger> {
        let [own, server] = [66, 1].map(|number| INTERNET.socket(self.family, number, PORT));
        Forger::new(self.host, own, server)
    }
}
