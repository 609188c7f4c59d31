//! A call for each command, and its output.

use std::io::{self, IsTerminal as _};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use hark_grpc::v1;
use hark_grpc::v1::get_top_request::By;
use hark_grpc::v1::kick_request::Target;
use hark_protocol::{Refusal, RoomName};
use serde_json::json;

use crate::arguments::{BanTime, Command, LimitArgs, Ranking};
use crate::connection::Connection;
use crate::{Console, Error, rows};

/// The interval of `stats --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Moves to the top left and clears the screen.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// Makes a call with the credentials of the connection, and returns its reply.
macro_rules! call {
    ($connection:expr, $method:ident, $message:expr) => {{
        let request = $connection.request($message)?;
        $connection.client.$method(request).await?.into_inner()
    }};
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Local(refusal.message().into_owned())
    }
}

/// Executes a command, and prints its result.
///
/// # Errors
/// See [`Error`].
pub async fn execute(
    connection: &mut Connection,
    command: Command,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    match command {
        Command::Stats { watch } => stats(connection, watch, console).await,
        Command::Connections { after, limit } => {
            connections(connection, after, limit, console).await
        }
        Command::Users { after, limit } => users(connection, after, limit, console).await,
        Command::Rooms { after, limit } => rooms(connection, after, limit, console).await,
        Command::Show { name } => show(connection, name, console).await,
        Command::Top { by, limit, seconds } => top(connection, by, (limit, seconds), console).await,
        Command::Throttle { name, limits } => throttle(connection, name, limits, console).await,
        Command::Purge { name, up_to } => purge(connection, name, up_to, console).await,
        Command::Backup { to } => backup(connection, &to, console).await,
        Command::Compact => compact(connection, console).await,
        Command::Check => check(connection, console).await,
        Command::Bans => {
            let bans = call!(connection, list_bans, v1::ListBansRequest {}).bans;
            Ok(rows::bans(bans).print(console)?)
        }
        Command::Reload => reload(connection, console).await,
        change => execute_change(connection, change, console).await,
    }
}

/// Executes a command that has nothing to print but its success.
async fn execute_change(
    connection: &mut Connection,
    command: Command,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let text = match command {
        Command::Kick { target, user } => {
            let target = Some(kick_target(target, user));
            let closed = call!(connection, kick, v1::KickRequest { target }).closed;
            return closed_connections(closed, console);
        }
        Command::Suspend { name } => set_suspended(connection, name, true).await?,
        Command::Resume { name } => set_suspended(connection, name, false).await?,
        Command::Ban { network, time } => {
            let seconds = time.map_or(0, |BanTime(time)| time.as_secs());
            let ban = v1::BanRequest { network, seconds };
            let v1::BanReply { network, closed } = call!(connection, ban, ban);
            format!("{network} is banned, {closed} connections closed")
        }
        Command::Unban { network } => {
            let unban = v1::UnbanRequest {
                network: network.clone(),
            };
            if !call!(connection, unban, unban).has_changed {
                let why = format!("{network} is not banned; the command bans prints the bans");
                return Err(Error::Failed(why));
            }
            format!("{network} is no longer banned")
        }
        Command::SetPassword { name } => {
            let password = (console.new_password)().map_err(Error::Local)?;
            let set = v1::SetUserPasswordRequest {
                user: name.clone(),
                password: password.expose().to_owned(),
            };
            call!(connection, set_user_password, set);
            format!("set the password of {name}")
        }
        Command::Log { level } => {
            let set = v1::SetLogLevelRequest {
                level: level.clone(),
            };
            call!(connection, set_log_level, set);
            format!("the level of the log is {level}")
        }
        Command::Drain => {
            call!(connection, drain, v1::DrainRequest {});
            "the server is shutting down".to_owned()
        }
        // `execute` has taken the others.
        _ => return Ok(()),
    };
    done(&text, console)
}

/// Prints the result of a change.
fn done(text: &str, console: &mut Console<'_>) -> Result<(), Error> {
    if console.is_json {
        console.print(json!({ "done": text }))?;
    } else {
        console.print(text)?;
    }
    Ok(())
}

fn closed_connections(closed: u64, console: &mut Console<'_>) -> Result<(), Error> {
    if console.is_json {
        console.print(json!({ "closed": closed }))?;
    } else {
        console.print(format_args!("{closed} connections closed"))?;
    }
    Ok(())
}

async fn stats(
    connection: &mut Connection,
    watch: bool,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let is_screen = watch && !console.is_json && console.is_terminal;
    loop {
        let stats = call!(connection, get_stats, v1::GetStatsRequest {});
        if is_screen {
            console.print(CLEAR)?;
        }
        rows::stats(stats).print_fields(console)?;
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

async fn connections(
    connection: &mut Connection,
    after: u64,
    limit: u32,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let list = v1::ListConnectionsRequest { after, limit };
    let v1::ListConnectionsReply {
        connections,
        has_more,
    } = call!(connection, list_connections, list);
    let last = connections.last().map(|last| last.id.to_string());
    rows::connections(connections).print(console)?;
    hint_at_more(last.filter(|_| has_more));
    Ok(())
}

async fn users(
    connection: &mut Connection,
    after: String,
    limit: u32,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let list = v1::ListUsersRequest { after, limit };
    let v1::ListUsersReply { users, has_more } = call!(connection, list_users, list);
    let last = users.last().map(|last| last.name.clone());
    rows::users(users).print(console)?;
    hint_at_more(last.filter(|_| has_more));
    Ok(())
}

async fn rooms(
    connection: &mut Connection,
    after: u64,
    limit: u32,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let list = v1::ListRoomsRequest { after, limit };
    let v1::ListRoomsReply { rooms, next } = call!(connection, list_rooms, list);
    rows::rooms(rooms).print(console)?;
    hint_at_more((next > 0).then(|| next.to_string()));
    Ok(())
}

/// Names the next page on standard error, so that a program that reads the page does not
/// read the hint.
fn hint_at_more(after: Option<String>) {
    if let Some(after) = after {
        eprintln!("there are more: --after {after}");
    }
}

async fn show(
    connection: &mut Connection,
    name: String,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let table = if name.starts_with(RoomName::MARK) {
        let room = v1::GetRoomRequest { room: name };
        rows::room(call!(connection, get_room, room))
    } else {
        let user = v1::GetUserRequest { user: name };
        rows::user(call!(connection, get_user, user))
    };
    Ok(table.print_fields(console)?)
}

async fn top(
    connection: &mut Connection,
    by: Ranking,
    (limit, seconds): (u32, u32),
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let ranking = match by {
        Ranking::Requests => By::Requests,
        Ranking::Bytes => By::Bytes,
        Ranking::Deliveries => By::Deliveries,
        Ranking::Waiting => By::Waiting,
    };
    let top = v1::GetTopRequest {
        by: ranking.into(),
        limit,
        seconds,
    };
    let entries = call!(connection, get_top, top).entries;
    let table = match by {
        Ranking::Waiting => rows::fullest(entries),
        _ => rows::top(entries),
    };
    Ok(table.print(console)?)
}

async fn throttle(
    connection: &mut Connection,
    user: String,
    limits: LimitArgs,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let set = v1::SetUserLimitsRequest {
        user,
        limits: Some(v1::UserLimits {
            queued_messages: limits.queued_messages,
            queued_bytes: limits.queued_bytes,
            commands_per_second: limits.commands,
            bytes_per_second: limits.bytes,
            deliveries_per_second: limits.deliveries,
        }),
        is_reset: limits.reset,
    };
    let limits = rows::limits(call!(connection, set_user_limits, set));
    if console.is_json {
        return Ok(console.print(limits)?);
    }
    let set = limits.as_object().into_iter().flatten();
    let set: Vec<_> = set.map(|(name, limit)| format!("{name} {limit}")).collect();
    match &set[..] {
        [] => console.print("the limits of the server apply")?,
        set => console.print(set.join("\n"))?,
    }
    Ok(())
}

async fn purge(
    connection: &mut Connection,
    log: String,
    up_to: u64,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let purged = call!(connection, purge, v1::PurgeRequest { log, up_to });
    if purged.is_silent_for_connect {
        eprintln!(
            "warning: a receiver by connect is not told of the missing messages; only attached devices are"
        );
    }
    let (messages, bytes) = (purged.removed_messages, purged.removed_bytes);
    if console.is_json {
        let silent = purged.is_silent_for_connect;
        let result = json!({ "messages": messages, "bytes": bytes, "silent_for_connect": silent });
        return Ok(console.print(result)?);
    }
    Ok(console.print(format_args!("removed {messages} messages, {bytes} bytes"))?)
}

/// Returns the target that a word looks like.
fn kick_target(target: String, is_user: bool) -> Target {
    if is_user {
        return Target::User(target);
    }
    match target.parse() {
        Ok(id) => Target::Connection(id),
        Err(_) if is_network(&target) => Target::Network(target),
        Err(_) => Target::User(target),
    }
}

/// Returns whether a word is an address, with or without the length of a prefix.
fn is_network(text: &str) -> bool {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    address.parse::<IpAddr>().is_ok() && prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok())
}

/// Suspends or resumes an account, and describes the result.
async fn set_suspended(
    connection: &mut Connection,
    user: String,
    is_suspended: bool,
) -> Result<String, Error> {
    let set = v1::SetSuspendedRequest {
        user: user.clone(),
        is_suspended,
    };
    let v1::SetSuspendedReply {
        has_changed,
        closed,
    } = call!(connection, set_suspended, set);
    Ok(match (is_suspended, has_changed) {
        (true, true) => format!("{user} is suspended, {closed} connections closed"),
        (true, false) => format!("{user} was suspended already"),
        (false, true) => format!("{user} is resumed"),
        (false, false) => format!("{user} was not suspended"),
    })
}

async fn reload(connection: &mut Connection, console: &mut Console<'_>) -> Result<(), Error> {
    let v1::ReloadReply {
        changed,
        needs_restart,
    } = call!(connection, reload, v1::ReloadRequest {});
    if console.is_json {
        console.print(json!({ "changed": changed, "needs_restart": needs_restart }))?;
        return Ok(());
    }
    let list = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    };
    console.print(format_args!("changed: {}", list(&changed)))?;
    console.print(format_args!("needs a restart: {}", list(&needs_restart)))?;
    Ok(())
}

async fn backup(
    connection: &mut Connection,
    to: &Path,
    console: &mut Console<'_>,
) -> Result<(), Error> {
    let folder = std::path::absolute(to)?;
    let folder = folder.to_str().map(str::to_owned);
    let folder = folder.ok_or_else(|| Error::Local("the path is not UTF-8".to_owned()))?;
    let backup = v1::BackupRequest {
        folder: folder.clone(),
    };
    let mut progress = call!(connection, backup, backup);
    let is_terminal = io::stderr().is_terminal();
    let mut bytes = 0;
    while let Some(report) = progress.message().await? {
        bytes = report.total_bytes;
        if is_terminal {
            let (copied, total) = (report.copied_bytes >> 20, report.total_bytes >> 20);
            eprint!("\r{copied} of {total} MiB");
        }
    }
    if is_terminal {
        eprintln!();
    }
    if console.is_json {
        console.print(json!({ "folder": folder, "bytes": bytes }))?;
    } else {
        console.print(format_args!("backup complete: {folder}, {bytes} bytes"))?;
    }
    Ok(())
}

async fn compact(connection: &mut Connection, console: &mut Console<'_>) -> Result<(), Error> {
    let before = call!(connection, compact, v1::CompactRequest {});
    let (files, live) = (before.file_bytes, before.live_bytes);
    if console.is_json {
        console.print(json!({ "file_bytes": files, "unread_bytes": live }))?;
    } else {
        console.print(format_args!(
            "compaction begun: {live} bytes of unread messages in {files} bytes of files; the command stats shows the progress"
        ))?;
    }
    Ok(())
}

async fn check(connection: &mut Connection, console: &mut Console<'_>) -> Result<(), Error> {
    let mut progress = call!(connection, check, v1::CheckRequest {});
    let is_terminal = io::stderr().is_terminal();
    let (mut last, mut damaged) = (v1::CheckProgress::default(), Vec::new());
    while let Some(report) = progress.message().await? {
        if !report.damaged.is_empty() {
            damaged.push(report.damaged.clone());
        }
        if is_terminal {
            eprint!("\r{} messages, {} MiB", report.messages, report.bytes >> 20);
        }
        last = report;
    }
    if is_terminal {
        eprintln!();
    }
    if console.is_json {
        console.print(json!({
            "logs": last.logs,
            "messages": last.messages,
            "bytes": last.bytes,
            "damaged": damaged,
        }))?;
    } else {
        let (logs, messages, bytes) = (last.logs, last.messages, last.bytes);
        console.print(format_args!(
            "read {messages} messages of {logs} users and rooms, {bytes} bytes"
        ))?;
    }
    if damaged.is_empty() {
        return Ok(());
    }
    let names = damaged.join(", ");
    Err(Error::Failed(format!(
        "damaged: {names}; see 'harkd check --drop-damaged' for a stopped server"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kick_target_is_what_it_looks_like() {
        let target = |text: &str| kick_target(text.to_owned(), false);
        assert_eq!(target("7"), Target::Connection(7));
        assert_eq!(target("192.0.2.1"), Target::Network("192.0.2.1".into()));
        assert_eq!(
            target("2001:db8::/32"),
            Target::Network("2001:db8::/32".into())
        );
        assert_eq!(target("bob"), Target::User("bob".into()));
        assert_eq!(target("a/8"), Target::User("a/8".into()));
        assert_eq!(kick_target("7".into(), true), Target::User("7".into()));
    }
}
