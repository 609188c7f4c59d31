//! Making, changing and ending the account of a name. Each change carries a
//! mark, by which a try whose answer was lost is known again.

use tokio::time::Instant;

use super::{Lane, Tail, Written, random_id};
use crate::store::cluster::engine::{Lost, NotStored};
use crate::store::cluster::record::{AccountRecord, AliveRecord, State, Told};
use crate::store::cluster::setup::ENDED_KEPT;
use crate::store::{Account, Created, Decide, PasswordHash, Position, Unavailable};

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
            if let Some(found) = found.filter(|found| found.alive.is_some()) {
                let is_ours = tried && found.mark == mark;
                self.shared.directory.apply(self.name.clone(), revision, found);
                return match (is_ours, tried) {
                    (true, _) => Ok(Created::Created),
                    (false, false) => Ok(Created::Exists),
                    (false, true) => Err(Unavailable),
                };
            }
            if !tried && self.shared.directory.len() >= self.shared.config.accounts_max {
                return Ok(Created::TooMany);
            }
            let alive = AliveRecord { made_by: None, password: password.clone() };
            let record = AccountRecord { mark, alive: Some(alive) };
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
            let is_as_before = found.alive.as_ref().is_some_and(|alive| {
                alive.incarnation(revision) == account.incarnation && alive.password == old
            });
            if !is_as_before {
                self.shared.directory.apply(self.name.clone(), revision, found);
                return undecided_if(tried, false);
            }
            let alive = AliveRecord { made_by: Some(account.incarnation), password: Some(new.clone()) };
            let record = AccountRecord { mark, alive: Some(alive) };
            match self.write_account(revision, &record).await {
                Ok(sequence) => {
                    self.shared.directory.apply(self.name.clone(), sequence, record);
                    return Ok(true);
                }
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    pub(super) async fn delete(&mut self, account: &Account, decide: Decide<bool>, deadline: Instant) {
        let deleted = self.try_delete(account, deadline).await;
        // Whoever deletes itself gets the answer before the end.
        let revision = match deleted {
            Ok(revision) => {
                decide.decide(Ok(revision.is_some()));
                revision
            }
            Err(unavailable) => return decide.decide(Err(unavailable)),
        };
        if let Some(revision) = revision {
            let ended = AccountRecord { mark: 0, alive: None };
            self.shared.directory.apply(self.name.clone(), revision, ended);
            self.ended(account).await;
            self.shared.tell(account, Told::Ended).await;
        }
    }

    /// The number of the message that says so, if the account was there.
    async fn try_delete(&mut self, account: &Account, deadline: Instant) -> Result<Option<u64>, Unavailable> {
        let mark = rand::random();
        let mut tried = false;
        loop {
            let (revision, found) = self.account_record(deadline).await?;
            if tried && found.as_ref().is_some_and(|found| found.mark == mark) {
                return Ok(Some(revision));
            }
            let alive = found.and_then(|found| found.alive);
            if alive.is_none_or(|alive| alive.incarnation(revision) != account.incarnation) {
                return undecided_if(tried, None);
            }
            let record = AccountRecord { mark, alive: None };
            match self.write_account(revision, &record).await {
                Ok(sequence) => return Ok(Some(sequence)),
                Err(error) => self.tried(error, &mut tried, deadline).await?,
            }
        }
    }

    /// What the cluster has about this name, and the number of that message.
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
                        tracing::error!(%error, name = %self.name, "the account cannot be read");
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
        let stored = if record.alive.is_some() {
            engine.publish(&subject, &id, revision, bytes).await
        } else {
            engine.publish_for(ENDED_KEPT, &subject, &id, Some(revision), bytes).await
        };
        stored.map(|stored| stored.sequence)
    }

    /// Another try, or none where the time is over.
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
/// What a change comes to that was refused, where an earlier try may have been
/// carried out.
fn undecided_if<T>(tried: bool, refused: T) -> Result<T, Unavailable> {
    if tried { Err(Unavailable) } else { Ok(refused) }
}
