//! The administrative commands. `harkd admin` asks the running server; `user`, `check`,
//! `export`, `import` and `restore` refuse a folder that a server has open. `user`, `export`
//! and `import` work on a cluster at any time.

mod check;
#[cfg(feature = "cluster")]
mod cluster;
mod export;
mod import;
mod line;
mod progress;
mod restore;
mod salvage;
mod server;
mod user;

use std::io::{self, Write};

use anyhow::bail;

use crate::config::{AdminCommand, StoreArgs, StorePlace};

/// The remedy if the store is in memory.
const NAME_A_STORE: &str = "name a folder or a cluster with --store";

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
            place: named,
            salvage,
        } => export_from(place, place.place_or(named.as_deref())?, salvage),
        AdminCommand::Import { place: named } => {
            import_into(place, place.place_or(named.as_deref())?)
        }
    }
}

#[cfg_attr(
    not(feature = "cluster"),
    expect(unused_variables, reason = "only clusters need it")
)]
fn export_from(arguments: &StoreArgs, place: StorePlace, salvage: bool) -> anyhow::Result<()> {
    match place {
        StorePlace::Folder(folder) if salvage => salvage::export(&folder, io::stdout().lock()),
        StorePlace::Folder(folder) => export::run(&folder, io::stdout().lock()),
        _ if salvage => bail!("--salvage applies only to a folder, but the store is {place}"),
        StorePlace::Memory => bail!("a store in memory cannot be exported; {NAME_A_STORE}"),
        #[cfg(feature = "cluster")]
        StorePlace::Cluster(nodes) => cluster::export(arguments, nodes, io::stdout().lock()),
    }
}

#[cfg_attr(
    not(feature = "cluster"),
    expect(unused_variables, reason = "only clusters need it")
)]
fn import_into(arguments: &StoreArgs, place: StorePlace) -> anyhow::Result<()> {
    match place {
        StorePlace::Folder(folder) => import::run(&folder, io::stdin().lock()),
        StorePlace::Memory => bail!("a store in memory cannot be imported into; {NAME_A_STORE}"),
        #[cfg(feature = "cluster")]
        StorePlace::Cluster(nodes) => cluster::import(arguments, nodes, io::stdin().lock()),
    }
}

/// Prints a line. A closed pipe is not an error.
pub(crate) fn print(line: std::fmt::Arguments<'_>) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
