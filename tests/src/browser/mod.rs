//! Chromium without a screen, in a namespace, and a page in it that makes calls.
//!
//! It is driven over its DevTools protocol: JSON, each message ended by a zero byte, on two pipes that the
//! browser inherits. No port is opened for it, and the browser ends when its pipe does.

use std::cell::Cell;
use std::fs;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::netns::Netns;
use crate::process::{Process, now, patience};

/// Debian's package has the same name.
const PROGRAM: &str = "chromium";
const PAGE: &str = include_str!("page.html");
/// For one answer of the browser, which begins with its start.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Descriptors at which the browser expects its pipes.
const PIPES: [RawFd; 2] = [3, 4];
/// Where pipes are out of the way of [`PIPES`].
const ASIDE: RawFd = 64;

/// It has a camera and asks nobody for leave; it looks for no update and for nothing else that a page
/// has not asked for.
const FLAGS: [&str; 20] = [
    "--headless",
    "--remote-debugging-pipe",
    // There is no user but root in a lab.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-pings",
    "--password-store=basic",
];

/// What a browser believes about the network.
#[derive(Clone, Debug, Default)]
pub struct Beliefs {
    /// Names and their addresses; it resolves no others.
    pub names: Vec<(String, IpAddr)>,
    /// Base64 of the SHA-256 of a public key: certificates of that key are good.
    pub trusted_key: Option<String>,
}

/// A call's end, as the page sees it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Figures {
    pub state: String,
    /// `udp`, `tcp` or `tls`: how the browser reaches its TURN server.
    pub relay_protocol: Option<String>,
    /// The URL of that server.
    pub url: Option<String>,
    /// Of the local and of the remote candidate in use.
    pub types: [Option<String>; 2],
    /// RTP packets of the picture.
    pub sent: u64,
    pub received: u64,
    pub lost: i64,
    /// Pictures that it could decode.
    pub frames: u64,
}

/// A browser with one page. Dropping it ends it, with all its processes.
#[derive(Debug)]
pub struct Browser {
    process: Process,
    commands: PipeWriter,
    answers: Receiver<Value>,
    session: String,
    next: Cell<u64>,
}

impl Browser {
    /// Starts it on `host` and opens the page. Its profile lies in `directory`.
    ///
    /// # Errors
    /// Chromium is not installed, or does not answer.
    pub fn start(host: &Netns, name: &str, beliefs: &Beliefs, directory: &Path) -> Result<Self> {
        let profile = directory.join(format!("{name}.profile"));
        fs::create_dir_all(&profile)?;
        let page = directory.join(format!("{name}.html"));
        fs::write(&page, PAGE)?;
        let (from_us, commands) = pipe()?;
        let (said, to_us) = pipe()?;
        let mut command = host.command(PROGRAM);
        command.args(FLAGS).args(beliefs.flags()).arg(profile_flag(&profile));
        command
            .env("HOME", &profile)
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/dev/null")
            .process_group(0);
        inherit(&mut command, [from_us.as_raw_fd(), to_us.as_raw_fd()]);
        let log = directory.join(format!("{name}.log"));
        let process = Process::spawn(name, &mut command, &log)
            .context("cannot run chromium (Debian package chromium)")?;
        drop((from_us, to_us));
        let answers = listen(said);
        let mut browser =
            Self { process, commands, answers, session: String::new(), next: Cell::new(1) };
        browser.open(&page).with_context(|| browser.process.log_tail(20))?;
        Ok(browser)
    }

    fn open(&mut self, page: &Path) -> Result<()> {
        let url = format!("file://{}", page.display());
        let target = self.ask("Target.createTarget", &json!({ "url": url }))?;
        let target = &target["targetId"];
        let attached =
            self.ask("Target.attachToTarget", &json!({ "targetId": target, "flatten": true }))?;
        attached["sessionId"].as_str().context("no session")?.clone_into(&mut self.session);
        // The page may not have been read yet.
        self.evaluate(
            "new Promise((resolve) => {
                if (document.readyState === 'complete') resolve();
                else addEventListener('load', () => resolve());
            })",
        )
        .map(drop)
    }

    /// Calls a function of the page and waits for what it promises.
    ///
    /// # Errors
    /// The function throws, or nothing comes within the limit.
    pub fn run(&self, function: &str, arguments: &[Value]) -> Result<Value> {
        let arguments: Vec<_> = arguments.iter().map(Value::to_string).collect();
        self.evaluate(&format!("{function}({})", arguments.join(",")))
            .with_context(|| format!("{function} in the page"))
            .with_context(|| self.process.log_tail(10))
    }

    /// What the call has come to.
    pub fn figures(&self) -> Result<Figures> {
        Ok(serde_json::from_value(self.run("figures", &[])?)?)
    }

    fn evaluate(&self, expression: &str) -> Result<Value> {
        let parameters =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.ask("Runtime.evaluate", &parameters)?;
        if let Some(thrown) = answer.get("exceptionDetails") {
            let what = thrown.pointer("/exception/description").unwrap_or(thrown);
            bail!("{what}");
        }
        Ok(answer["result"]["value"].take())
    }

    /// Sends one command and waits for its answer.
    fn ask(&self, method: &str, parameters: &Value) -> Result<Value> {
        let id = self.next.replace(self.next.get() + 1);
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = self.session.as_str().into();
        }
        (&self.commands).write_all(format!("{message}\0").as_bytes()).context("it has ended")?;
        let end = now() + ANSWER_LIMIT * patience();
        loop {
            let left = end.saturating_duration_since(now());
            let answer = self.answers.recv_timeout(left);
            let mut answer = answer.with_context(|| format!("no answer to {method}"))?;
            if answer["id"] != id {
                // An event that nobody asked for.
                continue;
            }
            ensure!(answer.get("error").is_none(), "{method}: {}", answer["error"]);
            return Ok(answer["result"].take());
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.process.id()) {
            // It may have ended by itself.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

impl Beliefs {
    fn flags(&self) -> Vec<String> {
        // What calls resolve ends in a dot.
        let known = self.names.iter().map(|(name, address)| match address {
            IpAddr::V4(address) => format!("MAP {name}* {address}, "),
            IpAddr::V6(address) => format!("MAP {name}* [{address}], "),
        });
        let rules = format!("--host-resolver-rules={}MAP * ~NOTFOUND", known.collect::<String>());
        let trusted = self.trusted_key.iter();
        let trusted = trusted.map(|key| format!("--ignore-certificate-errors-spki-list={key}"));
        std::iter::once(rules).chain(trusted).collect()
    }
}

fn profile_flag(profile: &Path) -> String {
    format!("--user-data-dir={}", profile.display())
}

/// Has a command find two pipes at [`PIPES`].
fn inherit(command: &mut Command, pipes: [RawFd; 2]) {
    // SAFETY: between fork and exec the closure makes system calls only; they concern descriptors, of
    // which the process after the fork has its own table.
    unsafe {
        command.pre_exec(move || {
            let mut aside = [0; 2];
            for (aside, pipe) in aside.iter_mut().zip(pipes) {
                *aside = succeeded(libc::fcntl(pipe, libc::F_DUPFD_CLOEXEC, ASIDE))?;
            }
            for (aside, place) in aside.into_iter().zip(PIPES) {
                succeeded(libc::dup2(aside, place))?;
            }
            Ok(())
        });
    }
}

fn succeeded(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// What the browser says, message by message, until it ends.
fn listen(said: PipeReader) -> Receiver<Value> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for message in BufReader::new(said).split(0).map_while(Result::ok) {
            let Ok(message) = serde_json::from_slice(&message) else { continue };
            if sender.send(message).is_err() {
                break;
            }
        }
    });
    receiver
}
