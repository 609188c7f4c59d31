//! `harkd admin`: commands for a running server, through its socket.

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hark_grpc::v1;
use hark_grpc::v1::admin_client::AdminClient;
use hark_grpc::v1::kick_request::Target;
use http::Uri;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::table::Table;
use super::{print, user};
use crate::config::{AdminArgs, BanTime, ServerCommand, StoreArgs};
use crate::network::Network;

/// The interval of `stats --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// Moves to the top left and clears the screen.
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// A connection to the socket.
#[derive(Debug, Clone)]
struct Connection(SendRequest<Body>);

type Client = AdminClient<Connection>;

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, hyper::Result<Self::Response>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.0.send_request(request).boxed()
    }
}

/// Runs a command, and prints its result.
///
/// # Errors
/// One line with the cause and the remedy.
pub(super) fn run(place: &StoreArgs, arguments: AdminArgs) -> anyhow::Result<()> {
    let Some(socket) = place.admin_socket()? else {
        bail!(
            "harkd admin needs a socket, but --store is {} and has none; set --admin-socket for the server and for this command",
            place.place()?
        )
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(async {
            let mut client = connect(&socket).await?;
            execute(&mut client, arguments).await
        })
}

async fn connect(socket: &Path) -> anyhow::Result<Client> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        let path = socket.display();
        format!(
            "cannot reach the server at {path}; start it, name its --store or --admin-socket, or run as its user or root"
        )
    })?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // Ends with the process; the calls report its errors.
    tokio::spawn(connection);
    let origin = Uri::from_static("http://harkd");
    Ok(AdminClient::with_origin(Connection(sender), origin))
}

async fn execute(client: &mut Client, arguments: AdminArgs) -> anyhow::Result<()> {
    let json = arguments.json;
    match arguments.command {
        ServerCommand::Stats { watch } => stats(client, json, watch).await,
        ServerCommand::Connections { after, limit } => {
            connections(client, json, after, limit).await
        }
        ServerCommand::Users { after, limit } => users(client, json, after, limit).await,
        ServerCommand::Show { name } => {
            let request = v1::GetUserRequest { user: name };
            let user = client.get_user(request).await.map_err(explained)?;
            user_table(vec![user.into_inner()]).print(json)
        }
        ServerCommand::Kick { target, user } => {
            let target = Some(kick_target(target, user));
            let reply = client.kick(v1::KickRequest { target }).await;
            closed(json, reply.map_err(explained)?.into_inner().closed)
        }
        ServerCommand::Suspend { name } => set_suspended(client, json, name, true).await,
        ServerCommand::Resume { name } => set_suspended(client, json, name, false).await,
        ServerCommand::Ban { network, time } => ban(client, json, network, time).await,
        ServerCommand::Unban { network } => {
            let request = v1::UnbanRequest {
                network: network.clone(),
            };
            let reply = client.unban(request).await.map_err(explained)?;
            if !reply.into_inner().has_changed {
                bail!("{network} is not banned; harkd admin bans prints the bans");
            }
            done(json, &format!("{network} is no longer banned"))
        }
        ServerCommand::Bans => bans(client, json).await,
        ServerCommand::SetPassword {
            name,
            password_file,
        } => {
            let password = user::password(password_file.as_deref())?;
            let request = v1::SetUserPasswordRequest {
                user: name.clone(),
                password: password.expose().to_owned(),
            };
            client.set_user_password(request).await.map_err(explained)?;
            done(json, &format!("set the password of {name}"))
        }
        ServerCommand::Log { level } => {
            let request = v1::SetLogLevelRequest {
                level: level.clone(),
            };
            client.set_log_level(request).await.map_err(explained)?;
            done(json, &format!("the level of the log is {level}"))
        }
        ServerCommand::Reload => reload(client, json).await,
        ServerCommand::Drain => {
            client.drain(v1::DrainRequest {}).await.map_err(explained)?;
            done(json, "the server is shutting down")
        }
        ServerCommand::Backup { to } => backup(client, json, &to).await,
    }
}

/// Returns the explanation of a failed call.
fn explained(status: Status) -> anyhow::Error {
    anyhow::Error::msg(status.message().to_owned())
}

/// Prints the result of a change.
fn done(json: bool, text: &str) -> anyhow::Result<()> {
    if json {
        print(format_args!("{}", json!({ "done": text })))
    } else {
        print(format_args!("{text}"))
    }
}

fn closed(json: bool, connections: u64) -> anyhow::Result<()> {
    if json {
        print(format_args!("{}", json!({ "closed": connections })))
    } else {
        print(format_args!("{connections} connections closed"))
    }
}

async fn stats(client: &mut Client, json: bool, watch: bool) -> anyhow::Result<()> {
    let is_screen = watch && !json && io::stdout().is_terminal();
    loop {
        let stats = client.get_stats(v1::GetStatsRequest {}).await;
        let table = stats_table(stats.map_err(explained)?.into_inner());
        if is_screen {
            print(format_args!("{CLEAR}"))?;
        }
        table.print_fields(json)?;
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn stats_table(stats: v1::GetStatsReply) -> Table {
    let state = match (stats.is_draining, stats.is_available, stats.is_low_on_space) {
        (true, ..) => "draining",
        (_, false, _) => "store unavailable",
        (.., true) => "low on space",
        _ => "serving",
    };
    Table::new(&[
        "state",
        "version",
        "pid",
        "uptime_s",
        "connections",
        "accounts",
        "unread_bytes",
        "file_bytes",
        "resident_bytes",
        "last_number",
    ])
    .row(vec![
        state.into(),
        stats.version.into(),
        stats.pid.into(),
        stats.uptime_s.into(),
        stats.connections.into(),
        stats.accounts.into(),
        stats.live_bytes.into(),
        stats.file_bytes.into(),
        stats.resident_bytes.into(),
        stats.last_number.into(),
    ])
}

async fn connections(
    client: &mut Client,
    json: bool,
    after: u64,
    limit: u32,
) -> anyhow::Result<()> {
    let request = v1::ListConnectionsRequest { after, limit };
    let reply = client.list_connections(request).await.map_err(explained)?;
    let v1::ListConnectionsReply {
        connections,
        has_more,
    } = reply.into_inner();
    let last = connections.last().map(|last| last.id.to_string());
    let table = Table::new(&["id", "address", "users", "age_s"]);
    let rows = connections.into_iter().map(|connection| {
        vec![
            connection.id.into(),
            connection.address.into(),
            connection.users.into(),
            connection.age_s.into(),
        ]
    });
    rows.fold(table, Table::row).print(json)?;
    hint_at_more(has_more, last)
}

async fn users(client: &mut Client, json: bool, after: String, limit: u32) -> anyhow::Result<()> {
    let request = v1::ListUsersRequest { after, limit };
    let reply = client.list_users(request).await.map_err(explained)?;
    let v1::ListUsersReply { users, has_more } = reply.into_inner();
    let last = users.last().map(|last| last.name.clone());
    user_table(users).print(json)?;
    hint_at_more(has_more, last)
}

/// Names the next page on standard error, so that a program that reads the page does not
/// read the hint.
fn hint_at_more(has_more: bool, last: Option<String>) -> anyhow::Result<()> {
    if let Some(last) = last.filter(|_| has_more) {
        eprintln!("there are more: --after {last}");
    }
    Ok(())
}

fn user_table(users: Vec<v1::UserInfo>) -> Table {
    let table = Table::new(&[
        "name",
        "password",
        "suspended",
        "receiving",
        "waiting",
        "waiting_bytes",
        "acknowledged",
        "last_number",
    ]);
    let rows = users.into_iter().map(|user| {
        vec![
            user.name.into(),
            user.has_password.into(),
            user.is_suspended.into(),
            user.is_receiving.into(),
            user.waiting_messages.into(),
            user.waiting_bytes.into(),
            user.acknowledged.into(),
            user.last_number.into(),
        ]
    });
    rows.fold(table, Table::row)
}

/// Returns the target that a word looks like.
fn kick_target(target: String, is_user: bool) -> Target {
    if is_user {
        return Target::User(target);
    }
    match target.parse() {
        Ok(id) => Target::Connection(id),
        Err(_) if target.parse::<Network>().is_ok() => Target::Network(target),
        Err(_) => Target::User(target),
    }
}

async fn set_suspended(
    client: &mut Client,
    json: bool,
    user: String,
    is_suspended: bool,
) -> anyhow::Result<()> {
    let request = v1::SetSuspendedRequest {
        user: user.clone(),
        is_suspended,
    };
    let reply = client.set_suspended(request).await.map_err(explained)?;
    let v1::SetSuspendedReply {
        has_changed,
        closed,
    } = reply.into_inner();
    let state = match (is_suspended, has_changed) {
        (true, true) => format!("{user} is suspended, {closed} connections closed"),
        (true, false) => format!("{user} was suspended already"),
        (false, true) => format!("{user} is resumed"),
        (false, false) => format!("{user} was not suspended"),
    };
    done(json, &state)
}

async fn ban(
    client: &mut Client,
    json: bool,
    network: String,
    time: Option<BanTime>,
) -> anyhow::Result<()> {
    let seconds = time.map_or(0, |BanTime(time)| time.as_secs());
    let reply = client.ban(v1::BanRequest { network, seconds }).await;
    let v1::BanReply { network, closed } = reply.map_err(explained)?.into_inner();
    done(
        json,
        &format!("{network} is banned, {closed} connections closed"),
    )
}

async fn bans(client: &mut Client, json: bool) -> anyhow::Result<()> {
    let reply = client.list_bans(v1::ListBansRequest {}).await;
    let bans = reply.map_err(explained)?.into_inner().bans;
    let table = Table::new(&["network", "until_ms"]);
    let rows = bans.into_iter().map(|ban| {
        let until = match ban.until_ms {
            0 => Value::Null,
            until_ms => until_ms.into(),
        };
        vec![ban.network.into(), until]
    });
    rows.fold(table, Table::row).print(json)
}

async fn reload(client: &mut Client, json: bool) -> anyhow::Result<()> {
    let reply = client.reload(v1::ReloadRequest {}).await;
    let v1::ReloadReply {
        changed,
        needs_restart,
    } = reply.map_err(explained)?.into_inner();
    if json {
        let reply = json!({ "changed": changed, "needs_restart": needs_restart });
        return print(format_args!("{reply}"));
    }
    let list = |names: &[String]| match names {
        [] => "nothing".to_owned(),
        names => names.join(", "),
    };
    print(format_args!("changed: {}", list(&changed)))?;
    print(format_args!("needs a restart: {}", list(&needs_restart)))
}

async fn backup(client: &mut Client, json: bool, to: &Path) -> anyhow::Result<()> {
    let folder = std::path::absolute(to)?;
    let folder = folder.to_str().context("the path is not UTF-8")?.to_owned();
    let request = v1::BackupRequest {
        folder: folder.clone(),
    };
    let mut progress = client
        .backup(request)
        .await
        .map_err(explained)?
        .into_inner();
    let is_terminal = io::stderr().is_terminal();
    let mut total = 0;
    while let Some(report) = progress.message().await.map_err(explained)? {
        total = report.total_bytes;
        if is_terminal {
            let (copied, total) = (report.copied_bytes >> 20, report.total_bytes >> 20);
            eprint!("\r{copied} of {total} MiB");
        }
    }
    if is_terminal {
        eprintln!();
    }
    if json {
        return print(format_args!(
            "{}",
            json!({ "folder": folder, "bytes": total })
        ));
    }
    print(format_args!("backup complete: {folder}, {total} bytes"))
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
        assert_eq!(kick_target("7".into(), true), Target::User("7".into()));
    }
}
