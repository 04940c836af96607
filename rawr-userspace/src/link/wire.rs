//! What is said at the beginning of a stream: texts, and whether the other side agrees.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Longest text, in bytes of UTF-8.
pub const MAX_TEXT: usize = 1024;

const AGREED: u8 = 0;
const REFUSED: u8 = 1;

/// Whether the other side does what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It does.
    Agreed,
    /// It does not, for this reason.
    Refused(String),
}

impl Reply {
    /// Writes it: a byte, and where it is a refusal, a text.
    ///
    /// # Errors
    /// If the stream is broken.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        match self {
            Self::Agreed => stream.write_u8(AGREED).await,
            Self::Refused(why) => {
                stream.write_u8(REFUSED).await?;
                write_text(stream, cut(why)).await
            }
        }
    }

    /// Reads what [`Reply::write`] wrote.
    ///
    /// # Errors
    /// If the stream is broken, or something else comes.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        match stream.read_u8().await? {
            AGREED => Ok(Self::Agreed),
            REFUSED => read_text(stream).await.map(Self::Refused),
            other => Err(invalid(&format!("an answer that begins with {other}"))),
        }
    }
}

/// Writes a text behind its length in bytes, of two bytes.
///
/// # Errors
/// If the stream is broken, or the text too long.
pub async fn write_text(stream: &mut (impl AsyncWrite + Unpin), text: &str) -> io::Result<()> {
    let length = u16::try_from(text.len()).ok().filter(|it| usize::from(*it) <= MAX_TEXT);
    let length = length.ok_or_else(|| invalid("a text that is too long"))?;
    stream.write_u16(length).await?;
    stream.write_all(text.as_bytes()).await
}

/// Reads what [`write_text`] wrote.
///
/// # Errors
/// If the stream is broken, or something else comes.
pub async fn read_text(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_TEXT {
        return Err(invalid("a text that is too long"));
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(|_| invalid("a text that is none"))
}

/// A text of the other side's as it may be shown: without what moves the cursor of a terminal.
pub fn shown(text: &str) -> String {
    text.chars().map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it }).collect()
}

/// Something that no end of this version says.
pub(super) fn invalid(what: &str) -> io::Error {
    let text = format!("the other side sent {what}: it may be of another version");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// As much of a text as may be sent.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let (mut near, mut far) = tokio::io::duplex(8192);
        let long = "ü".repeat(MAX_TEXT);
        for reply in [Reply::Agreed, Reply::Refused("no".into()), Reply::Refused(String::new())] {
            reply.write(&mut near).await.unwrap();
            assert_eq!(Reply::read(&mut far).await.unwrap(), reply);
        }
        Reply::Refused(long.clone()).write(&mut near).await.unwrap();
        let Reply::Refused(text) = Reply::read(&mut far).await.unwrap() else { panic!() };
        assert!(text.len() <= MAX_TEXT && long.starts_with(&text) && text.len() > MAX_TEXT - 2);
        assert!(write_text(&mut near, &long).await.is_err());
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        for bytes in [&[9_u8][..], &[REFUSED, 0xFF, 0xFF], &[REFUSED, 0, 1, 0xFF], &[REFUSED, 0]] {
            let (mut near, mut far) = tokio::io::duplex(64);
            near.write_all(bytes).await.unwrap();
            drop(near);
            assert!(Reply::read(&mut far).await.is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(shown("a\u{1b}[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
