//! The administrative commands: `harkd user`, `check`, `export` and `import`. They refuse a
//! folder that a server has open.

mod check;
mod export;
mod import;
mod line;
mod user;

use std::io::{self, Write};
use std::path::Path;

use anyhow::bail;

use crate::config::{Command, StoreArgs};
use crate::shard::offline::OfflineStore;

/// Runs a command.
///
/// # Errors
/// One line with the cause and the remedy.
pub fn run(place: &StoreArgs, command: Command) -> anyhow::Result<()> {
    match command {
        Command::User(arguments) => user::run(place, arguments),
        Command::Check { folder, drop_damaged } => check::run(&folder, drop_damaged),
        Command::Export { folder } => export::run(&folder, io::stdout().lock()),
        Command::Import { folder } => import::run(&folder, io::stdin().lock()),
    }
}

/// Opens an existing store.
fn open(folder: &Path) -> anyhow::Result<OfflineStore> {
    if !folder.is_dir() {
        bail!("there is no store in {}; name its folder", folder.display());
    }
    Ok(OfflineStore::open(folder)?)
}

/// Prints a line. A closed pipe is not an error.
fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
