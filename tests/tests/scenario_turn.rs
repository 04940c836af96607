//! TURN and STUN as clients use them that somebody else wrote: coturn's tools, in namespaces.
//!
//! ```text
//! client ──┐
//! peer   ──┼── internet ── server (rawr)
//! ```

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rawr_tests::dtls::OpenSslClient;
use rawr_tests::lab::Family;
use rawr_tests::netns::checked;
use rawr_tests::process::{Process, eventually};
use rawr_tests::rawr::{COUNTERS_SETTLE, Daemon, Serve};
use rawr_tests::scene::{Scene, scenario};
use rawr_tests::topology::INTERNET;
use rawr_tests::uclient::{Outcome, uclient};
use serde_json::Value;

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
const SERVER: u8 = 1;
/// The server's second address, for RFC 5780.
const ALTERNATE: u8 = 2;
const CLIENT: u8 = 21;
const PEER: u8 = 22;
const USER: [&str; 4] = ["-u", "alice", "-w", "correct horse"];
/// Seconds; longer than any run takes.
const LIMIT: u32 = 60;
/// Where coturn's echo listens.
const ECHO: &str = "3480";

/// The server, and an echo at the peer.
struct Site {
    server: Rc<Daemon>,
    _echoes: Vec<Process>,
}

impl Site {
    fn new(scene: &mut Scene) -> Result<Self> {
        let lab = &mut scene.lab;
        lab.switch("internet")?;
        lab.hosts(&["server", "client", "peer"])?;
        for (host, number) in [("server", SERVER), ("client", CLIENT), ("peer", PEER)] {
            lab.plug(&INTERNET, "internet", (host, "eth0", number))?;
        }
        let lab = &scene.lab;
        let server = lab.at("server")?;
        for family in FAMILIES {
            let length = if family == Family::Ipv4 { 24 } else { 64 };
            let alternate = INTERNET.address(family, ALTERNATE);
            server.sh(&format!("ip address add {alternate}/{length} dev eth0 nodad"))?;
        }
        let certificate = rcgen::generate_simple_self_signed(["turn.example.net".to_owned()])?;
        let (chain, key) = (lab.directory().join("chain.pem"), lab.directory().join("key.pem"));
        std::fs::write(&chain, certificate.cert.pem())?;
        std::fs::write(&key, certificate.signing_key.serialize_pem())?;
        let config = format!(
            "{CONFIG}certificate = \"{}\"\nkey = \"{}\"\n{DISCOVERY}",
            chain.display(),
            key.display()
        );
        let mut echoes = Vec::new();
        for family in FAMILIES {
            let address = INTERNET.address(family, PEER).to_string();
            let mut command = lab.at("peer")?.command("turnutils_peer");
            command.args(["-L", &address, "-p", ECHO]);
            let log = lab.directory().join(format!("echo-{family:?}"));
            echoes.push(Process::spawn("echo", &mut command, &log)?);
        }
        let server = scene.serve("server", Serve::root(&["eth0"]).configured(&config))?;
        Ok(Self { server, _echoes: echoes })
    }

    /// Runs a client with these arguments, an echo of the same family its peer, and wants everything
    /// back.
    fn echo(&self, scene: &Scene, family: Family, arguments: &[&str]) -> Result<Outcome> {
        let peer = INTERNET.address(family, PEER).to_string();
        self.run(scene, family, &[&["-e", &peer, "-r", ECHO], arguments].concat())
    }

    fn run(&self, scene: &Scene, family: Family, arguments: &[&str]) -> Result<Outcome> {
        let host = scene.lab.at("client")?;
        let local = INTERNET.address(family, CLIENT).to_string();
        let arguments = [&["-L", &local], arguments].concat();
        let outcome = uclient(&host, INTERNET.address(family, SERVER), &arguments, LIMIT)?;
        ensure!(outcome.sent > 0, "{arguments:?}: nothing was sent");
        ensure!(outcome.sent == outcome.received, "{arguments:?}: {outcome:?}");
        Ok(outcome)
    }
}

/// The peers have documentation addresses, which are denied by default.
const CONFIG: &str = "\
secrets = [\"old secret\", \"rest secret\"]
[[users]]
name = \"alice\"
password = \"correct horse\"
[turn]
listen_tcp = [\"0.0.0.0:3478\", \"[::]:3478\"]
listen_tls = [\"0.0.0.0:5349\", \"[::]:5349\"]
listen_dtls = [\"0.0.0.0:5349\", \"[::]:5349\", \"0.0.0.0:3478\"]
allow_peers = [\"203.0.113.0/24\", \"2001:db8:0:1::/64\"]
mobility = true
rfc5766_channels = true
";

const DISCOVERY: &str = "\
[[turn.relays]]
address = \"203.0.113.1\"
[[turn.relays]]
address = \"2001:db8:0:1::1\"
[[turn.discovery]]
primary = \"203.0.113.1:3478\"
alternate = \"203.0.113.2:3479\"
[[turn.discovery]]
primary = \"[2001:db8:0:1::1]:3478\"
alternate = \"[2001:db8:0:1::2]:3479\"
";

/// A scenario of this file.
fn turn(name: &str, body: impl FnOnce(&Scene, &Site) -> Result<()>) {
    scenario(name, |scene| {
        let site = Site::new(scene)?;
        body(scene, &site)?;
        ensure!(scene.checksum_errors()? == 0, "wrong checksums arrived");
        Ok(())
    });
}

#[test]
fn channels_over_udp_are_forwarded_by_the_kernel() {
    turn("channels_over_udp_are_forwarded_by_the_kernel", |scene, site| {
        for family in FAMILIES {
            let before = site.server.traffic()?;
            let arguments = ["-c", "-n", "500", "-m", "4", "-l", "160", "-z", "5"];
            let outcome = site.echo(scene, family, &[&USER[..], &arguments].concat())?;
            std::thread::sleep(COUNTERS_SETTLE);
            let traffic = site.server.traffic()?.since(before);
            println!("{family:?}: {outcome:?}, {traffic:?}");
            let [kernel, both_ways] = [traffic.kernel as f64, 2.0 * outcome.sent as f64];
            ensure!(kernel >= 0.99 * both_ways, "{family:?}: {kernel} of {both_ways} packets");
        }
        Ok(())
    });
}

#[test]
fn padded_channel_data_and_odd_lengths_arrive() {
    turn("padded_channel_data_and_odd_lengths_arrive", |scene, site| {
        for length in ["5", "101", "1203"] {
            let arguments = ["-c", "-D", "-n", "50", "-l", length, "-z", "5"];
            site.echo(scene, Family::Ipv4, &[&USER[..], &arguments].concat())?;
        }
        Ok(())
    });
}

#[test]
fn send_indications_arrive() {
    turn("send_indications_arrive", |scene, site| {
        for family in FAMILIES {
            let arguments = ["-s", "-n", "100", "-m", "2", "-z", "5"];
            site.echo(scene, family, &[&USER[..], &arguments].concat())?;
        }
        site.echo(scene, Family::Ipv4, &[&USER[..], &["-s", "-g", "-n", "20"]].concat())?;
        Ok(())
    });
}

#[test]
fn clients_over_tcp_and_tls_relay() {
    turn("clients_over_tcp_and_tls_relay", |scene, site| {
        for family in FAMILIES {
            for transport in [&["-t"][..], &["-t", "-S"]] {
                for method in [&[][..], &["-s"]] {
                    let arguments = ["-n", "100", "-m", "2", "-l", "400", "-z", "5"];
                    let arguments = [&USER[..], transport, method, &arguments].concat();
                    site.echo(scene, family, &arguments)?;
                }
            }
        }
        Ok(())
    });
}

/// coturn's client is no help here: it offers DTLS 1.0 alone (RFC 8996).
#[test]
fn clients_over_dtls_relay() {
    turn("clients_over_dtls_relay", |scene, _| {
        let host = scene.lab.at("client")?;
        let log = scene.lab.directory().join("openssl");
        // The second port serves clients over plain UDP, too.
        for (family, port) in [(Family::Ipv4, 5349), (Family::Ipv6, 5349), (Family::Ipv4, 3478)] {
            let server = SocketAddr::new(INTERNET.address(family, SERVER), port);
            let peer = SocketAddr::new(INTERNET.address(family, PEER), ECHO.parse()?);
            let mut client = OpenSslClient::allocate(&host, server, ("alice", USER[3]), &log)?;
            client.bind(peer)?;
            for length in [4, 400, 1_000] {
                client.echo(peer, &vec![length as u8; length])?;
            }
        }
        Ok(())
    });
}

#[test]
fn ephemeral_credentials_of_each_secret_count() {
    turn("ephemeral_credentials_of_each_secret_count", |scene, site| {
        for secret in ["old secret", "rest secret"] {
            let arguments = ["-u", "carol", "-W", secret, "-n", "10", "-z", "5"];
            site.echo(scene, Family::Ipv4, &arguments)?;
        }
        for wrong in [["-u", "carol", "-W", "a wrong secret"], ["-u", "alice", "-w", "wrong"]] {
            let refused = site.echo(scene, Family::Ipv4, &[&wrong[..], &["-n", "1"]].concat());
            ensure!(refused.is_err(), "{wrong:?} were good enough");
        }
        Ok(())
    });
}

#[test]
fn two_clients_reach_each_other_through_their_allocations() {
    turn("two_clients_reach_each_other_through_their_allocations", |scene, site| {
        for family in FAMILIES {
            for transport in [&[][..], &["-t"], &["-t", "-S"]] {
                let arguments = ["-y", "-c", "-n", "100", "-m", "2", "-z", "5"];
                let relayed: &[&str] = if family == Family::Ipv6 { &["-x"] } else { &[] };
                let arguments = [&USER[..], &arguments, transport, relayed].concat();
                site.run(scene, family, &arguments)?;
            }
        }
        Ok(())
    });
}

#[test]
fn an_ipv4_client_reaches_an_ipv6_peer() {
    turn("an_ipv4_client_reaches_an_ipv6_peer", |scene, site| {
        let peer = INTERNET.address(Family::Ipv6, PEER).to_string();
        let arguments = ["-x", "-c", "-e", &peer, "-r", ECHO, "-n", "100", "-z", "5"];
        site.run(scene, Family::Ipv4, &[&USER[..], &arguments].concat())?;
        let peer = INTERNET.address(Family::Ipv4, PEER).to_string();
        let arguments = ["-X", "-c", "-e", &peer, "-r", ECHO, "-n", "100", "-z", "5"];
        site.run(scene, Family::Ipv6, &[&USER[..], &arguments].concat())?;
        Ok(())
    });
}

#[test]
fn dual_allocations_relay_over_both_families() {
    turn("dual_allocations_relay_over_both_families", |scene, site| {
        for family in FAMILIES {
            // Each client refreshes, at random, one family, the other, or both.
            let arguments = ["-Z", "-c", "-n", "20", "-m", "8", "-z", "5"];
            site.echo(scene, family, &[&USER[..], &arguments].concat())?;
        }
        Ok(())
    });
}

#[test]
fn tcp_allocations_relay_both_ways() {
    turn("tcp_allocations_relay_both_ways", |scene, site| {
        let rest = ["-n", "50", "-m", "4", "-z", "5"];
        let arguments = [&USER[..], &["-T", "-y", "-s"], &rest].concat();
        let outcome = site.run(scene, Family::Ipv4, &arguments)?;
        ensure!(outcome.sent == 4 * 50, "{outcome:?}");
        // Each client connects to every later one, and each connection is bound at both its ends. For those
        // that are missing the tool waits a while, and goes on without them.
        let status = site.server.status()?;
        let count = |name| status.pointer(&format!("/control/{name}")).and_then(Value::as_u64);
        // What has not happened is not listed.
        let counts = ["connection_bind", "stale_nonce", "bad_request"].map(count);
        ensure!(counts == [Some(2 * 6), None, None], "{counts:?} in {status}");
        // Here the peers connect to the clients. The peers send, and never read what is sent to them.
        let host = scene.lab.at("client")?;
        let local = INTERNET.address(Family::Ipv4, CLIENT).to_string();
        let arguments = [&["-L", &local, "-P"], &USER[..], &rest].concat();
        let outcome = uclient(&host, INTERNET.address(Family::Ipv4, SERVER), &arguments, LIMIT)?;
        let half = Outcome { sent: 4 * 50, received: 2 * 50 };
        ensure!(outcome == half, "{outcome:?}");
        Ok(())
    });
}

#[test]
fn mobile_allocations_and_repeated_requests_relay() {
    turn("mobile_allocations_and_repeated_requests_relay", |scene, site| {
        for kind in ["-M", "-G"] {
            let arguments = ["-c", "-n", "50", "-z", "5"];
            site.echo(scene, Family::Ipv4, &[&USER[..], &[kind], &arguments].concat())?;
        }
        Ok(())
    });
}

#[test]
fn a_hundred_clients_at_once_lose_nothing() {
    turn("a_hundred_clients_at_once_lose_nothing", |scene, site| {
        let arguments = ["-c", "-n", "50", "-m", "100", "-l", "160", "-z", "20"];
        let outcome = site.echo(scene, Family::Ipv4, &[&USER[..], &arguments].concat())?;
        ensure!(outcome.sent >= 100 * 50, "{outcome:?}");
        Ok(())
    });
}

#[test]
fn hostile_clients_change_nothing_for_others() {
    turn("hostile_clients_change_nothing_for_others", |scene, site| {
        let host = scene.lab.at("client")?;
        let address = INTERNET.address(Family::Ipv4, SERVER);
        for hostile in [&["-R"][..], &["-N"], &["-R", "-N", "-s"], &["-O", "-m", "10"]] {
            let peer = INTERNET.address(Family::Ipv4, PEER).to_string();
            let arguments = ["-e", &peer, "-r", ECHO, "-n", "20", "-z", "5"];
            // Whatever becomes of them.
            let _ = uclient(&host, address, &[&USER[..], hostile, &arguments].concat(), 5);
            ensure!(site.server.is_running(), "{hostile:?} ended the server");
            site.echo(scene, Family::Ipv4, &[&USER[..], &["-n", "10", "-z", "5"]].concat())?;
        }
        Ok(())
    });
}

#[test]
fn stun_clients_learn_their_address_and_their_nat() {
    turn("stun_clients_learn_their_address_and_their_nat", |scene, _| {
        let host = scene.lab.at("client")?;
        for family in FAMILIES {
            let server = INTERNET.address(family, SERVER).to_string();
            // It would wait for an answer for ever.
            let mut command = host.command("timeout");
            let said = checked(command.args(["20", "turnutils_stunclient", &server]))?.stdout;
            let said = String::from_utf8(said)?;
            let own = INTERNET.address(family, CLIENT).to_string();
            ensure!(said.contains(&own), "{said}");
        }
        for family in FAMILIES {
            let server = INTERNET.address(family, SERVER).to_string();
            let mut command = host.command("timeout");
            command.args(["60", "turnutils_natdiscovery", "-m", "-f", "-P", &server]);
            let said = String::from_utf8(checked(&mut command)?.stdout)?;
            // Padding makes request and answer longer than the MTU.
            let other = INTERNET.address(family, ALTERNATE).to_string();
            for found in [other.as_str(), "Independent Mapping", "Independent Filtering"] {
                ensure!(said.contains(found), "no {found:?}: {said}");
            }
        }
        Ok(())
    });
}

/// Consoles and pages for administrators have been ways in.
#[test]
fn nothing_listens_but_what_the_configuration_names() {
    turn("nothing_listens_but_what_the_configuration_names", |scene, _| {
        let said = scene.lab.at("server")?.sh("ss --no-header --listening --numeric -t -u")?;
        let mut ports: Vec<_> = said.lines().filter_map(listening).collect();
        ports.sort_unstable();
        ports.dedup();
        let named = [("tcp", 3478), ("tcp", 5349), ("udp", 3478), ("udp", 3479), ("udp", 5349)];
        ensure!(ports == named, "{said}");
        Ok(())
    });
}

/// Protocol and port in a line of `ss`.
fn listening(line: &str) -> Option<(&str, u16)> {
    let mut words = line.split_whitespace();
    let (protocol, local) = (words.next()?, words.nth(3)?);
    Some((protocol, local.rsplit_once(':')?.1.parse().ok()?))
}

#[test]
fn allocations_are_shown_with_what_they_carried() {
    turn("allocations_are_shown_with_what_they_carried", |scene, site| {
        let peer = INTERNET.address(Family::Ipv4, PEER).to_string();
        let local = INTERNET.address(Family::Ipv4, CLIENT).to_string();
        let mut command = scene.lab.at("client")?.command("turnutils_uclient");
        command.args(["-L", &local, "-e", &peer, "-r", ECHO, "-c", "-n", "5000", "-z", "5"]);
        command.args(USER).arg(INTERNET.address(Family::Ipv4, SERVER).to_string());
        let log = scene.lab.directory().join("uclient");
        let client = Process::spawn("uclient", &mut command, &log)?;
        eventually(
            "an allocation shows bytes of the kernel both ways",
            Duration::from_secs(20),
            || {
                let shown = site.server.listed("allocations")?;
                let carries = |it: &Value| {
                    let kernel = |way: &str| {
                        it.pointer(&format!("/{way}/kernel_bytes")).and_then(Value::as_u64)
                    };
                    let named = it.get("user").and_then(Value::as_str) == Some("alice");
                    named && kernel("to_peers") > Some(0) && kernel("to_client") > Some(0)
                };
                Ok(shown.iter().any(carries).then_some(()))
            },
        )?;
        let status = site.server.status()?;
        let most = status.pointer("/allocations/most/0/name").and_then(Value::as_str);
        ensure!(most == Some("alice"), "{status}");
        drop(client);
        Ok(())
    });
}

#[test]
fn allocations_end_with_their_clients() {
    turn("allocations_end_with_their_clients", |scene, site| {
        site.echo(scene, Family::Ipv4, &[&USER[..], &["-c", "-n", "10", "-z", "5"]].concat())?;
        eventually("no flow is left", Duration::from_secs(20), || {
            let flows = site.server.listed("flows").context("flows")?;
            Ok(flows.is_empty().then_some(()))
        })
    });
}

/// So that the address types of the lab and of the tools stay comparable.
#[test]
fn addresses_are_those_of_the_configuration() {
    let server: IpAddr = "203.0.113.1".parse().unwrap();
    assert_eq!(INTERNET.address(Family::Ipv4, SERVER), server);
}
