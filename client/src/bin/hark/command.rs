//! The commands that are typed or piped: one table, from which they are
//! parsed, completed and explained; and how each is carried out.

use bytestring::ByteString;
use hark_client::handle::Names;
use hark_client::{Handle, RequestError};
use hark_protocol::{Password, UserName};

/// One line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Create(UserName),
    Login(UserName),
    Connect(UserName),
    Disconnect,
    /// Of oneself, where no user is named.
    Password(Option<UserName>),
    Delete(UserName),
    List(Option<ByteString>),
    Send(UserName, ByteString),
    Ping,
    Help,
    Quit,
}

/// What there is to know about a command.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) help: &'static str,
    /// Whether the first word after it is a user.
    pub(crate) takes_user: bool,
    /// Makes it of what follows the name; `None` where that does not fit.
    parse: fn(&str) -> Option<Result<Command, String>>,
}

/// Every command.
pub(crate) static COMMANDS: &[Entry] = &[
    Entry {
        name: "create",
        usage: "create USER",
        help: "make an account",
        takes_user: false,
        parse: |rest| one_user(rest, Command::Create),
    },
    Entry {
        name: "login",
        usage: "login USER",
        help: "be a user, without receiving",
        takes_user: true,
        parse: |rest| one_user(rest, Command::Login),
    },
    Entry {
        name: "connect",
        usage: "connect USER",
        help: "be a user and receive its messages",
        takes_user: true,
        parse: |rest| one_user(rest, Command::Connect),
    },
    Entry {
        name: "disconnect",
        usage: "disconnect",
        help: "be nobody again",
        takes_user: false,
        parse: |rest| nothing(rest, Command::Disconnect),
    },
    Entry {
        name: "password",
        usage: "password [USER]",
        help: "set a password; it is asked for",
        takes_user: true,
        parse: |rest| match rest {
            "" => Some(Ok(Command::Password(None))),
            user => one_user(user, |user| Command::Password(Some(user))),
        },
    },
    Entry {
        name: "delete",
        usage: "delete USER",
        help: "end an account and drop its messages",
        takes_user: true,
        parse: |rest| one_user(rest, Command::Delete),
    },
    Entry {
        name: "list",
        usage: "list [PATTERN]",
        help: "list the users, or those that match a regular expression",
        takes_user: false,
        parse: |rest| Some(Ok(Command::List((!rest.is_empty()).then(|| rest.into())))),
    },
    Entry {
        name: "send",
        usage: "send USER TEXT",
        help: "leave a message for a user",
        takes_user: true,
        parse: |rest| {
            let (user, text) = rest.split_once(' ')?;
            Some(parse_user(user).map(|user| Command::Send(user, text.into())))
        },
    },
    Entry {
        name: "ping",
        usage: "ping",
        help: "ask whether the server is there",
        takes_user: false,
        parse: |rest| nothing(rest, Command::Ping),
    },
    Entry {
        name: "help",
        usage: "help",
        help: "this list",
        takes_user: false,
        parse: |rest| nothing(rest, Command::Help),
    },
    Entry {
        name: "quit",
        usage: "quit",
        help: "leave (or Ctrl-D)",
        takes_user: false,
        parse: |rest| nothing(rest, Command::Quit),
    },
];

fn parse_user(text: &str) -> Result<UserName, String> {
    text.parse().map_err(|bad: hark_protocol::name::BadName| bad.to_string())
}

fn one_user(rest: &str, command: fn(UserName) -> Command) -> Option<Result<Command, String>> {
    let is_one_word = !rest.is_empty() && !rest.contains(char::is_whitespace);
    is_one_word.then(|| parse_user(rest).map(command))
}

fn nothing(rest: &str, command: Command) -> Option<Result<Command, String>> {
    rest.is_empty().then_some(Ok(command))
}

/// Parses a line that is not blank.
///
/// # Errors
/// What is wrong with it, in a few words that repeat none of it but the
/// command.
pub(crate) fn parse(line: &str) -> Result<Command, String> {
    let line = line.trim_start();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line.trim_end(), ""));
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else {
        return Err(format!("there is no command {:?}, try help", crate::text::escape(name)));
    };
    // A text keeps the spaces at its end, and what is no text has none.
    let rest = if entry.name == "send" { rest.trim_start() } else { rest.trim() };
    (entry.parse)(rest).unwrap_or_else(|| Err(format!("usage: {}", entry.usage)))
}

/// The list of commands, as `help` shows it.
pub(crate) fn help() -> String {
    let width = COMMANDS.iter().map(|entry| entry.usage.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        COMMANDS.iter().map(|entry| format!("  {:width$}  {}", entry.usage, entry.help)).collect();
    lines.join("\n")
}

/// What a command needs beside its words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    /// The password of the account.
    pub(crate) password: Option<Password>,
    /// The one that `password` sets.
    pub(crate) new_password: Option<Password>,
}

/// What came of a command that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    Plainly,
    /// With so many messages waiting.
    Connected(u64),
    /// Whether there was such an account.
    Deleted(bool),
    Listed(Names),
}

/// Asks the server for what a command says, and waits for the answer. `help`
/// and `quit` ask nothing.
pub(crate) async fn carry_out(
    handle: &Handle,
    command: Command,
    secrets: Secrets,
) -> Result<Done, RequestError> {
    let Secrets { password, new_password } = secrets;
    match command {
        Command::Create(user) => handle.create(user, password).await.map(plainly),
        Command::Login(user) => handle.login(user, password).await.map(plainly),
        Command::Connect(user) => handle.connect(user, password).await.map(Done::Connected),
        Command::Disconnect => handle.disconnect().await.map(plainly),
        Command::Delete(user) => handle.delete(user, password).await.map(Done::Deleted),
        Command::List(pattern) => handle.list(pattern).await.map(Done::Listed),
        Command::Send(user, text) => handle.send(user, text).await?.await.map(plainly),
        Command::Ping => handle.ping().await.map(plainly),
        Command::Password(user) => match (user, new_password) {
            (Some(user), Some(new)) => handle.password(user, password, new).await.map(plainly),
            (None, _) => Err(RequestError::NotSent("no user is named".into())),
            (_, None) => Err(RequestError::NotSent("there is no new password".into())),
        },
        Command::Help | Command::Quit => Ok(Done::Plainly),
    }
}

const fn plainly((): ()) -> Done {
    Done::Plainly
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &Command) {
        assert_eq!(parse(line).as_ref(), Ok(expected), "{line:?}");
    }

    fn user(name: &str) -> UserName {
        name.parse().unwrap()
    }

    #[test]
    fn a_text_is_everything_after_the_user() {
        check("send bob hello, again", &Command::Send(user("bob"), "hello, again".into()));
        check("send  bob   two  spaces ", &Command::Send(user("bob"), "  two  spaces ".into()));
        check("send bob ", &Command::Send(user("bob"), "".into()));
    }

    #[test]
    fn a_pattern_may_be_left_out_and_may_have_spaces() {
        check("list", &Command::List(None));
        check(" list  ", &Command::List(None));
        check("list a b", &Command::List(Some("a b".into())));
    }

    #[test]
    fn a_password_is_never_part_of_a_line_and_never_repeated() {
        for line in ["login bob secret", "password bob secret", "create bob secret", "password a b c"] {
            let error = parse(line).unwrap_err();
            assert!(error.starts_with("usage: ") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert_eq!(parse("sned bob x"), Err("there is no command \"sned\", try help".into()));
        assert_eq!(parse("send bob"), Err("usage: send USER TEXT".into()));
        assert_eq!(parse("create a,b"), Err("a user name cannot contain ','".into()));
        assert_eq!(parse("quit now"), Err("usage: quit".into()));
    }

    #[test]
    fn every_command_is_in_the_help() {
        let help = help();
        assert!(COMMANDS.iter().all(|entry| help.contains(entry.usage) && help.contains(entry.help)));
    }
}
