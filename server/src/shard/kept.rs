//! A log for tests and fuzz targets, with faults. Its frames persist over opens. It can
//! hold back appends, fail them, and run out of space.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "the fuzz targets need a part of it")
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::log::memory::MemoryOpener;
use crate::log::{
    AppendError, Block, CheckpointPart, Durability, Frame, InboxId, Log, LogError, OpenError,
    Opener, Reader, Usage,
};

/// Frames after which a checkpoint is due: few, so that every test has checkpoints.
const FRAMES_MAX: usize = 8;

/// The kind of a failed append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// None of the frame was written.
    Before,
    /// All of the frame was written, but its sync failed.
    After,
    /// There was no space for the frame.
    NoSpace,
}

/// The persistent frames and the faults, shared by all logs of an opener.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    state: Mutex<KeptState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct KeptState {
    records: Vec<(Vec<u8>, Option<CheckpointPart>)>,
    blocks: Vec<Block>,
    is_holding: bool,
    is_held: bool,
    /// The failure of the next append.
    failure: Option<Failure>,
    is_low_on_space: bool,
    is_full: bool,
    longest_frame: usize,
    segment_bytes: Option<u64>,
    opens_fail: bool,
    failed_opens: usize,
    appends: Vec<Durability>,
    checkpoints: usize,
}

impl Kept {
    /// Makes the next append wait before its sync returns, until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.lock().is_holding = true;
    }

    /// Waits until an append is held.
    pub(crate) fn wait_until_held(&self) {
        drop(
            self.changed
                .wait_while(self.lock(), |state| !state.is_held)
                .unwrap(),
        );
    }

    /// Releases a held append.
    pub(crate) fn release(&self) {
        self.lock().is_holding = false;
        self.changed.notify_all();
    }

    /// Makes the next append fail. An append that is already held succeeds.
    pub(crate) fn fail_next(&self, failure: Failure) {
        self.lock().failure = Some(failure);
    }

    /// Sets whether free space is below the reserve.
    pub(crate) fn set_low_on_space(&self, is_low: bool) {
        self.lock().is_low_on_space = is_low;
    }

    /// Sets whether all space is used.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// Sets the size of a segment.
    pub(crate) fn set_segment_bytes(&self, bytes: u64) {
        self.lock().segment_bytes = Some(bytes);
    }

    /// Returns the length of the longest frame.
    pub(crate) fn longest_frame(&self) -> usize {
        self.lock().longest_frame
    }

    /// Sets whether opens fail.
    pub(crate) fn fail_opens(&self, fail: bool) {
        self.lock().opens_fail = fail;
    }

    /// Waits until `count` opens have failed.
    pub(crate) fn wait_for_failed_opens(&self, count: usize) {
        drop(
            self.changed
                .wait_while(self.lock(), |state| state.failed_opens < count)
                .unwrap(),
        );
    }

    /// Returns the durability that each append asked for, except those of checkpoints.
    pub(crate) fn appends(&self) -> Vec<Durability> {
        self.lock().appends.clone()
    }

    /// Returns the number of complete checkpoints.
    pub(crate) fn checkpoints(&self) -> usize {
        self.lock().checkpoints
    }

    /// Replaces the block with this first number.
    pub(crate) fn replace_block(&self, replacement: &Block) {
        for block in &mut self.lock().blocks {
            if (block.inbox, block.first) == (replacement.inbox, replacement.first) {
                block.clone_from(replacement);
            }
        }
    }

    /// Returns the live blocks.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        self.lock().blocks.clone()
    }

    fn lock(&self) -> MutexGuard<'_, KeptState> {
        self.state.lock().unwrap()
    }
}

impl KeptState {
    fn keep(&mut self, frame: &Frame) {
        if let Some(part) = frame.checkpoint {
            self.checkpoints += usize::from(part.is_last);
        }
        let bytes = frame.records.len()
            + frame
                .blocks
                .iter()
                .chain(&frame.merged)
                .map(|block| block.payload.len())
                .sum::<usize>();
        self.longest_frame = self.longest_frame.max(bytes);
        self.records.push((frame.records.clone(), frame.checkpoint));
        self.blocks.extend(frame.blocks.iter().cloned());
        for merged in &frame.merged {
            let is_replaced = |block: &Block| {
                block.inbox == merged.inbox
                    && merged.first <= block.first
                    && block.last <= merged.last
            };
            self.blocks.retain(|block| !is_replaced(block));
            self.blocks.push(merged.clone());
            self.blocks.sort_by_key(|block| block.first);
        }
        if frame.checkpoint.is_some_and(|part| part.is_last) {
            let first = self
                .records
                .iter()
                .rposition(|(_, part)| part.is_some_and(|part| part.is_first));
            self.records.drain(..first.unwrap());
        }
    }
}

/// Opens the persistent log.
#[derive(Debug, Default)]
pub(crate) struct KeptOpener {
    pub(crate) kept: Arc<Kept>,
}

impl Opener for KeptOpener {
    fn open(
        &self,
        replay: &mut dyn FnMut(&[u8]) -> Result<(), OpenError>,
    ) -> Result<Box<dyn Log>, OpenError> {
        let mut state = self.kept.lock();
        if state.opens_fail {
            state.failed_opens += 1;
            self.kept.changed.notify_all();
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(OpenError::Io {
                path: PathBuf::new(),
                source,
            });
        }
        let mut inner = MemoryOpener.open(&mut |_| Ok(()))?;
        for (records, _) in &state.records {
            replay(records)?;
        }
        for block in &state.blocks {
            let frame = Frame {
                blocks: vec![block.clone()],
                ..Frame::default()
            };
            inner.append(frame, Durability::Process).unwrap();
        }
        let kept = Arc::clone(&self.kept);
        Ok(Box::new(KeptLog {
            inner,
            kept,
            is_poisoned: false,
        }))
    }

    fn path(&self) -> &Path {
        Path::new("kept")
    }
}

#[derive(Debug)]
struct KeptLog {
    inner: Box<dyn Log>,
    kept: Arc<Kept>,
    is_poisoned: bool,
}

impl Log for KeptLog {
    fn append(&mut self, frame: Frame, durability: Durability) -> Result<(), AppendError> {
        assert!(!self.is_poisoned, "the log has failed, and is used again");
        let mut state = self.kept.lock();
        if frame.checkpoint.is_none() {
            state.appends.push(durability);
        }
        let failure = state.failure.take();
        if failure == Some(Failure::NoSpace) {
            return Err(AppendError::NoSpace);
        }
        if failure != Some(Failure::Before) {
            state.keep(&frame);
        }
        if state.is_holding {
            state.is_held = true;
            self.kept.changed.notify_all();
            state = self
                .kept
                .changed
                .wait_while(state, |state| state.is_holding)
                .unwrap();
            state.is_held = false;
        }
        drop(state);
        if failure.is_some() {
            self.is_poisoned = true;
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(LogError {
                path: PathBuf::new(),
                source,
            }
            .into());
        }
        self.inner.append(frame, durability)
    }

    fn release(&mut self, inbox: InboxId, through: u64) {
        self.kept
            .lock()
            .blocks
            .retain(|block| block.inbox != inbox || block.last > through);
        self.inner.release(inbox, through);
    }

    fn retain(&mut self, cursor: &mut dyn FnMut(InboxId) -> Option<u64>) {
        self.inner.retain(cursor);
    }

    fn reader(&self) -> Arc<dyn Reader> {
        self.inner.reader()
    }

    fn is_checkpoint_due(&self) -> bool {
        let state = self.kept.lock();
        let last = state
            .records
            .iter()
            .rposition(|(_, part)| part.is_some_and(|part| part.is_last));
        state.records.len() - last.map_or(0, |last| last + 1) > FRAMES_MAX
    }

    fn segment_bytes(&self) -> u64 {
        self.kept
            .lock()
            .segment_bytes
            .unwrap_or_else(|| self.inner.segment_bytes())
    }

    fn is_low_on_space(&self) -> bool {
        self.kept.lock().is_low_on_space
    }

    fn is_full(&self) -> bool {
        self.kept.lock().is_full
    }

    fn has_pending_work(&self) -> bool {
        self.inner.has_pending_work()
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }

    fn close(self: Box<Self>) -> Result<(), LogError> {
        self.inner.close()
    }
}
