//! Creation, changes and deletion of the account of a name. Each change carries a mark
//! that identifies it if its answer is lost.

use tokio::time::Instant;

use super::{Lane, Tail, Written};
use crate::store::cluster::engine::{Lost, NotStored, random_id};
use crate::store::cluster::record::{AccountRecord, AliveRecord, Existence, State, Told};
use crate::store::cluster::setup::ENDED_KEPT;
use crate::store::{Account, Completer, Created, PasswordHash, Position, Unavailable};

impl Lane {
    pub(super) async fn create(
        &mut self,
        password: Option<PasswordHash>,
        deadline: Instant,
    ) -> Result<Created, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            match found {
                Some(found @ AccountRecord { is: Existence::Alive(_), .. }) => {
                    let is_ours = tried && found.mark == mark;
                    self.shared.directory.apply(self.name.clone(), revision, found);
                    return match (is_ours, tried) {
                        (true, _) => Ok(Created::Created),
                        (false, false) => Ok(Created::Exists),
                        (false, true) => Err(Unavailable),
                    };
                }
                // The server that deleted it may have failed before it wrote the end
                // marker.
                Some(AccountRecord { is: Existence::Ended(incarnation), .. }) => {
                    let former = Account { name: self.name.clone(), incarnation };
                    self.end_inbox(&former, deadline).await?;
                }
                None => {}
            }
            if !tried && self.shared.directory.len() >= self.shared.config.accounts_max {
                return Ok(Created::TooMany);
            }
            let alive = AliveRecord { made_by: None, password: password.clone() };
            let record = AccountRecord { mark, is: Existence::Alive(alive) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    self.tail = Some(Tail { incarnation: sequence, last: 0, position: Position::default() });
                    let state = State::default();
                    self.written = Some(Written { incarnation: sequence, revision: 0, state });
                    return Ok(Created::Created);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    pub(super) async fn set_password(
        &mut self,
        account: &Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            let Some(found) = found else { return undecided_if(tried, false) };
            if tried && found.mark == mark {
                self.shared.directory.apply(self.name.clone(), revision, found);
                return Ok(true);
            }
            let is_as_before = matches!(&found.is, Existence::Alive(alive)
                if alive.incarnation(revision) == account.incarnation && alive.password == old);
            if !is_as_before {
                self.shared.directory.apply(self.name.clone(), revision, found);
                return undecided_if(tried, false);
            }
            let alive = AliveRecord { made_by: Some(account.incarnation), password: Some(new.clone()) };
            let record = AccountRecord { mark, is: Existence::Alive(alive) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    return Ok(true);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    pub(super) async fn delete(&mut self, account: &Account, completer: Completer<bool>, deadline: Instant) {
        let was_alive = self.shared.directory.is_alive(account);
        let deleted = self.try_delete(account, deadline).await;
        let has_ended = was_alive && !self.shared.directory.is_alive(account);
        if has_ended {
            self.shared.tell(account, Told::Ended).await;
        }
        // A client that deletes its own account is answered before its connection ends.
        completer.complete(deleted);
        if has_ended {
            self.ended(account).await;
        }
    }

    /// Deletes the account without notifying its connections.
    pub(in super::super) async fn try_delete(
        &mut self,
        account: &Account,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let deleted = self.end_account(account, deadline).await?;
        // The marker is written before the answer: from then on, it refuses the sends of
        // servers that have not learned of the deletion.
        self.end_inbox(account, deadline).await?;
        Ok(deleted)
    }

    /// Writes the record of the deletion. Returns whether the account existed.
    pub(in super::super) async fn end_account(
        &mut self,
        account: &Account,
        deadline: Instant,
    ) -> Result<bool, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            let is_ours = tried && found.as_ref().is_some_and(|found| found.mark == mark);
            let is_alive =
                found.as_ref().is_some_and(|found| found.incarnation(revision) == Some(account.incarnation));
            if !is_alive {
                if let Some(found) = found {
                    self.shared.directory.apply(self.name.clone(), revision, found);
                }
                return if is_ours { Ok(true) } else { undecided_if(tried, false) };
            }
            let record = AccountRecord { mark, is: Existence::Ended(account.incarnation) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    return Ok(true);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    /// Retries [`Shared::end_inbox`](super::super::Shared::end_inbox) until the deadline.
    async fn end_inbox(&mut self, account: &Account, deadline: Instant) -> Result<(), Unavailable> {
        while self.shared.end_inbox(account).await.is_err() {
            self.pause(deadline).await?;
        }
        Ok(())
    }

    /// Reads the account record of this name and its sequence.
    async fn account_record(
        &mut self,
        deadline: Instant,
    ) -> Result<(u64, Option<AccountRecord>), Unavailable> {
        let (stream, subject) = (self.shared.names.accounts_stream(), self.shared.names.account(&self.name));
        loop {
            match self.shared.engine.last(&stream, &subject).await {
                Ok(None) => return Ok((0, None)),
                Ok(Some(found)) => {
                    let record = AccountRecord::decode(&found.payload).map_err(|error| {
                        tracing::error!(%error, name = %self.name, "unreadable account record");
                        Unavailable
                    })?;
                    return Ok((found.sequence, Some(record)));
                }
                Err(Lost) => self.pause(deadline).await?,
            }
        }
    }

    async fn write_account(&mut self, revision: u64, record: &AccountRecord) -> Result<u64, NotStored> {
        let subject = self.shared.names.account(&self.name);
        let (engine, id, bytes) = (&self.shared.engine, random_id(), record.encode());
        let stored = if matches!(record.is, Existence::Alive(_)) {
            engine.publish(&subject, &id, revision, bytes).await
        } else {
            engine.publish_for(ENDED_KEPT, &subject, &id, Some(revision), bytes).await
        };
        stored.map(|stored| stored.sequence)
    }

    /// Pauses before a retry, and fails after the deadline.
    async fn tried(
        &mut self,
        error: NotStored,
        tried: &mut bool,
        deadline: Instant,
    ) -> Result<(), Unavailable> {
        *tried |= error == NotStored::Lost;
        self.pause(deadline).await
    }
}
/// Returns the result of a refused change: unknown if an earlier attempt may have
/// succeeded.
fn undecided_if<T>(tried: bool, refused: T) -> Result<T, Unavailable> {
    if tried { Err(Unavailable) } else { Ok(refused) }
}
