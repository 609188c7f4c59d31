//! [`Receptions`]: the receptions of a shard, at its owner. Each belongs to a flow and
//! has a generation. The highest generation wins, in any order of arrival.

use std::collections::HashMap;

use super::bugs::{Bug, is_planted};
use super::flow::FlowId;
use super::message::Generation;
use crate::log::InboxId;
use crate::store::Subscription;

/// The receptions by inbox. An ended one leaves its generation behind.
#[derive(Debug, Default)]
pub(super) struct Receptions {
    by_inbox: HashMap<InboxId, Reception>,
}

#[derive(Debug)]
struct Reception {
    generation: Generation,
    holder: Option<Holder>,
}

#[derive(Debug)]
struct Holder {
    flow: FlowId,
    /// Stored messages were not delivered.
    is_lagging: bool,
    /// Makes the ledger collect deliveries for the inbox. Its buffer stays empty.
    _subscription: Subscription,
}

impl Receptions {
    /// Returns whether an inbox has no reception.
    pub(super) fn is_free(&self, inbox: InboxId) -> bool {
        self.by_inbox
            .get(&inbox)
            .is_none_or(|reception| reception.holder.is_none())
    }

    /// Returns whether a reception of this generation may continue.
    pub(super) fn may_continue(&self, inbox: InboxId, generation: Generation) -> bool {
        is_planted(Bug::NoGenerations)
            || self
                .by_inbox
                .get(&inbox)
                .is_none_or(|reception| reception.generation <= generation)
    }

    /// Admits a reception. Returns the flow and the generation of the one that it
    /// replaces.
    pub(super) fn admit(
        &mut self,
        inbox: InboxId,
        generation: Generation,
        flow: FlowId,
        subscription: Subscription,
    ) -> Option<(FlowId, Generation)> {
        let holder = Some(Holder {
            flow,
            is_lagging: false,
            _subscription: subscription,
        });
        let former = self
            .by_inbox
            .insert(inbox, Reception { generation, holder })?;
        former
            .holder
            .filter(|_| former.generation != generation)
            .map(|holder| (holder.flow, former.generation))
    }

    /// Ends a reception.
    pub(super) fn end(&mut self, inbox: InboxId, generation: Generation) {
        if let Some(reception) = self
            .by_inbox
            .get_mut(&inbox)
            .filter(|known| known.generation == generation)
        {
            reception.holder = None;
        }
    }

    /// Forgets an inbox. Returns the flow and the generation of its reception.
    pub(super) fn remove(&mut self, inbox: InboxId) -> Option<(FlowId, Generation)> {
        let Reception { generation, holder } = self.by_inbox.remove(&inbox)?;
        holder.map(|holder| (holder.flow, generation))
    }

    /// Ends the receptions of a flow. They may continue in another flow.
    pub(super) fn end_flow(&mut self, flow: FlowId) {
        for reception in self.by_inbox.values_mut() {
            reception.holder.take_if(|holder| holder.flow == flow);
        }
    }

    /// Returns the number of active receptions.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.by_inbox
            .values()
            .filter(|reception| reception.holder.is_some())
            .count()
    }

    /// Returns the flow of the reception of an inbox.
    pub(super) fn flow(&self, inbox: InboxId) -> Option<FlowId> {
        self.by_inbox
            .get(&inbox)?
            .holder
            .as_ref()
            .map(|holder| holder.flow)
    }

    /// Records that messages were not delivered.
    pub(super) fn note_lagging(&mut self, inbox: InboxId) {
        if let Some(holder) = self
            .by_inbox
            .get_mut(&inbox)
            .and_then(|reception| reception.holder.as_mut())
        {
            holder.is_lagging = true;
        }
    }

    /// Takes the lagging receptions of a flow, in the order of their inboxes.
    pub(super) fn take_lagging(&mut self, flow: FlowId) -> Vec<InboxId> {
        let holders = self.by_inbox.iter_mut().filter_map(|(inbox, reception)| {
            reception
                .holder
                .as_mut()
                .filter(|holder| holder.flow == flow)
                .map(|holder| (*inbox, holder))
        });
        let lagging = holders
            .filter_map(|(inbox, holder)| std::mem::take(&mut holder.is_lagging).then_some(inbox));
        let mut inboxes: Vec<_> = lagging.collect();
        inboxes.sort_unstable();
        inboxes
    }
}
