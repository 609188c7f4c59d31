//! The commands of the terminal: one table, from which parsing, completion and
//! help are derived. Has no I/O.

use std::str::FromStr;

use bytestring::ByteString;
use hark_protocol::message::{BadScope, RoomMode, Scope};
use hark_protocol::name::{BadDeviceName, BadName, BadRoomName, BadTokenName};
use hark_protocol::{DeviceName, RoomName, Sequence, TokenName, UserName};

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
    /// Delete an account or a room.
    Delete(UserName),
    /// List the users whose names match a pattern, by default all.
    List(Option<ByteString>),
    /// Send a message to a user or a room.
    Send(UserName, ByteString),
    /// Create a room, or change one: its mode, and the seconds for which it keeps
    /// messages.
    Room(RoomName, RoomMode, Option<u64>),
    /// Become a member of a room.
    Join(RoomName),
    /// Leave a room.
    Leave(RoomName),
    /// Invite a user to a room.
    Invite(RoomName, UserName),
    /// Expel a user from a room.
    Expel(RoomName, UserName),
    /// Make a member an owner of a room.
    Own(RoomName, UserName),
    /// Talk with a user in a room of two.
    Talk(UserName),
    /// Block a user.
    Block(UserName),
    /// End the block of a user.
    Unblock(UserName),
    /// List the rooms whose names match a pattern, by default all.
    Rooms(Option<ByteString>),
    /// List the members of a room.
    Members(RoomName),
    /// Show so many messages of a room, below a number if it is not 0.
    History(RoomName, u32, Sequence),
    /// Show so many messages of the conversation with a user, as far as this device
    /// has seen them.
    Recall(UserName, u32),
    /// Take back the last line that was not sent yet.
    Undo,
    /// Show no more messages of a user on this device.
    Ignore(UserName),
    /// Show the messages of a user again.
    Unignore(UserName),
    /// Move the read mark of a room.
    Seen(RoomName, Sequence),
    /// List the devices of the user.
    Devices,
    /// Forget a device, by default the one without a name.
    Forget(Option<DeviceName>),
    /// Create a token of the user.
    Token(TokenName, Scope),
    /// List the tokens of the user.
    Tokens,
    /// End a token of the user.
    Revoke(TokenName),
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
    /// The room name is malformed.
    #[error(transparent)]
    Room(#[from] BadRoomName),
    /// The device name is malformed.
    #[error(transparent)]
    Device(#[from] BadDeviceName),
    /// The token name is malformed.
    #[error(transparent)]
    Token(#[from] BadTokenName),
    /// The scope is malformed.
    #[error(transparent)]
    Scope(#[from] BadScope),
}

/// The names that complete the first argument of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completes {
    /// None.
    Nothing,
    /// Users.
    Users,
    /// Rooms.
    Rooms,
    /// Users and rooms.
    Recipients,
}

/// The messages of a `history` without a count.
const HISTORY_COUNT: u32 = 20;

/// Description of a command.
pub struct Entry {
    /// Name.
    pub name: &'static str,
    /// Usage: the name and its arguments.
    pub usage: &'static str,
    /// Summary for the help.
    pub help: &'static str,
    /// The names that complete the first argument.
    pub completes: Completes,
    /// Parses the arguments; `None` if they do not match the usage.
    parse: fn(&str) -> Option<Result<Command, BadLine>>,
}

/// Every command.
pub static COMMANDS: &[Entry] = &[
    Entry {
        name: "create",
        usage: "create USER",
        help: "create an account",
        completes: Completes::Nothing,
        parse: |arguments| one(arguments, Command::Create),
    },
    Entry {
        name: "login",
        usage: "login USER",
        help: "log in without receiving messages",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Login),
    },
    Entry {
        name: "connect",
        usage: "connect USER",
        help: "log in and receive messages",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Connect),
    },
    Entry {
        name: "disconnect",
        usage: "disconnect",
        help: "log out",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Disconnect),
    },
    Entry {
        name: "password",
        usage: "password [USER]",
        help: "set a password; prompts for it",
        completes: Completes::Users,
        parse: |arguments| match arguments {
            "" => Some(Ok(Command::Password(None))),
            user => one(user, |user| Command::Password(Some(user))),
        },
    },
    Entry {
        name: "delete",
        usage: "delete USER|#ROOM",
        help: "delete an account and its messages, or a room",
        completes: Completes::Recipients,
        parse: |arguments| one(arguments, Command::Delete),
    },
    Entry {
        name: "list",
        usage: "list [PATTERN]",
        help: "list the users, or those that match a regular expression",
        completes: Completes::Nothing,
        parse: |arguments| {
            Some(Ok(Command::List(
                (!arguments.is_empty()).then(|| arguments.into()),
            )))
        },
    },
    Entry {
        name: "send",
        usage: "send USER|#ROOM TEXT",
        help: "send a message to a user or a room",
        completes: Completes::Recipients,
        parse: |arguments| {
            let (user, text) = arguments.split_once(' ')?;
            Some(parsed(user, |user| Command::Send(user, text.into())))
        },
    },
    Entry {
        name: "join",
        usage: "join #ROOM",
        help: "become a member of a room",
        completes: Completes::Rooms,
        parse: |arguments| one(arguments, Command::Join),
    },
    Entry {
        name: "leave",
        usage: "leave #ROOM",
        help: "leave a room",
        completes: Completes::Rooms,
        parse: |arguments| one(arguments, Command::Leave),
    },
    Entry {
        name: "rooms",
        usage: "rooms [PATTERN]",
        help: "list your rooms with their unread messages, then open ones",
        completes: Completes::Nothing,
        parse: |arguments| {
            Some(Ok(Command::Rooms(
                (!arguments.is_empty()).then(|| arguments.into()),
            )))
        },
    },
    Entry {
        name: "room",
        usage: "room #ROOM [open|news|invite] [KEEP]",
        help: "create or change a room that keeps messages for KEEP, such as 90d or 12h",
        completes: Completes::Rooms,
        parse: room,
    },
    Entry {
        name: "invite",
        usage: "invite #ROOM USER",
        help: "invite a user to your room",
        completes: Completes::Rooms,
        parse: |arguments| room_and_user(arguments, Command::Invite),
    },
    Entry {
        name: "expel",
        usage: "expel #ROOM USER",
        help: "expel a user from your room",
        completes: Completes::Rooms,
        parse: |arguments| room_and_user(arguments, Command::Expel),
    },
    Entry {
        name: "own",
        usage: "own #ROOM USER",
        help: "make a member an owner of your room",
        completes: Completes::Rooms,
        parse: |arguments| room_and_user(arguments, Command::Own),
    },
    Entry {
        name: "members",
        usage: "members #ROOM",
        help: "list the members of a room",
        completes: Completes::Rooms,
        parse: |arguments| one(arguments, Command::Members),
    },
    Entry {
        name: "history",
        usage: "history USER|#ROOM [COUNT] [BEFORE]",
        help: "show the last messages with a user or in a room, or those before a number",
        completes: Completes::Recipients,
        parse: history,
    },
    Entry {
        name: "seen",
        usage: "seen #ROOM NUMBER",
        help: "mark the messages of a room as read up to a number",
        completes: Completes::Rooms,
        parse: |arguments| {
            let [room, number] = words(arguments)?;
            let number = number.parse().ok()?;
            Some(parsed(room, |room| Command::Seen(room, Sequence(number))))
        },
    },
    Entry {
        name: "talk",
        usage: "talk USER",
        help: "talk with a user in a room of two, with history on all devices",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Talk),
    },
    Entry {
        name: "block",
        usage: "block USER",
        help: "receive nothing more from a user",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Block),
    },
    Entry {
        name: "unblock",
        usage: "unblock USER",
        help: "end the block of a user",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Unblock),
    },
    Entry {
        name: "ignore",
        usage: "ignore USER",
        help: "show no more messages of a user on this device, in rooms as well",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Ignore),
    },
    Entry {
        name: "unignore",
        usage: "unignore USER",
        help: "show the messages of a user again",
        completes: Completes::Users,
        parse: |arguments| one(arguments, Command::Unignore),
    },
    Entry {
        name: "undo",
        usage: "undo",
        help: "take back the last line that was not sent yet",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Undo),
    },
    Entry {
        name: "devices",
        usage: "devices",
        help: "list your devices",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Devices),
    },
    Entry {
        name: "forget",
        usage: "forget [DEVICE]",
        help: "forget a device of yours, by default the one without a name",
        completes: Completes::Nothing,
        parse: |arguments| match arguments {
            "" => Some(Ok(Command::Forget(None))),
            device => one(device, |device| Command::Forget(Some(device))),
        },
    },
    Entry {
        name: "token",
        usage: "token NAME [SCOPE]",
        help: "create a token: a password with the rights all, receive, send or send:NAME",
        completes: Completes::Nothing,
        parse: token,
    },
    Entry {
        name: "tokens",
        usage: "tokens",
        help: "list your tokens",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Tokens),
    },
    Entry {
        name: "revoke",
        usage: "revoke TOKEN",
        help: "end a token of yours",
        completes: Completes::Nothing,
        parse: |arguments| one(arguments, Command::Revoke),
    },
    Entry {
        name: "ping",
        usage: "ping",
        help: "check that the server responds",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Ping),
    },
    Entry {
        name: "help",
        usage: "help",
        help: "show this list",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Help),
    },
    Entry {
        name: "quit",
        usage: "quit",
        help: "leave the chat (or Ctrl-D)",
        completes: Completes::Nothing,
        parse: |arguments| no_arguments(arguments, Command::Quit),
    },
];

/// Parses the one argument of a command.
fn one<T>(arguments: &str, command: fn(T) -> Command) -> Option<Result<Command, BadLine>>
where
    T: FromStr,
    BadLine: From<T::Err>,
{
    let [argument] = words(arguments)?;
    Some(parsed(argument, command))
}

fn room_and_user(
    arguments: &str,
    command: fn(RoomName, UserName) -> Command,
) -> Option<Result<Command, BadLine>> {
    let [room, user] = words(arguments)?;
    let both = || Ok(command(room.parse()?, user.parse()?));
    Some(both())
}

fn room(arguments: &str) -> Option<Result<Command, BadLine>> {
    let mut words = arguments.split_whitespace();
    let (name, mode, keep) = (words.next()?, words.next(), words.next());
    if words.next().is_some() {
        return None;
    }
    let mode = mode.map_or(Some(RoomMode::Open), RoomMode::parse)?;
    let keep_s = match keep {
        Some(keep) => Some(seconds(keep)?),
        None => None,
    };
    Some(parsed(name, |name| Command::Room(name, mode, keep_s)))
}

fn token(arguments: &str) -> Option<Result<Command, BadLine>> {
    let mut words = arguments.split_whitespace();
    let (name, scope) = (words.next()?, words.next());
    if words.next().is_some() {
        return None;
    }
    let both = || {
        let scope = scope.map_or(Ok(Scope::All), str::parse)?;
        Ok(Command::Token(name.parse()?, scope))
    };
    Some(both())
}

fn history(arguments: &str) -> Option<Result<Command, BadLine>> {
    let mut words = arguments.split_whitespace();
    let (name, count, before) = (words.next()?, words.next(), words.next());
    if words.next().is_some() {
        return None;
    }
    let count = count.map_or(Ok(HISTORY_COUNT), str::parse).ok()?;
    if !name.starts_with(RoomName::MARK) {
        let recall = parsed(name, |user| Command::Recall(user, count));
        return before.is_none().then_some(recall);
    }
    let before = before.map_or(Ok(0), str::parse).ok()?;
    Some(parsed(name, |name| {
        Command::History(name, count, Sequence(before))
    }))
}

/// Parses a time in seconds, or with the unit `m`, `h` or `d`.
#[must_use]
pub fn seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return text.parse().ok(),
    };
    let (count, _) = text.split_at_checked(text.len() - 1)?;
    count.parse::<u64>().ok()?.checked_mul(unit)
}

/// Parses a name, and returns its command.
fn parsed<T>(name: &str, command: impl FnOnce(T) -> Command) -> Result<Command, BadLine>
where
    T: FromStr,
    BadLine: From<T::Err>,
{
    Ok(command(name.parse()?))
}

/// Splits arguments into exactly so many words.
fn words<const COUNT: usize>(arguments: &str) -> Option<[&str; COUNT]> {
    let words: Vec<_> = arguments.split_whitespace().collect();
    words.try_into().ok()
}

fn no_arguments(arguments: &str, command: Command) -> Option<Result<Command, BadLine>> {
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
    (entry.parse)(arguments).ok_or(BadLine::Usage(entry.usage))?
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
    fn commands_of_rooms_take_names_and_numbers() {
        let team = || "#team".parse::<RoomName>().unwrap();
        check(
            "send #team hello",
            &Command::Send(user("#team"), "hello".into()),
        );
        check("room #team", &Command::Room(team(), RoomMode::Open, None));
        for (keep, seconds) in [("90d", 7_776_000), ("12h", 43_200), ("5m", 300), ("7", 7)] {
            check(
                &format!("room #team news {keep}"),
                &Command::Room(team(), RoomMode::News, Some(seconds)),
            );
        }
        check("invite #team bob", &Command::Invite(team(), user("bob")));
        check("history #team", &Command::History(team(), 20, Sequence(0)));
        check(
            "history #team 5 812",
            &Command::History(team(), 5, Sequence(812)),
        );
        check("history bob", &Command::Recall(user("bob"), 20));
        check("seen #team 7", &Command::Seen(team(), Sequence(7)));
        check("forget", &Command::Forget(None));
        let backup = || "backup".parse().unwrap();
        check("token backup", &Command::Token(backup(), Scope::All));
        let scope = "send:#team".parse().unwrap();
        check("token backup send:#team", &Command::Token(backup(), scope));
        check("revoke backup", &Command::Revoke(backup()));
        for bad in [
            "room #team closed",
            "room #team open 5y",
            "room #team open 9999999999999999999d",
            "invite #team",
            "history #team x",
            "history bob 5 812",
            "seen #team",
            "talk",
        ] {
            assert!(matches!(parse(bad), Err(BadLine::Usage(_))), "{bad}");
        }
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
        assert_eq!(wrong("send bob"), "usage: send USER|#ROOM TEXT");
        assert_eq!(wrong("join team"), "a room name begins with #");
        assert_eq!(
            wrong("forget my/phone"),
            "a device is 1 to 32 characters of A-Z, a-z, 0-9, _ and -"
        );
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
