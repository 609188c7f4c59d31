//! Own messages without an outcome.

use std::collections::BTreeSet;
use std::io;

use hark_client::journal::{SendJournal, SendTag};
use hark_protocol::{Sequence, UserName};
use rusqlite::{OptionalExtension as _, Transaction};

use super::run::{self, EndedRun, Run};
use super::write::{Kind, NewEntry, own_in};
use super::{
    Adopted, Conversation, EntryId, History, HistoryError, HistoryFile, Outcome, Result, Unsent,
};

/// The explanation of an outcome that is unknown because of the end of a process.
const ENDED: &str = "hark ended before the server had answered";

impl History {
    /// Adds an own message before it is sent to a user or a room.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn add_pending(
        &self,
        recipient: &UserName,
        text: &str,
        now_ms: u64,
    ) -> Result<(Conversation, EntryId)> {
        let run = self.file.run()?;
        let added = self.file.change(|change| {
            let conversation = match Conversation::with(recipient) {
                Conversation::Room(room) => self.place(change, Some(&room), None)?,
                user => user,
            };
            let entry = NewEntry {
                kind: Kind::Pending,
                conversation: &conversation,
                log: recipient.as_str(),
                number: None,
                time_ms: now_ms,
                sender: Some(&self.user),
                is_mention: false,
                text,
                detail: None,
            };
            let id = self.insert(change, &entry)?;
            let insert = "INSERT INTO outbox (entry, run, is_written) VALUES (?1, ?2, FALSE)";
            change.execute(insert, (id.0, run.name()))?;
            Ok((conversation, id))
        })?;
        self.file.trim()?;
        Ok(added)
    }

    /// Adopts the own messages of processes that have ended: those that were never
    /// written to a server, in the order in which they were typed. The outcome of
    /// the others is unknown from now on.
    ///
    /// # Errors
    /// If the database or a lock fails.
    pub(crate) fn adopt(&self) -> Result<Adopted> {
        let mut adopted = Adopted::default();
        let Some(directory) = &self.file.runs else {
            return Ok(adopted);
        };
        let run = self.file.run()?;
        for name in self.other_runs(run)? {
            let ended =
                EndedRun::lock(directory, &name).map_err(|error| self.file.run_error(error))?;
            let Some(ended) = ended else { continue };
            self.file.change(|change| {
                adopted.unknown += self.give_up_written(change, &name)?;
                adopted.unsent.extend(self.take(change, &name, run.name())?);
                Ok(())
            })?;
            drop(ended);
        }
        let owners = self.file.owners()?;
        run::sweep(directory, |name| {
            name == run.name() || owners.contains(name)
        })
        .map_err(|error| self.file.run_error(error))?;
        adopted.unsent.sort_by_key(|unsent| unsent.id);
        Ok(adopted)
    }

    fn other_runs(&self, run: &Run) -> Result<Vec<String>> {
        let select = "SELECT DISTINCT run FROM outbox JOIN entry ON id = entry \
             WHERE account = ?1 AND run <> ?2";
        self.file.read(|of| {
            let mut select = of.prepare(select)?;
            let names = select.query_map((self.account, run.name()), |row| row.get(0))?;
            names.collect()
        })
    }

    /// Ends the messages of a run that may have reached a server, and returns their
    /// number.
    fn give_up_written(&self, change: &Transaction<'_>, run: &str) -> rusqlite::Result<usize> {
        let written = "SELECT entry FROM outbox WHERE run = ?1 AND is_written";
        let update = format!(
            "UPDATE entry SET kind = ?2, detail = ?3 WHERE account = ?4 AND id IN ({written})"
        );
        let count = change.execute(&update, (run, Kind::Unknown as i64, ENDED, self.account))?;
        let delete = "DELETE FROM outbox WHERE run = ?1 AND is_written \
             AND entry IN (SELECT id FROM entry WHERE account = ?2)";
        change.execute(delete, (run, self.account))?;
        Ok(count)
    }

    /// Moves the other messages of a run to another one.
    fn take(
        &self,
        change: &Transaction<'_>,
        from: &str,
        to: &str,
    ) -> rusqlite::Result<Vec<Unsent>> {
        let mut select = change.prepare(
            "SELECT id, log, text, time_ms FROM outbox JOIN entry ON id = entry \
             WHERE run = ?1 AND account = ?2",
        )?;
        let rows = select.query_map((from, self.account), |row| {
            let recipient: String = row.get(1)?;
            Ok(recipient.parse().ok().map(|recipient| Unsent {
                id: EntryId(row.get_unwrap(0)),
                recipient,
                text: row.get_unwrap(2),
                typed_ms: row.get_unwrap(3),
            }))
        })?;
        let unsent: Vec<Option<Unsent>> = rows.collect::<rusqlite::Result<_>>()?;
        let update = "UPDATE outbox SET run = ?2 WHERE run = ?1 \
             AND entry IN (SELECT id FROM entry WHERE account = ?3)";
        change.execute(update, (from, to, self.account))?;
        Ok(unsent.into_iter().flatten().collect())
    }
}

impl SendJournal for HistoryFile {
    fn begin(&self, tag: SendTag) -> io::Result<bool> {
        let id = EntryId(tag.0.cast_signed());
        self.begin_write(id).map_err(io::Error::other)
    }
}

impl HistoryFile {
    /// Records that an own message may reach a server from now on. Returns whether it
    /// still exists.
    ///
    /// # Errors
    /// If the database fails. The message must not be written in that case.
    fn begin_write(&self, id: EntryId) -> Result<bool> {
        let update = "UPDATE outbox SET is_written = TRUE WHERE entry = ?1";
        self.change(|change| Ok(change.execute(update, [id.0])? > 0))
    }

    /// Records the outcome of an own message. If a room has sent the message back
    /// before this outcome was known, the entry of that message is removed, and
    /// returned.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn resolve(&self, id: EntryId, outcome: &Outcome) -> Result<Option<EntryId>> {
        self.change(|change| match outcome {
            Outcome::Stored(number) => store(change, id, *number),
            Outcome::Refused(why) => fail(change, id, Kind::Refused, why),
            Outcome::Unknown(why) => fail(change, id, Kind::Unknown, why),
        })
    }

    /// Removes an own message unless it may have reached a server, and returns its
    /// text.
    ///
    /// # Errors
    /// If the database fails.
    pub(crate) fn withdraw(&self, id: EntryId) -> Result<Option<String>> {
        self.change(|change| {
            let delete = "DELETE FROM outbox WHERE entry = ?1 AND NOT is_written";
            if change.execute(delete, [id.0])? == 0 {
                return Ok(None);
            }
            let delete = "DELETE FROM entry WHERE id = ?1 RETURNING text";
            change
                .query_row(delete, [id.0], |row| row.get(0))
                .optional()
        })
    }

    /// Returns the runs that own messages.
    fn owners(&self) -> Result<BTreeSet<String>> {
        self.read(|of| {
            let mut select = of.prepare("SELECT DISTINCT run FROM outbox")?;
            let names = select.query_map((), |row| row.get(0))?;
            names.collect()
        })
    }

    /// Returns the run of this process, which begins with the first call.
    pub(super) fn run(&self) -> Result<&Run> {
        if let Some(run) = self.run.get() {
            return Ok(run);
        }
        let run = Run::begin(self.runs.as_deref()).map_err(|error| self.run_error(error))?;
        Ok(self.run.get_or_init(|| run))
    }

    fn run_error(&self, error: io::Error) -> HistoryError {
        let path = self.runs.as_deref().unwrap_or("".as_ref());
        HistoryError::File {
            path: path.display().to_string(),
            error,
        }
    }
}

fn store(
    change: &Transaction<'_>,
    id: EntryId,
    number: Option<Sequence>,
) -> rusqlite::Result<Option<EntryId>> {
    let select = "SELECT account, log FROM entry WHERE id = ?1";
    let place: Option<(i64, String)> = change
        .query_row(select, [id.0], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let mut repeat = None;
    if let (Some((account, log)), Some(number)) = (place, number)
        && let Some(sent_back) = own_in(change, account, &log, number)?
        && sent_back != id
    {
        let take = "UPDATE entry SET time_ms = (SELECT time_ms FROM entry WHERE id = ?2) \
             WHERE id = ?1";
        change.execute(take, (id.0, sent_back.0))?;
        change.execute("DELETE FROM entry WHERE id = ?1", [sent_back.0])?;
        repeat = Some(sent_back);
    }
    let update = "UPDATE entry SET kind = ?2, number = ?3 WHERE id = ?1 AND kind = ?4";
    let (stored, pending) = (Kind::Stored as i64, Kind::Pending as i64);
    change.execute(
        update,
        (id.0, stored, number.map(|number| number.0), pending),
    )?;
    change.execute("DELETE FROM outbox WHERE entry = ?1", [id.0])?;
    Ok(repeat)
}

fn fail(
    change: &Transaction<'_>,
    id: EntryId,
    kind: Kind,
    why: &str,
) -> rusqlite::Result<Option<EntryId>> {
    let update = "UPDATE entry SET kind = ?2, detail = ?3 WHERE id = ?1 AND kind = ?4";
    change.execute(update, (id.0, kind as i64, why, Kind::Pending as i64))?;
    change.execute("DELETE FROM outbox WHERE entry = ?1", [id.0])?;
    Ok(None)
}
