//! What is tried: two kinds, and what happens to them meanwhile.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::kind::{Expected, Kind};

/// Probes that may be sent to punch a path, where nothing else is said.
pub(super) const PROBES: u32 = 2048;

/// What is special about a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Nothing.
    Plain,
    /// At most so many probes.
    Probes(u32),
    /// TCP punching, and nothing else.
    Tcp,
    /// So many milliseconds from one host to the other and back.
    RoundTrip(u16),
    /// So many of a hundred packets lost, in each direction.
    Loss(u8),
    /// The second side starts so many milliseconds later.
    Late(u64),
    /// Nothing comes from the server any more, once there is a path without it.
    RelayDies,
    /// Nothing comes from anywhere but the server any more, once there is such a path.
    PathDies,
    /// The first side's routers forget everything, once there is such a path.
    Reboot,
    /// Each host has so many addresses more that nobody reaches.
    Junk(u8),
    /// Another host behind the first side's router has used all ports that the host has.
    SamePort,
}

impl Axis {
    /// Whether something happens to a path that is there.
    pub(super) const fn disturbs(self) -> bool {
        matches!(self, Self::RelayDies | Self::PathDies | Self::Reboot)
    }

    /// All that [`SPECIAL`] names.
    fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "tcp" => Self::Tcp,
            "relay-dies" => Self::RelayDies,
            "path-dies" => Self::PathDies,
            "reboot" => Self::Reboot,
            "same-port" => Self::SamePort,
            _ => {
                let digits = name.find(|c: char| c.is_ascii_digit()).unwrap_or(name.len());
                let (word, number) = name.split_at(digits);
                let number: u16 =
                    number.parse().with_context(|| format!("the number of {name}"))?;
                match word {
                    "probes" => Self::Probes(number.into()),
                    "late" => Self::Late(number.into()),
                    "rtt" => Self::RoundTrip(number),
                    "loss" => Self::Loss(u8::try_from(number)?),
                    "junk" => Self::Junk(u8::try_from(number)?),
                    _ => bail!("nothing is called {name}"),
                }
            }
        })
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => Ok(()),
            Self::Probes(count) => write!(f, "+probes{count}"),
            Self::Tcp => f.write_str("+tcp"),
            Self::RoundTrip(time) => write!(f, "+rtt{time}"),
            Self::Loss(percent) => write!(f, "+loss{percent}"),
            Self::Late(delay) => write!(f, "+late{delay}"),
            Self::RelayDies => f.write_str("+relay-dies"),
            Self::PathDies => f.write_str("+path-dies"),
            Self::Reboot => f.write_str("+reboot"),
            Self::Junk(count) => write!(f, "+junk{count}"),
            Self::SamePort => f.write_str("+same-port"),
        }
    }
}

/// Two kinds, and an axis. Written as `N3xN6` or `N3xN6+late200`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    pub a: Kind,
    pub b: Kind,
    pub axis: Axis,
}

impl Cell {
    pub const fn plain(a: Kind, b: Kind) -> Self {
        Self { a, b, axis: Axis::Plain }
    }

    pub const fn with(a: Kind, b: Kind, axis: Axis) -> Self {
        Self { a, b, axis }
    }

    pub fn expected(&self) -> Expected {
        match self.axis {
            Axis::Tcp => Expected::Tcp { permille: 950 },
            Axis::Probes(count) if count >= PROBES => Expected::Likely { permille: 999 },
            Axis::PathDies | Axis::Reboot => Expected::Connected,
            Axis::Plain
            | Axis::Probes(_)
            | Axis::RoundTrip(_)
            | Axis::Loss(_)
            | Axis::Late(_)
            | Axis::RelayDies
            | Axis::Junk(_)
            | Axis::SamePort => Expected::of(self.a, self.b),
        }
    }

    /// Whether TCP is all that can be tried.
    pub fn is_tcp(&self) -> bool {
        self.axis == Axis::Tcp || !self.a.has_udp() || !self.b.has_udp()
    }

    /// Probes that may be sent.
    pub const fn probes(&self) -> u32 {
        match self.axis {
            Axis::Probes(count) => count,
            _ => PROBES,
        }
    }

    /// Whether a percentage is claimed of it, so that many trials are needed.
    pub fn is_claimed(&self) -> bool {
        let alike = [Kind::N5, Kind::N7].into_iter().any(|kind| *self == Self::plain(kind, kind));
        alike || matches!(self.axis, Axis::Probes(_) | Axis::Tcp)
    }

    /// Whether the bar is a percentage, which few trials do not show.
    pub fn is_chance(&self) -> bool {
        matches!(self.expected(), Expected::Likely { .. } | Expected::Tcp { .. })
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}{}", self.a, self.b, self.axis)
    }
}

impl FromStr for Cell {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (pair, axis) = match text.split_once('+') {
            Some((pair, axis)) => (pair, Axis::named(axis)?),
            None => (text, Axis::Plain),
        };
        // N8x has an x of its own.
        let mut pairs = pair
            .match_indices('x')
            .filter_map(|(at, _)| Some((Kind::named(&pair[..at])?, Kind::named(&pair[at + 1..])?)));
        let (a, b) = pairs.next().with_context(|| format!("{pair} is no pair of kinds"))?;
        Ok(Self { a, b, axis })
    }
}

/// Every pair of kinds once.
pub fn pairs() -> Vec<Cell> {
    let all = Kind::ALL;
    let pairs = all.iter().enumerate().flat_map(|(i, a)| all[i..].iter().map(move |b| (a, b)));
    pairs.map(|(a, b)| Cell::plain(*a, *b)).collect()
}

/// The cells with something special about them.
pub const SPECIAL: [Cell; 37] = {
    use Axis::{Junk, Late, Loss, PathDies, Probes, Reboot, RelayDies, RoundTrip, SamePort, Tcp};
    use Kind::{N1, N3, N3a, N5, N6, N8, P};
    [
        Cell::with(N3, N6, Probes(1024)),
        Cell::with(N3a, N6, Probes(1024)),
        Cell::with(N3, N6, Probes(2048)),
        Cell::with(N3a, N6, Probes(2048)),
        Cell::with(P, N3, Tcp),
        Cell::with(N3, N3, Tcp),
        Cell::with(N3, N3a, Tcp),
        Cell::with(N3a, N3a, Tcp),
        Cell::with(N3, N6, Tcp),
        Cell::with(N3a, N6, Tcp),
        Cell::with(N3, N3, RoundTrip(80)),
        Cell::with(N3, N3, RoundTrip(300)),
        Cell::with(N3, N6, RoundTrip(80)),
        Cell::with(N3, N6, RoundTrip(300)),
        Cell::with(N3, N3, Loss(5)),
        Cell::with(N3, N3, Loss(25)),
        Cell::with(N3, N6, Loss(5)),
        Cell::with(N3, N6, Loss(25)),
        Cell::with(N3, N3, Late(200)),
        Cell::with(N3, N3, Late(2000)),
        Cell::with(N3a, N3a, Late(200)),
        Cell::with(N3a, N3a, Late(2000)),
        Cell::with(N3a, N6, Late(2000)),
        Cell::with(N3, N3, RelayDies),
        Cell::with(N3, N6, RelayDies),
        Cell::with(N3, N3, PathDies),
        Cell::with(N3, N6, PathDies),
        Cell::with(P, N3, PathDies),
        Cell::with(N3, N3, Reboot),
        Cell::with(N6, N3, Reboot),
        Cell::with(N8, N3, Reboot),
        Cell::with(N3, N3, Junk(16)),
        Cell::with(N3, N3, Junk(32)),
        Cell::with(N3, N6, Junk(16)),
        Cell::with(N3, N1, SamePort),
        Cell::with(N3, N3, SamePort),
        Cell::with(N3, N5, SamePort),
    ]
};

/// A few that show most, for every day.
pub const SUBSET: [Cell; 8] = {
    use Kind::{N1, N3, N3a, N4, N5, N6, N7, N8};
    [
        Cell::plain(N3, N3),
        Cell::plain(N3a, N6),
        Cell::plain(N4, N1),
        Cell::plain(N5, N5),
        Cell::plain(N6, N6),
        Cell::plain(N7, N7),
        Cell::plain(N8, N8),
        Cell::with(N3, N3a, Axis::PathDies),
    ]
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_read_as_they_are_written() {
        for cell in pairs().into_iter().chain(SPECIAL).chain(SUBSET) {
            assert_eq!(cell.to_string().parse::<Cell>().unwrap(), cell);
        }
        for wrong in ["", "N3", "N3xN99", "N3xN6+fast", "N3xN6+late"] {
            assert!(wrong.parse::<Cell>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_pair_is_there_once() {
        assert_eq!(pairs().len(), 105);
    }
}
