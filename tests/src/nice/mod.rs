//! libnice, the ICE agent of GStreamer and others, in a namespace.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::Path;
use std::process::ChildStdout;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;

use crate::netns::Netns;
use crate::process::Process;
use crate::rawr::PORT;

const PROGRAM: &str = include_str!("agent.py");

/// How agents reach their TURN server.
#[derive(Clone, Debug)]
pub struct Relay<'a> {
    pub server: IpAddr,
    pub user: &'a str,
    pub password: &'a str,
    /// `udp` or `tcp`.
    pub transport: &'a str,
}

/// A running agent, which uses relayed candidates alone. It ends by itself if it waits for anything for
/// too long.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    said: BufReader<ChildStdout>,
}

impl Agent {
    /// Starts an agent that will send `count` datagrams and want them back.
    pub fn call(host: &Netns, relay: &Relay<'_>, count: u32, directory: &Path) -> Result<Self> {
        Self::start(host, "call", relay, count, directory)
    }

    /// Starts an agent that returns what comes.
    pub fn answer(host: &Netns, relay: &Relay<'_>, directory: &Path) -> Result<Self> {
        Self::start(host, "answer", relay, 0, directory)
    }

    fn start(
        host: &Netns,
        role: &str,
        relay: &Relay<'_>,
        count: u32,
        directory: &Path,
    ) -> Result<Self> {
        let program = directory.join("agent.py");
        fs::write(&program, PROGRAM)?;
        let mut command = host.command("python3");
        command.arg(program).args([&relay.server.to_string(), &PORT.to_string()]);
        command.args([relay.user, relay.password, relay.transport, role, &count.to_string()]);
        let log = directory.join(format!("{role}.log"));
        let mut process = Process::spawn(role, &mut command, &log)?;
        let said = BufReader::new(process.take_stdout()?);
        Ok(Self { process, said })
    }

    /// Its description, with its candidates: after the start.
    pub fn description(&mut self) -> Result<String> {
        self.next("its description")
    }

    /// Tells it the other agent's description.
    pub fn meet(&mut self, description: &str) -> Result<()> {
        self.tell(&serde_json::to_string(description)?)
    }

    /// The types of the candidates in use, its own and the other's, once it is connected.
    pub fn connected(&mut self) -> Result<[String; 2]> {
        self.next("a connection")
    }

    /// Has a calling agent send; whether every datagram came back.
    pub fn exchange(&mut self) -> Result<bool> {
        self.tell("")?;
        self.next("its datagrams")
    }

    fn tell(&mut self, line: &str) -> Result<()> {
        Ok(self.process.stdin()?.write_all(format!("{line}\n").as_bytes())?)
    }

    fn next<T: DeserializeOwned>(&mut self, what: &str) -> Result<T> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let told = || format!("no word of {what}\n{}", self.process.log_tail(20));
        serde_json::from_str(&line).with_context(told)
    }
}
