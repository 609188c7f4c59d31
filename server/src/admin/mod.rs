//! The administrative commands: `harkd user`, `check`, `export` and `import`. They refuse a
//! folder that a server has open.

mod check;
mod export;
mod import;
mod line;
mod salvage;
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
