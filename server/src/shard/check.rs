//! Checking a store that is not served, and dropping what is damaged: gaps take the
//! place of damaged blocks, so that the running counts of an inbox go on.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use hark_protocol::{Sequence, UserName};

use super::ShardConfig;
use super::open::replay_frame;
use crate::ledger::{self, Gap, Ledger, Malformed, Replay};
use crate::log::disk::check::{Check, DamagedBlock, Repair, RepairError};
use crate::log::{InboxId, OpenError, ReadError};
use crate::store::Position;

/// What a check has found.
#[derive(Debug)]
pub(crate) struct Findings {
    /// Accounts.
    pub(crate) accounts: usize,
    /// Messages that are not acknowledged, damaged ones included.
    pub(crate) messages: u64,
    /// Blocks of messages that cannot be read, with their accounts.
    pub(crate) damaged: Vec<(UserName, DamagedBlock)>,
}

/// Why a store cannot be checked, or damage in it cannot be dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store cannot be written.
    #[error(transparent)]
    Repair(#[from] RepairError),
}

/// An inbox as the ledger has it.
#[derive(Debug)]
struct Inbox {
    name: UserName,
    cursor: Position,
    tail: Position,
}

/// Reads everything in the store of a folder, and changes nothing.
pub(crate) fn check(folder: &Path) -> Result<Findings, CheckError> {
    let mut replay = Replay::new(ShardConfig::DEFAULT.limits());
    let check = Check::open(folder, &mut |records| replay_frame(&mut replay, folder, records))?;
    let inboxes = inboxes(&replay.finish(0));
    let report = check.run(&mut |inbox| inboxes.get(&inbox).map(|inbox| inbox.cursor.sequence.0))?;
    let queued = |inbox: &Inbox| inbox.tail.messages.saturating_sub(inbox.cursor.messages);
    let named = |damaged: DamagedBlock| Some((inboxes.get(&damaged.inbox)?.name.clone(), damaged));
    Ok(Findings {
        accounts: inboxes.len(),
        messages: inboxes.values().map(queued).sum(),
        damaged: report.damaged.into_iter().filter_map(named).collect(),
    })
}

/// Puts gaps in the place of the messages that cannot be read, and returns the gaps.
pub(crate) fn drop_damaged(folder: &Path) -> Result<Vec<(UserName, Gap)>, CheckError> {
    let mut replay = Replay::new(ShardConfig::DEFAULT.limits());
    let repair = Repair::open(folder, &mut |records| replay_frame(&mut replay, folder, records))?;
    let inboxes = inboxes(&replay.finish(0));
    let mut gaps = HashMap::new();
    for (id, inbox) in &inboxes {
        let pieces = pieces(&repair, *id, inbox)?;
        for gap in gaps_in(&pieces, inbox.cursor, inbox.tail) {
            gaps.insert((*id, gap.first), gap);
        }
    }
    let mut payload = |damaged: &DamagedBlock| -> Bytes {
        let key = (damaged.inbox, damaged.first);
        let gap = *gaps.entry(key).or_insert_with(|| below_cursor(damaged, inboxes.get(&damaged.inbox)));
        gap.block(damaged.inbox).payload
    };
    let cursor = &mut |inbox| inboxes.get(&inbox).map(|inbox: &Inbox| inbox.cursor.sequence.0);
    let replaced = repair.run(cursor, &mut payload)?;
    let named = |damaged: DamagedBlock| {
        let gap = *gaps.get(&(damaged.inbox, damaged.first))?;
        Some((inboxes.get(&damaged.inbox)?.name.clone(), gap))
    };
    Ok(replaced.into_iter().filter_map(named).collect())
}

fn inboxes(ledger: &Ledger) -> HashMap<InboxId, Inbox> {
    let inboxes = ledger.inboxes().map(|(entry, cursor, tail)| {
        (entry.account.incarnation, Inbox { name: entry.account.name, cursor, tail })
    });
    inboxes.collect()
}

/// Returns a gap without messages, in the place of a block that is acknowledged already.
fn below_cursor(damaged: &DamagedBlock, inbox: Option<&Inbox>) -> Gap {
    let cursor = inbox.map_or_else(Position::default, |inbox| inbox.cursor);
    let end = Position { sequence: Sequence(damaged.last), ..cursor };
    Gap { first: damaged.first, end, messages: 0, bytes: 0 }
}

/// A block as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// It can be read: the positions before and behind it.
    Whole { before: Position, end: Position },
    /// It cannot be read.
    Damaged { first: u64, last: u64 },
}

/// Returns the blocks of an inbox, in order.
fn pieces(repair: &Repair, id: InboxId, inbox: &Inbox) -> Result<Vec<Piece>, ReadError> {
    let mut pieces = Vec::new();
    repair.visit(id, inbox.cursor.sequence.0, &mut |found| {
        pieces.push(match found {
            Ok(block) => match ledger::measure(&block) {
                Ok((before, end)) => Piece::Whole { before, end },
                Err(Malformed) => Piece::Damaged { first: block.first, last: block.last },
            },
            Err(DamagedBlock { first, last, .. }) => Piece::Damaged { first, last },
        });
        ControlFlow::Continue(())
    })?;
    Ok(pieces)
}

/// Returns the gaps in the place of damaged blocks, between the cursor and the last position
/// of an inbox.
fn gaps_in(pieces: &[Piece], cursor: Position, tail: Position) -> Vec<Gap> {
    let (mut gaps, mut damaged) = (Vec::new(), Vec::new());
    let mut known = cursor;
    for piece in pieces {
        match *piece {
            Piece::Damaged { first, last } => damaged.push((first, last)),
            Piece::Whole { before, end } => {
                fill(&mut gaps, &mut damaged, known, before);
                known = end;
            }
        }
    }
    fill(&mut gaps, &mut damaged, known, tail);
    gaps
}

/// Fills the place between two known positions: one gap for each damaged block, of
/// which the first counts all messages that are missing.
fn fill(gaps: &mut Vec<Gap>, damaged: &mut Vec<(u64, u64)>, from: Position, to: Position) {
    let mut messages = to.messages.saturating_sub(from.messages);
    let mut bytes = to.bytes.saturating_sub(from.bytes);
    for (first, last) in damaged.drain(..) {
        let end = Position { sequence: Sequence(last), ..to };
        gaps.push(Gap { first, end, messages, bytes });
        (messages, bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::shard::offline::OfflineStore;
    use crate::store::Message;

    const fn at(sequence: u64, messages: u64) -> Position {
        Position { sequence: Sequence(sequence), messages, bytes: 10 * messages }
    }

    const fn whole(before: u64, last: u64, end: u64) -> Piece {
        Piece::Whole { before: at(0, before), end: at(last, end) }
    }

    const fn damaged(first: u64, last: u64) -> Piece {
        Piece::Damaged { first, last }
    }

    const fn gap(first: u64, last: u64, messages: u64, end: u64) -> Gap {
        Gap { first, end: at(last, end), messages, bytes: 10 * messages }
    }

    #[test]
    fn whole_inbox_has_no_gap() {
        let pieces = [whole(0, 7, 3), whole(3, 9, 4)];
        assert_eq!(gaps_in(&pieces, at(0, 0), at(9, 4)), []);
        assert_eq!(gaps_in(&pieces, at(6, 2), at(9, 4)), [], "partly acknowledged");
        assert_eq!(gaps_in(&[], at(9, 4), at(9, 4)), []);
    }

    #[test]
    fn gaps_of_damaged_blocks_count_all_messages() {
        let pieces = [whole(0, 7, 3), damaged(8, 9), damaged(12, 12), whole(8, 20, 9)];
        assert_eq!(gaps_in(&pieces, at(0, 0), at(20, 9)), [gap(8, 9, 5, 8), gap(12, 12, 0, 8)]);
        let at_end = gaps_in(&pieces[..3], at(0, 0), at(12, 7));
        assert_eq!(at_end, [gap(8, 9, 4, 7), gap(12, 12, 0, 7)]);
        assert_eq!(gaps_in(&pieces[1..2], at(8, 4), at(9, 5)), [gap(8, 9, 1, 5)], "partly acknowledged");
    }

    /// Flips a bit in every place of the log that holds this text.
    fn damage(folder: &Path, text: &str) {
        let mut damaged = 0;
        for entry in fs::read_dir(folder.join("log")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let parts = bytes.windows(text.len()).enumerate();
            let places: Vec<_> =
                parts.filter(|(_, part)| *part == text.as_bytes()).map(|(at, _)| at).collect();
            for at in &places {
                bytes[*at] ^= 1;
            }
            damaged += places.len();
            if !places.is_empty() {
                fs::write(&path, bytes).unwrap();
            }
        }
        assert!(damaged > 0, "{text:?} is in no file");
    }

    /// Reads everything: the texts, and the counts at which pages begin later.
    fn read(folder: &Path) -> (Vec<String>, Vec<u64>) {
        let store = OfflineStore::open(folder).unwrap();
        let account = store.inboxes().pop().unwrap().entry.account;
        let (mut texts, mut skipped, mut after) = (Vec::new(), Vec::new(), Sequence(0));
        loop {
            let page = store.read(&account, after).unwrap();
            if let Some(start) = page.starts_after {
                skipped.push(start.messages);
                after = start.sequence;
            }
            for message in &page.messages {
                texts.push(message.text.to_string());
                after = message.position.sequence;
            }
            if page.complete {
                store.close().unwrap();
                return (texts, skipped);
            }
        }
    }

    #[test]
    fn dropped_damage_leaves_the_other_messages() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let amy: UserName = "amy".parse().unwrap();
        let mut store = OfflineStore::open(folder).unwrap();
        store.import_account(&amy, None, Sequence(0)).unwrap();
        for number in 1..=9 {
            let position = Position { sequence: Sequence(number), ..Position::default() };
            let text = format!("{number}: marked").into();
            store.import_message(&amy, Message { position, sender: None, time_ms: 1, text }).unwrap();
            store.commit().unwrap();
        }
        store.close().unwrap();
        damage(folder, "5: marked");
        let found = check(folder).unwrap();
        assert_eq!((found.accounts, found.messages), (1, 9));
        let numbers =
            |found: &Findings| found.damaged.iter().map(|(_, block)| block.first).collect::<Vec<_>>();
        assert_eq!(numbers(&found), [5]);
        let dropped = drop_damaged(folder).unwrap();
        assert_eq!(dropped.iter().map(|(_, gap)| (gap.first, gap.messages)).collect::<Vec<_>>(), [(5, 1)]);
        assert_eq!(numbers(&check(folder).unwrap()), [0; 0]);
        for _ in 0..2 {
            let left = [1, 2, 3, 4, 6, 7, 8, 9].map(|number| format!("{number}: marked"));
            assert_eq!(read(folder), (left.to_vec(), vec![5]));
        }
    }
}
