//! Imported accounts and messages, which keep their numbers.

use hark_protocol::{Sequence, UserName};

use super::changes::Changes;
use super::{Ledger, reserve};
use crate::store::{Created, Message, PasswordHash, Position};

/// The result of an import of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Imported {
    /// It is in the inbox.
    Stored,
    /// The inbox already has this number, or its cursor has passed it.
    Known,
    /// The inbox of this account already has a later number. The ledger cannot tell
    /// whether it has this one as well.
    Behind(u64),
    /// There is no such account.
    NoSuchUser,
}

impl Ledger {
    /// Creates an account whose messages up to `cursor` were acknowledged.
    pub(crate) fn import_account(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        cursor: Sequence,
        changes: &mut Changes,
    ) -> Created {
        if self.inboxes.contains(name) {
            return Created::Exists;
        }
        if self.inboxes.len() >= self.limits.accounts_max {
            return Created::TooMany;
        }
        self.skip_number(cursor, changes);
        self.insert(
            name,
            password,
            Position {
                sequence: cursor,
                messages: 0,
                bytes: 0,
            },
            changes,
        )
    }

    /// Stores a message under its own number. Its counts continue those of the inbox. No
    /// quota applies.
    pub(crate) fn import_message(
        &mut self,
        to: &UserName,
        message: Message,
        changes: &mut Changes,
    ) -> Imported {
        let Some(inbox) = self.inboxes.by_name(to) else {
            return Imported::NoSuchUser;
        };
        let sequence = message.position.sequence;
        if sequence <= inbox.cursor.sequence || sequence == inbox.tail.sequence {
            return Imported::Known;
        }
        if sequence < inbox.tail.sequence {
            return Imported::Behind(inbox.account.incarnation);
        }
        let position = Position {
            sequence,
            messages: inbox.tail.messages + 1,
            bytes: inbox.tail.bytes + message.text.len() as u64,
        };
        self.time_ms = self.time_ms.max(message.time_ms);
        inbox.push(
            Message {
                position,
                ..message
            },
            changes,
        );
        changes.effects.is_awaited = true;
        self.skip_number(sequence, changes);
        Imported::Stored
    }

    /// Skips the numbers up to this one.
    pub(crate) fn skip_number(&mut self, number: Sequence, changes: &mut Changes) {
        if let Some(bound) = self.numbers.skip(number.0) {
            reserve(bound, changes);
        }
    }
}
