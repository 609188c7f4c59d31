//! The ledger: the rules of accounts, inboxes, cursors, remembered outcomes, quotas and
//! numbers, as a state machine without I/O, clock or randomness.
//!
//! An operation decides, changes the state at once, and adds the resulting records and
//! effects to [`Changes`]. There is no undo: if the append fails, the ledger is dropped
//! and replayed from the log. Replaying the records gives the same state.
//!
//! | file | content |
//! | --- | --- |
//! | `changes` | the results of decisions: one frame, and its effects |
//! | `inboxes` | accounts and their inboxes |
//! | `devices` | the devices of users, and what they hold back |
//! | `administration` | what an administrator asks, and the limits on space |
//! | `expiry` | messages that are too old, and idle accounts |
//! | `profile` | what a user has beside its inbox |
//! | `tokens` | the tokens of users |
//! | `totals` | running totals for the metrics |
//! | `rooms` | rooms: members, messages, retention |
//! | `message_log` | the messages of an inbox or a room |
//! | `sessions`, `dedup` | send sessions and the outcomes of their sends |
//! | `numbers` | the counter |
//! | `record`, `block`, `bytes` | encoding of records and messages |
//! | `replay`, `checkpoint` | the state from records, and as records |
//! | `import` | accounts and messages with existing numbers |
//! | `slots` | slots that stay fixed during a checkpoint |

mod administration;
mod block;
mod bytes;
mod changes;
mod checkpoint;
mod dedup;
mod devices;
mod expiry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod import;
mod inboxes;
mod message_log;
mod numbers;
mod profile;
mod record;
mod replay;
mod rooms;
mod sessions;
mod slots;
#[cfg(test)]
mod tests;
mod tokens;
mod totals;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::{Code, DeviceName, Sequence, SessionToken, UserName};

use self::devices::AttachedAt;
use self::expiry::Expiries;
use self::inboxes::{Inbox, Inboxes};
use self::numbers::Numbers;
use self::record::{AccountRecord, Clock, Record};
use self::rooms::Rooms;
use self::sessions::Sessions;
use crate::log::{Block, Frame};
use crate::store::{
    Account, AccountEntry, Append, Created, DeviceEntry, DeviceId, DeviceSubscription, End,
    Message, NAMELESS, Notice, Outcome, PasswordHash, Position, Subscription,
};

pub use self::administration::SpaceLimits;
pub(crate) use self::administration::SpaceUse;
#[cfg(test)]
pub(crate) use self::block::block_of;
pub(crate) use self::block::{BlockContent, Gap, decode, measure, merge};
pub(crate) use self::bytes::Malformed;
pub(crate) use self::changes::{AccountChange, Changes, RoomDelivery, SubscriptionEnd};
pub(crate) use self::checkpoint::Checkpoint;
pub(crate) use self::dedup::Known;
pub use self::expiry::Expiry;
pub(crate) use self::expiry::PartlyExpired;
pub(crate) use self::import::Imported;
#[cfg(feature = "cluster")]
pub(crate) use self::numbers::NUMBERS_PER_SECOND_BITS;
pub use self::numbers::{COUNTER_MAX, WrongClock};
pub(crate) use self::numbers::{counter_at, until_next_second};
pub(crate) use self::replay::Replay;
pub use self::rooms::RoomLimits;

/// The limits of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Maximum number of accounts.
    pub(crate) accounts_max: usize,
    /// Maximum number of open or remembered sessions.
    pub(crate) sessions_max: usize,
    /// Maximum number of unacknowledged messages in an inbox.
    pub(crate) queued_messages_max: u64,
    /// Maximum bytes of their texts.
    pub(crate) queued_bytes_max: u64,
    /// The limits of rooms.
    pub(crate) rooms: RoomLimits,
    /// The limits on space.
    pub(crate) space: SpaceLimits,
    /// The limits on time.
    pub(crate) expiry: Expiry,
}

/// The environment of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Context {
    /// The running time of the store. It never decreases, not even over a restart.
    pub(crate) running: Duration,
    /// The wall clock, in milliseconds since 1970.
    pub(crate) wall_ms: u64,
    /// Free space is below the reserve: no message is stored.
    pub(crate) is_low_on_space: bool,
    /// The space of the store.
    pub(crate) space: SpaceUse,
}

/// The longest running time without a record of it.
const CLOCK_INTERVAL: Duration = Duration::from_secs(3600);

/// The most ends of attachments in the records of a frame.
const INTERRUPTED_MAX: usize = 1000;

/// The time between two records of the wall clock, in milliseconds.
const WALL_INTERVAL_MS: u64 = 60_000;

/// The part of a stop of the server that counts for the ages of messages.
const STOP_COUNTED_MAX: Duration = Duration::from_secs(24 * 3600);

/// Accounts, inboxes, sessions and the counter, including all decisions of the frame
/// under construction.
#[derive(Debug)]
pub(crate) struct Ledger {
    limits: Limits,
    inboxes: Inboxes,
    sessions: Sessions,
    rooms: Rooms,
    numbers: Numbers,
    /// The time of the last message, in milliseconds since 1970.
    time_ms: u64,
    running: Duration,
    /// The running time of the last frame that was written.
    recorded: Duration,
    /// The part of all stops of the server that counts for ages.
    stopped: Duration,
    /// The retention clock, in whole seconds: running time and stops.
    age: Duration,
    /// The wall clock of the frame, in milliseconds since 1970.
    wall_ms: u64,
    /// The last record of the wall clock; 0 if there is none.
    wall_recorded_ms: u64,
    /// Accounts and devices whose attachment ended with a former process, and has no record
    /// yet.
    interrupted: Vec<(u64, DeviceId)>,
    expiries: Expiries,
    /// A limit on space is reached: no message is stored.
    is_short_of_space: bool,
    /// Named senders have been checked by the caller: their accounts may be in other
    /// shards.
    are_senders_vouched_for: bool,
}

impl Ledger {
    /// Returns a ledger without accounts whose numbers come after `counter`.
    pub(crate) fn new(limits: Limits, counter: u64) -> Self {
        Self {
            limits,
            inboxes: Inboxes::default(),
            sessions: Sessions::new(limits.sessions_max),
            rooms: Rooms::new(limits.rooms),
            numbers: Numbers::after(counter),
            time_ms: 0,
            running: Duration::ZERO,
            recorded: Duration::ZERO,
            stopped: Duration::ZERO,
            age: Duration::ZERO,
            wall_ms: 0,
            wall_recorded_ms: 0,
            interrupted: Vec::new(),
            expiries: Expiries::default(),
            is_short_of_space: false,
            are_senders_vouched_for: false,
        }
    }

    /// Trusts named senders from now on: their accounts may be in other shards, whose
    /// owners have checked them.
    #[cfg(feature = "cluster")]
    pub(crate) const fn vouch_for_senders(&mut self) {
        self.are_senders_vouched_for = true;
    }

    /// Returns the running time of the last frame.
    pub(crate) const fn running(&self) -> Duration {
        self.running
    }

    /// Returns the last assigned number.
    pub(crate) const fn counter(&self) -> u64 {
        self.numbers.last()
    }

    const fn clock(&self) -> Clock {
        Clock {
            time_ms: self.time_ms,
            running: self.running,
            counter: self.numbers.last(),
        }
    }

    /// Returns the retention clock.
    const fn age(&self) -> Duration {
        seconds(self.running).saturating_add(self.stopped)
    }

    /// Begins a frame, and forgets expired sessions and messages.
    pub(crate) fn begin(&mut self, context: Context, changes: &mut Changes) {
        self.running = self.running.max(context.running);
        self.wall_ms = context.wall_ms;
        self.age = self.age();
        changes.begin(self.clock());
        changes.totals.begin(self.running);
        self.sessions.forget_idle(self.running, |forgotten| {
            if forgotten.is_recorded {
                changes.record(&Record::SessionEnd(forgotten.slot));
            }
        });
        self.check_space(context);
        self.expire_messages(changes);
        self.expire(changes);
        let rest = self.interrupted.len().saturating_sub(INTERRUPTED_MAX);
        for (account, device) in self.interrupted.drain(rest..) {
            if let Some(inbox) = self.inboxes.by_id(account) {
                inbox.write_detached(device, changes);
            }
        }
    }

    /// Counts the time since the last record of the wall clock, at most a day, for the ages
    /// of messages. Called once, in the first frame after the store was opened.
    pub(crate) fn count_stop(&mut self, changes: &mut Changes) {
        let stop = Duration::from_millis(self.wall_ms.saturating_sub(self.wall_recorded_ms));
        let counted = seconds(stop.min(STOP_COUNTED_MAX));
        if self.wall_recorded_ms > 0 && !counted.is_zero() && !self.rooms.is_empty() {
            self.stopped = self.stopped.saturating_add(counted);
            changes.record(&Record::Stopped(self.stopped));
        }
        self.age = self.age();
    }

    /// Records the wall clock, if there are rooms and it was not recorded lately.
    fn record_wall(&mut self, changes: &mut Changes) {
        let is_due = self.wall_ms >= self.wall_recorded_ms.saturating_add(WALL_INTERVAL_MS);
        if is_due && !self.rooms.is_empty() {
            self.wall_recorded_ms = self.wall_ms;
            changes.record(&Record::Wall(self.wall_ms));
        }
    }

    /// Completes the frame; `None` if there is nothing to append. The running time is written
    /// at least once an hour, because ages and lapses depend on it.
    pub(crate) fn finish(&mut self, changes: &mut Changes) -> Option<Frame> {
        self.rooms.finish(changes);
        let is_clock_due = self.running.saturating_sub(self.recorded) >= CLOCK_INTERVAL;
        if is_clock_due || !changes.is_empty() {
            self.record_wall(changes);
        }
        let frame = changes
            .take_frame(self.time_ms)
            .or_else(|| is_clock_due.then(|| changes.take_whole_frame(self.time_ms)));
        if frame.is_some() {
            self.recorded = self.running;
        }
        frame
    }

    /// Completes a frame without changes.
    pub(crate) fn finish_empty(&mut self, changes: &mut Changes) -> Frame {
        self.record_wall(changes);
        self.recorded = self.running;
        changes.take_whole_frame(self.time_ms)
    }

    /// Returns a frame without changes, outside of any other frame.
    #[cfg(feature = "cluster")]
    pub(crate) fn empty_frame(&self, changes: &mut Changes) -> Frame {
        changes.begin(self.clock());
        changes.take_whole_frame(self.time_ms)
    }

    /// Creates an account.
    pub(crate) fn create(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        changes: &mut Changes,
    ) -> Created {
        if self.is_taken(name) {
            return Created::Exists;
        }
        if self.inboxes.len() >= self.limits.accounts_max {
            return Created::TooMany;
        }
        self.insert(name, password, Position::default(), changes)
    }

    /// Returns whether an account or a room has a name. Accounts of earlier versions may have
    /// names of rooms.
    fn is_taken(&self, name: &UserName) -> bool {
        self.inboxes.contains(name) || self.rooms.contains(name.as_str())
    }

    fn insert(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        head: Position,
        changes: &mut Changes,
    ) -> Created {
        let incarnation = self.next_number(changes);
        let record = AccountRecord {
            name: name.clone(),
            incarnation,
            password,
            is_suspended: false,
            head,
            tail: head,
        };
        let slot = self.inboxes.insert(Inbox::new(record));
        let Some(inbox) = slot.and_then(|slot| self.inboxes.at(slot)) else {
            return Created::TooMany;
        };
        inbox.write(changes);
        Created::Created
    }

    /// Sets a password if it is still `old`, and ends all tokens. Returns whether it was.
    pub(crate) fn set_password(
        &mut self,
        account: &Account,
        old: Option<&PasswordHash>,
        new: PasswordHash,
        changes: &mut Changes,
    ) -> bool {
        let inbox = self.inboxes.get_mut(account);
        let Some(inbox) = inbox.filter(|inbox| inbox.password.as_ref() == old) else {
            return false;
        };
        inbox.password = Some(new);
        inbox.end_tokens(true, changes);
        inbox.write(changes);
        true
    }

    /// Returns whether an account is suspended.
    #[cfg(feature = "cluster")]
    pub(crate) fn is_suspended(&self, account: &Account) -> bool {
        let inbox = self.inboxes.get(&account.name);
        self.inboxes.is_alive(account) && inbox.is_some_and(|inbox| inbox.is_suspended)
    }

    /// Returns the number of accounts.
    pub(crate) fn account_count(&self) -> usize {
        self.inboxes.len()
    }

    /// Ends an account and its messages. Returns whether it existed.
    pub(crate) fn delete(&mut self, account: &Account, changes: &mut Changes) -> bool {
        if !self.inboxes.is_alive(account) {
            return false;
        }
        // Before the memberships, which end together with the rest of the profile.
        if let Some(inbox) = self.inboxes.get_mut(account) {
            inbox.end_tokens(false, changes);
        }
        self.leave_all(account, changes);
        let Some(mut inbox) = self.inboxes.remove(&account.name) else {
            return false;
        };
        changes.record(&Record::AccountEnd(account.incarnation));
        inbox.count_end(&mut changes.totals);
        let effects = &mut changes.effects;
        effects
            .accounts
            .push(AccountChange::Ended(account.name.clone()));
        effects.ended.push(account.incarnation);
        effects.is_awaited = true;
        for (device, outlet) in inbox.devices.outlets() {
            if let Some(publisher) = outlet.take() {
                effects.end(account, device, publisher, End::Deleted);
            }
        }
        true
    }

    /// Stores or refuses a message, or returns its remembered outcome. A refusal for lack
    /// of space is remembered only when a later send of the session gets an outcome: from
    /// then on, a repeat would be out of order.
    pub(crate) fn append(
        &mut self,
        mut append: Append,
        context: Context,
        changes: &mut Changes,
    ) -> Outcome {
        let Some(send) = append.send_id.take() else {
            return self.decide(append, context, changes);
        };
        let (id, now) = (send.id.value(), context.running);
        match self.sessions.look_up(&send.session, id, send.from, now) {
            None => Outcome::Refused(Code::TooMany),
            Some((_, Known::Decided(outcome))) => outcome,
            Some((_, Known::Skipped)) if send.in_order => Outcome::Refused(Code::BadRequest),
            Some((_, Known::Expired)) => Outcome::Refused(Code::BadRequest),
            Some((slot, Known::New | Known::Skipped)) => {
                let outcome = self.decide(append, context, changes);
                if outcome != Outcome::Refused(Code::NoSpace) {
                    for run in self.sessions.take_deferred(slot, id) {
                        for deferred in run.ids() {
                            self.remember(slot, deferred, run.outcome, now, changes);
                        }
                    }
                    self.remember(slot, id, outcome, now, changes);
                } else if send.in_order {
                    self.sessions.defer(slot, id, outcome);
                }
                outcome
            }
        }
    }

    fn remember(
        &mut self,
        slot: u32,
        id: u32,
        outcome: Outcome,
        now: Duration,
        changes: &mut Changes,
    ) {
        if let Some(session) = self.sessions.record(slot, id, outcome, now) {
            changes.record(&Record::Session(session));
        }
        changes.record_outcome(slot, id, outcome);
        changes.effects.is_awaited = true;
    }

    fn decide(&mut self, append: Append, context: Context, changes: &mut Changes) -> Outcome {
        self.store(append, context, changes)
            .map_or_else(Outcome::Refused, Outcome::Stored)
    }

    /// Stores a message, unless a rule forbids it.
    fn store(
        &mut self,
        mut append: Append,
        context: Context,
        changes: &mut Changes,
    ) -> Result<Sequence, Code> {
        if let Some(code) = append.refusal {
            return Err(code);
        }
        let is_vouched_for = self.are_senders_vouched_for;
        let mut is_suspended = false;
        let sender = append.sender.take().filter(|sender| {
            let own = self.inboxes.get(&sender.name);
            let own = own.filter(|own| own.account.incarnation == sender.incarnation);
            is_suspended = own.is_some_and(|own| own.is_suspended);
            is_vouched_for || own.is_some()
        });
        if is_suspended {
            return Err(Code::Denied);
        }
        if let Some(sender) = &sender {
            self.note_use(sender, changes);
        }
        let has_no_space = self.has_no_space(context);
        let Some(inbox) = self.inboxes.by_name(&append.to) else {
            return self.store_in_room(append, sender, context, changes);
        };
        let is_blocked = |sender: &Account| inbox.is_blocking(sender.incarnation);
        if sender.as_ref().map_or(!append.allow_anonymous, is_blocked) {
            return Err(Code::Denied);
        }
        if has_no_space {
            return Err(Code::NoSpace);
        }
        // Last, because it may lapse a device.
        let bytes = append.text.len() as u64;
        if !inbox.has_room_for(bytes, &self.limits, changes) {
            return Err(Code::QueueFull);
        }
        let number = next_number(&mut self.numbers, changes);
        let position = inbox.log.next_position(number, append.text.len());
        self.time_ms = self.time_ms.max(append.time_ms);
        let sender = sender.map(|sender| sender.name);
        inbox.push(
            Message {
                position,
                sender,
                time_ms: self.time_ms,
                text: append.text,
            },
            changes,
        );
        changes.effects.is_awaited = true;
        Ok(position.sequence)
    }

    /// Returns whether the inbox of an account has no subscription.
    pub(crate) fn is_free(&mut self, account: &Account) -> bool {
        self.inboxes.get_mut(account).is_some_and(|inbox| {
            let outlet = inbox.devices.outlet(NAMELESS);
            outlet.is_none_or(|outlet| !outlet.is_attached())
        })
    }

    /// Subscribes the nameless device to an inbox, and ends its former subscription. Returns
    /// `None` if the account has ended, or has too many other devices.
    pub(crate) fn subscribe(
        &mut self,
        account: &Account,
        changes: &mut Changes,
    ) -> Option<Subscription> {
        let (_, subscription) = self.attach_to_inbox(account, None, changes).ok()?;
        Some(subscription)
    }

    /// Returns the id of a device of a user, if it exists.
    pub(crate) fn device(&self, account: &Account, name: &DeviceName) -> Option<DeviceId> {
        let inbox = self.inboxes.get(&account.name);
        let inbox = inbox.filter(|inbox| inbox.account == *account)?;
        inbox.device(Some(name))
    }

    /// Ends the right of the present attachment of a device to acknowledge, before another
    /// one takes over.
    pub(crate) fn supersede(&mut self, account: &Account, device: DeviceId) {
        let inbox = self.inboxes.get_mut(account);
        if let Some(outlet) = inbox.and_then(|inbox| inbox.devices.outlet(device)) {
            outlet.supersede();
        }
    }

    /// Attaches a device to an inbox and to all rooms of the user, and ends its former
    /// attachment.
    pub(crate) fn attach(
        &mut self,
        account: &Account,
        name: &DeviceName,
        changes: &mut Changes,
    ) -> Result<DeviceSubscription, Code> {
        let (device, inbox) = self.attach_to_inbox(account, Some(name), changes)?;
        let rooms = self.attach_to_rooms(account, device, changes);
        Ok(DeviceSubscription {
            device,
            inbox,
            rooms,
        })
    }

    fn attach_to_inbox(
        &mut self,
        account: &Account,
        name: Option<&DeviceName>,
        changes: &mut Changes,
    ) -> Result<(DeviceId, Subscription), Code> {
        let at = self.attached_at();
        self.note_use(account, changes);
        let inbox = self.inboxes.get_mut(account).ok_or(Code::NoSuchUser)?;
        let device = match (inbox.device(name), name) {
            (Some(device), _) => device,
            (None, name) => {
                let device = match name {
                    Some(_) => next_number(&mut self.numbers, changes),
                    None => NAMELESS,
                };
                let replaced = inbox.add_device(device, name, at, changes)?;
                // It is not attached yet: it does not learn of itself.
                let entries = inbox.device_entries(at.unix_s).into_iter();
                for entry in entries.filter(|entry| name.is_some() && entry.name.as_ref() == name) {
                    inbox.notify(&Notice::Device(entry), changes);
                }
                if let Some(replaced) = replaced {
                    self.detach_from_rooms(account, replaced, changes);
                }
                device
            }
        };
        let inbox = self.inboxes.get_mut(account).ok_or(Code::NoSuchUser)?;
        let cursor = inbox.attach(device, at, changes);
        let cursor = cursor.ok_or(Code::NoSuchUser)?;
        let read = cursor.messages.max(inbox.log.head.messages);
        let waiting = inbox.log.tail.messages.saturating_sub(read);
        let (publisher, subscription) = Subscription::new(account.clone(), waiting, cursor);
        let outlet = inbox.devices.outlet(device);
        if let Some(former) = outlet.and_then(|outlet| outlet.replace(publisher)) {
            changes.effects.end(account, device, former, End::TakenOver);
        }
        Ok((device, subscription))
    }

    /// Notes that a device is not attached any more.
    pub(crate) fn detach(&mut self, account: &Account, device: DeviceId, changes: &mut Changes) {
        let at = self.attached_at();
        if let Some(inbox) = self.inboxes.get_mut(account) {
            inbox.detach(device, at, changes);
        }
    }

    /// Ends a device, the nameless one without a name. Returns whether it existed.
    fn forget_device(
        &mut self,
        account: &Account,
        name: Option<&DeviceName>,
        changes: &mut Changes,
    ) -> Result<bool, Code> {
        let inbox = self.inboxes.get_mut(account).ok_or(Code::Denied)?;
        let Some(device) = inbox.device(name) else {
            return Ok(false);
        };
        inbox.forget_device(device, changes);
        self.detach_from_rooms(account, device, changes);
        Ok(true)
    }

    /// Returns the devices of a user.
    fn devices(&mut self, account: &Account) -> Result<Vec<DeviceEntry>, Code> {
        let now_s = self.attached_at().unix_s;
        let inbox = self.inboxes.get_mut(account).ok_or(Code::Denied)?;
        Ok(inbox.device_entries(now_s))
    }

    const fn attached_at(&self) -> AttachedAt {
        AttachedAt {
            running: seconds(self.running),
            unix_s: (self.wall_ms / 1000) as u32,
        }
    }

    /// Takes the acknowledgement of a device of all messages up to `position`.
    pub(crate) fn acknowledge(
        &mut self,
        account: &Account,
        device: DeviceId,
        position: Position,
        changes: &mut Changes,
    ) {
        self.note_use(account, changes);
        let now = seconds(self.running);
        if let Some(inbox) = self.inboxes.get_mut(account) {
            inbox.acknowledge(device, position, now, changes);
        }
    }

    /// Replaces blocks of an inbox or a room by merged ones, except those that are released
    /// by now. Changes no quota and notifies no subscription.
    pub(crate) fn replace_blocks(
        &mut self,
        log: u64,
        merged: impl IntoIterator<Item = Block>,
        changes: &mut Changes,
    ) {
        let inbox = self.inboxes.by_id_mut(log);
        let head = match inbox {
            Some(inbox) => Some(inbox.log.head),
            None => self.rooms.head(log),
        };
        let Some(head) = head else { return };
        for block in merged {
            if block.last > head.sequence.0 {
                changes.add_merged(block);
            }
        }
    }

    /// Adds a connection to a session. Returns whether there is room for the session.
    pub(crate) fn open_session(
        &mut self,
        session: &SessionToken,
        from: Option<IpAddr>,
        now: Duration,
    ) -> bool {
        self.sessions.open(session, from, now)
    }

    /// Removes a connection from a session.
    pub(crate) fn close_session(&mut self, session: &SessionToken, now: Duration) {
        self.sessions.close(session, now);
    }

    /// Inherits subscriptions and open sessions from the ledger before a failure of the
    /// log. `lost` are unpublished ends of subscriptions, whose changes may be lost.
    /// Returns the acknowledgements to repeat.
    pub(crate) fn inherit_from(
        &mut self,
        former: Self,
        lost: Vec<SubscriptionEnd>,
        now: Duration,
    ) -> Vec<(Account, DeviceId, Position)> {
        for (token, open) in former.sessions.open_counts() {
            self.sessions.reopen(token, open, now);
        }
        let mut acks = Vec::new();
        let mut subscriptions = HashMap::new();
        let mut with_rooms = HashSet::new();
        for mut former in former.inboxes.into_inboxes() {
            let account = former.account.clone();
            if former.profile.is_some() {
                with_rooms.insert(account.incarnation);
            }
            if let Some(inbox) = self.inboxes.get_mut(&account) {
                let repeated = inbox.acks_since(&former);
                let repeated = repeated.into_iter();
                acks.extend(repeated.map(|(device, cursor)| (account.clone(), device, cursor)));
            }
            for (device, outlet) in former.devices.outlets() {
                let publisher = outlet.take();
                if let Some(publisher) = publisher.filter(|publisher| !publisher.is_ended()) {
                    subscriptions.insert((account.clone(), device), publisher);
                }
            }
        }
        // The subscription that was replaced or ended first is the committed one.
        for end in lost.into_iter().rev() {
            subscriptions.insert((end.account, end.device), end.publisher);
        }
        for ((account, device), publisher) in subscriptions {
            let Some(inbox) = self.inboxes.get_mut(&account) else {
                publisher.end(End::Deleted);
                continue;
            };
            // Notices about rooms are lost with the commit.
            let has_rooms = inbox.profile.is_some() || with_rooms.contains(&account.incarnation);
            match inbox.inherit_attachment(device) {
                Some(_) if device != NAMELESS && has_rooms => publisher.end(End::Interrupted),
                Some(outlet) => {
                    publisher.lagged();
                    outlet.replace(publisher);
                }
                None => publisher.end(End::TakenOver),
            }
        }
        acks
    }

    /// Looks up an account.
    pub(crate) fn account(&self, name: &UserName) -> Option<AccountEntry> {
        self.inboxes.get(name).map(Inbox::entry)
    }

    /// Returns the cursor and the last position of an inbox; `None` if its account has
    /// ended.
    #[cfg(feature = "cluster")]
    pub(crate) fn positions(&self, account: &Account) -> Option<(Position, Position)> {
        let inbox = self.inboxes.get(&account.name);
        let inbox = inbox.filter(|inbox| inbox.account.incarnation == account.incarnation)?;
        Some((inbox.log.head, inbox.log.tail))
    }

    /// Returns the accounts in any order.
    pub(crate) fn accounts(&self) -> impl Iterator<Item = AccountEntry> {
        self.inboxes.iter_from(0).map(|(_, inbox)| inbox.entry())
    }

    /// Returns the accounts with the cursors and the last positions of their inboxes.
    pub(crate) fn inboxes(&self) -> impl Iterator<Item = (AccountEntry, Position, Position)> {
        self.inboxes
            .iter_from(0)
            .map(|(_, inbox)| (inbox.entry(), inbox.log.head, inbox.log.tail))
    }

    /// Moves the last position of an inbox or a room to a later one.
    pub(crate) fn raise_tail(&mut self, log: u64, tail: Position) {
        match self.inboxes.by_id_mut(log) {
            Some(inbox) => inbox.log.raise_tail(tail),
            None => self.rooms.raise_tail(log, tail),
        }
    }

    /// Returns the heads of all inboxes and rooms, by the ids of their logs.
    pub(crate) fn heads(&self) -> impl Iterator<Item = (u64, Position)> {
        let inboxes = self.inboxes.iter_from(0);
        let inboxes = inboxes.map(|(_, inbox)| (inbox.log.id, inbox.log.head));
        inboxes.chain(self.room_logs().map(|(id, _, head, _)| (id, head)))
    }

    fn next_number(&mut self, changes: &mut Changes) -> u64 {
        next_number(&mut self.numbers, changes)
    }
}

/// Returns a time in whole seconds, as records hold it.
const fn seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs())
}

fn next_number(numbers: &mut Numbers, changes: &mut Changes) -> u64 {
    let (number, bound) = numbers.next();
    if let Some(bound) = bound {
        reserve(bound, changes);
    }
    number
}

fn reserve(bound: u64, changes: &mut Changes) {
    changes.record(&Record::Counter(bound));
    changes.effects.is_reserving = true;
}
