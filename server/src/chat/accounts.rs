//! What is done with accounts: entering, creating, deleting them, and setting
//! their passwords. `denied` has one text, whatever the reason: it must not
//! tell a wrong password from a missing one, nor, under `--require-password`,
//! either from an account that does not exist.

use std::net::IpAddr;

use hark_protocol::{Code, OkFields, Password, Refusal, Reply, UserName};
use tokio::time::Instant;

use super::{Chat, Fault};
use crate::store::{Account, AccountEntry, Created, Outcome, PasswordHash, Pending};

impl Chat {
    /// Enters an account from `address`.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn enter(
        &self,
        address: IpAddr,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Account, Fault> {
        let entry = self.existing(address, &user, password.as_ref()).await?;
        self.prove(address, &entry, password).await?;
        Ok(entry.account)
    }

    /// Begins to make an account; the store decides.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Exists`], [`Code::RateLimited`].
    pub(super) async fn create(
        &self,
        user: &UserName,
        password: Option<Password>,
    ) -> Result<Pending<Created>, Fault> {
        self.may_create(password.is_some())?;
        let Some(password) = password else {
            return Ok(self.store.create(user, None));
        };
        // Looked up first, since hashing costs more than all the rest.
        if self.store.account(user).await?.is_some() {
            return Err(Fault::Refused(exists(user)));
        }
        let hash = self.hasher.hash(password).await?;
        Ok(self.store.create(user, Some(hash)))
    }

    pub(super) fn may_create(&self, with_password: bool) -> Result<(), Fault> {
        if !self.rules.open_registration {
            return Fault::refused(Code::Denied, "registration is closed on this server; ask its operator");
        }
        if self.rules.require_password && !with_password {
            return Fault::refused(Code::Denied, "on this server an account needs a password");
        }
        Ok(())
    }

    /// Sets the password of an account.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn set_password(
        &self,
        address: IpAddr,
        user: UserName,
        old: Option<Password>,
        new: Password,
    ) -> Result<Reply, Fault> {
        let entry = self.existing(address, &user, old.as_ref()).await?;
        self.prove(address, &entry, old).await?;
        let hash = self.hasher.hash(new).await?;
        if self.store.set_password(&entry.account, entry.password, hash).await? {
            Ok(Reply::Ok(OkFields::none()))
        } else {
            Fault::refused(Code::Denied, "the account was changed in the meantime; try again")
        }
    }

    /// Ends an account, on behalf of the connection that is `myself`.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn delete(
        &self,
        address: IpAddr,
        myself: Option<Account>,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Reply, Fault> {
        let is_me = |account: &Account| myself.as_ref() == Some(account);
        let existed = match self.store.account(&user).await? {
            Some(entry) if is_me(&entry.account) => self.store.delete(&entry.account).await?,
            _ if self.rules.require_password => return Fault::refused(Code::Denied, OTHERS_ACCOUNT),
            Some(entry) => {
                self.prove(address, &entry, password).await?;
                self.store.delete(&entry.account).await?
            }
            None => false,
        };
        Ok(Reply::Ok(OkFields::deleted(existed)))
    }

    /// Whether this account is still there, and the very same.
    pub(super) async fn is_alive(&self, account: &Account) -> Result<bool, Fault> {
        let entry = self.store.account(&account.name).await?;
        Ok(entry.is_some_and(|entry| entry.account == *account))
    }

    /// Looks up an account that ought to be there.
    async fn existing(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Option<&Password>,
    ) -> Result<AccountEntry, Fault> {
        match self.store.account(user).await? {
            Some(entry) => Ok(entry),
            None if !self.rules.require_password => Err(Fault::Refused(no_such_user(user))),
            None => {
                self.pretend(address, user, password).await?;
                denied()
            }
        }
    }

    /// Checks that whoever comes from `address` may act as this account.
    async fn prove(
        &self,
        address: IpAddr,
        entry: &AccountEntry,
        password: Option<Password>,
    ) -> Result<(), Fault> {
        match (entry.password.clone(), password) {
            (None, password) if self.rules.require_password => {
                self.pretend(address, &entry.account.name, password.as_ref()).await?;
                denied()
            }
            (None, _) => Ok(()),
            (Some(_), None) => denied(),
            (Some(hash), Some(password)) => self.check(address, &entry.account.name, password, hash).await,
        }
    }

    async fn check(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Password,
        hash: PasswordHash,
    ) -> Result<(), Fault> {
        self.attempts.begin(user, address, Instant::now())?;
        let verified = self.hasher.verify(password, hash).await;
        if verified != Ok(false) {
            // Right, or never looked at: neither counts.
            self.attempts.give_back(user, address, Instant::now());
            return verified.map(drop);
        }
        tracing::info!(%user, %address, "wrong password");
        self.hold_back().await;
        denied()
    }

    /// As slow as a wrong password, and as limited.
    async fn pretend(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Option<&Password>,
    ) -> Result<(), Fault> {
        let Some(password) = password else { return Ok(()) };
        self.attempts.begin(user, address, Instant::now())?;
        if let Err(fault) = self.hasher.pretend(password.clone()).await {
            self.attempts.give_back(user, address, Instant::now());
            return Err(fault);
        }
        self.hold_back().await;
        Ok(())
    }

    async fn hold_back(&self) {
        let wait = self.attempts.was_wrong(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Somebody deletes another's account where one deletes only oneself.
const OTHERS_ACCOUNT: &str = "on this server one deletes only oneself; login first";

/// The one answer for a wrong password, a missing one and, under
/// `--require-password`, an account that does not exist.
fn denied<T>() -> Result<T, Fault> {
    Fault::refused(Code::Denied, "the password is wrong or missing")
}

fn no_such_user(user: &UserName) -> Refusal {
    Refusal::new(Code::NoSuchUser, format!("there is no user {user}"))
}

fn exists(user: &UserName) -> Refusal {
    Refusal::new(Code::Exists, format!("there is a user {user} already"))
}

/// The reply to a `create` that the store has decided.
pub(super) fn created_reply(created: Created, user: &UserName) -> Reply {
    match created {
        Created::Created => Reply::Ok(OkFields::none()),
        Created::Exists => Reply::NotOk(exists(user)),
        Created::TooMany => {
            Reply::NotOk(Refusal::new(Code::TooMany, "the server has as many accounts as it may have"))
        }
    }
}

/// The reply to a `send` that the store has decided. A repeat gets the same.
pub(super) fn sent_reply(outcome: Outcome, to: &UserName, text_bytes_max: usize) -> Reply {
    let code = match outcome {
        Outcome::Stored => return Reply::Ok(OkFields::none()),
        Outcome::Refused(code) => code,
    };
    let explanation = match code {
        Code::NoSuchUser => return Reply::NotOk(no_such_user(to)),
        Code::QueueFull => format!("{to} has too many unread messages; try again later").into(),
        Code::Denied => LOGIN_FIRST.into(),
        Code::TooLarge => format!("a text has at most {text_bytes_max} bytes on this server").into(),
        Code::BadRequest => {
            "the ids of sends count up in a session; this one is neither new nor remembered".into()
        }
        _ => "the message was refused".into(),
    };
    Reply::NotOk(Refusal { code, explanation })
}

/// What a connection that is nobody is told under `--require-password`.
pub(super) const LOGIN_FIRST: &str = "on this server only users do this; login first";
