//! Operations on accounts: login, creation, deletion, passwords. `denied` has one
//! explanation for every cause, so that it does not reveal whether a password was wrong
//! or missing, nor, under `--require-password`, whether the account exists.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{
    Code, DeviceName, OkFields, Password, Refusal, Reply, RoomName, RoomRequest, UserName,
};
use tokio::time::Instant;

use super::passwords::HashPermit;
use super::replies::{LOGIN_REQUIRED, exists, no_such_user, room_refusal};
use super::tokens::{Entering, Grant, Right};
use super::{Chat, Fault, MayCreateRooms, MayList, audit};
use crate::store::{
    Account, AccountEntry, Created, DeviceSubscription, PasswordHash, Pending, Position, ReadLimit,
    Subscription,
};

/// The identity of a connection.
#[derive(Debug, Clone)]
pub(super) struct Authenticated {
    /// The account that logged in.
    pub(super) account: Account,
    pub(super) entrance: Entrance,
}

/// The proof by which a connection logged in.
#[derive(Debug, Clone)]
pub(super) enum Entrance {
    /// None: the account had no password.
    Open,
    /// The password with this hash.
    Password(PasswordHash),
    /// A token.
    Token(Arc<Grant>),
}

impl Authenticated {
    /// Returns whether the connection logged in with a password.
    pub(super) const fn has_password(&self) -> bool {
        matches!(self.entrance, Entrance::Password(_))
    }

    /// Returns whether the connection has a right. A token has those of its scope.
    pub(super) fn has(&self, right: Right<'_>) -> bool {
        match &self.entrance {
            Entrance::Open | Entrance::Password(_) => true,
            Entrance::Token(grant) => right.is_granted_by(&grant.scope),
        }
    }
}

impl Chat {
    /// Logs in to an account, with its password or a token in place of it.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub(super) async fn login(
        &self,
        entering: Entering<'_>,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Authenticated, Fault> {
        let by_token = self.login_by_token(entering, &user, password.as_ref());
        if let Some(authenticated) = by_token.await? {
            let entry = self.store.account(&authenticated.account.name).await?;
            let entry = entry.filter(|entry| entry.account == authenticated.account);
            let Some(entry) = entry else {
                return denied();
            };
            self.check_suspension(&entry).await?;
            self.note_login(&entry);
            return Ok(authenticated);
        }
        self.login_by_password(entering.address, user, password)
            .await
    }

    /// Logs in to an account with its password.
    ///
    /// # Errors
    /// As [`Self::login`].
    pub(super) async fn login_by_password(
        &self,
        address: IpAddr,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Authenticated, Fault> {
        let entry = self.existing(address, &user, password.as_ref()).await?;
        self.verify(address, &entry, password).await?;
        self.check_suspension(&entry).await?;
        self.note_login(&entry);
        let entrance = entry.password.map_or(Entrance::Open, Entrance::Password);
        Ok(Authenticated {
            account: entry.account,
            entrance,
        })
    }

    /// Applies the limits of an account alone, and notes its use.
    fn note_login(&self, entry: &AccountEntry) {
        self.users
            .set_own(&entry.account.name, entry.limits.as_deref());
        self.store.note_use(&entry.account);
    }

    /// Checks the password of an account. An account without a password is denied.
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
            self.fail_slowly(address, &user, password.as_ref()).await?;
            return denied();
        }
        self.verify(address, &entry, password).await?;
        self.check_suspension(&entry).await
    }

    /// Refuses a suspended account.
    async fn check_suspension(&self, entry: &AccountEntry) -> Result<(), Fault> {
        // A password takes a while to check: the account may have been suspended meanwhile.
        let is_suspended = if entry.password.is_some() {
            let current = self.store.account(&entry.account.name).await?;
            current.is_some_and(|current| current.is_suspended)
        } else {
            entry.is_suspended
        };
        if is_suspended {
            return Fault::refused(Code::Denied, "this account is suspended; ask the operator");
        }
        Ok(())
    }

    /// Logs in to an account and subscribes to its inbox.
    ///
    /// # Errors
    /// As [`Self::login`].
    pub(super) async fn receive(
        &self,
        entering: Entering<'_>,
        user: UserName,
        password: Option<Password>,
    ) -> Result<(Authenticated, Subscription), Fault> {
        let authenticated = self.login(entering, user, password).await?;
        let account = &authenticated.account;
        self.check_readable(account).await?;
        if let Some(subscription) = self.store.receive(account).await? {
            return Ok((authenticated, subscription));
        }
        let entry = self.store.account(&account.name).await?;
        if entry.is_some_and(|entry| entry.account == *account) {
            let explanation = format!("user {} has too many devices; forget one", account.name);
            return Fault::refused(Code::TooMany, explanation);
        }
        Fault::refused(
            Code::NoSuchUser,
            format!("user {} was deleted", account.name),
        )
    }

    /// Logs in to an account and attaches a device of it.
    ///
    /// # Errors
    /// As [`Self::login`]; [`Code::TooMany`] if the user has too many devices;
    /// [`Code::UnknownCommand`] if the store has no devices.
    pub(super) async fn attach(
        &self,
        entering: Entering<'_>,
        user: UserName,
        device: DeviceName,
        password: Option<Password>,
    ) -> Result<(Authenticated, DeviceSubscription), Fault> {
        let request = RoomRequest::Attach {
            user: user.clone(),
            device: device.clone(),
            password: None,
        };
        self.check_served(&request)?;
        let authenticated = self.login(entering, user, password).await?;
        // As in `receive`: a takeover must not end in a failure.
        self.check_readable(&authenticated.account).await?;
        match self.store.attach(&authenticated.account, &device).await? {
            Ok(mut subscription) => {
                if self.rules().rooms == MayCreateRooms::Off {
                    subscription.rooms.clear();
                }
                Ok((authenticated, subscription))
            }
            Err(code) => Err(Fault::Refused(room_refusal(code, &request))),
        }
    }

    /// Reads the first message of an inbox. An inbox that cannot be read fails here, before
    /// a takeover. After a takeover the reply must follow without another await.
    async fn check_readable(&self, account: &Account) -> Result<(), Fault> {
        let first = ReadLimit {
            messages: 1,
            bytes: 0,
        };
        self.store.read(account, Position::default(), first).await?;
        Ok(())
    }

    /// Starts the creation of an account for a connection authenticated as `by`. The
    /// store decides it.
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
        if !self.is_creation_open(user) && !self.is_admin(by).await? {
            return self.refuse_creation();
        }
        self.check_new_account(user, password.is_some())?;
        let Some(password) = password else {
            return Ok(self.store.create(user, None));
        };
        // Looked up first, since a hash is by far the most expensive step.
        if self.store.account(user).await?.is_some() {
            return Err(Fault::Refused(exists(user)));
        }
        let hash = self.hash(address, password).await?;
        Ok(self.store.create(user, Some(hash)))
    }

    /// Returns whether anyone may create an account of this name.
    pub(super) fn is_creation_open(&self, user: &UserName) -> bool {
        self.rules().open_registration && !self.is_reserved(user)
    }

    fn refuse_creation<T>(&self) -> Result<T, Fault> {
        if self.rules().open_registration {
            return Fault::refused(Code::Denied, RESERVED_NAME);
        }
        Fault::refused(
            Code::Denied,
            "registration is closed; ask the operator for an account",
        )
    }

    /// Refuses a reserved name, and an account without a password under
    /// `--require-password`.
    ///
    /// # Errors
    /// [`Code::BadName`], [`Code::Denied`].
    pub(super) fn check_new_account(
        &self,
        user: &UserName,
        has_password: bool,
    ) -> Result<(), Fault> {
        user.check_new().map_err(Refusal::from)?;
        if self.rules().require_password && !has_password {
            return Fault::refused(
                Code::Denied,
                "this server requires a password for every account",
            );
        }
        Ok(())
    }

    /// Sets the password of an account for a connection authenticated as `by`, and closes the
    /// connections that entered by its tokens, which end. An admin needs no old password,
    /// except for its own account.
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
        let is_other = by.is_some_and(|by| by.account.name != user);
        let by_admin = is_other && self.is_admin(by).await?;
        let entry = if by_admin {
            self.store
                .account(&user)
                .await?
                .ok_or_else(|| Fault::Refused(no_such_user(&user)))?
        } else {
            let entry = self.existing(address, &user, old.as_ref()).await?;
            self.verify(address, &entry, old).await?;
            if entry.password.is_none() && self.is_reserved(&user) {
                return Fault::refused(Code::Denied, RESERVED_NAME);
            }
            entry
        };
        let hash = self.hash(address, new).await?;
        if self
            .store
            .set_password(&entry.account, entry.password, hash)
            .await?
        {
            self.close_revoked(&entry.account).await?;
            audit::password_set(&user, by, by_admin, address);
            Ok(Reply::Ok(OkFields::None))
        } else {
            Fault::refused(
                Code::Denied,
                "the account was changed concurrently; try again",
            )
        }
    }

    /// Returns the room that a `delete` of this name concerns, if it concerns one. An
    /// account of an earlier version may have the name of a room.
    ///
    /// # Errors
    /// If the store is unavailable.
    pub(super) async fn room_to_delete(&self, name: &UserName) -> Result<Option<RoomName>, Fault> {
        match name.as_str().parse() {
            Ok(room) if self.is_room(name) && !self.hides_room(name) => {
                Ok(self.store.account(name).await?.is_none().then_some(room))
            }
            _ => Ok(None),
        }
    }

    /// Deletes an account for a connection authenticated as `by`.
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
        let has_right = |by: &&Authenticated| by.has(Right::Administer);
        let own = by.filter(has_right).map(|by| &by.account);
        let is_own = |account: &Account| own == Some(account);
        let is_admin = self.is_admin(by).await?;
        let existed = match self.store.account(&user).await? {
            Some(entry) if is_admin || is_own(&entry.account) => {
                self.store.delete(&entry.account).await?
            }
            None if is_admin => false,
            _ if self.rules().require_password => {
                return Fault::refused(Code::Denied, NOT_OWN_ACCOUNT);
            }
            Some(entry) => {
                self.verify(address, &entry, password).await?;
                self.store.delete(&entry.account).await?
            }
            None => false,
        };
        if existed {
            audit::deleted(&user, by, is_admin, address);
        }
        Ok(Reply::Ok(OkFields::Deleted(existed)))
    }

    /// Checks that `by` may `list`.
    ///
    /// # Errors
    /// [`Code::Denied`].
    pub(super) async fn may_list(&self, by: Option<&Authenticated>) -> Result<(), Fault> {
        let (may_list, require_password) = {
            let rules = self.rules();
            (rules.may_list, rules.require_password)
        };
        match may_list {
            MayList::Admins if self.is_admin(by).await? => Ok(()),
            MayList::Admins => Fault::refused(Code::Denied, "only admins may list the users"),
            MayList::All if !require_password => Ok(()),
            MayList::All | MayList::Users => match by {
                Some(by) if self.is_alive(&by.account).await? => Ok(()),
                _ => Fault::refused(Code::Denied, LOGIN_REQUIRED),
            },
        }
    }

    /// Returns whether `by` has the rights of an admin, which require a login with a
    /// password. A password that was set after the login does not count.
    pub(super) async fn is_admin(&self, by: Option<&Authenticated>) -> Result<bool, Fault> {
        match by {
            Some(by) if by.has_password() && self.rules().admins.contains(&by.account.name) => {
                self.is_alive(&by.account).await
            }
            _ => Ok(false),
        }
    }

    /// Returns whether the name is that of an admin or of the log watcher. Only admins
    /// and the operator create such an account or give it its first password.
    fn is_reserved(&self, user: &UserName) -> bool {
        self.rules().admins.contains(user) || self.rules().log_watcher.as_ref() == Some(user)
    }

    /// Returns whether the account still exists, in the same incarnation.
    async fn is_alive(&self, account: &Account) -> Result<bool, Fault> {
        let entry = self.store.account(&account.name).await?;
        Ok(entry.is_some_and(|entry| entry.account == *account))
    }

    /// Returns an existing account.
    async fn existing(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Option<&Password>,
    ) -> Result<AccountEntry, Fault> {
        match self.store.account(user).await? {
            Some(entry) => Ok(entry),
            None if !self.rules().require_password => Err(Fault::Refused(no_such_user(user))),
            None => {
                self.fail_slowly(address, user, password).await?;
                denied()
            }
        }
    }

    /// Checks a password against an account.
    async fn verify(
        &self,
        address: IpAddr,
        entry: &AccountEntry,
        password: Option<Password>,
    ) -> Result<(), Fault> {
        match (entry.password.clone(), password) {
            (None, password) if self.rules().require_password => {
                self.fail_slowly(address, &entry.account.name, password.as_ref())
                    .await?;
                denied()
            }
            (None, _) => Ok(()),
            (Some(_), None) => denied(),
            (Some(hash), Some(password)) => {
                self.verify_hash(address, &entry.account.name, password, hash)
                    .await
            }
        }
    }

    async fn verify_hash(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Password,
        hash: PasswordHash,
    ) -> Result<(), Fault> {
        let mut permit = self.acquire_attempt(address, user).await?;
        if permit.verify(password, hash).await? {
            return Ok(());
        }
        audit::wrong_password(user, address);
        self.record_failure(permit, user, address).await;
        denied()
    }

    /// Takes as long as a wrong password, and counts as one.
    async fn fail_slowly(
        &self,
        address: IpAddr,
        user: &UserName,
        password: Option<&Password>,
    ) -> Result<(), Fault> {
        let Some(password) = password else {
            return Ok(());
        };
        let mut permit = self.acquire_attempt(address, user).await?;
        permit.hash(password.clone()).await?;
        self.record_failure(permit, user, address).await;
        Ok(())
    }

    /// Waits for the permit of an attempt, if the limiter allows one. The limiter is
    /// consulted again with the permit, since attempts in between may have failed.
    async fn acquire_attempt(
        &self,
        address: IpAddr,
        user: &UserName,
    ) -> Result<HashPermit<'_>, Fault> {
        let check = || {
            self.login_limiter
                .check(Some(user), address, Instant::now())
        };
        check()?;
        let permit = self.hasher.acquire(address).await?;
        check()?;
        Ok(permit)
    }

    /// Records a failure, releases the permit, and delays the answer.
    async fn record_failure(&self, permit: HashPermit<'_>, user: &UserName, address: IpAddr) {
        let now = Instant::now();
        let wait = self.login_limiter.record_failure(Some(user), address, now);
        drop(permit);
        delay(wait).await;
    }

    async fn hash(&self, address: IpAddr, password: Password) -> Result<PasswordHash, Fault> {
        self.hasher.acquire(address).await?.hash(password).await
    }
}

/// Delays the answer to a wrong password or token.
pub(super) async fn delay(wait: Duration) {
    if !wait.is_zero() {
        tokio::time::sleep(wait).await;
    }
}

/// The refusal to create the account of an admin or the log watcher, or to set its first
/// password.
const RESERVED_NAME: &str =
    "this name is reserved; the operator creates its account and sets its password (harkd user)";

/// The refusal to delete the account of another user.
const NOT_OWN_ACCOUNT: &str = "you can delete only your own account; log in first";

/// Returns the one refusal for a wrong password, a missing one and, under
/// `--require-password`, an account that does not exist.
fn denied<T>() -> Result<T, Fault> {
    Fault::refused(Code::Denied, "wrong or missing password")
}
