//! A small ledger over the log, and a model of the log's content.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use rand::rngs::StdRng;

use super::super::file::Storage as _;
use super::super::head::HeadFile;
use super::super::maintenance::{Maintenance, Runner};
use super::super::*;
use super::sim::{SimStorage, below};
use crate::log::contract::read;
use crate::log::{Block, Durability, ReadError};

/// Opens the log of a simulated storage, with its maintenance between the appends.
#[derive(Debug, Clone)]
pub(super) struct SimOpener {
    pub(super) storage: SimStorage,
    pub(super) segment_bytes: u64,
}

impl SimOpener {
    pub(super) fn new(segment_bytes: u64) -> Self {
        Self {
            storage: SimStorage::default(),
            segment_bytes,
        }
    }

    pub(super) fn on(&self, storage: SimStorage) -> Self {
        Self { storage, ..*self }
    }

    /// Makes a new log, as the folder of a store does before it is one.
    fn prepare(&self) -> io::Result<()> {
        let files = self.storage.files();
        let is_new = files.iter().all(|(name, _)| !name.ends_with(".segment"));
        let has_head =
            || HeadFile::open(&self.storage).is_ok_and(|head| matches!(head.read(), Ok(Some(_))));
        if is_new && !has_head() {
            HeadFile::create(&self.storage).map(drop)
        } else {
            Ok(())
        }
    }

    pub(super) fn open_disk(&self, replay: &mut Replay<'_>) -> Result<Box<DiskLog>, OpenError> {
        self.prepare().map_err(|source| OpenError::Io {
            path: self.storage.path(""),
            source,
        })?;
        let storage = Arc::new(self.storage.clone());
        let mut log = DiskLog::open(storage, Some(self.segment_bytes), replay)?;
        log.runner = Some(Runner::Inline(Box::new(Maintenance::new(Arc::clone(
            &log.shared,
        )))));
        Ok(Box::new(log))
    }
}

impl Opener for SimOpener {
    fn open(&self, replay: &mut Replay<'_>) -> Result<Box<dyn Log>, OpenError> {
        Ok(self.open_disk(replay)?)
    }

    fn path(&self) -> &Path {
        Path::new("sim")
    }
}

/// The state that the records of the frames describe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    /// The number of the last frame.
    pub(super) frame: u64,
    /// The cursor of each inbox that exists.
    pub(super) cursors: BTreeMap<InboxId, u64>,
}

impl Ledger {
    /// Applies the records of a frame: words that hold absolute values.
    pub(super) fn apply(&mut self, records: &[u8]) {
        for record in std::str::from_utf8(records).unwrap().split_terminator(';') {
            let words: Vec<&str> = record.split(' ').collect();
            match words[..] {
                ["frame", frame] => self.frame = frame.parse().unwrap(),
                ["cursor", inbox, number] => {
                    self.cursors
                        .insert(inbox.parse().unwrap(), number.parse().unwrap());
                }
                ["end", inbox] => {
                    self.cursors.remove(&inbox.parse().unwrap());
                }
                _ => panic!("unknown record {record}"),
            }
        }
    }

    /// The records of a part of a checkpoint: the inboxes that are even or odd.
    fn part(&self, remainder: u64) -> String {
        let cursors = self
            .cursors
            .iter()
            .filter(|(inbox, _)| **inbox % 2 == remainder);
        cursors
            .map(|(inbox, number)| format!("cursor {inbox} {number};"))
            .collect()
    }
}

/// A run of a ledger over a log: the appended frames, and the state after each.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// The state after each frame, from none on.
    pub(super) states: Vec<Ledger>,
    /// Every block, with the number of its frame.
    pub(super) blocks: Vec<(u64, Block)>,
    /// Frames that are on stable storage.
    pub(super) durable: u64,
    /// Frames whose append has returned.
    pub(super) returned: u64,
    next_number: u64,
    next_inbox: InboxId,
    part: Option<u64>,
    /// Some frames are not synced.
    pub(super) is_mixed: bool,
}

/// Maximum bytes of a merged block: it fits into a segment.
const MERGED_BYTES_MAX: usize = 4000;

/// The reason why a step failed.
type Failure = AppendError;

impl Run {
    pub(super) fn new() -> Self {
        Self {
            states: vec![Ledger::default()],
            next_number: 1,
            next_inbox: 1,
            is_mixed: true,
            ..Self::default()
        }
    }

    pub(super) fn state(&self) -> &Ledger {
        self.states.last().unwrap()
    }

    /// Forgets the frames after a number, which were legitimately lost.
    pub(super) fn truncate(&mut self, frame: u64) {
        self.states.truncate(frame as usize + 1);
        self.blocks.retain(|(of, _)| *of <= frame);
        (self.returned, self.durable, self.part) = (frame, frame, None);
    }

    /// Takes a random step.
    pub(super) fn step(&mut self, log: &mut dyn Log, random: &mut StdRng) -> Result<(), Failure> {
        let durability = if self.is_mixed && below(random, 4) == 0 {
            Durability::Process
        } else {
            Durability::Machine
        };
        if let Some(remainder) = self.part.take() {
            let records = self.state().part(remainder);
            return self.append(log, records, Vec::new(), Some(1), durability);
        }
        if log.is_checkpoint_due() && below(random, 4) == 0 {
            let records = self.state().part(0);
            return self.append(log, records, Vec::new(), Some(0), durability);
        }
        let inboxes: Vec<_> = self.state().cursors.keys().copied().collect();
        match below(random, 11) {
            0..5 => {
                let blocks = self.some_blocks(&inboxes, random);
                self.append(log, String::new(), blocks, None, durability)
            }
            9 if !inboxes.is_empty() => self.merge(log, &inboxes, random, durability),
            5..9 if !inboxes.is_empty() => {
                let inbox = inboxes[below(random, inboxes.len() as u64) as usize];
                let pending = self.expected(self.state().frame, inbox);
                let some = below(random, pending.len() as u64 + 1) as usize;
                let Some(block) = pending[..some].last() else {
                    return Ok(());
                };
                let through = block.last - below(random, 2).min(block.last - block.first);
                self.append(
                    log,
                    format!("cursor {inbox} {through};"),
                    Vec::new(),
                    None,
                    durability,
                )?;
                log.release(inbox, through);
                Ok(())
            }
            _ if inboxes.len() > 4 => {
                let inbox = inboxes[below(random, inboxes.len() as u64) as usize];
                self.append(log, format!("end {inbox};"), Vec::new(), None, durability)?;
                log.release(inbox, u64::MAX);
                Ok(())
            }
            _ => {
                let inbox = self.next_inbox;
                self.next_inbox += 1;
                self.append(
                    log,
                    format!("cursor {inbox} 0;"),
                    Vec::new(),
                    None,
                    durability,
                )
            }
        }
    }

    fn some_blocks(&mut self, inboxes: &[InboxId], random: &mut StdRng) -> Vec<Block> {
        let mut blocks = Vec::new();
        for &inbox in inboxes {
            if below(random, 3) > 0 {
                continue;
            }
            let (first, last) = (self.next_number, self.next_number + below(random, 3));
            self.next_number = last + 1 + below(random, 3);
            let length = if below(random, 20) == 0 {
                3000
            } else {
                20 + below(random, 200)
            };
            let word = format!("{inbox} {first} ");
            let payload: Vec<u8> = word.bytes().cycle().take(length as usize).collect();
            blocks.push(Block {
                inbox,
                first,
                last,
                payload: payload.into(),
            });
        }
        blocks
    }

    /// Merges consecutive blocks of an inbox.
    fn merge(
        &mut self,
        log: &mut dyn Log,
        inboxes: &[InboxId],
        random: &mut StdRng,
        durability: Durability,
    ) -> Result<(), Failure> {
        let inbox = inboxes[below(random, inboxes.len() as u64) as usize];
        let pending = self.expected(self.state().frame, inbox);
        let start = below(random, pending.len() as u64 + 1) as usize;
        let count = 1 + below(random, 6) as usize;
        let merged: Vec<_> = pending.into_iter().skip(start).take(count).collect();
        let (Some(first), Some(last)) = (merged.first(), merged.last()) else {
            return Ok(());
        };
        let payload: Vec<u8> = merged
            .iter()
            .flat_map(|block| block.payload.to_vec())
            .collect();
        let block = Block {
            inbox,
            first: first.first,
            last: last.last,
            payload: payload.into(),
        };
        if block.payload.len() > MERGED_BYTES_MAX {
            return Ok(());
        }
        let frame = Frame {
            merged: vec![block.clone()],
            ..Frame::default()
        };
        self.append_frame(log, frame, String::new(), durability)
    }

    fn append(
        &mut self,
        log: &mut dyn Log,
        records: String,
        blocks: Vec<Block>,
        part: Option<u64>,
        durability: Durability,
    ) -> Result<(), Failure> {
        let frame = Frame {
            blocks,
            checkpoint: part.map(|part| CheckpointPart {
                is_first: part == 0,
                is_last: part == 1,
            }),
            ..Frame::default()
        };
        self.append_frame(log, frame, records, durability)?;
        if part == Some(0) {
            self.part = Some(1);
        }
        Ok(())
    }

    fn append_frame(
        &mut self,
        log: &mut dyn Log,
        appended: Frame,
        records: String,
        durability: Durability,
    ) -> Result<(), Failure> {
        let frame = self.state().frame + 1;
        let records = format!("frame {frame};{records}");
        let mut state = self.state().clone();
        state.apply(records.as_bytes());
        self.states.push(state);
        let blocks = appended.blocks.iter().chain(&appended.merged);
        self.blocks
            .extend(blocks.map(|block| (frame, block.clone())));
        let appended = Frame {
            records: records.into_bytes(),
            ..appended
        };
        if let Err(error) = log.append(appended, durability) {
            if matches!(error, AppendError::NoSpace) {
                self.truncate_undecided(frame - 1);
            }
            return Err(error);
        }
        self.returned = frame;
        if durability == Durability::Machine {
            self.durable = frame;
        }
        Ok(())
    }

    /// Forgets a frame that was refused.
    fn truncate_undecided(&mut self, frame: u64) {
        self.states.truncate(frame as usize + 1);
        self.blocks.retain(|(of, _)| *of <= frame);
    }

    /// The live blocks of an inbox after a frame.
    pub(super) fn expected(&self, frame: u64, inbox: InboxId) -> Vec<Block> {
        let Some(&cursor) = self.states[frame as usize].cursors.get(&inbox) else {
            return Vec::new();
        };
        let blocks = self
            .blocks
            .iter()
            .filter(|(of, block)| *of <= frame && block.inbox == inbox && block.last > cursor);
        // A merged block replaces older ones in its range.
        let mut live: Vec<&Block> = Vec::new();
        for (_, block) in blocks {
            live.retain(|other| other.first < block.first || block.last < other.last);
            live.push(block);
        }
        live.sort_unstable_by_key(|block| block.first);
        live.into_iter().cloned().collect()
    }

    /// Opens the log and compares it with the model. Returns it with the number of its
    /// last frame, between `least` and the last attempted one.
    pub(super) fn reopen(
        &self,
        opener: &SimOpener,
        least: u64,
    ) -> Result<(Box<DiskLog>, u64), OpenError> {
        let mut ledger = Ledger::default();
        let mut log = opener.open_disk(&mut |records| {
            ledger.apply(records);
            Ok(())
        })?;
        assert!(
            ledger.frame >= least,
            "frame {} of {least} is the last",
            ledger.frame
        );
        assert_eq!(
            ledger, self.states[ledger.frame as usize],
            "the state after the last frame"
        );
        log.retain(&mut |inbox| ledger.cursors.get(&inbox).copied());
        self.compare(&*log, ledger.frame).unwrap();
        Ok((log, ledger.frame))
    }

    /// Compares every inbox with the model.
    pub(super) fn compare(&self, log: &dyn Log, frame: u64) -> Result<(), ReadError> {
        let reader = log.reader();
        let mut live = 0;
        for inbox in 0..self.next_inbox {
            let expected = self.expected(frame, inbox);
            assert_eq!(
                read(&*reader, inbox, 0)?,
                expected,
                "inbox {inbox} after frame {frame}"
            );
            live += expected
                .iter()
                .map(|block| block.payload.len() as u64)
                .sum::<u64>();
        }
        // Partly released runs count in full.
        assert!(log.usage().live_bytes >= live);
        Ok(())
    }
}
