//! NAT64: how a host without IPv4 reaches one without IPv6 (RFC 6052), and how it learns the prefix
//! by which it does (RFC 7050).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The addresses that `ipv4only.arpa` has (RFC 7050 §2.2).
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];
/// Byte 8 of an address with an embedded one is zero (RFC 6052 §2.2, bits 64 to 71).
const ZERO_BYTE: usize = 8;

/// The prefix behind which a NAT64 shows the IPv4 Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: Ipv6Addr,
    length: PrefixLength,
}

/// The lengths that a NAT64's prefix may have (RFC 6052 §2.2), longest first.
const LENGTHS: [PrefixLength; 6] = [
    PrefixLength::L96,
    PrefixLength::L64,
    PrefixLength::L56,
    PrefixLength::L48,
    PrefixLength::L40,
    PrefixLength::L32,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum PrefixLength {
    L32,
    L40,
    L48,
    L56,
    L64,
    L96,
}

impl PrefixLength {
    const fn bits(self) -> u8 {
        match self {
            Self::L32 => 32,
            Self::L40 => 40,
            Self::L48 => 48,
            Self::L56 => 56,
            Self::L64 => 64,
            Self::L96 => 96,
        }
    }

    /// Where the four bytes of the IPv4 address are (RFC 6052 §2.2).
    const fn places(self) -> [usize; 4] {
        match self {
            Self::L32 => [4, 5, 6, 7],
            Self::L40 => [5, 6, 7, 9],
            Self::L48 => [6, 7, 9, 10],
            Self::L56 => [7, 9, 10, 11],
            Self::L64 => [9, 10, 11, 12],
            Self::L96 => [12, 13, 14, 15],
        }
    }
}

impl Prefix {
    /// What there is where the operator chose nothing else: 64:ff9b::/96 (RFC 6052 §2.1).
    pub const WELL_KNOWN: Self =
        Self { address: Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), length: PrefixLength::L96 };

    /// The prefix of `length` bits that `address` begins with. `None` unless `length` is 32, 40, 48,
    /// 56, 64 or 96, and bits 64 to 71 are zero.
    pub fn new(address: Ipv6Addr, length: u8) -> Option<Self> {
        let length = LENGTHS.into_iter().find(|it| it.bits() == length)?;
        let kept = Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << (128 - length.bits())));
        (kept.octets()[ZERO_BYTE] == 0).then_some(Self { address: kept, length })
    }

    /// Its bits; the others are zero.
    pub const fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// How many bits it has.
    pub const fn length(&self) -> u8 {
        self.length.bits()
    }

    /// The address by which a host without IPv4 reaches `address`.
    pub fn synthesize(&self, address: Ipv4Addr) -> Ipv6Addr {
        let mut bytes = self.address.octets();
        for (place, byte) in self.length.places().into_iter().zip(address.octets()) {
            bytes[place] = byte;
        }
        bytes.into()
    }

    /// The address that [`Prefix::synthesize`] made `address` of, if it is such a one.
    pub fn extract(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bytes = address.octets();
        let embedded = Ipv4Addr::from(self.length.places().map(|place| bytes[place]));
        let prefix = Self::new(address, self.length.bits())?;
        (prefix == *self && bytes[ZERO_BYTE] == 0).then_some(embedded)
    }

    /// The prefix that a DNS64 has put before the addresses of `ipv4only.arpa` (RFC 7050 §3).
    ///
    /// A prefix may look as if it had one of them in it. So the one is taken with which both are
    /// found, or else the only one with which any is.
    pub fn find(answers: &[Ipv6Addr]) -> Option<Self> {
        let candidates = || {
            answers.iter().flat_map(|answer| {
                LENGTHS.into_iter().filter_map(|length| Self::new(*answer, length.bits()))
            })
        };
        let has = |prefix: &Self, address: Ipv4Addr| {
            answers.iter().any(|answer| prefix.extract(*answer) == Some(address))
        };
        let whole = candidates().find(|it| WELL_KNOWN.iter().all(|address| has(it, *address)));
        whole.or_else(|| {
            let some = |it: &Self| WELL_KNOWN.iter().any(|address| has(it, *address));
            let mut some = candidates().filter(some);
            let first = some.next()?;
            some.all(|other| other == first).then_some(first)
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length())
    }
}

#[cfg(feature = "portmap")]
pub use resolver::{Resolver, discover};

#[cfg(feature = "portmap")]
mod resolver {
    use std::io;
    use std::net::{Ipv6Addr, SocketAddr};
    use std::time::Duration;

    use hickory_resolver::TokioResolver;
    use hickory_resolver::config::{
        ConnectionConfig, NameServerConfig, ProtocolConfig, ResolverConfig,
    };
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::rr::RData;

    use super::Prefix;

    const NAME: &str = "ipv4only.arpa.";
    /// A resolver that does not answer by then is asked once more.
    const PATIENCE: Duration = Duration::from_millis(500);

    /// Asks name servers directly: what the C library makes of their answers depends on the host.
    #[derive(Clone)]
    pub struct Resolver(TokioResolver);

    impl Resolver {
        /// With the name servers of the system's configuration.
        ///
        /// # Errors
        /// If it cannot be read.
        pub fn system() -> io::Result<Self> {
            let builder = TokioResolver::builder_tokio().map_err(io::Error::other)?;
            Self::build(builder)
        }

        /// With these name servers, over UDP.
        ///
        /// # Errors
        /// If the resolver does not take them.
        pub fn of(servers: &[SocketAddr]) -> io::Result<Self> {
            let server = |address: &SocketAddr| {
                let mut connection = ConnectionConfig::new(ProtocolConfig::Udp);
                connection.port = address.port();
                NameServerConfig::new(address.ip(), true, vec![connection])
            };
            let config =
                ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
            let provider = TokioRuntimeProvider::default();
            Self::build(TokioResolver::builder_with_config(config, provider))
        }

        fn build(
            mut builder: hickory_resolver::ResolverBuilder<TokioRuntimeProvider>,
        ) -> io::Result<Self> {
            let options = builder.options_mut();
            (options.timeout, options.attempts) = (PATIENCE, 1);
            builder.build().map(Self).map_err(io::Error::other)
        }
    }

    /// Learns the prefix of the network's NAT64 from its DNS64. `None` if there is none.
    ///
    /// # Errors
    /// If no name server answers.
    pub async fn discover(resolver: &Resolver) -> io::Result<Option<Prefix>> {
        let answers = match resolver.0.ipv6_lookup(NAME).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() || error.is_nx_domain() => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        let addresses: Vec<Ipv6Addr> = answers
            .answers()
            .iter()
            .filter_map(|record| match &record.data {
                RData::AAAA(address) => Some(address.0),
                _ => None,
            })
            .collect();
        Ok(Prefix::find(&addresses))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    /// The table of RFC 6052 §2.4.
    const VECTORS: [(&str, u8, &str); 7] = [
        ("2001:db8::", 32, "2001:db8:c000:221::"),
        ("2001:db8:100::", 40, "2001:db8:1c0:2:21::"),
        ("2001:db8:122::", 48, "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::", 56, "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::", 64, "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::", 96, "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::", 96, "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn embeds_as_the_standard_says() {
        let address = Ipv4Addr::new(192, 0, 2, 33);
        for (prefix, length, expected) in VECTORS {
            let prefix = Prefix::new(v6(prefix), length).unwrap();
            assert_eq!(prefix.synthesize(address), v6(expected), "{prefix}");
            assert_eq!(prefix.extract(v6(expected)), Some(address), "{prefix}");
        }
        assert_eq!(Prefix::WELL_KNOWN.to_string(), "64:ff9b::/96");
    }

    #[test]
    fn finds_every_length() {
        for (prefix, length, _) in VECTORS {
            let prefix = Prefix::new(v6(prefix), length).unwrap();
            let both = WELL_KNOWN.map(|address| prefix.synthesize(address));
            assert_eq!(Prefix::find(&both), Some(prefix));
            assert_eq!(Prefix::find(&both[..1]), Some(prefix), "one is enough if it is clear");
            assert_eq!(Prefix::find(&both[1..]), Some(prefix));
        }
    }

    /// A prefix that looks as if it had the first well-known address in it.
    #[test]
    fn the_second_address_decides_where_one_is_not_enough() {
        let prefix = Prefix::new(v6("2001:db8:c000:aa::"), 96).unwrap();
        let both = WELL_KNOWN.map(|address| prefix.synthesize(address));
        assert_eq!(Prefix::find(&both), Some(prefix));
        assert_eq!(Prefix::find(&both[..1]), None);
    }

    #[test]
    fn other_addresses_are_no_prefix() {
        assert_eq!(Prefix::find(&[]), None);
        assert_eq!(Prefix::find(&[v6("2001:db8::1")]), None);
        assert_eq!(Prefix::new(v6("2001:db8::"), 33), None);
        assert_eq!(Prefix::new(v6("2001:db8:0:0:ff00::"), 96), None, "bits 64 to 71");
        assert_eq!(Prefix::WELL_KNOWN.extract(v6("64:ff9b:1::192.0.2.33")), None);
    }

    proptest! {
        #[test]
        fn reads_what_it_embeds(bits: u128, which in 0..LENGTHS.len(), address: u32) {
            let (address, length) = (Ipv4Addr::from(address), LENGTHS[which].bits());
            let bits = bits & !(0xFF << 56);
            let prefix = Prefix::new(Ipv6Addr::from_bits(bits), length).unwrap();
            prop_assert_eq!(prefix.extract(prefix.synthesize(address)), Some(address));
        }
    }
}
