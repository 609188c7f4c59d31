//! Salvage: the readable part of a store whose log cannot be opened, with gaps for the
//! unreadable messages.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::ShardConfig;
use super::check::{CheckError, CheckedBlock, Loss, losses};
use super::open::replay_frame;
use super::snapshot::{LogBounds, logs};
use crate::ledger::{Changes, Checkpoint, Ledger, Replay};
use crate::log::disk::repair::RepairError;
use crate::log::disk::salvage::{Lost, Rebuild, Salvage};
use crate::log::{AppendError, Block, Frame, InboxId, OpenError, ReadError};

/// Bytes of blocks written in one frame.
const FRAME_BYTES: usize = 1024 * 1024;

/// Opens the log of a folder, and replays its records.
type Open = fn(&Path, &mut dyn FnMut(&[u8]) -> Result<(), OpenError>) -> Result<Salvage, OpenError>;

/// The readable part of a store.
#[derive(Debug)]
pub(crate) struct SalvagedStore {
    log: Salvage,
    ledger: Ledger,
    logs: Vec<SalvagedLog>,
    /// Logs with messages whose accounts or rooms are lost, and their numbers of blocks.
    pub(crate) unknown: Vec<(InboxId, usize)>,
}

/// An inbox or a room that is at least partly readable.
#[derive(Debug, Clone)]
pub(crate) struct SalvagedLog {
    pub(crate) bounds: LogBounds,
    pub(crate) losses: Vec<Loss>,
}

impl SalvagedStore {
    /// Reads the store in a folder as far as possible, without changes.
    pub(crate) fn open(folder: &Path) -> Result<Self, CheckError> {
        Self::read(folder, Salvage::open)
    }

    fn read(folder: &Path, open: Open) -> Result<Self, CheckError> {
        let mut replay = Replay::new(ShardConfig::UNBOUNDED.limits());
        let log = open(folder, &mut |records| {
            replay_frame(&mut replay, folder, records)
        })?;
        let ledger = replay.finish(log.last_number());
        let mut store = Self {
            log,
            ledger,
            logs: Vec::new(),
            unknown: Vec::new(),
        };
        for bounds in logs(&store.ledger) {
            let log = store.measure(bounds)?;
            store.ledger.raise_tail(log.bounds.id, log.bounds.tail);
            store.logs.push(log);
        }
        store.unknown = store.unknown_logs()?;
        Ok(store)
    }

    /// Returns all inboxes in the order of their names, then all rooms.
    pub(crate) fn logs(&self) -> &[SalvagedLog] {
        &self.logs
    }

    /// Returns the losses besides messages.
    pub(crate) const fn lost(&self) -> &Lost {
        self.log.lost()
    }

    /// Visits the blocks of a log in order, with gaps for unreadable ones.
    pub(crate) fn visit(
        &self,
        log: &SalvagedLog,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let id = log.bounds.id;
        let mut gaps = log.losses.iter().map(|loss| loss.gap.block(id)).peekable();
        let mut is_ended = false;
        self.log
            .visit(id, log.bounds.head.sequence.0, &mut |found| {
                let first = match &found {
                    Ok(block) => block.first,
                    Err(damaged) => damaged.first,
                };
                let before = std::iter::from_fn(|| gaps.next_if(|gap| gap.first <= first));
                let found = found.ok().filter(|block| {
                    matches!(
                        CheckedBlock::from(Ok(block.clone())),
                        CheckedBlock::Whole { .. }
                    )
                });
                let flow = before.chain(found).try_for_each(&mut *visit);
                is_ended = flow.is_break();
                flow
            })?;
        if !is_ended {
            let _ = gaps.try_for_each(visit);
        }
        Ok(())
    }

    /// Determines the losses of a log, and its end.
    fn measure(&self, mut bounds: LogBounds) -> Result<SalvagedLog, ReadError> {
        let mut pieces = Vec::new();
        let (id, head) = (bounds.id, bounds.head);
        self.log.visit(id, head.sequence.0, &mut |found| {
            pieces.push(CheckedBlock::from(found));
            ControlFlow::Continue(())
        })?;
        // The record of the last position may be lost.
        for piece in &pieces {
            if let CheckedBlock::Whole { end, .. } = piece
                && end.sequence > bounds.tail.sequence
            {
                bounds.tail = *end;
            }
        }
        let losses = losses(&pieces, head, bounds.tail);
        Ok(SalvagedLog { bounds, losses })
    }

    fn unknown_logs(&self) -> Result<Vec<(InboxId, usize)>, ReadError> {
        let known: HashSet<_> = self.logs.iter().map(|log| log.bounds.id).collect();
        let mut unknown = HashMap::new();
        // Blocks left by accounts and rooms that ended are no loss.
        let is_certain = self.lost().commits.is_empty() && !self.lost().has_no_checkpoint;
        for inbox in self
            .log
            .inboxes()
            .filter(|inbox| !is_certain && !known.contains(inbox))
        {
            self.log.visit(inbox, 0, &mut |_| {
                *unknown.entry(inbox).or_insert(0) += 1;
                ControlFlow::Continue(())
            })?;
        }
        let mut unknown: Vec<_> = unknown.into_iter().collect();
        unknown.sort_unstable();
        Ok(unknown)
    }
}

/// Writes the readable part of the store in a folder as its new log, and keeps the
/// damaged log beside it. Returns the salvaged store, and the folder of the damaged log.
pub(crate) fn rebuild(folder: &Path) -> Result<(SalvagedStore, PathBuf), CheckError> {
    let store = SalvagedStore::read(folder, Salvage::open_for_rebuild)?;
    let mut rebuild = store.log.rebuild()?;
    for log in &store.logs {
        let (mut frame, mut bytes, mut failed) = (Frame::default(), 0, None);
        store.visit(log, &mut |block| {
            bytes += block.payload.len();
            frame.blocks.push(block);
            if bytes < FRAME_BYTES {
                return ControlFlow::Continue(());
            }
            bytes = 0;
            failed = rebuild.append(std::mem::take(&mut frame)).err();
            if failed.is_some() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        failed
            .map_or(Ok(()), Err)
            .and_then(|()| rebuild.append(frame))
            .map_err(RepairError::from)?;
    }
    append_ledger(&store.ledger, &mut rebuild).map_err(RepairError::from)?;
    let damaged = rebuild.finish().map_err(RepairError::from)?;
    Ok((store, damaged))
}

fn append_ledger(ledger: &Ledger, rebuild: &mut Rebuild<'_>) -> Result<(), AppendError> {
    let (mut checkpoint, mut changes) = (Checkpoint::default(), Changes::default());
    while !checkpoint.is_complete() {
        rebuild.append(checkpoint.next_piece(ledger, &mut changes))?;
    }
    Ok(())
}
