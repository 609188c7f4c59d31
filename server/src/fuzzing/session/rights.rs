//! The operator's settings, and the permissions that follow: section 5 of the protocol.

use hark_protocol::{Code, OkFields, Password, UserName};

use super::connection::Connection;
use super::model::{Model, USERS};
use super::world::World;
use crate::chat::MayList;

/// The passwords in use.
pub(super) const PASSWORDS: [&str; 2] = ["right", "wrong"];

/// The admin, if there is one.
const ADMIN: usize = 0;

/// The wrong passwords for one account from one address before the rate limit.
const WRONG_MAX: usize = 5;

/// The maximum number of wrong passwords in one run; further ones would be delayed.
const WRONG_RUN_MAX: usize = 50;

/// The operator's settings.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    pub(super) require_password: bool,
    has_admin: bool,
    pub(super) may_list: MayList,
}

impl Rights {
    /// The settings without restrictions.
    pub(super) const OPEN: Self = Self {
        require_password: false,
        has_admin: false,
        may_list: MayList::All,
    };

    /// Decodes the settings, `0` to `;`: bit 0 requires passwords, bit 1 names an admin, the
    /// rest restricts `list`. A line break is `0`, and every other byte maps to one of them.
    pub(super) fn from_byte(byte: u8) -> Self {
        let number = if byte == b'\n' {
            0
        } else {
            byte.wrapping_sub(b'0')
        };
        Self {
            require_password: number % 2 == 1,
            has_admin: number / 2 % 2 == 1,
            may_list: [MayList::All, MayList::Users, MayList::Admins][usize::from(number / 4 % 3)],
        }
    }

    pub(super) fn admins(&self) -> Vec<UserName> {
        self.has_admin
            .then(|| USERS[ADMIN].parse().unwrap())
            .into_iter()
            .collect()
    }

    /// Returns whether this account's name is reserved for the admin.
    const fn keep(&self, user: usize) -> bool {
        self.has_admin && user == ADMIN
    }
}

/// The expected answers by the identity of a connection.
impl Model {
    /// Returns whether a connection is logged in as the admin by password.
    pub(super) fn is_admin(&self, connection: &Connection) -> bool {
        connection.by_password
            && self
                .user_of(connection)
                .is_some_and(|user| self.rights.keep(user))
    }

    /// Returns the user of a connection, if its account still exists.
    fn user_of(&self, connection: &Connection) -> Option<usize> {
        let inbox = &self.inboxes[connection.user?];
        inbox.is_alive.then_some(inbox.user)
    }

    pub(super) fn may_create(
        &self,
        connection: &Connection,
        user: usize,
        has_password: bool,
    ) -> Result<OkFields, Code> {
        let is_kept = self.rights.keep(user) && !self.is_admin(connection);
        if is_kept || (self.rights.require_password && !has_password) {
            return Err(Code::Denied);
        }
        self.has_room_for(user)
    }

    pub(super) fn may_list(&self, connection: &Connection) -> Result<(), Code> {
        let may = match self.rights.may_list {
            MayList::Admins => self.is_admin(connection),
            MayList::All if !self.rights.require_password => true,
            MayList::All | MayList::Users => self.user_of(connection).is_some(),
        };
        if may { Ok(()) } else { Err(Code::Denied) }
    }

    /// Returns whether the owner of this account may set its password.
    pub(super) fn may_take(&self, inbox: usize) -> Result<OkFields, Code> {
        let inbox = &self.inboxes[inbox];
        let is_kept = inbox.password.is_none() && self.rights.keep(inbox.user);
        if is_kept {
            Err(Code::Denied)
        } else {
            Ok(OkFields::None)
        }
    }
}

/// A password and the expected outcome of its check.
pub(super) type Tried = (Option<Password>, Result<(), Code>);

/// Passwords.
impl World {
    /// Chooses a password for an account, which may not exist; `None` if its check would take
    /// too long. An open account needs none.
    pub(super) fn prove(
        &mut self,
        c: usize,
        user: usize,
        inbox: Option<usize>,
        amount: usize,
    ) -> Option<Tried> {
        let password = tried(amount);
        let inbox = inbox.map(|inbox| &self.model.inboxes[inbox]);
        let right = inbox.and_then(|inbox| inbox.password);
        let proven = match password {
            _ if right.is_none() && !self.model.rights.require_password => Ok(()),
            None => Err(Code::Denied),
            Some(_) if self.connections[c].wrong[user] >= WRONG_MAX => Err(Code::RateLimited),
            Some(password) => {
                // Without a hash to compare with, the server hashes the password all the same.
                let is_slow = right.is_none() || inbox.is_some_and(|inbox| inbox.is_strong);
                if self.wrong >= WRONG_RUN_MAX || (is_slow && !self.may_hash()) {
                    return None;
                }
                let is_wrong = right != Some(password);
                self.connections[c].wrong[user] += usize::from(is_wrong);
                self.wrong += usize::from(is_wrong);
                if is_wrong { Err(Code::Denied) } else { Ok(()) }
            }
        };
        Some((password.map(|password| password.parse().unwrap()), proven))
    }

    /// Returns whether the budget allows another hash.
    pub(super) const fn may_hash(&mut self) -> bool {
        let may = self.hashes_left > 0;
        self.hashes_left = self.hashes_left.saturating_sub(1);
        may
    }
}

/// Returns the password of a choice, if it has one.
pub(super) fn tried(amount: usize) -> Option<&'static str> {
    [None, Some(PASSWORDS[0]), Some(PASSWORDS[1])][amount % 3]
}
