//! The commands that people type: one table, from which they are parsed,
//! completed and explained. It asks nobody for anything.

use bytestring::ByteString;
use hark_protocol::UserName;
use hark_protocol::name::BadName;

/// One line that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make an account.
    Create(UserName),
    /// Be a user, without receiving.
    Login(UserName),
    /// Be a user and receive its messages.
    Connect(UserName),
    /// Be nobody again.
    Disconnect,
    /// Set a password: one's own, where no user is named.
    Password(Option<UserName>),
    /// End an account.
    Delete(UserName),
    /// List the users, or those whose names match.
    List(Option<ByteString>),
    /// Leave a message.
    Send(UserName, ByteString),
    /// Ask whether the server is there.
    Ping,
    /// Show the list of commands.
    Help,
    /// Leave.
    Quit,
}

/// What is wrong with a line. It repeats none of it but the command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLine {
    /// The first word is no command.
    #[error("there is no command {0:?}, try help")]
    NoSuchCommand(String),
    /// What follows the command does not fit it.
    #[error("usage: {0}")]
    Usage(&'static str),
    /// The user cannot be one.
    #[error(transparent)]
    User(#[from] BadName),
}

/// What there is to know about a command.
pub struct Entry {
    /// The command itself.
    pub name: &'static str,
    /// The command, and what follows it.
    pub usage: &'static str,
    /// What it does, in a few words.
    pub help: &'static str,
    /// Whether the first word after it is a user that there is.
    pub takes_user: bool,
    /// Makes it of what follows the name; `None` where that does not fit.
    parse: fn(&str) -> Option<Result<Command, BadName>>,
}

/// Every command.
pub static COMMANDS: &[Entry] = &[
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
            Some(user.parse().map(|user| Command::Send(user, text.into())))
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

fn one_user(rest: &str, command: fn(UserName) -> Command) -> Option<Result<Command, BadName>> {
    let is_one_word = !rest.is_empty() && !rest.contains(char::is_whitespace);
    is_one_word.then(|| rest.parse().map(command))
}

fn nothing(rest: &str, command: Command) -> Option<Result<Command, BadName>> {
    rest.is_empty().then_some(Ok(command))
}

/// Parses a line that is not blank.
///
/// # Errors
/// [`BadLine`], which is safe to be shown in a terminal.
pub fn parse(line: &str) -> Result<Command, BadLine> {
    let line = line.trim_start();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line.trim_end(), ""));
    let Some(entry) = COMMANDS.iter().find(|entry| entry.name == name) else {
        return Err(BadLine::NoSuchCommand(name.to_owned()));
    };
    // A text keeps the spaces at its end, and what is no text has none.
    let rest = if entry.name == "send" { rest.trim_start() } else { rest.trim() };
    Ok((entry.parse)(rest).ok_or(BadLine::Usage(entry.usage))??)
}

/// The list of commands, as `help` shows it.
#[must_use]
pub fn help() -> String {
    let width = COMMANDS.iter().map(|entry| entry.usage.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        COMMANDS.iter().map(|entry| format!("  {:width$}  {}", entry.usage, entry.help)).collect();
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
            let error = parse(line).unwrap_err().to_string();
            assert!(error.starts_with("usage: ") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let wrong = |line| parse(line).unwrap_err().to_string();
        assert_eq!(wrong("sned bob x"), "there is no command \"sned\", try help");
        assert_eq!(wrong("send bob"), "usage: send USER TEXT");
        assert_eq!(wrong("create a,b"), "a user name cannot contain ','");
        assert_eq!(wrong("quit now"), "usage: quit");
    }

    #[test]
    fn every_command_is_in_the_help() {
        let help = help();
        assert!(COMMANDS.iter().all(|entry| help.contains(entry.usage) && help.contains(entry.help)));
    }
}
