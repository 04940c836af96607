//! Two sides prove to each other that they have the key, and agree on one stream of many.
//!
//! Both send a nonce, then a code over both nonces. The initiator sends another code on the first
//! stream that is proven, and the other side answers it. All lengths are fixed, so nothing that
//! follows is read.

use std::io;
use std::time::Duration;

use hmac::Mac;
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::punch::probe::derive;

const NONCE: usize = 16;
const CODE: usize = 16;
/// How long a stream has to prove itself. Retransmissions of a slow path fit in.
const PATIENCE: Duration = Duration::from_secs(4);

/// A stream whose other end has the key.
#[derive(Debug)]
pub(super) struct Proven {
    stream: TcpStream,
    codes: Codes,
}

/// What is to be said and to be heard on a stream.
#[derive(Debug)]
struct Codes {
    key: [u8; 32],
    nonces: [u8; 2 * NONCE],
}

impl Codes {
    fn of(&self, label: &[u8]) -> [u8; CODE] {
        let code = derive(&self.key, label).chain_update(self.nonces).finalize().into_bytes();
        let mut cut = [0; CODE];
        cut.copy_from_slice(&code[..CODE]);
        cut
    }

    /// Compares in constant time.
    fn verify(&self, label: &[u8], code: &[u8; CODE]) -> io::Result<()> {
        let mac = derive(&self.key, label).chain_update(self.nonces);
        let stranger =
            |_| io::Error::new(io::ErrorKind::PermissionDenied, "the other end lacks the key");
        mac.verify_truncated_left(code).map_err(stranger)
    }
}

/// Exchanges nonces and codes.
pub(super) async fn prove(
    stream: TcpStream,
    key: [u8; 32],
    is_initiator: bool,
) -> io::Result<Proven> {
    let nonce = rand::rng().random::<[u8; NONCE]>();
    within(exchange(stream, key, is_initiator, nonce)).await
}

async fn exchange(
    mut stream: TcpStream,
    key: [u8; 32],
    is_initiator: bool,
    nonce: [u8; NONCE],
) -> io::Result<Proven> {
    stream.set_nodelay(true)?;
    stream.write_all(&nonce).await?;
    let mut theirs = [0; NONCE];
    stream.read_exact(&mut theirs).await?;
    let (first, second) = if is_initiator { (nonce, theirs) } else { (theirs, nonce) };
    let mut nonces = [0; 2 * NONCE];
    nonces[..NONCE].copy_from_slice(&first);
    nonces[NONCE..].copy_from_slice(&second);
    let codes = Codes { key, nonces };
    let (ours, expected): (&[u8], &[u8]) = if is_initiator {
        (b"rawr tcp, initiator", b"rawr tcp, responder")
    } else {
        (b"rawr tcp, responder", b"rawr tcp, initiator")
    };
    stream.write_all(&codes.of(ours)).await?;
    let mut code = [0; CODE];
    stream.read_exact(&mut code).await?;
    codes.verify(expected, &code)?;
    Ok(Proven { stream, codes })
}

const PICK: &[u8] = b"rawr tcp, pick";
const AGREE: &[u8] = b"rawr tcp, agree";

impl Proven {
    /// The initiator's choice: returns once the other side has agreed.
    pub(super) async fn pick(mut self) -> io::Result<TcpStream> {
        within(async {
            self.stream.write_all(&self.codes.of(PICK)).await?;
            self.expect(AGREE).await?;
            Ok(self.stream)
        })
        .await
    }

    /// The other side: returns if the initiator picks this stream. Ends with an error once the
    /// initiator has closed it.
    pub(super) async fn agree(mut self) -> io::Result<TcpStream> {
        self.expect(PICK).await?;
        self.stream.write_all(&self.codes.of(AGREE)).await?;
        Ok(self.stream)
    }

    async fn expect(&mut self, label: &[u8]) -> io::Result<()> {
        let mut code = [0; CODE];
        self.stream.read_exact(&mut code).await?;
        self.codes.verify(label, &code)
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the other end does not prove that it has the key",
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn both_keep_the_stream_that_the_initiator_picks() {
        let (a, b) = pair().await;
        let initiator = async { prove(a, [1; 32], true).await?.pick().await };
        let responder = async { prove(b, [1; 32], false).await?.agree().await };
        let (a, b) = tokio::join!(initiator, responder);
        let (mut a, mut b) = (a.unwrap(), b.unwrap());
        a.write_all(b"data").await.unwrap();
        let mut got = [0; 4];
        b.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"data", "nothing is left of the handshake");
    }

    #[tokio::test]
    async fn a_stranger_is_refused() {
        let (a, b) = pair().await;
        let (a, b) = tokio::join!(prove(a, [1; 32], true), prove(b, [2; 32], false));
        assert!(a.is_err() && b.is_err());
    }

    #[tokio::test]
    async fn whoever_plays_our_own_words_back_is_refused() {
        let (a, mut b) = pair().await;
        let echo = async {
            let mut buffer = [0; NONCE + CODE];
            b.read_exact(&mut buffer[..NONCE]).await?;
            b.write_all(&buffer[..NONCE]).await?;
            b.read_exact(&mut buffer[NONCE..]).await?;
            b.write_all(&buffer[NONCE..]).await
        };
        let (proven, _) = tokio::join!(prove(a, [1; 32], true), echo);
        assert!(proven.is_err());
    }
}
