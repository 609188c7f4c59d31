//! `harkd admin`: commands for a running server, through its socket.

use std::io::{self, IsTerminal as _};
use std::path::Path;

use anyhow::{Context as _, bail};
use hark_admin::{Connection, Console};
use tokio::net::UnixStream;

use super::user;
use crate::config::{AdminArgs, StoreArgs};

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
            let mut connection = connect(&socket).await?;
            let file = arguments.password_file;
            let mut console = Console {
                output: &mut io::stdout(),
                is_json: arguments.json,
                is_terminal: io::stdout().is_terminal(),
                new_password: &mut || {
                    user::password(file.as_deref()).map_err(|error| format!("{error:#}"))
                },
            };
            let executed = hark_admin::execute(&mut connection, arguments.command, &mut console);
            Ok(executed.await?)
        })
}

async fn connect(socket: &Path) -> anyhow::Result<Connection> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        let path = socket.display();
        format!(
            "cannot reach the server at {path}; start it, name its --store or --admin-socket, or run as its user or root"
        )
    })?;
    let opened = Connection::open(stream, None, None).await;
    opened.map_err(anyhow::Error::msg)
}
