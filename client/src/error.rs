//! Outcomes of requests other than success, by the action that they call for.

use std::borrow::Cow;

use hark_protocol::{Refusal, Request, RoomRequest};

/// A request that was not, or may not have been, carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server refused the request and changed nothing. Repeating it is
    /// futile.
    #[error("{}", .0.message())]
    Refused(Refusal),
    /// The request may or may not have taken effect. Check before repeating it.
    #[error("it is unknown whether {what}: {why}")]
    Unknown {
        /// The possible effect, as a clause in the past tense.
        what: &'static str,
        /// Why the outcome is unknown.
        why: Cow<'static, str>,
    },
    /// The request never left this client. Repeating it is safe.
    #[error("not sent: {0}")]
    NotSent(Cow<'static, str>),
    /// The record of seen messages cannot be read or written. Check the files
    /// of this machine.
    #[error("{0}")]
    SeenStore(String),
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl RequestError {
    /// Returns the unknown outcome of a request.
    pub(crate) fn unknown(request: &Request, why: impl Into<Cow<'static, str>>) -> Self {
        Self::Unknown {
            what: clause(request),
            why: why.into(),
        }
    }

    /// Returns the outcome of a request that was not written before the client
    /// closed.
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
        Request::Login { .. } | Request::Connect { .. } | Request::Disconnect => {
            "the user was changed"
        }
        Request::Room(RoomRequest::Attach { .. }) => "the user was changed",
        Request::Room(_) => "it was carried out",
        Request::Hello { .. } | Request::List { .. } | Request::Ack { .. } | Request::Ping => {
            "it was carried out"
        }
    }
}
