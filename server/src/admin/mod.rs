//! The operator's work beside serving: `harkd user`, `check`, `export` and `import`.
//! A folder is refused while a server has it open.

mod check;
mod export;
mod import;
mod line;
mod salvage;
mod user;

use std::io::{self, Write};

use crate::config::Command;
use crate::place::StoreArgs;

/// Carries out a command.
///
/// # Errors
/// One line that says what is wrong and what to do.
pub fn run(place: &StoreArgs, command: Command) -> anyhow::Result<()> {
    match command {
        Command::User(arguments) => user::run(place, arguments),
        Command::Check { folder, drop_damaged } => check::run(&folder, drop_damaged),
        Command::Export { folder, salvage: false } => export::run(&folder, io::stdout().lock()),
        Command::Export { folder, salvage: true } => salvage::export(&folder, io::stdout().lock()),
        Command::Import { folder } => import::run(&folder, io::stdin().lock()),
    }
}

/// Prints a line. A reader that has gone has read enough.
fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
