//! hark: the chat in a terminal, in a pipe, or as a single command.
//!
//! | module | contents |
//! | --- | --- |
//! | `args`, `settings` | flags and sub-commands; the settings that follow from flags and the configuration file |
//! | `command` | execution of commands that are typed, piped or given as arguments |
//! | `screen` | the chat on a full screen |
//! | `interactive`, `welcome` | the chat in a terminal line by line, and the questions of its first start |
//! | `piped`, `once`, `listen`, `watch`, `logs`, `admin`, `user` | the other modes |
//! | `exec` | a command of the user for each message |
//! | `login` | the stored token |
//! | `past`, `local` | messages of the past; export and unread messages of the local history |
//! | `history` | the local history |
//! | `lines` | the stable output format |
//! | `output` | output outside of the chat |
//! | `text` | escaping of untrusted text |
//! | `setup`, `signals`, `exit` | creation of a client from the settings, signals, exit codes |

#[cfg(feature = "admin")]
mod admin;
mod args;
mod command;
mod exec;
mod exit;
mod history;
mod interactive;
mod lines;
mod listen;
mod local;
mod login;
#[cfg(feature = "grpc")]
mod logs;
mod once;
mod output;
mod past;
mod piped;
mod screen;
mod settings;
mod setup;
mod signals;
mod text;
mod user;
mod watch;
mod welcome;

use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::process::ExitCode;

use bytestring::ByteString;
use clap::{CommandFactory as _, Parser as _};
use hark_protocol::Sequence;
use hark_protocol::limits::FRAME_BYTES_MAX;
use tokio::io::AsyncReadExt as _;

use crate::args::{CommandLine, InRoom, OfMember, RoomTask, Task, TokenTask, WithUser};
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::listen::Printing;
use crate::settings::Settings;

fn main() -> ExitCode {
    let CommandLine { flags, task } = parse();
    let exit = match task {
        Some(Task::User { arguments }) => user::run(arguments),
        task => Settings::resolve(flags).and_then(|settings| serve(&settings, task)),
    };
    exit.unwrap_or_else(|failure| failure.report()).into()
}

/// Parses the command line. Flags behind the text of a `send` are flags.
fn parse() -> CommandLine {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    CommandLine::parse_from(with_flags_first(&arguments).unwrap_or(arguments))
}

/// Moves known flags in front of the text of a `send`, unless they follow `--`. Returns
/// `None` if there are none.
fn with_flags_first(arguments: &[OsString]) -> Option<Vec<OsString>> {
    let parsed = CommandLine::try_parse_from(arguments).ok()?;
    let Some(Task::Send { text, .. }) = parsed.task else {
        return None;
    };
    // clap drops the first `--`.
    let (head, words) = [0, 1]
        .iter()
        .filter_map(|dropped| arguments.len().checked_sub(text.len() + dropped))
        .filter_map(|at| arguments.split_at_checked(at))
        .find(|(_, words)| without_end_of_flags(words, text.len()) == text)?;
    if head.iter().any(|word| word == "--") {
        return None;
    }
    let command = CommandLine::command();
    let (mut flags, mut kept) = (Vec::new(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--" {
            kept.extend(words.cloned());
            break;
        }
        match is_flag(&command, word) {
            Some(takes_next) => {
                flags.push(word.clone());
                if takes_next {
                    flags.extend(words.next().cloned());
                }
            }
            None => kept.push(word.clone()),
        }
    }
    let end = [OsString::from("--")];
    (!flags.is_empty()).then(|| [head, &flags, &end, &kept].concat())
}

/// Returns these words, without the first `--` if there are more than `count`.
fn without_end_of_flags(words: &[OsString], count: usize) -> Vec<String> {
    let end = words.iter().position(|word| word == "--");
    let end = end.filter(|_| words.len() > count);
    let kept = words.iter().enumerate().filter(|(at, _)| Some(*at) != end);
    kept.map(|(_, word)| word.to_string_lossy().into_owned())
        .collect()
}

/// Returns whether the word behind this flag is its value; `None` for a word that is no
/// flag of every command.
fn is_flag(command: &clap::Command, word: &OsStr) -> Option<bool> {
    let (name, value) = match word.to_str()?.strip_prefix("--")?.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word.to_str()?.strip_prefix("--")?, None),
    };
    let mut flags = command.get_arguments().filter(|flag| flag.is_global_set());
    let flag = flags.find(|flag| flag.get_long() == Some(name))?;
    Some(value.is_none() && flag.get_action().takes_values())
}

fn serve(settings: &Settings, task: Option<Task>) -> Result<Exit, Failure> {
    // Two threads, so that a slow output does not delay the keepalive.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::local(format!("cannot start: {error}")))?;
    let exit = runtime.block_on(async {
        match task {
            Some(task) => run(settings, task).await,
            None => chat(settings).await,
        }
    });
    // A thread that still reads stdin must not delay the exit.
    runtime.shutdown_background();
    exit
}

async fn run(settings: &Settings, task: Task) -> Result<Exit, Failure> {
    let command = match task {
        Task::Send { user, text } => Command::Send(user, text_of(text).await?),
        Task::Create { user } => Command::Create(user),
        Task::Delete { yes, user } => {
            if !yes && !setup::confirm(&format!("Delete {user} and all its messages?"))? {
                return Ok(Exit::Refused);
            }
            Command::Delete(user)
        }
        #[cfg(feature = "admin")]
        Task::Admin(arguments) => return admin::run(settings, arguments).await,
        Task::List { pattern } => Command::List(pattern.map(Into::into)),
        Task::Password { user } => Command::Password(Some(user)),
        Task::Ping => Command::Ping,
        Task::Listen {
            json,
            exec,
            count,
            user,
        } => {
            let printing = Printing::of(json, exec);
            return listen::run(settings, user, printing, count).await;
        }
        Task::Watch { exec, user } => return watch::run(settings, user, exec).await,
        Task::History {
            name,
            count,
            before,
            since,
            local,
        } => {
            let wanted = past::Wanted {
                count,
                before: before.map(Sequence),
                since,
                is_local: local,
            };
            return past::run(settings, name, wanted).await;
        }
        Task::Login { user } => return login::login(settings, user).await,
        Task::Logout { user } => return login::logout(settings, user),
        Task::Export { name } => return local::export(settings, name),
        Task::Status { short } => return local::status(settings, short),
        #[cfg(feature = "grpc")]
        Task::Logs(arguments) => return logs::run(settings, arguments).await,
        Task::User { arguments } => return user::run(arguments),
        Task::InRooms(task) => in_rooms(task),
    };
    once::run(settings, command).await
}

/// Joins the words of a text, or reads it from stdin.
async fn text_of(words: Vec<String>) -> Result<ByteString, Failure> {
    if words != ["-"] {
        return Ok(words.join(" ").into());
    }
    let mut text = String::new();
    let mut stdin = tokio::io::stdin().take(FRAME_BYTES_MAX as u64);
    let read = stdin.read_to_string(&mut text).await;
    read.map_err(|error| Failure::local(format!("stdin: {error}")))?;
    Ok(text.strip_suffix('\n').unwrap_or(&text).into())
}

/// Returns the command of a task of rooms, devices or tokens.
fn in_rooms(task: RoomTask) -> Command {
    match task {
        RoomTask::Room { room, mode, keep } => Command::Room(room, mode, keep),
        RoomTask::Join(InRoom { room }) => Command::Join(room),
        RoomTask::Leave(InRoom { room }) => Command::Leave(room),
        RoomTask::Members(InRoom { room }) => Command::Members(room),
        RoomTask::Rooms { pattern } => Command::Rooms(pattern.map(Into::into)),
        RoomTask::Invite(OfMember { room, user }) => Command::Invite(room, user),
        RoomTask::Expel(OfMember { room, user }) => Command::Expel(room, user),
        RoomTask::Own(OfMember { room, user }) => Command::Own(room, user),
        RoomTask::Seen { room, number } => Command::Seen(room, Sequence(number)),
        RoomTask::Talk(WithUser { user }) => Command::Talk(user),
        RoomTask::Block(WithUser { user }) => Command::Block(user),
        RoomTask::Unblock(WithUser { user }) => Command::Unblock(user),
        RoomTask::Devices => Command::Devices,
        RoomTask::Forget { name } => Command::Forget(name),
        RoomTask::Token(TokenTask::Create { name, scope }) => Command::Token(name, scope),
        RoomTask::Token(TokenTask::List) => Command::Tokens,
        RoomTask::Token(TokenTask::Revoke { name }) => Command::Revoke(name),
    }
}

/// Runs the chat on a full screen, line by line if the terminal is not capable of it,
/// or in a pipe if stdin or stdout is not a terminal.
async fn chat(settings: &Settings) -> Result<Exit, Failure> {
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        let settings = welcome::complete(settings.clone()).await?;
        if !settings.plain && screen::is_capable() {
            return screen::run(&settings).await;
        }
        interactive::run(&settings).await
    } else {
        piped::run(settings).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(line: &str, expected: &str) {
        let arguments: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let moved = with_flags_first(&arguments).unwrap_or(arguments);
        let moved: Vec<_> = moved.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(moved.join(" "), expected);
    }

    #[test]
    fn flags_behind_a_text_are_flags() {
        check("hark send bob hi --as ann", "hark send bob --as ann -- hi");
        check("hark send bob a --tls b", "hark send bob --tls -- a b");
        check(
            "hark send bob a --as=ann b",
            "hark send bob --as=ann -- a b",
        );
        check(
            "hark send bob a --tls -- --as x",
            "hark send bob --tls -- a --as x",
        );
        for same in [
            "hark send bob hello --there, you",
            "hark send --as ann bob hi",
            "hark send bob -- hi --as ann",
            "hark send bob --as ann a -- --tls",
            "hark send bob a -- --as ann",
            "hark ping --tls",
        ] {
            check(same, same);
        }
    }
}
