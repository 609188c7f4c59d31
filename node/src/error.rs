//! The errors of requests, in Maelstrom's terms.

use hark_protocol::correlation::CallError;
use serde::{Deserialize, Serialize};

/// A code of Maelstrom's `error` bodies
/// (<https://github.com/jepsen-io/maelstrom/blob/main/doc/protocol.md#errors>).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "i64", into = "i64")]
pub enum ErrorCode {
    /// 0: no answer came in time; the request may have happened.
    Timeout,
    /// 1: there is no such node.
    NodeNotFound,
    /// 10: the node does not know the type of the request.
    NotSupported,
    /// 11: the node cannot do it now.
    TemporarilyUnavailable,
    /// 12: the request is malformed.
    MalformedRequest,
    /// 13: the node failed; the request may have happened.
    Crash,
    /// 14: the request was aborted.
    Abort,
    /// 20: the key does not exist.
    KeyDoesNotExist,
    /// 21: the key exists.
    KeyAlreadyExists,
    /// 22: a precondition of the request does not hold.
    PreconditionFailed,
    /// 30: the transaction conflicts with another one.
    TxnConflict,
    /// Any other code. Codes from 1000 are for the errors of programs.
    Other(i64),
}

impl ErrorCode {
    /// Returns whether the request has certainly not happened and never will:
    /// for all codes but 0, 13 and those from 1000.
    #[must_use]
    pub const fn is_definite(self) -> bool {
        !matches!(
            self,
            Self::Timeout | Self::Crash | Self::Other(0 | 13 | 1000..)
        )
    }
}

impl From<i64> for ErrorCode {
    fn from(code: i64) -> Self {
        match code {
            0 => Self::Timeout,
            1 => Self::NodeNotFound,
            10 => Self::NotSupported,
            11 => Self::TemporarilyUnavailable,
            12 => Self::MalformedRequest,
            13 => Self::Crash,
            14 => Self::Abort,
            20 => Self::KeyDoesNotExist,
            21 => Self::KeyAlreadyExists,
            22 => Self::PreconditionFailed,
            30 => Self::TxnConflict,
            other => Self::Other(other),
        }
    }
}

impl From<ErrorCode> for i64 {
    fn from(code: ErrorCode) -> Self {
        match code {
            ErrorCode::Timeout => 0,
            ErrorCode::NodeNotFound => 1,
            ErrorCode::NotSupported => 10,
            ErrorCode::TemporarilyUnavailable => 11,
            ErrorCode::MalformedRequest => 12,
            ErrorCode::Crash => 13,
            ErrorCode::Abort => 14,
            ErrorCode::KeyDoesNotExist => 20,
            ErrorCode::KeyAlreadyExists => 21,
            ErrorCode::PreconditionFailed => 22,
            ErrorCode::TxnConflict => 30,
            ErrorCode::Other(code) => code,
        }
    }
}

/// The failure of a request: the answer of a handler, and the outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text} (error {})", i64::from(*code))]
pub struct Error {
    /// The kind of failure.
    pub code: ErrorCode,
    /// A description for human readers.
    #[serde(default)]
    pub text: String,
}

impl Error {
    /// Returns an error with this code and description.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Returns error 12 for a malformed body.
    #[must_use]
    pub fn malformed(error: &serde_json::Error) -> Self {
        Self::new(ErrorCode::MalformedRequest, error.to_string())
    }
}

/// Makes error 13, after which the request may have happened. For the malformed
/// body of a client, [`Error::malformed`] makes error 12.
impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::new(ErrorCode::Crash, error.to_string())
    }
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        let code = match error {
            CallError::TimedOut => ErrorCode::Timeout,
            CallError::Closed => ErrorCode::Abort,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_definite_but_for_0_13_and_those_from_1000() {
        for code in -1..2000 {
            let expected = !matches!(code, 0 | 13 | 1000..);
            assert_eq!(ErrorCode::from(code).is_definite(), expected, "{code}");
            assert_eq!(
                ErrorCode::Other(code).is_definite(),
                expected,
                "{code} by another name"
            );
        }
    }

    #[test]
    fn a_code_comes_back_as_it_was() {
        for code in -1..2000 {
            assert_eq!(i64::from(ErrorCode::from(code)), code);
        }
    }
}
