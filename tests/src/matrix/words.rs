//! What the matrix and its nodes say to each other: one line of JSON each.

use anyhow::{Context, Result, bail};
use rawr_nat::{Behaviour, Filtering, Mapping, Ports};
use serde::{Deserialize, Serialize};

/// What a node is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Find out what the NATs do.
    Classify,
    /// Look for the other node.
    Start(Start),
    /// Give this to the connection: the other node's.
    Signal(Vec<u8>),
    /// Count gaps and losses from now on.
    Mark,
    /// End the connection, and say how it went.
    Stop,
}

/// How a node is to connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Start {
    /// 64 hexadecimal digits.
    pub secret: String,
    /// Of the two, the one that decides.
    pub is_a: bool,
    /// Greater than that of any earlier one.
    pub epoch: u64,
    pub over: Over,
}

/// What a connection is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Over {
    /// Whatever a [`rawr_nat::agent::Connection`] finds.
    Udp {
        /// Probes that may be sent to punch a path.
        probes: u32,
    },
    /// TCP punching alone; signals go through the matrix.
    Tcp,
}

/// What a node says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum News {
    Classified(Classified),
    /// Bring this to the other node.
    Signal(Vec<u8>),
    /// The other node's first datagram has come.
    FirstByte,
    /// Data takes this path from now on.
    Path {
        kind: String,
        is_direct: bool,
    },
    /// After [`Order::Stop`].
    Done(Account),
}

/// What a node has found out about its NATs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Classified {
    /// For people; `None` if it is blocked.
    pub udp: Option<String>,
    pub tcp: Option<String>,
    pub milliseconds: u64,
}

/// How a connection went, as one node saw it. Times in milliseconds, from the order to start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Account {
    /// When the other node's first datagram came.
    pub first_byte: Option<f64>,
    /// When data first took a path without a relay.
    pub direct: Option<f64>,
    /// What data took in the end.
    pub path: Option<String>,
    pub is_direct: bool,
    pub probes: u64,
    /// Datagrams of the other node's.
    pub received: u64,
    /// Those that never came, as their numbers tell, since the mark.
    pub lost: u64,
    /// Those that came after a later one.
    pub late: u64,
    /// The longest time without any, since the mark.
    pub gap: f64,
    /// Why there is no better path, as far as it is known.
    pub reasons: Vec<String>,
}

/// One line.
pub(super) fn line(value: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}

/// The first that two TCP nodes tell each other; what comes later is the punching's own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Card {
    external: String,
    mapping: u8,
    filtering: Option<u8>,
    ports: Option<(u8, i32, i32)>,
    last_port: u16,
    hairpins: Option<bool>,
    /// Of the port that is punched from.
    pub endpoint: std::net::SocketAddr,
}

impl Card {
    pub(super) fn new(behaviour: &Behaviour, endpoint: std::net::SocketAddr) -> Self {
        let mapping = match behaviour.mapping {
            Mapping::None => 0,
            Mapping::EndpointIndependent => 1,
            Mapping::AddressDependent => 2,
            Mapping::AddressAndPortDependent => 3,
        };
        let filtering = behaviour.filtering.map(|filtering| match filtering {
            Filtering::EndpointIndependent => 1,
            Filtering::AddressDependent => 2,
            Filtering::AddressAndPortDependent => 3,
        });
        let ports = behaviour.ports.map(|ports| match ports {
            Ports::Preserved => (0, 0, 0),
            Ports::Sequential { step } => (1, step.into(), 0),
            Ports::Block { low, high } => (2, low.into(), high.into()),
            Ports::Random => (3, 0, 0),
        });
        let Behaviour { external, last_port, hairpins, .. } = *behaviour;
        let external = external.to_string();
        Self { external, mapping, filtering, ports, last_port, hairpins, endpoint }
    }

    pub(super) fn behaviour(&self) -> Result<Behaviour> {
        let mapping = match self.mapping {
            0 => Mapping::None,
            1 => Mapping::EndpointIndependent,
            2 => Mapping::AddressDependent,
            3 => Mapping::AddressAndPortDependent,
            other => bail!("no mapping has number {other}"),
        };
        let filtering = match self.filtering {
            None => None,
            Some(1) => Some(Filtering::EndpointIndependent),
            Some(2) => Some(Filtering::AddressDependent),
            Some(3) => Some(Filtering::AddressAndPortDependent),
            Some(other) => bail!("no filtering has number {other}"),
        };
        let ports = match self.ports {
            None => None,
            Some((0, _, _)) => Some(Ports::Preserved),
            Some((1, step, _)) => Some(Ports::Sequential { step: step.try_into()? }),
            Some((2, low, high)) => {
                Some(Ports::Block { low: low.try_into()?, high: high.try_into()? })
            }
            Some((3, _, _)) => Some(Ports::Random),
            Some((other, _, _)) => bail!("no pattern of ports has number {other}"),
        };
        let external = self.external.parse().context("the external address")?;
        let (last_port, hairpins) = (self.last_port, self.hairpins);
        Ok(Behaviour { external, mapping, filtering, ports, last_port, hairpins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_tells_all_of_a_behaviour() {
        let patterns = [
            None,
            Some(Ports::Preserved),
            Some(Ports::Sequential { step: -3 }),
            Some(Ports::Block { low: 1, high: 65_535 }),
            Some(Ports::Random),
        ];
        for ports in patterns {
            let behaviour = Behaviour {
                external: [203, 0, 113, 7].into(),
                mapping: Mapping::AddressDependent,
                filtering: Some(Filtering::AddressDependent),
                ports,
                last_port: 41_000,
                hairpins: Some(true),
            };
            let card = Card::new(&behaviour, ([203, 0, 113, 7], 41_000).into());
            let text = line(&card).unwrap();
            let back: Card = serde_json::from_str(&text).unwrap();
            assert_eq!(back.behaviour().unwrap(), behaviour);
        }
    }
}
