//! `harkd check`: reads everything in a store.

use std::path::Path;

use anyhow::{Context, bail};

use super::print;
use crate::ledger::Gap;
use crate::shard::offline::{OfflineInbox, OfflineStore};

/// Checks a store, and drops what is damaged if that is asked for.
pub(super) fn run(folder: &Path, drop_damaged: bool) -> anyhow::Result<()> {
    let mut store = super::open(folder)?;
    let (mut accounts, mut messages, mut damaged, mut unreadable) = (0_u64, 0_u64, 0_u64, 0_u64);
    for inbox in store.inboxes() {
        accounts += 1;
        messages += inbox.tail.messages.saturating_sub(inbox.cursor.messages);
        match store.check(&inbox) {
            Ok(gaps) if gaps.is_empty() => {}
            Ok(gaps) => {
                damaged += gaps.iter().map(|gap| gap.messages.max(1)).sum::<u64>();
                report(&inbox, &gaps)?;
                if drop_damaged {
                    drop_from(&mut store, &inbox)?;
                }
            }
            Err(error) => {
                unreadable += 1;
                print(format_args!("{}: cannot be read: {error}", inbox.entry.account.name))?;
            }
        }
    }
    store.close().context("cannot close the store in order")?;
    print(format_args!("{accounts} accounts, {messages} unread messages, {damaged} of them damaged"))?;
    match (damaged, unreadable) {
        (_, 1..) => bail!("{unreadable} inboxes cannot be read; check the disk, or restore a backup"),
        (1.., _) if !drop_damaged => {
            bail!("the store is damaged; restore a backup, or drop the damaged messages with --drop-damaged")
        }
        _ => Ok(()),
    }
}

fn report(inbox: &OfflineInbox, gaps: &[Gap]) -> anyhow::Result<()> {
    let name = &inbox.entry.account.name;
    for Gap { first, end, messages, .. } in gaps {
        print(format_args!("{name}: damaged from number {first} to {}: {messages} messages", end.sequence))?;
    }
    Ok(())
}

fn drop_from(store: &mut OfflineStore, inbox: &OfflineInbox) -> anyhow::Result<()> {
    let name = &inbox.entry.account.name;
    store.drop_damaged(inbox).with_context(|| format!("cannot drop the damaged messages of {name}"))?;
    print(format_args!("{name}: dropped"))
}
