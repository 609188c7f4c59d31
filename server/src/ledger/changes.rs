//! [`Changes`]: the results of decisions. The frame is appended to the log; its effects
//! are published when it is durable.

use std::sync::Arc;

use hark_protocol::UserName;
use hark_protocol::limits::OUTCOMES_REMEMBERED;

use super::block::BlockBuilder;
use super::dedup::OutcomeRun;
use super::expiry::PartlyExpired;
use super::record::{CLOCK_BYTES, Clock, Record};
use super::totals::Totals;
use crate::log::{Block, Frame};
use crate::store::{
    Account, AccountEntry, AccountToken, DeviceId, End, Message, Notice, Outcome, Point, Position,
    Publisher, Ring, TokenDigest,
};

/// The longest run of outcomes in one record: more are never remembered.
const RUN_LENGTH_MAX: u32 = OUTCOMES_REMEMBERED as u32;

/// The changes of one frame. One value serves all frames of a shard, to reuse its memory.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    records: Vec<u8>,
    clock: Clock,
    /// One for each inbox with new messages.
    blocks: Vec<BlockBuilder>,
    /// Blocks that replace older ones.
    merged: Vec<Block>,
    /// The session's slot, and its outcomes that later ones may continue.
    outcomes: Option<(u32, OutcomeRun)>,
    /// A block is full.
    is_full: bool,
    /// The device of the command that is decided: it is not notified.
    pub(super) origin: Option<DeviceId>,
    /// The totals, up to date with the decisions.
    pub(crate) totals: Totals,
    /// The effects to publish when the frame is durable.
    pub(crate) effects: Effects,
}

/// The effects of a frame after it is appended.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// An answer waits until the frame is on stable storage.
    pub(crate) is_awaited: bool,
    /// Numbers were reserved: without a sync, they could be assigned again after a power
    /// loss.
    pub(crate) is_reserving: bool,
    /// Logs that ended, by id.
    pub(crate) ended: Vec<u64>,
    /// Logs whose head moved, by id, and the position it moved to.
    pub(crate) heads: Vec<(u64, Position)>,
    /// Accounts and tokens that were created, changed or ended, in order.
    pub(crate) accounts: Vec<AccountChange>,
    /// Messages for subscriptions.
    pub(crate) deliveries: Vec<Delivery>,
    /// Rings of rooms that had none.
    pub(crate) rings: Vec<Arc<Ring>>,
    /// Rings of rooms that ended.
    pub(crate) ended_rings: Vec<Arc<Ring>>,
    /// Messages for the attached members of rooms.
    pub(crate) said: Vec<RoomDelivery>,
    /// Notices for the subscriptions of devices.
    pub(crate) notices: Vec<(Publisher, Notice)>,
    /// Subscriptions that ended.
    pub(crate) ends: Vec<SubscriptionEnd>,
    /// Subscriptions to inboxes whose oldest messages were purged.
    pub(crate) purged_inboxes: Vec<Publisher>,
    /// Rings of rooms whose messages up to a point were purged.
    pub(crate) purged_rings: Vec<(Arc<Ring>, Point)>,
    /// Inboxes of which a part has expired.
    pub(crate) partly_expired: Vec<PartlyExpired>,
}

/// A change of the directory.
#[derive(Debug)]
pub(crate) enum AccountChange {
    /// The current state of the account.
    Present(AccountEntry),
    /// The account has ended.
    Ended(UserName),
    /// The current state of the token.
    Token(Box<AccountToken>),
    /// The token has ended.
    TokenEnded(TokenDigest),
}

/// Messages for one subscription, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Delivery {
    /// The inbox, by the incarnation of its account.
    #[cfg(feature = "cluster")]
    pub(crate) inbox: u64,
    /// The subscription.
    pub(crate) publisher: Publisher,
    /// The messages.
    pub(crate) messages: Vec<Arc<Message>>,
}

/// Messages for the attached members of a room, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct RoomDelivery {
    /// The ring of the room.
    pub(crate) ring: Arc<Ring>,
    /// The messages.
    pub(crate) messages: Vec<Arc<Message>>,
}

/// The end of a subscription.
#[derive(Debug)]
pub(crate) struct SubscriptionEnd {
    /// The account whose inbox it was for.
    pub(crate) account: Account,
    /// The device.
    pub(crate) device: DeviceId,
    /// The subscription.
    pub(crate) publisher: Publisher,
    /// The reason.
    pub(crate) end: End,
}

impl Changes {
    /// Begins a frame.
    pub(super) fn begin(&mut self, clock: Clock) {
        self.clock = clock;
        self.records.clear();
        self.records.extend_from_slice(&self.clock.encode());
        self.is_full = false;
        debug_assert!(self.blocks.is_empty() && self.outcomes.is_none());
    }

    /// Writes a record.
    pub(super) fn record(&mut self, record: &Record) {
        self.flush_outcomes();
        record.put(&mut self.records, self.clock.counter);
    }

    /// Writes the outcome of a send of the session in `slot`.
    pub(super) fn record_outcome(&mut self, slot: u32, id: u32, outcome: Outcome) {
        match &mut self.outcomes {
            Some((of, run))
                if *of == slot
                    && run.length < RUN_LENGTH_MAX
                    && run.is_continued_by(id, outcome) =>
            {
                run.length += 1;
            }
            _ => {
                self.flush_outcomes();
                self.outcomes = Some((slot, OutcomeRun::of(id, outcome)));
            }
        }
    }

    fn flush_outcomes(&mut self) {
        if let Some((slot, run)) = self.outcomes.take() {
            Record::Outcomes(slot, run).put(&mut self.records, self.clock.counter);
        }
    }

    /// Returns whether the frame has records or messages.
    pub(super) fn is_empty(&self) -> bool {
        self.records.len() <= CLOCK_BYTES && self.blocks.is_empty() && self.outcomes.is_none()
    }

    /// Returns the block at `at` if it belongs to this inbox.
    pub(super) fn block_of(&mut self, inbox: u64, at: u32) -> Option<&mut BlockBuilder> {
        self.blocks
            .get_mut(at as usize)
            .filter(|block| block.inbox() == inbox)
    }

    /// Adds a block and returns its index.
    pub(super) fn add_block(&mut self, block: BlockBuilder) -> u32 {
        self.blocks.push(block);
        (self.blocks.len() - 1) as u32
    }

    /// Adds a block that replaces older ones.
    pub(super) fn add_merged(&mut self, block: Block) {
        self.merged.push(block);
    }

    /// Records that a block is full.
    pub(super) const fn note_full(&mut self) {
        self.is_full = true;
    }

    /// Returns whether the frame should take no more messages.
    pub(crate) const fn is_full(&self) -> bool {
        self.is_full
    }

    /// Bytes of the records so far.
    pub(crate) const fn record_bytes(&self) -> usize {
        self.records.len()
    }

    /// Completes and takes the frame; `None` if there is nothing to append. `time_ms` is
    /// the time of the last message.
    pub(super) fn take_frame(&mut self, time_ms: u64) -> Option<Frame> {
        self.flush_outcomes();
        for block in &self.blocks {
            Record::Tail(block.inbox(), block.tail()).put(&mut self.records, self.clock.counter);
        }
        let has_changes = self.records.len() > CLOCK_BYTES || !self.merged.is_empty();
        has_changes.then(|| self.take_whole_frame(time_ms))
    }

    /// Takes the frame as it is.
    pub(super) fn take_whole_frame(&mut self, time_ms: u64) -> Frame {
        self.clock.time_ms = time_ms;
        for (place, byte) in self.records.iter_mut().zip(self.clock.encode()) {
            *place = byte;
        }
        let records = std::mem::take(&mut self.records);
        let blocks = self.blocks.drain(..).map(BlockBuilder::finish).collect();
        Frame {
            records,
            blocks,
            merged: std::mem::take(&mut self.merged),
            checkpoint: None,
        }
    }
}

impl Effects {
    /// Ends a subscription when the frame is durable.
    pub(super) fn end(
        &mut self,
        account: &Account,
        device: DeviceId,
        publisher: Publisher,
        end: End,
    ) {
        self.ends.push(SubscriptionEnd {
            account: account.clone(),
            device,
            publisher,
            end,
        });
    }

    /// Notifies a device, unless it is a hint about its own command.
    pub(super) fn notify(&mut self, publisher: &Publisher, notice: &Notice, is_from_device: bool) {
        let mut notice = notice.clone();
        match &mut notice {
            Notice::Joined { is_own, .. } | Notice::Left { is_own, .. } => *is_own = is_from_device,
            Notice::Seen { .. } | Notice::Device(_) if is_from_device => return,
            Notice::Seen { .. } | Notice::Device(_) => {}
        }
        self.notices.push((publisher.clone(), notice));
    }

    /// Publishes notices, messages of inboxes, and ends of subscriptions. Messages and ends
    /// may come in any order: an end drops all messages of its subscription. Notices come
    /// before the messages of rooms, which the caller publishes: the device of a member that
    /// left must know that before it gets a later message.
    pub(crate) fn publish(&mut self) {
        for (publisher, notice) in self.notices.drain(..) {
            publisher.notify(notice);
        }
        for Delivery {
            publisher,
            messages,
            ..
        } in self.deliveries.drain(..)
        {
            publisher.appended(messages);
        }
        for publisher in self.purged_inboxes.drain(..) {
            publisher.lagged();
        }
        for (ring, through) in self.purged_rings.drain(..) {
            ring.forget(through);
        }
        for SubscriptionEnd { publisher, end, .. } in self.ends.drain(..) {
            publisher.end(end);
        }
    }

    /// Clears all changes but keeps the memory.
    pub(crate) fn clear(&mut self) {
        let Self {
            is_awaited,
            is_reserving,
            ended,
            heads,
            accounts,
            deliveries,
            rings,
            ended_rings,
            said,
            notices,
            ends,
            purged_inboxes,
            purged_rings,
            partly_expired,
        } = self;
        (*is_awaited, *is_reserving) = (false, false);
        ended.clear();
        heads.clear();
        accounts.clear();
        deliveries.clear();
        rings.clear();
        ended_rings.clear();
        said.clear();
        notices.clear();
        ends.clear();
        purged_inboxes.clear();
        purged_rings.clear();
        partly_expired.clear();
    }
}
