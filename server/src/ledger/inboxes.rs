//! The accounts and their inboxes.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use hark_protocol::UserName;
use hashbrown::HashTable;

use super::block::BlockBuilder;
use super::changes::{AccountChange, Changes, Delivery};
use super::record::{AccountRecord, Record};
use super::slots::Slots;
use crate::store::{Account, AccountEntry, InboxInfo, Message, PasswordHash, Position, Publisher};

/// All inboxes, by name.
#[derive(Debug, Default)]
pub(super) struct Inboxes {
    inboxes: Slots<Inbox>,
    /// The slot of each inbox, by its name.
    by_name: HashTable<u32>,
    hasher: RandomState,
}

/// An account, its inbox, and the subscription to it.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) account: Account,
    pub(super) password: Option<PasswordHash>,
    /// An administrator has suspended the account: it cannot send.
    pub(super) is_suspended: bool,
    /// The position of the last forgotten message.
    pub(super) cursor: Position,
    /// The position of the last message.
    pub(super) tail: Position,
    pub(super) publisher: Option<Publisher>,
    /// The index of its block in the frame under construction, valid only if that block
    /// belongs to this inbox.
    block_at: u32,
    /// The index of its delivery, valid only if that belongs to its subscription.
    delivery_at: u32,
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
        let found = self.by_name.find(self.hasher.hash_one(name), |slot| {
            is_of(&self.inboxes, *slot, name)
        });
        found.copied()
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
            hasher,
        } = self;
        let hash = hasher.hash_one(&inbox.account.name);
        let slot = inboxes.insert(inbox).ok()?;
        let rehash = |slot: &u32| {
            inboxes
                .get(*slot)
                .map_or(0, |inbox| hasher.hash_one(&inbox.account.name))
        };
        by_name.insert_unique(hash, slot, rehash);
        Some(slot)
    }

    /// Removes the inbox of a name.
    pub(super) fn remove(&mut self, name: &UserName) -> Option<Inbox> {
        let Self {
            inboxes,
            by_name,
            hasher,
        } = self;
        let found = by_name.find_entry(hasher.hash_one(name), |slot| is_of(inboxes, *slot, name));
        let (slot, _) = found.ok()?.remove();
        inboxes.remove(slot)
    }

    /// Returns the inbox in a slot.
    pub(super) fn at(&mut self, slot: u32) -> Option<&mut Inbox> {
        self.inboxes.get_mut(slot)
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
fn is_of(inboxes: &Slots<Inbox>, slot: u32, name: &UserName) -> bool {
    inboxes
        .get(slot)
        .is_some_and(|inbox| inbox.account.name == *name)
}

impl Inbox {
    /// Creates an inbox from its record.
    pub(super) fn new(record: AccountRecord) -> Self {
        let AccountRecord {
            name,
            incarnation,
            password,
            is_suspended,
            cursor,
            tail,
        } = record;
        let account = Account { name, incarnation };
        Self {
            account,
            password,
            is_suspended,
            cursor,
            tail,
            publisher: None,
            block_at: 0,
            delivery_at: 0,
        }
    }

    /// Returns the record of the inbox.
    pub(super) fn record(&self) -> AccountRecord {
        AccountRecord {
            name: self.account.name.clone(),
            incarnation: self.account.incarnation,
            password: self.password.clone(),
            is_suspended: self.is_suspended,
            cursor: self.cursor,
            tail: self.tail,
        }
    }

    /// Returns the account, for the directory.
    pub(super) fn entry(&self) -> AccountEntry {
        AccountEntry {
            account: self.account.clone(),
            password: self.password.clone(),
            is_suspended: self.is_suspended,
        }
    }

    /// Returns its state, for an administrator.
    pub(super) fn info(&self) -> InboxInfo {
        InboxInfo {
            name: self.account.name.clone(),
            has_password: self.password.is_some(),
            is_suspended: self.is_suspended,
            is_receiving: self.publisher.as_ref().is_some_and(|p| !p.is_ended()),
            waiting_messages: self.queued_messages(),
            waiting_bytes: self.queued_bytes(),
            acknowledged: self.cursor.sequence,
            last: self.tail.sequence,
        }
    }

    /// Writes the account.
    pub(super) fn write(&self, changes: &mut Changes) {
        changes.record(&Record::Account(self.record()));
        changes
            .effects
            .accounts
            .push(AccountChange::Present(self.entry()));
        changes.effects.is_awaited = true;
    }

    /// Adds the next message to the frame, and to the delivery to the subscription.
    pub(super) fn push(&mut self, message: Message, changes: &mut Changes) {
        let inbox = self.account.incarnation;
        let is_full = match changes.block_of(inbox, self.block_at) {
            Some(block) => {
                block.push(&message);
                block.is_full()
            }
            None => {
                self.block_at = changes.add_block(BlockBuilder::new(inbox, self.tail, &message));
                false
            }
        };
        if is_full {
            changes.note_full();
        }
        self.deliver(message, changes);
    }

    fn deliver(&mut self, message: Message, changes: &mut Changes) {
        self.tail = message.position;
        self.publisher.take_if(|publisher| publisher.is_ended());
        let Some(publisher) = &self.publisher else {
            return;
        };
        let deliveries = &mut changes.effects.deliveries;
        match deliveries.get_mut(self.delivery_at as usize) {
            Some(delivery) if delivery.publisher.is_same(publisher) => {
                delivery.messages.push(Arc::new(message))
            }
            _ => {
                self.delivery_at = deliveries.len() as u32;
                let publisher = publisher.clone();
                deliveries.push(Delivery {
                    #[cfg(feature = "cluster")]
                    inbox: self.account.incarnation,
                    publisher,
                    messages: vec![Arc::new(message)],
                });
            }
        }
    }

    /// Returns the number of unacknowledged messages.
    pub(super) const fn queued_messages(&self) -> u64 {
        self.tail.messages.saturating_sub(self.cursor.messages)
    }

    /// Returns the bytes of their texts.
    pub(super) const fn queued_bytes(&self) -> u64 {
        self.tail.bytes.saturating_sub(self.cursor.bytes)
    }
}
