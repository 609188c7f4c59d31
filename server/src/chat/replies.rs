//! The replies to requests that the store has decided, and refusals shared by several
//! commands.

use hark_protocol::{Code, OkFields, Refusal, Reply, UserName};

use crate::store::{Created, Outcome};

/// Returns the refusal for an account that does not exist.
pub(super) fn no_such_user(user: &UserName) -> Refusal {
    Refusal::new(Code::NoSuchUser, format!("there is no user {user}"))
}

/// Returns the refusal for an account that exists already.
pub(super) fn exists(user: &UserName) -> Refusal {
    Refusal::new(Code::Exists, format!("{user} already exists"))
}

/// Returns the reply to a `create`.
pub(super) fn created_reply(created: Created, user: &UserName) -> Reply {
    match created {
        Created::Created => Reply::Ok(OkFields::None),
        Created::Exists => Reply::NotOk(exists(user)),
        Created::TooMany => Reply::NotOk(Refusal::new(
            Code::TooMany,
            "the server has reached its account limit",
        )),
    }
}

/// Returns the reply to a `send`. A repeated send gets the same reply.
pub(super) fn sent_reply(outcome: Outcome, to: &UserName, text_bytes_max: usize) -> Reply {
    let code = match outcome {
        Outcome::Stored(sequence) => return Reply::Ok(OkFields::Stored(sequence)),
        Outcome::Refused(code) => code,
    };
    let explanation = match code {
        Code::NoSuchUser => return Reply::NotOk(no_such_user(to)),
        Code::QueueFull => format!("{to} has too many unread messages; try again later").into(),
        Code::Denied => LOGIN_REQUIRED.into(),
        Code::NoSpace => "the server's disk is nearly full; try again later".into(),
        Code::TooLarge => {
            format!("a text may have at most {text_bytes_max} bytes on this server").into()
        }
        Code::BadRequest => {
            "the ids of a session must increase; this id is neither new nor remembered".into()
        }
        _ => "the message was refused".into(),
    };
    Reply::NotOk(Refusal { code, explanation })
}

/// The explanation of `denied` for an anonymous connection under
/// `--require-password`.
pub(super) const LOGIN_REQUIRED: &str = "you must log in to do this";
