//! `harkd restore`: a store from a backup of `harkd admin backup`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};

use super::{check, print};
use crate::administration::{COMPLETE, STORE};
use crate::log::disk::backup::copy_folder;

/// Copies the store of a backup to a new folder, and verifies it.
///
/// # Errors
/// If the backup is incomplete, the folder exists, or the copy is damaged.
pub(super) fn run(backup: &Path, folder: &Path) -> anyhow::Result<()> {
    let (from, to) = (backup.display(), folder.display());
    ensure!(
        backup.join(COMPLETE).is_file(),
        "{from} is no complete backup: it has no file {COMPLETE}; name the folder of harkd admin backup --to"
    );
    let is_free = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(error).with_context(|| format!("cannot read {to}")),
    };
    ensure!(
        is_free,
        "{to} is not empty; move the former store away, or name a new folder"
    );
    copy_folder(&backup.join(STORE), folder)
        .with_context(|| format!("cannot copy {from} to {to}"))?;
    check::run(folder, false)?;
    print(format_args!("restored {to} from {from}"))
}
