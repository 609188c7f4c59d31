//! Properties of the parser for arbitrary lines. The fuzz target `command` runs
//! this.

use hark_client::command::{BadLine, COMMANDS, Command, parse};

/// Parses the bytes as a line. A parsed command survives a round trip; an error
/// is short, safe for a terminal, and repeats no possible secret.
pub(crate) fn command(data: &[u8]) {
    let line = String::from_utf8_lossy(data);
    match parse(&line) {
        Ok(command) => {
            let plain = plain(&command);
            assert_eq!(parse(&plain), Ok(command), "{plain:?}");
        }
        Err(bad) => {
            let shown = bad.to_string();
            assert!(!shown.contains(is_unsafe), "{shown:?}");
            match bad {
                BadLine::NoSuchCommand(name) => assert!(line.trim_start().starts_with(&name)),
                BadLine::Usage(usage) => assert!(COMMANDS.iter().any(|entry| entry.usage == usage)),
                BadLine::User(_)
                | BadLine::Room(_)
                | BadLine::Device(_)
                | BadLine::Token(_)
                | BadLine::Scope(_) => {
                    assert!(shown.len() < 80, "{shown:?}");
                }
            }
        }
    }
}

fn plain(command: &Command) -> String {
    match command {
        Command::Create(user) => format!("create {user}"),
        Command::Login(user) => format!("login {user}"),
        Command::Connect(user) => format!("connect {user}"),
        Command::Disconnect => "disconnect".to_owned(),
        Command::Password(None) => "password".to_owned(),
        Command::Password(Some(user)) => format!("password {user}"),
        Command::Delete(user) => format!("delete {user}"),
        Command::List(None) => "list".to_owned(),
        Command::List(Some(pattern)) => format!("list {pattern}"),
        Command::Send(user, text) => format!("send {user} {text}"),
        Command::Room(room, mode, None) => format!("room {room} {}", mode.as_str()),
        Command::Room(room, mode, Some(keep_s)) => {
            format!("room {room} {} {keep_s}", mode.as_str())
        }
        Command::Join(room) => format!("join {room}"),
        Command::Leave(room) => format!("leave {room}"),
        Command::Invite(room, user) => format!("invite {room} {user}"),
        Command::Expel(room, user) => format!("expel {room} {user}"),
        Command::Own(room, user) => format!("own {room} {user}"),
        Command::Talk(user) => format!("talk {user}"),
        Command::Block(user) => format!("block {user}"),
        Command::Unblock(user) => format!("unblock {user}"),
        Command::Token(name, scope) => format!("token {name} {scope}"),
        Command::Tokens => "tokens".to_owned(),
        Command::Revoke(name) => format!("revoke {name}"),
        Command::Rooms(None) => "rooms".to_owned(),
        Command::Rooms(Some(pattern)) => format!("rooms {pattern}"),
        Command::Members(room) => format!("members {room}"),
        Command::Recall(user, count) => format!("history {user} {count}"),
        Command::Undo => "undo".to_owned(),
        Command::Ignore(user) => format!("ignore {user}"),
        Command::Unignore(user) => format!("unignore {user}"),
        Command::History(room, count, before) => format!("history {room} {count} {before}"),
        Command::Seen(room, number) => format!("seen {room} {number}"),
        Command::Devices => "devices".to_owned(),
        Command::Forget(None) => "forget".to_owned(),
        Command::Forget(Some(device)) => format!("forget {device}"),
        Command::Ping => "ping".to_owned(),
        Command::Help => "help".to_owned(),
        Command::Quit => "quit".to_owned(),
    }
}

/// Returns whether a character may control a terminal or mislead a reader.
fn is_unsafe(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{200b}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

#[test]
fn any_line_is_parsed_or_safely_refused() {
    hark_seeds::check("command", command);
}
