//! `harkd check`: verifies a store.

use std::fmt;
use std::path::Path;

use anyhow::bail;

use super::{print, salvage};
use crate::log::OpenError;
use crate::shard::check::{CheckError, Loss, check, drop_damaged};

/// Verifies a store, and replaces damaged messages with gaps if `drops_damaged` is set.
pub(super) fn run(folder: &Path, drops_damaged: bool) -> anyhow::Result<()> {
    let found = match check(folder) {
        Err(CheckError::Open(OpenError::Damaged { .. })) if drops_damaged => {
            return salvage::rebuild(folder);
        }
        found => found?,
    };
    for (name, loss) in &found.losses {
        print(format_args!("{name}: {}", Described(*loss)))?;
    }
    let (accounts, messages) = (found.accounts, found.messages);
    let missing = found
        .losses
        .iter()
        .filter(|(_, loss)| loss.is_missing)
        .count();
    let damaged = found.losses.len() - missing;
    print(format_args!(
        "{accounts} accounts, {messages} unread messages, {damaged} damaged blocks, {missing} missing ones"
    ))?;
    if found.losses.is_empty() {
        return Ok(());
    }
    if !drops_damaged {
        bail!(
            "the store is damaged; restore a backup, or run with --drop-damaged to replace the damaged messages with gaps"
        );
    }
    for (name, Loss { gap, .. }) in drop_damaged(folder)? {
        let (first, last, messages) = (gap.first, gap.end.sequence, gap.messages);
        print(format_args!(
            "{name}: dropped {messages} messages, numbers {first} to {last}"
        ))?;
    }
    Ok(())
}

/// The description of a loss.
pub(super) struct Described(pub(super) Loss);

impl fmt::Display for Described {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Loss { gap, is_missing } = self.0;
        let what = if is_missing { "missing" } else { "damaged" };
        write!(
            f,
            "{what} from number {} to {}",
            gap.first, gap.end.sequence
        )
    }
}
