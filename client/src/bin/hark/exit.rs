//! How hark ends: exit codes, and what is said on stderr before.

use std::io;
use std::process::ExitCode;

use hark_client::RequestError;

use crate::text::escape;

/// How a run has ended. The help lists the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    Done,
    Unknown,
    Refused,
    Failed,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Refused => 1,
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
            RequestError::Taken(_) => Self::Failed,
        }
    }
}

/// What ends a run before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The output has gone: nobody is left to be told.
    #[error("the output is closed")]
    OutputClosed,
    /// A request was not carried out.
    #[error("{0}")]
    Request(#[from] RequestError),
    /// Something is wrong on this side.
    #[error("{0}")]
    Local(String),
}

impl Failure {
    pub(crate) fn local(what: impl std::fmt::Display) -> Self {
        Self::Local(what.to_string())
    }

    /// Says what went wrong, and how the run ends.
    pub(crate) fn report(&self) -> Exit {
        match self {
            Self::OutputClosed => Exit::Failed,
            Self::Request(error) => {
                eprintln!("hark: {}", escape(&error.to_string()));
                Exit::from(error)
            }
            Self::Local(what) => {
                eprintln!("hark: {}", escape(what));
                Exit::Failed
            }
        }
    }
}

impl From<io::Error> for Failure {
    /// An error of the output, which is the only I/O that is done by hand.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Local(format!("cannot write to the output: {error}")),
        }
    }
}
