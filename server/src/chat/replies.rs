//! What is answered to a request that the store has decided, and the refusals
//! that several commands share.

use hark_protocol::{Code, OkFields, Refusal, Reply, UserName};

use crate::store::{Created, Outcome};

/// There is no such account.
pub(super) fn no_such_user(user: &UserName) -> Refusal {
    Refusal::new(Code::NoSuchUser, format!("there is no user {user}"))
}

/// There is such an account already.
pub(super) fn exists(user: &UserName) -> Refusal {
    Refusal::new(Code::Exists, format!("there is a user {user} already"))
}

/// The reply to a `create` that the store has decided.
pub(super) fn created_reply(created: Created, user: &UserName) -> Reply {
    match created {
        Created::Created => Reply::Ok(OkFields::none()),
        Created::Exists => Reply::NotOk(exists(user)),
        Created::TooMany => {
            Reply::NotOk(Refusal::new(Code::TooMany, "the server has as many accounts as it may have"))
        }
    }
}

/// The reply to a `send` that the store has decided. A repeat gets the same.
pub(super) fn sent_reply(outcome: Outcome, to: &UserName, text_bytes_max: usize) -> Reply {
    let code = match outcome {
        Outcome::Stored(sequence) => return Reply::Ok(OkFields::stored(sequence)),
        Outcome::Refused(code) => code,
    };
    let explanation = match code {
        Code::NoSuchUser => return Reply::NotOk(no_such_user(to)),
        Code::QueueFull => format!("{to} has too many unread messages; try again later").into(),
        Code::Denied => LOGIN_FIRST.into(),
        Code::NoSpace => "the server's disk is nearly full; try again later".into(),
        Code::TooLarge => format!("a text has at most {text_bytes_max} bytes on this server").into(),
        Code::BadRequest => {
            "the ids of sends count up in a session; this one is neither new nor remembered".into()
        }
        _ => "the message was refused".into(),
    };
    Reply::NotOk(Refusal { code, explanation })
}

/// What a connection that is nobody is told under `--require-password`.
pub(super) const LOGIN_FIRST: &str = "on this server only users do this; login first";
