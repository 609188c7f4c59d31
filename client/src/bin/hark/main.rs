//! hark: the chat in a terminal, in a pipe, or as a single command.
//!
//! | module | contents |
//! | --- | --- |
//! | `args` | flags, environment variables, sub-commands |
//! | `command` | execution of commands that are typed, piped or given as arguments |
//! | `interactive` | the chat in a terminal |
//! | `piped`, `once`, `listen`, `logs`, `admin`, `user` | the other modes |
//! | `history` | the local history |
//! | `lines` | the stable output format |
//! | `output` | output outside of the chat |
//! | `text` | escaping of untrusted text |
//! | `setup`, `signals`, `exit` | creation of a client from the settings, signals, exit codes |

#[cfg(feature = "admin")]
mod admin;
mod args;
mod command;
mod exit;
mod history;
mod interactive;
mod lines;
mod listen;
#[cfg(feature = "grpc")]
mod logs;
mod once;
mod output;
mod piped;
mod setup;
mod signals;
mod text;
mod user;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use hark_protocol::{Sequence, UserName};

use crate::args::{CommandLine, InRoom, OfMember, RoomTask, Settings, Task, WithUser};
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::listen::Printing;

fn main() -> ExitCode {
    let CommandLine { settings, task } = CommandLine::parse();
    let exit = match task {
        Some(Task::User { arguments }) => user::run(arguments),
        task => serve(&settings, task),
    };
    exit.unwrap_or_else(|failure| failure.report()).into()
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
    let (as_user, command) = match task {
        Task::Send {
            as_user,
            user,
            text,
        } => (as_user, Command::Send(user, text.join(" ").into())),
        Task::Create { user } => (None, Command::Create(user)),
        Task::Delete { as_user, user } => (as_user, Command::Delete(user)),
        Task::List { as_user, pattern } => (as_user, Command::List(pattern.map(Into::into))),
        Task::Password { user } => (None, Command::Password(Some(user))),
        Task::Ping => (None, Command::Ping),
        Task::Listen { json, count, user } => {
            return listen::run(
                settings,
                user,
                Printing {
                    is_json: json,
                    count,
                },
            )
            .await;
        }
        #[cfg(feature = "admin")]
        Task::Admin(arguments) => return admin::run(settings, arguments).await,
        #[cfg(feature = "grpc")]
        Task::Logs(arguments) => return logs::run(settings, arguments).await,
        Task::User { arguments } => return user::run(arguments),
        Task::InRooms(task) => in_rooms(task),
    };
    once::run(settings, as_user, command).await
}

/// Returns the user and the command of a task of rooms or devices.
fn in_rooms(task: RoomTask) -> (Option<UserName>, Command) {
    let (login, command) = match task {
        RoomTask::Room {
            login,
            room,
            mode,
            keep,
        } => (login, Command::Room(room, mode, keep)),
        RoomTask::Join(InRoom { login, room }) => (login, Command::Join(room)),
        RoomTask::Leave(InRoom { login, room }) => (login, Command::Leave(room)),
        RoomTask::Members(InRoom { login, room }) => (login, Command::Members(room)),
        RoomTask::Rooms { login, pattern } => (login, Command::Rooms(pattern.map(Into::into))),
        RoomTask::Invite(OfMember { login, room, user }) => (login, Command::Invite(room, user)),
        RoomTask::Expel(OfMember { login, room, user }) => (login, Command::Expel(room, user)),
        RoomTask::Own(OfMember { login, room, user }) => (login, Command::Own(room, user)),
        RoomTask::History {
            login,
            room,
            count,
            before,
        } => (login, Command::History(room, count, Sequence(before))),
        RoomTask::Seen {
            login,
            room,
            number,
        } => (login, Command::Seen(room, Sequence(number))),
        RoomTask::Talk(WithUser { login, user }) => (login, Command::Talk(user)),
        RoomTask::Block(WithUser { login, user }) => (login, Command::Block(user)),
        RoomTask::Unblock(WithUser { login, user }) => (login, Command::Unblock(user)),
        RoomTask::Devices { login } => (login, Command::Devices),
        RoomTask::Forget { login, name } => (login, Command::Forget(name)),
    };
    (login.as_user, command)
}

/// Runs the chat in a terminal, or in a pipe if stdin or stdout is not a
/// terminal.
async fn chat(settings: &Settings) -> Result<Exit, Failure> {
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        interactive::run(settings).await
    } else {
        piped::run(settings).await
    }
}
