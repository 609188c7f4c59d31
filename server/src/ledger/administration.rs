//! What an administrator asks of the ledger: views of accounts and rooms, limits of one user,
//! and the removal of messages.

use hark_protocol::UserName;

use super::changes::Changes;
use super::inboxes::Inbox;
use super::record::Record;
use super::{Context, Ledger, Limits};
use crate::store::{Account, History, InboxInfo, NAMELESS, Position, Purged, UserLimits};

/// A limit on space that was reached is left only when there is this part of it more room, so
/// that sends are not refused and accepted by turns.
const HYSTERESIS: u64 = 16;

/// The limits on the space of a store; `None` means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpaceLimits {
    /// The bytes of files with messages beyond which sends are refused.
    pub store_bytes_max: Option<u64>,
    /// The free bytes of the file system below which sends are refused.
    pub free_bytes_min: Option<u64>,
}

/// The space of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SpaceUse {
    /// The bytes of files with messages.
    pub(crate) used_bytes: u64,
    /// The free bytes of the file system, if they are known.
    pub(crate) free_bytes: Option<u64>,
}

impl SpaceLimits {
    /// No limits.
    pub const NONE: Self = Self {
        store_bytes_max: None,
        free_bytes_min: None,
    };

    /// Returns whether a limit is reached; `is_short` if it was before.
    fn is_reached(self, space: SpaceUse, is_short: bool) -> bool {
        let margin = |limit: u64| if is_short { limit / HYSTERESIS } else { 0 };
        let is_large = self
            .store_bytes_max
            .is_some_and(|max| space.used_bytes > max.saturating_sub(margin(max)));
        let is_scarce = self.free_bytes_min.is_some_and(|min| {
            let wanted = min.saturating_add(margin(min));
            space.free_bytes.is_some_and(|free| free < wanted)
        });
        is_large || is_scarce
    }
}

impl Ledger {
    /// Applies the limits on space, from the beginning of a frame on.
    pub(super) fn check_space(&mut self, context: Context) {
        let limits = self.limits.space;
        self.is_short_of_space = limits.is_reached(context.space, self.is_short_of_space);
    }

    /// Returns whether a limit on space is reached: no message is stored.
    pub(crate) const fn is_short_of_space(&self) -> bool {
        self.is_short_of_space
    }

    /// Returns whether messages are refused for lack of space.
    pub(super) const fn has_no_space(&self, context: Context) -> bool {
        context.is_low_on_space || self.is_short_of_space
    }

    /// Suspends or resumes an account. Returns false if it has ended.
    pub(crate) fn set_suspended(
        &mut self,
        account: &Account,
        is_suspended: bool,
        changes: &mut Changes,
    ) -> bool {
        let Some(inbox) = self.inboxes.get_mut(account) else {
            return false;
        };
        if inbox.is_suspended != is_suspended {
            inbox.is_suspended = is_suspended;
            inbox.write(changes);
        }
        true
    }

    /// Sets limits of an account, beside its former ones unless `is_reset`. Returns those in
    /// effect; `None` if it has ended.
    pub(crate) fn set_limits(
        &mut self,
        account: &Account,
        limits: UserLimits,
        is_reset: bool,
        changes: &mut Changes,
    ) -> Option<UserLimits> {
        let inbox = self.inboxes.get_mut(account)?;
        let former = inbox.limits();
        let limits = if is_reset { limits } else { limits.or(former) };
        if limits != former {
            inbox.profile_mut().limits = limits.shared();
            changes.record(&Record::Limits(inbox.log.id, limits));
            inbox.publish(changes);
        }
        Some(limits)
    }

    /// Returns the inboxes of these names, without those that do not exist.
    pub(crate) fn inspect(&mut self, names: &[UserName]) -> Vec<InboxInfo> {
        let now_s = self.attached_at().unix_s;
        let inboxes = names.iter().filter_map(|name| {
            let inbox = self.inboxes.by_name(name)?;
            Some(inbox.info(now_s))
        });
        inboxes.collect()
    }

    /// Returns the messages of the inbox or room of this name.
    pub(crate) fn messages(&self, name: &UserName) -> Option<History> {
        let inbox = self.inboxes.get(name).map(|inbox| inbox.log.history());
        inbox.or_else(|| self.rooms.history_of(name.as_str()))
    }

    /// Removes the messages of an inbox or a room up to a position, which is that of one of
    /// them.
    pub(crate) fn purge(&mut self, log: u64, through: Position, changes: &mut Changes) -> Purged {
        let Some(inbox) = self.inboxes.by_id_mut(log) else {
            return self.rooms.purge(log, through, changes);
        };
        let head = inbox.log.head;
        let is_silent_for_connect = inbox.is_behind_by_connect(through);
        inbox.purge(through, changes);
        let removed = inbox.log.head;
        Purged {
            messages: removed.messages.saturating_sub(head.messages),
            bytes: removed.bytes.saturating_sub(head.bytes),
            is_silent_for_connect: is_silent_for_connect && removed != head,
        }
    }
}

impl Inbox {
    /// Returns the limits of the account alone.
    pub(super) fn limits(&self) -> UserLimits {
        let limits = self.profile.as_ref().and_then(|own| own.limits.as_deref());
        limits.copied().unwrap_or_default()
    }

    /// Returns the limits on its messages: the most of them, and of their bytes.
    pub(super) fn queue_limits(&self, limits: &Limits) -> (u64, u64) {
        let own = self.limits();
        (
            own.queued_messages.unwrap_or(limits.queued_messages_max),
            own.queued_bytes.unwrap_or(limits.queued_bytes_max),
        )
    }

    /// Forgets the messages up to a position. Attached devices read again, and find the gap.
    fn purge(&mut self, through: Position, changes: &mut Changes) {
        let head = self.log.head;
        self.log.forget(through, changes);
        if self.log.head == head {
            return;
        }
        self.devices
            .write_behind(self.log.head, self.log.id, changes);
        let outlets = self.devices.outlets();
        let publishers = outlets.filter_map(|(_, outlet)| outlet.publisher().cloned());
        changes.effects.purged_inboxes.extend(publishers);
        changes.effects.is_awaited = true;
    }

    /// Returns whether there is a receiver by `connect` that has not acknowledged everything
    /// up to a position.
    fn is_behind_by_connect(&self, through: Position) -> bool {
        let exists = self.device(None) == Some(NAMELESS);
        let entry = self.devices.entries().iter();
        let mut entry = entry.filter(|device| device.state.id == NAMELESS);
        let cursor = entry
            .next()
            .map_or(self.log.head, |device| device.state.cursor);
        exists && cursor.sequence < through.sequence.min(self.log.tail.sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(used_bytes: u64, free_bytes: u64) -> SpaceUse {
        SpaceUse {
            used_bytes,
            free_bytes: Some(free_bytes),
        }
    }

    #[test]
    fn limit_on_space_is_left_with_a_margin() {
        let limits = SpaceLimits {
            store_bytes_max: Some(1600),
            free_bytes_min: Some(160),
        };
        for (space, was_short, is_short) in [
            (space(1600, 160), false, false),
            (space(1601, 160), false, true),
            (space(1501, 1000), true, true),
            (space(1500, 1000), true, false),
            (space(0, 159), false, true),
            (space(0, 169), true, true),
            (space(0, 170), true, false),
        ] {
            let reached = limits.is_reached(space, was_short);
            assert_eq!(reached, is_short, "{space:?} {was_short}");
        }
        assert!(!SpaceLimits::default().is_reached(space(u64::MAX, 0), true));
    }
}
