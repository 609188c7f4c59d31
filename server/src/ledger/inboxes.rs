//! The accounts and their inboxes.

use std::hash::{BuildHasher, RandomState};

use hark_protocol::UserName;
use hashbrown::HashTable;

use super::changes::{AccountChange, Changes};
use super::devices::Devices;
use super::message_log::MessageLog;
use super::profile::{Membership, Profile};
use super::record::{AccountRecord, Record};
use super::slots::Slots;
use crate::store::{Account, AccountEntry, InboxInfo, NAMELESS, Notice, PasswordHash};

/// All inboxes, by name.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    inboxes: Slots<Inbox>,
    /// The slot of each inbox, by its name.
    by_name: HashTable<u32>,
    /// The slot of each inbox, by the incarnation of its account.
    by_id: HashTable<u32>,
    hasher: RandomState,
}

/// An account, its inbox, and its devices.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) account: Account,
    pub(super) password: Option<PasswordHash>,
    /// An administrator has suspended the account: it cannot send.
    pub(super) is_suspended: bool,
    /// The age of its last use in seconds, if idle accounts expire; 0 if it is unknown.
    pub(super) used_s: u32,
    /// The time of the oldest unacknowledged message: see [`Totals`](super::totals::Totals).
    pub(super) unread_since: u32,
    pub(super) log: MessageLog,
    pub(super) devices: Devices,
    /// What the user has beside the inbox; `None` if it has nothing.
    pub(super) profile: Option<Box<Profile>>,
}

impl Inboxes {
    /// Returns the number of accounts.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Returns whether there is an account of this name.
    pub(super) fn contains(&self, name: &UserName) -> bool {
        self.slot(name).is_some()
    }

    /// Returns the inbox of this name.
    pub(super) fn by_name(&mut self, name: &UserName) -> Option<&mut Inbox> {
        self.inboxes.get_mut(self.slot(name)?)
    }

    fn slot(&self, name: &UserName) -> Option<u32> {
        self.slot_of_text(name.as_str())
    }

    fn slot_of_text(&self, name: &str) -> Option<u32> {
        let found = self.by_name.find(self.hasher.hash_one(name), |slot| {
            is_of(&self.inboxes, *slot, name)
        });
        found.copied()
    }

    /// Returns the inbox whose name is this text.
    pub(super) fn by_text(&self, name: &str) -> Option<&Inbox> {
        self.inboxes.get(self.slot_of_text(name)?)
    }

    /// Returns the slot of the inbox of an account that has not ended.
    fn slot_by_id(&self, id: u64) -> Option<u32> {
        let found = self.by_id.find(self.hasher.hash_one(id), |slot| {
            id_of(&self.inboxes, *slot) == Some(id)
        });
        found.copied()
    }

    /// Returns the inbox of an account, by its incarnation.
    pub(super) fn by_id(&self, id: u64) -> Option<&Inbox> {
        self.inboxes.get(self.slot_by_id(id)?)
    }

    /// Returns the inbox of an account, by its incarnation.
    pub(super) fn by_id_mut(&mut self, id: u64) -> Option<&mut Inbox> {
        self.inboxes.get_mut(self.slot_by_id(id)?)
    }

    /// Returns the inbox of this name.
    pub(super) fn get(&self, name: &UserName) -> Option<&Inbox> {
        self.inboxes.get(self.slot(name)?)
    }

    /// Returns the inbox of an account that has not ended.
    pub(super) fn get_mut(&mut self, account: &Account) -> Option<&mut Inbox> {
        self.by_name(&account.name)
            .filter(|inbox| inbox.account.incarnation == account.incarnation)
    }

    /// Returns whether an account has not ended.
    pub(super) fn is_alive(&self, account: &Account) -> bool {
        self.get(&account.name)
            .is_some_and(|inbox| inbox.account.incarnation == account.incarnation)
    }

    /// Adds an inbox with a new name. Returns its slot, or `None` if all 2³² are in use.
    pub(super) fn insert(&mut self, inbox: Inbox) -> Option<u32> {
        let Self {
            inboxes,
            by_name,
            by_id,
            hasher,
        } = self;
        let hash = hasher.hash_one(inbox.account.name.as_str());
        let id_hash = hasher.hash_one(inbox.log.id);
        let slot = inboxes.insert(inbox).ok()?;
        let rehash = |slot: &u32| {
            let inbox = inboxes.get(*slot);
            inbox.map_or(0, |inbox| hasher.hash_one(inbox.account.name.as_str()))
        };
        by_name.insert_unique(hash, slot, rehash);
        by_id.insert_unique(id_hash, slot, |slot| {
            hasher.hash_one(id_of(inboxes, *slot).unwrap_or(0))
        });
        Some(slot)
    }

    /// Removes the inbox of a name.
    pub(super) fn remove(&mut self, name: &UserName) -> Option<Inbox> {
        let Self {
            inboxes,
            by_name,
            by_id,
            hasher,
        } = self;
        let name = name.as_str();
        let found = by_name.find_entry(hasher.hash_one(name), |slot| is_of(inboxes, *slot, name));
        let (slot, _) = found.ok()?.remove();
        let id = id_of(inboxes, slot)?;
        if let Ok(entry) = by_id.find_entry(hasher.hash_one(id), |other| *other == slot) {
            entry.remove();
        }
        inboxes.remove(slot)
    }

    /// Returns the inbox in a slot.
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut Inbox> {
        self.inboxes.get_mut(slot)
    }

    /// Returns all inboxes.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Inbox> {
        self.inboxes.iter_mut()
    }

    /// Returns the inboxes from this slot on, with their slots.
    pub(super) fn iter_from(&self, slot: u32) -> impl Iterator<Item = (u32, &Inbox)> {
        self.inboxes.iter_from(slot)
    }

    /// Returns all inboxes by value.
    pub(super) fn into_inboxes(self) -> impl Iterator<Item = Inbox> {
        self.inboxes.into_items()
    }
}

/// Returns whether the inbox in a slot has this name.
fn is_of(inboxes: &Slots<Inbox>, slot: u32, name: &str) -> bool {
    let inbox = inboxes.get(slot);
    inbox.is_some_and(|inbox| inbox.account.name.as_str() == name)
}

/// Returns the incarnation of the account in a slot.
fn id_of(inboxes: &Slots<Inbox>, slot: u32) -> Option<u64> {
    inboxes.get(slot).map(|inbox| inbox.log.id)
}

impl Inbox {
    /// Creates an inbox from its record.
    pub(super) fn new(record: AccountRecord) -> Self {
        let AccountRecord {
            name,
            incarnation,
            password,
            is_suspended,
            head,
            tail,
        } = record;
        let account = Account { name, incarnation };
        Self {
            account,
            password,
            is_suspended,
            used_s: 0,
            unread_since: 0,
            log: MessageLog::new(incarnation, head, tail),
            devices: Devices::None,
            profile: None,
        }
    }

    /// Returns the record of the inbox.
    pub(super) fn record(&self) -> AccountRecord {
        AccountRecord {
            name: self.account.name.clone(),
            incarnation: self.account.incarnation,
            password: self.password.clone(),
            is_suspended: self.is_suspended,
            head: self.log.head,
            tail: self.log.tail,
        }
    }

    /// Returns the account, for the directory.
    pub(super) fn entry(&self) -> AccountEntry {
        AccountEntry {
            account: self.account.clone(),
            password: self.password.clone(),
            is_suspended: self.is_suspended,
            limits: self.profile.as_ref().and_then(|own| own.limits.clone()),
        }
    }

    /// Returns its state at `now_s` in Unix seconds, for an administrator.
    pub(super) fn info(&mut self, now_s: u32) -> InboxInfo {
        let (head, tail) = (self.log.head, self.log.tail);
        InboxInfo {
            name: self.account.name.clone(),
            has_password: self.password.is_some(),
            is_suspended: self.is_suspended,
            is_receiving: self.devices.is_attached(),
            waiting_messages: tail.messages.saturating_sub(head.messages),
            waiting_bytes: tail.bytes.saturating_sub(head.bytes),
            acknowledged: head.sequence,
            last: tail.sequence,
            devices: self.device_entries(now_s),
            limits: self.limits(),
        }
    }

    /// Writes the account.
    pub(super) fn write(&self, changes: &mut Changes) {
        changes.record(&Record::Account(self.record()));
        self.publish(changes);
    }

    /// Shows the account to the directory when the frame is durable.
    pub(super) fn publish(&self, changes: &mut Changes) {
        changes
            .effects
            .accounts
            .push(AccountChange::Present(self.entry()));
        changes.effects.is_awaited = true;
    }

    /// Returns what the user has beside the inbox, and creates it if there is nothing yet.
    pub(super) fn profile_mut(&mut self) -> &mut Profile {
        self.profile.get_or_insert_default()
    }

    /// Returns the number of rooms to which the user is related in this way.
    pub(super) fn count(&self, membership: Membership) -> usize {
        let profile = self.profile.as_ref();
        profile.map_or(0, |profile| profile.slots_of(membership).len())
    }

    /// Returns whether the user blocks an account.
    pub(super) fn is_blocking(&self, account: u64) -> bool {
        let profile = self.profile.as_ref();
        profile.is_some_and(|profile| profile.blocked.contains(&account))
    }

    /// Notifies the attached devices that read rooms.
    pub(super) fn notify(&mut self, notice: &Notice, changes: &mut Changes) {
        let outlets = self.devices.outlets();
        for (id, outlet) in outlets.filter(|(id, _)| *id != NAMELESS) {
            if let Some(publisher) = outlet.publisher() {
                let is_own = changes.origin == Some(id);
                changes.effects.notify(publisher, notice, is_own);
            }
        }
    }

    /// Returns whether a device that reads rooms is attached.
    pub(super) fn is_attached(&mut self) -> bool {
        let mut outlets = self.devices.outlets();
        outlets.any(|(id, outlet)| id != NAMELESS && outlet.is_attached())
    }
}
