//! The replies to requests that the store has decided, and refusals shared by several
//! commands.

use std::borrow::Cow;

use hark_protocol::{Code, Delivery, OkFields, Refusal, Reply, RoomName, RoomRequest, UserName};

use crate::store::{Created, Message, Outcome};

/// Returns a message as it is delivered. The text is shared.
pub(crate) fn delivery(message: &Message) -> Delivery {
    Delivery {
        sequence: message.position.sequence,
        sender: message.sender.clone(),
        time_ms: message.time_ms,
        text: message.text.clone(),
    }
}

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

/// Returns the reply to a `send`. A repeated send gets the same reply. `lacks` explains the
/// right that the connection lacks.
pub(super) fn sent_reply(
    outcome: Outcome,
    to: &UserName,
    lacks: Option<&'static str>,
    text_bytes_max: usize,
) -> Reply {
    let code = match outcome {
        Outcome::Stored(sequence) => return Reply::Ok(OkFields::Stored(sequence)),
        Outcome::Refused(code) => code,
    };
    let is_room = to.as_str().starts_with(RoomName::MARK);
    let explanation = match code {
        Code::NoSuchUser if is_room => no_such_room(to),
        Code::NoSuchUser => return Reply::NotOk(no_such_user(to)),
        Code::QueueFull if is_room => {
            format!("your messages fill a quarter of {to}; older ones expire first").into()
        }
        Code::QueueFull => format!("{to} has too many unread messages; try again later").into(),
        Code::Denied => match lacks {
            Some(lacks) => lacks.into(),
            None if is_room => {
                format!("you are not a member of {to}, or only its owners send; join it first")
                    .into()
            }
            None => format!("{to} has blocked you").into(),
        },
        Code::NoSpace => NO_SPACE.into(),
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

/// Returns the explanation for a room that is absent or hidden from the user.
fn no_such_room(room: impl std::fmt::Display) -> Cow<'static, str> {
    format!("there is no room {room} that you may see").into()
}

/// Returns the refusal of a request that concerns rooms, devices or tokens. An absent room and a
/// hidden one have the same refusal.
pub(super) fn room_refusal(code: Code, request: &RoomRequest) -> Refusal {
    let explanation = match code {
        Code::NoSuchUser => not_found(request),
        Code::Denied => missing_right(request),
        Code::TooMany => too_many(request).into(),
        Code::Exists => taken(request),
        Code::BadRequest => unfit(request).into(),
        Code::NoSpace => NO_SPACE.into(),
        _ => "the request was refused".into(),
    };
    Refusal { code, explanation }
}

fn not_found(request: &RoomRequest) -> Cow<'static, str> {
    match request {
        RoomRequest::Talk(user)
        | RoomRequest::Block(user)
        | RoomRequest::Unblock(user)
        | RoomRequest::Attach { user, .. } => no_such_user(user).explanation,
        RoomRequest::Invite { room, user } | RoomRequest::Expel { room, user } => {
            format!("there is no user {user}, or no room {room} that you may see").into()
        }
        RoomRequest::Own { room, user } => {
            format!("there is no room {room} that you may see with a member {user}").into()
        }
        RoomRequest::Set { room, .. }
        | RoomRequest::Join(room)
        | RoomRequest::Leave(room)
        | RoomRequest::Members { room, .. }
        | RoomRequest::History { room, .. }
        | RoomRequest::Seen { room, .. } => no_such_room(room),
        RoomRequest::Rooms { .. }
        | RoomRequest::Devices
        | RoomRequest::Forget(_)
        | RoomRequest::Token { .. }
        | RoomRequest::Tokens
        | RoomRequest::Revoke(_) => ACCOUNT_ENDED.into(),
    }
}

fn missing_right(request: &RoomRequest) -> Cow<'static, str> {
    match request {
        RoomRequest::Set { room, .. } => format!(
            "only an owner of {room} may change it, and an invite room needs an account with a password"
        )
        .into(),
        RoomRequest::Join(room) => {
            format!("you were expelled from {room}; an owner may invite you again").into()
        }
        RoomRequest::Invite { room, .. } => format!(
            "only an owner of {room} may invite, and into an invite room only users with a password"
        )
        .into(),
        RoomRequest::Expel { room, .. } => {
            format!("only an owner of {room} may expel, and owners cannot be expelled").into()
        }
        RoomRequest::Own { room, .. } => {
            format!("only an owner of {room} may make others owners").into()
        }
        RoomRequest::Talk(user) => {
            format!("{user} has blocked you, or one of you has no password").into()
        }
        RoomRequest::Members { room, .. }
        | RoomRequest::History { room, .. }
        | RoomRequest::Seen { room, .. } => {
            format!("you are not a member of {room}; join it first").into()
        }
        RoomRequest::Token { .. } => "log in with your password to create a token; an account \
             without a password has none"
            .into(),
        _ => ACCOUNT_ENDED.into(),
    }
}

fn too_many(request: &RoomRequest) -> &'static str {
    match request {
        RoomRequest::Set { .. } => "you are in too many rooms, or own too many; leave one",
        RoomRequest::Join(_) => "the room is full, or you are in too many rooms; leave one",
        RoomRequest::Invite { .. } => "the room has too many invitations; they end after 30 days",
        RoomRequest::Own { .. } => "this user owns too many rooms",
        RoomRequest::Talk(_) => {
            "too many conversations: wait a day before you start another, or leave one"
        }
        RoomRequest::Block(_) => "you block too many users; unblock one",
        RoomRequest::Attach { .. } => "this user has too many devices; forget one",
        RoomRequest::Token { .. } => "you have too many tokens; revoke one",
        _ => "a limit of the server is reached",
    }
}

fn taken(request: &RoomRequest) -> Cow<'static, str> {
    match request {
        RoomRequest::Set { room, .. } => format!("{room} already exists").into(),
        _ => "an older account has the name of this conversation".into(),
    }
}

fn unfit(request: &RoomRequest) -> &'static str {
    match request {
        RoomRequest::Set { .. } => {
            "an invite room stays one, and the time to keep messages is from 1 s to the \
             server's limit"
        }
        RoomRequest::Talk(_) | RoomRequest::Block(_) => "this is your own name",
        _ => "the request does not fit",
    }
}

/// The explanation of a refusal because the account of the connection has ended.
const ACCOUNT_ENDED: &str = "your account has ended; log in again";

/// The explanation of `no-space`.
const NO_SPACE: &str = "the server's disk is nearly full; try again later";

/// The explanation of `denied` for an anonymous connection under
/// `--require-password`.
pub(super) const LOGIN_REQUIRED: &str = "you must log in to do this";
