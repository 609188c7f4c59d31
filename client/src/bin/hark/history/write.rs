//! Changes of the history.

use hark_protocol::message::Gap;
use hark_protocol::{RoomName, Sequence, UserName};
use rusqlite::{OptionalExtension as _, Transaction};

use super::{Conversation, EntryId, Filed, History, HistoryFile, Received, Result};

/// The kind of an entry in the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i64)]
pub(super) enum Kind {
    Received = 0,
    Pending = 1,
    Stored = 2,
    Refused = 3,
    Unknown = 4,
    Missing = 5,
    Ignored = 6,
}

impl From<i64> for Kind {
    fn from(kind: i64) -> Self {
        match kind {
            1 => Self::Pending,
            2 => Self::Stored,
            3 => Self::Refused,
            4 => Self::Unknown,
            5 => Self::Missing,
            6 => Self::Ignored,
            _ => Self::Received,
        }
    }
}

/// An entry to insert.
pub(super) struct NewEntry<'a> {
    pub(super) kind: Kind,
    pub(super) conversation: &'a Conversation,
    pub(super) log: &'a str,
    pub(super) number: Option<Sequence>,
    pub(super) time_ms: u64,
    pub(super) sender: Option<&'a UserName>,
    pub(super) is_mention: bool,
    pub(super) text: &'a str,
    pub(super) detail: Option<String>,
}

impl History {
    /// Adds received messages, in their order, unless they are present; returns their
    /// places in the same order. An own message that a room sends back is the one that
    /// was added by [`Self::add_pending`], with the time of the server. Afterwards the
    /// messages may be acknowledged.
    ///
    /// # Errors
    /// If the database fails. No message is added in that case.
    pub(crate) fn add_received(&self, messages: &[Received<'_>]) -> Result<Vec<Filed>> {
        let filed = self.file.change(|change| {
            let filed = messages
                .iter()
                .map(|message| self.file_one(change, message));
            filed.collect()
        })?;
        self.file.trim()?;
        Ok(filed)
    }

    fn file_one(
        &self,
        change: &Transaction<'_>,
        message: &Received<'_>,
    ) -> rusqlite::Result<Filed> {
        let (room, delivery) = (message.room, message.delivery);
        let is_own = room.is_some() && delivery.sender.as_ref() == Some(&self.user);
        let conversation = self.place(change, room, delivery.sender.as_ref())?;
        let is_ignored = self.ignores(change, delivery.sender.as_ref())?;
        let is_mention =
            room.is_some() && !is_own && !is_ignored && mentions(&delivery.text, &self.user);
        let filed = |id, is_new| Filed {
            conversation: conversation.clone(),
            id,
            is_new,
            is_mention,
            is_ignored,
        };
        let log = room.map_or("", RoomName::as_str);
        if let Some(id) = self.present(change, log, delivery.sequence, delivery.time_ms)? {
            return Ok(filed(id, false));
        }
        if is_own && let Some(id) = own_in(change, self.account, log, delivery.sequence)? {
            let update = "UPDATE entry SET time_ms = ?2 WHERE id = ?1";
            change.execute(update, (id.0, delivery.time_ms))?;
            return Ok(filed(id, false));
        }
        let entry = NewEntry {
            kind: match (is_own, is_ignored) {
                (true, _) => Kind::Stored,
                (false, true) => Kind::Ignored,
                (false, false) => Kind::Received,
            },
            conversation: &conversation,
            log,
            number: Some(delivery.sequence),
            time_ms: delivery.time_ms,
            sender: delivery.sender.as_ref(),
            is_mention,
            text: &delivery.text,
            detail: None,
        };
        Ok(filed(self.insert(change, &entry)?, true))
    }

    /// Adds the notice of missing messages, unless it is present.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn add_missing(&self, gap: &Gap, now_ms: u64) -> Result<Filed> {
        self.file.change(|change| {
            let conversation = self.place(change, gap.log.as_ref(), None)?;
            let log = gap.log.as_ref().map_or("", RoomName::as_str);
            let select = "SELECT id FROM entry WHERE account = ?1 AND log = ?2 AND number = ?3 \
                 AND kind = ?4";
            let key = (self.account, log, gap.to.0, Kind::Missing as i64);
            let present: Option<i64> =
                change.query_row(select, key, |row| row.get(0)).optional()?;
            let (id, is_new) = match present {
                Some(id) => (EntryId(id), false),
                None => {
                    let entry = NewEntry {
                        kind: Kind::Missing,
                        conversation: &conversation,
                        log,
                        number: Some(gap.to),
                        time_ms: now_ms,
                        sender: None,
                        is_mention: false,
                        text: "",
                        detail: Some(gap.count.to_string()),
                    };
                    (self.insert(change, &entry)?, true)
                }
            };
            Ok(Filed {
                conversation,
                id,
                is_new,
                is_mention: false,
                is_ignored: false,
            })
        })
    }

    /// Marks a conversation as read up to an entry. The mark only grows.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn mark_read(&self, conversation: &Conversation, up_to: EntryId) -> Result<()> {
        let update = "UPDATE conversation SET read_up_to = max(read_up_to, ?3) \
             WHERE account = ?1 AND name = ?2 AND read_up_to < ?3";
        self.file.change(|change| {
            change.execute(update, (self.account, conversation.key(), up_to.0))?;
            Ok(())
        })
    }

    /// Marks a room as read up to a number, as another device has. Returns the
    /// conversation.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn mark_seen(&self, room: &RoomName, up_to: Sequence) -> Result<Conversation> {
        let select = "SELECT max(id) FROM entry WHERE account = ?1 AND log = ?2 AND number <= ?3";
        let (conversation, id) = self.file.change(|change| {
            let key = (self.account, room.as_str(), up_to.0);
            let id: Option<i64> = change.query_row(select, key, |row| row.get(0))?;
            Ok((self.place(change, Some(room), None)?, id))
        })?;
        if let Some(id) = id {
            self.mark_read(&conversation, EntryId(id))?;
        }
        Ok(conversation)
    }

    /// Ignores a user from now on, or no longer.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn ignore(&self, user: &UserName, is_ignored: bool) -> Result<()> {
        let sql = if is_ignored {
            "INSERT OR IGNORE INTO ignored (account, user) VALUES (?1, ?2)"
        } else {
            "DELETE FROM ignored WHERE account = ?1 AND user = ?2"
        };
        self.file.change(|change| {
            change.execute(sql, (self.account, user.as_str()))?;
            Ok(())
        })
    }

    fn ignores(
        &self,
        change: &Transaction<'_>,
        sender: Option<&UserName>,
    ) -> rusqlite::Result<bool> {
        let select = "SELECT EXISTS (SELECT * FROM ignored WHERE account = ?1 AND user = ?2)";
        let name = sender.map(UserName::as_str);
        change.query_row(select, (self.account, name), |row| row.get(0))
    }

    /// Records that a room is the conversation with a user, as `talk` answers. Its
    /// entries join those of the user.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn learn_talk(&self, user: &UserName, room: &RoomName) -> Result<()> {
        self.file.change(|change| self.join(change, user, room))
    }

    fn join(
        &self,
        change: &Transaction<'_>,
        user: &UserName,
        room: &RoomName,
    ) -> rusqlite::Result<()> {
        let insert = "INSERT OR IGNORE INTO talk (account, room, user) VALUES (?1, ?2, ?3)";
        let key = (self.account, room.as_str(), user.as_str());
        if change.execute(insert, key)? == 0 {
            return Ok(());
        }
        if let Some(former) = self.find(change, &Conversation::Room(room.clone()))? {
            let row = self.row(change, &Conversation::User(user.clone()))?;
            let update = "UPDATE entry SET conversation = ?2 WHERE conversation = ?1";
            change.execute(update, (former, row))?;
            change.execute("DELETE FROM conversation WHERE id = ?1", [former])?;
        }
        Ok(())
    }

    /// Returns the conversation of a message. Every message of another user in a room
    /// of two names that user.
    pub(super) fn place(
        &self,
        change: &Transaction<'_>,
        room: Option<&RoomName>,
        sender: Option<&UserName>,
    ) -> rusqlite::Result<Conversation> {
        let Some(room) = room else {
            return Ok(sender.map_or(Conversation::Anonymous, |user| {
                Conversation::User(user.clone())
            }));
        };
        if !room.is_conversation() {
            return Ok(Conversation::Room(room.clone()));
        }
        if let Some(user) = sender.filter(|&user| *user != self.user) {
            self.join(change, user, room)?;
            return Ok(Conversation::User(user.clone()));
        }
        let other = self.talk_with(change, room)?;
        Ok(other.map_or_else(|| Conversation::Room(room.clone()), Conversation::User))
    }

    /// Returns the row of a conversation, which is added if it is missing.
    fn row(&self, change: &Transaction<'_>, conversation: &Conversation) -> rusqlite::Result<i64> {
        if let Some(row) = self.find(change, conversation)? {
            return Ok(row);
        }
        let insert = "INSERT INTO conversation (account, name) VALUES (?1, ?2)";
        change.execute(insert, (self.account, conversation.key()))?;
        Ok(change.last_insert_rowid())
    }

    pub(super) fn insert(
        &self,
        change: &Transaction<'_>,
        entry: &NewEntry<'_>,
    ) -> rusqlite::Result<EntryId> {
        let conversation = self.row(change, entry.conversation)?;
        let mut insert = change.prepare(
            "INSERT INTO entry (account, conversation, kind, log, number, time_ms, sender, \
             is_mention, text, detail) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        let row = (
            self.account,
            conversation,
            entry.kind as i64,
            entry.log,
            entry.number.map(|number| number.0),
            entry.time_ms,
            entry.sender.map(UserName::as_str),
            entry.is_mention,
            entry.text,
            &entry.detail,
        );
        insert.insert(row).map(EntryId)
    }

    /// Returns the entry with this number and time of a log.
    fn present(
        &self,
        change: &Transaction<'_>,
        log: &str,
        number: Sequence,
        time_ms: u64,
    ) -> rusqlite::Result<Option<EntryId>> {
        let select = "SELECT id FROM entry WHERE account = ?1 AND log = ?2 AND number = ?3 \
             AND time_ms = ?4";
        let key = (self.account, log, number.0, time_ms);
        let id = change.query_row(select, key, |row| row.get(0)).optional()?;
        Ok(id.map(EntryId))
    }
}

impl HistoryFile {
    /// Drops the oldest entries of a history in memory.
    pub(super) fn trim(&self) -> Result<()> {
        let Some(entries_max) = self.entries_max else {
            return Ok(());
        };
        let delete =
            "DELETE FROM entry WHERE kind <> ?2 AND id <= (SELECT max(id) FROM entry) - ?1";
        self.change(|change| {
            change.execute(delete, (entries_max, Kind::Pending as i64))?;
            Ok(())
        })
    }
}

/// Returns the own message with this number of a room. The time of an entry from
/// [`History::add_pending`] is not that of the server.
pub(super) fn own_in(
    change: &Transaction<'_>,
    account: i64,
    log: &str,
    number: Sequence,
) -> rusqlite::Result<Option<EntryId>> {
    let select =
        "SELECT id FROM entry WHERE account = ?1 AND log = ?2 AND number = ?3 AND kind = ?4";
    let key = (account, log, number.0, Kind::Stored as i64);
    let id = change.query_row(select, key, |row| row.get(0)).optional()?;
    Ok(id.map(EntryId))
}

/// Returns whether a text names a user: as a word, regardless of case.
pub(super) fn mentions(text: &str, user: &UserName) -> bool {
    let (text, name) = (text.to_lowercase(), user.as_str().to_lowercase());
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(&name).any(|(at, found)| {
        let before = text.get(..at).and_then(|before| before.chars().next_back());
        let after = text
            .get(at + found.len()..)
            .and_then(|after| after.chars().next());
        !is_part(before) && !is_part(after)
    })
}
