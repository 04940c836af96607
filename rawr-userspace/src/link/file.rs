//! Files: name and size, the bytes, and the SHA-256 that both sides have to agree on.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::wire::{Reply, invalid, read_text, shown, write_text};

const CHUNK: usize = 256 * 1024;
/// Longest name of a file, in bytes, on the file systems of Linux.
const MAX_NAME: usize = 255;
/// What is added to the name of a file until it is whole.
const DRAFT: &str = ".part";

/// A file that was sent or received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// Its name, without a directory.
    pub name: String,
    /// Its length, in bytes.
    pub size: u64,
    /// Its SHA-256.
    pub hash: [u8; 32],
}

/// Why a file was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is no file: pack a directory first, for example with tar", .0.display())]
    NoFile(PathBuf),
    #[error("{} changed while it was sent: send it again", .0.display())]
    Changed(PathBuf),
    #[error("the other side refuses: {0}")]
    Refused(String),
    #[error("{0}")]
    Unwanted(String),
    #[error("what came is not what was sent: SHA-256 differs. Send it again")]
    Corrupt,
    #[error("the link broke: {0}")]
    Link(#[from] io::Error),
}

/// Sends a file. `progress` is told the length of the file at first and the bytes sent, again and again.
///
/// # Errors
/// Says which side could not do what.
pub async fn send(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Transferred, FileError> {
    let failed = |source| FileError::File { path: path.to_owned(), source };
    let mut file = File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    let name = path.file_name().and_then(|name| name.to_str()).filter(|_| metadata.is_file());
    let name = name.ok_or_else(|| FileError::NoFile(path.to_owned()))?;
    let size = metadata.len();
    write_text(&mut stream, name).await?;
    stream.write_u64(size).await?;
    agreed(&mut stream).await?;

    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while sent < size {
        let room = buffer.len().min(usize::try_from(size - sent).unwrap_or(usize::MAX));
        let length = file.read(&mut buffer[..room]).await.map_err(failed)?;
        if length == 0 {
            return Err(FileError::Changed(path.to_owned()));
        }
        let chunk = &buffer[..length];
        hash.update(chunk);
        stream.write_all(chunk).await?;
        sent += length as u64;
        progress(size, sent);
    }
    let hash: [u8; 32] = hash.finalize().into();
    stream.write_all(&hash).await?;
    agreed(&mut stream).await?;
    Ok(Transferred { name: name.to_owned(), size, hash })
}

async fn agreed(stream: &mut (impl AsyncRead + Unpin)) -> Result<(), FileError> {
    match Reply::read(stream).await? {
        Reply::Agreed => Ok(()),
        Reply::Refused(why) => Err(FileError::Refused(shown(&why))),
    }
}

/// Receives a file into `directory`, where none of its name may be. It appears under its name only when it
/// is whole, and is what was sent. `progress` as that of [`send`].
///
/// # Errors
/// Says which side could not do what. The other side is told as well.
pub async fn receive(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    directory: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Transferred, FileError> {
    let name = read_text(&mut stream).await?;
    let size = stream.read_u64().await?;
    let draft = match Draft::begin(directory, &name).await {
        Ok(draft) => draft,
        Err(error) => return refuse(&mut stream, error).await,
    };
    Reply::Agreed.write(&mut stream).await?;
    match fill(&mut stream, draft, size, &mut progress).await {
        Ok(hash) => {
            Reply::Agreed.write(&mut stream).await?;
            // The other side has all; what becomes of the stream now is all the same.
            let _over = stream.shutdown().await;
            Ok(Transferred { name, size, hash })
        }
        Err(error @ FileError::Link(_)) => Err(error),
        Err(error) => refuse(&mut stream, error).await,
    }
}

/// Tells the other side why not, and waits until it has heard.
async fn refuse<T>(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    error: FileError,
) -> Result<T, FileError> {
    Reply::Refused(error.to_string()).write(stream).await?;
    stream.shutdown().await?;
    let mut rest = [0; 4096];
    while stream.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    Err(error)
}

async fn fill(
    stream: &mut (impl AsyncRead + Unpin),
    mut draft: Draft,
    size: u64,
    progress: &mut impl FnMut(u64, u64),
) -> Result<[u8; 32], FileError> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < size {
        let room = buffer.len().min(usize::try_from(size - received).unwrap_or(usize::MAX));
        let length = stream.read(&mut buffer[..room]).await?;
        if length == 0 {
            return Err(FileError::Link(invalid("less than the whole file")));
        }
        let chunk = &buffer[..length];
        hash.update(chunk);
        draft.write(chunk).await?;
        received += length as u64;
        progress(size, received);
    }
    let hash: [u8; 32] = hash.finalize().into();
    let mut sent = [0; 32];
    stream.read_exact(&mut sent).await?;
    if sent != hash {
        return Err(FileError::Corrupt);
    }
    draft.finish().await?;
    Ok(hash)
}

/// A file that is not whole yet. Dropped, it is removed.
struct Draft {
    file: File,
    path: PathBuf,
    destination: PathBuf,
}

impl Draft {
    async fn begin(directory: &Path, name: &str) -> Result<Self, FileError> {
        if !is_plain(name) {
            let text = format!("{:?} is no name of a file here", shown(name));
            return Err(FileError::Unwanted(text));
        }
        let destination = directory.join(name);
        if tokio::fs::symlink_metadata(&destination).await.is_ok() {
            return Err(exists(&destination));
        }
        let path = directory.join(format!("{name}{DRAFT}"));
        let options = OpenOptions::new().write(true).create_new(true).clone();
        let file = options.open(&path).await.map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => FileError::Unwanted(format!(
                "{} is there: somebody sends this file at the moment, or an earlier attempt was killed; \
                 then remove it",
                path.display()
            )),
            _ => FileError::File { path: path.clone(), source },
        })?;
        Ok(Self { file, path, destination })
    }

    async fn write(&mut self, chunk: &[u8]) -> Result<(), FileError> {
        let failed = |source| FileError::File { path: self.path.clone(), source };
        self.file.write_all(chunk).await.map_err(failed)
    }

    async fn finish(mut self) -> Result<(), FileError> {
        let failed = |source| FileError::File { path: self.path.clone(), source };
        self.file.flush().await.map_err(failed)?;
        self.file.sync_all().await.map_err(failed)?;
        // Unlike a renaming, this replaces nothing.
        tokio::fs::hard_link(&self.path, &self.destination).await.map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => exists(&self.destination),
                _ => FileError::File { path: self.destination.clone(), source },
            }
        })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            log::warn!("{} is left: {error}", self.path.display());
        }
    }
}

fn exists(path: &Path) -> FileError {
    FileError::Unwanted(format!("{} is there already: move it away first", path.display()))
}

/// Whether a name stays in its directory, and can be shown.
fn is_plain(name: &str) -> bool {
    !name.is_empty()
        && name.len() + DRAFT.len() <= MAX_NAME
        && name != "."
        && name != ".."
        && !name.contains(|it: char| it == '/' || it.is_control())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A directory of its own, removed in the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(label: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("rawr-file-{label}-{}", std::process::id()));
            fs::create_dir_all(path.join("in")).unwrap();
            Self(path)
        }

        fn received(&self) -> Vec<String> {
            let entries = fs::read_dir(self.0.join("in")).unwrap();
            entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect()
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn transfer(
        from: &Path,
        to: &Path,
    ) -> (Result<Transferred, FileError>, Result<Transferred, FileError>) {
        let (near, far) = tokio::io::duplex(10_000);
        tokio::join!(send(near, from, |_, _| ()), receive(far, to, |_, _| ()))
    }

    #[tokio::test]
    async fn a_file_arrives_whole_and_replaces_none() {
        let directory = Directory::new("whole");
        let (from, to) = (directory.0.join("data.bin"), directory.0.join("in"));
        let content: Vec<u8> = (0..1_000_000_u32).map(|i| (i % 253) as u8).collect();
        fs::write(&from, &content).unwrap();
        let (sent, received) = transfer(&from, &to).await;
        let (sent, received) = (sent.unwrap(), received.unwrap());
        assert_eq!(sent, received);
        assert_eq!((sent.name.as_str(), sent.size), ("data.bin", 1_000_000));
        assert!(fs::read(to.join("data.bin")).unwrap() == content);
        assert_eq!(directory.received(), ["data.bin"], "no draft is left");

        fs::write(&from, b"other").unwrap();
        let (sent, received) = transfer(&from, &to).await;
        assert!(sent.unwrap_err().to_string().contains("there already"));
        assert!(matches!(received, Err(FileError::Unwanted(_))));
        assert!(fs::read(to.join("data.bin")).unwrap() == content);
    }

    #[tokio::test]
    async fn an_empty_file_is_one_as_well_and_a_directory_is_none() {
        let directory = Directory::new("empty");
        let (from, to) = (directory.0.join("none"), directory.0.join("in"));
        fs::write(&from, b"").unwrap();
        let (sent, received) = transfer(&from, &to).await;
        assert_eq!(sent.unwrap(), received.unwrap());
        let (near, _far) = tokio::io::duplex(10);
        assert!(matches!(send(near, &to, |_, _| ()).await, Err(FileError::NoFile(_))));
    }

    /// Sends what nobody should, and returns what becomes of it.
    async fn forged(to: &Path, name: &str, size: u64, body: &[u8]) -> FileError {
        let (mut near, far) = tokio::io::duplex(10_000);
        let forge = async {
            write_text(&mut near, name).await?;
            near.write_u64(size).await?;
            near.write_all(body).await?;
            near.shutdown().await?;
            Reply::read(&mut near).await
        };
        let (_, received) = tokio::join!(forge, receive(far, to, |_, _| ()));
        received.unwrap_err()
    }

    #[tokio::test]
    async fn what_is_no_file_leaves_nothing() {
        let directory = Directory::new("forged");
        let to = directory.0.join("in");
        for name in ["", ".", "..", "../up", "a/b", "a\nb", &"x".repeat(252)] {
            let error = forged(&to, name, 1, b"").await;
            assert!(matches!(error, FileError::Unwanted(_)), "{name}: {error}");
        }
        let short = forged(&to, "short", 10, b"123").await;
        assert!(matches!(short, FileError::Link(_)), "{short}");
        let wrong = forged(&to, "wrong", 3, &[1; 35]).await;
        assert!(matches!(wrong, FileError::Corrupt), "{wrong}");
        assert_eq!(directory.received(), [""; 0]);
    }
}
