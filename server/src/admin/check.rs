//! `harkd check`: reads everything in a store.

use std::path::Path;

use anyhow::bail;

use super::print;
use crate::shard::check::{check, drop_damaged};

/// Checks a store, and drops what is damaged if that is asked for.
pub(super) fn run(folder: &Path, drops_damaged: bool) -> anyhow::Result<()> {
    let found = check(folder)?;
    for (name, block) in &found.damaged {
        print(format_args!("{name}: damaged from number {} to {}", block.first, block.last))?;
    }
    let (accounts, messages, damaged) = (found.accounts, found.messages, found.damaged.len());
    print(format_args!("{accounts} accounts, {messages} unread messages, {damaged} damaged blocks"))?;
    if damaged == 0 {
        return Ok(());
    }
    if !drops_damaged {
        bail!("the store is damaged; restore a backup, or drop the damaged messages with --drop-damaged");
    }
    for (name, gap) in drop_damaged(folder)? {
        let (first, last, messages) = (gap.first, gap.end.sequence, gap.messages);
        print(format_args!("{name}: dropped {messages} messages, from number {first} to {last}"))?;
    }
    Ok(())
}
