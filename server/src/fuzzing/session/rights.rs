//! What the operator has set, and who may do what then: section 5 of the
//! protocol.

use hark_protocol::{Code, OkFields, Password, UserName};

use super::connection::Connection;
use super::model::{Model, USERS};
use super::world::World;
use crate::chat::MayList;

/// The passwords that there are.
pub(super) const PASSWORDS: [&str; 2] = ["right", "wrong"];

/// Who is an admin, where there is one.
const ADMIN: usize = 0;

/// Wrong passwords for one account from one address, until it has to wait.
const WRONG_MAX: usize = 5;

/// Wrong passwords in one run: of more, each would have to wait.
const WRONG_RUN_MAX: usize = 50;

/// What the operator has set.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rights {
    pub(super) require_password: bool,
    has_admin: bool,
    pub(super) may_list: MayList,
}

impl Rights {
    /// Everybody may do everything.
    pub(super) const OPEN: Self = Self { require_password: false, has_admin: false, may_list: MayList::All };

    /// `0` to `;` are the twelve that there are: odd ones require passwords, every
    /// second two have an admin, and each four are listed by fewer. A line's end
    /// is `0`, and every other byte means one of them.
    pub(super) fn from_byte(byte: u8) -> Self {
        let number = if byte == b'\n' { 0 } else { byte.wrapping_sub(b'0') };
        Self {
            require_password: number % 2 == 1,
            has_admin: number / 2 % 2 == 1,
            may_list: [MayList::All, MayList::Users, MayList::Admins][usize::from(number / 4 % 3)],
        }
    }

    pub(super) fn admins(&self) -> Vec<UserName> {
        self.has_admin.then(|| USERS[ADMIN].parse().unwrap()).into_iter().collect()
    }

    /// Whether it is an admin who makes this account, and gives it its password.
    const fn keep(&self, user: usize) -> bool {
        self.has_admin && user == ADMIN
    }
}

/// What a request has to be answered for the account of who asks.
impl Model {
    /// Whether a connection has entered the admin's account, by its password.
    pub(super) fn is_admin(&self, connection: &Connection) -> bool {
        connection.by_password && self.user_of(connection).is_some_and(|user| self.rights.keep(user))
    }

    /// Who a connection is, while its account is there.
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

    /// Whether somebody who has proved to be this account may set its password.
    pub(super) fn may_take(&self, inbox: usize) -> Result<OkFields, Code> {
        let inbox = &self.inboxes[inbox];
        let is_kept = inbox.password.is_none() && self.rights.keep(inbox.user);
        if is_kept { Err(Code::Denied) } else { Ok(OkFields::none()) }
    }
}

/// A password that is tried, and what comes of it.
pub(super) type Tried = (Option<Password>, Result<(), Code>);

/// Passwords.
impl World {
    /// Tries one for an account, or for one that is not there; `None` where finding
    /// out would take too long. What is open to anybody asks for none.
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
                // Where there is none to compare with, one is hashed all the same.
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

    /// Whether there is time to hash a password once more.
    pub(super) const fn may_hash(&mut self) -> bool {
        let may = self.hashes_left > 0;
        self.hashes_left = self.hashes_left.saturating_sub(1);
        may
    }
}

/// The password that is given, if one is.
pub(super) fn tried(amount: usize) -> Option<&'static str> {
    [None, Some(PASSWORDS[0]), Some(PASSWORDS[1])][amount % 3]
}
