//! Requests: from what a call or a [`ChatRequest`] carries to a [`Request`],
//! and back for the client. What is empty stands for what is not there.

use hark_protocol::{
    Code, Frame, Incoming, Malformed, Password, Refusal, Request, RequestId, Sequence, SessionToken, UserName,
};
use zeroize::Zeroizing;

use crate::v1::chat_request::Command;
use crate::v1::{
    ChatRequest, ConnectRequest, CreateRequest, Credentials, DeleteRequest, Disconnect, Hello, Idempotency,
    List, ListRequest, PasswordRequest, Ping, Send, SendRequest,
};

/// What a client asks for over `BiDiChat`. Everything but an `ack` has an id.
#[must_use]
pub fn incoming(request: ChatRequest) -> Incoming<Request> {
    let id = RequestId::new(request.id);
    let is_hello = matches!(request.command, Some(Command::Hello(_)));
    let message = match request.command {
        Some(Command::Ack(sequence)) => Ok(Request::Ack { sequence: Sequence(sequence) }),
        _ if id.is_none() => Err(without_id()),
        Some(command) => command.try_into(),
        None => Err(Refusal::new(Code::UnknownCommand, "there is no command that this server knows")),
    };
    Frame::new(id, message.map_err(|refusal| Malformed { refusal, is_hello }))
}

/// What a client asks for over `BiDiChat`, for it to say.
#[must_use]
pub fn outgoing(id: Option<RequestId>, request: Request) -> ChatRequest {
    ChatRequest { id: id.map_or(0, RequestId::value), command: Some(request.into()) }
}

/// What makes a unary send known as the repeat of another.
///
/// # Errors
/// A [`Refusal`] for what is no session, and for the id 0.
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
            Command::Hello(Hello { version, session }) => {
                Ok(Self::Hello { version, session: session.parse()? })
            }
            Command::Create(create) => create.try_into(),
            Command::Login(credentials) => credentials.try_into(),
            Command::Connect(connect) => connect.try_into(),
            Command::Disconnect(Disconnect {}) => Ok(Self::Disconnect),
            Command::Password(password) => password.try_into(),
            Command::Delete(delete) => delete.try_into(),
            Command::List(List { pattern }) => Ok(list(pattern)),
            Command::Send(Send { to, text }) => Ok(Self::Send { user: to.parse()?, text: text.into() }),
            Command::Ack(sequence) => Ok(Self::Ack { sequence: Sequence(sequence) }),
            Command::Ping(Ping {}) => Ok(Self::Ping),
        }
    }
}

impl From<Request> for Command {
    fn from(request: Request) -> Self {
        match request {
            Request::Hello { version, session } => {
                Self::Hello(Hello { version, session: session.as_str().to_owned() })
            }
            Request::Create { user, password } => Self::Create(CreateRequest {
                user: user.to_string(),
                password: exposed(password),
                login: None,
            }),
            Request::Login { user, password } => {
                Self::Login(Credentials { user: user.to_string(), password: exposed(password) })
            }
            Request::Connect { user, password } => {
                Self::Connect(ConnectRequest { user: user.to_string(), password: exposed(password) })
            }
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
            Request::List { pattern } => {
                Self::List(List { pattern: pattern.map_or_else(String::new, |pattern| pattern.to_string()) })
            }
            Request::Send { user, text } => Self::Send(Send { to: user.to_string(), text: text.to_string() }),
            Request::Ack { sequence } => Self::Ack(sequence.0),
            Request::Ping => Self::Ping(Ping {}),
        }
    }
}

/// One that carries no login of its own: who asks is taken out before.
impl TryFrom<CreateRequest> for Request {
    type Error = Refusal;

    fn try_from(CreateRequest { user, password, login }: CreateRequest) -> Result<Self, Refusal> {
        let password = secret(password)?;
        without_login(login)?;
        Ok(Self::Create { user: user.parse()?, password })
    }
}

/// Who calls, and the password if there is one.
///
/// # Errors
/// A [`Refusal`] for what is no name or no password.
pub fn credentials(
    Credentials { user, password }: Credentials,
) -> Result<(UserName, Option<Password>), Refusal> {
    let password = secret(password)?;
    Ok((user.parse()?, password))
}

/// A `login`.
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
        Ok(Self::Connect { user: user.parse()?, password })
    }
}

/// One that carries no login of its own: who asks is taken out before.
impl TryFrom<PasswordRequest> for Request {
    type Error = Refusal;

    fn try_from(PasswordRequest { user, old, new, login }: PasswordRequest) -> Result<Self, Refusal> {
        let (old, new) = (secret(old), Zeroizing::new(new));
        without_login(login)?;
        Ok(Self::Password { user: user.parse()?, old: old?, new: new.parse()? })
    }
}

/// One that carries no login of its own: who asks is taken out before.
impl TryFrom<DeleteRequest> for Request {
    type Error = Refusal;

    fn try_from(DeleteRequest { user, password, login }: DeleteRequest) -> Result<Self, Refusal> {
        let password = secret(password)?;
        without_login(login)?;
        Ok(Self::Delete { user: user.parse()?, password })
    }
}

/// Without who asks.
impl From<ListRequest> for Request {
    fn from(request: ListRequest) -> Self {
        list(request.pattern)
    }
}

/// Without who sends, and without what makes a repeat known as one.
impl TryFrom<SendRequest> for Request {
    type Error = Refusal;

    fn try_from(request: SendRequest) -> Result<Self, Refusal> {
        Ok(Self::Send { user: request.to.parse()?, text: request.text.into() })
    }
}

fn without_id() -> Refusal {
    Refusal::new(Code::BadRequest, "a request needs an id other than 0")
}

/// Refuses a login where one is somebody already. It is wiped in any case.
fn without_login(login: Option<Credentials>) -> Result<(), Refusal> {
    let Some(Credentials { password, .. }) = login else { return Ok(()) };
    drop(Zeroizing::new(password));
    Err(Refusal::new(Code::BadRequest, "a stream logs in by a request of its own, not by this one"))
}

fn list(pattern: String) -> Request {
    Request::List { pattern: (!pattern.is_empty()).then(|| pattern.into()) }
}

/// A password, if there is one. What came in is wiped in any case.
fn secret(password: String) -> Result<Option<Password>, Refusal> {
    let password = Zeroizing::new(password);
    if password.is_empty() { Ok(None) } else { Ok(Some(password.parse()?)) }
}

fn exposed(password: Option<Password>) -> String {
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
            Request::Hello { version: 1, session: "A-z_09".parse().unwrap() },
            Request::Create { user: user(), password: None },
            Request::Create { user: user(), password: Some(password()) },
            Request::Login { user: user(), password: Some(password()) },
            Request::Connect { user: user(), password: None },
            Request::Connect { user: user(), password: Some(password()) },
            Request::Disconnect,
            Request::Password { user: user(), old: None, new: password() },
            Request::Password { user: user(), old: Some("old".parse().unwrap()), new: password() },
            Request::Delete { user: user(), password: Some(password()) },
            Request::List { pattern: None },
            Request::List { pattern: Some("^b".into()) },
            Request::Send { user: user(), text: "a, b\n".into() },
            Request::Send { user: user(), text: "".into() },
            Request::Ping,
        ]
    }

    #[test]
    fn every_request_arrives_as_it_was_said() {
        for (id, request) in (1..).zip(requests()) {
            let id = RequestId::new(id);
            let bytes = outgoing(id, request.clone()).encode_to_vec();
            let arrived = incoming(ChatRequest::decode(&*bytes).unwrap());
            assert_eq!(arrived, Frame::new(id, Ok(request)));
        }
        let ack = Request::Ack { sequence: Sequence(u64::MAX) };
        assert_eq!(incoming(outgoing(None, ack.clone())), Frame::new(None, Ok(ack)));
    }

    #[track_caller]
    fn check_refused(request: ChatRequest, code: Code) {
        let is_hello = matches!(request.command, Some(Command::Hello(_)));
        let malformed = incoming(request).message.unwrap_err();
        assert_eq!((malformed.refusal.code, malformed.is_hello), (code, is_hello));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        check_refused(ChatRequest { id: 1, command: None }, Code::UnknownCommand);
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
        let hello = Hello { version: 1, session: "no session".to_owned() };
        check_refused(ChatRequest { id: 1, command: Some(Command::Hello(hello)) }, Code::BadRequest);
        let hello = Hello { version: 1, session: "session".to_owned() };
        check_refused(ChatRequest { id: 0, command: Some(Command::Hello(hello)) }, Code::BadRequest);
        let idempotency = Idempotency { session: "session".to_owned(), id: 0 };
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
