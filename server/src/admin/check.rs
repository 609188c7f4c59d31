//! `harkd check`: verifies a store.

use std::path::Path;

use anyhow::bail;

use super::print;
use crate::shard::check::{check, drop_damaged};

/// Verifies a store, and replaces damaged messages by gaps if `drops_damaged` is set.
pub(super) fn run(folder: &Path, drops_damaged: bool) -> anyhow::Result<()> {
    let found = check(folder)?;
    for (name, block) in &found.damaged {
        print(format_args!("{name}: messages {} to {} are damaged", block.first, block.last))?;
    }
    let (accounts, messages, damaged) = (found.accounts, found.messages, found.damaged.len());
    print(format_args!("{accounts} accounts, {messages} unread messages, {damaged} damaged blocks"))?;
    if damaged == 0 {
        return Ok(());
    }
    if !drops_damaged {
        bail!(
            "the store is damaged; restore a backup, or replace the damaged messages by gaps with --drop-damaged"
        );
    }
    for (name, gap) in drop_damaged(folder)? {
        let (first, last, messages) = (gap.first, gap.end.sequence, gap.messages);
        print(format_args!("{name}: dropped {messages} messages, numbers {first} to {last}"))?;
    }
    Ok(())
}
