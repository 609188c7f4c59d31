//! Salvage: the readable part of a store whose log cannot be opened, with gaps for the
//! unreadable messages.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::ShardConfig;
use super::check::{CheckError, CheckedBlock, Loss, losses};
use super::open::replay_frame;
use super::snapshot::{InboxSnapshot, inboxes};
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
    inboxes: Vec<SalvagedInbox>,
    /// Inboxes with messages whose accounts are lost, and their numbers of blocks.
    pub(crate) unknown: Vec<(InboxId, usize)>,
}

/// An inbox that is at least partly readable.
#[derive(Debug, Clone)]
pub(crate) struct SalvagedInbox {
    pub(crate) inbox: InboxSnapshot,
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
            inboxes: Vec::new(),
            unknown: Vec::new(),
        };
        for inbox in inboxes(&store.ledger) {
            let inbox = store.measure(inbox)?;
            store
                .ledger
                .raise_tail(&inbox.inbox.entry.account, inbox.inbox.tail);
            store.inboxes.push(inbox);
        }
        store.unknown = store.unknown_inboxes()?;
        Ok(store)
    }

    /// Returns the inboxes in the order of their names.
    pub(crate) fn inboxes(&self) -> &[SalvagedInbox] {
        &self.inboxes
    }

    /// Returns the losses besides messages.
    pub(crate) const fn lost(&self) -> &Lost {
        self.log.lost()
    }

    /// Visits the blocks of an inbox in order, with gaps for unreadable ones.
    pub(crate) fn visit(
        &self,
        inbox: &SalvagedInbox,
        visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let id = inbox.inbox.entry.account.incarnation;
        let mut gaps = inbox
            .losses
            .iter()
            .map(|loss| loss.gap.block(id))
            .peekable();
        let mut is_ended = false;
        self.log
            .visit(id, inbox.inbox.cursor.sequence.0, &mut |found| {
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

    /// Determines the losses of an inbox, and its end.
    fn measure(&self, mut inbox: InboxSnapshot) -> Result<SalvagedInbox, ReadError> {
        let mut pieces = Vec::new();
        let id = inbox.entry.account.incarnation;
        self.log.visit(id, inbox.cursor.sequence.0, &mut |found| {
            pieces.push(CheckedBlock::from(found));
            ControlFlow::Continue(())
        })?;
        // The record of the last position may be lost.
        for piece in &pieces {
            if let CheckedBlock::Whole { end, .. } = piece
                && end.sequence > inbox.tail.sequence
            {
                inbox.tail = *end;
            }
        }
        let losses = losses(&pieces, inbox.cursor, inbox.tail);
        Ok(SalvagedInbox { inbox, losses })
    }

    fn unknown_inboxes(&self) -> Result<Vec<(InboxId, usize)>, ReadError> {
        let known: HashSet<_> = self
            .inboxes
            .iter()
            .map(|inbox| inbox.inbox.entry.account.incarnation)
            .collect();
        let mut unknown = HashMap::new();
        // Blocks left by deleted accounts are no loss.
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
    for inbox in &store.inboxes {
        let (mut frame, mut bytes, mut failed) = (Frame::default(), 0, None);
        store.visit(inbox, &mut |block| {
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
