//! Whether a client receives at the address that it sends from, before anything is kept of it
//! (RFC 6347 §4.2.1).
//!
//! `dimpl` asks for a cookie too, but keeps what it needs to check it in the association, which would have
//! to be there for a forged ClientHello already. So the first ClientHello is answered here, by one HMAC and
//! 60 bytes, and an association is made when the cookie comes back. It is shown the first ClientHello then,
//! made again from the second, so that it counts messages as the client does; the second stands in the
//! handshake's hash and goes in as it came.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use dimpl::crypto::{CryptoProvider, HmacProvider, rust_crypto};
use dimpl::{CryptoError, Dtls, HashAlgorithm};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;

/// A cookie is good until the period after that which it was made in is over.
const PERIOD: Duration = Duration::from_secs(60);
/// Content type of handshake records, type of a ClientHello, and lengths of the two headers
/// (RFC 6347 §4.1, §4.2.2).
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const HELLO_VERIFY_REQUEST: u8 = 3;
const RECORD_HEADER: usize = 13;
const MESSAGE_HEADER: usize = 12;
/// Where the client's random stands in a ClientHello's record, behind the version, and where it ends.
const RANDOM: usize = RECORD_HEADER + MESSAGE_HEADER + 2;
const RANDOM_END: usize = RANDOM + 32;

/// What tells one handshake of a client from its next.
pub(super) type ClientRandom = [u8; 32];
type Cookie = [u8; 32];

/// Makes and checks cookies. A cookie is an HMAC over the period, both addresses and the client's random.
#[derive(Debug)]
pub(super) struct Cookies {
    mac: Hmac<Sha256>,
    origin: Instant,
}

/// A ClientHello in one piece, at the beginning of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClientHello<'a> {
    /// Its record.
    record: &'a [u8],
    /// Where the byte that tells the cookie's length stands in the record.
    cookie_at: usize,
}

impl Cookies {
    /// `key` is random; periods are counted from `origin`.
    pub(super) fn new(key: [u8; 32], origin: Instant) -> Self {
        let mac = Hmac::<Sha256>::new_from_slice(&key).expect("an HMAC takes keys of any length");
        Self { mac, origin }
    }

    /// The HelloVerifyRequest that answers `hello`.
    pub(super) fn ask(
        &self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        hello: &ClientHello<'_>,
    ) -> Vec<u8> {
        let mac = self.mac(self.period(now), local, remote, hello.random());
        let cookie: Cookie = mac.finalize().into_bytes().into();
        let mut body = vec![0xfe, 0xff, cookie.len() as u8];
        body.extend_from_slice(&cookie);
        let length = [0, 0, body.len() as u8];
        let mut answer = vec![HANDSHAKE, 0xfe, 0xff];
        // Sequence number 0, as the association will count: were it that of a repeated ClientHello, the
        // client would take the ServerHello for a replay.
        answer.extend_from_slice(&[0; 8]);
        answer.extend_from_slice(&[0, (MESSAGE_HEADER + body.len()) as u8, HELLO_VERIFY_REQUEST]);
        answer.extend_from_slice(&length);
        answer.extend_from_slice(&[0; 5]);
        answer.extend_from_slice(&length);
        answer.extend_from_slice(&body);
        answer
    }

    /// Whether the cookie in `hello` is of this server, for these addresses, and not too old.
    pub(super) fn is_proof(
        &self,
        now: Instant,
        local: SocketAddr,
        remote: SocketAddr,
        hello: &ClientHello<'_>,
    ) -> bool {
        let period = self.period(now);
        [Some(period), period.checked_sub(1)].into_iter().flatten().any(|period| {
            self.mac(period, local, remote, hello.random()).verify_slice(hello.cookie()).is_ok()
        })
    }

    fn period(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.origin).as_secs() / PERIOD.as_secs()
    }

    fn mac(
        &self,
        period: u64,
        local: SocketAddr,
        remote: SocketAddr,
        random: &[u8],
    ) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(&period.to_be_bytes());
        for address in [local, remote] {
            let ip = match address.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            mac.update(&ip.octets());
            mac.update(&address.port().to_be_bytes());
        }
        mac.update(random);
        mac
    }
}

impl<'a> ClientHello<'a> {
    /// Reads the record that `datagram` begins with. `None` for anything but a whole ClientHello: one in
    /// pieces cannot be answered without keeping them.
    pub(super) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*datagram.get(11)?, *datagram.get(12)?]));
        let record = datagram.get(..RECORD_HEADER + length)?;
        let message = record.get(RECORD_HEADER..RECORD_HEADER + MESSAGE_HEADER)?;
        let body = (length - MESSAGE_HEADER) as u32;
        let is_whole = length_at(message, 1) == body
            && length_at(message, 6) == 0
            && length_at(message, 9) == body;
        let epoch = &record[3..5];
        if record[0] != HANDSHAKE || epoch != [0, 0] || message[0] != CLIENT_HELLO || !is_whole {
            return None;
        }
        let cookie_at = RANDOM_END + 1 + usize::from(*record.get(RANDOM_END)?);
        let cookie = usize::from(*record.get(cookie_at)?);
        record.get(cookie_at + 1..cookie_at + 1 + cookie)?;
        Some(Self { record, cookie_at })
    }

    /// What the client has drawn for this handshake.
    pub(super) fn random(&self) -> &'a [u8] {
        &self.record[RANDOM..RANDOM_END]
    }

    /// Empty in the first ClientHello.
    pub(super) fn cookie(&self) -> &'a [u8] {
        let length = usize::from(self.record[self.cookie_at]);
        &self.record[self.cookie_at + 1..][..length]
    }

    pub(super) fn length(&self) -> usize {
        self.record.len()
    }

    /// The client's ClientHello before this one: it is the same but for the cookie (RFC 6347 §4.2.1), and
    /// the first message.
    fn first(&self) -> Vec<u8> {
        let cookie = self.cookie().len();
        let mut first = self.record.to_vec();
        first.drain(self.cookie_at + 1..self.cookie_at + 1 + cookie);
        first[self.cookie_at] = 0;
        // Numbers of the record and of the message.
        first[5..11].fill(0);
        first[RECORD_HEADER + 4..RECORD_HEADER + 6].fill(0);
        let length = first.len() - RECORD_HEADER;
        first[11..13].copy_from_slice(&(length as u16).to_be_bytes());
        let body = ((length - MESSAGE_HEADER) as u32).to_be_bytes();
        for at in [1, 9] {
            first[RECORD_HEADER + at..][..3].copy_from_slice(&body[1..]);
        }
        first
    }
}

/// A length of 24 bits.
fn length_at(message: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([0, message[at], message[at + 1], message[at + 2]])
}

/// Hands a ClientHello with a proven cookie to a new association.
///
/// # Errors
/// The client and we have nothing in common that both could speak.
pub(super) fn begin(
    dtls: &mut Dtls,
    now: Instant,
    hello: &ClientHello<'_>,
    datagram: &[u8],
    buffer: &mut [u8],
) -> Result<(), dimpl::Error> {
    let cookie = hello.cookie().try_into().ok();
    let _given = Given::new(cookie);
    dtls.handle_timeout(now)?;
    dtls.handle_packet(&hello.first())?;
    // It asks for the cookie, which the client has sent already.
    while !matches!(dtls.poll_output(buffer), dimpl::Output::Timeout(_)) {}
    dtls.handle_packet(datagram)
}

/// The cryptography of associations: `dimpl`'s own, but for the cookie that [`begin`] has checked.
pub(super) fn provider() -> CryptoProvider {
    CryptoProvider { hmac_provider: &CookieHmac, ..rust_crypto::default_provider() }
}

thread_local! {
    /// The cookie that associations of this thread are to take.
    static GIVEN: Cell<Option<Cookie>> = const { Cell::new(None) };
}

/// While it lives, associations of this thread take this cookie.
struct Given;

impl Given {
    fn new(cookie: Option<Cookie>) -> Self {
        GIVEN.set(cookie);
        Self
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        GIVEN.set(None);
    }
}

#[derive(Debug)]
struct CookieHmac;

impl HmacProvider for CookieHmac {
    /// Used for the cookie alone in DTLS 1.2, whose key derivation asks for [`Self::hmac`].
    fn hmac_sha256(&self, key: &[u8], data: &[u8]) -> Result<[u8; 32], CryptoError> {
        if let Some(cookie) = GIVEN.get() {
            return Ok(cookie);
        }
        let mut mac = [0; 32];
        self.hmac(HashAlgorithm::SHA256, key, data, &mut mac)?;
        Ok(mac)
    }

    fn hmac(
        &self,
        hash: HashAlgorithm,
        key: &[u8],
        data: &[u8],
        out: &mut [u8],
    ) -> Result<usize, CryptoError> {
        rust_crypto::default_provider().hmac_provider.hmac(hash, key, data, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "192.0.2.1:5349";
    const REMOTE: &str = "198.51.100.7:40000";

    /// A ClientHello with a session id of one byte and something behind the cookie.
    fn hello(cookie: &[u8], message: u8) -> Vec<u8> {
        let mut body = vec![0xfe, 0xfd];
        body.extend_from_slice(&[7; 32]);
        body.extend_from_slice(&[1, 9, cookie.len() as u8]);
        body.extend_from_slice(cookie);
        body.extend_from_slice(&[0, 2, 0xc0, 0x2b, 1, 0]);
        let length = [0, 0, body.len() as u8];
        let record = [0, (MESSAGE_HEADER + body.len()) as u8];
        let number = [0, 0, 0, 0, 0, 0, 0, message];
        let header = [&[HANDSHAKE, 0xfe, 0xff][..], &number, &record].concat();
        let message = [&[CLIENT_HELLO][..], &length, &[0, message], &[0; 3], &length].concat();
        [header, message, body].concat()
    }

    fn cookies() -> (Cookies, Instant) {
        let origin = crate::io::clock::monotonic();
        (Cookies::new([3; 32], origin), origin)
    }

    #[test]
    fn a_cookie_proves_one_address_for_a_while() {
        let (cookies, now) = cookies();
        let (local, remote) = (LOCAL.parse().unwrap(), REMOTE.parse().unwrap());
        let first = hello(&[], 0);
        let answer = cookies.ask(now, local, remote, &ClientHello::parse(&first).unwrap());
        assert_eq!(answer.len(), 60);
        let second = hello(&answer[28..], 1);
        let second = ClientHello::parse(&second).unwrap();
        let proves = |after, local, remote| {
            cookies.is_proof(now + Duration::from_secs(after), local, remote, &second)
        };
        assert!(proves(0, local, remote));
        assert!(proves(119, local, remote));
        assert!(!proves(120, local, remote), "too old");
        assert!(!proves(0, local, "198.51.100.8:40000".parse().unwrap()));
        assert!(!proves(0, local, "198.51.100.7:40001".parse().unwrap()));
        assert!(!proves(0, "192.0.2.2:5349".parse().unwrap(), remote));
    }

    #[test]
    fn the_first_hello_is_made_from_the_second() {
        let (first, second) = (hello(&[], 0), hello(&[5; 32], 1));
        assert_eq!(ClientHello::parse(&second).unwrap().first(), first);
        assert_eq!(ClientHello::parse(&first).unwrap().first(), first);
    }

    #[test]
    fn what_is_no_whole_hello_is_none() {
        let whole = hello(&[5; 32], 1);
        for length in 0..whole.len() {
            assert_eq!(ClientHello::parse(&whole[..length]), None, "{length} bytes");
        }
        for (at, value) in [(0, 23), (4, 1), (13, 2), (16, 1), (21, 1), (24, 1)] {
            let mut other = whole.clone();
            other[at] = value;
            assert_eq!(ClientHello::parse(&other), None, "byte {at}");
        }
        let mut long_cookie = hello(&[], 0);
        long_cookie[RANDOM_END + 2] = 200;
        assert_eq!(ClientHello::parse(&long_cookie), None);
    }
}
