//! The user that a client is authenticated as, and the requests that change it.

use std::borrow::Cow;

use hark_protocol::{DeviceName, OkFields, Password, Refusal, Request, RoomRequest, UserName};

/// The delivery to a client, as known to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Receiving {
    /// None.
    Nothing,
    /// The inbox, after a `connect`.
    Inbox,
    /// The inbox and all rooms for a device, after an `attach`.
    Device(DeviceName),
}

/// The authenticated user, as known to the client.
#[derive(Debug, Default)]
pub(crate) enum Identity {
    #[default]
    Anonymous,
    User {
        name: UserName,
        password: Option<Password>,
        receives: Receiving,
    },
    /// Authentication was lost, with the reason. Sends fail until the
    /// application logs in, connects or disconnects.
    Lost(Cow<'static, str>),
}

impl Identity {
    /// Returns the current user.
    pub(crate) const fn user(&self) -> Option<&UserName> {
        match self {
            Self::User { name, .. } => Some(name),
            Self::Anonymous | Self::Lost(_) => None,
        }
    }

    /// Returns why authentication was lost, if it was.
    pub(crate) const fn loss(&self) -> Option<&Cow<'static, str>> {
        match self {
            Self::Lost(why) => Some(why),
            Self::Anonymous | Self::User { .. } => None,
        }
    }

    /// Returns the request that authenticates a new link; `None` if anonymous.
    pub(crate) fn authentication(&self) -> Option<Request> {
        let Self::User {
            name,
            password,
            receives,
        } = self
        else {
            return None;
        };
        let (user, password) = (name.clone(), password.clone());
        Some(match receives {
            Receiving::Inbox => Request::Connect { user, password },
            Receiving::Device(device) => Request::Room(RoomRequest::Attach {
                user,
                device: device.clone(),
                password,
            }),
            Receiving::Nothing => Request::Login { user, password },
        })
    }

    /// Returns whether the request may change the user or the password of the
    /// client.
    pub(crate) fn is_changed_by(&self, request: &Request) -> bool {
        match request {
            Request::Login { .. }
            | Request::Connect { .. }
            | Request::Disconnect
            | Request::Room(RoomRequest::Attach { .. }) => true,
            Request::Delete { user, .. } | Request::Password { user, .. } => {
                self.user() == Some(user)
            }
            _ => false,
        }
    }

    /// Applies a successful request. For a `connect` or `attach`, returns the
    /// receiving user and the number of queued messages.
    pub(crate) fn apply(
        &mut self,
        request: &Request,
        fields: &OkFields,
    ) -> Option<(UserName, u64)> {
        match request {
            Request::Connect { user, password } => {
                *self = Self::User {
                    name: user.clone(),
                    password: password.clone(),
                    receives: Receiving::Inbox,
                };
                return Some((user.clone(), fields.as_queued().unwrap_or(0)));
            }
            Request::Room(RoomRequest::Attach {
                user,
                device,
                password,
            }) => {
                *self = Self::User {
                    name: user.clone(),
                    password: password.clone(),
                    receives: Receiving::Device(device.clone()),
                };
                let queued = fields.as_attached().map_or(0, |(queued, _)| queued);
                return Some((user.clone(), queued));
            }
            Request::Login { user, password } => {
                let receives = self.receiving_for(user);
                *self = Self::User {
                    name: user.clone(),
                    password: password.clone(),
                    receives,
                };
            }
            Request::Disconnect => *self = Self::Anonymous,
            Request::Delete { user, .. } if self.user() == Some(user) => *self = Self::Anonymous,
            Request::Password { user, new, .. } => self.change_password(user, new),
            _ => {}
        }
        None
    }

    fn receiving_for(&self, user: &UserName) -> Receiving {
        match self {
            Self::User { name, receives, .. } if name == user => receives.clone(),
            _ => Receiving::Nothing,
        }
    }

    fn change_password(&mut self, user: &UserName, new: &Password) {
        if let Self::User { name, password, .. } = self
            && name == user
        {
            *password = Some(new.clone());
        }
    }

    /// Drops authentication after a refusal, and returns the former user.
    pub(crate) fn lose(&mut self, refusal: &Refusal) -> Option<UserName> {
        let user = self.user()?.clone();
        *self =
            Self::Lost(format!("no longer logged in as {user}: {}", refusal.explanation).into());
        Some(user)
    }

    /// Stops receiving because another connection took over, and returns the
    /// user if the client was receiving.
    pub(crate) fn taken_over(&mut self) -> Option<UserName> {
        match self {
            Self::User { name, receives, .. } if *receives != Receiving::Nothing => {
                *receives = Receiving::Nothing;
                Some(name.clone())
            }
            _ => None,
        }
    }
}
