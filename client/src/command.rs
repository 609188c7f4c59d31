//! The commands of the terminal: one table, from which parsing, completion and
//! help are derived. Has no I/O.

use bytestring::ByteString;
use hark_protocol::UserName;
use hark_protocol::name::BadName;

/// A parsed command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Create an account.
    Create(UserName),
    /// Log in without receiving.
    Login(UserName),
    /// Log in and receive messages.
    Connect(UserName),
    /// Log out.
    Disconnect,
    /// Set the password of a user, by default the current one.
    Password(Option<UserName>),
    /// Delete an account.
    Delete(UserName),
    /// List the users whose names match a pattern, by default all.
    List(Option<ByteString>),
    /// Send a message.
    Send(UserName, ByteString),
    /// Check that the server responds.
    Ping,
    /// Show the list of commands.
    Help,
    /// Leave the chat.
    Quit,
}

/// An invalid command line. The error contains no part of the line but the
/// command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// The command is unknown.
    #[error("unknown command {0:?}; try help")]
    NoSuchCommand(String),
    /// The arguments do not match the usage.
    #[error("usage: {0}")]
    Usage(&'static str),
    /// The user name is malformed.
    #[error(transparent)]
    User(#[from] BadName),
}

/// Description of a command.
pub struct Entry {
    /// Name.
    pub name: &'static str,
    /// Usage: the name and its arguments.
    pub usage: &'static str,
    /// Summary for the help.
    pub help: &'static str,
    /// Whether the first argument is an existing user, for completion.
    pub takes_user: bool,
    /// Parses the arguments; `None` if they do not match the usage.
    parse: fn(&str) -> Option<Result<Command, BadName>>,
}

/// Every command.
pub static COMMANDS: &[Entry] = &[
    Entry {
        name: "create",
        usage: "create USER",
        help: "create an account",
        takes_user: false,
        parse: |arguments| one_user(arguments, Command::Create),
    },
    Entry {
        name: "login",
        usage: "login USER",
        help: "log in without receiving messages",
        takes_user: true,
        parse: |arguments| one_user(arguments, Command::Login),
    },
    Entry {
        name: "connect",
        usage: "connect USER",
        help: "log in and receive messages",
        takes_user: true,
        parse: |arguments| one_user(arguments, Command::Connect),
    },
    Entry {
        name: "disconnect",
        usage: "disconnect",
        help: "log out",
        takes_user: false,
        parse: |arguments| no_arguments(arguments, Command::Disconnect),
    },
    Entry {
        name: "password",
        usage: "password [USER]",
        help: "set a password; prompts for it",
        takes_user: true,
        parse: |arguments| match arguments {
            "" => Some(Ok(Command::Password(None))),
            user => one_user(user, |user| Command::Password(Some(user))),
        },
    },
    Entry {
        name: "delete",
        usage: "delete USER",
        help: "delete an account and its messages",
        takes_user: true,
        parse: |arguments| one_user(arguments, Command::Delete),
    },
    Entry {
        name: "list",
        usage: "list [PATTERN]",
        help: "list the users, or those that match a regular expression",
        takes_user: false,
        parse: |arguments| {
            Some(Ok(Command::List(
                (!arguments.is_empty()).then(|| arguments.into()),
            )))
        },
    },
    Entry {
        name: "send",
        usage: "send USER TEXT",
        help: "send a message to a user",
        takes_user: true,
        parse: |arguments| {
            let (user, text) = arguments.split_once(' ')?;
            Some(user.parse().map(|user| Command::Send(user, text.into())))
        },
    },
    Entry {
        name: "ping",
        usage: "ping",
        help: "check that the server responds",
        takes_user: false,
        parse: |arguments| no_arguments(arguments, Command::Ping),
    },
    Entry {
        name: "help",
        usage: "help",
        help: "show this list",
        takes_user: false,
        parse: |arguments| no_arguments(arguments, Command::Help),
    },
    Entry {
        name: "quit",
        usage: "quit",
        help: "leave the chat (or Ctrl-D)",
        takes_user: false,
        parse: |arguments| no_arguments(arguments, Command::Quit),
    },
];

fn one_user(arguments: &str, command: fn(UserName) -> Command) -> Option<Result<Command, BadName>> {
    let is_one_word = !arguments.is_empty() && !arguments.contains(char::is_whitespace);
    is_one_word.then(|| arguments.parse().map(command))
}

fn no_arguments(arguments: &str, command: Command) -> Option<Result<Command, BadName>> {
    arguments.is_empty().then_some(Ok(command))
}

/// Parses a line that is not blank.
///
/// # Errors
/// [`BadLine`], which is safe to print to a terminal.
pub fn parse(line: &str) -> Result<Command, BadLine> {
    let line = line.trim_start();
    let (name, arguments) = line
        .split_once(char::is_whitespace)
        .unwrap_or((line.trim_end(), ""));
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else {
        return Err(BadLine::NoSuchCommand(name.to_owned()));
    };
    // Only a text keeps its trailing spaces.
    let arguments = if entry.name == "send" {
        arguments.trim_start()
    } else {
        arguments.trim()
    };
    Ok((entry.parse)(arguments).ok_or(BadLine::Usage(entry.usage))??)
}

/// Returns the list of commands, as `help` prints it.
#[must_use]
pub fn help() -> String {
    let width = COMMANDS
        .iter()
        .map(|entry| entry.usage.len())
        .max()
        .unwrap_or(0);
    let lines: Vec<String> = COMMANDS
        .iter()
        .map(|entry| format!("  {:width$}  {}", entry.usage, entry.help))
        .collect();
    lines.join("\n")
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
    fn text_is_everything_after_the_user() {
        check(
            "send bob hello, again",
            &Command::Send(user("bob"), "hello, again".into()),
        );
        check(
            "send  bob   two  spaces ",
            &Command::Send(user("bob"), "  two  spaces ".into()),
        );
        check("send bob ", &Command::Send(user("bob"), "".into()));
    }

    #[test]
    fn pattern_is_optional_and_may_have_spaces() {
        check("list", &Command::List(None));
        check(" list  ", &Command::List(None));
        check("list a b", &Command::List(Some("a b".into())));
    }

    #[test]
    fn password_in_a_line_is_refused_and_hidden() {
        for line in [
            "login bob secret",
            "password bob secret",
            "create bob secret",
            "password a b c",
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(
                error.starts_with("usage: ") && !error.contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn invalid_lines_are_explained() {
        let wrong = |line| parse(line).unwrap_err().to_string();
        assert_eq!(wrong("sned bob x"), "unknown command \"sned\"; try help");
        assert_eq!(wrong("send bob"), "usage: send USER TEXT");
        assert_eq!(wrong("create a,b"), "a user name cannot contain ','");
        assert_eq!(wrong("quit now"), "usage: quit");
    }

    #[test]
    fn every_command_is_in_the_help() {
        let help = help();
        assert!(
            COMMANDS
                .iter()
                .all(|entry| help.contains(entry.usage) && help.contains(entry.help))
        );
    }
}
