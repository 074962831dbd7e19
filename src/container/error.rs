//! What goes wrong on the operator's side: printed once, as one line, by the command line.

use std::io;
use std::path::PathBuf;

use crate::errno::describe;

/// The result of everything an operator asks for.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of the runtime (not of the container's program), with what was being done when it happened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A host call failed.
    #[error("{doing}: {}", describe(.source))]
    Io {
        /// What was being done, and to what.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// `config.json` cannot be used.
    #[error("{}: {field}: {problem}", .path.display())]
    Spec {
        /// The file.
        path: PathBuf,
        /// Which part of it, as a path through the document: `process.user.uid`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A command line that cannot be carried out.
    #[error("{0}")]
    Usage(String),
    /// A container of that name is there already.
    #[error("container {0:?} already exists")]
    Exists(String),
    /// There is no such container.
    #[error("container {0:?} does not exist")]
    NotFound(String),
    /// A program that the specification has run failed: see [`hooks`](super::hooks).
    #[error("error running {point} hook #{index} ({}): {problem}", .path.display())]
    Hook {
        /// The list that it is in.
        point: &'static str,
        /// Its place in that list.
        index: usize,
        /// The program.
        path: PathBuf,
        /// What it said, or how it ended.
        problem: String,
    },
    /// systemd did not do what it was asked for.
    #[error("{doing}: {problem}")]
    Systemd {
        /// What was asked of it.
        doing: String,
        /// What it said, or why it said nothing.
        problem: String,
    },
    /// One of the sandbox's processes failed.
    #[error("{process}: {problem}")]
    Process {
        /// `sentry` or `gofer`.
        process: &'static str,
        /// What it said, or how it ended.
        problem: String,
    },
}

impl Error {
    /// An [`Error::Io`] from the calling thread's `errno`.
    pub fn last_os(doing: impl Into<String>) -> Error {
        Error::Io { doing: doing.into(), source: io::Error::last_os_error() }
    }
}

/// Says what was being done when a host call failed.
pub trait Context<T> {
    /// Wraps the error; `doing` is evaluated only then.
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, doing: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| Error::Io { doing: doing().into(), source: error.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_without_numbers() {
        let error = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOENT)).doing(|| "open /x").unwrap_err();
        assert_eq!(error.to_string(), "open /x: No such file or directory");
    }
}
