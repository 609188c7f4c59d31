//! The administrative commands. `harkd admin` asks the running server; `user`, `check`,
//! `export`, `import` and `restore` refuse a folder that a server has open.

mod check;
mod export;
mod import;
mod line;
mod restore;
mod salvage;
mod server;
mod table;
mod user;

use std::io::{self, Write};

use crate::config::{AdminCommand, StoreArgs};

/// Runs a command.
///
/// # Errors
/// One line with the cause and the remedy.
pub fn run(place: &StoreArgs, command: AdminCommand) -> anyhow::Result<()> {
    match command {
        AdminCommand::User(arguments) => user::run(place, arguments),
        AdminCommand::Admin(arguments) => server::run(place, arguments),
        AdminCommand::Restore { backup, folder } => restore::run(&backup, &folder),
        AdminCommand::Check {
            folder,
            drop_damaged,
        } => check::run(&folder, drop_damaged),
        AdminCommand::Export {
            folder,
            salvage: false,
        } => export::run(&folder, io::stdout().lock()),
        AdminCommand::Export {
            folder,
            salvage: true,
        } => salvage::export(&folder, io::stdout().lock()),
        AdminCommand::Import { folder } => import::run(&folder, io::stdin().lock()),
    }
}

/// Prints a line. A closed pipe is not an error.
pub(crate) fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
