//! What a store starts from: everything but the messages, which stay where
//! they are; of those only the last of each inbox is looked at.

use std::collections::HashMap;
use std::ops::ControlFlow;

use hark_protocol::{Sequence, SessionToken, UserName};

use super::engine::{Engine, EngineError, Opener, Reader, Table};
use super::record::{self, Damaged, RESERVED_KEY};
use super::{Entry, OpenError};
use crate::store::outcomes::Outcomes;
use crate::store::{PasswordHash, Position};

/// The state of a store that has just been opened.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Every account, in the order of the names.
    pub(super) accounts: Vec<LoadedAccount>,
    /// Every session, with its outcomes.
    pub(super) sessions: Vec<(SessionToken, Outcomes)>,
    /// The bound up to which numbers may have been given out.
    pub(super) reserved: u64,
    /// Bytes of the messages in the engine, dead ones included, more or less.
    pub(super) message_bytes: u64,
}

impl Loaded {
    /// The directory, in the order of the names.
    pub(super) fn directory(&self) -> impl Iterator<Item = (UserName, Entry)> {
        self.accounts.iter().map(|account| {
            let entry = Entry { incarnation: account.incarnation, password: account.password.clone() };
            (account.name.clone(), entry)
        })
    }
}

/// An account and its inbox.
#[derive(Debug)]
pub(super) struct LoadedAccount {
    /// Its name.
    pub(super) name: UserName,
    /// Which account of this name.
    pub(super) incarnation: u64,
    /// What protects it, if anything does.
    pub(super) password: Option<PasswordHash>,
    /// The last message that is forgotten.
    pub(super) head: Position,
    /// The last message.
    pub(super) tail: Position,
}

/// Opens an engine and loads the state of the store from it.
pub(super) fn open(opener: &dyn Opener) -> Result<(Box<dyn Engine>, Loaded), OpenError> {
    let engine = opener.open()?;
    let loader = Loader { reader: &*engine.reader(), opener };
    let mut loaded = loader.load()?;
    loaded.message_bytes = engine.message_bytes();
    Ok((engine, loaded))
}

struct Loader<'o> {
    reader: &'o dyn Reader,
    opener: &'o dyn Opener,
}

impl Loader<'_> {
    fn load(&self) -> Result<Loaded, OpenError> {
        let cursors: HashMap<u64, Position> =
            self.all(Table::Cursors, record::decode_cursor)?.into_iter().collect();
        let accounts = self.all(Table::Accounts, record::decode_account)?;
        let tails = self.tails().map_err(|error| self.failed(error))?;
        let accounts = accounts.into_iter().map(|(name, incarnation, password)| {
            let head = cursors.get(&incarnation).copied().unwrap_or_default();
            // Where all is forgotten the last message may be gone.
            let tail = tails.get(&incarnation).copied().filter(|tail| tail.sequence > head.sequence);
            LoadedAccount { name, incarnation, password, head, tail: tail.unwrap_or(head) }
        });
        let sessions = self.all(Table::Sessions, |key, value| {
            let token = std::str::from_utf8(key).ok().and_then(|token| token.parse().ok()).ok_or(Damaged)?;
            Ok((token, record::decode_session(key, value)?))
        })?;
        let meta = self.all(Table::Meta, |key, value| {
            Ok(if key == RESERVED_KEY { record::decode_number(key, value)? } else { 0 })
        })?;
        let accounts: Vec<_> = accounts.collect();
        let reserved = self.reserved(meta.into_iter().max().unwrap_or(0), &accounts)?;
        Ok(Loaded { accounts, sessions, reserved, message_bytes: 0 })
    }

    /// The bound up to which numbers may have been given out: `kept`, unless
    /// something has a higher one.
    fn reserved(&self, kept: u64, accounts: &[LoadedAccount]) -> Result<u64, OpenError> {
        let used = accounts.iter().map(|account| account.incarnation.max(account.tail.sequence.0)).max();
        let used = used.unwrap_or(0);
        if used > kept {
            self.accept("the bound of its numbers is gone".to_owned())?;
        }
        Ok(kept.max(used))
    }

    /// Every record of a table. One that is damaged is an error, unless loss is
    /// accepted: then it is left out.
    fn all<T>(
        &self,
        table: Table,
        decode: impl Fn(&[u8], &[u8]) -> Result<T, Damaged>,
    ) -> Result<Vec<T>, OpenError> {
        let mut records = Vec::new();
        let mut damaged = 0_u64;
        let visited = self.reader.ascend(table, &[], &mut |key, value| {
            match decode(key, value) {
                Ok(record) => records.push(record),
                Err(Damaged) => damaged += 1,
            }
            ControlFlow::Continue(())
        });
        visited.map_err(|error| self.failed(error))?;
        if damaged > 0 {
            self.accept(format!("{damaged} of its {table:?} cannot be read"))?;
        }
        Ok(records)
    }

    /// Refuses what is damaged, unless the loss is accepted.
    fn accept(&self, what: String) -> Result<(), OpenError> {
        let error = OpenError::Damaged { path: self.opener.path().to_owned(), what, lost: None };
        if !self.opener.accepts_data_loss() {
            return Err(error);
        }
        tracing::warn!("{error}: accepted");
        Ok(())
    }

    /// The last message of each account that has one. Goes from account to
    /// account, never over their messages.
    fn tails(&self) -> Result<HashMap<u64, Position>, EngineError> {
        let mut tails = HashMap::new();
        let mut next = Some(0);
        while let Some(incarnation) = self.first_with_messages(next)? {
            next = incarnation.checked_add(1);
            tails.insert(incarnation, self.tail(incarnation)?);
        }
        Ok(tails)
    }

    fn first_with_messages(&self, from: Option<u64>) -> Result<Option<u64>, EngineError> {
        let Some(from) = from else { return Ok(None) };
        let mut found = None;
        self.reader.ascend(Table::Messages, &record::message_key(from, 0), &mut |key, _| {
            match record::parse_message_key(key) {
                Ok((incarnation, _)) => {
                    found = Some(incarnation);
                    ControlFlow::Break(())
                }
                Err(Damaged) => ControlFlow::Continue(()),
            }
        })?;
        Ok(found)
    }

    /// The position of the last message. Where the last records are damaged,
    /// their numbers count all the same, since nobody may get them again.
    fn tail(&self, account: u64) -> Result<Position, EngineError> {
        let mut tail: Option<Position> = None;
        let mut damaged = Vec::new();
        let below = record::message_key(account, u64::MAX);
        self.reader.descend(Table::Messages, &below, &mut |key, value| {
            let Ok((incarnation, sequence)) = record::parse_message_key(key) else {
                return ControlFlow::Continue(());
            };
            if incarnation != account {
                return ControlFlow::Break(());
            }
            match last_position(key, value) {
                Ok(position) => {
                    tail = Some(position);
                    ControlFlow::Break(())
                }
                Err(Damaged) => {
                    tracing::error!(account, sequence, "messages are damaged, up to this one");
                    damaged.push(sequence);
                    ControlFlow::Continue(())
                }
            }
        })?;
        let mut tail = tail.unwrap_or_default();
        if let Some(last) = damaged.first() {
            tail.sequence = Sequence(*last);
            tail.messages += damaged.len() as u64;
        }
        Ok(tail)
    }

    fn failed(&self, error: EngineError) -> OpenError {
        OpenError::Engine { path: self.opener.path().to_owned(), source: error.into() }
    }
}

/// The position of the last message of a record.
fn last_position(key: &[u8], value: &[u8]) -> Result<Position, Damaged> {
    let mut last = Err(Damaged);
    for stored in record::decode_messages(key, value)? {
        last = Ok(stored?.position);
    }
    last
}
