//! Who a client is, as far as it knows: what makes a new connection the same
//! user, and what ends that.

use std::borrow::Cow;

use hark_protocol::{OkFields, Password, Refusal, Request, UserName};

/// Who one is.
#[derive(Debug, Default)]
pub(crate) enum Identity {
    #[default]
    Nobody,
    User {
        name: UserName,
        password: Option<Password>,
        receives: bool,
    },
    /// One was a user and is no more, for this reason; until the application
    /// says who to be, nothing is sent as nobody.
    Lost(Cow<'static, str>),
}

impl Identity {
    /// Who one is, if somebody.
    pub(crate) const fn user(&self) -> Option<&UserName> {
        match self {
            Self::User { name, .. } => Some(name),
            Self::Nobody | Self::Lost(_) => None,
        }
    }

    /// Why one is nobody, if that was not asked for.
    pub(crate) const fn loss(&self) -> Option<&Cow<'static, str>> {
        match self {
            Self::Lost(why) => Some(why),
            Self::Nobody | Self::User { .. } => None,
        }
    }

    /// What makes a new connection who one is; `None` for nobody.
    pub(crate) fn introduction(&self) -> Option<Request> {
        let Self::User { name, password, receives } = self else {
            return None;
        };
        let (user, password) = (name.clone(), password.clone());
        Some(match receives {
            true => Request::Connect { user, password },
            false => Request::Login { user, password },
        })
    }

    /// Whether one may be somebody else, or need another password, after this.
    pub(crate) fn is_changed_by(&self, request: &Request) -> bool {
        match request {
            Request::Login { .. } | Request::Connect { .. } | Request::Disconnect => true,
            Request::Delete { user, .. } | Request::Password { user, .. } => self.user() == Some(user),
            _ => false,
        }
    }

    /// Takes in a request that was carried out. Who receives from then on, and
    /// how many messages are to come, if it was a `connect`.
    pub(crate) fn carried_out(&mut self, request: &Request, fields: &OkFields) -> Option<(UserName, u64)> {
        match request {
            Request::Connect { user, password } => {
                *self = Self::User { name: user.clone(), password: password.clone(), receives: true };
                return Some((user.clone(), fields.as_queued().unwrap_or(0)));
            }
            Request::Login { user, password } => {
                let receives = self.is_receiving_for(user);
                *self = Self::User { name: user.clone(), password: password.clone(), receives };
            }
            Request::Disconnect => *self = Self::Nobody,
            Request::Delete { user, .. } if self.user() == Some(user) => *self = Self::Nobody,
            Request::Password { user, new, .. } => self.change_password(user, new),
            _ => {}
        }
        None
    }

    fn is_receiving_for(&self, user: &UserName) -> bool {
        matches!(self, Self::User { name, receives: true, .. } if name == user)
    }

    fn change_password(&mut self, user: &UserName, new: &Password) {
        if let Self::User { name, password, .. } = self
            && name == user
        {
            *password = Some(new.clone());
        }
    }

    /// The server takes one for nobody; who one was until now, if somebody.
    pub(crate) fn lose(&mut self, refusal: &Refusal) -> Option<UserName> {
        let user = self.user()?.clone();
        *self = Self::Lost(format!("no longer {user}: {}", refusal.explanation).into());
        Some(user)
    }

    /// Another connection receives now; whose messages these are, if they
    /// came here until now.
    pub(crate) fn taken_over(&mut self) -> Option<UserName> {
        match self {
            Self::User { name, receives, .. } if *receives => {
                *receives = false;
                Some(name.clone())
            }
            _ => None,
        }
    }
}
