//! Access to an inbox without a delivery, for a front without connections: reading what is
//! unacknowledged, and acknowledging by number.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Code, Password, Sequence, UserName};
use tokio::time::Instant;

use super::rate_limiter::Charged;
use super::{Chat, Fault, audit};
use crate::store::{Account, Message, Page, Position, ReadLimit, RoomAnswer, RoomCommand};

/// The maximum number of messages of one page.
const PAGE_MESSAGES: usize = 256;

/// The maximum number of bytes of text in one page; the first message may exceed it.
const PAGE_BYTES: usize = 64 * 1024;

/// The longest delay by the rate limit of the user.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// An inbox to whose account the caller has logged in.
#[derive(Debug, Clone)]
pub struct Inbox {
    chat: Arc<Chat>,
    account: Account,
}

impl Chat {
    /// Logs in to an account from `address`, for access to its inbox.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`], [`Code::RateLimited`].
    pub async fn inbox(
        self: &Arc<Self>,
        address: IpAddr,
        user: UserName,
        password: Option<Password>,
    ) -> Result<Inbox, Fault> {
        let authenticated = self.login(address, user, password).await?;
        let account = authenticated.account;
        let charged = Charged {
            user: &account.name,
            is_exempt: self.rules().rates.is_exempt(address),
        };
        let wait = self.users.charge_command(charged, Instant::now());
        if wait > WAIT_MAX {
            return Fault::rate_limited(wait, "too many commands");
        }
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        audit::logged_in(&account.name, authenticated.by_password, address);
        Ok(Inbox {
            chat: Arc::clone(self),
            account,
        })
    }
}

impl Inbox {
    /// Returns the next unacknowledged messages after `after`.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn read(&self, after: Position) -> Result<Page, Fault> {
        let limit = ReadLimit {
            messages: PAGE_MESSAGES,
            bytes: PAGE_BYTES,
        };
        Ok(self.chat.store.read(&self.account, after, limit).await?)
    }

    /// Acknowledges every message up to `number`, whether or not a connection receives, as
    /// the device without a name, or as a user without devices. The cost grows with the
    /// unacknowledged messages up to it, unless it is the number of one.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the inbox, or if the
    /// user has only devices with names.
    pub async fn acknowledge(&self, number: Sequence) -> Result<(), Fault> {
        if self.has_only_named_devices().await? {
            let name = &self.account.name;
            let explanation = format!(
                "{name} receives by devices with names; only a device that is attached can acknowledge"
            );
            return Fault::refused(Code::BadRequest, explanation);
        }
        if let Some(position) = self.last_position(number).await? {
            self.chat.store.acknowledge(&self.account, position);
        }
        Ok(())
    }

    async fn has_only_named_devices(&self) -> Result<bool, Fault> {
        let store = &self.chat.store;
        if !store.has_rooms() {
            return Ok(false);
        }
        let answer = store.room_command(&self.account, None, RoomCommand::Devices);
        Ok(match answer.await? {
            Ok(RoomAnswer::Devices(devices)) => {
                !devices.is_empty() && devices.iter().all(|device| device.name.is_some())
            }
            _ => false,
        })
    }

    /// Acknowledges every message up to `number` as the device without a name, which is
    /// to receive next and is created if it does not exist. The cost is that of
    /// [`Self::acknowledge`].
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the inbox.
    pub async fn start_after(&self, number: Sequence) -> Result<(), Fault> {
        if let Some(position) = self.last_position(number).await? {
            drop(self.chat.store.receive_if_free(&self.account).await?);
            self.chat.store.acknowledge(&self.account, position);
        }
        Ok(())
    }

    /// Returns the position of the last unacknowledged message up to `number`, if there is
    /// one.
    ///
    /// # Errors
    /// [`Code::BadRequest`] if the number is above the last one of the inbox.
    async fn last_position(&self, number: Sequence) -> Result<Option<Position>, Fault> {
        match self.message(number).await? {
            Some(message) => Ok(Some(message.position)),
            None => self.last_up_to(number).await,
        }
    }

    /// Returns the unacknowledged message with this number.
    async fn message(&self, number: Sequence) -> Result<Option<Arc<Message>>, Fault> {
        let after = Position {
            sequence: Sequence(number.0.saturating_sub(1)),
            ..Position::default()
        };
        let limit = ReadLimit {
            messages: 1,
            bytes: 0,
        };
        let page = self.chat.store.read(&self.account, after, limit).await?;
        let first = page.messages.into_iter().next();
        Ok(first.filter(|message| message.position.sequence == number))
    }

    /// Returns the position of the last unacknowledged message up to `number`, if there is
    /// one.
    async fn last_up_to(&self, number: Sequence) -> Result<Option<Position>, Fault> {
        let mut last = None;
        let mut highest = Position::default();
        loop {
            let page = self.read(highest).await?;
            highest = page.starts_after.unwrap_or(highest);
            for message in &page.messages {
                if message.position.sequence > number {
                    return Ok(last);
                }
                highest = message.position;
                last = Some(highest);
            }
            if page.complete || page.messages.is_empty() {
                break;
            }
        }
        if number > highest.sequence {
            return Fault::refused(
                Code::BadRequest,
                format!(
                    "the last message of {} has the number {}",
                    self.account.name, highest.sequence
                ),
            );
        }
        Ok(last)
    }
}
