//! One question and its answer, over UDP: how PCP and NAT-PMP ask a gateway.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// Where gateways listen for both (RFC 6887 §19.1).
pub(super) const PORT: u16 = 5351;
/// The first pause before a question is repeated, doubled each time (RFC 6886 §3.1).
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest message of PCP (RFC 6887 §7).
const MAX_MESSAGE: usize = 1_100;

/// Why a gateway has not done what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("no answer")]
    Silent,
    #[error("not spoken")]
    Version,
    #[error("refused: {0} (code {1})")]
    Code(&'static str, u16),
    #[error("cannot ask: {0}")]
    Io(#[from] io::Error),
}

/// Asks the gateway from the address `source`, and again until `patience` is over. What `read` takes
/// for no answer to this question is ignored.
pub(super) async fn ask<T>(
    gateway: SocketAddr,
    source: IpAddr,
    question: &[u8],
    patience: Duration,
    read: impl Fn(&[u8]) -> Option<Result<T, Refused>>,
) -> Result<T, Refused> {
    let socket = UdpSocket::bind((source, 0)).await?;
    socket.connect(gateway).await?;
    let answer = async {
        let mut answer = [0; MAX_MESSAGE];
        loop {
            let length = socket.recv(&mut answer).await?;
            if let Some(read) = read(&answer[..length]) {
                return read;
            }
        }
    };
    let repeat = async {
        let mut pause = FIRST_PAUSE;
        loop {
            if let Err(error) = socket.send(question).await {
                return error;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    };
    tokio::select! {
        answer = answer => answer,
        error = repeat => Err(error.into()),
        () = tokio::time::sleep(patience) => Err(Refused::Silent),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    /// The first question gets lost, and before the answer comes something else.
    #[tokio::test]
    async fn asks_again_and_waits_for_its_own_answer() {
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let gateway = UdpSocket::bind((here, 0)).await.unwrap();
        let server = gateway.local_addr().unwrap();
        let read = |answer: &[u8]| (answer == b"yes").then_some(Ok(()));
        let answers = async {
            let mut question = [0; 16];
            gateway.recv_from(&mut question).await.unwrap();
            let (length, from) = gateway.recv_from(&mut question).await.unwrap();
            assert_eq!(question[..length], *b"well");
            gateway.send_to(b"no", from).await.unwrap();
            gateway.send_to(b"yes", from).await.unwrap();
        };
        let patience = Duration::from_secs(60);
        let (asked, ()) = tokio::join!(ask(server, here, b"well", patience, read), answers);
        asked.unwrap();
        let asked = ask(server, here, b"well", Duration::from_millis(1), read).await;
        assert!(matches!(asked, Err(Refused::Silent)), "{asked:?}");
    }
}
