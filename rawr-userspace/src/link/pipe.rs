//! Two ends' standard input and output, joined: what one reads the other writes.
//!
//! Each direction is a row of frames: a length of two bytes, and as many bytes. Length 0 says that there is
//! no more; the greatest says that the other side's end has been reached, and everything before it written.
//! So both know at the end that nothing was lost, whatever becomes of the link then.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;

/// There is no more.
const END: u16 = 0;
/// The other side's end was reached.
const TAKEN: u16 = u16::MAX;
/// Bytes of a frame, at most.
const MAX_FRAME: usize = 32_768;

/// What went through a pipe, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piped {
    /// Read here, and written by the other side.
    pub sent: u64,
    /// The other way.
    pub received: u64,
}

/// Until both directions are at their end.
///
/// # Errors
/// If reading or writing fails on this side, or the stream breaks, or the other side gives up.
pub async fn pipe(
    stream: impl AsyncRead + AsyncWrite,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin,
) -> io::Result<Piped> {
    let (reader, writer) = tokio::io::split(stream);
    let (tell, taken) = oneshot::channel();
    let up = send(input, writer, taken);
    let down = receive(reader, output, tell);
    let (sent, received) = tokio::try_join!(up, down)?;
    Ok(Piped { sent, received })
}

async fn send(
    mut input: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mut taken: oneshot::Receiver<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; MAX_FRAME];
    let (mut sent, mut at_end, mut has_confirmed) = (0, false, false);
    while !(at_end && has_confirmed) {
        tokio::select! {
            read = input.read(&mut buffer), if !at_end => {
                let length = read?;
                at_end = length == 0;
                writer.write_u16(length as u16).await?;
                writer.write_all(&buffer[..length]).await?;
                sent += length as u64;
            }
            told = &mut taken, if !has_confirmed => {
                has_confirmed = true;
                if told.is_ok() {
                    writer.write_u16(TAKEN).await?;
                }
            }
        }
    }
    writer.shutdown().await?;
    Ok(sent)
}

async fn receive(
    mut reader: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    tell: oneshot::Sender<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; MAX_FRAME];
    let (mut received, mut tell, mut is_taken) = (0, Some(tell), false);
    while tell.is_some() || !is_taken {
        match reader.read_u16().await.map_err(early)? {
            END => {
                output.shutdown().await?;
                if let Some(tell) = tell.take() {
                    // Who sends is there until both are done, unless it has failed.
                    let _failed = tell.send(());
                }
            }
            TAKEN => is_taken = true,
            length => {
                let Some(frame) = buffer.get_mut(..usize::from(length)) else {
                    return Err(super::wire::invalid("a frame that is too long"));
                };
                reader.read_exact(frame).await.map_err(early)?;
                output.write_all(frame).await?;
                output.flush().await?;
                received += u64::from(length);
            }
        }
    }
    Ok(received)
}

fn early(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => io::Error::new(
            error.kind(),
            "the other side has given up before everything was through",
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_ends_get_everything_however_unequal() {
        let (near, far) = tokio::io::duplex(1000);
        let long: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
        let (mut here, mut there) = (Vec::new(), Vec::new());
        let (a, b) =
            tokio::join!(pipe(near, &long[..], &mut here), pipe(far, &b"short"[..], &mut there));
        assert_eq!(a.unwrap(), Piped { sent: 300_000, received: 5 });
        assert_eq!(b.unwrap(), Piped { sent: 5, received: 300_000 });
        assert!(there == long && here == b"short");
    }

    #[tokio::test]
    async fn nothing_at_all_is_an_end_as_well() {
        let (near, far) = tokio::io::duplex(1000);
        let (a, b) = tokio::join!(
            pipe(near, tokio::io::empty(), tokio::io::sink()),
            pipe(far, tokio::io::empty(), tokio::io::sink())
        );
        assert_eq!((a.unwrap(), b.unwrap()), (Piped::default(), Piped::default()));
    }

    #[tokio::test]
    async fn an_end_that_is_none_is_an_error() {
        for bytes in [&[][..], &[0, 0], &[0, 5, 1, 2], &[0xFF, 0xFE]] {
            let (near, mut far) = tokio::io::duplex(1000);
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            let piped = pipe(near, tokio::io::empty(), tokio::io::sink()).await;
            assert!(piped.is_err(), "{bytes:?}");
        }
    }
}
