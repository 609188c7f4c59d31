//! Access to the messages of a device without a delivery, for a front without connections:
//! reading what is unacknowledged, and acknowledging by number.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::Gap;
use hark_protocol::{Code, DeviceName, Password, RoomName, Sequence, UserName};
use tokio::time::Instant;

use super::accounts::Authenticated;
use super::rate_limiter::Charged;
use super::shutdown::ShutdownSignal;
use super::tokens::{Entering, Right};
use super::{Chat, Fault, MayCreateRooms, audit};
use crate::store::{
    Account, DeviceCursors, DeviceId, Message, NAMELESS, Page, Point, Position, ReadLimit,
    RoomAnswer, RoomCommand, RoomPlace, Store, Unavailable,
};

/// The maximum number of messages of one page.
const PAGE_MESSAGES: usize = 256;

/// The maximum number of bytes of text in one page; the first message may exceed it.
const PAGE_BYTES: usize = 64 * 1024;

/// The longest delay by the rate limit of the user.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// One message, to learn its position.
const ONE: ReadLimit = ReadLimit {
    messages: 1,
    bytes: 0,
};

/// The logs of a device, to whose account the caller has logged in.
#[derive(Debug, Clone)]
pub struct Inbox {
    chat: Arc<Chat>,
    address: IpAddr,
    user: Authenticated,
    /// `None` for the nameless device.
    device: Option<DeviceName>,
    /// Set when an administrator closes it, or the token by which the caller entered is
    /// revoked.
    shutdown: Arc<ShutdownSignal>,
}

/// The unacknowledged part of a log: of the inbox, or of a room.
#[derive(Debug, Clone)]
pub struct UnreadLog {
    /// The room and its id; `None` for the inbox.
    room: Option<(RoomName, u64)>,
    /// The position before the next message.
    after: Position,
}

/// A page of an [`UnreadLog`].
#[derive(Debug)]
pub struct UnreadPage {
    /// Messages before the page that were removed before the device acknowledged them.
    pub gap: Option<Gap>,
    /// The messages.
    pub messages: Vec<Arc<Message>>,
    /// Whether the page reached the end of the log.
    pub complete: bool,
}

impl UnreadLog {
    /// Returns the room; `None` for the inbox.
    #[must_use]
    pub fn room(&self) -> Option<&RoomName> {
        self.room.as_ref().map(|(name, _)| name)
    }
}

/// Resolves when the acknowledgements so far of a device, the nameless one without a name,
/// are durable. A failure means that they may not be.
pub(super) fn sync_acknowledgements(
    store: &dyn Store,
    account: &Account,
    device: Option<&DeviceName>,
) -> impl Future<Output = Result<(), Unavailable>> + use<> {
    let (mut inbox, mut cursors) = (None, None);
    if device.is_some() || store.has_cursors() {
        let command = RoomCommand::Cursors(device.cloned());
        cursors = Some(store.room_command(account, None, command));
    } else {
        inbox = Some(store.sync_acknowledgements(account));
    }
    async move {
        if let Some(inbox) = inbox {
            inbox.await?;
        }
        if let Some(cursors) = cursors {
            cursors.await?.map_err(|_| Unavailable)?;
        }
        Ok(())
    }
}

impl Chat {
    /// Logs in to an account for a call from `address` on `connection`, for access to the
    /// messages of a device, the nameless one without a name.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`];
    /// [`Code::UnknownCommand`] if the server has no devices.
    pub async fn inbox(
        self: &Arc<Self>,
        (connection, address): (&ShutdownSignal, IpAddr),
        user: UserName,
        password: Option<Password>,
        device: Option<DeviceName>,
    ) -> Result<Inbox, Fault> {
        if device.is_some() {
            self.check_cursors()?;
        }
        let shutdown = ShutdownSignal::of_call(connection);
        shutdown.set_address(address);
        let entering = Entering {
            address,
            shutdown: &shutdown,
            right: Right::Receive,
        };
        let user = self.login(entering, user, password).await?;
        let charged = Charged {
            user: &user.account.name,
            is_exempt: self.rules().rates.is_exempt(address),
        };
        let wait = self.users.charge_command(charged, Instant::now());
        if wait > WAIT_MAX {
            return Fault::rate_limited(wait, "too many commands");
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        audit::logged_in(&user, address);
        shutdown.set_user(Some(&user.account.name));
        Ok(Inbox {
            chat: Arc::clone(self),
            address,
            user,
            device,
            shutdown,
        })
    }

    /// Checks that the server tells what a device with a name has acknowledged.
    ///
    /// # Errors
    /// [`Code::UnknownCommand`].
    pub fn check_cursors(&self) -> Result<(), Fault> {
        if self.store.has_cursors() {
            return Ok(());
        }
        let explanation = "this server does not read and acknowledge for devices with names";
        Fault::refused(Code::UnknownCommand, explanation)
    }
}

impl Inbox {
    /// Returns the logs that the device reads, the inbox first. A device that does not exist
    /// reads what it would begin with: the inbox.
    ///
    /// # Errors
    /// [`Code::Denied`] if the account has ended.
    pub async fn unread_logs(&self) -> Result<Vec<UnreadLog>, Fault> {
        let cursors = self.cursors().await?;
        let inbox = UnreadLog {
            room: None,
            after: cursors.inbox,
        };
        let rooms = cursors.rooms.into_iter().map(|place| UnreadLog {
            room: Some((place.name, place.unread.room)),
            after: place.cursor.into(),
        });
        Ok(std::iter::once(inbox).chain(rooms).collect())
    }

    /// Reads the next unacknowledged messages of a log, which then begins behind them.
    ///
    /// # Errors
    /// [`Code::Denied`] if the token of the caller is revoked.
    pub async fn read(&self, log: &mut UnreadLog) -> Result<UnreadPage, Fault> {
        self.check_entrance()?;
        let limit = ReadLimit {
            messages: PAGE_MESSAGES,
            bytes: PAGE_BYTES,
        };
        let store = &self.chat.store;
        let page = match &log.room {
            None => store.read(&self.user.account, log.after, limit).await?,
            Some((_, id)) => store.read_room(*id, log.after.into(), limit).await?,
        };
        let gap = page.starts_after.and_then(|start| self.gap(log, start));
        log.after = page.starts_after.unwrap_or(log.after);
        if let Some(last) = page.messages.last() {
            log.after = last.position;
        }
        Ok(UnreadPage {
            gap,
            messages: page.messages,
            complete: page.complete,
        })
    }

    /// Returns the gap before a page. The nameless device does not learn of gaps.
    fn gap(&self, log: &UnreadLog, start: Position) -> Option<Gap> {
        let count = start.messages.saturating_sub(log.after.messages);
        (self.device.is_some() && count > 0).then(|| Gap {
            log: log.room().cloned(),
            from: Sequence(log.after.sequence.0 + 1),
            to: start.sequence,
            count,
        })
    }

    /// Acknowledges every message of a log, a room or the inbox, up to `number`, whether or
    /// not a connection receives; as the device, or as a user without devices.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the log, or if the device
    /// does not exist; [`Code::NoSuchUser`] if it does not read this room.
    pub async fn acknowledge(
        &self,
        room: Option<&RoomName>,
        number: Sequence,
    ) -> Result<(), Fault> {
        let cursors = self.cursors().await?;
        let Some(device) = cursors.device else {
            return Fault::refused(Code::BadRequest, self.lacks_device());
        };
        let account = &self.user.account;
        let Some(room) = room else {
            if let Some(position) = self.last_position(cursors.inbox, number).await? {
                self.check_entrance()?;
                self.acknowledge_inbox(device, position);
            }
            return Ok(());
        };
        let mut rooms = cursors.rooms.iter();
        let Some(place) = rooms.find(|place| place.name == *room) else {
            return self.lacks_room(room);
        };
        if let Some(point) = self.last_point(place, number).await? {
            self.check_entrance()?;
            let id = place.unread.room;
            self.chat.store.acknowledge_room(account, device, id, point);
        }
        Ok(())
    }

    /// Acknowledges every message of the inbox up to `number` as a device which is to
    /// receive next, and is created if it does not exist. The cost is that of
    /// [`Self::acknowledge`].
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the inbox;
    /// [`Code::TooMany`] if the user has too many devices.
    pub async fn start_after(&self, number: Sequence) -> Result<(), Fault> {
        let (store, account) = (&self.chat.store, &self.user.account);
        let mut cursors = self.cursors().await?;
        if let Some(position) = self.last_position(cursors.inbox, number).await? {
            match &self.device {
                None => drop(store.receive_if_free(account).await?),
                Some(name) if cursors.device.is_none() => {
                    if store.attach(account, name).await?.is_err() {
                        let explanation =
                            format!("user {} has too many devices; forget one", account.name);
                        return Fault::refused(Code::TooMany, explanation);
                    }
                    cursors = self.cursors().await?;
                }
                Some(_) => {}
            }
            self.check_entrance()?;
            let device = cursors.device.unwrap_or(NAMELESS);
            self.acknowledge_inbox(device, position);
        }
        Ok(())
    }

    /// Waits until the acknowledgements of the device so far are durable.
    ///
    /// # Errors
    /// They may not be.
    pub async fn sync_acknowledgements(&self) -> Result<(), Unavailable> {
        let (store, account) = (&*self.chat.store, &self.user.account);
        sync_acknowledgements(store, account, self.device.as_ref()).await
    }

    /// Checks that the device reads a room.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`].
    pub async fn check_room(&self, room: &RoomName) -> Result<(), Fault> {
        let cursors = self.cursors().await?;
        if cursors.rooms.iter().any(|place| place.name == *room) {
            return Ok(());
        }
        self.lacks_room(room)
    }

    fn acknowledge_inbox(&self, device: DeviceId, position: Position) {
        let (store, account) = (&self.chat.store, &self.user.account);
        match device {
            NAMELESS => store.acknowledge(account, position),
            _ => store.acknowledge_inbox(account, device, position),
        }
    }

    async fn cursors(&self) -> Result<DeviceCursors, Fault> {
        let (store, account) = (&self.chat.store, &self.user.account);
        if !store.has_cursors() {
            return Ok(DeviceCursors {
                device: (!self.has_only_named_devices().await?).then_some(NAMELESS),
                inbox: Position::default(),
                rooms: Vec::new(),
            });
        }
        let command = RoomCommand::Cursors(self.device.clone());
        match store.room_command(account, None, command).await? {
            Ok(RoomAnswer::Cursors(mut cursors)) => {
                if self.chat.rules().rooms == MayCreateRooms::Off {
                    cursors.rooms.clear();
                }
                Ok(cursors)
            }
            Ok(_) => Err(Unavailable.into()),
            Err(code) => Fault::refused(code, format!("user {} was deleted", account.name)),
        }
    }

    async fn has_only_named_devices(&self) -> Result<bool, Fault> {
        let (store, account) = (&self.chat.store, &self.user.account);
        if !store.has_rooms() {
            return Ok(false);
        }
        let answer = store.room_command(account, None, RoomCommand::Devices);
        Ok(match answer.await? {
            Ok(RoomAnswer::Devices(devices)) => {
                !devices.is_empty() && devices.iter().all(|device| device.name.is_some())
            }
            _ => false,
        })
    }

    fn check_entrance(&self) -> Result<(), Fault> {
        if self.shutdown.is_closing() {
            let explanation = "the token is revoked, or an administrator has ended this request";
            return Fault::refused(Code::Denied, explanation);
        }
        Ok(())
    }

    fn lacks_device(&self) -> String {
        let user = &self.user.account.name;
        match &self.device {
            None => format!("{user} receives by devices with names; name one"),
            Some(device) => format!("{user} has no device {}", device.as_str()),
        }
    }

    fn lacks_room<T>(&self, room: &RoomName) -> Result<T, Fault> {
        let user = &self.user.account.name;
        let reader = match &self.device {
            None => "the device without a name".to_owned(),
            Some(device) => format!("device {}", device.as_str()),
        };
        let explanation = format!("{reader} of {user} does not read {}", room.as_str());
        Fault::refused(Code::NoSuchUser, explanation)
    }

    /// Returns the position of the last unacknowledged message of the inbox up to `number`,
    /// if there is one.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the inbox.
    async fn last_position(
        &self,
        cursor: Position,
        number: Sequence,
    ) -> Result<Option<Position>, Fault> {
        if number <= cursor.sequence {
            return Ok(None);
        }
        match self.message(number).await? {
            Some(message) => Ok(Some(message.position)),
            None => self.last_up_to(cursor, number).await,
        }
    }

    /// Returns the unacknowledged message with this number.
    async fn message(&self, number: Sequence) -> Result<Option<Arc<Message>>, Fault> {
        let after = Position {
            sequence: Sequence(number.0.saturating_sub(1)),
            ..Position::default()
        };
        let page = self.read_inbox(after, ONE).await?;
        let first = page.messages.into_iter().next();
        Ok(first.filter(|message| message.position.sequence == number))
    }

    /// Returns the position of the last message behind the cursor up to `number`, or that of
    /// the gap before it, if there is one. Halves the range of numbers until it is found.
    async fn last_up_to(
        &self,
        cursor: Position,
        number: Sequence,
    ) -> Result<Option<Position>, Fault> {
        let page = self.read_inbox(cursor, ONE).await?;
        let first = page.messages.first().map(|message| message.position);
        let known: Vec<_> = page.starts_after.into_iter().chain(first).collect();
        if known.first().is_some_and(|first| first.sequence > number) {
            return Ok(None);
        }
        let above = Position {
            sequence: number,
            ..Position::default()
        };
        if self.read_inbox(above, ONE).await?.messages.is_empty()
            && known.iter().all(|position| position.sequence < number)
        {
            let user = &self.user.account.name;
            let explanation =
                format!("no message of {user} has the number {number} or a higher one");
            return Fault::refused(Code::BadRequest, explanation);
        }
        let mut reached = known.into_iter().rev();
        let mut last = reached.find(|position| position.sequence <= number);
        // No message has a number above `low` or up to `high` that is not in between.
        let (mut low, mut high) = (last.map_or(number.0, |last| last.sequence.0), number.0);
        while low < high {
            self.check_entrance()?;
            let middle = low + (high - low) / 2;
            let after = Position {
                sequence: Sequence(middle),
                ..Position::default()
            };
            let page = self.read_inbox(after, ONE).await?;
            let next = page.messages.first().map(|message| message.position);
            match next.filter(|position| position.sequence <= number) {
                Some(position) => {
                    low = position.sequence.0;
                    last = Some(position);
                }
                None => high = middle,
            }
        }
        Ok(last)
    }

    /// Returns the place of the last message of a room up to `number`, or that of the gap
    /// before it, unless it is acknowledged.
    async fn last_point(
        &self,
        place: &RoomPlace,
        number: Sequence,
    ) -> Result<Option<Point>, Fault> {
        let (unread, last) = (place.unread, place.unread.last);
        if number > last.sequence {
            return self.beyond(place.name.as_str(), last.sequence);
        }
        if number.0 <= place.cursor.number {
            return Ok(None);
        }
        if number == last.sequence {
            return Ok(Some(last.into()));
        }
        let _permit = self.chat.histories.acquire(self.address).await?;
        let store = &self.chat.store;
        let before = Sequence(number.0 + 1);
        let page = store.read_back(unread, before, ONE).await?;
        if let Some(message) = page.messages.first() {
            return Ok(Some(message.position.into()));
        }
        let page = store.read_room(unread.room, place.cursor, ONE).await?;
        let gap = page.starts_after.filter(|start| start.sequence <= number);
        Ok(gap.map(Point::from))
    }

    fn beyond<T>(&self, log: &str, last: Sequence) -> Result<T, Fault> {
        Fault::refused(
            Code::BadRequest,
            format!("the last message of {log} has the number {last}"),
        )
    }

    async fn read_inbox(&self, after: Position, limit: ReadLimit) -> Result<Page, Fault> {
        let account = &self.user.account;
        Ok(self.chat.store.read(account, after, limit).await?)
    }
}
