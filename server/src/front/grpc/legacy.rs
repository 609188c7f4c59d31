//! `helloworld.Chat`: the service of Hark's predecessor, for its unmodified clients.
//! Commands are typed lines and answers are text for people; there are no passwords and
//! no acknowledgements.
//!
//! These clients receive by polling `listen`. Their `connect` ends the delivery to another
//! connection, as any `connect` does, without starting one; `listen` fetches messages only
//! while no connection receives them, since such a connection can acknowledge.

use std::future::poll_fn;
use std::sync::Arc;

use hark_grpc::helloworld::chat_server;
use hark_grpc::helloworld::{Command, Response as Answer, User};
use hark_grpc::status;
use hark_protocol::{OkFields, Refusal, Reply, Request as ChatRequest, RequestId, UserName};
use tonic::{Extensions, Request, Response, Status};

use super::caller;
use crate::chat::{Chat, Fault, Output};
use crate::front::call::{Call, CallError};
use crate::store::Message;

/// The commands.
const HELP: &str = "create USER
connect USER
delete USER
list [PATTERN]
send USER TEXT
ping";

/// The longest text that `listen` fetches, in bytes: gRPC libraries reject a response over
/// 4 MiB, and the message would be lost.
const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024 - 1024;

/// The legacy service.
#[derive(Debug)]
pub(super) struct LegacyService {
    chat: Arc<Chat>,
}

/// The outcome of a command.
enum CommandOutcome {
    Done(OkFields, Vec<UserName>),
    Refused(Refusal),
}

impl LegacyService {
    /// Returns the service of `chat`.
    pub(super) const fn new(chat: Arc<Chat>) -> Self {
        Self { chat }
    }

    /// Refuses every call if the server requires passwords.
    fn check_enabled(&self) -> Result<(), Status> {
        if self.chat.rules().require_password {
            return Err(Status::failed_precondition(
                "this server requires passwords (--require-password), which this service does not support; use hark.v1.Chat",
            ));
        }
        Ok(())
    }

    async fn execute(
        &self,
        extensions: &Extensions,
        request: ChatRequest,
    ) -> Result<Answer, Status> {
        let mut call = Call::new(&self.chat, caller(extensions)?);
        match outcome(&mut call, request.clone()).await? {
            CommandOutcome::Refused(refusal) => Ok(refused(&refusal.explanation)),
            CommandOutcome::Done(fields, names) => Ok(done(&request, &fields, &names)),
        }
    }
}

#[tonic::async_trait]
impl chat_server::Chat for LegacyService {
    async fn try_command(&self, request: Request<Command>) -> Result<Response<Answer>, Status> {
        self.check_enabled()?;
        let (_, extensions, Command { command }) = request.into_parts();
        let answer = match parse(&command) {
            Ok(Some(request)) => self.execute(&extensions, request).await?,
            Ok(None) => text(HELP),
            Err(explanation) => refused(&explanation),
        };
        Ok(Response::new(answer))
    }

    async fn listen(&self, request: Request<User>) -> Result<Response<Answer>, Status> {
        self.check_enabled()?;
        let address = caller(request.extensions())?.address;
        let User { name } = request.into_inner();
        // The name is empty before the client's `connect`.
        if name.is_empty() {
            return Ok(Response::new(Answer::default()));
        }
        let taken = match name.parse::<UserName>() {
            Ok(user) => self.chat.fetch_and_ack(address, user, TEXT_BYTES_MAX).await,
            Err(bad) => Err(Fault::Refused(bad.into())),
        };
        match taken {
            Ok(messages) => Ok(Response::new(text(
                messages
                    .iter()
                    .map(|message| shown(message))
                    .collect::<String>(),
            ))),
            Err(Fault::Refused(refusal)) => Ok(Response::new(refused(&refusal.explanation))),
            Err(Fault::Unavailable(unavailable)) => {
                Err(status::unavailable(&unavailable.to_string()))
            }
        }
    }
}

fn shown(message: &Message) -> String {
    format!("Message: {}\n\n", message.text)
}

/// Runs a command.
async fn outcome(call: &mut Call, request: ChatRequest) -> Result<CommandOutcome, Status> {
    call.connection.handle(RequestId::new(1), Ok(request));
    let mut all = Vec::new();
    loop {
        match poll_fn(|cx| call.poll(cx)).await? {
            Output::Reply(_, Reply::List(names)) => all.extend(names),
            Output::Reply(_, Reply::Ok(fields)) => return Ok(CommandOutcome::Done(fields, all)),
            Output::Reply(_, Reply::NotOk(refusal)) => return Ok(CommandOutcome::Refused(refusal)),
            Output::Reply(_, Reply::Error { explanation, .. }) => {
                return Err(status::unavailable(&explanation));
            }
            // The server is draining.
            _ => return Err(CallError::Ended.into()),
        }
    }
}

/// Returns the answer to a successful command.
fn done(request: &ChatRequest, fields: &OkFields, names: &[UserName]) -> Answer {
    match request {
        ChatRequest::Connect { user, .. } => Answer {
            message: format!("Connection successful for user {user}"),
            name: user.to_string(),
        },
        ChatRequest::Create { user, .. } => text(format!("User {user} created")),
        ChatRequest::Delete { user, .. } if fields.as_deleted() == Some(false) => {
            text(format!("There is no user {user}"))
        }
        ChatRequest::Delete { user, .. } => text(format!("User {user} deleted")),
        ChatRequest::Send { user, .. } => text(format!("Message sent to {user}")),
        ChatRequest::List { .. } => listed(fields, names),
        _ => text("The server is up"),
    }
}

fn listed(fields: &OkFields, names: &[UserName]) -> Answer {
    if names.is_empty() {
        return text("No matching users");
    }
    let (_, truncated) = fields.as_listed().unwrap_or_default();
    let more = truncated.then_some("...");
    let lines: Vec<&str> = names.iter().map(UserName::as_str).chain(more).collect();
    text(lines.join("\n"))
}

fn refused(explanation: &str) -> Answer {
    text(format!("Refused: {explanation}"))
}

fn text(text: impl Into<String>) -> Answer {
    Answer {
        message: text.into(),
        name: String::new(),
    }
}

/// Parses a line; `None` for help.
///
/// # Errors
/// The explanation for the user.
fn parse(line: &str) -> Result<Option<ChatRequest>, String> {
    let line = line.trim_start().trim_end_matches(['\r', '\n']);
    let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let rest = rest.trim_start();
    let usage = |usage: &str| format!("usage: {usage}");
    let request = match (command, rest.trim_end()) {
        ("help", "") => return Ok(None),
        ("ping", "") => ChatRequest::Ping,
        ("list", "") => ChatRequest::List { pattern: None },
        ("list", pattern) => ChatRequest::List {
            pattern: Some(pattern.into()),
        },
        ("create", user) => ChatRequest::Create {
            user: one(user).ok_or_else(|| usage("create USER"))??,
            password: None,
        },
        ("connect", user) => ChatRequest::Connect {
            user: one(user).ok_or_else(|| usage("connect USER"))??,
            password: None,
        },
        ("delete", user) => ChatRequest::Delete {
            user: one(user).ok_or_else(|| usage("delete USER"))??,
            password: None,
        },
        ("send", _) => {
            // Trailing spaces belong to the text.
            let (user, text) = rest
                .split_once(' ')
                .ok_or_else(|| usage("send USER TEXT"))?;
            ChatRequest::Send {
                user: name(user)?,
                text: text.into(),
            }
        }
        ("help" | "ping", _) => return Err(usage(command)),
        ("login" | "disconnect" | "password", _) => {
            return Err(format!("this service has no {command}; use hark.v1.Chat"));
        }
        _ => return Err("unknown command; try help".to_owned()),
    };
    Ok(Some(request))
}

/// Parses the one user of a command; `None` if there is none or more than one.
fn one(rest: &str) -> Option<Result<UserName, String>> {
    (!rest.is_empty() && !rest.contains(char::is_whitespace)).then(|| name(rest))
}

fn name(text: &str) -> Result<UserName, String> {
    text.parse()
        .map_err(|bad: hark_protocol::name::BadName| bad.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserName {
        name.parse().unwrap()
    }

    #[track_caller]
    fn check(line: &str, expected: ChatRequest) {
        assert_eq!(parse(line), Ok(Some(expected)), "{line:?}");
    }

    #[test]
    fn lines_are_parsed_as_in_the_terminal() {
        check(
            "create bob\n",
            ChatRequest::Create {
                user: user("bob"),
                password: None,
            },
        );
        check(
            " connect  bob ",
            ChatRequest::Connect {
                user: user("bob"),
                password: None,
            },
        );
        check(
            "delete bob",
            ChatRequest::Delete {
                user: user("bob"),
                password: None,
            },
        );
        check("list", ChatRequest::List { pattern: None });
        check(
            "list ^b",
            ChatRequest::List {
                pattern: Some("^b".into()),
            },
        );
        check(
            "send bob hello there",
            ChatRequest::Send {
                user: user("bob"),
                text: "hello there".into(),
            },
        );
        check(
            "send  bob  two  spaces \r\n",
            ChatRequest::Send {
                user: user("bob"),
                text: " two  spaces ".into(),
            },
        );
        check("ping", ChatRequest::Ping);
        assert_eq!(parse("help"), Ok(None));
    }

    #[test]
    fn refusal_of_a_line_does_not_repeat_it() {
        let wrong = |line: &str| parse(line).unwrap_err();
        assert_eq!(wrong(""), "unknown command; try help");
        assert_eq!(wrong("sned bob x"), "unknown command; try help");
        assert_eq!(wrong("send bob"), "usage: send USER TEXT");
        assert_eq!(wrong("create bob secret"), "usage: create USER");
        assert_eq!(wrong("create a,b"), "a user name cannot contain ','");
        assert_eq!(wrong("ping now"), "usage: ping");
        assert_eq!(
            wrong("login bob"),
            "this service has no login; use hark.v1.Chat"
        );
    }
}
