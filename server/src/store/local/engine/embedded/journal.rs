//! Writing the engine's journals anew after an unclean end.
//!
//! What can be read then need not be on the disk: where a sync has failed, the
//! kernel may take the pages for clean all the same and never write them again.
//! A copy in a new file, synced, is on the disk whatever came before.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use crate::store::local::folder::sync_folder;

const CHUNK_BYTES: usize = 1024 * 1024;

/// Writes each journal in the engine's folder anew. All of them are on stable
/// storage when this returns; interrupted, it has changed nothing.
pub(super) fn write_anew(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            copy_over(&path)?;
        }
    }
    sync_folder(folder)
}

fn copy_over(journal: &Path) -> io::Result<()> {
    let copy: PathBuf = journal.with_extension("new");
    let mut to = File::create(&copy)?;
    copy_content(&mut File::open(journal)?, &mut to)?;
    to.sync_all()?;
    fs::rename(&copy, journal)
}

/// Copies by reading and writing: what the system has to copy files may share
/// the very blocks that are not to be trusted. A journal is as long as it may
/// become, and mostly zeros at first; those are left out.
fn copy_content(from: &mut File, to: &mut File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut zeros = 0;
    loop {
        let length = from.read(&mut chunk)?;
        let Some(content) = chunk.get(..length) else { return Err(io::ErrorKind::InvalidData.into()) };
        if content.is_empty() {
            return Ok(());
        }
        if content.iter().all(|byte| *byte == 0) {
            zeros += i64::try_from(length).unwrap_or(0);
            continue;
        }
        to.seek(SeekFrom::Current(zeros))?;
        to.write_all(content)?;
        zeros = 0;
    }
}
