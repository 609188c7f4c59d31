//! Requests of rooms, devices and tokens.

use bytestring::ByteString;
use hark_protocol::message::{RoomEntry, RoomMode, Scope, TokenEntry};
use hark_protocol::{
    Delivery, DeviceName, Password, Request, RoomName, RoomReply, RoomRequest, Sequence, TokenName,
    UserName,
};

use crate::error::RequestError;
use crate::handle::{Handle, Names};
use crate::outbox::Answer;

/// The answer to `attach`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attached {
    /// Number of messages of the inbox that wait for the device.
    pub waiting: u64,
    /// Number of rooms.
    pub rooms: usize,
}

/// The answer to `join`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// The last number of the room. The member receives the messages above it.
    pub last: Sequence,
    /// Number of messages that can be read back.
    pub held: u64,
}

/// A device of a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// The name; `None` for the device of `connect`.
    pub name: Option<DeviceName>,
    /// The time at which it was attached last, in milliseconds since the Unix
    /// epoch.
    pub seen_ms: u64,
    /// Number of messages of the inbox that wait for it.
    pub waiting: u64,
}

/// A page of the messages of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// The messages, the newest first.
    pub messages: Vec<Delivery>,
    /// The number of the oldest message that can be read back; 0 for an empty
    /// page.
    pub oldest: Sequence,
}

/// Rooms, devices and tokens. Each command may be repeated, and is repeated on a new
/// link if its answer was lost.
impl Handle {
    /// Authenticates as `user`, and receives for one device of it: its inbox and
    /// all its rooms. Waits until all earlier requests are answered. After a lost
    /// connection the client attaches again.
    ///
    /// # Errors
    /// See [`RequestError`], including [`RequestError::SeenStore`]. The current
    /// user does not change in that case. A server without devices answers
    /// `unknown-command`.
    pub async fn attach(
        &self,
        user: UserName,
        device: DeviceName,
        password: Option<Password>,
    ) -> Result<Attached, RequestError> {
        self.check_seen(&user)?;
        let answer = self
            .ask_room(RoomRequest::Attach {
                user,
                device,
                password,
            })
            .await?;
        let (waiting, rooms) = answer.fields.as_attached().unwrap_or_default();
        Ok(Attached { waiting, rooms })
    }

    /// As [`Self::attach`]; on a server without devices as [`Self::connect`].
    /// Returns the number of messages of the inbox that wait.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub async fn receive(
        &self,
        user: UserName,
        device: DeviceName,
        password: Option<Password>,
    ) -> Result<u64, RequestError> {
        self.check_seen(&user)?;
        let request = Request::Room(RoomRequest::Attach {
            user,
            device,
            password,
        });
        let fields = self.ask_or_connect(request).await?.fields;
        let attached = fields.as_attached().map(|(waiting, _)| waiting);
        Ok(attached.or_else(|| fields.as_queued()).unwrap_or_default())
    }

    /// Creates a room, or changes one of the user. `keep_s` is the time to keep
    /// messages, in seconds.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn room(
        &self,
        room: RoomName,
        mode: RoomMode,
        keep_s: Option<u64>,
    ) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Set { room, mode, keep_s }).await
    }

    /// Makes the user a member of a room.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn join(&self, room: RoomName) -> Result<Joined, RequestError> {
        let answer = self.ask_room(RoomRequest::Join(room)).await?;
        let (last, held) = answer.fields.as_joined().unwrap_or_default();
        Ok(Joined { last, held })
    }

    /// Ends the membership of the user.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn leave(&self, room: RoomName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Leave(room)).await
    }

    /// Invites a user to a room.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn invite(&self, room: RoomName, user: UserName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Invite { room, user }).await
    }

    /// Ends the membership of a user, and bans it until it is invited.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn expel(&self, room: RoomName, user: UserName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Expel { room, user }).await
    }

    /// Makes a member of a room an owner.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn own(&self, room: RoomName, user: UserName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Own { room, user }).await
    }

    /// Begins or resumes the conversation with a user, and returns its room.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn talk(&self, user: UserName) -> Result<RoomName, RequestError> {
        let request = RoomRequest::Talk(user);
        let answer = self.ask_room(request.clone()).await?;
        let why = "malformed answer: the room is missing";
        let room = answer.fields.as_room();
        room.ok_or_else(|| RequestError::unknown(&Request::Room(request), why))
    }

    /// Blocks a user: no `talk` from it, and no messages.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn block(&self, user: UserName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Block(user)).await
    }

    /// Ends the block of a user.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn unblock(&self, user: UserName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Unblock(user)).await
    }

    /// Lists the rooms of the user, then open ones; or those that match a regular
    /// expression.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn rooms(&self, pattern: Option<ByteString>) -> Result<Vec<RoomEntry>, RequestError> {
        let answer = self.ask_room(RoomRequest::Rooms { pattern }).await?;
        let rooms = answer.parts.into_iter().filter_map(|part| match part {
            RoomReply::Room(entry) => Some(entry),
            _ => None,
        });
        Ok(rooms.collect())
    }

    /// Lists the members of a room behind a name, sorted.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn members(
        &self,
        room: RoomName,
        after: Option<UserName>,
    ) -> Result<Names, RequestError> {
        let answer = self.ask_room(RoomRequest::Members { room, after }).await?;
        Ok(answer.into_names())
    }

    /// Lists the devices of the user.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn devices(&self) -> Result<Vec<Device>, RequestError> {
        let answer = self.ask_room(RoomRequest::Devices).await?;
        let devices = answer.parts.into_iter().filter_map(|part| match part {
            RoomReply::Device {
                name,
                seen_ms,
                waiting,
            } => Some(Device {
                name,
                seen_ms,
                waiting,
            }),
            _ => None,
        });
        Ok(devices.collect())
    }

    /// Ends a device of the user; the one without a name if it is `None`.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn forget(&self, device: Option<DeviceName>) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Forget(device)).await
    }

    /// Returns at most `count` messages of a room below the number `before`, or
    /// the newest ones if that is 0. The server returns at most 256.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn history(
        &self,
        room: RoomName,
        before: Sequence,
        count: u32,
    ) -> Result<History, RequestError> {
        let request = RoomRequest::History {
            room,
            before,
            count,
        };
        let answer = self.ask_room(request).await?;
        let (_, oldest) = answer.fields.as_past().unwrap_or_default();
        let messages = answer.parts.into_iter().filter_map(|part| match part {
            RoomReply::Past(delivery) => Some(delivery),
            _ => None,
        });
        Ok(History {
            messages: messages.collect(),
            oldest,
        })
    }

    /// Moves the read mark of the user in a room. It only grows.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn seen(&self, room: RoomName, sequence: Sequence) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Seen { room, sequence }).await
    }

    /// Creates a token of the user, and returns its secret: the only time. The secret
    /// stands for the password, with the rights of `scope`. A former token of this name
    /// ends. The user must have logged in with its password.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn token(&self, name: TokenName, scope: Scope) -> Result<Password, RequestError> {
        let request = RoomRequest::Token { name, scope };
        let answer = self.ask_room(request.clone()).await?;
        let why = "malformed answer: the secret is missing";
        let secret = answer.fields.as_token();
        secret.ok_or_else(|| RequestError::unknown(&Request::Room(request), why))
    }

    /// Lists the tokens of the user, sorted by name.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn tokens(&self) -> Result<Vec<TokenEntry>, RequestError> {
        let answer = self.ask_room(RoomRequest::Tokens).await?;
        let tokens = answer.parts.into_iter().filter_map(|part| match part {
            RoomReply::Token(token) => Some(token),
            _ => None,
        });
        Ok(tokens.collect())
    }

    /// Ends a token of the user, and closes the connections that entered by it.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn revoke(&self, token: TokenName) -> Result<(), RequestError> {
        self.do_room(RoomRequest::Revoke(token)).await
    }

    async fn do_room(&self, request: RoomRequest) -> Result<(), RequestError> {
        self.ask_room(request).await.map(drop)
    }

    async fn ask_room(&self, request: RoomRequest) -> Result<Answer, RequestError> {
        self.ask(Request::Room(request)).await
    }
}
