//! Translation of requests: from a call or a [`ChatRequest`] to a [`Request`],
//! and back. An empty string stands for an absent field.

use hark_protocol::{
    Code, Frame, Incoming, Malformed, Password, Refusal, Request, RequestId, Sequence,
    SessionToken, UserName,
};
use zeroize::Zeroizing;

use crate::rooms;
use crate::v1::chat_request::Command;
use crate::v1::{
    AckRoom, ChatRequest, ConnectRequest, CreateRequest, Credentials, DeleteRequest, Disconnect,
    Hello, Idempotency, List, ListRequest, PasswordRequest, Ping, Send, SendRequest,
};

/// Decodes a request of `BiDiChat`. Every request except `ack` has an id.
#[must_use]
pub fn incoming(request: ChatRequest) -> Incoming<Request> {
    let id = RequestId::new(request.id);
    let is_hello = matches!(request.command, Some(Command::Hello(_)));
    let message = match request.command {
        Some(command @ (Command::Ack(_) | Command::AckRoom(_))) => command.try_into(),
        _ if id.is_none() => Err(without_id()),
        Some(command) => command.try_into(),
        None => Err(Refusal::new(Code::UnknownCommand, "unknown command")),
    };
    Frame::new(
        id,
        message.map_err(|refusal| Malformed { refusal, is_hello }),
    )
}

/// Encodes a request for `BiDiChat`.
#[must_use]
pub fn outgoing(id: Option<RequestId>, request: Request) -> ChatRequest {
    ChatRequest {
        id: id.map_or(0, RequestId::value),
        command: Some(request.into()),
    }
}

/// Parses the session and the id that make a unary send idempotent.
///
/// # Errors
/// A [`Refusal`] for a malformed session and for the id 0.
pub fn send_id(idempotency: &Idempotency) -> Result<(SessionToken, RequestId), Refusal> {
    let session = idempotency.session.parse()?;
    match RequestId::new(idempotency.id) {
        Some(id) => Ok((session, id)),
        None => Err(without_id()),
    }
}

impl TryFrom<Command> for Request {
    type Error = Refusal;

    fn try_from(command: Command) -> Result<Self, Refusal> {
        match command {
            Command::Hello(Hello { version, session }) => Ok(Self::Hello {
                version,
                session: session.parse()?,
            }),
            Command::Create(create) => create.try_into(),
            Command::Login(credentials) => credentials.try_into(),
            Command::Connect(connect) => connect.try_into(),
            Command::Disconnect(Disconnect {}) => Ok(Self::Disconnect),
            Command::Password(password) => password.try_into(),
            Command::Delete(delete) => delete.try_into(),
            Command::List(List { pattern }) => Ok(list(pattern)),
            Command::Send(Send { to, text }) => Ok(Self::Send {
                user: to.parse()?,
                text: text.into(),
            }),
            Command::Ack(sequence) => Ok(Self::Ack {
                log: None,
                sequence: Sequence(sequence),
            }),
            Command::AckRoom(AckRoom { room, sequence }) => Ok(Self::Ack {
                log: Some(room.parse()?),
                sequence: Sequence(sequence),
            }),
            Command::Ping(Ping {}) => Ok(Self::Ping),
            command => rooms::request(command).map(Self::Room),
        }
    }
}

impl From<Request> for Command {
    fn from(request: Request) -> Self {
        match request {
            Request::Hello { version, session } => Self::Hello(Hello {
                version,
                session: session.as_str().to_owned(),
            }),
            Request::Create { user, password } => Self::Create(CreateRequest {
                user: user.to_string(),
                password: exposed(password),
                login: None,
            }),
            Request::Login { user, password } => Self::Login(Credentials {
                user: user.to_string(),
                password: exposed(password),
            }),
            Request::Connect { user, password } => Self::Connect(ConnectRequest {
                user: user.to_string(),
                password: exposed(password),
            }),
            Request::Disconnect => Self::Disconnect(Disconnect {}),
            Request::Password { user, old, new } => Self::Password(PasswordRequest {
                user: user.to_string(),
                old: exposed(old),
                new: exposed(Some(new)),
                login: None,
            }),
            Request::Delete { user, password } => Self::Delete(DeleteRequest {
                user: user.to_string(),
                password: exposed(password),
                login: None,
            }),
            Request::List { pattern } => Self::List(List {
                pattern: pattern.map_or_else(String::new, |pattern| pattern.to_string()),
            }),
            Request::Send { user, text } => Self::Send(Send {
                to: user.to_string(),
                text: text.to_string(),
            }),
            Request::Ack {
                log: None,
                sequence,
            } => Self::Ack(sequence.0),
            Request::Ack {
                log: Some(room),
                sequence,
            } => Self::AckRoom(AckRoom {
                room: room.to_string(),
                sequence: sequence.0,
            }),
            Request::Ping => Self::Ping(Ping {}),
            Request::Room(request) => rooms::command(request),
        }
    }
}

/// Converts a request without `login`; the caller takes the login out first.
impl TryFrom<CreateRequest> for Request {
    type Error = Refusal;

    fn try_from(
        CreateRequest {
            user,
            password,
            login,
        }: CreateRequest,
    ) -> Result<Self, Refusal> {
        let password = secret(password)?;
        without_login(login)?;
        Ok(Self::Create {
            user: user.parse()?,
            password,
        })
    }
}

/// Parses credentials; the password is optional.
///
/// # Errors
/// A [`Refusal`] for a malformed name or password.
pub fn credentials(
    Credentials { user, password }: Credentials,
) -> Result<(UserName, Option<Password>), Refusal> {
    let password = secret(password)?;
    Ok((user.parse()?, password))
}

/// Converts to a `login`.
impl TryFrom<Credentials> for Request {
    type Error = Refusal;

    fn try_from(from: Credentials) -> Result<Self, Refusal> {
        credentials(from).map(|(user, password)| Self::Login { user, password })
    }
}

impl TryFrom<ConnectRequest> for Request {
    type Error = Refusal;

    fn try_from(ConnectRequest { user, password }: ConnectRequest) -> Result<Self, Refusal> {
        let password = secret(password)?;
        Ok(Self::Connect {
            user: user.parse()?,
            password,
        })
    }
}

/// Converts a request without `login`; the caller takes the login out first.
impl TryFrom<PasswordRequest> for Request {
    type Error = Refusal;

    fn try_from(
        PasswordRequest {
            user,
            old,
            new,
            login,
        }: PasswordRequest,
    ) -> Result<Self, Refusal> {
        let (old, new) = (secret(old), Zeroizing::new(new));
        without_login(login)?;
        Ok(Self::Password {
            user: user.parse()?,
            old: old?,
            new: new.parse()?,
        })
    }
}

/// Converts a request without `login`; the caller takes the login out first.
impl TryFrom<DeleteRequest> for Request {
    type Error = Refusal;

    fn try_from(
        DeleteRequest {
            user,
            password,
            login,
        }: DeleteRequest,
    ) -> Result<Self, Refusal> {
        let password = secret(password)?;
        without_login(login)?;
        Ok(Self::Delete {
            user: user.parse()?,
            password,
        })
    }
}

/// Ignores `login`.
impl From<ListRequest> for Request {
    fn from(request: ListRequest) -> Self {
        list(request.pattern)
    }
}

/// Ignores `login` and `idempotency`.
impl TryFrom<SendRequest> for Request {
    type Error = Refusal;

    fn try_from(request: SendRequest) -> Result<Self, Refusal> {
        Ok(Self::Send {
            user: request.to.parse()?,
            text: request.text.into(),
        })
    }
}

fn without_id() -> Refusal {
    Refusal::new(Code::BadRequest, "a request needs an id other than 0")
}

/// Refuses a login in a request of a stream, and wipes it in any case.
pub(crate) fn without_login(login: Option<Credentials>) -> Result<(), Refusal> {
    let Some(Credentials { password, .. }) = login else {
        return Ok(());
    };
    drop(Zeroizing::new(password));
    Err(Refusal::new(
        Code::BadRequest,
        "`login` is not allowed in a stream; send a login request instead",
    ))
}

fn list(pattern: String) -> Request {
    Request::List {
        pattern: (!pattern.is_empty()).then(|| pattern.into()),
    }
}

/// Parses an optional password, and wipes the input in any case.
pub(crate) fn secret(password: String) -> Result<Option<Password>, Refusal> {
    let password = Zeroizing::new(password);
    if password.is_empty() {
        Ok(None)
    } else {
        Ok(Some(password.parse()?))
    }
}

pub(crate) fn exposed(password: Option<Password>) -> String {
    password.map_or_else(String::new, |password| password.expose().to_owned())
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn requests() -> Vec<Request> {
        let user = || "bob".parse().unwrap();
        let password = || "secret".parse().unwrap();
        vec![
            Request::Hello {
                version: 1,
                session: "A-z_09".parse().unwrap(),
            },
            Request::Create {
                user: user(),
                password: None,
            },
            Request::Create {
                user: user(),
                password: Some(password()),
            },
            Request::Login {
                user: user(),
                password: Some(password()),
            },
            Request::Connect {
                user: user(),
                password: None,
            },
            Request::Connect {
                user: user(),
                password: Some(password()),
            },
            Request::Disconnect,
            Request::Password {
                user: user(),
                old: None,
                new: password(),
            },
            Request::Password {
                user: user(),
                old: Some("old".parse().unwrap()),
                new: password(),
            },
            Request::Delete {
                user: user(),
                password: Some(password()),
            },
            Request::List { pattern: None },
            Request::List {
                pattern: Some("^b".into()),
            },
            Request::Send {
                user: user(),
                text: "a, b\n".into(),
            },
            Request::Send {
                user: user(),
                text: "".into(),
            },
            Request::Ping,
        ]
        .into_iter()
        .chain(rooms::tests::requests().into_iter().map(Request::Room))
        .collect()
    }

    #[test]
    fn every_request_survives_a_round_trip() {
        for (id, request) in (1..).zip(requests()) {
            let id = RequestId::new(id);
            let bytes = outgoing(id, request.clone()).encode_to_vec();
            let arrived = incoming(ChatRequest::decode(&*bytes).unwrap());
            assert_eq!(arrived, Frame::new(id, Ok(request)));
        }
        for log in [None, Some("#team".parse().unwrap())] {
            let ack = Request::Ack {
                log,
                sequence: Sequence(u64::MAX),
            };
            assert_eq!(
                incoming(outgoing(None, ack.clone())),
                Frame::new(None, Ok(ack))
            );
        }
    }

    #[track_caller]
    fn check_refused(request: ChatRequest, code: Code) {
        let is_hello = matches!(request.command, Some(Command::Hello(_)));
        let malformed = incoming(request).message.unwrap_err();
        assert_eq!(
            (malformed.refusal.code, malformed.is_hello),
            (code, is_hello)
        );
    }

    #[test]
    fn malformed_request_is_refused() {
        check_refused(
            ChatRequest {
                id: 1,
                command: None,
            },
            Code::UnknownCommand,
        );
        check_refused(outgoing(None, Request::Ping), Code::BadRequest);
        let login = |user: &str, password: &str| ChatRequest {
            id: 1,
            command: Some(Command::Login(Credentials {
                user: user.to_owned(),
                password: password.to_owned(),
            })),
        };
        check_refused(login("", ""), Code::BadName);
        check_refused(login("b,b", ""), Code::BadName);
        check_refused(login("bob", "a,b"), Code::BadPassword);
        let hello = Hello {
            version: 1,
            session: "no session".to_owned(),
        };
        check_refused(
            ChatRequest {
                id: 1,
                command: Some(Command::Hello(hello)),
            },
            Code::BadRequest,
        );
        let hello = Hello {
            version: 1,
            session: "session".to_owned(),
        };
        check_refused(
            ChatRequest {
                id: 0,
                command: Some(Command::Hello(hello)),
            },
            Code::BadRequest,
        );
        let idempotency = Idempotency {
            session: "session".to_owned(),
            id: 0,
        };
        assert_eq!(send_id(&idempotency).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn no_password_is_shown() {
        for request in requests() {
            let shown = format!("{:?}", outgoing(RequestId::new(1), request));
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
}
