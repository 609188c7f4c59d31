//! The commands of rooms, devices and tokens: permissions, translation to the commands of the
//! store, and answers of many parts.
//!
//! Such an answer is produced page by page: the next page is made when the connection has
//! written the one before. So a slow reader costs no memory, and the pages of different
//! addresses take turns.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MIN;
use hark_protocol::message::{RoomEntry, list_parts};
use hark_protocol::{Code, OkFields, Reply, RoomName, RoomReply, RoomRequest, Sequence, UserName};
use regex::Regex;

use super::accounts::Authenticated;
use super::fair_semaphore::FairSemaphore;
use super::listing::{REPLY_BYTES_MAX, compile};
use super::replies::{delivery, room_refusal};
use super::{Chat, Fault, audit};
use crate::store::{
    self, DeviceEntry, DeviceId, History, PastPage, Point, ReadLimit, RoomAnswer, RoomCommand,
    RoomPage, Unavailable,
};

/// The permission to create rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MayCreateRooms {
    /// Users that are logged in.
    Users,
    /// Admins. Users join rooms, and talk to each other.
    Admins,
    /// No user: the server has no commands of rooms, and delivers none.
    Off,
}

/// A part of an answer.
pub(super) struct Part {
    /// Its replies.
    pub(super) replies: Vec<Reply>,
    /// The rest of the answer, to be produced once the replies are written.
    pub(super) rest: Option<Rest>,
}

/// The rest of an answer.
pub(super) type Rest = Pin<Box<dyn Future<Output = Result<Part, Fault>> + Send>>;

impl Part {
    /// Returns the end of an answer.
    fn end(reply: Reply) -> Self {
        Self {
            replies: vec![reply],
            rest: None,
        }
    }
}

/// The user of a connection that makes a request.
pub(super) struct Caller {
    pub(super) chat: Arc<Chat>,
    pub(super) address: IpAddr,
    pub(super) user: Authenticated,
    /// The attached device of the connection, which is not notified of its own commands.
    pub(super) device: Option<DeviceId>,
}

/// Returns the semaphore of all reads of past messages.
pub(super) fn history_permits() -> FairSemaphore {
    FairSemaphore::new(HISTORIES_MAX, "too many history commands are running")
}

impl Chat {
    /// Returns whether a name is that of a room, or of an account of an old version.
    pub(super) fn is_room(&self, name: &UserName) -> bool {
        self.store.has_rooms() && name.as_str().starts_with(RoomName::MARK)
    }

    /// Returns whether a name is that of a room, and rooms are turned off.
    pub(super) fn hides_room(&self, name: &UserName) -> bool {
        self.is_room(name) && self.rules().rooms == MayCreateRooms::Off
    }

    /// Checks that the server serves a command of rooms, devices or tokens.
    ///
    /// # Errors
    /// [`Code::UnknownCommand`].
    pub(super) fn check_served(&self, request: &RoomRequest) -> Result<(), Fault> {
        let is_of_account = matches!(
            request,
            RoomRequest::Attach { .. }
                | RoomRequest::Devices
                | RoomRequest::Forget(_)
                | RoomRequest::Block(_)
                | RoomRequest::Unblock(_)
                | RoomRequest::Token { .. }
                | RoomRequest::Tokens
                | RoomRequest::Revoke(_)
        );
        let is_served = is_of_account || self.rules().rooms != MayCreateRooms::Off;
        if self.store.has_rooms() && is_served {
            Ok(())
        } else {
            Fault::refused(Code::UnknownCommand, NOT_SERVED)
        }
    }
}

/// The explanation of `unknown-command` on a server without rooms, devices and tokens.
const NOT_SERVED: &str = "this server has no rooms, devices and tokens";

impl Caller {
    /// Starts the answer to a request, other than `attach`.
    ///
    /// # Errors
    /// The refusal or failure of the request.
    pub(super) async fn answer(self, request: RoomRequest) -> Result<Part, Fault> {
        match request {
            RoomRequest::Rooms { pattern } => self.list_rooms(pattern).await,
            RoomRequest::Members { room, after } => {
                self.chat.may_list(Some(&self.user)).await?;
                let listing = MemberListing::read(self, room, after).await?;
                Ok(listing.next())
            }
            RoomRequest::History {
                ref room,
                before,
                count,
            } => {
                let history = self.history_of(room, &request).await?;
                let reading = PastReading {
                    caller: self,
                    history,
                    before,
                    messages_left: HISTORY_MESSAGES_MAX.min(count as usize),
                    bytes_left: HISTORY_BYTES_MAX,
                    count: 0,
                    oldest: Sequence(0),
                };
                reading.next().await
            }
            RoomRequest::Seen { ref room, sequence } => {
                self.see(room, sequence, &request).await.map(Part::end)
            }
            RoomRequest::Devices => self.list_devices().await,
            RoomRequest::Token {
                ref name,
                ref scope,
            } => {
                let (name, scope) = (name.clone(), scope.clone());
                let created = self.create_token(name, scope, &request).await;
                created.map(Part::end)
            }
            RoomRequest::Tokens => self.list_tokens().await,
            RoomRequest::Revoke(ref name) => {
                let revoked = self.revoke(name.clone(), &request).await;
                revoked.map(Part::end)
            }
            request => self.carry_out(request).await.map(Part::end),
        }
    }

    /// Carries out a command with one reply, or a few.
    async fn carry_out(self, request: RoomRequest) -> Result<Reply, Fault> {
        let is_creation = matches!(request, RoomRequest::Set { .. });
        if is_creation && !self.may_create().await? {
            return Fault::refused(Code::Denied, "only admins may create and change rooms");
        }
        let Some(command) = command(&request) else {
            return Fault::refused(Code::UnknownCommand, NOT_SERVED);
        };
        let answer = self.ask(command, &request).await?;
        match &request {
            RoomRequest::Set { room, .. } => audit::room_set(room, &self.user, self.address),
            RoomRequest::Expel { room, user } => {
                audit::expelled(room, user, &self.user, self.address);
            }
            _ => {}
        }
        Ok(reply(answer))
    }

    /// Looks up the messages of a room that the caller may read back.
    async fn history_of(&self, room: &RoomName, request: &RoomRequest) -> Result<History, Fault> {
        match self
            .ask(RoomCommand::History(room.clone()), request)
            .await?
        {
            RoomAnswer::History(history) => Ok(history),
            _ => Err(Unavailable.into()),
        }
    }

    /// Moves the read mark of the caller. A number above the last one counts as that; one
    /// below every message changes no count of unread messages.
    async fn see(
        &self,
        room: &RoomName,
        number: Sequence,
        request: &RoomRequest,
    ) -> Result<Reply, Fault> {
        let history = self.history_of(room, request).await?;
        let point = if number >= history.last.sequence {
            Some(Point::from(history.last))
        } else {
            let limit = ReadLimit {
                messages: 1,
                bytes: 0,
            };
            let _permit = self.chat.histories.acquire(self.address).await?;
            let before = Sequence(number.0 + 1);
            let page = self.chat.store.read_back(history, before, limit).await?;
            page.messages.first().map(|message| Point {
                number: number.0,
                messages: message.position.messages,
            })
        };
        if let Some(point) = point {
            self.ask(RoomCommand::See(room.clone(), point), request)
                .await?;
        }
        Ok(Reply::Ok(OkFields::None))
    }

    /// Deletes a room. Returns whether it existed.
    ///
    /// # Errors
    /// [`Code::Denied`].
    pub(super) async fn delete_room(self, room: RoomName, is_admin: bool) -> Result<bool, Fault> {
        let command = RoomCommand::Delete {
            room: room.clone(),
            is_admin,
        };
        let answer = self.store_command(command).await?;
        match answer {
            Ok(answer) => {
                let existed = answer == RoomAnswer::Existed(true);
                if existed {
                    audit::room_deleted(&room, &self.user, is_admin, self.address);
                }
                Ok(existed)
            }
            Err(code) => Fault::refused(
                code,
                format!("only an owner of {room} or an admin may delete it"),
            ),
        }
    }

    async fn may_create(&self) -> Result<bool, Fault> {
        match self.chat.rules().rooms {
            MayCreateRooms::Users => Ok(true),
            MayCreateRooms::Admins => self.chat.is_admin(Some(&self.user)).await,
            MayCreateRooms::Off => Ok(false),
        }
    }

    /// Carries out a command of the store. A refusal explains itself by the request.
    pub(super) async fn ask(
        &self,
        command: RoomCommand,
        request: &RoomRequest,
    ) -> Result<RoomAnswer, Fault> {
        let answer = self.store_command(command).await?;
        answer.map_err(|code| Fault::Refused(room_refusal(code, request)))
    }

    async fn store_command(&self, command: RoomCommand) -> Result<Result<RoomAnswer, Code>, Fault> {
        let account = &self.user.account;
        Ok(self
            .chat
            .store
            .room_command(account, self.device, command)
            .await?)
    }

    async fn list_devices(self) -> Result<Part, Fault> {
        let answer = self
            .ask(RoomCommand::Devices, &RoomRequest::Devices)
            .await?;
        let RoomAnswer::Devices(devices) = answer else {
            return Ok(Part::end(Reply::Ok(OkFields::Listed(0, false))));
        };
        let end = Reply::Ok(OkFields::Listed(devices.len(), false));
        let replies = devices.into_iter().map(device_reply).chain([end]);
        Ok(Part {
            replies: replies.collect(),
            rest: None,
        })
    }

    /// Lists the rooms of the caller, then public ones if the caller may `list`.
    async fn list_rooms(self, pattern: Option<ByteString>) -> Result<Part, Fault> {
        let shows_public = match self.chat.may_list(Some(&self.user)).await {
            Ok(()) => true,
            Err(Fault::Refused(_)) => false,
            Err(unavailable) => return Err(unavailable),
        };
        let pattern = match pattern {
            Some(pattern) => {
                let mut permit = self.chat.lists.acquire(self.address).await?;
                Some(permit.run_blocking(move || compile(&pattern)).await??)
            }
            None => None,
        };
        let listing = RoomListing {
            pattern,
            shows_public,
            from: 0,
            count: 0,
            caller: self,
        };
        listing.next().await
    }
}

/// A list of rooms in progress.
struct RoomListing {
    caller: Caller,
    pattern: Option<Regex>,
    shows_public: bool,
    /// The place of the next page.
    from: u64,
    /// The number of rooms so far.
    count: usize,
}

impl RoomListing {
    /// Produces the next part.
    fn next(mut self) -> Rest {
        Box::pin(async move {
            let RoomPage { rooms, next } = self.page().await?;
            let is_own = |entry: &store::RoomEntry| entry.unread.is_some();
            let has_ended = !self.shows_public && !rooms.iter().all(is_own);
            let shown = rooms
                .into_iter()
                .filter(|entry| self.shows_public || is_own(entry));
            let mut replies: Vec<Reply> = shown.map(room_reply).collect();
            self.count += replies.len();
            let Some(from) = next.filter(|_| !has_ended) else {
                replies.push(Reply::Ok(OkFields::Listed(self.count, false)));
                return Ok(Part {
                    replies,
                    rest: None,
                });
            };
            self.from = from;
            Ok(Part {
                replies,
                rest: Some(self.next()),
            })
        })
    }

    /// Reads the next page. Its permit is released before it is written.
    async fn page(&self) -> Result<RoomPage, Fault> {
        let caller = &self.caller;
        let mut permit = caller.chat.lists.acquire(caller.address).await?;
        let request = RoomRequest::Rooms { pattern: None };
        let answer = caller.ask(RoomCommand::Rooms(self.from), &request).await?;
        let RoomAnswer::Rooms(mut page) = answer else {
            return Ok(RoomPage::default());
        };
        if let Some(pattern) = self.pattern.clone() {
            let rooms = std::mem::take(&mut page.rooms);
            let matching = move || {
                let matches = |entry: &store::RoomEntry| pattern.is_match(entry.name.as_str());
                rooms.into_iter().filter(matches).collect()
            };
            page.rooms = permit.run_blocking(matching).await?;
        }
        Ok(page)
    }
}

/// The most names in a part of a list of members.
const PART_NAMES_MAX: usize = 1000;

/// A list of members in progress.
struct MemberListing {
    caller: Caller,
    /// The names that are not written yet, sorted.
    names: std::vec::IntoIter<UserName>,
    /// The number of names in the answer.
    count: usize,
    is_truncated: bool,
}

impl MemberListing {
    /// Reads the names of all members, page by page, and sorts those behind `after`.
    async fn read(caller: Caller, room: RoomName, after: Option<UserName>) -> Result<Self, Fault> {
        let request = RoomRequest::Members {
            room: room.clone(),
            after: after.clone(),
        };
        let (mut names, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let _permit = caller.chat.lists.acquire(caller.address).await?;
            let command = RoomCommand::Members(room.clone(), from);
            let RoomAnswer::Members(page) = caller.ask(command, &request).await? else {
                break;
            };
            let behind = |name: &UserName| after.as_ref().is_none_or(|after| name > after);
            names.extend(page.names.into_iter().filter(behind));
            next = page.next;
        }
        let mut permit = caller.chat.lists.acquire(caller.address).await?;
        let sort = move || {
            names.sort_unstable();
            names
        };
        let mut names = permit.run_blocking(sort).await?;
        drop(permit);
        let names_max = caller.chat.rules().list_names_max;
        let is_truncated = names.len() > names_max;
        names.truncate(names_max);
        Ok(Self {
            caller,
            count: names.len(),
            names: names.into_iter(),
            is_truncated,
        })
    }

    /// Produces the next part.
    fn next(mut self) -> Part {
        let names: Vec<_> = self.names.by_ref().take(PART_NAMES_MAX).collect();
        let frame_bytes_max = self.caller.chat.rules().frame_bytes_max;
        let bytes_max = REPLY_BYTES_MAX.min(frame_bytes_max - FRAME_BYTES_MIN);
        let parts = list_parts(&names, bytes_max).into_iter();
        let mut replies: Vec<Reply> = parts.map(|names| Reply::List(names.to_vec())).collect();
        let rest: Option<Rest> = if self.names.len() > 0 {
            Some(Box::pin(async move { Ok(self.next()) }))
        } else {
            let listed = OkFields::Listed(self.count, self.is_truncated);
            replies.push(Reply::Ok(listed));
            None
        };
        Part { replies, rest }
    }
}

/// The most pages of past messages that are read at the same time. They wait for the disk.
const HISTORIES_MAX: usize = 4;

/// The most messages in the answer to a `history`.
const HISTORY_MESSAGES_MAX: usize = 256;

/// The most bytes of texts in the answer to a `history`; one message may exceed it.
const HISTORY_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes of texts in a part of a `history`; one message may exceed it.
const PART_BYTES_MAX: usize = 64 * 1024;

/// An answer to `history` in progress.
struct PastReading {
    caller: Caller,
    history: History,
    /// The next part has messages below this number.
    before: Sequence,
    messages_left: usize,
    bytes_left: usize,
    /// The number of messages so far.
    count: usize,
    /// The number of the oldest message that may be read back.
    oldest: Sequence,
}

impl PastReading {
    /// Produces the next part.
    fn next(mut self) -> Rest {
        Box::pin(async move {
            let page = self.page().await?;
            let mut replies = Vec::new();
            for message in &page.messages {
                if self.count > 0 && message.text.len() > self.bytes_left {
                    self.messages_left = 0;
                    break;
                }
                self.bytes_left = self.bytes_left.saturating_sub(message.text.len());
                self.messages_left = self.messages_left.saturating_sub(1);
                self.count += 1;
                self.before = message.position.sequence;
                replies.push(Reply::Room(RoomReply::Past(delivery(message))));
            }
            if !page.messages.is_empty() {
                self.oldest = page.oldest;
            }
            let has_more = self.messages_left > 0 && self.before > self.oldest;
            let rest = if has_more && !page.messages.is_empty() {
                Some(self.next())
            } else {
                replies.push(Reply::Ok(OkFields::Past(self.count, self.oldest)));
                None
            };
            Ok(Part { replies, rest })
        })
    }

    async fn page(&self) -> Result<PastPage, Fault> {
        if self.messages_left == 0 {
            return Ok(PastPage::default());
        }
        let chat = &self.caller.chat;
        let _permit = chat.histories.acquire(self.caller.address).await?;
        let limit = ReadLimit {
            messages: self.messages_left,
            bytes: self.bytes_left.min(PART_BYTES_MAX),
        };
        Ok(chat
            .store
            .read_back(self.history, self.before, limit)
            .await?)
    }
}

/// Returns the store's command for a request that has one.
fn command(request: &RoomRequest) -> Option<RoomCommand> {
    Some(match request.clone() {
        RoomRequest::Set { room, mode, keep_s } => RoomCommand::Set {
            room,
            mode,
            keep: keep_s.map(Duration::from_secs),
        },
        RoomRequest::Join(room) => RoomCommand::Join(room),
        RoomRequest::Leave(room) => RoomCommand::Leave(room),
        RoomRequest::Invite { room, user } => RoomCommand::Invite(room, user),
        RoomRequest::Expel { room, user } => RoomCommand::Expel(room, user),
        RoomRequest::Own { room, user } => RoomCommand::Own(room, user),
        RoomRequest::Talk(user) => RoomCommand::Talk(user),
        RoomRequest::Block(user) => RoomCommand::Block(user),
        RoomRequest::Unblock(user) => RoomCommand::Unblock(user),
        RoomRequest::Forget(device) => RoomCommand::Forget(device),
        RoomRequest::Attach { .. }
        | RoomRequest::Rooms { .. }
        | RoomRequest::Members { .. }
        | RoomRequest::Devices
        | RoomRequest::History { .. }
        | RoomRequest::Seen { .. }
        | RoomRequest::Token { .. }
        | RoomRequest::Tokens
        | RoomRequest::Revoke(_) => return None,
    })
}

/// Returns the reply for the answer to a command.
fn reply(answer: RoomAnswer) -> Reply {
    Reply::Ok(match answer {
        RoomAnswer::Joined(joined) => OkFields::Joined(Sequence(joined.number), joined.held),
        RoomAnswer::Room(room) => OkFields::Room(room),
        _ => OkFields::None,
    })
}

fn room_reply(entry: store::RoomEntry) -> Reply {
    Reply::Room(RoomReply::Room(RoomEntry {
        name: entry.name,
        mode: entry.mode,
        members: entry.members as u64,
        unread: entry.unread,
        last: Sequence(entry.last),
    }))
}

fn device_reply(entry: DeviceEntry) -> Reply {
    Reply::Room(RoomReply::Device {
        name: entry.name,
        seen_ms: u64::from(entry.seen_s) * 1000,
        waiting: entry.waiting,
    })
}
