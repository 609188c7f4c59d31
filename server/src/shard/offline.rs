//! A writable store that is not served, for `harkd import`.

use std::path::Path;

use hark_protocol::{Sequence, UserName};

use super::open::{self, CounterFloor, OpenShard};
use super::readers::read_page;
use super::{ShardConfig, StartError};
use crate::ledger::{Changes, Context, Imported, SpaceUse};
use crate::log::disk::DiskOpener;
use crate::log::{AppendError, Durability, LogError};
use crate::store::{Created, Message, PasswordHash, ReadLimit};

/// Bytes of text imported in one frame.
const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// A store that is open on this thread.
#[derive(Debug)]
pub(crate) struct OfflineStore {
    opened: OpenShard,
    changes: Changes,
    text_bytes: usize,
}

impl OfflineStore {
    /// Opens the store in a folder, and creates it if there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self, StartError> {
        let opener = DiskOpener::new(folder);
        let opened = open::open(
            &opener,
            ShardConfig::UNBOUNDED.limits(),
            CounterFloor::After(0),
        )?;
        let mut store = Self {
            opened,
            changes: Changes::default(),
            text_bytes: 0,
        };
        store.begin();
        Ok(store)
    }

    /// Creates an account whose messages up to `cursor` were acknowledged.
    pub(crate) fn import_account(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        cursor: Sequence,
    ) -> Result<Created, AppendError> {
        let created = self
            .opened
            .ledger
            .import_account(name, password, cursor, &mut self.changes);
        self.commit_some(name.as_str().len())?;
        Ok(created)
    }

    /// Suspends an account.
    pub(crate) fn suspend(&mut self, name: &UserName) -> Result<(), AppendError> {
        let ledger = &mut self.opened.ledger;
        if let Some(entry) = ledger.account(name) {
            ledger.set_suspended(&entry.account, true, &mut self.changes);
        }
        self.commit_some(name.as_str().len())
    }

    /// Stores a message under its own number. Returns [`Imported::Behind`] if the number
    /// is missing from the inbox and can no longer be added.
    pub(crate) fn import_message(
        &mut self,
        to: &UserName,
        message: Message,
    ) -> Result<Imported, AppendError> {
        let bytes = message.text.len();
        let sequence = message.position.sequence;
        let imported = self
            .opened
            .ledger
            .import_message(to, message, &mut self.changes);
        if let Imported::Behind(incarnation) = imported {
            self.commit()?;
            return Ok(if self.has(incarnation, sequence) {
                Imported::Known
            } else {
                imported
            });
        }
        self.commit_some(bytes)?;
        Ok(imported)
    }

    /// Assigns no number up to this one, from the next commit on.
    pub(crate) fn skip_number(&mut self, number: Sequence) {
        self.opened.ledger.skip_number(number, &mut self.changes);
    }

    /// Returns whether a message is in an inbox and readable.
    fn has(&self, incarnation: u64, sequence: Sequence) -> bool {
        let limit = ReadLimit {
            messages: 1,
            bytes: 0,
        };
        let after = Sequence(sequence.0.saturating_sub(1));
        let page = read_page(&*self.opened.log.reader(), incarnation, after, limit);
        page.is_ok_and(|page| {
            page.messages
                .iter()
                .any(|message| message.position.sequence == sequence)
        })
    }

    fn commit_some(&mut self, bytes: usize) -> Result<(), AppendError> {
        self.text_bytes += bytes;
        if self.text_bytes >= TEXT_BYTES_MAX || self.changes.is_full() {
            self.commit()
        } else {
            Ok(())
        }
    }

    /// Makes the imported records durable.
    pub(crate) fn commit(&mut self) -> Result<(), AppendError> {
        if let Some(frame) = self.opened.ledger.finish(&mut self.changes) {
            self.opened.log.append(frame, Durability::Machine)?;
        }
        self.changes.effects.clear();
        self.begin();
        Ok(())
    }

    fn begin(&mut self) {
        self.text_bytes = 0;
        let running = self.opened.ledger.running();
        self.opened.ledger.begin(
            Context {
                running,
                // The time since the server stopped counts when it starts again.
                wall_ms: 0,
                is_low_on_space: false,
                space: SpaceUse::default(),
            },
            &mut self.changes,
        );
    }

    /// Closes the store cleanly.
    pub(crate) fn close(self) -> Result<(), LogError> {
        self.opened.log.close()
    }
}
