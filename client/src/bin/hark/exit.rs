//! Exit codes, and error messages on stderr.

use std::io;
use std::process::ExitCode;

use hark_client::RequestError;

use crate::text::escape;

/// The result of a run. The help lists the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Done,
    Unknown,
    Refused,
    Usage,
    Failed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
            Exit::Usage => 2,
            Exit::Unknown => 3,
            Exit::Failed => 4,
        })
    }
}

impl From<&RequestError> for Exit {
    fn from(error: &RequestError) -> Self {
        match error {
            RequestError::Refused(_) => Self::Refused,
            RequestError::Unknown { .. } | RequestError::NotSent(_) => Self::Unknown,
            RequestError::SeenStore(_) => Self::Failed,
        }
    }
}

/// An error that ends a run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The reader of the output has gone.
    #[error("the output is closed")]
    OutputClosed,
    /// A request was not carried out.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// The command line or the configuration file is invalid.
    #[error("{0}")]
    Usage(String),
    /// A failure on this machine.
    #[error("{0}")]
    Local(String),
}

impl Failure {
    pub(crate) fn local(what: impl std::fmt::Display) -> Self {
        Self::Local(what.to_string())
    }

    /// Prints the error and returns the result of the run.
    pub(crate) fn report(&self) -> Exit {
        match self {
            Self::OutputClosed => Exit::Failed,
            Self::Request(error) => {
                eprintln!("hark: {}", escape(&error.to_string()));
                Exit::from(error)
            }
            Self::Usage(what) => {
                eprintln!("hark: {}", escape(what));
                Exit::Usage
            }
            Self::Local(what) => {
                eprintln!("hark: {}", escape(what));
                Exit::Failed
            }
        }
    }
}

impl From<io::Error> for Failure {
    /// Converts an error of writing the output.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Local(format!("cannot write to the output: {error}")),
        }
    }
}
