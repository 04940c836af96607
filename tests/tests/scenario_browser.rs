//! Calls between two browsers that nobody taught anything: Chromium, each behind a symmetric NAT, and
//! nothing between them but rawr.
//!
//! ```text
//! a ── router-a ──┬── root (rawr)
//! b ── router-b ──┘
//! ```

use std::time::Duration;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rawr_tests::browser::{Beliefs, Browser, Figures};
use rawr_tests::lab::Family;
use rawr_tests::privilege::need_program;
use rawr_tests::process::eventually;
use rawr_tests::rawr::{COUNTERS_SETTLE, Serve, Traffic};
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::{INTERNET, Site, two_homes_at};
use rcgen::PublicKeyData;
use serde_json::json;
use sha2::{Digest, Sha256};

const NAME_IPV4: &str = "turn.example.net";
const NAME_IPV6: &str = "turn6.example.net";
const USER: &str = "alice";
const PASSWORD: &str = "correct horse";
/// Messages on the data channel.
const MESSAGES: u64 = 200;
/// How long packets of a call are counted.
const SPAN: Duration = Duration::from_secs(5);

/// Two browsers, a server, and what the browsers know of it.
struct Homes {
    site: Site,
    beliefs: Beliefs,
}

impl Homes {
    fn new(scene: &mut Scene) -> Result<Self> {
        let certificate = rcgen::generate_simple_self_signed([NAME_IPV4.to_owned()])?;
        let directory = scene.lab.directory();
        let (chain, key) = (directory.join("chain.pem"), directory.join("key.pem"));
        std::fs::write(&chain, certificate.cert.pem())?;
        std::fs::write(&key, certificate.signing_key.serialize_pem())?;
        let public_key = Sha256::digest(certificate.signing_key.subject_public_key_info());
        let config = format!(
            "[[users]]
            name = \"{USER}\"
            password = \"{PASSWORD}\"
            [turn]
            listen_tcp = [\"0.0.0.0:3478\", \"[::]:3478\"]
            listen_tls = [\"0.0.0.0:5349\", \"[::]:5349\"]
            certificate = \"{}\"
            key = \"{}\"
            [[turn.relays]]
            address = \"203.0.113.1\"
            [[turn.relays]]
            address = \"2001:db8:0:1::1\"\n",
            chain.display(),
            key.display()
        );
        let names = [(NAME_IPV4, Family::Ipv4), (NAME_IPV6, Family::Ipv6)];
        let names = names.map(|(name, family)| (name.to_owned(), INTERNET.address(family, 1)));
        let site = two_homes_at(scene, Serve::root(&["wan"]).configured(&config))?;
        let trusted_key = Some(BASE64_STANDARD.encode(public_key));
        Ok(Self { site, beliefs: Beliefs { names: names.into(), trusted_key } })
    }

    /// A call from `a` to `b`, both of which have nothing but the TURN server at `url`.
    fn call(&self, scene: &Scene, url: &str) -> Result<Call> {
        let lab = &scene.lab;
        let start = |host| Browser::start(&*lab.at(host)?, host, &self.beliefs, lab.directory());
        let call = Call { caller: start("a")?, called: start("b")? };
        let servers = json!([{ "urls": url, "username": USER, "credential": PASSWORD }]);
        let offer = call.caller.run("call", std::slice::from_ref(&servers))?;
        let answer = call.called.run("answer", &[servers, offer])?;
        call.caller.run("accept", &[answer])?;
        for browser in [&call.caller, &call.called] {
            let state = browser.run("connected", &[])?;
            ensure!(state == "connected", "{url}: {state}");
        }
        Ok(call)
    }
}

struct Call {
    caller: Browser,
    called: Browser,
}

impl Call {
    fn figures(&self) -> Result<[Figures; 2]> {
        Ok([self.caller.figures()?, self.called.figures()?])
    }

    /// Wants every message back, in order, and moving pictures at both ends, all of it by way of the
    /// server and of `protocol`.
    fn prove(&self, protocol: &str) -> Result<()> {
        let returned = self.caller.run("echo", &[MESSAGES.into()])?;
        let sent: Vec<u64> = (0..MESSAGES).collect();
        ensure!(returned == json!(sent), "messages came back as {returned}");
        eventually("both ends see pictures", Duration::from_secs(20), || {
            let figures = self.figures()?;
            Ok(figures.iter().all(|end| end.frames >= 30).then_some(()))
        })?;
        for end in self.figures()? {
            println!("{end:?}");
            ensure!(end.types.iter().all(|kind| kind.as_deref() == Some("relay")), "{end:?}");
            ensure!(end.relay_protocol.as_deref() == Some(protocol), "{end:?}");
            ensure!(end.state == "connected", "{end:?}");
        }
        Ok(())
    }
}

/// A scenario of this file.
fn calls(name: &str, body: impl FnOnce(&Scene, &Homes) -> Result<()>) {
    if !need_program(name, "chromium", "chromium") {
        return;
    }
    scenario(name, |scene| {
        let homes = Homes::new(scene)?;
        body(scene, &homes)?;
        ensure!(scene.checksum_errors()? == 0, "wrong checksums arrived");
        Ok(())
    });
}

#[test]
fn calls_over_udp_are_forwarded_by_the_kernel() {
    calls("calls_over_udp_are_forwarded_by_the_kernel", |scene, homes| {
        for name in [NAME_IPV4, NAME_IPV6] {
            let call = homes.call(scene, &format!("turn:{name}:3478?transport=udp"))?;
            call.prove("udp")?;
            std::thread::sleep(COUNTERS_SETTLE);
            let (traffic, before) = (homes.site.root.traffic()?, call.figures()?);
            std::thread::sleep(SPAN);
            let after = call.figures()?;
            std::thread::sleep(COUNTERS_SETTLE);
            let Traffic { kernel, userspace } = homes.site.root.traffic()?.since(traffic);
            let media = |count: fn(&Figures) -> u64| -> u64 {
                after.iter().map(count).sum::<u64>() - before.iter().map(count).sum::<u64>()
            };
            let (sent, received) = (media(|end| end.sent), media(|end| end.received));
            println!("{name}: {sent} sent, {received} received; {kernel}, {userspace} relayed");
            ensure!(sent >= 100, "{name}: {sent} packets are no picture");
            ensure!(received * 100 >= sent * 98, "{name}: {received} of {sent} arrived");
            // What else there is in a call (reports, checks) is forwarded in the same way.
            ensure!(kernel >= sent, "{name}: {kernel} in the kernel, {sent} sent");
            ensure!(userspace * 100 <= sent, "{name}: {userspace} of {sent} in userspace");
        }
        Ok(())
    });
}

#[test]
fn calls_over_tcp_and_tls_are_relayed() {
    calls("calls_over_tcp_and_tls_are_relayed", |scene, homes| {
        for (scheme, port, protocol) in [("turn", 3478, "tcp"), ("turns", 5349, "tls")] {
            for name in [NAME_IPV4, NAME_IPV6] {
                let url = format!("{scheme}:{name}:{port}?transport=tcp");
                homes.call(scene, &url)?.prove(protocol)?;
            }
        }
        Ok(())
    });
}

/// So that it is the certificate that the calls over TLS depend on.
#[test]
fn a_certificate_of_another_key_is_not_accepted() {
    calls("a_certificate_of_another_key_is_not_accepted", |scene, homes| {
        let another = BASE64_STANDARD.encode(Sha256::digest("another key"));
        let beliefs = Beliefs { trusted_key: Some(another), ..homes.beliefs.clone() };
        let homes = Homes { site: homes.site.clone(), beliefs };
        let refused = homes.call(scene, &format!("turns:{NAME_IPV4}:5349?transport=tcp"));
        let error = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(error.contains("no relayed candidate"), "{error}");
        Ok(())
    });
}
