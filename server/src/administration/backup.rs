//! `backup`: a copy of the store beside traffic. The folder of a backup holds the store in
//! [`STORE`], and [`COMPLETE`] once everything in it is on stable storage.

use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use tokio::sync::mpsc;

use super::Administration;
use crate::bans;
use crate::chat::now_ms;
use crate::log::LogCopy;
use crate::log::disk::backup::create_folder;

/// The folder of the store in a backup.
pub(crate) const STORE: &str = "store";

/// The file that marks a complete backup.
pub(crate) const COMPLETE: &str = "COMPLETE";

/// Space that a backup leaves free, in bytes.
const RESERVE_BYTES: u64 = 256 << 20;

/// The progress of a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) copied_bytes: u64,
    pub(super) total_bytes: u64,
}

impl Administration {
    /// Begins a backup into a folder. Returns its progress, which ends with an error or when
    /// it is complete. Everything that was answered before this call is in it. A caller that
    /// drops the progress stops the backup.
    ///
    /// # Errors
    /// If another backup runs, the folder is not empty, or the store has no files.
    pub(super) async fn backup(
        &self,
        folder: PathBuf,
    ) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Progress>>> {
        ensure!(
            folder.is_absolute(),
            "the folder of a backup must be an absolute path: the server creates it"
        );
        let Ok(permit) = Arc::clone(&self.backups).try_acquire_owned() else {
            bail!("another backup is running; wait for its end");
        };
        let copy = self.store.copy().await?;
        let Some(copy) = copy else {
            bail!("the store has no files, so there is nothing to back up");
        };
        let own = self.folder.clone();
        let (progress, receiver) = mpsc::channel(1);
        // Ends with the backup, or soon after its receiver is dropped.
        tokio::task::spawn_blocking(move || {
            let result = write(&*copy, own.as_deref(), &folder, &progress);
            drop((copy, permit));
            match result {
                Ok(bytes) => tracing::info!(folder = %folder.display(), bytes, "backup complete"),
                Err(error) => {
                    let reason = format_args!("{error:#}");
                    tracing::warn!(folder = %folder.display(), error = %reason, "backup failed");
                    // Nobody may be left to read it.
                    drop(progress.blocking_send(Err(error)));
                }
            }
        });
        Ok(receiver)
    }
}

fn write(
    copy: &dyn LogCopy,
    own: Option<&Path>,
    folder: &Path,
    progress: &mpsc::Sender<anyhow::Result<Progress>>,
) -> anyhow::Result<u64> {
    let total_bytes = copy.bytes();
    if let Some(own) = own {
        check_outside(own, folder)?;
    }
    prepare(folder, total_bytes)?;
    let store = folder.join(STORE);
    create_folder(&store).with_context(|| format!("cannot create {}", store.display()))?;
    let copied = copy.write_to(&store, &mut |copied_bytes| {
        let report = Progress {
            copied_bytes,
            total_bytes,
        };
        match progress.try_send(Ok(report)) {
            Err(mpsc::error::TrySendError::Closed(_)) => ControlFlow::Break(()),
            // A slow reader misses a report.
            _ => ControlFlow::Continue(()),
        }
    });
    copied.with_context(|| format!("cannot copy the store to {}", store.display()))?;
    if let Some(own) = own {
        copy_bans(own, &store).context("cannot copy the bans")?;
    }
    finish(folder, total_bytes).with_context(|| format!("cannot complete {}", folder.display()))?;
    Ok(total_bytes)
}

/// Creates the folder, and checks that it is empty and has room.
fn prepare(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    let path = folder.display();
    create_folder(folder).with_context(|| format!("cannot create {path}"))?;
    let mut entries = fs::read_dir(folder).with_context(|| format!("cannot read {path}"))?;
    ensure!(
        entries.next().is_none(),
        "{path} is not empty; name a new folder"
    );
    let space = rustix::fs::statvfs(folder).with_context(|| format!("cannot look up {path}"))?;
    let free = space.f_bavail.saturating_mul(space.f_frsize);
    ensure!(
        free >= bytes.saturating_add(RESERVE_BYTES),
        "{path} has {free} bytes free, and the backup needs {bytes} and a reserve of {RESERVE_BYTES}"
    );
    Ok(())
}

/// Refuses a folder within that of the store, which the server would take for its own.
fn check_outside(own: &Path, folder: &Path) -> anyhow::Result<()> {
    let mut existing = folder
        .ancestors()
        .filter_map(|path| fs::canonicalize(path).ok());
    let (own, nearest) = (fs::canonicalize(own)?, existing.next());
    ensure!(
        nearest.is_none_or(|nearest| !nearest.starts_with(&own)),
        "{} is within the folder of the store; name a folder elsewhere",
        folder.display()
    );
    Ok(())
}

fn copy_bans(own: &Path, store: &Path) -> io::Result<()> {
    match fs::copy(own.join(bans::FILE), store.join(bans::FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(_) => File::open(store.join(bans::FILE))?.sync_all(),
        Err(_) => Ok(()),
    }
}

/// Marks the backup as complete.
fn finish(folder: &Path, bytes: u64) -> io::Result<()> {
    File::open(folder.join(STORE))?.sync_all()?;
    File::open(folder)?.sync_all()?;
    let marker = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "time_ms": now_ms(),
        "bytes": bytes,
    });
    let path = folder.join(COMPLETE);
    fs::write(&path, format!("{marker}\n"))?;
    File::open(&path)?.sync_all()?;
    File::open(folder)?.sync_all()
}
