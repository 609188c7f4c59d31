//! Merging the blocks of scattered inboxes: many messages that were committed one by one
//! lie in blocks of one message, each of which costs a read. When such an inbox is read,
//! some of its blocks are replaced by larger ones. The log counts them as copies; no rule
//! of the ledger knows them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::ledger;
use crate::log::{Block, Reader};

/// The number of blocks of one message that are worth a merge; few in tests, so that
/// every test of reads has merges.
const SINGLES_MIN: usize = if cfg!(test) { 6 } else { 1000 };
/// A block of this size stays as it is: it is worth a read of its own.
const LARGE_BYTES: usize = 1024;
/// Maximum blocks that are merged at once.
const MERGE_BLOCKS_MAX: usize = 4096;
/// Maximum bytes of them: enough for [`SINGLES_MIN`].
const MERGE_BYTES: usize = 1 << 20;
/// Pages for fewer messages show nothing about an inbox.
const PAGE_MESSAGES_MIN: usize = 2;

/// Merged blocks of an inbox or a room, to be appended. Until they are dropped, no other blocks of
/// the shard are merged: ranges of merged blocks never overlap in part.
#[derive(Debug)]
pub(super) struct MergedBlocks {
    /// The id of the inbox or room.
    pub(super) inbox: u64,
    pub(super) blocks: Vec<Block>,
    /// The log that holds the original blocks.
    pub(super) log: Arc<dyn Reader>,
    _permit: MergePermit,
}

/// The right to merge.
#[derive(Debug)]
pub(super) struct MergePermit(Arc<AtomicBool>);

impl MergePermit {
    /// Takes the permit of a shard, unless it is taken.
    pub(super) fn take(is_taken: &Arc<AtomicBool>) -> Option<Self> {
        let was_taken = is_taken.swap(true, Ordering::AcqRel);
        (!was_taken).then(|| Self(Arc::clone(is_taken)))
    }
}

impl Drop for MergePermit {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Returns whether a block is small and has one message.
pub(super) fn is_small_single(block: &Block) -> bool {
    block.first == block.last && block.payload.len() < LARGE_BYTES
}

/// Returns whether a page shows that an inbox is scattered: `singles` of its messages lie
/// in small blocks of their own.
pub(super) const fn is_scattered(singles: usize, messages: usize, is_complete: bool) -> bool {
    let is_half = !is_complete && messages >= PAGE_MESSAGES_MIN && 2 * singles >= messages;
    singles >= SINGLES_MIN || is_half
}

/// Merges blocks of an inbox or a room after a number, if there are enough of one message. Blocks
/// on the disk.
pub(super) fn merge(
    log: Arc<dyn Reader>,
    inbox: u64,
    after: u64,
    permit: MergePermit,
) -> Option<MergedBlocks> {
    let mut found = Vec::new();
    let (mut singles, mut bytes) = (0, 0);
    let read = log.read(inbox, after, &mut |block| {
        let is_single = block.first == block.last;
        let is_large = block.payload.len() >= LARGE_BYTES;
        let is_full = bytes >= MERGE_BYTES || found.len() >= MERGE_BLOCKS_MAX;
        if is_full || (is_large && !found.is_empty()) {
            return ControlFlow::Break(());
        }
        bytes += block.payload.len();
        // Blocks that were merged before are skipped.
        if !is_large && (is_single || !found.is_empty()) {
            singles += usize::from(is_single);
            found.push(block);
        }
        ControlFlow::Continue(())
    });
    // A damaged block is reported by the read of a page that needs it.
    drop(read);
    if singles < SINGLES_MIN {
        return None;
    }
    let blocks = ledger::merge(&found).ok()?;
    Some(MergedBlocks {
        inbox,
        blocks,
        log,
        _permit: permit,
    })
}
