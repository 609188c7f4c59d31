//! Checks of a store that is not being served, and removal of its damage: gaps replace
//! damaged and missing blocks, so that the running counts of an inbox stay contiguous.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;

use hark_protocol::Sequence;

use super::ShardConfig;
use super::open::replay_frame;
use super::snapshot::{LogBounds, StoreSnapshot, logs};
use crate::ledger::{self, Gap, Malformed, Replay};
use crate::log::disk::repair::{DamagedBlock, Repair, RepairError};
use crate::log::{Block, OpenError, ReadError};
use crate::store::Position;

/// The result of a check.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The number of accounts.
    pub(crate) accounts: usize,
    /// The number of unacknowledged messages, including lost ones.
    pub(crate) messages: u64,
    /// Unreadable messages, by the name of their account or room.
    pub(crate) losses: Vec<(String, Loss)>,
}

/// Unreadable messages of one log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The gap that replaces them.
    pub(crate) gap: Gap,
    /// Their block is missing rather than damaged.
    pub(crate) is_missing: bool,
}

/// The reason why a store cannot be checked or repaired.
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

/// Reads everything in the store of a folder, without changes.
pub(crate) fn check(folder: &Path) -> Result<Findings, CheckError> {
    let store = StoreSnapshot::open(folder)?;
    let logs = store.logs();
    let mut findings = Findings {
        accounts: logs.iter().filter(|log| log.account.is_some()).count(),
        messages: 0,
        losses: Vec::new(),
    };
    for log in logs {
        findings.messages += log.tail.messages.saturating_sub(log.head.messages);
        let mut pieces = Vec::new();
        store.log.visit(log.id, log.head.sequence.0, &mut |found| {
            pieces.push(CheckedBlock::from(found));
            ControlFlow::Continue(())
        })?;
        let losses = losses(&pieces, log.head, log.tail).into_iter();
        findings
            .losses
            .extend(losses.map(|loss| (log.name.clone(), loss)));
    }
    Ok(findings)
}

/// Replaces unreadable messages with gaps, and returns the gaps.
pub(crate) fn drop_damaged(folder: &Path) -> Result<Vec<(String, Loss)>, CheckError> {
    let mut replay = Replay::new(ShardConfig::UNBOUNDED.limits());
    let mut repair = Repair::open(folder, &mut |records| {
        replay_frame(&mut replay, folder, records)
    })?;
    let logs = logs(&replay.finish(0));
    let heads: HashMap<_, _> = logs
        .iter()
        .map(|log| (log.id, log.head.sequence.0))
        .collect();
    repair.retain(&mut |log| heads.get(&log).copied());
    let mut dropped = Vec::new();
    for log in logs {
        let losses = losses_of(&repair, &log)?;
        if !losses.is_empty() {
            let gaps: Vec<_> = losses.iter().map(|loss| loss.gap.block(log.id)).collect();
            repair.replace(log.id, gaps)?;
            let losses = losses.into_iter();
            dropped.extend(losses.map(|loss| (log.name.clone(), loss)));
        }
    }
    repair.close()?;
    Ok(dropped)
}

fn losses_of(repair: &Repair, log: &LogBounds) -> Result<Vec<Loss>, ReadError> {
    let mut pieces = Vec::new();
    repair.visit(log.id, log.head.sequence.0, &mut |found| {
        pieces.push(CheckedBlock::from(found));
        ControlFlow::Continue(())
    })?;
    Ok(losses(&pieces, log.head, log.tail))
}

/// A block, and whether it is readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CheckedBlock {
    /// A readable block: the positions before its first message and of its last.
    Whole { before: Position, end: Position },
    /// An unreadable block.
    Damaged { first: u64, last: u64 },
}

impl From<Result<Block, DamagedBlock>> for CheckedBlock {
    fn from(found: Result<Block, DamagedBlock>) -> Self {
        match found {
            Ok(block) => match ledger::measure(&block) {
                Ok((before, end)) => Self::Whole { before, end },
                Err(Malformed) => Self::Damaged {
                    first: block.first,
                    last: block.last,
                },
            },
            Err(DamagedBlock { first, last, .. }) => Self::Damaged { first, last },
        }
    }
}

/// Returns the losses between the head and the last position of a log, given its blocks
/// in order.
pub(super) fn losses(pieces: &[CheckedBlock], head: Position, tail: Position) -> Vec<Loss> {
    let (mut losses, mut damaged) = (Vec::new(), Vec::new());
    let mut known = head;
    for piece in pieces {
        match *piece {
            CheckedBlock::Damaged { first, last } => damaged.push((first, last)),
            CheckedBlock::Whole { before, end } => {
                fill(&mut losses, &mut damaged, known, before);
                known = end;
            }
        }
    }
    fill(&mut losses, &mut damaged, known, tail);
    losses
}

/// Fills the space between two known positions: one gap for each damaged block, of which
/// the first counts all missing messages. Without a damaged block, there is one gap if
/// messages are missing.
fn fill(losses: &mut Vec<Loss>, damaged: &mut Vec<(u64, u64)>, from: Position, to: Position) {
    let mut messages = to.messages.saturating_sub(from.messages);
    let mut bytes = to.bytes.saturating_sub(from.bytes);
    let is_missing = damaged.is_empty() && messages > 0;
    if is_missing {
        damaged.push((from.sequence.0.saturating_add(1), to.sequence.0));
    }
    for (first, last) in damaged.drain(..) {
        let end = Position {
            sequence: Sequence(last),
            ..to
        };
        losses.push(Loss {
            gap: Gap {
                first,
                end,
                messages,
                bytes,
            },
            is_missing,
        });
        (messages, bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use hark_protocol::UserName;

    use super::*;
    use crate::log::Opener as _;
    use crate::log::disk::{DiskConfig, DiskOpener};
    use crate::shard::offline::OfflineStore;
    use crate::shard::{StartError, salvage};
    use crate::store::Message;

    fn gaps_in(pieces: &[CheckedBlock], cursor: Position, tail: Position) -> Vec<Gap> {
        losses(pieces, cursor, tail)
            .into_iter()
            .map(|loss| loss.gap)
            .collect()
    }

    const fn at(sequence: u64, messages: u64) -> Position {
        Position {
            sequence: Sequence(sequence),
            messages,
            bytes: 10 * messages,
        }
    }

    const fn whole(before: u64, last: u64, end: u64) -> CheckedBlock {
        CheckedBlock::Whole {
            before: at(0, before),
            end: at(last, end),
        }
    }

    const fn damaged(first: u64, last: u64) -> CheckedBlock {
        CheckedBlock::Damaged { first, last }
    }

    const fn gap(first: u64, last: u64, messages: u64, end: u64) -> Gap {
        Gap {
            first,
            end: at(last, end),
            messages,
            bytes: 10 * messages,
        }
    }

    #[test]
    fn whole_inbox_has_no_gap() {
        let pieces = [whole(0, 7, 3), whole(3, 9, 4)];
        assert_eq!(gaps_in(&pieces, at(0, 0), at(9, 4)), []);
        assert_eq!(
            gaps_in(&pieces, at(6, 2), at(9, 4)),
            [],
            "partly acknowledged"
        );
        assert_eq!(gaps_in(&[], at(9, 4), at(9, 4)), []);
    }

    #[test]
    fn gaps_of_damaged_blocks_count_all_messages() {
        let pieces = [
            whole(0, 7, 3),
            damaged(8, 9),
            damaged(12, 12),
            whole(8, 20, 9),
        ];
        assert_eq!(
            gaps_in(&pieces, at(0, 0), at(20, 9)),
            [gap(8, 9, 5, 8), gap(12, 12, 0, 8)]
        );
        let at_end = gaps_in(&pieces[..3], at(0, 0), at(12, 7));
        assert_eq!(at_end, [gap(8, 9, 4, 7), gap(12, 12, 0, 7)]);
        assert_eq!(
            gaps_in(&pieces[1..2], at(8, 4), at(9, 5)),
            [gap(8, 9, 1, 5)],
            "partly acknowledged"
        );
    }

    #[test]
    fn missing_blocks_are_found_by_the_counts() {
        let pieces = [
            whole(0, 7, 3),
            CheckedBlock::Whole {
                before: at(11, 5),
                end: at(20, 9),
            },
        ];
        assert_eq!(gaps_in(&pieces, at(0, 0), at(20, 9)), [gap(8, 11, 2, 5)]);
        assert_eq!(
            gaps_in(&pieces, at(0, 0), at(25, 12))[1..],
            [gap(21, 25, 3, 12)]
        );
        assert_eq!(gaps_in(&[], at(4, 2), at(9, 4)), [gap(5, 9, 2, 4)]);
        assert!(losses(&[], at(4, 2), at(9, 4))[0].is_missing);
    }

    /// Changes the bytes of every file of the log, and checks that `change` changed one
    /// of them.
    fn change_files(folder: &Path, mut change: impl FnMut(&str, &mut Vec<u8>) -> bool) {
        let mut changed = 0;
        for entry in fs::read_dir(folder.join("log")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            if change(path.file_name().unwrap().to_str().unwrap(), &mut bytes) {
                fs::write(&path, bytes).unwrap();
                changed += 1;
            }
        }
        assert!(changed > 0, "there is nothing to change");
    }

    const SEGMENT_BYTES: u64 = 256 << 10;

    /// Creates a store with messages 1 to 9 to amy, each in its own commit.
    fn filled(folder: &Path) {
        // Opening the store without a size keeps its small segments.
        let config = DiskConfig {
            segment_bytes: Some(SEGMENT_BYTES),
            ..DiskConfig::default()
        };
        drop(
            DiskOpener::with_config(folder, config)
                .open(&mut |_| Ok(()))
                .unwrap(),
        );
        let amy: UserName = "amy".parse().unwrap();
        let mut store = OfflineStore::open(folder).unwrap();
        store.import_account(&amy, None, Sequence(0)).unwrap();
        for number in 1..=9 {
            let position = Position {
                sequence: Sequence(number),
                ..Position::default()
            };
            let text = format!("{number}: marked").into();
            store
                .import_message(
                    &amy,
                    Message {
                        position,
                        sender: None,
                        time_ms: 1,
                        text,
                    },
                )
                .unwrap();
            store.commit().unwrap();
        }
        store.close().unwrap();
    }

    /// Flips a bit wherever this text occurs in the log.
    fn damage(folder: &Path, text: &str) {
        change_files(folder, |_, bytes| {
            let parts = bytes.windows(text.len()).enumerate();
            let places: Vec<_> = parts
                .filter(|(_, part)| *part == text.as_bytes())
                .map(|(at, _)| at)
                .collect();
            places.iter().for_each(|at| bytes[*at] ^= 1);
            !places.is_empty()
        });
    }

    /// Flips a bit in the head of the frame whose block holds this text.
    fn damage_frame(folder: &Path, text: &str) {
        change_files(folder, |_, bytes| {
            let places = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes()));
            let frames: Vec<_> = places
                .map(|place| {
                    (0..place)
                        .rev()
                        .find(|at| bytes[*at..].starts_with(b"frm3"))
                        .unwrap()
                })
                .collect();
            frames.iter().for_each(|at| bytes[*at + 30] ^= 1);
            !frames.is_empty()
        });
    }

    /// Reads all messages. Returns the texts, and the counts at which pages start late.
    fn read(folder: &Path) -> (Vec<String>, Vec<u64>) {
        let store = StoreSnapshot::open(folder).unwrap();
        let log = store.logs().pop().unwrap().id;
        let (mut texts, mut skipped, mut after) = (Vec::new(), Vec::new(), Sequence(0));
        loop {
            let page = store.read(log, after).unwrap();
            if let Some(start) = page.starts_after {
                skipped.push(start.messages);
                after = start.sequence;
            }
            for message in &page.messages {
                texts.push(message.text.to_string());
                after = message.position.sequence;
            }
            if page.complete {
                return (texts, skipped);
            }
        }
    }

    #[test]
    fn dropped_damage_leaves_the_other_messages() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        damage(folder, "5: marked");
        let found = check(folder).unwrap();
        assert_eq!((found.accounts, found.messages), (1, 9));
        let numbers = |found: &Findings| {
            found
                .losses
                .iter()
                .map(|(_, loss)| loss.gap.first)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&found), [5]);
        let dropped = drop_damaged(folder).unwrap();
        assert_eq!(
            dropped
                .iter()
                .map(|(_, loss)| (loss.gap.first, loss.gap.messages))
                .collect::<Vec<_>>(),
            [(5, 1)]
        );
        assert_eq!(numbers(&check(folder).unwrap()), [0; 0]);
        for _ in 0..2 {
            let left = [1, 2, 3, 4, 6, 7, 8, 9].map(|number| format!("{number}: marked"));
            assert_eq!(read(folder), (left.to_vec(), vec![5]));
        }
    }

    #[test]
    fn damaged_frame_is_salvaged_with_a_gap() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        damage_frame(folder, "5: marked");
        assert!(matches!(
            check(folder),
            Err(CheckError::Open(OpenError::Damaged { .. }))
        ));
        let (store, damaged) = salvage::rebuild(folder).unwrap();
        assert_eq!(store.lost().commits.len(), 1);
        let gaps = store.logs()[0].losses.iter().map(|loss| loss.gap);
        let gaps: Vec<_> = gaps
            .map(|gap| (gap.first, gap.end.sequence.0, gap.messages))
            .collect();
        assert_eq!(gaps, [(5, 5, 1)]);
        assert!(damaged.join("HEAD").exists());
        drop(store);
        assert!(check(folder).unwrap().losses.is_empty());
        let left = [1, 2, 3, 4, 6, 7, 8, 9].map(|number| format!("{number}: marked"));
        assert_eq!(read(folder), (left.to_vec(), vec![5]));
    }

    #[test]
    fn lost_segment_is_salvaged_without_its_messages() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        // Half of the messages are in a second segment.
        drop(OfflineStore::open(folder).unwrap());
        let mut store = OfflineStore::open(folder).unwrap();
        let bob: UserName = "bob".parse().unwrap();
        store.import_account(&bob, None, Sequence(0)).unwrap();
        store.commit().unwrap();
        store.close().unwrap();
        let before = fs::read_dir(folder.join("log")).unwrap().count();
        change_files(folder, |name, bytes| {
            let is_newest =
                bytes.windows(3).any(|part| part == b"bob") && name.ends_with(".segment");
            if is_newest {
                [8, 4104].iter().for_each(|at| bytes[*at] ^= 1);
            }
            is_newest
        });
        assert!(matches!(
            check(folder),
            Err(CheckError::Open(OpenError::Damaged { .. }))
        ));
        let store = salvage::SalvagedStore::open(folder).unwrap();
        assert!(!store.lost().files.is_empty());
        drop(store);
        assert_eq!(fs::read_dir(folder.join("log")).unwrap().count(), before);
        let (store, _) = salvage::rebuild(folder).unwrap();
        assert!(
            store
                .logs()
                .iter()
                .all(|log| log.bounds.name != bob.as_str())
        );
        drop(store);
        check(folder).unwrap();
    }

    #[test]
    fn log_without_head_is_salvaged_whole() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        fs::remove_file(folder.join("log/HEAD")).unwrap();
        assert!(matches!(
            check(folder),
            Err(CheckError::Open(OpenError::Damaged { .. }))
        ));
        let (store, _) = salvage::rebuild(folder).unwrap();
        assert_eq!(
            (store.lost().commits.len(), store.logs()[0].losses.len()),
            (0, 0)
        );
        drop(store);
        assert_eq!(read(folder).0.len(), 9);
    }

    #[test]
    fn tools_keep_the_size_of_segments() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        for entry in fs::read_dir(folder.join("log")).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= SEGMENT_BYTES);
        }
    }

    #[test]
    fn emptied_log_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        filled(folder);
        fs::remove_dir_all(folder.join("log")).unwrap();
        fs::create_dir(folder.join("log")).unwrap();
        let opened = OfflineStore::open(folder);
        assert!(
            matches!(opened, Err(StartError::Log(OpenError::Damaged { .. }))),
            "{opened:?}"
        );
        assert_eq!(fs::read_dir(folder.join("log")).unwrap().count(), 0);
    }
}
