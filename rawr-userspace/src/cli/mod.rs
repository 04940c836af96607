//! The command line.

mod args;
mod config;
mod daemon;
mod doctor;
mod link;
mod netcheck;
mod peer;
mod serve;
mod status;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::args::{DaemonArgs, OutputArgs, ServeArgs};
pub use self::config::ConfigArgs;
pub use self::doctor::DoctorArgs;
pub use self::link::{ConnectArgs, IdentityArgs, ListenArgs, PingArgs, ReceiveArgs, SendArgs};
pub use self::netcheck::NetcheckArgs;
pub use self::peer::PeerArgs;
use crate::admin::Request;

/// Relays real-time UDP between peers at the nearest server that both reach, in the kernel.
#[derive(Parser, Debug)]
#[command(name = "rawr", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  sudo rawr serve --interface eth0 --interface eth1 --gateway rawr:gw.isp.example.net
      a gateway on a router, under its provider's gateway
  sudo rawr serve --kind root --user alice:secret
      a root on the Internet
  rawr serve --datapath userspace --state-dir /tmp/rawr
      without privileges
  sudo rawr doctor --interface eth0 --sessions 5000
      what would break or slow that
  rawr netcheck --server stun.example.net
      what the NATs before this host do, and whom it reaches directly
  rawr listen alice --allow 127.0.0.1:80 --server rawr:root.example.net
  rawr connect alice -L 8080:127.0.0.1:80 --server rawr:root.example.net
      a port of one host at another, by the best path through both NATs
  sudo rawr status
      what the daemon does, and why not faster";

#[derive(Subcommand, Debug)]
enum Command {
    /// Relay: run the daemon
    Serve(Box<ServeArgs>),
    /// Tell what on this host would break or slow forwarding, and how to mend it
    Doctor(Box<DoctorArgs>),
    /// Tell what the NATs before this host do, and which peers it reaches directly
    Netcheck(NetcheckArgs),
    /// Hold a name: pipe standard input and output to who connects, or have ports forwarded
    Listen(Box<ListenArgs>),
    /// Connect to whoever listens under a name: pipe, or forward ports, encrypted, by the best path
    Connect(Box<ConnectArgs>),
    /// Send a file to whoever receives under a name
    Send(Box<SendArgs>),
    /// Hold a name, and receive a file
    Receive(Box<ReceiveArgs>),
    /// Tell the path to whoever listens under a name, and its round trip times
    Ping(Box<PingArgs>),
    /// Print the key that others know this user by
    Identity(IdentityArgs),
    /// Join a session: carry an application's datagrams to the other peer
    Peer(Box<PeerArgs>),
    /// Check a configuration file, or make one from coturn's
    Config(ConfigArgs),
    /// Show how the daemon is: modes, sessions, allocations, flows, counters
    Status {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the sessions and their legs
    Sessions {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List TURN's allocations: clients, relayed addresses, users, and what was carried
    Allocations {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the flows: what arrives where leaves how, and what that amounts to
    Flows {
        #[command(flatten)]
        daemon: DaemonArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// End the daemon. The kernel goes on forwarding until it is started again or detached
    Stop {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// End the daemon, if it runs, and all forwarding in the kernel
    Detach {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Doctor(args) => return doctor::run(*args),
            Command::Netcheck(args) => return netcheck::run(&args),
            Command::Listen(args) => link::listen(*args),
            Command::Connect(args) => link::connect(*args),
            Command::Send(args) => link::send(*args),
            Command::Receive(args) => link::receive(*args),
            Command::Ping(args) => link::ping(*args),
            Command::Identity(args) => link::print_identity(&args),
            Command::Peer(args) => peer::run(*args),
            Command::Config(args) => return config::run(&args),
            Command::Status { daemon, output } => status::run(Request::Status, &daemon, output),
            Command::Sessions { daemon, output } => status::run(Request::Sessions, &daemon, output),
            Command::Allocations { daemon, output } => {
                status::run(Request::Allocations, &daemon, output)
            }
            Command::Flows { daemon, output } => status::run(Request::Flows, &daemon, output),
            Command::Stop { daemon } => daemon::stop(&daemon),
            Command::Detach { daemon } => daemon::detach(&daemon),
        }?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
