//! How a request can end without having been carried out, sorted by who has
//! to act: whoever asked, or nobody.

use std::borrow::Cow;

use hark_protocol::{Refusal, Request};

/// A request that was not, or may not have been, carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server refused it, and nothing was changed: ask for something else.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It may or may not have been carried out: look, before asking again.
    #[error("it is not known whether {what}: {why}")]
    Unknown {
        /// What may have happened, as a clause in the past.
        what: &'static str,
        /// Why nobody knows.
        why: Cow<'static, str>,
    },
    /// It never left this client; asking again is safe.
    #[error("not sent: {0}")]
    NotSent(Cow<'static, str>),
    /// The memory of what was taken cannot be read or written: see to the
    /// files of this machine.
    #[error("{0}")]
    Taken(String),
}

impl RequestError {
    /// The outcome of `request` is unknown.
    pub(crate) fn unknown(request: &Request, why: impl Into<Cow<'static, str>>) -> Self {
        Self::Unknown { what: clause(request), why: why.into() }
    }

    /// The client ended before the request was written.
    pub(crate) const fn closed() -> Self {
        Self::NotSent(Cow::Borrowed("the client is closed"))
    }
}

const fn clause(request: &Request) -> &'static str {
    match request {
        Request::Create { .. } => "the account was created",
        Request::Delete { .. } => "the account was deleted",
        Request::Password { .. } => "the password was changed",
        Request::Send { .. } => "the message was stored",
        Request::Login { .. } | Request::Connect { .. } | Request::Disconnect => "the user was changed",
        Request::Hello { .. } | Request::List { .. } | Request::Ack { .. } | Request::Ping => {
            "it was carried out"
        }
    }
}
