//! Reading of the history.

use hark_client::journal::SendTag;
use hark_protocol::{RoomName, Sequence, UserName};
use rusqlite::{Row, Transaction};

use super::write::Kind;
use super::{Conversation, Entry, EntryId, EntryState, History, PAGE_MAX, Result, Summary};

/// The columns of [`entry`].
const COLUMNS: &str = "entry.id, kind, log, number, time_ms, sender, is_mention, text, detail";

impl History {
    /// Returns the conversations, the one with the newest entry first.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn conversations(&self) -> Result<Vec<Summary>> {
        let select = format!(
            "SELECT {COLUMNS}, name, read_up_to, \
             (SELECT count(*) FROM entry WHERE conversation = c.id AND kind = {received} \
              AND id > read_up_to), \
             (SELECT count(*) FROM entry WHERE conversation = c.id AND kind = {received} \
              AND id > read_up_to AND is_mention) \
             FROM conversation AS c JOIN entry ON entry.id = \
             (SELECT max(id) FROM entry WHERE conversation = c.id) \
             WHERE c.account = ?1 ORDER BY entry.id DESC",
            received = Kind::Received as i64,
        );
        self.file.read(|of| {
            let mut statement = of.prepare(&select)?;
            let rows = statement.query_map([self.account], |row| {
                let name: String = row.get(9)?;
                Ok(Summary {
                    conversation: Conversation::from_key(&name),
                    last: entry(row)?,
                    read_up_to: EntryId(row.get(10)?),
                    unread: row.get(11)?,
                    mentions: row.get(12)?,
                })
            })?;
            rows.collect()
        })
    }

    /// Returns the newest entries of a conversation, or the newest before `before`:
    /// the newest first, at most `count` and [`PAGE_MAX`].
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn page(
        &self,
        conversation: &Conversation,
        before: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<Entry>> {
        let select = format!(
            "SELECT {COLUMNS} FROM entry WHERE conversation = ?1 AND id < ?2 \
             ORDER BY id DESC LIMIT ?3"
        );
        self.entries(conversation, &select, before.unwrap_or(EntryId::END), count)
    }

    /// Returns the entries of a conversation behind `after`: the oldest first, at
    /// most `count` and [`PAGE_MAX`]. The first one is behind [`EntryId::START`].
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn page_after(
        &self,
        conversation: &Conversation,
        after: EntryId,
        count: usize,
    ) -> Result<Vec<Entry>> {
        let select = format!(
            "SELECT {COLUMNS} FROM entry WHERE conversation = ?1 AND id > ?2 \
             ORDER BY id LIMIT ?3"
        );
        self.entries(conversation, &select, after, count)
    }

    fn entries(
        &self,
        conversation: &Conversation,
        select: &str,
        edge: EntryId,
        count: usize,
    ) -> Result<Vec<Entry>> {
        self.file.read(|of| {
            let Some(id) = self.find(of, conversation)? else {
                return Ok(Vec::new());
            };
            let mut statement = of.prepare(select)?;
            let rows = statement.query_map((id, edge.0, count.min(PAGE_MAX)), entry)?;
            rows.collect()
        })
    }

    /// Returns the newest entries whose text contains `words`, regardless of case, or
    /// the newest before `before`: the newest first, at most `count` and [`PAGE_MAX`].
    /// Reads all texts if few match.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn search(
        &self,
        words: &str,
        within: Option<&Conversation>,
        before: Option<EntryId>,
        count: usize,
    ) -> Result<Vec<(Conversation, Entry)>> {
        let select = format!(
            "SELECT {COLUMNS}, name FROM entry JOIN conversation AS c ON c.id = conversation \
             WHERE entry.account = ?1 AND (?2 IS NULL OR name = ?2) AND entry.id < ?3 \
             AND contains_folded(text, ?4) ORDER BY entry.id DESC LIMIT ?5"
        );
        let before = before.unwrap_or(EntryId::END);
        self.file.read(|of| {
            let mut statement = of.prepare(&select)?;
            let wanted = (
                self.account,
                within.map(Conversation::key),
                before.0,
                words.to_lowercase(),
                count.min(PAGE_MAX),
            );
            let rows = statement.query_map(wanted, |row| {
                let name: String = row.get(9)?;
                Ok((Conversation::from_key(&name), entry(row)?))
            })?;
            rows.collect()
        })
    }

    /// Returns the lowest number of a room in the history, below which the server's
    /// `history` continues.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn oldest_number(&self, room: &RoomName) -> Result<Option<Sequence>> {
        let select = "SELECT min(number) FROM entry WHERE account = ?1 AND log = ?2";
        self.file.read(|of| {
            let number: Option<u64> =
                of.query_row(select, (self.account, room.as_str()), |row| row.get(0))?;
            Ok(number.map(Sequence))
        })
    }

    /// Returns the users that are ignored, sorted.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn ignored(&self) -> Result<Vec<UserName>> {
        let select = "SELECT user FROM ignored WHERE account = ?1 ORDER BY user";
        self.file.read(|of| {
            let mut select = of.prepare(select)?;
            let names = select.query_map([self.account], |row| row.get::<_, String>(0))?;
            let names: Vec<String> = names.collect::<rusqlite::Result<_>>()?;
            Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
        })
    }

    /// Returns the other user of a room of two, if it is known.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn other_user(&self, room: &RoomName) -> Result<Option<UserName>> {
        self.file.read(|of| self.talk_with(of, room))
    }

    pub(super) fn talk_with(
        &self,
        of: &Transaction<'_>,
        room: &RoomName,
    ) -> rusqlite::Result<Option<UserName>> {
        let mut select = of.prepare("SELECT user FROM talk WHERE account = ?1 AND room = ?2")?;
        let mut rows = select.query((self.account, room.as_str()))?;
        let name: Option<String> = rows.next()?.map(|row| row.get(0)).transpose()?;
        Ok(name.and_then(|name| name.parse().ok()))
    }

    /// Returns the room of two with a user, if it is known.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn room_with(&self, user: &UserName) -> Result<Option<RoomName>> {
        self.file.read(|of| {
            let mut select =
                of.prepare("SELECT room FROM talk WHERE account = ?1 AND user = ?2")?;
            let mut rows = select.query((self.account, user.as_str()))?;
            let name: Option<String> = rows.next()?.map(|row| row.get(0)).transpose()?;
            Ok(name.and_then(|name| name.parse().ok()))
        })
    }
}

impl EntryId {
    /// A place before every entry.
    pub(crate) const START: Self = Self(0);

    /// A place behind every entry.
    const END: Self = Self(i64::MAX);

    /// Returns the name of an own message for the client, which calls the journal
    /// before it writes the message.
    pub(crate) const fn tag(self) -> SendTag {
        SendTag(self.0.cast_unsigned())
    }
}

/// Reads the columns [`COLUMNS`].
fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let (log, sender): (String, Option<String>) = (row.get(2)?, row.get(5)?);
    let detail: Option<String> = row.get(8)?;
    let detail = detail.unwrap_or_default();
    let state = match Kind::from(row.get::<_, i64>(1)?) {
        Kind::Received => EntryState::Received,
        Kind::Pending => EntryState::Pending,
        Kind::Stored => EntryState::Stored,
        Kind::Refused => EntryState::Refused(detail),
        Kind::Unknown => EntryState::Unknown(detail),
        Kind::Ignored => EntryState::Ignored,
        Kind::Missing => EntryState::Missing(detail.parse().unwrap_or(0)),
    };
    Ok(Entry {
        id: EntryId(row.get(0)?),
        state,
        room: log.parse().ok(),
        number: row.get::<_, Option<u64>>(3)?.map(Sequence),
        time_ms: row.get(4)?,
        sender: sender.and_then(|name| name.parse().ok()),
        is_mention: row.get(6)?,
        text: row.get(7)?,
    })
}
