//! The command `rawr`.

use std::process::ExitCode;

use clap::Parser;
use rawr_userspace::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("rawr: {}", told(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, without those that its text tells already.
fn told(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open it: {source}")]
    struct Open {
        source: io::Error,
    }

    #[test]
    fn each_cause_is_told_once() {
        let error = anyhow::Error::from(Open { source: io::Error::other("broken") });
        assert_eq!(told(&error), "cannot open it: broken");
        let error = anyhow::Error::from(io::Error::other("broken")).context("cannot open it");
        assert_eq!(told(&error), "cannot open it: broken");
    }
}
