//! The operator's work beside serving: `harkd user`, `check`, `export` and `import`.
//! A folder is refused while a server has it open.

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

/// Carries out a command.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn run(place: &StoreArgs, command: Command) -> anyhow::Result<()> {
    match command {
        Command::User(arguments) => user::run(place, arguments),
        Command::Check { folder, drop_damaged } => check::run(&folder, drop_damaged),
        Command::Export { folder } => export::run(&folder, io::stdout().lock()),
        Command::Import { folder } => import::run(&folder, io::stdin().lock()),
    }
}

/// Opens a store that is there.
fn open(folder: &Path) -> anyhow::Result<OfflineStore> {
    if !folder.is_dir() {
        bail!("there is no store at {}; name its folder", folder.display());
    }
    Ok(OfflineStore::open(folder)?)
}

/// Prints a line. A reader that has gone has read enough.
fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
