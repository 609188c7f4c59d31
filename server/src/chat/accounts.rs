//! What is done with accounts: entering, creating, deleting them, and setting
//! their passwords. `denied` has one text, whatever the reason: it must not
//! tell a wrong password from a missing one, nor, under `--require-password`,
//! either from an account that does not exist.

use std::net::IpAddr;

use hark_protocol::{Code, OkFields, Password, Reply, UserName};
use tokio::time::Instant;

use super::passwords::HashPermit;
use super::replies::{LOGIN_FIRST, exists, no_such_user};
use super::{Chat, Fault, MayList};
use crate::store::{
    Account, AccountEntry, Created, PasswordHash, Pending, Position, ReadLimit, Subscription,
};

/// Who a connection is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Authenticated {
    /// The account that was entered.
    pub(super) account: Account,
    /// It had a password then, and that was given.
    by_password: bool,
}

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
    ) -> Result<Authenticated, Fault> {
        let entry = self.existing(address, &user, password.as_ref()).await?;
        self.prove(address, &entry, password).await?;
        Ok(Authenticated { account: entry.account, by_password: entry.password.is_some() })
    }

    /// Checks that whoever comes from `address` knows the password of an
    /// account. One that has none proves nothing.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub async fn authenticate(
        &self,
        address: IpAddr,
        user: UserName,
        password: Option<Password>,
    ) -> Result<(), Fault> {
        let entry = self.existing(address, &user, password.as_ref()).await?;
        if entry.password.is_none() {
            self.pretend(address, &user, password.as_ref()).await?;
            return denied();
        }
        self.prove(address, &entry, password).await
    }

    /// Enters an account and begins to receive for it.
    ///
    /// # Errors
    /// As [`Self::enter`].
    pub(super) async fn receive(
        &self,
        address: IpAddr,
        user: UserName,
        password: Option<Password>,
    ) -> Result<(Authenticated, Subscription), Fault> {
        let entered = self.enter(address, user, password).await?;
        let account = &entered.account;
        // Where not even the first message can be read, whoever asks for it is
        // told. Before it takes over: after that nothing may come in between.
        let first = ReadLimit { messages: 1, bytes: 0 };
        self.store.read(account, Position::default(), first).await?;
        match self.store.receive(account).await? {
            Some(receiver) => Ok((entered, receiver)),
            None => Fault::refused(Code::NoSuchUser, format!("there is no user {} any more", account.name)),
        }
    }

    /// Begins to make an account on behalf of a connection that is `by`; the
    /// store decides.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::Exists`], [`Code::RateLimited`].
    pub(super) async fn create(
        &self,
        address: IpAddr,
        by: Option<&Authenticated>,
        user: &UserName,
        password: Option<Password>,
    ) -> Result<Pending<Created>, Fault> {
        if !self.anybody_creates(user) && !self.is_admin(by).await? {
            return self.refuse_to_create();
        }
        self.may_be_without_password(password.is_some())?;
        let Some(password) = password else {
            return Ok(self.store.create(user, None));
        };
        // Looked up first, since hashing costs more than all the rest.
        if self.store.account(user).await?.is_some() {
            return Err(Fault::Refused(exists(user)));
        }
        let hash = self.hash(address, password).await?;
        Ok(self.store.create(user, Some(hash)))
    }

    /// Whether it takes no admin to make an account of this name.
    pub(super) fn anybody_creates(&self, user: &UserName) -> bool {
        self.rules.open_registration && !self.is_kept(user)
    }

    fn refuse_to_create<T>(&self) -> Result<T, Fault> {
        if self.rules.open_registration {
            return Fault::refused(Code::Denied, KEPT_NAME);
        }
        Fault::refused(Code::Denied, "registration is closed on this server; ask its operator")
    }

    pub(super) fn may_be_without_password(&self, has_one: bool) -> Result<(), Fault> {
        if self.rules.require_password && !has_one {
            return Fault::refused(Code::Denied, "on this server an account needs a password");
        }
        Ok(())
    }

    /// Sets the password of an account on behalf of a connection that is `by`.
    /// An admin needs no old one, but for its own.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn set_password(
        &self,
        address: IpAddr,
        by: Option<&Authenticated>,
        user: UserName,
        old: Option<Password>,
        new: Password,
    ) -> Result<Reply, Fault> {
        let of_another = by.is_some_and(|by| by.account.name != user);
        let entry = if of_another && self.is_admin(by).await? {
            self.store.account(&user).await?.ok_or_else(|| Fault::Refused(no_such_user(&user)))?
        } else {
            let entry = self.existing(address, &user, old.as_ref()).await?;
            self.prove(address, &entry, old).await?;
            if entry.password.is_none() && self.is_kept(&user) {
                return Fault::refused(Code::Denied, KEPT_NAME);
            }
            entry
        };
        let hash = self.hash(address, new).await?;
        if self.store.set_password(&entry.account, entry.password, hash).await? {
            Ok(Reply::Ok(OkFields::none()))
        } else {
            Fault::refused(Code::Denied, "the account was changed in the meantime; try again")
        }
    }

    /// Ends an account, on behalf of a connection that is `by`.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn delete(
        &self,
        address: IpAddr,
        by: Option<&Authenticated>,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Reply, Fault> {
        let is_its = |account: &Account| by.is_some_and(|by| by.account == *account);
        let is_admin = self.is_admin(by).await?;
        let existed = match self.store.account(&user).await? {
            Some(entry) if is_admin || is_its(&entry.account) => self.store.delete(&entry.account).await?,
            None if is_admin => false,
            _ if self.rules.require_password => return Fault::refused(Code::Denied, OTHERS_ACCOUNT),
            Some(entry) => {
                self.prove(address, &entry, password).await?;
                self.store.delete(&entry.account).await?
            }
            None => false,
        };
        Ok(Reply::Ok(OkFields::deleted(existed)))
    }

    /// Refuses a `list` to those who may not.
    ///
    /// # Errors
    /// [`Code::Denied`].
    pub(super) async fn may_list(&self, by: Option<&Authenticated>) -> Result<(), Fault> {
        match self.rules.may_list {
            MayList::Admins if self.is_admin(by).await? => Ok(()),
            MayList::Admins => Fault::refused(Code::Denied, "on this server only admins list the users"),
            MayList::All if !self.rules.require_password => Ok(()),
            MayList::All | MayList::Users => match by {
                Some(by) if self.is_alive(&by.account).await? => Ok(()),
                _ => Fault::refused(Code::Denied, LOGIN_FIRST),
            },
        }
    }

    /// Whether a connection that is `by` has the rights of an admin: it has
    /// entered its password. An account without one proves nothing, also where
    /// it was given one since.
    async fn is_admin(&self, by: Option<&Authenticated>) -> Result<bool, Fault> {
        match by {
            Some(by) if by.by_password && self.rules.admins.contains(&by.account.name) => {
                self.is_alive(&by.account).await
            }
            _ => Ok(false),
        }
    }

    /// Whether this is the name of an admin, or of who may watch the log, whose
    /// account is not anybody's to make or to take.
    fn is_kept(&self, user: &UserName) -> bool {
        self.rules.admins.contains(user) || self.rules.log_watcher.as_ref() == Some(user)
    }

    /// Whether this account is still there, and the very same.
    async fn is_alive(&self, account: &Account) -> Result<bool, Fault> {
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
        let mut permit = self.attempt(address, user).await?;
        if permit.verify(password, hash).await? {
            return Ok(());
        }
        tracing::info!(%user, %address, "wrong password");
        self.record_failure(permit, user, address).await;
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
        let mut permit = self.attempt(address, user).await?;
        permit.hash(password.clone()).await?;
        self.record_failure(permit, user, address).await;
        Ok(())
    }

    /// Waits for the permit of an attempt, if it may be made. That is asked again
    /// when the permit comes: those before it may have been wrong.
    async fn attempt(&self, address: IpAddr, user: &UserName) -> Result<HashPermit<'_>, Fault> {
        self.login_limiter.check(user, address, Instant::now())?;
        let permit = self.hasher.acquire(address).await?;
        self.login_limiter.check(user, address, Instant::now())?;
        Ok(permit)
    }

    /// Counts a wrong attempt before the next has its permit.
    async fn record_failure(&self, permit: HashPermit<'_>, user: &UserName, address: IpAddr) {
        let wait = self.login_limiter.record_failure(user, address, Instant::now());
        drop(permit);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    async fn hash(&self, address: IpAddr, password: Password) -> Result<PasswordHash, Fault> {
        self.hasher.acquire(address).await?.hash(password).await
    }
}

/// Somebody makes, or takes, the account of an admin, or of who may watch the log.
const KEPT_NAME: &str =
    "this name is kept by the operator, who makes the account and gives it its password (harkd user)";

/// Somebody deletes another's account where one deletes only oneself.
const OTHERS_ACCOUNT: &str = "on this server one deletes only oneself; login first";

/// The one answer for a wrong password, a missing one and, under
/// `--require-password`, an account that does not exist.
fn denied<T>() -> Result<T, Fault> {
    Fault::refused(Code::Denied, "the password is wrong or missing")
}
