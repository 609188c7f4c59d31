//! Salvages the readable parts of a store that does not open, as a new log or as JSON
//! lines, and reports the losses.

use std::fmt;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use super::line::{Line, VERSION};
use super::{export, print};
use crate::ledger::{BlockContent, Malformed, decode};
use crate::log::Block;
use crate::shard::salvage::{self, SalvagedLog, SalvagedStore};
use crate::store::Message;

/// Writes the readable parts of a store as its new log.
pub(super) fn rebuild(folder: &Path) -> anyhow::Result<()> {
    let (store, damaged) = salvage::rebuild(folder)?;
    report(&store, &mut |line| print(line))?;
    print(format_args!(
        "salvaged {} accounts; the damaged log is kept in {}",
        store
            .logs()
            .iter()
            .filter(|log| log.bounds.account.is_some())
            .count(),
        damaged.display()
    ))
}

/// Exports the readable parts of a store.
pub(super) fn export(folder: &Path, to: impl Write) -> anyhow::Result<()> {
    let store = SalvagedStore::open(folder)?;
    let mut to = BufWriter::new(to);
    let exported = lines(&store, &mut to).and_then(|()| Ok(to.flush()?));
    export::unless_reader_has_gone(exported)?;
    report(&store, &mut |line| {
        eprintln!("harkd: {line}");
        Ok(())
    })
}

fn lines(store: &SalvagedStore, to: &mut impl Write) -> anyhow::Result<()> {
    export::write(to, &Line::Export { version: VERSION })?;
    for log in store.logs() {
        // The format has no rooms yet.
        let Some(entry) = &log.bounds.account else {
            continue;
        };
        export::write(to, &export::account(entry, &log.bounds))?;
        let mut written = Ok(());
        store.visit(log, &mut |block| {
            written = block_lines(log, &block, to);
            if written.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        written?;
    }
    Ok(())
}

/// Writes the messages of a block that are not acknowledged.
fn block_lines(log: &SalvagedLog, block: &Block, to: &mut impl Write) -> anyhow::Result<()> {
    let name = &log.bounds.name;
    match decode(block).map_err(malformed)? {
        BlockContent::Gap(gap) => export::write(
            to,
            &Line::Gap {
                to: name.clone(),
                from: gap.first,
                through: gap.end.sequence.0,
                count: gap.messages,
            },
        ),
        BlockContent::Messages(messages) => {
            let mut before: Option<Arc<Message>> = None;
            for stored in messages {
                let message = stored
                    .map_err(malformed)?
                    .message(before.as_ref())
                    .map_err(malformed)?;
                if message.position.sequence > log.bounds.head.sequence {
                    export::write(to, &export::line(name, &message))?;
                }
                before = Some(Arc::new(message));
            }
            Ok(())
        }
    }
}

/// Returns the error for a block that was decoded successfully before.
fn malformed(_: Malformed) -> anyhow::Error {
    anyhow::anyhow!("a block has changed in the meantime")
}

/// Reports each loss on a line.
fn report(
    store: &SalvagedStore,
    say: &mut dyn FnMut(fmt::Arguments<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let lost = store.lost();
    for file in &lost.files {
        say(format_args!("lost: {file}"))?;
    }
    if lost.has_no_checkpoint {
        say(format_args!(
            "lost: the checkpoint: accounts may be missing, and deleted accounts may have reappeared"
        ))?;
    }
    for (first, last) in &lost.commits {
        say(format_args!(
            "lost: commits {first} to {last}: their changes to accounts, acknowledgements and remembered sends"
        ))?;
    }
    for log in store.logs() {
        for loss in &log.losses {
            let (name, gap) = (&log.bounds.name, loss.gap);
            let (messages, last) = (gap.messages, gap.end.sequence);
            say(format_args!(
                "{name}: lost {messages} messages, from number {} to {last}",
                gap.first
            ))?;
        }
    }
    for (log, blocks) in &store.unknown {
        say(format_args!(
            "lost: the account or room with number {log}, and {blocks} blocks of its messages"
        ))?;
    }
    Ok(())
}
